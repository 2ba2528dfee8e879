//! How a command ends when it does not succeed: a sentence that says what to do next, and an exit code.

use std::process::ExitCode;

#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// What was asked was done, and it did not work out: a task failed, instances crash.
    #[error("{0}")]
    Unsuccessful(String),
    /// Nobody answers where Diego should be.
    #[error("{0}")]
    Unreachable(String),
    /// The named thing does not exist.
    #[error("{0}")]
    Unknown(String),
    #[error("{}", chain(.0))]
    Other(#[from] anyhow::Error),
}

impl Failure {
    /// 1 unsuccessful or any other failure, 3 unreachable, 4 unknown. (2 is wrong usage.)
    pub fn code(&self) -> ExitCode {
        ExitCode::from(match self {
            Failure::Unsuccessful(_) | Failure::Other(_) => 1,
            Failure::Unreachable(_) => 3,
            Failure::Unknown(_) => 4,
        })
    }
}

/// The whole chain of causes on one line, each said once.
fn chain(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain().map(|cause| cause.to_string()) {
        if line.is_empty() {
            line = cause;
        } else if !line.contains(&cause) {
            line = format!("{line}: {cause}");
        }
    }
    line
}
