//! A Diego of one machine: `diego dev` on any ports with a state directory of its own, spoken to through its CLI.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::Footprint;

const START_TIME: Duration = Duration::from_secs(30);
const STOP_TIME: Duration = Duration::from_secs(40);
/// Beside a Diego that the machine's owner runs.
const SLOT: &str = "1";

pub struct World {
    dir: tempfile::TempDir,
    dev: Child,
}

/// How a command ended and what it said.
#[derive(Debug)]
pub struct Answer {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

/// The machine, for one test at a time: worlds share names in the kernel, and a count of what is left must be of one
/// test alone.
pub struct Machine {
    test: String,
    before: Footprint,
    _turn: MutexGuard<'static, ()>,
}

static TURN: Mutex<()> = Mutex::new(());

impl Machine {
    /// `None`, and a line that says why, where the test cannot run.
    pub fn claim(test: &str) -> Option<Machine> {
        if !require_root(test) {
            return None;
        }
        // A test that failed has said so; the next one still has its turn.
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        Some(Machine { test: test.into(), before: Footprint::take(), _turn: turn })
    }

    #[track_caller]
    pub fn has_nothing_left(self) {
        let left = Footprint::since(&self.before);
        assert!(
            left.is_empty(),
            "{} left {} things: {:?}",
            self.test,
            left.len(),
            &left[..left.len().min(40)]
        );
    }
}

/// Says that a test is skipped, and why, unless this process is root and the programs are built.
pub fn require_root(test: &str) -> bool {
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED {test}: it makes containers, and only root can");
        return false;
    }
    if !program("diego").exists() {
        println!(
            "SKIPPED {test}: there is no diego in {}; run: make build PROFILE=dev",
            program("").display()
        );
        return false;
    }
    true
}

fn program(name: &str) -> PathBuf {
    let dir = std::env::var_os("DIEGO_BIN").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("dist/bin"),
        PathBuf::from,
    );
    dir.join(name)
}

/// The CLI with a state directory, not yet run.
pub fn diego(state: &Path) -> Command {
    let mut command = Command::new(program("diego"));
    command.env("DIEGO_STATE", state).stdin(Stdio::null());
    command
}

impl World {
    pub fn start() -> World {
        let dir = tempfile::tempdir().unwrap();
        World { dev: start_dev(dir.path()), dir }
    }

    pub fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// Runs a CLI command to its end.
    pub fn diego(&self, arguments: &[&str]) -> Answer {
        Answer::of(diego(&self.state()).args(arguments))
    }

    /// The end of this Diego that it does not notice, and a new beginning on the same state.
    pub fn kill_and_start_again(&mut self) {
        self.dev.kill().unwrap();
        self.dev.wait().unwrap();
        self.dev = start_dev(self.dir.path());
    }

    /// Waits for what `holds` says to become true.
    pub fn until(&self, what: &str, limit: Duration, mut holds: impl FnMut(&World) -> bool) {
        let deadline = Instant::now() + limit;
        while !holds(self) {
            assert!(Instant::now() < deadline, "not within {limit:?}: {what}\n{}", self.end_of_log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn end_of_log(&self) -> String {
        let log = std::fs::read_to_string(self.state().join("diego.log")).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.dev);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let deadline = Instant::now() + STOP_TIME;
        while matches!(self.dev.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                let _ = self.dev.kill();
                let _ = self.dev.wait();
                if !std::thread::panicking() {
                    panic!("diego dev did not stop within {STOP_TIME:?}\n{}", self.end_of_log());
                }
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn start_dev(dir: &Path) -> Child {
    let state = dir.join("state");
    let _ = std::fs::remove_file(state.join("endpoints.json"));
    let said = std::fs::File::create(dir.join("dev.out")).unwrap();
    let mut dev = diego(&state)
        .args(["dev", "--any-port", "--slot", SLOT])
        .stdout(said.try_clone().unwrap())
        .stderr(said)
        .spawn()
        .unwrap();
    let deadline = Instant::now() + START_TIME;
    while !state.join("endpoints.json").exists() {
        let ended = dev.try_wait().unwrap();
        let said = || std::fs::read_to_string(dir.join("dev.out")).unwrap_or_default();
        assert!(ended.is_none(), "diego dev ended: {}", said());
        assert!(Instant::now() < deadline, "diego dev did not start: {}", said());
        std::thread::sleep(Duration::from_millis(20));
    }
    dev
}

impl Answer {
    pub fn of(command: &mut Command) -> Answer {
        let output = command.output().unwrap();
        Answer {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// It failed with this exit code and a last line that says all of these.
    #[track_caller]
    pub fn refused(&self, code: i32, says: &[&str]) {
        let last = self.stderr.lines().last().unwrap_or_default();
        assert_eq!(self.code, code, "{self:?}");
        for words in says {
            assert!(last.contains(words), "{words:?} is not in: {last}");
        }
    }

    /// Refused in several lines: how it is asked is behind what is wrong.
    #[track_caller]
    pub fn explained(&self, code: i32, says: &[&str]) {
        assert_eq!(self.code, code, "{self:?}");
        for words in says {
            assert!(self.stderr.contains(words), "{words:?} is not in: {}", self.stderr);
        }
    }

    #[track_caller]
    pub fn worked(self) -> Answer {
        assert_eq!(self.code, 0, "{self:?}");
        self
    }
}
