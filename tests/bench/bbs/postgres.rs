//! A PostgreSQL of our own, in a folder that goes with it, reached over the loopback. It flushes to the disk, as it does
//! unless it is told not to.

use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, geteuid, kill_process};
use tempfile::TempDir;

use super::served;

/// PostgreSQL refuses to be root.
const NOBODY: u32 = 65534;
/// Where Debian keeps it, by versions.
const VERSIONS: &str = "/usr/lib/postgresql";
/// The existing BBS has up to 200, as deployments tell it.
const CONNECTIONS_MAX: usize = 300;
const PATIENCE: Duration = Duration::from_secs(60);

pub struct Postgres {
    process: Child,
    folder: TempDir,
    programs: PathBuf,
    port: u16,
}

impl Postgres {
    /// `None` where it is not installed.
    pub fn start() -> Result<Option<Postgres>> {
        let Some(programs) = programs() else { return Ok(None) };
        let folder = served::folder("bench-postgres-")?;
        if geteuid().is_root() {
            chown(folder.path(), Some(NOBODY), Some(NOBODY))?;
        }
        let initdb = ["-D", "data", "-U", "diego", "-A", "trust", "-E", "UTF8", "--locale=C"];
        succeed(command(&programs.join("initdb"), folder.path()).args(initdb))?;
        let port = served::free_port()?;
        let process = command(&programs.join("postgres"), folder.path())
            .args(["-D", "data", "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="])
            // A young server fills each new segment of its log with zeros first; one that has run for a day recycles them.
            .args(["-c", "wal_init_zero=off"])
            .args(["-p", &port.to_string(), "-c", &format!("max_connections={CONNECTIONS_MAX}")])
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(folder.path().join("log"))?)
            .spawn()
            .context("cannot start PostgreSQL")?;
        Ok(Some(Postgres { process, folder, programs, port }))
    }

    /// The URL of a new database, as soon as the server makes one.
    pub fn database(&self, name: &str) -> Result<String> {
        let (began, port) = (Instant::now(), self.port.to_string());
        let mut create = command(&self.programs.join("createdb"), self.folder.path());
        create.args(["-h", "127.0.0.1", "-p", &port, "-U", "diego", name]);
        while let Err(error) = succeed(&mut create) {
            if began.elapsed() > PATIENCE {
                return Err(error);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(format!("postgres://diego@127.0.0.1:{port}/{name}?sslmode=disable"))
    }
}

impl Drop for Postgres {
    /// Told to end it ends its connections first; killed, it would leave their processes behind.
    fn drop(&mut self) {
        let told = Pid::from_raw(self.process.id().cast_signed()).map(|pid| kill_process(pid, Signal::INT));
        if told.is_none_or(|told| told.is_err()) || self.process.wait().is_err() {
            eprintln!("cannot end PostgreSQL");
        }
    }
}

fn programs() -> Option<PathBuf> {
    let versions = std::fs::read_dir(VERSIONS).ok()?.flatten();
    let mut programs: Vec<PathBuf> = versions.map(|version| version.path().join("bin")).collect();
    programs.sort();
    programs.into_iter().rfind(|programs| programs.join("initdb").exists())
}

fn command(program: &Path, folder: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir(folder).env_clear().env("LC_ALL", "C").stdin(Stdio::null());
    if geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
}

fn succeed(command: &mut Command) -> Result<()> {
    let done = command.output()?;
    if !done.status.success() {
        bail!("{:?} failed: {}", command.get_program(), String::from_utf8_lossy(&done.stderr));
    }
    Ok(())
}
