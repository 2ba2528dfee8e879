//! How a command ends when it does not succeed: in the words and with the exit codes that operators' scripts know.

use std::process::ExitCode;

use bbs_client::LocketError;
use bbs_models::ErrorKind;

#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Asked in a way that cannot be answered.
    #[error("{0}")]
    Usage(String),
    /// Told something that is not even looked at.
    #[error("{0}")]
    Unknown(String),
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
            Failure::Unknown(_) => UNKNOWN,
            Failure::Bbs(_) | Failure::Component(_) => 4,
            Failure::Other(_) => 5,
        })
    }

    /// With all its causes.
    pub fn other(error: impl std::error::Error) -> Failure {
        Failure::Other(chain(&error))
    }

    fn bbs(kind: ErrorKind, message: impl Into<String>) -> Failure {
        Failure::Bbs(bbs_models::Error::new(kind, message))
    }

    /// Of a stream, which does not say by its code why there is none.
    pub fn of_stream(error: bbs_client::Error) -> Failure {
        match Failure::from(error) {
            Failure::Other(why) => Failure::bbs(ErrorKind::UnknownError, why),
            known => known,
        }
    }
}

/// The exit code of wrong usage.
pub const USAGE: u8 = 3;
/// That of commands and flags which do not exist.
pub const UNKNOWN: u8 = 255;

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
    /// An answer that is none is an error of the BBS, too.
    fn from(error: bbs_client::Error) -> Failure {
        use bbs_client::Error;
        match error {
            Error::Bbs(refused) => Failure::Bbs(refused),
            Error::Status { status, .. } => {
                let why = format!("Invalid Response with status code: {status}");
                Failure::bbs(ErrorKind::InvalidResponse, why)
            }
            Error::Router { message, .. } => Failure::bbs(ErrorKind::RouterError, message),
            undecodable @ Error::Decode { .. } => {
                Failure::bbs(ErrorKind::InvalidProtobufMessage, chain(&undecodable))
            }
            late if late.is_timeout() => {
                Failure::bbs(ErrorKind::Timeout, format!("Timeout exceeded: {}", chain(&late)))
            }
            other => Failure::other(other),
        }
    }
}

impl From<LocketError> for Failure {
    fn from(error: LocketError) -> Failure {
        Failure::Component(match &error {
            LocketError::Collision { .. } => "rpc error: code = AlreadyExists desc = lock-collision".into(),
            LocketError::Unreachable { .. } => format!("context deadline exceeded: {}", chain(&error)),
            other => chain(other),
        })
    }
}

#[cfg(test)]
mod tests {
    use bbs_client::Error;

    use super::*;

    #[test]
    fn an_answer_that_is_none_is_an_error_of_the_bbs() {
        let path = "/v1/x";
        for (error, expected) in [
            (
                Error::Status { path, status: 500 },
                "BBS error\nType 5: InvalidResponse\nMessage: Invalid Response with status code: 500",
            ),
            (
                Error::Router { path, message: "unknown_route".into() },
                "BBS error\nType 14: RouterError\nMessage: unknown_route",
            ),
        ] {
            assert_eq!(Failure::from(error).to_string(), expected);
        }
    }

    #[test]
    fn a_collision_is_told_in_the_word_of_locket() {
        let failure = Failure::from(LocketError::Collision { key: "k".into() });
        assert!(failure.to_string().ends_with("lock-collision"));
    }
}
