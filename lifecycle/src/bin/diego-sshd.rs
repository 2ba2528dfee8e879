//! `diego-sshd`: the ssh daemon of one container.

use std::{ffi::OsString, process::ExitCode};

use lifecycle::{
    flags::Parsed,
    sshd::{self, SERVE_ONE, SESSION_LEADER, Settings, WAIT},
};
use tokio_util::sync::CancellationToken;

// musl's own allocator takes one lock and is slow with the pieces of data a transfer is made of.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1).peekable();
    if arguments.next_if(|argument| argument == SESSION_LEADER).is_some() {
        let error = sshd::become_session_leader(arguments);
        eprintln!("cannot start a session: {error}");
        return ExitCode::from(127);
    }
    let ended = if arguments.next_if(|argument| argument == SERVE_ONE).is_some() {
        serve_one(arguments)
    } else if arguments.next_if(|argument| argument == WAIT).is_some() {
        wait(arguments)
    } else {
        start()
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

fn parsed(arguments: impl Iterator<Item = OsString>) -> anyhow::Result<Parsed> {
    Ok(sshd::flags().parse(arguments.map(|argument| argument.to_string_lossy().into_owned()))?)
}

fn serve_one(arguments: impl Iterator<Item = OsString>) -> anyhow::Result<()> {
    let settings = Settings::new(&parsed(arguments)?)?;
    Ok(runtime()?.block_on(sshd::serve_one(settings))?)
}

/// Whatever is wrong with the flags is told here.
fn start() -> anyhow::Result<()> {
    let flags = sshd::flags().parse_or_exit();
    Err(sshd::start_waiting(&flags, &Settings::new(&flags)?).into())
}

fn wait(arguments: impl Iterator<Item = OsString>) -> anyhow::Result<()> {
    let flags = parsed(arguments)?;
    let (address, log) = sshd::waiting(&flags)?;
    runtime()?.block_on(async {
        let shutdown = CancellationToken::new();
        let stop = shutdown.clone();
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        let mut interrupt = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())?;
        tokio::spawn(async move {
            tokio::select! { _ = terminate.recv() => {} _ = interrupt.recv() => {} }
            stop.cancel();
        });
        Ok(sshd::serve(&address, log, sshd::kept(&flags), shutdown).await?)
    })
}
