//! `diego-sshd`: the ssh daemon of one container.

use std::process::ExitCode;

use lifecycle::sshd::{self, SESSION_LEADER, Settings};
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
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let flags = sshd::flags().parse_or_exit();
    sshd::ask_again_without_keys(&flags)?;
    let settings = Settings::new(&flags)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let shutdown = CancellationToken::new();
        let stop = shutdown.clone();
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        let mut interrupt = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())?;
        tokio::spawn(async move {
            tokio::select! { _ = terminate.recv() => {} _ = interrupt.recv() => {} }
            stop.cancel();
        });
        Ok(sshd::serve(settings, shutdown).await?)
    })
}
