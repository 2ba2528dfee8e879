//! The nursery: on request makes a *blank*, a child in new namespaces, or in those of a container, that waits for its
//! plan.
//!
//! It is the parent of every pid 1, lets the kernel reap them, and ends when garden does; blanks that never got a plan
//! then see the end of their own socket and end too, containers live on as children of the machine's init.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use garden_init::{BIRTH_FDS_MAX, Birth, BirthResult, IdRange, REQUEST_BYTES_MAX};
use garden_sys::packets::{self, Assembler};
use garden_sys::process::{self, Forked, namespaces};
use rustix::process::Pid;

use crate::failure::{Context, Failure, Result};
use crate::{join, limits, setup};

const NEW: u64 =
    namespaces::PID | namespaces::MOUNT | namespaces::IPC | namespaces::UTS | namespaces::NETWORK;

pub fn run() -> Result<()> {
    process::never_dumpable().act("become undumpable")?;
    process::never_wait_for_children();
    let garden = take_stdin()?;
    limits::raise();
    let mut assembler = Assembler::new(REQUEST_BYTES_MAX, BIRTH_FDS_MAX);
    while let Some(message) = assembler.receive_message(&garden).act("hear from garden")? {
        let birth: Birth =
            serde_json::from_slice(&message.bytes).map_err(io::Error::from).act("understand garden")?;
        let (result, fds) = match bear(&birth, &garden, message.fds) {
            Ok((pid, fds)) => (BirthResult::Born { pid: pid.as_raw_nonzero().get() }, fds),
            Err(failure) => (BirthResult::Failed { message: failure.to_string() }, Vec::new()),
        };
        let bytes = serde_json::to_vec(&result).map_err(io::Error::from).act("put a birth into words")?;
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        packets::send(&garden, &bytes, &fds).act("tell garden of a birth")?;
    }
    Ok(())
}

/// The socket arrives as descriptor 0, the one that every way to start a program can set; what processes of a
/// container would see there otherwise is `/dev/null`.
pub fn take_stdin() -> Result<OwnedFd> {
    let socket =
        rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3).act("take the socket of garden")?;
    let null = fs::OpenOptions::new().read(true).write(true).open("/dev/null").act("open /dev/null")?;
    rustix::stdio::dup2_stdin(&null).act("put /dev/null in place of the socket")?;
    Ok(socket)
}

fn bear(birth: &Birth, garden: &OwnedFd, fds: Vec<OwnedFd>) -> Result<(Pid, Vec<OwnedFd>)> {
    let mut fds = fds.into_iter();
    let mut next = |what| fds.next().ok_or_else(|| Failure::new(what, io::ErrorKind::InvalidData));
    let socket = next("bear a blank without a socket")?;
    match birth {
        Birth::Container { ids } => bear_container(ids.as_ref(), garden, socket),
        Birth::Pea { privileged } => {
            join::bear(*privileged, next("bear a pea without its container")?, garden, socket)
        }
    }
}

fn bear_container(ids: Option<&IdRange>, garden: &OwnedFd, socket: OwnedFd) -> Result<(Pid, Vec<OwnedFd>)> {
    let user = if ids.is_some() { namespaces::USER } else { 0 };
    // SAFETY: this program never starts a thread.
    let (child, pidfd) = match unsafe { process::fork_into(NEW | user) }.act("make new namespaces")? {
        Forked::Parent { child, pidfd } => (child, pidfd),
        Forked::Child => {
            process::reset_signals();
            // SAFETY: the parent's copy of `garden` is not ours to use, and this branch never returns to drop it.
            unsafe { setup::live(socket, garden) }
        }
    };
    drop(socket);
    match introduce(ids, child) {
        Ok(namespaces) => Ok((child, std::iter::once(pidfd).chain(namespaces).collect())),
        Err(failure) => {
            // The blank would end by itself once garden lets go of its socket; this is sooner.
            let _ = process::kill(&pidfd);
            Err(failure)
        }
    }
}

fn introduce(ids: Option<&IdRange>, child: Pid) -> Result<Vec<OwnedFd>> {
    let directory = format!("/proc/{}", child.as_raw_nonzero());
    let mut fds = vec![open(&format!("{directory}/ns/net"))?];
    if let Some(ids) = ids {
        map_ids(&directory, ids)?;
        fds.push(open(&format!("{directory}/ns/user"))?);
    }
    Ok(fds)
}

fn map_ids(directory: &str, ids: &IdRange) -> Result<()> {
    let line = ids.map();
    for file in ["uid_map", "gid_map"] {
        let path = format!("{directory}/{file}");
        fs::write(&path, &line).act(format!("map ids {line} in {path}"))?;
    }
    Ok(())
}

pub fn open(path: &str) -> Result<OwnedFd> {
    fs::File::open(path).map(OwnedFd::from).act(format!("open {path}"))
}
