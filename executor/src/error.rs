//! What the executor answers when it refuses; the words are those that its callers match on.

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("container not found")]
    ContainerNotFound,
    #[error("container guid not available")]
    GuidNotAvailable,
    #[error("container guid not specified")]
    GuidNotSpecified,
    /// Names what is short, in alphabetical order: `containers`, `disk`, `memory`.
    #[error("insufficient resources: {0}")]
    InsufficientResources(String),
    #[error("container cannot transition to given state")]
    InvalidTransition,
    #[error("executor is shutting down")]
    ShuttingDown,
    #[error(transparent)]
    Garden(#[from] garden_client::Error),
}

/// Why an executor cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cannot prepare {path}")]
    Directory { path: std::path::PathBuf, source: std::io::Error },
    #[error(transparent)]
    NotOwn(#[from] diego_base::directory::Refused),
    #[error("another executor runs with {0}")]
    InUse(std::path::PathBuf),
    #[error("cannot read what an earlier executor left: {0}")]
    Depot(String),
    #[error(transparent)]
    Disk(#[from] rootfs_ledger::Error),
    #[error("cannot enter containers' networks: {0}")]
    Networks(String),
    #[error("TLS before containers needs an instance identity to show")]
    NoIdentity,
    #[error("cannot serve TLS before containers: {0}")]
    ContainerProxy(String),
}
