//! `bbs`: the bulletin board, with its database file, over HTTP.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use bbs_client::{LocketClient, watch_cells};
use bbs_models::{CellPresence, LockKind};
use brain_client::AuctioneerClient;
use clap::Args;
use diego_base::serve::Listen;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::flags::{Health, Log, Tls};
use super::{flags, health, locket};
use crate::dev::Parts;

/// Between two questions to Locket about who is there.
const CELLS_INTERVAL: Duration = Duration::from_secs(1);

#[derive(Args)]
pub struct Flags {
    #[arg(long, default_value = "127.0.0.1:8889")]
    listen: SocketAddr,
    /// Made if it is not there; one process at a time.
    #[arg(long, default_value = "/var/lib/diego/bbs.sqlite")]
    database: PathBuf,
    #[arg(long, default_value = "http://127.0.0.1:9016")]
    auctioneer_url: String,
    /// The Locket that knows the cells, as `HOST:PORT`. Without it the BBS is a Locket too, see --locket-listen.
    #[arg(long, conflicts_with_all = ["locket_listen", "locket_database"])]
    locket: Option<String>,
    /// Where cells and others find the Locket inside this process.
    #[arg(long, default_value = "127.0.0.1:8891")]
    locket_listen: SocketAddr,
    /// Where that Locket remembers its locks.
    #[arg(long, default_value = "/var/lib/diego/locket.sqlite")]
    locket_database: PathBuf,
    #[command(flatten)]
    health: Health,
    #[command(flatten)]
    tls: Tls,
    #[command(flatten)]
    pub log: Log,
}

pub async fn run(flags: Flags, shutdown: CancellationToken) -> Result<()> {
    let mut parts = Parts::default();
    if let Some(address) = flags.health.health_address {
        parts.start("health answer", health::run(address, parts.shutdown()));
    }
    let cells = tokio::select! {
        cells = cells(&flags, &mut parts) => cells?,
        () = shutdown.cancelled() => return Ok(()),
    };
    let http = diego_base::http::client(&flags.tls.client()).context("cannot make a client for cells")?;
    let auctioneer = Arc::new(AuctioneerClient::new(http.clone(), &flags.auctioneer_url));
    let mut config = bbs::Config::new(Listen::Tcp(flags.listen), flags.database, auctioneer, cells)?;
    config.tls = flags.tls.server()?;
    config.reps = Arc::new(bbs::RepClients(http));
    parts.start("BBS", bbs::run(config, parts.shutdown()));
    super::together(parts, shutdown).await
}

/// From the Locket that was named, or from the one started here.
async fn cells(flags: &Flags, parts: &mut Parts) -> Result<watch::Receiver<Vec<CellPresence>>> {
    let Some(address) = &flags.locket else { return start_locket(flags, parts).await };
    let locket = flags::locket(address, &flags.tls.client())?;
    let (known, cells) = watch::channel(first_cells(&locket).await);
    parts.start_endless("watch for cells", watch_cells(locket, CELLS_INTERVAL, known, parts.shutdown()));
    Ok(cells)
}

/// Nothing is known of the cells before Locket has answered once, and a BBS that took that for their absence would
/// start everything they run anew.
async fn first_cells(locket: &LocketClient) -> Vec<CellPresence> {
    loop {
        match locket.fetch_all(LockKind::Presence).await {
            Ok(presences) => return presences.iter().filter_map(CellPresence::of_resource).collect(),
            Err(error) => tracing::info!(target: "bbs", %error, "waiting for Locket"),
        }
        tokio::time::sleep(CELLS_INTERVAL).await;
    }
}

async fn start_locket(flags: &Flags, parts: &mut Parts) -> Result<watch::Receiver<Vec<CellPresence>>> {
    let locket = locket::Opened::open(flags.locket_database.clone()).await?;
    let cells = locket.cells();
    let config = bbs::locket::Config { listen: Listen::Tcp(flags.locket_listen), tls: flags.tls.server()? };
    parts.start("Locket", locket.serve(config, parts.shutdown()));
    Ok(cells)
}
