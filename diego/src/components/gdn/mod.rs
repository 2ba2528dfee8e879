//! `garden`, and `gdn` as deployments start it: makes containers, behind the Garden API. Needs root.
//!
//! ```text
//! gdn --config FILE server [FLAGS]     until told to stop
//! gdn --config FILE cleanup [FLAGS]    destroys what an earlier garden has left, and ends
//! gdn setup [FLAGS]                    nothing: `server` does it
//! ```

pub mod flags;
mod ini;
mod settings;

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use diego_base::telemetry::{self, LevelSwitch};
use tokio_util::sync::CancellationToken;

pub use flags::{ServerFlags, SetupFlags};
use ini::Section;
pub use settings::Name;

/// What is said here is said by garden.
const SOURCE: &str = "garden";

#[derive(Args)]
pub struct Flags {
    /// A file of such flags: KEY = VALUE, below [server], [setup] or [cleanup].
    #[arg(long)]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make containers until told to stop.
    Server(Box<ServerFlags>),
    /// Prepare the machine: there is nothing to prepare.
    Setup(SetupFlags),
    /// Destroy every container that an earlier garden has left.
    Cleanup(Box<ServerFlags>),
}

/// `gdn [--config FILE] [COMMAND] [FLAGS]` with the file's flags in it; `server` where no command is named.
pub fn expand(arguments: &[OsString]) -> Result<Vec<OsString>> {
    let (mut config, mut before, mut command, mut after) = (None, Vec::new(), None, Vec::new());
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let text = argument.to_str().unwrap_or_default();
        match text.trim_start_matches('-').split_once('=') {
            Some(("config", path)) if text.starts_with('-') => config = Some(PathBuf::from(path)),
            _ if text == "--config" || text == "-config" => {
                config = Some(rest.next().map(PathBuf::from).ok_or(ini::Error::NoPath)?);
            }
            _ if text == "-v" => before.push("--version".into()),
            _ if command.is_none() && (Section::named(text).is_some() || text == "help") => {
                command = Some(text)
            }
            _ if command.is_none() && matches!(text, "-h" | "--help") => before.push(argument.clone()),
            _ => after.push(argument.clone()),
        }
    }
    if command.is_none() && !before.is_empty() {
        return Ok(before);
    }
    let command = command.unwrap_or("server");
    before.push(OsStr::new(command).into());
    if let (Some(path), Some(section)) = (config, Section::named(command)) {
        before.extend(ini::flags(&path, section, &after)?);
    }
    before.extend(after);
    Ok(before)
}

pub async fn run_gdn(flags: Flags) -> Result<()> {
    match flags.command {
        Command::Server(flags) => run(Name::Gdn, *flags).await,
        Command::Setup(flags) => setup(&flags),
        Command::Cleanup(flags) => clean_up(*flags).await,
    }
}

pub async fn run(name: Name, flags: ServerFlags) -> Result<()> {
    let (config, shutdown) = prepare(name, flags)?;
    Ok(garden::run(config, shutdown).await?)
}

/// What garden is told, and when it is to stop.
pub fn prepare(name: Name, flags: ServerFlags) -> Result<(garden::Config, CancellationToken)> {
    let (shutdown, levels) = begin(name, &flags.log)?;
    let listen = settings::listen(name, &flags.server)?;
    let debug =
        settings::debug_address(&flags.server).map(|address| garden::debug::Config { address, levels });
    let gardener = configuration(name, flags)?;
    Ok((garden::Config { listen, debug, gardener }, shutdown))
}

async fn clean_up(flags: ServerFlags) -> Result<()> {
    let (shutdown, _) = begin(Name::Gdn, &flags.log)?;
    Ok(garden::clean_up(configuration(Name::Gdn, flags)?, shutdown).await?)
}

fn setup(flags: &SetupFlags) -> Result<()> {
    begin(Name::Gdn, &flags.log)?;
    tracing::info!(target: SOURCE, tag = flags.tag,
        throttling = flags.enable_cpu_throttling,
        "there is nothing to set up: the server does it"
    );
    Ok(())
}

fn begin(name: Name, log: &flags::LogFlags) -> Result<(CancellationToken, LevelSwitch)> {
    let style = settings::style(name, log);
    let levels = telemetry::init_styled(settings::log_filter(log), Box::new(std::io::stdout()), style);
    if !rustix::process::geteuid().is_root() {
        anyhow::bail!("garden makes containers, and only root can");
    }
    Ok((super::until_told_to_stop()?, levels))
}

fn configuration(name: Name, flags: ServerFlags) -> Result<garden::gardener::Config> {
    let init = crate::dev::beside("garden-init").context("cannot find pid 1 of containers")?;
    let mut settings = settings::settings(name, flags, init)?;
    for settings::Note { flag, why } in settings.notes {
        tracing::info!(target: SOURCE, flag, why, "this flag has no effect");
    }
    let account = super::disk::account(&settings.gardener.directory)?;
    settings.gardener.rootfs.ledger = Some(account);
    Ok(settings.gardener)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(line: &str) -> String {
        let arguments: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
        let expanded = expand(&arguments).unwrap();
        expanded.iter().map(|argument| argument.to_str().unwrap()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_command_line_is_completed_by_the_file_it_names() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "[server]\ndepot = /d\ntag = a\n").unwrap();
        let path = file.path().display();
        for (line, expected) in [
            ("--tag b", "server --tag b"),
            ("server --tag=b", "server --tag=b"),
            ("--config FILE server --tag=b", "server --depot=/d --tag=b"),
            ("server --config=FILE", "server --depot=/d --tag=a"),
            ("-config FILE cleanup", "cleanup --depot=/d --tag=a"),
            ("--config FILE setup", "setup"),
            ("--help", "--help"),
            ("server --help", "server --help"),
            ("-v", "--version"),
        ] {
            assert_eq!(expanded(&line.replace("FILE", &path.to_string())), expected, "{line}");
        }
        assert!(expand(&["--config".into()]).is_err());
    }
}
