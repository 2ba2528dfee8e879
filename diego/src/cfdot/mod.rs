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

use std::ffi::OsString;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Subcommand};
use connection::Connection;
pub use failure::{Failure, USAGE};
use serde::Serialize;

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
}

pub async fn run(flags: Flags) -> ExitCode {
    match dispatch(flags).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("Error: {failure}");
            failure.code()
        }
    }
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
    }
}

/// What was asked wrongly, in the words that scripts look for, and how it is asked.
pub fn misused(arguments: &[OsString], error: &clap::Error) {
    let missing = error.kind() == ErrorKind::MissingRequiredArgument;
    let why = if missing { "Missing arguments" } else { "Too many arguments specified" };
    if missing || error.kind() == ErrorKind::UnknownArgument {
        eprintln!("Error: {why}");
    }
    let mut told = arguments.iter().filter_map(|argument| argument.to_str());
    let mut command = crate::cli::Cli::command();
    let Some(cfdot) = command.find_subcommand_mut("cfdot") else { return };
    let asked = told.find_map(|name| cfdot.find_subcommand(name));
    if let Some(asked) = asked {
        let names: Vec<_> =
            asked.get_positionals().map(|name| name.get_id().as_str().to_uppercase()).collect();
        eprintln!(
            "Usage:\n  {}",
            ["cfdot", asked.get_name(), &names.join(" "), "[flags]"].join(" ").replace("  ", " ")
        );
    }
}

/// One value, on one line.
fn line<T: Serialize>(value: &T) -> Result<(), Failure> {
    let text = serde_json::to_string(value).map_err(Failure::other)?;
    crate::operator::print(&text).map_err(|error| Failure::Other(format!("{error:#}")))
}

fn lines<T: Serialize>(values: &[T]) -> Result<(), Failure> {
    values.iter().try_for_each(line)
}
