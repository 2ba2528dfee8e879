//! Making, finding and signalling processes: clone3 into namespaces, a vfork whose child runs our code, pidfds, and the
//! few process-wide switches that have no safe wrapper elsewhere.
//!
//! Knows nothing of containers; which namespaces and which switches is the caller's business.

use std::ffi::{CStr, c_int, c_void};
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// What `clone3` may make anew for a child.
pub mod namespaces {
    pub const MOUNT: u64 = libc::CLONE_NEWNS as u64;
    pub const CGROUP: u64 = libc::CLONE_NEWCGROUP as u64;
    pub const UTS: u64 = libc::CLONE_NEWUTS as u64;
    pub const IPC: u64 = libc::CLONE_NEWIPC as u64;
    pub const USER: u64 = libc::CLONE_NEWUSER as u64;
    pub const PID: u64 = libc::CLONE_NEWPID as u64;
    pub const NETWORK: u64 = libc::CLONE_NEWNET as u64;
}

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

pub enum Forked {
    Parent { child: Pid, pidfd: OwnedFd },
    Child,
}

/// Forks into new namespaces (`clone3`).
///
/// # Safety
/// The process has one thread: in a child of a many-threaded one, locks may be held for ever.
pub unsafe fn fork_into(namespaces: u64) -> io::Result<Forked> {
    // SAFETY: as our own contract says.
    unsafe { clone3(namespaces, libc::SIGCHLD as u64) }
}

/// The same, but the new process is a child of the caller's own parent.
///
/// # Safety
/// As for [`fork_into`].
pub unsafe fn fork_sibling_into(namespaces: u64) -> io::Result<Forked> {
    // SAFETY: as our own contract says. The kernel wants no signal named: a sibling has the caller's.
    unsafe { clone3(namespaces | libc::CLONE_PARENT as u64, 0) }
}

unsafe fn clone3(flags: u64, exit_signal: u64) -> io::Result<Forked> {
    let mut pidfd: c_int = -1;
    // SAFETY: all fields are integers; zero is a value of each.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = flags | libc::CLONE_PIDFD as u64;
    args.pidfd = &raw mut pidfd as u64;
    args.exit_signal = exit_signal;
    // SAFETY: args lives through the call; without CLONE_VM the child goes on with its own copy of this stack.
    match check(unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<libc::clone_args>()) })? {
        0 => Ok(Forked::Child),
        // SAFETY: the kernel has just put a new descriptor there.
        child => {
            Ok(Forked::Parent { child: pid(child as i32)?, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } })
        }
    }
}

/// Forks; the child's id, or `None` in the child.
///
/// # Safety
/// As for [`fork_into`].
pub unsafe fn fork() -> io::Result<Option<Pid>> {
    // SAFETY: as our own contract says.
    match unsafe { libc::fork() } {
        0 => Ok(None),
        child if child < 0 => Err(io::Error::last_os_error()),
        child => Ok(Some(pid(child)?)),
    }
}

fn pid(raw: i32) -> io::Result<Pid> {
    Pid::from_raw(raw)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, format!("{raw} is no process id")))
}

const VFORK_STACK_BYTES: usize = 64 * 1024;

extern "C" fn vfork_entry(argument: *mut c_void) -> c_int {
    // SAFETY: it is the `&mut &mut dyn FnMut()` that vfork passes; the parent sleeps until we are gone.
    let body = unsafe { &mut *argument.cast::<&mut dyn FnMut()>() };
    body();
    127
}

/// Runs `body` in a child that shares our memory while we sleep, until it executes another program or returns (then it
/// ends with status 127). No page tables are copied, so this costs the same however large the caller is.
///
/// # Safety
/// The process has one thread, and `body` neither panics nor frees or keeps what the parent goes on using.
pub unsafe fn vfork(body: &mut dyn FnMut()) -> io::Result<Pid> {
    let mut stack = Vec::<u8>::with_capacity(VFORK_STACK_BYTES);
    let mut body = body;
    // SAFETY: the stack outlives the child's use of it: CLONE_VFORK holds us until it has gone to another memory or died.
    let child = unsafe {
        let top = stack.as_mut_ptr().add(VFORK_STACK_BYTES & !15);
        let top = top.sub(top as usize % 16);
        libc::clone(
            vfork_entry,
            top.cast(),
            libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD,
            (&raw mut body).cast(),
        )
    };
    if child < 0 { Err(io::Error::last_os_error()) } else { pid(child) }
}

/// `execve`; returns only when it failed.
///
/// # Safety
/// `argv` and `envp` are arrays of C strings that end with a null pointer.
pub unsafe fn execve(path: &CStr, argv: &[*const libc::c_char], envp: &[*const libc::c_char]) -> io::Error {
    // SAFETY: as our own contract says.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    io::Error::last_os_error()
}

/// Every descriptor from `first` on is closed by the next exec.
pub fn close_on_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: changes flags of descriptors only.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) })
        .map(drop)
}

/// Closes every descriptor from `first` on, whoever thinks to own it.
///
/// # Safety
/// Nothing that owns such a descriptor is used or dropped afterwards.
pub unsafe fn close_from(first: u32) -> io::Result<()> {
    // SAFETY: as our own contract says.
    unsafe { close_range(first, u32::MAX) }
}

unsafe fn close_range(first: u32, last: u32) -> io::Result<()> {
    // SAFETY: as the contract of our callers says.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) }).map(drop)
}

/// All signals back to their default action and none blocked, as a new program expects.
pub fn reset_signals() {
    const SIGNALS: c_int = 64;
    /// What the kernel takes: handler, flags, restorer, mask; all zero is the default action.
    const DEFAULT: [u64; 4] = [0; 4];
    for signal in 1..=SIGNALS {
        // Not by the C library, which keeps some of them for itself. Two cannot be set, and are what they should be.
        // SAFETY: reads what it is given, installs no code.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                DEFAULT.as_ptr(),
                std::ptr::null::<u64>(),
                size_of::<u64>(),
            );
        }
    }
    unblock_signals();
}

/// Whatever can be blocked is held back from now on: who shares a pid namespace with others hears their signals, too.
pub fn block_signals() {
    // SAFETY: the set is initialised by sigfillset.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut all);
        libc::sigprocmask(libc::SIG_SETMASK, &all, std::ptr::null_mut());
    }
}

pub fn unblock_signals() {
    // SAFETY: the set is initialised by sigemptyset.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
    }
}

/// The signal to every process the caller can see and may signal, but itself and pid 1.
pub fn signal_everyone(signal: i32) -> io::Result<()> {
    // SAFETY: sends a signal, touches no memory.
    match unsafe { libc::kill(-1, signal) } {
        0 => Ok(()),
        _ => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            error => Err(error),
        },
    }
}

/// The kernel reaps this process's children at once.
pub fn never_wait_for_children() {
    // SAFETY: SIG_IGN is no code of ours.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
}

/// A descriptor that is readable when a child has ended; SIGCHLD itself is blocked.
pub fn child_signals() -> io::Result<OwnedFd> {
    // SAFETY: the set is initialised by sigemptyset; the new descriptor is ours.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGCHLD);
        if libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) < 0 {
            return Err(io::Error::last_os_error());
        }
        let fd = libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(fd)) }
    }
}

/// Joins these namespaces of the process, all at once or none; of its pid namespace only children will be.
pub fn join_namespaces(process: impl AsFd, namespaces: u64) -> io::Result<()> {
    // SAFETY: namespaces only; no memory or descriptor table is taken apart.
    check(unsafe { libc::setns(process.as_fd().as_raw_fd(), namespaces as c_int) } as libc::c_long).map(drop)
}

pub fn unshare(namespaces: u64) -> io::Result<()> {
    // SAFETY: namespaces only; no memory or descriptor table is taken apart.
    check(unsafe { libc::unshare(namespaces as c_int) } as libc::c_long).map(drop)
}

/// Nobody without power over the namespace this program was started in may trace it or open its `/proc` files.
pub fn never_dumpable() -> io::Result<()> {
    Ok(rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?)
}

/// A session keyring of our own, so that no key of whoever started us is seen.
pub fn new_session_keyring() -> io::Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: c_int = 1;
    // SAFETY: a null name makes an anonymous keyring.
    check(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, std::ptr::null::<u8>()) })
        .map(drop)
}

/// Removes from the bounding set what is not in `kept` (bit n is capability n).
pub fn bound_capabilities(kept: u64) -> io::Result<()> {
    for capability in 0..64 {
        // SAFETY: prctl with integers.
        let known = unsafe { libc::prctl(libc::PR_CAPBSET_READ, capability as libc::c_ulong, 0, 0, 0) };
        if known < 0 {
            break; // the kernel knows no more
        }
        if known == 1 && kept & (1 << capability) == 0 {
            // SAFETY: prctl with integers.
            check(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability as libc::c_ulong, 0, 0, 0) }
                as libc::c_long)?;
        }
    }
    Ok(())
}

/// How many kinds of resource limits there are; `RLIMIT_` numbers are below it.
pub const RESOURCE_LIMITS: u32 = 16;

/// One resource limit of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResourceLimit {
    pub soft: u64,
    pub hard: u64,
}

impl ResourceLimit {
    pub const UNLIMITED: u64 = libc::RLIM_INFINITY;

    pub fn get(resource: u32) -> io::Result<ResourceLimit> {
        let mut now = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: a plain structure; an unknown resource is refused by the kernel.
        check(unsafe { libc::getrlimit(resource as _, &mut now) } as libc::c_long)?;
        Ok(ResourceLimit { soft: now.rlim_cur, hard: now.rlim_max })
    }

    /// Allocates nothing, for a child that shares its parent's memory.
    pub fn set(self, resource: u32) -> io::Result<()> {
        let wanted = libc::rlimit { rlim_cur: self.soft, rlim_max: self.hard };
        // SAFETY: a plain structure; an unknown resource is refused by the kernel.
        check(unsafe { libc::setrlimit(resource as _, &wanted) } as libc::c_long).map(drop)
    }

    /// Sets it; above the hard limit and not allowed to raise that: as much as it allows, and `false`.
    pub fn set_or_clamp(self, resource: u32) -> io::Result<bool> {
        match self.set(resource) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
                let most = ResourceLimit::get(resource)?.hard;
                ResourceLimit { soft: self.soft.min(most), hard: self.hard.min(most) }.set(resource)?;
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }
}

/// A process known for certain: its id could be given to another, its start time (clock ticks since boot) with it not.
#[derive(Debug)]
pub struct Known {
    pub pid: Pid,
    pub pidfd: OwnedFd,
}

/// The start time of a process from `proc_root` (`/proc`), in clock ticks since boot; `None`: no such process.
pub fn start_time(proc_root: &Path, pid: i32) -> io::Result<Option<u64>> {
    match std::fs::read_to_string(proc_root.join(pid.to_string()).join("stat")) {
        Ok(stat) => Ok(parse_start_time(&stat)),
        Err(error) if is_gone(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The start time of the process that `pidfd` holds, whose id is `pid`; `None`: it has ended, and what has the id now, if
/// anything, may be a stranger.
pub fn start_time_of_held(proc_root: &Path, pid: i32, pidfd: impl AsFd) -> io::Result<Option<u64>> {
    let started = start_time(proc_root, pid)?;
    // Asked afterwards: not having ended by now, it had its id to itself while that was read.
    Ok(if has_ended(pidfd)? { None } else { started })
}

/// Whether the process that a pidfd holds has ended, reaped or not.
pub fn has_ended(pidfd: impl AsFd) -> io::Result<bool> {
    let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
    Ok(retry_on_intr(|| poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })))? != 0)
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

/// Field 22; the second, the name, may hold spaces and brackets.
fn parse_start_time(stat: &str) -> Option<u64> {
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// The process with this id and this start time, held by a pidfd; `None`: it is gone.
pub fn find(proc_root: &Path, raw_pid: i32, started: u64) -> io::Result<Option<Known>> {
    let wanted = pid(raw_pid)?;
    let pidfd = match pidfd_open(wanted, PidfdFlags::empty()) {
        Ok(pidfd) => pidfd,
        Err(rustix::io::Errno::SRCH) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    // Looked up after the pidfd is held: if it is the one wanted now, the pidfd is of it.
    Ok((start_time(proc_root, raw_pid)? == Some(started)).then_some(Known { pid: wanted, pidfd }))
}

/// SIGKILL by pidfd; a process that is gone already counts as killed.
pub fn kill(pidfd: impl AsFd) -> io::Result<()> {
    match pidfd_send_signal(pidfd, Signal::KILL) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The kernel itself may hold a page that was just written for longer than it waits for it: a seal is refused then.
const SEAL_PATIENCE: Duration = Duration::from_secs(3);
const SEAL_RETRY: Duration = Duration::from_millis(20);

/// A sealed copy of a program in memory, to be run by its `/proc/self/fd` path: nobody can write to it any more.
pub fn sealed_program(name: &str, content: &[u8]) -> io::Result<OwnedFd> {
    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // MFD_EXEC says so on kernels where a memfd may not be executed by default; older ones do not know the flag.
    let memfd = match memfd_create(name, flags | MemfdFlags::EXEC) {
        Err(rustix::io::Errno::INVAL) => memfd_create(name, flags)?,
        other => other?,
    };
    let mut file = std::fs::File::from(memfd);
    io::Write::write_all(&mut file, content)?;
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    let begun = Instant::now();
    loop {
        match fcntl_add_seals(&file, seals) {
            Err(rustix::io::Errno::BUSY) if begun.elapsed() < SEAL_PATIENCE => std::thread::sleep(SEAL_RETRY),
            sealed => return sealed.map(|()| file.into()).map_err(Into::into),
        }
    }
}

/// The raw number, for a `/proc/self/fd/N` path.
pub fn number(fd: &OwnedFd) -> i32 {
    fd.as_raw_fd()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_time_is_found_behind_any_name() {
        let tail = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20";
        assert_eq!(parse_start_time(&format!("42 (sleep) {tail}")), Some(4711));
        assert_eq!(parse_start_time(&format!("42 (a ) b (c) {tail}")), Some(4711));
        assert_eq!(parse_start_time("42 (cut"), None);
    }

    #[test]
    fn a_process_that_has_ended_has_no_start_time_of_its_own_though_its_id_has() {
        let proc = Path::new("/proc");
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let raw = child.id() as i32;
        let pidfd = pidfd_open(pid(raw).unwrap(), PidfdFlags::empty()).unwrap();
        let started = start_time(proc, raw).unwrap();
        assert!(started.is_some());
        assert_eq!(start_time_of_held(proc, raw, &pidfd).unwrap(), started);
        kill(&pidfd).unwrap();
        while !has_ended(&pidfd).unwrap() {
            std::thread::yield_now();
        }
        // Not reaped yet: something is found by the id.
        assert_eq!(start_time(proc, raw).unwrap(), started);
        assert_eq!(start_time_of_held(proc, raw, &pidfd).unwrap(), None);
        child.wait().unwrap();
        assert_eq!(start_time_of_held(proc, raw, &pidfd).unwrap(), None);
    }

    #[test]
    fn a_process_is_found_only_with_its_own_start_time() {
        let me = std::process::id() as i32;
        let started = start_time(Path::new("/proc"), me).unwrap().unwrap();
        assert!(find(Path::new("/proc"), me, started).unwrap().is_some());
        assert!(find(Path::new("/proc"), me, started + 1).unwrap().is_none());
    }

    #[test]
    fn a_sealed_program_cannot_be_written() {
        let fd = sealed_program("test", b"#!/bin/true\n").unwrap();
        let path = format!("/proc/self/fd/{}", number(&fd));
        let opened = std::fs::OpenOptions::new().write(true).open(path);
        assert!(opened.is_err() || io::Write::write(&mut opened.unwrap(), b"x").is_err());
    }
}
