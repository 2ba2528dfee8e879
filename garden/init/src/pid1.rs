//! Pid 1 of a container: reaps, starts and signals processes on request, tells of exits until acknowledged.
//!
//! When the agent at the other end goes, everything lives on: pid 1 waits at its listening socket for the next agent and
//! tells it all. It holds copies of the agent's ends of every stream, so that nothing written meanwhile is lost.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use garden_init::{ERROR_BYTES_MAX, Event, Refusal, Request, StreamKind, WindowSize};
use garden_sys::packets::{self, Assembler, Message, Received};
use garden_sys::process;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process};

use crate::setup::Container;
use crate::spawn::{self, Refused};
use crate::tar_streams::{self, Direction};

/// A process that was started here and whose end the agent has not acknowledged.
pub struct Process {
    pub id: String,
    pub pid: Pid,
    pub status: Option<i32>,
    pub tty: bool,
    /// Copies of the agent's ends.
    pub streams: Vec<(StreamKind, OwnedFd)>,
}

const PAUSE_BEFORE_NEXT_WELCOME: std::time::Duration = std::time::Duration::from_millis(100);

/// A child that packs or unpacks a tar, with the pipe on which it says what went wrong.
struct TarStream {
    pid: Pid,
    /// `None`: the agent that asked is gone.
    request: Option<u64>,
    complaint: OwnedFd,
}

struct Pid1 {
    container: Container,
    agent: Option<OwnedFd>,
    assembler: Assembler,
    processes: Vec<Process>,
    tar_streams: Vec<TarStream>,
    /// Only of interest to a pea: its process has been started, refused, or will never come.
    begun: bool,
}

pub fn live(container: Container, agent: OwnedFd, assembler: Assembler) -> ! {
    let Ok(children) = process::child_signals() else { std::process::exit(1) };
    let (processes, tar_streams) = (Vec::new(), Vec::new());
    let mut pid1 = Pid1 { container, agent: Some(agent), assembler, processes, tar_streams, begun: false };
    pid1.tell(&Event::Ready, &[]);
    while !pid1.is_done() {
        pid1.turn(&children);
    }
    std::process::exit(0)
}

impl Pid1 {
    /// Pid 1 of a container never is: its end is the container's.
    fn is_done(&self) -> bool {
        let nobody_will_ask = self.agent.is_none() && self.container.listener.is_none();
        let nothing_to_tell =
            self.processes.iter().all(|process| nobody_will_ask && process.status.is_some());
        self.container.is_pea && (self.begun || self.agent.is_none()) && nothing_to_tell
    }

    fn turn(&mut self, children: &OwnedFd) {
        let door = self.agent.as_ref().or(self.container.listener.as_ref());
        let mut fds = vec![PollFd::new(children, PollFlags::IN)];
        fds.extend(door.map(|fd| PollFd::new(fd, PollFlags::IN)));
        match poll(&mut fds, None) {
            Ok(_) => {}
            Err(Errno::INTR) => return,
            // It would hear of nothing any more: the end of the container tells of it, turning in circles would not.
            Err(_) => std::process::exit(1),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        if ready[0] {
            drain(children);
            self.reap();
        }
        if ready.get(1) == Some(&true) {
            match self.agent {
                Some(_) => self.hear(),
                None => self.welcome(),
            }
        }
    }

    /// The next agent; only who can open the socket's path in the depot, root of the host, gets here.
    fn welcome(&mut self) {
        let Some(listener) = &self.container.listener else { return };
        match rustix::net::accept_with(listener, rustix::net::SocketFlags::CLOEXEC) {
            Ok(agent) => {
                self.agent = Some(agent);
                // Answers to questions that another asked.
                self.tar_streams.iter_mut().for_each(|stream| stream.request = None);
                self.assembler = Assembler::new(garden_init::REQUEST_BYTES_MAX, garden_init::REQUEST_FDS_MAX);
            }
            Err(Errno::INTR | Errno::AGAIN | Errno::CONNABORTED) => {}
            // Of the machine's want of something, which may pass.
            Err(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                std::thread::sleep(PAUSE_BEFORE_NEXT_WELCOME);
            }
            // A door through which nobody will ever come: asking again and again would only burn time.
            Err(_) => std::process::exit(1),
        }
    }

    fn hear(&mut self) {
        let Some(agent) = &self.agent else { return };
        match self.assembler.receive(agent) {
            Ok(Received::Message(message)) => self.obey(message),
            Ok(Received::Partial) => {}
            // Gone, or not speaking our language: wait for another.
            Ok(Received::Closed) | Err(_) => self.agent = None,
        }
    }

    fn tell(&mut self, event: &Event, fds: &[BorrowedFd<'_>]) {
        let Some(agent) = &self.agent else { return };
        let Ok(bytes) = serde_json::to_vec(event) else { return };
        if packets::send(agent, &bytes, fds).is_err() {
            self.agent = None;
        }
    }

    fn obey(&mut self, message: Message) {
        // A request of a newer agent that is not known here is no reason to die.
        let Ok(request) = serde_json::from_slice::<Request>(&message.bytes) else { return };
        let fds = message.fds;
        match request {
            Request::Plan(_) => {}
            Request::Spawn { request, spec } => self.spawn(request, &spec, fds),
            Request::Signal { process, signal } => self.signal(&process, signal),
            Request::WindowSize { process, columns, rows } => {
                self.resize(&process, WindowSize { columns, rows })
            }
            Request::CloseStdin { process } => {
                if let Some(process) = self.find(&process) {
                    process.streams.retain(|(kind, _)| *kind != StreamKind::Stdin);
                }
            }
            Request::SignalAll { signal } => {
                // Fails only for an unknown signal, which harms nobody.
                let _ = process::signal_everyone(signal);
            }
            Request::StreamIn { request, user, path } => {
                self.stream(request, Direction::In, &user, &path, fds)
            }
            Request::StreamOut { request, user, path } => {
                self.stream(request, Direction::Out, &user, &path, fds)
            }
            Request::Acknowledge { process } => {
                self.processes.retain(|other| other.id != process || other.status.is_none())
            }
            Request::Adopt => self.tell_all(),
        }
    }

    fn find(&mut self, id: &str) -> Option<&mut Process> {
        self.processes.iter_mut().find(|process| process.id == id)
    }

    fn spawn(&mut self, request: u64, spec: &garden_init::SpawnSpec, fds: Vec<OwnedFd>) {
        self.begun = true;
        self.let_go_of_spent_streams();
        // The id of one that has ended may be used again.
        self.processes.retain(|process| process.id != spec.process || process.status.is_none());
        let outcome = if self.find(&spec.process).is_some() {
            let message = format!("process ID '{}' already in use", spec.process);
            Err(Refused { reason: Refusal::ProcessExists, message })
        } else {
            spawn::spawn(&self.container, spec, fds)
        };
        match outcome {
            Ok(started) => {
                let pid = started.process.pid.as_raw_nonzero().get();
                let master = started.process.streams.iter().find(|(kind, _)| *kind == StreamKind::Terminal);
                let master = master.and_then(|(_, fd)| fd.try_clone().ok());
                let fds: Vec<_> = master.iter().map(AsFd::as_fd).collect();
                self.processes.push(started.process);
                self.tell(&Event::Started { request, pid, clamped: started.clamped }, &fds);
            }
            Err(Refused { reason, message }) => {
                self.tell(&Event::NotStarted { request, reason, message: shorten(message) }, &[]);
            }
        }
    }

    /// Of processes that have ended, streams from which nothing will come any more: an end is remembered for long, its
    /// streams need not be.
    fn let_go_of_spent_streams(&mut self) {
        let ended = self.processes.iter_mut().filter(|process| process.status.is_some());
        for process in ended.filter(|process| !process.streams.is_empty()) {
            process.streams.retain(|(kind, fd)| *kind != StreamKind::Stdin && !is_spent(fd));
        }
    }

    fn signal(&mut self, id: &str, signal: i32) {
        let Some(process) = self.find(id).filter(|process| process.status.is_none()) else { return };
        if let Some(signal) = Signal::from_named_raw(signal) {
            // Not reaped yet, so the id is still its own; ended but unreaped is as good as signalled.
            let _ = kill_process(process.pid, signal);
        }
    }

    fn resize(&mut self, id: &str, size: WindowSize) {
        let Some(process) = self.find(id) else { return };
        if let Some((_, master)) = process.streams.iter().find(|(kind, _)| *kind == StreamKind::Terminal) {
            // A terminal whose process is gone has no window.
            let _ = spawn::set_window_size(master, size);
        }
    }

    fn stream(&mut self, request: u64, direction: Direction, user: &str, path: &str, fds: Vec<OwnedFd>) {
        let started = match fds.into_iter().next() {
            Some(pipe) => {
                tar_streams::start(self.container.confinement.as_ref(), direction, user, path, pipe)
            }
            None => Err("no pipe came with the request".into()),
        };
        match started {
            Ok((pid, complaint)) => {
                self.tar_streams.push(TarStream { pid, request: Some(request), complaint })
            }
            Err(message) => self.tell(&Event::Streamed { request, error: Some(shorten(message)) }, &[]),
        }
    }

    fn reap(&mut self) {
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            let status = exit_status(status);
            if let Some(process) =
                self.processes.iter_mut().find(|process| process.pid == pid && process.status.is_none())
            {
                process.status = Some(status);
                let process = process.id.clone();
                self.tell(&Event::Exited { process, status }, &[]);
            } else if let Some(index) = self.tar_streams.iter().position(|stream| stream.pid == pid) {
                let stream = self.tar_streams.swap_remove(index);
                if let Some(request) = stream.request {
                    let error = tar_streams::complaint(stream.complaint, status).map(shorten);
                    self.tell(&Event::Streamed { request, error }, &[]);
                }
            }
        }
    }

    fn tell_all(&mut self) {
        let processes = std::mem::take(&mut self.processes);
        for process in &processes {
            let (kinds, fds): (Vec<_>, Vec<_>) =
                process.streams.iter().map(|(kind, fd)| (*kind, fd.as_fd())).unzip();
            let pid = process.pid.as_raw_nonzero().get();
            self.tell(
                &Event::Running { process: process.id.clone(), pid, tty: process.tty, streams: kinds },
                &fds,
            );
            if let Some(status) = process.status {
                self.tell(&Event::Exited { process: process.id.clone(), status }, &[]);
            }
        }
        self.processes = processes;
        self.tell(&Event::Adopted, &[]);
    }
}

fn exit_status(status: WaitStatus) -> i32 {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(status), _) => status,
        (None, Some(signal)) => 128 + signal,
        (None, None) => 255,
    }
}

/// Nothing is in it, and nobody is left to write to it.
fn is_spent(stream: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(stream, PollFlags::IN)];
    let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    let polled = poll(&mut fds, Some(&now));
    let flags = fds[0].revents();
    polled.is_ok() && flags.intersects(PollFlags::HUP | PollFlags::ERR) && !flags.contains(PollFlags::IN)
}

fn drain(children: &OwnedFd) {
    let mut buffer = [0_u8; 512];
    loop {
        match rustix::io::read(children, &mut buffer) {
            Ok(length) if length > 0 => {}
            Err(Errno::INTR) => {}
            _ => return,
        }
    }
}

/// At most [`ERROR_BYTES_MAX`], cut between characters.
fn shorten(mut message: String) -> String {
    if message.len() > ERROR_BYTES_MAX {
        let end = (0..=ERROR_BYTES_MAX).rev().find(|&end| message.is_char_boundary(end)).unwrap_or(0);
        message.truncate(end);
    }
    message
}

/// A pipe, both ends close-on-exec.
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?)
}
