//! What runs in a session: a shell, a command, or one of the two file-transfer programs that are built in. All have an
//! input, outputs and an end, so that a session need not know which it is.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    io,
    os::unix::{fs::PermissionsExt, process::ExitStatusExt},
    path::{Path, PathBuf},
    pin::Pin,
    process::{ExitStatus, Stdio},
};

use rustix::process::Pid;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    process::Command,
};

use super::{
    scp, sftp,
    terminal::{self, SESSION_LEADER, Terminal},
};
use crate::words;

/// What a client asked for.
#[derive(Clone, Debug, PartialEq)]
pub enum Asked {
    Shell,
    Command(String),
    Sftp,
}

/// A program that runs.
pub struct Program {
    pub input: Box<dyn AsyncWrite + Send + Unpin>,
    pub output: Box<dyn AsyncRead + Send + Unpin>,
    pub errors: Option<Box<dyn AsyncRead + Send + Unpin>>,
    pub end: Pin<Box<dyn Future<Output = End> + Send>>,
    /// Its process group, if it is a process.
    pub group: Option<Pid>,
    pub terminal: Option<Terminal>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum End {
    Exited(u32),
    Killed { signal: i32, core_dumped: bool },
}

pub type Variables = BTreeMap<String, String>;

/// Buffered between a built-in program and its channel.
const BUILT_IN_BYTES: usize = 256 * 1024;
const SHELLS: [&str; 3] = ["/bin/bash", "/usr/local/bin/bash", "/bin/sh"];

/// Starts what was asked for.
pub fn start(
    asked: &Asked,
    variables: &Variables,
    terminal: Option<&terminal::Request>,
) -> io::Result<Program> {
    match asked {
        Asked::Sftp => Ok(sftp()),
        Asked::Command(command) => match scp::parse(command) {
            Some(copy) => Ok(scp(copy)),
            None => process(words_of(Some(command), variables)?, variables, terminal),
        },
        Asked::Shell => process(words_of(None, variables)?, variables, terminal),
    }
}

fn process(
    words: Vec<OsString>,
    variables: &Variables,
    terminal: Option<&terminal::Request>,
) -> io::Result<Program> {
    match terminal {
        None => piped(&words, variables),
        Some(request) => on_terminal(words, variables, request),
    }
}

/// The shell with its arguments, or, in a container without a shell, the command itself if it is plain enough.
fn words_of(command: Option<&str>, variables: &Variables) -> io::Result<Vec<OsString>> {
    let path = variables.get("PATH").map_or("", String::as_str);
    if let Some(shell) = find_shell(path) {
        let mut words = vec![shell.into_os_string()];
        words.extend(command.iter().flat_map(|command| ["-c".into(), OsString::from(command)]));
        return Ok(words);
    }
    let plain = command.and_then(words::split).filter(|split| !split.needs_shell && !split.words.is_empty());
    match plain {
        Some(split) => Ok(split.words.into_iter().map(OsString::from).collect()),
        None => Err(io::Error::new(io::ErrorKind::NotFound, "the container has no shell")),
    }
}

fn find_shell(path: &str) -> Option<PathBuf> {
    let is_program = |file: &PathBuf| {
        file.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    let in_path = ["bash", "sh"]
        .into_iter()
        .flat_map(|name| std::env::split_paths(path).map(move |directory| directory.join(name)));
    let well_known = SHELLS.iter().map(PathBuf::from);
    well_known.chain(in_path).find(is_program)
}

fn command(words: &[OsString], variables: &Variables) -> Command {
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).env_clear().envs(variables);
    command
}

/// A process with pipes, in a group of its own so that signals reach all of it.
fn piped(words: &[OsString], variables: &Variables) -> io::Result<Program> {
    let mut child = command(words, variables)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()?;
    let missing = || io::Error::from(io::ErrorKind::BrokenPipe);
    Ok(Program {
        input: Box::new(child.stdin.take().ok_or_else(missing)?),
        output: Box::new(child.stdout.take().ok_or_else(missing)?),
        errors: Some(Box::new(child.stderr.take().ok_or_else(missing)?)),
        group: group(&child),
        end: Box::pin(async move { end_of(child.wait().await) }),
        terminal: None,
    })
}

/// A process that leads a session on a terminal of its own.
fn on_terminal(
    words: Vec<OsString>,
    variables: &Variables,
    request: &terminal::Request,
) -> io::Result<Program> {
    let (terminal, peer) = terminal::open(request)?;
    let mut with_leader = vec![OsString::from("/proc/self/exe"), SESSION_LEADER.into()];
    with_leader.extend(words);
    let mut leader = command(&with_leader, variables);
    leader.stdin(peer.try_clone()?).stdout(peer.try_clone()?).stderr(peer);
    let mut child = leader.spawn()?;
    // The command holds our copies of the program's side; while they are open the terminal never ends.
    drop(leader);
    Ok(Program {
        input: Box::new(terminal.clone()),
        output: Box::new(terminal.clone()),
        errors: None,
        group: group(&child),
        end: Box::pin(async move { end_of(child.wait().await) }),
        terminal: Some(terminal),
    })
}

fn group(child: &tokio::process::Child) -> Option<Pid> {
    child.id().and_then(|id| Pid::from_raw(id as i32))
}

fn end_of(waited: io::Result<ExitStatus>) -> End {
    let Ok(status) = waited else {
        return End::Exited(255);
    };
    match (status.code(), status.signal()) {
        (Some(code), _) => End::Exited(code as u32),
        (None, signal) => {
            End::Killed { signal: signal.unwrap_or_default(), core_dumped: status.core_dumped() }
        }
    }
}

fn sftp() -> Program {
    let (ours, its) = tokio::io::duplex(BUILT_IN_BYTES);
    let (output, input) = tokio::io::split(ours);
    let served = sftp::serve(its);
    Program {
        input: Box::new(input),
        output: Box::new(output),
        errors: None,
        end: Box::pin(async move {
            served.await;
            End::Exited(0)
        }),
        group: None,
        terminal: None,
    }
}

/// Copies in a thread that may block, as file systems do.
fn scp(copy: scp::Copy) -> Program {
    let (ours, its) = tokio::io::duplex(BUILT_IN_BYTES);
    let (errors, mut complaints) = tokio::io::duplex(BUILT_IN_BYTES);
    let (output, input) = tokio::io::split(ours);
    let (from, to) = tokio::io::split(its);
    let copying = tokio::task::spawn_blocking(move || {
        let from = tokio_util::io::SyncIoBridge::new(from);
        let mut to = tokio_util::io::SyncIoBridge::new(to);
        let outcome = copy.run(io::BufReader::with_capacity(64 * 1024, from), &mut to);
        // The client may be gone already; then nobody reads what is said.
        let _ = to.shutdown();
        outcome
    });
    Program {
        input: Box::new(input),
        output: Box::new(output),
        errors: Some(Box::new(errors)),
        end: Box::pin(async move {
            let outcome = copying.await.unwrap_or_else(|error| Err(io::Error::other(error)));
            match outcome {
                Ok(code) => End::Exited(code),
                Err(error) => {
                    let said = format!("scp: {error}\n");
                    let _ = tokio::io::AsyncWriteExt::write_all(&mut complaints, said.as_bytes()).await;
                    End::Exited(1)
                }
            }
        }),
        group: None,
        terminal: None,
    }
}

/// The variables a session begins with; the client's own are added, HOME and USER stay the daemon's.
pub fn variables(inherited: Vec<(String, String)>) -> Variables {
    let mut variables = Variables::from([
        ("PATH".to_owned(), "/bin:/usr/bin".to_owned()),
        ("LANG".to_owned(), "en_US.UTF8".to_owned()),
    ]);
    variables.extend(inherited);
    for name in ["HOME", "USER"] {
        if let Ok(value) = std::env::var(name) {
            variables.insert(name.to_owned(), value);
        }
    }
    variables
}

/// Whether a client may set a variable at all.
pub fn may_set(name: &str, value: &str) -> bool {
    let plain = |text: &str| !text.contains('\0');
    !matches!(name, "" | "HOME" | "USER") && plain(name) && !name.contains('=') && plain(value)
}

/// The directory relative paths of the built-in programs start from.
pub fn home() -> PathBuf {
    std::env::var_os("HOME").map_or_else(|| Path::new("/").to_owned(), PathBuf::from)
}
