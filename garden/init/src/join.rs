//! How a pea's blank is born: in all namespaces of a container but the one of mounts.
//!
//! ```text
//! nursery ──fork──▶ go-between, joins the namespaces ──clone3, CLONE_PARENT──▶ blank, a child of the nursery
//!    ◀───────────── pid, pidfd, user namespace ──────────┘ ends
//! ```
//! Joining a user namespace cannot be taken back, and a pid namespace is joined by children only: both take a process
//! of their own. It is never inside the pid namespace, so nobody in the container sees it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use garden_init::{BirthResult, ERROR_BYTES_MAX, EVENT_FDS_MAX};
use garden_sys::packets::{self, Assembler};
use garden_sys::process::{self, Forked, namespaces};
use rustix::process::Pid;

use crate::failure::{Context, Failure, Result};
use crate::{nursery, setup};

const SHARED: u64 = namespaces::PID | namespaces::IPC | namespaces::UTS | namespaces::NETWORK;

/// `container`: the pidfd of its pid 1.
pub fn bear(
    privileged: bool,
    container: OwnedFd,
    garden: &OwnedFd,
    socket: OwnedFd,
) -> Result<(Pid, Vec<OwnedFd>)> {
    let (hear, tell) = packets::pair().act("make a socket for a pea's birth")?;
    // SAFETY: this program never starts a thread.
    match unsafe { process::fork() }.act("start to bear a pea")? {
        Some(_) => {
            drop((tell, socket, container));
            outcome(&hear)
        }
        None => {
            drop(hear);
            go_between(privileged, container, garden, socket, tell)
        }
    }
}

fn outcome(hear: &OwnedFd) -> Result<(Pid, Vec<OwnedFd>)> {
    const ACT: &str = "hear of a pea's birth";
    let message = Assembler::new(2 * ERROR_BYTES_MAX, EVENT_FDS_MAX).receive_message(hear).act(ACT)?;
    let message = message.ok_or_else(|| Failure::new(ACT, io::ErrorKind::UnexpectedEof))?;
    match serde_json::from_slice(&message.bytes).map_err(io::Error::from).act(ACT)? {
        BirthResult::Born { pid } => {
            let pid = Pid::from_raw(pid).ok_or_else(|| Failure::new(ACT, io::ErrorKind::InvalidData))?;
            Ok((pid, message.fds))
        }
        BirthResult::Failed { message } => Err(Failure::told(message)),
    }
}

fn go_between(privileged: bool, container: OwnedFd, garden: &OwnedFd, socket: OwnedFd, tell: OwnedFd) -> ! {
    let joined = join(privileged, &container);
    drop(container);
    let born = joined.and_then(|user_namespace| {
        // SAFETY: this program never starts a thread.
        let born = unsafe { process::fork_sibling_into(namespaces::MOUNT) };
        Ok((born.act("make a namespace of mounts")?, user_namespace))
    });
    let (result, fds) = match born {
        Ok((Forked::Child, _)) => {
            drop(tell);
            process::reset_signals();
            // Others live in this pid namespace; a pid 1 is spared what it does not ask for, this one is not.
            process::block_signals();
            // SAFETY: the nursery's descriptor is not ours to use, and this branch never returns to drop it.
            unsafe { setup::live(socket, garden) }
        }
        Ok((Forked::Parent { child, pidfd }, user_namespace)) => {
            let fds = std::iter::once(pidfd).chain(user_namespace).collect();
            (BirthResult::Born { pid: child.as_raw_nonzero().get() }, fds)
        }
        Err(failure) => (BirthResult::Failed { message: failure.to_string() }, Vec::new()),
    };
    let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    // A nursery that does not hear it finds the socket closed, and says so.
    let _ = packets::send(&tell, &serde_json::to_vec(&result).unwrap_or_default(), &fds);
    std::process::exit(0)
}

/// The container's user namespace, if it has one of its own.
fn join(privileged: bool, container: &OwnedFd) -> Result<Option<OwnedFd>> {
    let user = if privileged { 0 } else { namespaces::USER };
    process::join_namespaces(container, SHARED | user).act("join the namespaces of the container")?;
    (!privileged).then(|| nursery::open("/proc/self/ns/user")).transpose()
}
