//! OpenSSH's own clients, as people use them: no options that make them faster.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::servers::Server;

const PROMPT: &str = "bench-prompt> ";

#[derive(Clone, Copy)]
pub enum Protocol {
    Sftp,
    Old,
}

#[derive(Clone, Copy)]
pub enum Direction {
    Up,
    Down,
}

/// A shell that waits for a command.
pub struct Client(Child);

impl Client {
    /// Leaves as people do.
    pub fn end(&mut self) -> Result<()> {
        self.0.stdin.take().context("no input")?.write_all(b"exit\n")?;
        let status = self.0.wait()?;
        if !status.success() {
            bail!("the shell ended with {status}");
        }
        Ok(())
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // One that has ended is ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub struct Prompt {
    pub after: Duration,
    pub client: Client,
}

/// Opens a shell on a terminal. It is the same shell on all servers, without anybody's profile.
pub fn prompt(server: &dyn Server) -> Result<Prompt> {
    let began = Instant::now();
    let mut command = server.client("ssh");
    command.args(["-tt", "127.0.0.1"]).arg(format!("PS1='{PROMPT}' ENV= exec /bin/sh -i"));
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("cannot start ssh")?;
    let mut client = Client(child);
    let mut output = client.0.stdout.take().context("no output")?;
    let (mut seen, mut piece) = (Vec::new(), [0; 4096]);
    while !seen.ends_with(PROMPT.as_bytes()) {
        let length = output.read(&mut piece)?;
        if length == 0 {
            bail!("no prompt, but {:?}", String::from_utf8_lossy(&seen));
        }
        seen.extend_from_slice(&piece[..length]);
    }
    let after = began.elapsed();
    // What follows is read, or the shell could not end.
    std::thread::spawn(move || std::io::copy(&mut output, &mut std::io::sink()));
    Ok(Prompt { after, client })
}

/// Copies `file` to `target`, one of which is behind the server; how long it took, the client's start included.
pub fn copy(
    server: &dyn Server,
    protocol: Protocol,
    direction: Direction,
    file: &Path,
    target: &Path,
) -> Result<Duration> {
    let there = |path: &Path| format!("127.0.0.1:{}", path.display());
    let here = |path: &Path| path.display().to_string();
    let (from, to) = match direction {
        Direction::Up => (here(file), there(target)),
        Direction::Down => (there(file), here(target)),
    };
    let mut command = server.client("scp");
    if matches!(protocol, Protocol::Old) {
        command.arg("-O");
    }
    command.args(["-q", &from, &to]);
    let began = Instant::now();
    let status = command.stdin(Stdio::null()).status().context("cannot start scp")?;
    let time = began.elapsed();
    if !status.success() || target.metadata()?.len() != file.metadata()?.len() {
        bail!("{command:?} ended with {status}");
    }
    std::fs::remove_file(target)?;
    Ok(time)
}
