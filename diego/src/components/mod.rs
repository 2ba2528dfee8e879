//! One file a component: each has its flags, turns them into the component's configuration, and runs the one function
//! that is the component until the process is told to stop.
//!
//! They speak to one another over the network only, so that each can run on a machine of its own.

mod auctioneer;
mod bbs;
mod cell;
pub mod deployed;
mod disk;
mod edge;
mod encryption;
mod file_server;
mod flags;
mod forward;
mod garden_check;
pub mod gdn;
mod health;
mod locket;
mod metrics;
mod registry_cache;
mod rep;
mod report;
mod route_emitter;
mod ssh_proxy;
mod tuning;

pub use flags::Registries;

use anyhow::Result;
use clap::Subcommand;
use diego_base::telemetry::{self, LevelSwitch};
use flags::Log;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::dev::Parts;

/// By the names of their subcommands; `cli` knows the names they are started under.
#[derive(Subcommand)]
pub enum Component {
    /// Keep what is desired and what is actual, and see to it that they become the same.
    Bbs(Box<bbs::Flags>),
    /// Keep locks, and the presences by which cells say that they are there.
    Locket(Box<locket::Flags>),
    /// Place work on cells.
    Auctioneer(Box<auctioneer::Flags>),
    /// Speak for a cell: take work, run it in garden's containers, tell the BBS what became of it.
    Rep(Box<rep::Flags>),
    /// Be a cell: a rep and its garden in one process.
    Cell(Box<cell::Flags>),
    /// Make containers, behind the Garden API.
    Garden(Box<gdn::ServerFlags>),
    /// The same under its established name.
    #[command(hide = true)]
    Gdn(Box<gdn::Flags>),
    /// Tell routers over NATS where instances answer.
    RouteEmitter(Box<route_emitter::Flags>),
    /// Lead ssh clients to the daemons inside instances.
    SshProxy(Box<ssh_proxy::Flags>),
    /// Serve static files.
    FileServer(Box<file_server::Flags>),
    /// Keep images close: a registry that fetches from others.
    RegistryCache(Box<registry_cache::Flags>),
}

/// Until SIGTERM or SIGINT, or until the component cannot go on.
pub async fn run(component: Component) -> Result<()> {
    // Garden's log has forms of its own.
    let (shutdown, levels) = match component.log() {
        Some(log) => begin(log)?,
        None => Default::default(),
    };
    match component {
        Component::Bbs(flags) => bbs::run(*flags, levels, shutdown).await,
        Component::Locket(flags) => locket::run(*flags, levels, shutdown).await,
        Component::Auctioneer(flags) => auctioneer::run(*flags, levels, shutdown).await,
        Component::Rep(flags) => rep::run(*flags, shutdown).await,
        Component::Cell(flags) => cell::run(*flags).await,
        Component::Garden(flags) => gdn::run(gdn::Name::Garden, *flags).await,
        Component::Gdn(flags) => gdn::run_gdn(*flags).await,
        Component::RouteEmitter(flags) => route_emitter::run(*flags, shutdown).await,
        Component::SshProxy(flags) => ssh_proxy::run(*flags, shutdown).await,
        Component::FileServer(flags) => file_server::run(*flags, shutdown).await,
        Component::RegistryCache(flags) => registry_cache::run(*flags, shutdown).await,
    }
}

impl Component {
    fn log(&self) -> Option<&Log> {
        Some(match self {
            Component::Bbs(flags) => &flags.log,
            Component::Locket(flags) => &flags.log,
            Component::Auctioneer(flags) => &flags.log,
            Component::Rep(flags) => &flags.log,
            Component::Cell(_) | Component::Garden(_) | Component::Gdn(_) => return None,
            Component::RouteEmitter(flags) => &flags.log,
            Component::SshProxy(flags) => &flags.log,
            Component::FileServer(flags) => &flags.log,
            Component::RegistryCache(flags) => &flags.log,
        })
    }
}

/// Logs go to stdout, as the process supervisors of existing deployments expect.
fn begin(log: &Log) -> Result<(CancellationToken, LevelSwitch)> {
    let levels = telemetry::init_styled(&log.log_level, Box::new(std::io::stdout()), log.style());
    Ok((until_told_to_stop()?, levels))
}

fn until_told_to_stop() -> Result<CancellationToken> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let shutdown = CancellationToken::new();
    let told = shutdown.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        told.cancel();
    });
    Ok(shutdown)
}

/// Several parts that make one process: until told to stop, or until one of them ends by itself.
async fn together(mut parts: Parts, shutdown: CancellationToken) -> Result<()> {
    let lived = tokio::select! {
        () = shutdown.cancelled() => Ok(()),
        error = parts.first_to_end() => Err(error),
    };
    lived.and(parts.stop().await)
}
