//! `auctioneer`: places work on cells, alone or as the one of several that holds the lock.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use clap::Args;
use diego_base::serve::Listen;
use tokio_util::sync::CancellationToken;

use super::flags::{self, Bbs, Log, Tls};

#[derive(Args)]
pub struct Flags {
    #[arg(long, default_value = "127.0.0.1:9016")]
    listen: SocketAddr,
    #[command(flatten)]
    bbs: Bbs,
    /// The Locket whose lock says which of several auctioneers works, as `HOST:PORT`. Without it there is only this one.
    #[arg(long)]
    locket: Option<String>,
    #[command(flatten)]
    tls: Tls,
    #[command(flatten)]
    pub log: Log,
}

pub async fn run(flags: Flags, shutdown: CancellationToken) -> Result<()> {
    let client = flags.tls.client();
    let http = diego_base::http::client(&client).context("cannot make a client for cells")?;
    let mut config =
        brain::auctioneer::Config::new(Listen::Tcp(flags.listen), flags.bbs.client(&client)?, http);
    config.tls = flags.tls.server()?;
    config.locket = flags.locket.map(|address| flags::locket(&address, &client)).transpose()?;
    Ok(brain::auctioneer::run(config, shutdown).await?)
}
