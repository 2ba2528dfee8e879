//! How a command ends when it does not succeed: in the words and with the exit codes that operators' scripts know.

use std::process::ExitCode;

use bbs_client::LocketError;

#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Asked in a way that cannot be answered.
    #[error("{0}")]
    Usage(String),
    #[error("BBS error\nType {}: {}\nMessage: {}", .0.kind as i32, .0.kind.name(), .0.message)]
    Bbs(bbs_models::Error),
    /// Locket or a rep refused, or cannot be reached.
    #[error("{0}")]
    Component(String),
    #[error("{0}")]
    Other(String),
}

impl Failure {
    /// 3 usage, 4 refused by a component, 5 anything else, a BBS that cannot be reached too.
    pub fn code(&self) -> ExitCode {
        ExitCode::from(match self {
            Failure::Usage(_) => USAGE,
            Failure::Bbs(_) | Failure::Component(_) => 4,
            Failure::Other(_) => 5,
        })
    }

    /// With all its causes.
    pub fn other(error: impl std::error::Error) -> Failure {
        Failure::Other(chain(&error))
    }
}

/// The exit code of wrong usage.
pub const USAGE: u8 = 3;

pub fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !line.contains(&text) {
            line = format!("{line}: {text}");
        }
        cause = error.source();
    }
    line
}

impl From<bbs_client::Error> for Failure {
    fn from(error: bbs_client::Error) -> Failure {
        match error {
            bbs_client::Error::Bbs(refused) => Failure::Bbs(refused),
            late if late.is_timeout() => Failure::Component(format!("Timeout exceeded: {}", chain(&late))),
            other => Failure::other(other),
        }
    }
}

impl From<LocketError> for Failure {
    fn from(error: LocketError) -> Failure {
        Failure::Component(chain(&error))
    }
}
