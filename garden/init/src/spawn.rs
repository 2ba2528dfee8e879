//! Starting one process: who, where, with what streams; then vfork and exec.
//!
//! Everything that can be prepared is prepared by pid 1. The child shares its memory for the few calls until exec, and
//! leaves its failure there. A process of the container that manages to stop the child in that moment stops pid 1: its
//! own container's loss, garden has deadlines.

use std::ffi::CString;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr;

use garden_init::users::{self, User};
use garden_init::{Refusal, STREAMS_OF_PROCESS, SpawnSpec, StreamKind, WindowSize, environment};
use garden_sys::process::{self, ResourceLimit};
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Gid, Pid};
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

use crate::confinement::Confinement;
use crate::mounts::c_string;
use crate::pid1::Process;
use crate::setup::Container;
use crate::{credentials, limits};

/// Most that is read of `/etc/passwd` and `/etc/group`: they belong to the container.
const ACCOUNTS_BYTES_MAX: u64 = 4 * 1024 * 1024;

const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

const WINDOW_SIZE_DEFAULT: WindowSize = WindowSize { columns: 80, rows: 24 };

pub struct Started {
    pub process: Process,
    /// Limits that only got as far as the hard limit.
    pub clamped: Vec<u32>,
}

pub struct Refused {
    pub reason: Refusal,
    pub message: String,
}

fn other(message: impl ToString) -> Refused {
    Refused { reason: Refusal::Other, message: message.to_string() }
}

pub fn spawn(container: &Container, spec: &SpawnSpec, fds: Vec<OwnedFd>) -> Result<Started, Refused> {
    let user = look_up(&spec.user)?;
    let env = environment::complete(&spec.env, &spec.user, &user);
    let directory = if spec.dir.is_empty() { user.home.clone() } else { spec.dir.clone() };
    make_directories(&directory, &user)
        .map_err(|error| other(format!("cannot make the directory {directory}: {error}")))?;
    let streams = open_streams(container, spec, fds, &user)?;
    let mut launch = Launch::new(container, spec, &user, &env, &directory, &streams)?;
    let pid = launch.run()?;
    let clamped = launch.clamped;
    let tty = spec.tty.is_some();
    let process = Process { id: spec.process.clone(), pid, status: None, tty, streams: streams.agent };
    Ok(Started { process, clamped })
}

/// A user by the container's own files, which may be anything.
pub fn look_up(spec: &str) -> Result<User, Refused> {
    let passwd = read_accounts("/etc/passwd").map_err(other)?;
    let group = read_accounts("/etc/group").map_err(other)?;
    users::look_up(spec, &passwd, &group)
        .map_err(|unknown| Refused { reason: Refusal::UnknownUser, message: unknown.to_string() })
}

fn read_accounts(path: &str) -> Result<String, String> {
    let refused = |error: &dyn std::fmt::Display| format!("cannot read {path} of the container: {error}");
    // Not blocking, should it be a pipe.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(file) => file,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(String::new()),
        Err(errno) => return Err(refused(&errno)),
    };
    let stat = rustix::fs::fstat(&file).map_err(|errno| refused(&errno))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(refused(&"it is no regular file"));
    }
    let mut bytes = Vec::new();
    std::fs::File::from(file)
        .take(ACCOUNTS_BYTES_MAX)
        .read_to_end(&mut bytes)
        .map_err(|error| refused(&error))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Missing directories are made, each owned by the user.
pub fn make_directories(path: &str, user: &User) -> std::io::Result<()> {
    if std::fs::metadata(path).is_ok() {
        return Ok(());
    }
    let path = std::path::Path::new("/").join(path);
    let mut missing: Vec<_> =
        path.ancestors().take_while(|ancestor| std::fs::symlink_metadata(ancestor).is_err()).collect();
    let existing = missing.last().and_then(|first| first.parent()).unwrap_or(&path);
    let mut parent = rustix::fs::open(existing, DIRECTORY, Mode::empty())?;
    while let Some(directory) = missing.pop() {
        let name = directory.file_name().ok_or(Errno::INVAL)?;
        parent = make_directory(&parent, name, user)?;
    }
    Ok(())
}

/// By descriptors: the user may own what the directory is made in, and put a link in place of any name in a path.
fn make_directory(parent: &OwnedFd, name: &std::ffi::OsStr, user: &User) -> rustix::io::Result<OwnedFd> {
    let made = match rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o777)) {
        Ok(()) => true,
        Err(Errno::EXIST) => false,
        Err(errno) => return Err(errno),
    };
    let directory = rustix::fs::openat(parent, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())?;
    if made {
        let (uid, gid) = (rustix::process::Uid::from_raw(user.uid), Gid::from_raw(user.gid));
        rustix::fs::chownat(&directory, c"", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?;
    }
    Ok(directory)
}

struct OpenStreams {
    /// stdin, stdout, stderr of the process; with a terminal its slave, once.
    process: Vec<OwnedFd>,
    agent: Vec<(StreamKind, OwnedFd)>,
}

fn open_streams(
    container: &Container,
    spec: &SpawnSpec,
    fds: Vec<OwnedFd>,
    user: &User,
) -> Result<OpenStreams, Refused> {
    if let Some(size) = spec.tty {
        return open_terminal(container, size, user)
            .map_err(|errno| other(format!("cannot open a terminal: {errno}")));
    }
    let kinds = [StreamKind::Stdout, StreamKind::Stderr, StreamKind::Stdin];
    let agent_ends = if spec.stdin { 3 } else { 2 };
    if fds.len() != STREAMS_OF_PROCESS + agent_ends {
        return Err(other("a process without its streams"));
    }
    let mut process = fds;
    let agent = kinds.into_iter().zip(process.split_off(STREAMS_OF_PROCESS)).collect();
    let (uid, gid) = (rustix::process::Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    for stream in &process {
        // So that the user may open /dev/stdout. Streams that belong to nobody inside stay as they are.
        let _ = rustix::fs::fchown(stream, Some(uid), Some(gid));
    }
    Ok(OpenStreams { process, agent })
}

fn open_terminal(container: &Container, size: WindowSize, user: &User) -> rustix::io::Result<OpenStreams> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let master = rustix::fs::openat(&container.terminals, "ptmx", flags, Mode::empty())?;
    rustix::pty::unlockpt(&master)?;
    let slave = rustix::pty::ioctl_tiocgptpeer(
        &master,
        OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC,
    )?;
    rustix::fs::fchown(&slave, Some(rustix::process::Uid::from_raw(user.uid)), None)?;
    set_window_size(&master, if size.columns == 0 || size.rows == 0 { WINDOW_SIZE_DEFAULT } else { size })?;
    Ok(OpenStreams { process: vec![slave], agent: vec![(StreamKind::Terminal, master)] })
}

pub fn set_window_size(master: &OwnedFd, size: WindowSize) -> rustix::io::Result<()> {
    rustix::termios::tcsetwinsize(
        master,
        Winsize { ws_col: size.columns, ws_row: size.rows, ws_xpixel: 0, ws_ypixel: 0 },
    )
}

/// Everything the child needs, made before it exists.
struct Launch<'a> {
    streams: &'a OpenStreams,
    tty: bool,
    limits: Vec<(u32, ResourceLimit)>,
    user: &'a User,
    groups: Vec<Gid>,
    /// Only where the user may have less than pid 1.
    capabilities: Option<u64>,
    confinement: Option<&'a Confinement>,
    directory: CString,
    path: &'a str,
    candidates: Vec<CString>,
    // The strings that `argv` and `envp` point into.
    _args: Vec<CString>,
    _env: Vec<CString>,
    argv: Vec<*const libc::c_char>,
    envp: Vec<*const libc::c_char>,
    clamped: Vec<u32>,
    failed: Option<(Step, Errno)>,
}

#[derive(Clone, Copy)]
enum Step {
    Session,
    Terminal,
    Streams,
    Limit(u32),
    Confinement,
    Capabilities,
    User,
    Directory,
    Exec,
}

impl<'a> Launch<'a> {
    fn new(
        container: &'a Container,
        spec: &'a SpawnSpec,
        user: &'a User,
        env: &[String],
        directory: &str,
        streams: &'a OpenStreams,
    ) -> Result<Launch<'a>, Refused> {
        let strings = |texts: &mut dyn Iterator<Item = &String>| {
            texts.map(|text| c_string(text)).collect::<Result<Vec<_>, _>>()
        };
        let args = strings(&mut std::iter::once(&spec.path).chain(&spec.args)).map_err(other)?;
        let candidates = strings(&mut environment::candidates(&spec.path, env).iter()).map_err(other)?;
        let env = strings(&mut env.iter()).map_err(other)?;
        let pointers =
            |texts: &[CString]| texts.iter().map(|text| text.as_ptr()).chain([ptr::null()]).collect();
        let reduced = user.uid != 0
            && container.non_root_capabilities & container.capabilities != container.capabilities;
        Ok(Launch {
            streams,
            tty: spec.tty.is_some(),
            limits: limits::of_process(&spec.rlimits),
            user,
            groups: user.groups.iter().map(|&gid| Gid::from_raw(gid)).collect(),
            capabilities: reduced.then_some(container.non_root_capabilities),
            confinement: container.confinement.as_ref(),
            directory: c_string(directory).map_err(other)?,
            path: &spec.path,
            candidates,
            argv: pointers(&args),
            envp: pointers(&env),
            _args: args,
            _env: env,
            // Never grows in the child beyond what is allocated here.
            clamped: Vec::with_capacity(spec.rlimits.len() + process::RESOURCE_LIMITS as usize),
            failed: None,
        })
    }

    fn run(&mut self) -> Result<Pid, Refused> {
        // SAFETY: this program has one thread; the child allocates nothing and frees nothing.
        let pid = unsafe { process::vfork(&mut || self.failed = Some(self.become_it())) };
        let pid = pid.map_err(|error| other(format!("cannot start a process: {error}")))?;
        let Some((step, errno)) = self.failed else { return Ok(pid) };
        // It has ended already; nobody but us knows of it.
        let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
        Err(self.refused(step, errno))
    }

    /// In the child. Returns only with what failed.
    fn become_it(&mut self) -> (Step, Errno) {
        match self.steps() {
            Err(failed) => failed,
            Ok(()) => (Step::Exec, self.exec()),
        }
    }

    fn steps(&mut self) -> Result<(), (Step, Errno)> {
        process::unblock_signals();
        rustix::process::setsid().map_err(|errno| (Step::Session, errno))?;
        let streams = &self.streams.process;
        let stream = |index: usize| streams[index.min(streams.len() - 1)].as_fd();
        if self.tty {
            rustix::process::ioctl_tiocsctty(stream(0)).map_err(|errno| (Step::Terminal, errno))?;
        }
        rustix::stdio::dup2_stdin(stream(0)).map_err(|errno| (Step::Streams, errno))?;
        rustix::stdio::dup2_stdout(stream(1)).map_err(|errno| (Step::Streams, errno))?;
        rustix::stdio::dup2_stderr(stream(2)).map_err(|errno| (Step::Streams, errno))?;
        for &(resource, limit) in &self.limits {
            match limit.set_or_clamp(resource) {
                Ok(true) => {}
                Ok(false) => self.clamped.push(resource),
                Err(error) => return Err((Step::Limit(resource), errno_of(&error))),
            }
        }
        if let Some(confinement) = self.confinement {
            confinement.enter_at_exec().map_err(|error| (Step::Confinement, errno_of(&error)))?;
        }
        if let Some(kept) = self.capabilities {
            process::bound_capabilities(kept).map_err(|error| (Step::Capabilities, errno_of(&error)))?;
        }
        // As root first: the user need not be allowed to look into every directory above its own.
        let entered = rustix::process::chdir(&self.directory);
        // Changing ids makes dumpable what `fs.suid_dumpable` says, and the memory is still pid 1's.
        credentials::become_ids(self.user.uid, self.user.gid, &self.groups)
            .and_then(|()| process::never_dumpable())
            .map_err(|error| (Step::User, errno_of(&error)))?;
        entered
            .or_else(|_| rustix::process::chdir(&self.directory))
            .map_err(|errno| (Step::Directory, errno))?;
        process::close_on_exec_from(3).map_err(|error| (Step::Streams, errno_of(&error)))
    }

    /// The first candidate that runs; else the error worth telling: that one may not be run before that none is there.
    fn exec(&self) -> Errno {
        let mut worst = Errno::NOENT;
        for candidate in &self.candidates {
            // SAFETY: both arrays end with a null pointer, their strings live in self.
            let errno = errno_of(&unsafe { process::execve(candidate, &self.argv, &self.envp) });
            match errno {
                Errno::NOENT | Errno::NOTDIR => {}
                Errno::ACCESS => worst = errno,
                _ => return errno,
            }
        }
        worst
    }

    fn refused(&self, step: Step, errno: Errno) -> Refused {
        let message = match step {
            Step::Exec if errno == Errno::NOENT => {
                return Refused {
                    reason: Refusal::ExecutableNotFound,
                    message: environment::not_found(self.path),
                };
            }
            Step::Exec => format!("exec: \"{}\": {errno}", self.path),
            Step::Session => format!("cannot make a session: {errno}"),
            Step::Terminal => format!("cannot take the terminal: {errno}"),
            Step::Streams => format!("cannot set up the streams: {errno}"),
            Step::Limit(resource) => format!("cannot set resource limit {resource}: {errno}"),
            Step::Confinement => match self.confinement {
                Some(confinement) => confinement.refused(errno),
                None => errno.to_string(),
            },
            Step::Capabilities => format!("cannot bound capabilities: {errno}"),
            Step::User => format!("cannot become user {}: {errno}", self.user.uid),
            Step::Directory => format!("cannot enter {}: {errno}", self.directory.to_string_lossy()),
        };
        other(message)
    }
}

fn errno_of(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::INVAL)
}
