//! `auctioneer`: places work on cells, alone or as the one of several that holds the lock.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use brain::auctioneer::{Config, Weights};
use clap::Args;
use diego_base::http::ClientConfig;
use diego_base::serve::Listen;
use diego_base::telemetry::LevelSwitch;
use tokio_util::sync::CancellationToken;

use super::flags::{Bbs, BbsTls, Locket, Log, RepTls, Tls, address};
use super::report::{Figures, Report};
use crate::dev::Parts;
use crate::duration::parse;

#[derive(Args)]
pub struct Flags {
    #[arg(long, default_value = "127.0.0.1:9016", value_parser = address)]
    listen: SocketAddr,
    #[command(flatten)]
    bbs: Bbs,
    #[command(flatten)]
    locket: Locket,
    #[command(flatten)]
    auction: Auction,
    #[command(flatten)]
    tls: Tls,
    #[command(flatten)]
    bbs_tls: BbsTls,
    #[command(flatten)]
    rep_tls: RepTls,
    #[command(flatten)]
    report: Report,
    #[command(flatten)]
    pub log: Log,
}

/// What cells are chosen by.
#[derive(Args)]
#[command(next_help_heading = "Auction")]
struct Auction {
    /// Added to a cell's score, which the lowest of wins, for each container that it is starting.
    #[arg(long, default_value_t = Weights::default().starting_container)]
    starting_container_weight: f64,
    /// Above 0, cells are filled in the order of their index; added for each place in that order.
    #[arg(long, default_value_t = Weights::default().bin_pack_first_fit)]
    bin_pack_first_fit_weight: f64,
    /// Containers that may be starting on all cells together; 0: as many as there are.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(i32).range(0..))]
    starting_container_count_maximum: i32,
    /// A cell that takes longer to tell its state is left out of the auction.
    #[arg(long, default_value = "1s", value_parser = parse)]
    cell_state_timeout: Duration,
    /// For all else that is asked of cells and the BBS.
    #[arg(long, default_value = "10s", value_parser = parse)]
    communication_timeout: Duration,
}

pub async fn run(flags: Flags, levels: LevelSwitch, shutdown: CancellationToken) -> Result<()> {
    let (mut parts, figures) = (Parts::default(), Figures::default());
    flags.report.start("auctioneer", &figures, levels, &mut parts)?;
    let config = config(flags)?;
    if let Some(lock) = &config.lock {
        let following = figures.follow_lock(lock.held.subscribe(), parts.shutdown());
        parts.start_endless("watch of the lock", following);
    }
    parts.start("auctioneer", brain::auctioneer::run(config, parts.shutdown()));
    super::together(parts, shutdown).await
}

fn config(flags: Flags) -> Result<Config> {
    let Auction { starting_container_weight, bin_pack_first_fit_weight, .. } = flags.auction;
    let usual = ClientConfig { timeout: Some(flags.auction.communication_timeout), ..flags.tls.client() };
    let bbs = flags.bbs.client(&flags.bbs_tls.config(&usual))?;
    let http =
        diego_base::http::client(&flags.rep_tls.config(&usual)).context("cannot make a client for cells")?;
    let mut config = Config::new(Listen::Tcp(flags.listen), bbs, http);
    config.tls = flags.tls.server()?;
    config.weights = Weights {
        starting_container: starting_container_weight,
        bin_pack_first_fit: bin_pack_first_fit_weight,
        starting_containers_max: flags.auction.starting_container_count_maximum,
    };
    config.cell_state_timeout = flags.auction.cell_state_timeout;
    config.lock = flags.locket.lock(&usual)?;
    Ok(config)
}
