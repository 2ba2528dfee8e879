//! The BBS's error as its clients see it: a type they decide on and a text they show.

use std::fmt;

/// Two errors are the same if their types are; see [`Error::is`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    pub kind: ErrorKind,
    pub message: String,
}

/// The numbers are those of the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum ErrorKind {
    UnknownError = 0,
    InvalidRecord = 3,
    InvalidRequest = 4,
    InvalidResponse = 5,
    InvalidProtobufMessage = 6,
    InvalidJson = 7,
    FailedToOpenEnvelope = 8,
    InvalidStateTransition = 9,
    ResourceConflict = 11,
    ResourceExists = 12,
    ResourceNotFound = 13,
    RouterError = 14,
    ActualLrpCannotBeClaimed = 15,
    ActualLrpCannotBeStarted = 16,
    ActualLrpCannotBeCrashed = 17,
    ActualLrpCannotBeFailed = 18,
    ActualLrpCannotBeRemoved = 19,
    ActualLrpCannotBeUnclaimed = 21,
    RunningOnDifferentCell = 24,
    GuidGeneration = 26,
    Deserialize = 27,
    Deadlock = 28,
    Unrecoverable = 29,
    LockCollision = 30,
    Timeout = 31,
}

impl ErrorKind {
    const ALL: [(Self, &'static str); 25] = [
        (Self::UnknownError, "UnknownError"),
        (Self::InvalidRecord, "InvalidRecord"),
        (Self::InvalidRequest, "InvalidRequest"),
        (Self::InvalidResponse, "InvalidResponse"),
        (Self::InvalidProtobufMessage, "InvalidProtobufMessage"),
        (Self::InvalidJson, "InvalidJSON"),
        (Self::FailedToOpenEnvelope, "FailedToOpenEnvelope"),
        (Self::InvalidStateTransition, "InvalidStateTransition"),
        (Self::ResourceConflict, "ResourceConflict"),
        (Self::ResourceExists, "ResourceExists"),
        (Self::ResourceNotFound, "ResourceNotFound"),
        (Self::RouterError, "RouterError"),
        (Self::ActualLrpCannotBeClaimed, "ActualLRPCannotBeClaimed"),
        (Self::ActualLrpCannotBeStarted, "ActualLRPCannotBeStarted"),
        (Self::ActualLrpCannotBeCrashed, "ActualLRPCannotBeCrashed"),
        (Self::ActualLrpCannotBeFailed, "ActualLRPCannotBeFailed"),
        (Self::ActualLrpCannotBeRemoved, "ActualLRPCannotBeRemoved"),
        (Self::ActualLrpCannotBeUnclaimed, "ActualLRPCannotBeUnclaimed"),
        (Self::RunningOnDifferentCell, "RunningOnDifferentCell"),
        (Self::GuidGeneration, "GUIDGeneration"),
        (Self::Deserialize, "Deserialize"),
        (Self::Deadlock, "Deadlock"),
        (Self::Unrecoverable, "Unrecoverable"),
        (Self::LockCollision, "LockCollision"),
        (Self::Timeout, "Timeout"),
    ];

    /// The name in JSON.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(kind, _)| *kind == self).map_or("UnknownError", |(_, name)| name)
    }

    /// A number we do not know is an unknown error.
    pub fn from_number(number: i32) -> Self {
        Self::ALL
            .iter()
            .find(|(kind, _)| *kind as i32 == number)
            .map_or(Self::UnknownError, |(kind, _)| *kind)
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, known)| *known == name).map(|(kind, _)| *kind)
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Error {
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    pub fn is(&self, kind: ErrorKind) -> bool {
        self.kind == kind
    }

    pub fn not_found() -> Self {
        Self::new(ErrorKind::ResourceNotFound, "the requested resource could not be found")
    }

    pub fn exists() -> Self {
        Self::new(ErrorKind::ResourceExists, "the requested resource already exists")
    }

    pub fn conflict() -> Self {
        Self::new(ErrorKind::ResourceConflict, "the requested resource is in a conflicting state")
    }

    pub fn deadlock() -> Self {
        Self::new(ErrorKind::Deadlock, "the request failed due to deadlock")
    }

    pub fn bad_request() -> Self {
        Self::new(ErrorKind::InvalidRequest, "the request received is invalid")
    }

    pub fn invalid_request(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidRequest, message)
    }

    pub fn unknown(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::UnknownError, message)
    }

    pub fn deserialize() -> Self {
        Self::new(ErrorKind::Deserialize, "could not deserialize record")
    }

    pub fn cannot_be_claimed() -> Self {
        Self::new(ErrorKind::ActualLrpCannotBeClaimed, "cannot claim actual LRP")
    }

    pub fn cannot_be_started() -> Self {
        Self::new(ErrorKind::ActualLrpCannotBeStarted, "cannot start actual LRP")
    }

    pub fn cannot_be_crashed() -> Self {
        Self::new(ErrorKind::ActualLrpCannotBeCrashed, "cannot crash actual LRP")
    }

    pub fn cannot_be_failed() -> Self {
        Self::new(ErrorKind::ActualLrpCannotBeFailed, "cannot fail actual LRP")
    }

    pub fn cannot_be_removed() -> Self {
        Self::new(ErrorKind::ActualLrpCannotBeRemoved, "cannot remove actual LRP")
    }

    pub fn cannot_be_unclaimed() -> Self {
        Self::new(ErrorKind::ActualLrpCannotBeUnclaimed, "cannot unclaim actual LRP")
    }

    pub fn lock_collision() -> Self {
        Self::new(ErrorKind::LockCollision, "lock already exists")
    }

    /// `from` and `to` are state names of a Task.
    pub fn task_transition(from: &str, to: &str) -> Self {
        Self::new(ErrorKind::InvalidStateTransition, format!("Cannot transition from {from} to {to}"))
    }

    pub fn running_on_different_cell(expected: &str, actual: &str) -> Self {
        let message = format!("Running on cell {actual} not {expected}");
        Self::new(ErrorKind::RunningOnDifferentCell, message)
    }

    pub fn unrecoverable(cause: impl fmt::Display) -> Self {
        Self::new(ErrorKind::Unrecoverable, format!("Unrecoverable Error: {cause}"))
    }
}
