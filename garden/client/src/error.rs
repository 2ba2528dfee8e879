//! Garden's errors and their JSON form, by which typed errors survive the wire.

use serde::{Deserialize, Serialize};

pub type Result<T> = std::result::Result<T, Error>;

/// What a garden answers when it will not or cannot. The messages are those that clients of Garden match on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("unknown handle: {handle}")]
    ContainerNotFound { handle: String },
    #[error("unknown process: {process_id}")]
    ProcessNotFound { process_id: String },
    #[error("{0}")]
    ExecutableNotFound(String),
    #[error("{0}")]
    ServiceUnavailable(String),
    #[error("{0}")]
    Unrecoverable(String),
    /// Garden could not be asked, or went away before it had answered: it may have done what it was asked to, or not.
    #[error("{0}")]
    Disconnected(String),
    #[error("{0}")]
    Other(String),
}

/// `{"Type": …, "Message": …, "Handle": …, "ProcessID": …, "Binary": …}`
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Wire {
    #[serde(rename = "Type")]
    kind: String,
    message: String,
    handle: String,
    #[serde(rename = "ProcessID")]
    process_id: String,
    binary: String,
}

impl Serialize for Error {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let mut wire = Wire { message: self.to_string(), ..Wire::default() };
        wire.kind = match self {
            Error::ContainerNotFound { handle } => {
                wire.handle = handle.clone();
                "ContainerNotFoundError"
            }
            Error::ProcessNotFound { process_id } => {
                wire.process_id = process_id.clone();
                "ProcessNotFoundError"
            }
            Error::ExecutableNotFound(_) => "ExecutableNotFoundError",
            Error::ServiceUnavailable(_) => "ServiceUnavailableError",
            Error::Unrecoverable(_) => "UnrecoverableError",
            Error::Disconnected(_) | Error::Other(_) => "",
        }
        .into();
        wire.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Error {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let wire = Wire::deserialize(deserializer)?;
        Ok(match wire.kind.as_str() {
            "ContainerNotFoundError" => Error::ContainerNotFound { handle: wire.handle },
            "ProcessNotFoundError" => Error::ProcessNotFound { process_id: wire.process_id },
            "ExecutableNotFoundError" => Error::ExecutableNotFound(wire.message),
            "ServiceUnavailableError" => Error::ServiceUnavailable(wire.message),
            "UnrecoverableError" => Error::Unrecoverable(wire.message),
            _ => Error::Other(wire.message),
        })
    }
}
