//! The one task that speaks with a container's pid 1: sends what others ask for, and turns events, which may be lies,
//! into answers to the askers.
//!
//! Only what was asked for is listened to: an answer to no question, an exit of no process, a message of an unknown
//! kind are passed over. Pid 1's end of file ends everything that still waits.

use std::collections::HashMap;
use std::os::fd::OwnedFd;

use garden_init::{ERROR_BYTES_MAX, Event, Refusal, Request, SpawnSpec};
use tokio::sync::{mpsc, oneshot, watch};

use super::control::{Control, Exchanged};

/// Requests that wait to be sent; more wait at the sender.
pub const QUEUE_MAX: usize = 64;

/// What a process ends with that its container took with it.
pub const STATUS_KILLED: i32 = 128 + 9;

#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error("{message}")]
    ExecutableNotFound { message: String },
    #[error("{message}")]
    Other { message: String },
    #[error("the container has ended")]
    Ended,
}

/// A process that runs now.
#[derive(Debug)]
pub struct Started {
    pub clamped: Vec<u32>,
    /// The master of its terminal.
    pub terminal: Option<OwnedFd>,
}

type StartAnswer = oneshot::Sender<Result<Started, Refused>>;
type StreamAnswer = oneshot::Sender<Result<(), Refused>>;

pub enum Command {
    Spawn {
        spec: Box<SpawnSpec>,
        fds: Vec<OwnedFd>,
        exit: watch::Sender<Option<i32>>,
        answer: StartAnswer,
    },
    Stream {
        make: fn(u64, String, String) -> Request,
        user: String,
        path: String,
        pipe: OwnedFd,
        answer: StreamAnswer,
    },
    Tell(Request),
}

pub struct Owner {
    control: Control,
    commands: mpsc::Receiver<Command>,
    next_request: u64,
    starting: HashMap<u64, (String, watch::Sender<Option<i32>>, StartAnswer)>,
    streaming: HashMap<u64, StreamAnswer>,
    running: HashMap<String, watch::Sender<Option<i32>>>,
    of_pea: bool,
}

impl Owner {
    pub fn new(control: Control, commands: mpsc::Receiver<Command>) -> Owner {
        Owner::adopting(control, commands, HashMap::new(), 0)
    }

    /// Of a container whose processes run already. `first_request` is above every number that an earlier owner used,
    /// whose answers may still arrive.
    pub fn adopting(
        control: Control,
        commands: mpsc::Receiver<Command>,
        running: HashMap<String, watch::Sender<Option<i32>>>,
        first_request: u64,
    ) -> Owner {
        let (starting, streaming) = Default::default();
        let next_request = first_request;
        Owner { control, commands, next_request, starting, streaming, running, of_pea: false }
    }

    /// Of the init of a pea, which ends when its process's end is acknowledged.
    pub fn of_pea(self) -> Owner {
        Owner { of_pea: true, ..self }
    }

    /// Until pid 1 or everybody who could ask is gone.
    pub async fn run(mut self) {
        loop {
            // Pid 1 does not hear while it tells, so that whatever it tells is heard also while it is told something.
            // One command at a time, so that what is queued is no more than pid 1 has been asked already.
            let may_ask = !self.control.has_queued();
            tokio::select! {
                exchanged = self.control.exchange() => match exchanged {
                    Ok(Some(Exchanged::Message(message))) => {
                        if let Ok(event) = serde_json::from_slice::<Event>(&message.bytes) {
                            self.hear(event, message.fds);
                        }
                    }
                    Ok(Some(Exchanged::Sent)) => {}
                    Ok(Some(Exchanged::Unsent(request))) => self.withdraw(request),
                    Ok(None) | Err(_) => break,
                },
                command = self.commands.recv(), if may_ask => match command {
                    Some(command) => self.carry_out(command),
                    None => break,
                },
            }
        }
        self.end();
    }

    fn carry_out(&mut self, command: Command) {
        let request = self.next_request;
        self.next_request += 1;
        match command {
            // Nobody waits for it any more.
            Command::Spawn { answer, .. } if answer.is_closed() => {}
            Command::Stream { answer, .. } if answer.is_closed() => {}
            Command::Spawn { spec, fds, exit, answer } => {
                let id = spec.process.clone();
                let message = Request::Spawn { request, spec };
                if self.control.queue(Some(request), &message, fds).is_ok() {
                    self.starting.insert(request, (id, exit, answer));
                }
            }
            Command::Stream { make, user, path, pipe, answer } => {
                if self.control.queue(Some(request), &make(request, user, path), vec![pipe]).is_ok() {
                    self.streaming.insert(request, answer);
                }
            }
            Command::Tell(request) => self.tell(&request),
        }
    }

    /// What cannot be told any more has ended with its container.
    fn tell(&mut self, request: &Request) {
        // Only what is no JSON is refused here.
        let _ = self.control.queue(None, request, Vec::new());
    }

    /// Its asker sees that no answer will come; the others learn it by pid 1's end of file, if that is why.
    fn withdraw(&mut self, request: Option<u64>) {
        let Some(request) = request else { return };
        self.starting.remove(&request);
        self.streaming.remove(&request);
    }

    fn hear(&mut self, event: Event, fds: Vec<OwnedFd>) {
        match event {
            Event::Started { request, pid: _, clamped } => {
                if let Some((id, exit, answer)) = self.starting.remove(&request) {
                    self.running.insert(id.clone(), exit);
                    if answer.send(Ok(Started { clamped, terminal: fds.into_iter().next() })).is_err() {
                        // Whoever asked was told that it did not start, and nobody else knows of it.
                        self.tell(&Request::Signal { process: id, signal: libc::SIGKILL });
                    }
                }
            }
            Event::NotStarted { request, reason, message } => {
                if let Some((_, _, answer)) = self.starting.remove(&request) {
                    let _ = answer.send(Err(refused(reason, message)));
                }
            }
            Event::Exited { process, status } => {
                if let Some(exit) = self.running.remove(&process) {
                    exit.send_replace(Some(status & 0xff));
                    // By a pid 1 it is remembered: the next garden may be asked for it. See `Container::remember`.
                    if self.of_pea {
                        self.tell(&Request::Acknowledge { process });
                    }
                }
            }
            Event::Streamed { request, error } => {
                if let Some(answer) = self.streaming.remove(&request) {
                    let outcome = error.map_or(Ok(()), |message| Err(refused(Refusal::Other, message)));
                    let _ = answer.send(outcome);
                }
            }
            Event::Ready | Event::Failed { .. } | Event::Running { .. } | Event::Adopted => {}
        }
    }

    fn end(self) {
        for exit in self.running.into_values() {
            exit.send_replace(Some(STATUS_KILLED));
        }
        for (_, _, answer) in self.starting.into_values() {
            let _ = answer.send(Err(Refused::Ended));
        }
        for answer in self.streaming.into_values() {
            let _ = answer.send(Err(Refused::Ended));
        }
    }
}

fn refused(reason: Refusal, mut message: String) -> Refused {
    let end = (0..=message.len().min(ERROR_BYTES_MAX))
        .rev()
        .find(|&end| message.is_char_boundary(end))
        .unwrap_or(0);
    message.truncate(end);
    match reason {
        Refusal::ExecutableNotFound => Refused::ExecutableNotFound { message },
        Refusal::UnknownUser | Refusal::ProcessExists | Refusal::Other => Refused::Other { message },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use garden_sys::packets;

    /// A container whose pid 1 is played by the test, on the other end of the socket.
    fn played() -> (mpsc::Sender<Command>, Control, tokio::task::JoinHandle<()>) {
        let (ours, theirs) = packets::pair().unwrap();
        let (commands, receiver) = mpsc::channel(QUEUE_MAX);
        let owner = Owner::new(Control::new(ours, 1 << 16, 4).unwrap(), receiver);
        (commands, Control::new(theirs, 1 << 16, 8).unwrap(), tokio::spawn(owner.run()))
    }

    async fn spawn(
        commands: &mpsc::Sender<Command>,
        id: &str,
    ) -> (watch::Receiver<Option<i32>>, oneshot::Receiver<Result<Started, Refused>>) {
        let (exit, ended) = watch::channel(None);
        let (answer, answered) = oneshot::channel();
        let spec = Box::new(SpawnSpec { process: id.into(), ..SpawnSpec::default() });
        commands.send(Command::Spawn { spec, fds: Vec::new(), exit, answer }).await.ok().unwrap();
        (ended, answered)
    }

    #[tokio::test]
    async fn lies_of_pid_1_change_nothing() {
        let (commands, mut pid1, _owner) = played();
        let (mut ended, answered) = spawn(&commands, "a").await;
        pid1.receive().await.unwrap().unwrap();
        for lie in [
            Event::Exited { process: "a".into(), status: 0 },
            Event::Exited { process: "other".into(), status: 0 },
            Event::Started { request: 77, pid: 1, clamped: vec![] },
            Event::Streamed { request: 0, error: None },
            Event::Ready,
        ] {
            pid1.send(&lie, &[]).await.unwrap();
        }
        pid1.send(&"nonsense", &[]).await.unwrap();
        pid1.send(&Event::Started { request: 0, pid: 5, clamped: vec![7] }, &[]).await.unwrap();
        assert_eq!(answered.await.unwrap().unwrap().clamped, [7]);
        assert_eq!(*ended.borrow(), None);
        pid1.send(&Event::Exited { process: "a".into(), status: 0x1_0003 }, &[]).await.unwrap();
        assert_eq!(*ended.wait_for(Option::is_some).await.unwrap(), Some(3));
    }

    #[tokio::test]
    async fn the_end_of_pid_1_ends_all_waiting() {
        let (commands, mut pid1, owner) = played();
        let (mut ended, answered) = spawn(&commands, "a").await;
        pid1.receive().await.unwrap().unwrap();
        pid1.send(&Event::Started { request: 0, pid: 5, clamped: vec![] }, &[]).await.unwrap();
        answered.await.unwrap().unwrap();
        let (_, unanswered) = spawn(&commands, "b").await;
        pid1.receive().await.unwrap().unwrap();
        drop(pid1);
        assert!(matches!(unanswered.await.unwrap(), Err(Refused::Ended)));
        assert_eq!(*ended.wait_for(Option::is_some).await.unwrap(), Some(STATUS_KILLED));
        owner.await.unwrap();
    }

    #[tokio::test]
    async fn a_pid_1_that_tells_before_it_hears_is_heard_while_it_is_told() {
        const SPAWNS: usize = 2_000;
        let (ours, theirs) = packets::pair().unwrap();
        let (commands, receiver) = mpsc::channel(QUEUE_MAX);
        tokio::spawn(Owner::new(Control::new(ours, 1 << 16, 4).unwrap(), receiver).run());
        let asker = commands.clone();
        let asking = tokio::spawn(async move {
            let mut asked = Vec::new();
            for number in 0..SPAWNS {
                asked.push(spawn(&asker, &number.to_string()).await);
            }
            asked
        });
        // Nothing more goes out: the queue fills.
        while commands.capacity() > 0 {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        let pid1 = std::thread::spawn(move || {
            let tell =
                |event: Event| packets::send(&theirs, &serde_json::to_vec(&event).unwrap(), &[]).unwrap();
            (0..SPAWNS).for_each(|_| tell(Event::Ready));
            let mut assembler = packets::Assembler::new(1 << 16, 8);
            for number in 0..SPAWNS {
                assembler.receive_message(&theirs).unwrap().unwrap();
                tell(Event::Started { request: number as u64, pid: 5, clamped: vec![] });
                tell(Event::Exited { process: number.to_string(), status: 3 });
            }
        });
        let all = async {
            for (mut ended, answered) in asking.await.unwrap() {
                answered.await.unwrap().unwrap();
                assert_eq!(*ended.wait_for(Option::is_some).await.unwrap(), Some(3));
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(30), all).await.expect("nobody waits for ever");
        pid1.join().unwrap();
    }

    #[tokio::test]
    async fn what_is_asked_next_goes_out_though_pid_1_says_nothing() {
        let (commands, mut pid1, _owner) = played();
        for signal in 1..4 {
            let asked = Request::SignalAll { signal };
            commands.send(Command::Tell(asked)).await.ok().unwrap();
            let heard = tokio::time::timeout(std::time::Duration::from_secs(10), pid1.receive());
            heard.await.expect("it is told").unwrap().unwrap();
        }
    }

    #[tokio::test]
    async fn a_message_too_long_ends_the_conversation() {
        let (_commands, pid1, owner) = played();
        let message = "x".repeat(1 << 17);
        let _ = pid1.send(&Event::Failed { message }, &[]).await;
        owner.await.unwrap();
    }
}
