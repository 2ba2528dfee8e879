//! What happens on a cell that somebody may want to count or to time. Told as it happened; what it is called, and to whom
//! it is of interest, is the witness's affair.

use std::sync::Arc;
use std::time::Duration;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Occurrence {
    /// Garden was asked to create a container.
    Create(Attempt),
    /// Garden was asked to destroy one.
    Destroy(Attempt),
    /// A container was made ready for its action: from the first download it needs to the end of its setup.
    SetUp(Attempt),
    /// A certificate was issued by which an instance shows who it is, to whom it connects and to routers.
    InstanceIdentity(Attempt),
    /// One was issued that it shows to other containers.
    ContainerToContainer(Attempt),
    /// A driver was asked to mount a volume, or should have been.
    Mount {
        driver: Arc<str>,
        attempt: Attempt,
    },
    Unmount {
        driver: Arc<str>,
        attempt: Attempt,
    },
    /// The action of a container has ended, however it did.
    Completed,
    /// A process did not end by itself in its time and was killed.
    ExceededGracefulShutdown,
    LivenessCheckFailed(Protocol),
    /// A container begins to say more than it may.
    LogRateExceeded,
}

/// How it went, and how long it took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attempt {
    pub took: Duration,
    pub failed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Tcp,
    Http,
}

impl Attempt {
    pub(crate) fn of<T, E>(begun: tokio::time::Instant, result: &Result<T, E>) -> Attempt {
        Attempt { took: begun.elapsed(), failed: result.is_err() }
    }
}

pub trait Witness: Send + Sync {
    /// Must not wait: whoever tells has other things to do.
    fn saw(&self, occurrence: Occurrence);
}

/// Nobody.
impl Witness for () {
    fn saw(&self, _: Occurrence) {}
}
