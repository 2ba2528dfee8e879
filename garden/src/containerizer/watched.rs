//! Descriptors that a task can wait for.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The one place that uses tokio's safe constructor, deprecated because other types than this one could close their
/// descriptor while tokio watches it; its successor is unsafe, which this crate is not.
#[allow(deprecated)]
pub fn watched(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(fd, interest)
}
