//! `diego ssh NAME[/INDEX] [-- CMD]`: the system's own OpenSSH client, led to the ssh proxy.
//!
//! The password reaches it as OpenSSH asks for it: it runs this very program as its askpass, which prints what stands
//! in the environment.

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, anyhow};
use clap::Args;

use super::Failure;
use super::Global;
use super::target::Target;

/// When set, the program is OpenSSH's askpass and prints it.
pub const ASKPASS_ENV: &str = "DIEGO_SSH_ASKPASS";

#[derive(Args)]
pub struct Flags {
    /// An app, or one of its instances as `NAME/INDEX`.
    instance: String,
    /// A command instead of a shell.
    #[arg(last = true)]
    command: Vec<String>,
    /// Ask for a terminal even if there is a command.
    #[arg(long, short = 't')]
    tty: bool,
}

pub async fn run(global: &Global, flags: Flags) -> Result<(), Failure> {
    let target = Target::reach(global).await?;
    let (name, index) = parse(&flags.instance)?;
    target.app(&name).await?;
    let endpoints = &target.endpoints;
    let (host, port) =
        endpoints.ssh_address.rsplit_once(':').context("cannot read the ssh proxy's address")?;
    let mut ssh = Command::new("ssh");
    ssh.args([
        "-o",
        "StrictHostKeyChecking=no",
        "-o",
        "UserKnownHostsFile=/dev/null",
        "-o",
        "LogLevel=ERROR",
    ]);
    ssh.args(["-o", "PreferredAuthentications=password", "-o", "NumberOfPasswordPrompts=1"]);
    ssh.args(["-p", port, "-l", &format!("diego:{name}/{index}")]);
    if flags.tty {
        ssh.arg("-t");
    }
    ssh.arg(host).arg("--").args(&flags.command);
    ssh.env("SSH_ASKPASS", std::env::current_exe().context("cannot find this program")?);
    ssh.env("SSH_ASKPASS_REQUIRE", "force").env(ASKPASS_ENV, &endpoints.ssh_credentials);
    let error = ssh.exec();
    if error.kind() == std::io::ErrorKind::NotFound {
        let advice = "there is no ssh program; install it with: apt-get install openssh-client";
        return Err(Failure::Unsuccessful(advice.into()));
    }
    Err(anyhow!(error).context("cannot start ssh").into())
}

fn parse(instance: &str) -> Result<(String, u32), Failure> {
    match instance.split_once('/') {
        None => Ok((instance.into(), 0)),
        Some((name, index)) => match index.parse() {
            Ok(index) => Ok((name.into(), index)),
            Err(_) => Err(Failure::Unknown(format!("{index} is no index of an instance; say {name}/0"))),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_is_named_by_its_app_and_index() {
        assert_eq!(parse("web").unwrap(), ("web".into(), 0));
        assert_eq!(parse("web/2").unwrap(), ("web".into(), 2));
        assert!(parse("web/x").is_err());
    }
}
