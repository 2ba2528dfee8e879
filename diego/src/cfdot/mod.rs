//! `cfdot`: an operator's questions and orders to the BBS, Locket and the cells, as scripts of existing deployments
//! ask them: the same commands, flags, variables and exit codes, and one JSON value a line.
//!
//! One file a group of commands. Nothing is remembered between two calls.

mod cells;
mod connection;
mod desired_lrps;
mod domains;
mod events;
mod failure;
mod instances;
mod locks;
mod spec;
mod tasks;
mod usage;

use std::process::ExitCode;

use clap::{Args, CommandFactory, Subcommand};
use connection::Connection;
pub use failure::Failure;
use serde::Serialize;
pub use usage::{misused, shaped};

/// The subcommand, and the name that scripts know it by.
pub const NAME: &str = "cfdot";

#[derive(Args)]
pub struct Flags {
    #[command(flatten)]
    connection: Connection,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    #[command(flatten)]
    Instances(instances::Command),
    #[command(flatten)]
    Cells(cells::Command),
    #[command(flatten)]
    DesiredLrps(desired_lrps::Command),
    #[command(flatten)]
    Tasks(tasks::Command),
    #[command(flatten)]
    Domains(domains::Command),
    #[command(flatten)]
    Locks(locks::Command),
    #[command(flatten)]
    Events(events::Command),
    /// Get help on using cfdot commands.
    Help {
        #[arg(value_name = "CMD")]
        cmd: Option<String>,
    },
}

pub async fn run(flags: Flags) -> ExitCode {
    let told: Vec<String> = std::env::args_os().skip(1).map(|one| one.to_string_lossy().into()).collect();
    usage::warn(&told);
    let done = match usage::check(&told) {
        Ok(()) => dispatch(flags).await,
        Err(failure) => Err(failure),
    };
    let Err(failure) = done else { return ExitCode::SUCCESS };
    eprintln!("Error: {failure}");
    if matches!(failure, Failure::Usage(_) | Failure::Unknown(_)) {
        eprintln!("{}", usage::usage(&crate::cli::Cli::command(), &told));
    }
    failure.code()
}

async fn dispatch(Flags { connection, command }: Flags) -> Result<(), Failure> {
    match command {
        Command::Instances(command) => instances::run(&connection.bbs()?, command).await,
        Command::Cells(command) => cells::run(&connection, command).await,
        Command::DesiredLrps(command) => desired_lrps::run(&connection.bbs()?, command).await,
        Command::Tasks(command) => tasks::run(&connection.bbs()?, command).await,
        Command::Domains(command) => domains::run(&connection.bbs()?, command).await,
        Command::Locks(command) => locks::run(&connection.locket()?, command).await,
        Command::Events(command) => events::run(&connection.bbs()?, command).await,
        Command::Help { cmd } => print(&usage::help(shaped(crate::cli::Cli::command()), cmd.as_deref())?),
    }
}

/// One value, on one line.
fn line<T: Serialize>(value: &T) -> Result<(), Failure> {
    let text = serde_json::to_string(value).map_err(Failure::other)?;
    print(&text)
}

fn print(text: &str) -> Result<(), Failure> {
    crate::operator::print(text).map_err(|error| Failure::Other(format!("{error:#}")))
}

fn lines<T: Serialize>(values: &[T]) -> Result<(), Failure> {
    values.iter().try_for_each(line)
}
