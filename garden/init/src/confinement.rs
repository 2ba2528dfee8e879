//! Processes under an AppArmor profile: the kernel is asked, by a file of `/proc`, to change to it at the next exec.
//!
//! That file is opened in the file system pid 1 itself has made, and no link and no other mount may stand in for it: a
//! write that lands elsewhere would leave the process unconfined, and change something else.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags, openat2};
use rustix::io::Errno;

use crate::failure::{Context, Failure, Result};
use crate::mounts::{self, NOWHERE_ELSE, c_string};

/// Where AppArmor is one of several security modules it has a directory of its own; older kernels know only one.
const AT_EXEC: [&CStr; 2] = [c"thread-self/attr/apparmor/exec", c"thread-self/attr/exec"];
const NOW: [&CStr; 2] = [c"thread-self/attr/apparmor/current", c"thread-self/attr/current"];

pub struct Confinement {
    proc: OwnedFd,
    profile: String,
    at_exec: CString,
    now: CString,
}

impl Confinement {
    pub fn new(proc: OwnedFd, profile: &str) -> Result<Confinement> {
        // Where somebody else has mounted it, under the eyes of an image.
        if !mounts::is_proc(&proc).act("look at /proc")? {
            return Err(Failure::new("find a /proc at /proc", Errno::XDEV));
        }
        Ok(Confinement {
            proc,
            profile: profile.into(),
            at_exec: c_string(&format!("exec {profile}"))?,
            now: c_string(&format!("changeprofile {profile}"))?,
        })
    }

    /// Allocates nothing, for a child that shares its parent's memory.
    pub fn enter_at_exec(&self) -> io::Result<()> {
        self.write(AT_EXEC, &self.at_exec)
    }

    pub fn enter_now(&self) -> io::Result<()> {
        self.write(NOW, &self.now)
    }

    fn write(&self, files: [&CStr; 2], command: &CStr) -> io::Result<()> {
        let open =
            |path| openat2(&self.proc, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty(), NOWHERE_ELSE);
        let file = match open(files[0]) {
            Err(Errno::NOENT) => open(files[1])?,
            other => other?,
        };
        let bytes = command.to_bytes();
        match rustix::io::write(&file, bytes)? {
            written if written == bytes.len() => Ok(()),
            _ => Err(Errno::IO.into()),
        }
    }

    pub fn refused(&self, errno: Errno) -> String {
        let why = match errno {
            Errno::NOENT => "it is not loaded".into(),
            Errno::INVAL => "the kernel has no AppArmor".into(),
            other => other.to_string(),
        };
        format!("cannot set the AppArmor profile {:?}: {why}", self.profile)
    }
}
