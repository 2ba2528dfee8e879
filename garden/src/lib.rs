//! The container runtime: makes containers and runs processes in them, behind the Garden API.
//!
//! It knows no LRP, no Task and no action; images come from `rootfs`, everything of the kernel from `garden-sys`.
//! Use it in the same process ([`Gardener`]) or as a server ([`run`]).

mod capacity;
pub mod containerizer;
pub mod debug;
pub mod depot;
pub mod gardener;
pub mod http;
mod milestone;
pub mod networker;
pub mod plugins;
mod properties;
mod relay;
mod socket;

use std::sync::Arc;

use diego_base::clock::SystemClock;
use diego_base::serve::{self, Listen, Listener};
use gardener::chain;
pub use gardener::{Gardener, StartError};
use tokio_util::sync::CancellationToken;

#[derive(Debug)]
pub struct Config {
    pub listen: Listen,
    pub debug: Option<debug::Config>,
    pub gardener: gardener::Config,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot start garden")]
    Start(#[from] StartError),
    #[error(transparent)]
    Listen(#[from] serve::Error),
    #[error("{0} containers could not be destroyed")]
    Left(i64),
}

/// A garden behind its API, until `shutdown`. It listens only once it knows what an earlier one left.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<(), Error> {
    let gardener = Gardener::start(config.gardener, Arc::new(SystemClock), shutdown.clone()).await?;
    serve(config.listen, config.debug, gardener.clone(), shutdown).await?;
    gardener.shut_down().await;
    Ok(())
}

/// A garden that others use in this process, behind its API too, until `shutdown`.
pub async fn serve(
    listen: Listen,
    debug: Option<debug::Config>,
    gardener: Gardener,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let listener = Listener::bind(listen).await?;
    if let Some(debug) = debug {
        debug::serve(debug, gardener.clone(), shutdown.clone()).await;
    }
    let (network, address) = match &listener {
        Listener::Unix(_, path) => {
            open_to_all(path);
            ("unix", path.display().to_string())
        }
        Listener::Tcp(tcp) => ("tcp", tcp.local_addr().map(|addr| addr.to_string()).unwrap_or_default()),
    };
    tracing::info!(network, addr = address, "started");
    http::serve(listener, Arc::new(gardener), shutdown).await;
    Ok(())
}

/// Destroys every container that an earlier garden with the same configuration has left, and what it holds of the host.
pub async fn clean_up(config: gardener::Config, shutdown: CancellationToken) -> Result<(), Error> {
    let config = gardener::Config {
        destroy_containers_on_start: true,
        destroy_containers_on_stop: true,
        warm_places: 0,
        ..config
    };
    let gardener = Gardener::start(config, Arc::new(SystemClock), shutdown).await?;
    gardener.shut_down().await;
    match gardener.counts() {
        (0, _) => Ok(()),
        (left, _) => Err(Error::Left(left)),
    }
}

/// Garden and its clients are different users in existing deployments; who may reach the directory may reach garden.
fn open_to_all(socket: &std::path::Path) {
    use std::os::unix::fs::PermissionsExt;
    if let Err(error) = std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o777)) {
        tracing::warn!(path = %socket.display(), %error, "cannot open the socket to other users");
    }
}
