//! A container: processes in it, files into and out of it, what it uses, and its end.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use garden_client::{ProcessIo, ProcessSpec, Reader};
use garden_init::{PROCESS_ID_BYTES_MAX, Request, SpawnSpec};
use garden_sys::cgroup::{self, Cgroup};
use garden_sys::process as sys;
use rustix::pipe::fcntl_setpipe_size;
use tokio::io::Interest;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

use super::adoption;
use super::control::Control;
use super::ids::Allocated;
use super::liveness::Progress;
use super::metrics::{self, Usage};
use super::oci::Instance;
use super::owner::{Command, Owner, QUEUE_MAX, Refused, Started};
use super::process::{Attached, Ends, Running};
use super::record::{InitRecord, remove_socket};
use super::rules::{self, Spec};
use super::watched::watched;
use super::{Deadlines, Error, Result, streams};

/// How often processes that nobody tells of are looked for when the container is stopped.
const STOP_POLL_MIN: Duration = Duration::from_millis(1);
const STOP_POLL_MAX: Duration = Duration::from_millis(50);
const STREAM_IN: &str = "stream anything more into a container";
const STREAM_OUT: &str = "stream anything more out of a container";
/// Processes that have ended whose status can still be asked for.
const ENDED_PROCESSES_KEPT: usize = 64;

#[derive(Clone)]
pub struct Container {
    inner: Arc<Inner>,
}

struct Inner {
    spec: Spec,
    deadlines: Deadlines,
    cgroup: Cgroup,
    pid: i32,
    /// `None`: an earlier garden made it, and it has ended since.
    pidfd: Option<OwnedFd>,
    /// The first host id of the container; owner of the streams of processes.
    root_id: Option<u32>,
    commands: mpsc::Sender<Command>,
    /// Taken when the owner task begins.
    waiting: Mutex<Option<mpsc::Receiver<Command>>>,
    processes: Mutex<VecDeque<Arc<Running>>>,
    /// Ids of processes that are being started.
    claimed: Mutex<BTreeSet<String>>,
    /// Given back by `destroy`.
    ids: Mutex<Option<Allocated>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl Container {
    pub(super) fn new(
        spec: Spec,
        cgroup: Cgroup,
        pid: i32,
        pidfd: Option<OwnedFd>,
        ids: Option<Allocated>,
        deadlines: Deadlines,
    ) -> Container {
        let (commands, waiting) = mpsc::channel(QUEUE_MAX);
        let root_id = ids.as_ref().map(|ids| ids.range.root_id());
        let (waiting, ids) = (Mutex::new(Some(waiting)), Mutex::new(ids));
        let (processes, claimed) = Default::default();
        Container {
            inner: Arc::new(Inner {
                spec,
                deadlines,
                cgroup,
                pid,
                pidfd,
                root_id,
                commands,
                waiting,
                processes,
                claimed,
                ids,
            }),
        }
    }

    pub(super) fn begin(&self, control: Control) {
        if let Some(commands) = lock(&self.inner.waiting).take() {
            tokio::spawn(Owner::new(control, commands).run());
        }
    }

    /// Speaks with the pid 1 that an earlier garden has started, and hears from it what runs. Waits until it answers or has
    /// ended: deadlines are the caller's, who may give up. Once; what others asked meanwhile waits.
    pub(super) async fn take_over(&self, record: &InitRecord) -> std::result::Result<(), adoption::Error> {
        // The process is held by our pidfd: its pid cannot become another's.
        let mut control = adoption::reach(record).await?;
        let told = adoption::hear(&mut control).await?;
        let mut running = HashMap::new();
        let mut processes = VecDeque::new();
        for process in told {
            let (exit_sender, exit) = watch::channel(process.status);
            let adopted =
                Running::adopted(process.id.clone(), process.ends, exit, self.inner.commands.clone());
            let act = "listen to its processes";
            processes.push_back(adopted.map_err(|source| adoption::Error::Io { act, source })?);
            if process.status.is_none() {
                running.insert(process.id, exit_sender);
            }
        }
        *lock(&self.inner.processes) = processes;
        if let Some(commands) = lock(&self.inner.waiting).take() {
            tokio::spawn(Owner::adopting(control, commands, running, first_request()).run());
        }
        Ok(())
    }

    pub fn handle(&self) -> &str {
        &self.inner.spec.handle
    }

    pub fn spec(&self) -> &Spec {
        &self.inner.spec
    }

    /// The host id of the container's root; `None` for a privileged one.
    pub fn root_id(&self) -> Option<u32> {
        self.inner.root_id
    }

    /// Of pid 1, in the host's numbering.
    pub fn pid(&self) -> i32 {
        self.inner.pid
    }

    /// By which a later garden finds its pid 1.
    pub fn init_record(&self) -> Result<InitRecord> {
        let proc = std::path::Path::new("/proc");
        let started = sys::start_time_of_held(proc, self.inner.pid, self.pidfd()?);
        let failed = self.failed("find the start time of");
        let started = started.map_err(&failed)?.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
        let (boot, socket) = (super::record::this_boot(), self.inner.spec.socket.clone());
        Ok(InitRecord { pid: self.inner.pid, started, boot, socket })
    }

    pub(super) fn cgroup(&self) -> &Cgroup {
        &self.inner.cgroup
    }

    pub(super) fn pidfd(&self) -> Result<BorrowedFd<'_>> {
        self.inner.pidfd.as_ref().map(OwnedFd::as_fd).ok_or(Refused::Ended.into())
    }

    /// Starts a process; its error is known when this returns.
    pub async fn run(&self, spec: &ProcessSpec, io: ProcessIo) -> Result<Box<dyn garden_client::Process>> {
        if !spec.bind_mounts.is_empty() {
            return Err(Error::Unsupported(
                "Running a process with bind mounts and no image provided is not allowed",
            ));
        }
        let claim = self.claim(&spec.id)?;
        let spawn = rules::spawn_spec(claim.id().into(), &self.inner.spec.env, spec);
        self.launch(&self.inner.commands, spawn, io).await
    }

    /// A process id given, or made, that nobody else can take meanwhile.
    pub(super) fn claim(&self, id: &str) -> Result<Claim> {
        if id.len() > PROCESS_ID_BYTES_MAX {
            return Err(Error::Unsupported("the id of a process is longer than 255 bytes"));
        }
        let id = if id.is_empty() { uuid::Uuid::new_v4().to_string() } else { id.to_owned() };
        let is_running = lock(&self.inner.processes)
            .iter()
            .any(|process| process.id == id && process.exit.borrow().is_none());
        if is_running || !lock(&self.inner.claimed).insert(id.clone()) {
            return Err(Error::ProcessExists { id });
        }
        Ok(Claim { container: self.clone(), id })
    }

    /// Starts a process by whoever listens to `commands`: pid 1, or the init of a pea.
    pub(super) async fn launch(
        &self,
        commands: &mpsc::Sender<Command>,
        mut spawn: SpawnSpec,
        io: ProcessIo,
    ) -> Result<Box<dyn garden_client::Process>> {
        let id = spawn.process.clone();
        spawn.stdin = io.stdin.is_some();
        let (ends, fds) = match spawn.tty {
            Some(_) => (None, Vec::new()),
            None => self
                .pipes(spawn.stdin)
                .map(|(ends, fds)| (Some(ends), fds))
                .map_err(self.failed("make pipes for a process of"))?,
        };
        let (exit_sender, exit) = watch::channel(None);
        let (answer, answered) = oneshot::channel();
        let command = Command::Spawn { spec: Box::new(spawn), fds, exit: exit_sender, answer };
        let started: Started =
            ask(commands, command, answered, Some(self.inner.deadlines.answer), "start a process").await?;
        if !started.clamped.is_empty() {
            tracing::warn!(handle = self.handle(), process = id, limits = ?started.clamped, "resource limits were held to the hard limit");
        }
        let ends = match ends {
            Some(ends) => ends,
            None => Ends::Terminal(
                checked_terminal(started.terminal).map_err(self.failed("get a terminal from"))?,
            ),
        };
        let running = Running::new(id, ends, io, exit, commands.clone())
            .map_err(self.failed("listen to a process of"))?;
        self.remember(running.clone());
        Ok(Box::new(Attached(running)))
    }

    fn failed<'a>(&'a self, act: &'static str) -> impl Fn(io::Error) -> Error + 'a {
        move |source| Error::Container { act, handle: self.handle().into(), source }
    }

    /// Our ends, and all ends in the order in which pid 1 takes them. The process's own belong to the container's root,
    /// so that pid 1 can give them to the user.
    fn pipes(&self, with_stdin: bool) -> io::Result<(Ends, Vec<OwnedFd>)> {
        let (process_stdin, stdin) = streams::pipe()?;
        let (stdout, process_stdout) = streams::pipe()?;
        let (stderr, process_stderr) = streams::pipe()?;
        if let Some(id) = self.inner.root_id {
            let (uid, gid) = (rustix::fs::Uid::from_raw(id), rustix::fs::Gid::from_raw(id));
            for fd in [&process_stdin, &process_stdout, &process_stderr] {
                rustix::fs::fchown(fd, Some(uid), Some(gid))?;
            }
        }
        let stdin = with_stdin.then_some(stdin);
        let mut fds =
            vec![process_stdin, process_stdout, process_stderr, stdout.try_clone()?, stderr.try_clone()?];
        if let Some(stdin) = &stdin {
            fds.push(stdin.try_clone()?);
        }
        Ok((Ends::Pipes { stdin, stdout, stderr }, fds))
    }

    pub(super) fn remember(&self, running: Arc<Running>) {
        let mut processes = lock(&self.inner.processes);
        processes.retain(|other| other.id != running.id);
        processes.push_back(running);
        let ended = processes.iter().filter(|process| process.exit.borrow().is_some()).count();
        let oldest = processes.iter().position(|process| process.exit.borrow().is_some());
        let forgotten = oldest.filter(|_| ended > ENDED_PROCESSES_KEPT);
        if let Some(process) = forgotten.and_then(|index| processes.remove(index)) {
            let acknowledge = Request::Acknowledge { process: process.id.clone() };
            // Unsendable: pid 1 keeps one more until its end.
            let _ = self.inner.commands.try_send(Command::Tell(acknowledge));
        }
    }

    /// Of those that run now.
    pub fn process_ids(&self) -> Vec<String> {
        lock(&self.inner.processes)
            .iter()
            .filter(|process| process.exit.borrow().is_none())
            .map(|process| process.id.clone())
            .collect()
    }

    /// One more client for a process that runs, or whose status is still known.
    pub fn attach(&self, id: &str, io: ProcessIo) -> Result<Box<dyn garden_client::Process>> {
        let running = lock(&self.inner.processes).iter().find(|process| process.id == id).cloned();
        let running = running.ok_or_else(|| Error::ProcessNotFound { id: id.into() })?;
        running.attach(io).map_err(self.failed("attach to a process of"))?;
        Ok(Box::new(Attached(running)))
    }

    /// Unpacks a tar stream into `path`, made when missing, as `user` (empty: root).
    pub async fn stream_in(&self, user: &str, path: &str, tar: Reader) -> Result<()> {
        let (read, write) = streams::pipe().map_err(self.failed("make a pipe into"))?;
        let (answer, answered) = oneshot::channel();
        let make = |request, user, path| Request::StreamIn { request, user, path };
        let command = Command::Stream { make, user: user.into(), path: path.into(), pipe: read, answer };
        let unpacked = ask(&self.inner.commands, command, answered, None, STREAM_IN);
        // When unpacking fails its end of the pipe closes, which ends the feeding; its reason is the one that counts.
        let progress = Progress::default();
        let carried = async { tokio::join!(streams::feed(write, tar, &progress), unpacked) };
        let deadline = self.inner.deadlines.stall;
        let carried = progress.or_stall(deadline, carried).await;
        let (fed, unpacked) = carried.ok_or(Error::Late { step: STREAM_IN, deadline })?;
        unpacked?;
        match fed {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(self.failed("read the tar stream for")(error))
            }
            _ => Ok(()),
        }
    }

    /// `path` as a tar stream; a trailing `/` (or `/.`) means its contents. What fails before the first byte fails here,
    /// later failures are errors of the stream.
    pub async fn stream_out(&self, user: &str, path: &str) -> Result<Reader> {
        let (read, write) = streams::pipe().map_err(self.failed("make a pipe out of"))?;
        // As it is, otherwise.
        let _ = fcntl_setpipe_size(&read, streams::BUSY_PIPE_BYTES);
        let (answer, answered) = oneshot::channel();
        let make = |request, user, path| Request::StreamOut { request, user, path };
        let command = Command::Stream { make, user: user.into(), path: path.into(), pipe: write, answer };
        let Deadlines { answer, stall, .. } = self.inner.deadlines;
        tell(&self.inner.commands, command, answer).await?;
        let opened = timeout(stall, super::tar_out::open(read, answered, stall)).await;
        opened.map_err(|_| Error::Late { step: STREAM_OUT, deadline: stall })?.map_err(|error| match error {
            super::tar_out::Error::Refused(refused) => refused.into(),
            super::tar_out::Error::Read(error) => self.failed("read the tar stream of")(error),
        })
    }

    /// Ends every process but pid 1: by SIGTERM first, unless `kill`, then by SIGKILL.
    pub async fn stop(&self, kill: bool) -> Result<()> {
        if !kill {
            self.signal_all(libc::SIGTERM).await?;
            if self.emptied().await? {
                return Ok(());
            }
        }
        self.signal_all(libc::SIGKILL).await?;
        match self.emptied().await? {
            true => Ok(()),
            false => Err(Error::Late {
                step: "kill the processes of a container",
                deadline: self.inner.deadlines.stop,
            }),
        }
    }

    async fn signal_all(&self, signal: i32) -> Result<()> {
        let command = Command::Tell(Request::SignalAll { signal });
        tell(&self.inner.commands, command, self.inner.deadlines.answer).await
    }

    /// Whether only pid 1 is left before the deadline. Peas may be in groups elsewhere: they are asked for by name.
    /// What garden has started tells of its end; what that has left behind is looked for, rarer and rarer.
    async fn emptied(&self) -> Result<bool> {
        let (started, deadline) = (Instant::now(), self.inner.deadlines.stop);
        let known: Vec<_> = lock(&self.inner.processes).iter().map(|process| process.exit.clone()).collect();
        let known_end = async {
            for mut exit in known {
                // An owner that is gone has told all it could.
                let _ = exit.wait_for(Option::is_some).await;
            }
        };
        // In time or not, the kernel has the last word.
        let _ = timeout(deadline, known_end).await;
        let mut pause = STOP_POLL_MIN;
        loop {
            if self.inner.cgroup.process_count()? <= 1 && self.process_ids().is_empty() {
                return Ok(true);
            }
            if started.elapsed() > deadline {
                return Ok(false);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(STOP_POLL_MAX);
        }
    }

    /// What it uses now.
    pub fn usage(&self) -> Result<Usage> {
        Ok(metrics::usage(&self.inner.cgroup.stats()?))
    }

    /// What it was given of the CPU beside others.
    pub fn cpu_shares(&self) -> u64 {
        rules::cpu_shares(&self.inner.spec.limits).unwrap_or(cgroup::CPU_SHARES_DEFAULT)
    }

    /// Makes it weigh as much as these shares for now.
    pub fn weigh(&self, shares: u64) -> Result<()> {
        let limits = cgroup::CpuLimits { shares: Some(shares), ..cgroup::CpuLimits::default() };
        Ok(self.inner.cgroup.limit_cpu(&limits)?)
    }

    /// Whether the kernel has killed any of its processes for want of memory.
    pub fn out_of_memory(&self) -> Result<bool> {
        Ok(self.inner.cgroup.oom_kills()? > 0)
    }

    /// Whether pid 1 lives.
    pub fn is_alive(&self) -> bool {
        self.inner.pidfd.as_ref().is_some_and(|pidfd| !has_ended(pidfd))
    }

    /// Ends it and removes what it had: processes, control groups, socket, ids. Safe to call twice; what failed is tried
    /// again by the next call.
    pub async fn destroy(&self) -> Result<()> {
        if let Some(pidfd) = &self.inner.pidfd {
            sys::kill(pidfd).map_err(self.failed("kill"))?;
            crate::milestone::passed();
            self.ended(pidfd).await?;
        }
        crate::milestone::passed();
        let (cgroup, oci) = (self.inner.cgroup.clone(), self.inner.spec.oci.clone());
        let remove = move || -> Result<()> {
            oci.iter().try_for_each(Instance::delete)?;
            Ok(cgroup.remove()?)
        };
        let removed = tokio::task::spawn_blocking(remove).await;
        removed.map_err(|error| self.failed("remove the control groups of")(io::Error::other(error)))??;
        remove_socket(self.inner.spec.socket.as_deref()).map_err(self.failed("remove the socket of"))?;
        drop(lock(&self.inner.ids).take());
        Ok(())
    }

    /// Pid 1's end is the end of all: the kernel kills what is in its pid namespace, and only then lets it go.
    async fn ended(&self, pidfd: &OwnedFd) -> Result<()> {
        let deadline = self.inner.deadlines.kill;
        let ended = timeout(deadline, end_of(pidfd.as_fd())).await;
        let ended = ended.map_err(|_| Error::Late { step: "kill a container", deadline })?;
        ended.map_err(self.failed("watch"))
    }
}

/// Until the process of a pidfd has ended.
pub(super) async fn end_of(pidfd: BorrowedFd<'_>) -> io::Result<()> {
    watched(pidfd.try_clone_to_owned()?, Interest::READABLE)?.readable().await.map(drop)
}

/// Hands a request over without waiting for what comes of it.
pub(super) async fn tell(
    commands: &mpsc::Sender<Command>,
    command: Command,
    deadline: Duration,
) -> Result<()> {
    let told = timeout(deadline, commands.send(command)).await;
    let step = "give a request to the init process of a container";
    Ok(told.map_err(|_| Error::Late { step, deadline })?.map_err(|_| Refused::Ended)?)
}

async fn ask<T>(
    commands: &mpsc::Sender<Command>,
    command: Command,
    answered: oneshot::Receiver<std::result::Result<T, Refused>>,
    deadline: Option<Duration>,
    step: &'static str,
) -> Result<T> {
    let conversation = async {
        if commands.send(command).await.is_err() {
            return Err(Refused::Ended);
        }
        answered.await.unwrap_or(Err(Refused::Ended))
    };
    match deadline {
        Some(deadline) => {
            Ok(timeout(deadline, conversation).await.map_err(|_| Error::Late { step, deadline })??)
        }
        None => Ok(conversation.await?),
    }
}

/// A process id in use by a process that is being started; free again when dropped, unless that runs then.
pub(super) struct Claim {
    container: Container,
    id: String,
}

impl Claim {
    pub fn id(&self) -> &str {
        &self.id
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        lock(&self.container.inner.claimed).remove(&self.id);
    }
}

/// A pidfd is readable when its process has ended.
fn has_ended(pidfd: &OwnedFd) -> bool {
    let mut fds = [rustix::event::PollFd::new(pidfd, rustix::event::PollFlags::IN)];
    let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    rustix::event::poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0)
}

/// Later owners begin later, and none asks a thousand million times a second.
pub(super) fn first_request() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX / 2)
}

/// Sent by pid 1, so looked at: a terminal's master is a character device of one number, which cannot block.
pub(super) fn checked_terminal(fd: Option<OwnedFd>) -> io::Result<OwnedFd> {
    const MASTER: (u32, u32) = (5, 2);
    let fd = fd.ok_or(io::ErrorKind::NotFound)?;
    let stat = rustix::fs::fstat(&fd)?;
    let number = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    let is_device =
        rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::CharacterDevice;
    if !is_device || number != MASTER {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("descriptor {} is no terminal", fd.as_raw_fd()),
        ));
    }
    Ok(fd)
}
