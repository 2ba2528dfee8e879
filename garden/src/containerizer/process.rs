//! A process of a container as garden's clients see it.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use garden_client::{Process, ProcessIo, Signal, WindowSize};
use garden_init::Request;
use tokio::sync::{mpsc, watch};

use super::container::tell;
use super::liveness::Progress;
use super::owner::{Command, Refused, STATUS_KILLED};
use super::streams::{self, Output};
use super::{ANSWER_DEADLINE, Error};

/// Shared by all who are attached to it; it is none of their business whether it goes on.
pub struct Running {
    pub id: String,
    pub exit: watch::Receiver<Option<i32>>,
    outputs: Outputs,
    /// A copy for each client that feeds it; `None` once closed.
    stdin: Mutex<Option<OwnedFd>>,
    commands: mpsc::Sender<Command>,
}

enum Outputs {
    Pipes { stdout: Output, stderr: Output },
    Terminal(Output),
}

/// What is left of the ends of a process that an earlier garden started.
pub enum AdoptedEnds {
    Pipes { stdin: Option<OwnedFd>, stdout: Option<OwnedFd>, stderr: Option<OwnedFd> },
    Terminal(Option<OwnedFd>),
}

/// Garden's ends of what a process reads and writes.
pub enum Ends {
    Pipes { stdin: Option<OwnedFd>, stdout: OwnedFd, stderr: OwnedFd },
    Terminal(OwnedFd),
}

impl Running {
    pub fn new(
        id: String,
        ends: Ends,
        io: ProcessIo,
        exit: watch::Receiver<Option<i32>>,
        commands: mpsc::Sender<Command>,
    ) -> io::Result<Arc<Running>> {
        let (outputs, stdin) = match ends {
            Ends::Pipes { stdin, stdout, stderr } => {
                let stdout = Output::start(stdout, io.stdout, exit.clone())?;
                let stderr = Output::start(stderr, io.stderr, exit.clone())?;
                (Outputs::Pipes { stdout, stderr }, stdin)
            }
            Ends::Terminal(master) => {
                let stdin = master.try_clone()?;
                (Outputs::Terminal(Output::start(master, io.stdout, exit.clone())?), Some(stdin))
            }
        };
        let running = Arc::new(Running { id, exit, outputs, stdin: Mutex::new(stdin), commands });
        running.feed(io.stdin)?;
        Ok(running)
    }

    /// Its outputs wait for a client.
    pub fn adopted(
        id: String,
        ends: AdoptedEnds,
        exit: watch::Receiver<Option<i32>>,
        commands: mpsc::Sender<Command>,
    ) -> io::Result<Arc<Running>> {
        let output = |fd| Output::adopted(fd, exit.clone());
        let (outputs, stdin) = match ends {
            AdoptedEnds::Pipes { stdin, stdout, stderr } => {
                (Outputs::Pipes { stdout: output(stdout)?, stderr: output(stderr)? }, stdin)
            }
            AdoptedEnds::Terminal(master) => {
                let stdin = master.as_ref().map(OwnedFd::try_clone).transpose()?;
                (Outputs::Terminal(output(master)?), stdin)
            }
        };
        Ok(Arc::new(Running { id, exit, outputs, stdin: Mutex::new(stdin), commands }))
    }

    /// Another client hears and feeds it from now on.
    pub fn attach(self: &Arc<Self>, io: ProcessIo) -> io::Result<()> {
        match &self.outputs {
            Outputs::Pipes { stdout, stderr } => {
                io.stdout.into_iter().for_each(|listener| stdout.attach(listener));
                io.stderr.into_iter().for_each(|listener| stderr.attach(listener));
            }
            Outputs::Terminal(output) => io.stdout.into_iter().for_each(|listener| output.attach(listener)),
        }
        self.feed(io.stdin)
    }

    fn stdin(&self) -> std::sync::MutexGuard<'_, Option<OwnedFd>> {
        self.stdin.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn feed(self: &Arc<Self>, client: Option<garden_client::Reader>) -> io::Result<()> {
        let (Some(client), Some(fd)) = (client, self.stdin().as_ref().map(OwnedFd::try_clone).transpose()?)
        else {
            return Ok(());
        };
        let this = self.clone();
        tokio::spawn(async move {
            let progress = Progress::default();
            let fed = streams::feed(fd, client, &progress);
            let mut exit = this.exit.clone();
            let ended = async move { exit.wait_for(Option::is_some).await.is_ok() };
            tokio::select! {
                fed = fed => match fed {
                    // The client broke off without a word: another may attach and go on.
                    Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                        tracing::debug!(process = this.id, %error, "input broke off");
                    }
                    // A process that no longer reads is no error of the client.
                    _ => this.close_stdin().await,
                },
                _ = ended => {}
            }
        });
        Ok(())
    }

    /// The end of input, which a terminal does not have: there it is a character like others.
    async fn close_stdin(&self) {
        if matches!(self.outputs, Outputs::Terminal(_)) {
            return;
        }
        self.stdin().take();
        // A container that has ended has closed it.
        let _ = self.commands.send(Command::Tell(Request::CloseStdin { process: self.id.clone() })).await;
    }

    async fn tell(&self, request: Request) -> garden_client::Result<()> {
        if self.exit.borrow().is_some() {
            return Ok(());
        }
        match tell(&self.commands, Command::Tell(request), ANSWER_DEADLINE).await {
            Err(Error::Refused(Refused::Ended)) => {
                Err(garden_client::Error::ProcessNotFound { process_id: self.id.clone() })
            }
            told => Ok(told?),
        }
    }

    /// Its status, when it has ended and what it wrote has been taken.
    pub async fn wait(&self) -> i32 {
        let mut exit = self.exit.clone();
        let status = match exit.wait_for(Option::is_some).await {
            Ok(status) => status.unwrap_or(STATUS_KILLED),
            Err(_) => STATUS_KILLED,
        };
        match &self.outputs {
            Outputs::Pipes { stdout, stderr } => {
                stdout.drained().await;
                stderr.drained().await;
            }
            Outputs::Terminal(output) => output.drained().await,
        }
        status
    }
}

/// What a client holds; dropping it detaches.
pub struct Attached(pub Arc<Running>);

#[async_trait::async_trait]
impl Process for Attached {
    fn id(&self) -> &str {
        &self.0.id
    }

    async fn wait(&self) -> garden_client::Result<i32> {
        Ok(self.0.wait().await)
    }

    async fn signal(&self, signal: Signal) -> garden_client::Result<()> {
        let signal = match signal {
            Signal::Terminate => libc::SIGTERM,
            Signal::Kill => libc::SIGKILL,
        };
        self.0.tell(Request::Signal { process: self.0.id.clone(), signal }).await
    }

    async fn set_window_size(&self, size: WindowSize) -> garden_client::Result<()> {
        let WindowSize { columns, rows } = size;
        self.0.tell(Request::WindowSize { process: self.0.id.clone(), columns, rows }).await
    }
}
