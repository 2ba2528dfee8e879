//! The command line: what was asked, and under which exit code the answer leaves.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::operator::{self, Failure, Global};
use crate::{cfdot, components, dev};

#[derive(Parser)]
#[command(
    name = "diego",
    version,
    about = "Runs Docker images and buildpack droplets on machines of your own."
)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a whole Diego on this machine until it is interrupted.
    Dev(dev::Flags),
    /// Run an image as a long-running process.
    Run(operator::run::Flags),
    /// Stage a directory with a buildpack and run its droplet.
    Push(operator::push::Flags),
    /// Run a command in an image once, and wait for its end.
    Task(operator::task::Flags),
    /// List apps and their instances.
    Ps(operator::ps::Flags),
    /// Show what an app's instances print.
    Logs(operator::logs::Flags),
    /// Open a shell in an instance, or run a command in it.
    Ssh(operator::ssh::Flags),
    /// Change how many instances an app has.
    Scale(operator::scale::Flags),
    /// Stop an app's instances; it can be scaled up again.
    Stop(operator::scale::Name),
    /// Remove an app.
    Delete(operator::scale::Name),
    /// List, pull and remove images, and show who takes what of the disk.
    Images(operator::images::Flags),
    /// List the cells.
    Cells,
    /// Show the networks of this cell's containers, and why a packet would pass or not.
    Net(operator::net::Flags),
    /// Follow what happens to apps and tasks.
    Events(operator::events::Flags),
    /// A command-line tool to interact with a Cloud Foundry Diego deployment.
    #[command(disable_help_subcommand = true)]
    Cfdot(Box<cfdot::Flags>),
    #[command(flatten)]
    Component(components::Component),
}

/// Names by which `diego` may be started, and the subcommand each stands for.
const ESTABLISHED_NAMES: [(&str, &str); 9] = [
    ("bbs", "bbs"),
    ("locket", "locket"),
    ("auctioneer", "auctioneer"),
    ("rep", "rep"),
    ("gdn", GDN),
    ("route-emitter", "route-emitter"),
    ("ssh-proxy", "ssh-proxy"),
    ("file-server", "file-server"),
    (cfdot::NAME, cfdot::NAME),
];
const GDN: &str = "gdn";
/// What existing scripts know of a `gdn` that was told nonsense.
const GDN_USAGE: u8 = 1;

pub async fn run() -> ExitCode {
    let given: Vec<OsString> = std::env::args_os().collect();
    let name = established_name(&given).unwrap_or("diego");
    let arguments = match arguments(given) {
        Ok(arguments) => arguments,
        Err(error) => return misconfigured(name, &error),
    };
    let command = cfdot::shaped(Cli::command());
    let matches = command.clone().try_get_matches_from(&arguments);
    let cli = match matches.and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => cli,
        Err(error) => return misused(&command, &arguments, &error),
    };
    match dispatch(cli).await {
        Ok(code) => code,
        Err(failure) => {
            eprintln!("{name}: {failure}");
            failure.code()
        }
    }
}

/// What a component's file says cannot be used.
fn misconfigured(name: &str, error: &anyhow::Error) -> ExitCode {
    use components::deployed::Error;
    match error.downcast_ref::<Error>() {
        Some(Error::Refused(refusal)) => {
            eprintln!("{name}: {refusal}");
            ExitCode::from(refusal.say(name))
        }
        Some(error) => {
            eprintln!("{name}: invalid-config-file: {error}");
            ExitCode::from(components::deployed::UNREADABLE)
        }
        None => {
            eprintln!("{name}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Wrong usage, or a question for help, which is none.
fn misused(command: &clap::Command, arguments: &[OsString], error: &clap::Error) -> ExitCode {
    let subcommand = arguments.get(1).and_then(|subcommand| subcommand.to_str());
    if error.exit_code() != 0 && subcommand == Some(cfdot::NAME) {
        return cfdot::misused(command, arguments, error);
    }
    // Nobody is left to tell if this cannot be printed.
    let _ = error.print();
    match (u8::try_from(error.exit_code()), subcommand) {
        (Ok(0), _) => ExitCode::SUCCESS,
        (_, Some(GDN)) => ExitCode::from(GDN_USAGE),
        (Ok(code), _) => ExitCode::from(code),
        (Err(_), _) => ExitCode::FAILURE,
    }
}

async fn dispatch(cli: Cli) -> Result<ExitCode, Failure> {
    let global = cli.global;
    let done = match cli.command {
        Command::Cfdot(flags) => return Ok(cfdot::run(*flags).await),
        Command::Dev(flags) => dev::run(&global.state, flags).await.map_err(Failure::from),
        Command::Component(component) => components::run(component).await.map_err(Failure::from),
        Command::Run(flags) => operator::run::run(&global, flags).await,
        Command::Push(flags) => operator::push::run(&global, flags).await,
        Command::Task(flags) => operator::task::run(&global, flags).await,
        Command::Ps(flags) => operator::ps::run(&global, flags).await,
        Command::Logs(flags) => operator::logs::run(&global, flags).await,
        Command::Ssh(flags) => operator::ssh::run(&global, flags).await,
        Command::Scale(flags) => operator::scale::scale(&global, flags).await,
        Command::Stop(name) => operator::scale::stop(&global, name).await,
        Command::Delete(name) => operator::scale::delete(&global, name).await,
        Command::Images(flags) => operator::images::run(&global, flags).await,
        Command::Cells => operator::cells::run(&global).await,
        Command::Net(flags) => operator::net::run(&global, &flags),
        Command::Events(flags) => operator::events::run(&global, flags).await,
    };
    done.map(|()| ExitCode::SUCCESS)
}

/// The name this was started under, if it is one of those.
fn established_name(arguments: &[OsString]) -> Option<&'static str> {
    let name = Path::new(arguments.first()?).file_name()?;
    ESTABLISHED_NAMES.iter().map(|(established, _)| *established).find(|established| name == *established)
}

/// `bbs --flag` is `diego bbs --flag`; what a component is told in a file of its deployment is added.
fn arguments(mut arguments: Vec<OsString>) -> anyhow::Result<Vec<OsString>> {
    if let Some(name) = established_name(&arguments)
        && let Some((_, subcommand)) = ESTABLISHED_NAMES.iter().find(|(established, _)| *established == name)
    {
        arguments[0] = "diego".into();
        arguments.insert(1, (*subcommand).into());
    }
    let Some(subcommand) = arguments.get(1).and_then(|subcommand| subcommand.to_str()).map(str::to_owned)
    else {
        return Ok(arguments);
    };
    let told = arguments.split_off(2);
    match &*subcommand {
        GDN => arguments.extend(components::gdn::expand(&told)?),
        _ => arguments.extend(components::deployed::expand(&subcommand, told)?),
    }
    Ok(arguments)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn an_established_name_is_its_component() {
        let given = |line: &str| line.split(' ').map(OsString::from).collect::<Vec<_>>();
        let arguments = |given| arguments(given).unwrap();
        assert_eq!(arguments(given("/usr/bin/gdn --depot /d")), given("diego gdn server --depot /d"));
        assert_eq!(arguments(given("gdn server --depot /d")), given("diego gdn server --depot /d"));
        assert_eq!(arguments(given("cfdot cells")), given("diego cfdot cells"));
        assert_eq!(arguments(given("diego ps")), given("diego ps"));
    }
}
