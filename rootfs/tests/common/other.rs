//! Another process of the same test program, which runs one of its tests until it is killed.

// Not every test needs all of it.
#![allow(dead_code)]

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};

/// Killed with the answer.
pub struct Other {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Other {
    /// Runs `test` with one variable in its environment.
    pub fn start(test: &str, name: &str, value: impl AsRef<OsStr>) -> Other {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            .env(name, value)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Other { child, output }
    }

    /// What follows `ready` on the line that it says at last.
    pub fn ready(&mut self) -> String {
        let mut said = String::new();
        loop {
            let mut line = String::new();
            assert!(self.output.read_line(&mut line).unwrap() > 0, "it ended: {said}");
            // The harness begins a line of its own.
            if let Some((_, rest)) = line.split_once("ready") {
                return rest.trim().into();
            }
            said += &line;
        }
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
    }

    pub fn wait(&mut self) -> ExitStatus {
        std::io::copy(&mut self.output, &mut std::io::sink()).unwrap();
        self.child.wait().unwrap()
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}
