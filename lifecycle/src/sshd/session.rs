//! One session channel: gathers what the client wishes (variables, a terminal), starts the program it asks for, and
//! carries bytes, signals and sizes until either ends.
//!
//! `preparing ──shell, exec, subsystem──▶ running ──program ends──▶ closed`. A client that leaves closes the terminal
//! (its program gets SIGHUP) or the pipes (its program sees the end of its input).

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use russh::{
    Channel, ChannelMsg, ChannelWriteHalf, Sig,
    server::{Handle, Msg},
};
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::json;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::mpsc,
    task::JoinHandle,
};

use super::{
    inbox::{Inbox, Place},
    program::{self, Asked, End, Program, Variables},
    settings::Settings,
    terminal::{self, Size},
};

/// The one subsystem there is.
pub const SFTP: &str = "sftp";

const VARIABLES_MAX: usize = 256;
const VARIABLE_BYTES_MAX: usize = 64 * 1024;
const OUTPUT_BYTES: usize = 32 * 1024;
/// How long a terminal may stay silent after its program has ended before it is closed: something else may hold it.
const TERMINAL_SILENCE: Duration = Duration::from_millis(100);
/// What a program that cannot be started "exits" with.
const CANNOT_START: u32 = 255;
const STDERR: u32 = 1;

type Writer = Arc<ChannelWriteHalf<Msg>>;

pub async fn serve(channel: Channel<Msg>, client: Handle, settings: Arc<Settings>) {
    let (requests, writer) = channel.split();
    let (mut requests, writer) = (Inbox::of(requests), Arc::new(writer));
    let mut wishes =
        Wishes { variables: program::variables(settings.inherited_environment()), terminal: None };
    let Some(asked) = wishes.gather(&mut requests).await else {
        return;
    };
    settings.log.debug("session.asked", json!({ "for": format!("{asked:?}") }));
    match program::start(&asked, &wishes.variables, wishes.terminal.as_ref()) {
        Ok(program) => run(program, requests, writer, client).await,
        Err(error) => {
            settings.log.error("session.failed-to-start", &error);
            let said = format!("cannot start {}: {error}\r\n", name(&asked));
            // The client may have left; then there is nobody to tell.
            let _ = writer.extended_data_bytes(STDERR, said.into_bytes()).await;
            close(&writer, &client, End::Exited(CANNOT_START)).await;
        }
    }
}

fn name(asked: &Asked) -> &str {
    match asked {
        Asked::Shell => "a shell",
        Asked::Command(command) => command,
        Asked::Sftp => SFTP,
    }
}

/// What a client asks for before its program starts.
struct Wishes {
    variables: Variables,
    terminal: Option<terminal::Request>,
}

impl Wishes {
    /// Until a program is asked for; `None` when the client leaves before.
    async fn gather(&mut self, requests: &mut Inbox) -> Option<Asked> {
        loop {
            match requests.next().await?.0 {
                ChannelMsg::SetEnv { variable_name, variable_value, .. } => {
                    self.set(variable_name, variable_value)
                }
                ChannelMsg::RequestPty {
                    term,
                    col_width,
                    row_height,
                    pix_width,
                    pix_height,
                    terminal_modes,
                    ..
                } => {
                    self.set("TERM".to_owned(), term);
                    self.terminal = Some(terminal::Request {
                        size: size(col_width, row_height, pix_width, pix_height),
                        modes: terminal_modes,
                    });
                }
                ChannelMsg::WindowChange { col_width, row_height, pix_width, pix_height } => {
                    if let Some(terminal) = &mut self.terminal {
                        terminal.size = size(col_width, row_height, pix_width, pix_height);
                    }
                }
                ChannelMsg::RequestShell { .. } => return Some(Asked::Shell),
                ChannelMsg::Exec { command, .. } => {
                    return Some(Asked::Command(String::from_utf8_lossy(&command).into_owned()));
                }
                ChannelMsg::RequestSubsystem { name, .. } if name == SFTP => return Some(Asked::Sftp),
                ChannelMsg::Close => return None,
                _ => {}
            }
        }
    }

    fn set(&mut self, name: String, value: String) {
        let small = name.len() + value.len() <= VARIABLE_BYTES_MAX;
        if small && self.variables.len() < VARIABLES_MAX && program::may_set(&name, &value) {
            self.variables.insert(name, value);
        }
    }
}

fn size(columns: u32, rows: u32, width: u32, height: u32) -> Size {
    Size { columns, rows, width, height }
}

async fn run(program: Program, mut requests: Inbox, writer: Writer, client: Handle) {
    let Program { input, output, errors, end, group, terminal } = program;
    // As much as the inbox has room for.
    let (to_program, pieces) = mpsc::unbounded_channel();
    let mut to_program = Some(to_program);
    let feeding = tokio::spawn(feed(input, pieces));
    let on_terminal = terminal.is_some();
    let mut finishing = tokio::spawn(async move {
        let end = match (errors, on_terminal) {
            (Some(errors), _) => {
                let pumped =
                    async { tokio::join!(pump(output, &writer, None), pump(errors, &writer, Some(STDERR))) };
                tokio::join!(end, pumped).0
            }
            (None, true) => end_of_terminal(end, output, &writer).await,
            (None, false) => tokio::join!(end, pump(output, &writer, None)).0,
        };
        close(&writer, &client, end).await;
    });
    let finished = loop {
        let request = tokio::select! {
            request = requests.next() => request,
            _ = &mut finishing => break true,
        };
        let Some((request, place)) = request else { break false };
        match request {
            // An error means that the program reads no more; what is sent to it then goes nowhere.
            ChannelMsg::Data { data } => {
                if let Some(to_program) = &to_program {
                    let _ = to_program.send((data, place));
                }
            }
            ChannelMsg::Eof => to_program = None,
            ChannelMsg::WindowChange { col_width, row_height, pix_width, pix_height } => {
                if let Some(terminal) = &terminal {
                    // Only a terminal that is being closed cannot be resized.
                    let _ = terminal.resize(size(col_width, row_height, pix_width, pix_height));
                }
            }
            ChannelMsg::Signal { signal } => send_signal(group, &signal),
            ChannelMsg::Close => break false,
            _ => {}
        }
    };
    stop(feeding).await;
    if !finished {
        stop(finishing).await;
    }
}

/// Ends a task and waits until it has dropped what it held.
async fn stop(task: JoinHandle<()>) {
    task.abort();
    // "Cancelled" is what is wanted here, and "finished" as good.
    let _ = task.await;
}

async fn feed(
    mut input: Box<dyn AsyncWrite + Send + Unpin>,
    mut pieces: mpsc::UnboundedReceiver<(Bytes, Place)>,
) {
    while let Some((piece, _place)) = pieces.recv().await {
        // A program that reads no more is no error: its end tells the rest.
        if input.write_all(&piece).await.is_err() {
            return;
        }
    }
    let _ = input.shutdown().await;
}

/// Carries output to the client until it ends or the client is gone.
async fn pump(mut from: impl AsyncRead + Unpin, writer: &Writer, stream: Option<u32>) {
    let mut buffer = vec![0; OUTPUT_BYTES];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        if send(writer, stream, &buffer[..length]).await.is_err() {
            return;
        }
    }
}

async fn send(writer: &Writer, stream: Option<u32>, data: &[u8]) -> Result<(), russh::Error> {
    let data = Bytes::copy_from_slice(data);
    match stream {
        None => writer.data_bytes(data).await,
        Some(stream) => writer.extended_data_bytes(stream, data).await,
    }
}

/// A terminal ends with its leader: what is still in it is read, but programs left behind on it are not waited for.
async fn end_of_terminal(
    end: impl Future<Output = End>,
    mut output: impl AsyncRead + Unpin,
    writer: &Writer,
) -> End {
    let mut end = std::pin::pin!(end);
    let mut ended = None;
    let mut buffer = vec![0; OUTPUT_BYTES];
    loop {
        let silence = tokio::time::sleep(TERMINAL_SILENCE);
        let read = tokio::select! {
            read = output.read(&mut buffer) => read,
            end = &mut end, if ended.is_none() => {
                ended = Some(end);
                continue;
            }
            () = silence, if ended.is_some() => break,
        };
        let Ok(length @ 1..) = read else { break };
        if send(writer, None, &buffer[..length]).await.is_err() {
            break;
        }
    }
    match ended {
        Some(end) => end,
        None => end.await,
    }
}

/// Tells how it ended, and closes the channel. A client that has left hears nothing of it.
async fn close(writer: &Writer, client: &Handle, end: End) {
    let _ = match end {
        End::Exited(code) => writer.exit_status(code).await.map_err(drop),
        End::Killed { signal, core_dumped } => {
            client
                .exit_signal_request(
                    writer.id(),
                    signal_name(signal),
                    core_dumped,
                    String::new(),
                    String::new(),
                )
                .await
        }
    };
    let _ = writer.eof().await;
    let _ = writer.close().await;
}

fn send_signal(group: Option<Pid>, signal: &Sig) {
    if let (Some(group), Some(signal)) = (group, signal_of(signal)) {
        // The group may be gone a moment before its end is noticed.
        let _ = kill_process_group(group, signal);
    }
}

fn signal_of(name: &Sig) -> Option<Signal> {
    Some(match name {
        Sig::ABRT => Signal::ABORT,
        Sig::ALRM => Signal::ALARM,
        Sig::FPE => Signal::FPE,
        Sig::HUP => Signal::HUP,
        Sig::ILL => Signal::ILL,
        Sig::INT => Signal::INT,
        Sig::KILL => Signal::KILL,
        Sig::PIPE => Signal::PIPE,
        Sig::QUIT => Signal::QUIT,
        Sig::SEGV => Signal::SEGV,
        Sig::TERM => Signal::TERM,
        Sig::USR1 => Signal::USR1,
        Sig::Custom(name) if name == "USR2" => Signal::USR2,
        Sig::Custom(_) => return None,
    })
}

fn signal_name(number: i32) -> Sig {
    match Signal::from_named_raw(number) {
        Some(Signal::ABORT) => Sig::ABRT,
        Some(Signal::ALARM) => Sig::ALRM,
        Some(Signal::FPE) => Sig::FPE,
        Some(Signal::HUP) => Sig::HUP,
        Some(Signal::ILL) => Sig::ILL,
        Some(Signal::INT) => Sig::INT,
        Some(Signal::KILL) => Sig::KILL,
        Some(Signal::PIPE) => Sig::PIPE,
        Some(Signal::QUIT) => Sig::QUIT,
        Some(Signal::SEGV) => Sig::SEGV,
        Some(Signal::TERM) => Sig::TERM,
        Some(Signal::USR1) => Sig::USR1,
        Some(Signal::USR2) => Sig::Custom("USR2".to_owned()),
        // The protocol names no others; a name of one's own carries a domain.
        _ => Sig::Custom(format!("{number}@diego")),
    }
}
