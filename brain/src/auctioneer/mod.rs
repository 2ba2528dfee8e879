//! Places work on cells: collects the auctions that the BBS asks for, fetches the state of every cell, lets the pure
//! [`auction`] decide, gives each cell its work and tells the BBS what could not be placed.
//!
//! Auctions that come in while one is held make the next batch. What is lost when the auctioneer dies is asked for
//! again by the BBS's convergence.

mod batch;
mod cells;
mod hold;
mod http;

use std::sync::Arc;
use std::time::Duration;

use auction::Weights;
use batch::Batch;
use bbs_client::BbsClient;
use diego_base::serve::{self, Listen, Listener, serve};
use diego_base::tls::ServerTls;
use tokio_util::sync::CancellationToken;

/// After the BBS could not be asked for its cells.
const RETRY_AFTER: Duration = Duration::from_secs(1);

pub struct Config {
    pub listen: Listen,
    pub tls: Option<ServerTls>,
    pub bbs: BbsClient,
    /// For requests to reps.
    pub http: reqwest::Client,
    pub weights: Weights,
    /// A cell that takes longer to tell its state is left out of the auction.
    pub cell_state_timeout: Duration,
}

impl Config {
    /// The defaults of an auctioneer.
    pub fn new(listen: Listen, bbs: BbsClient, http: reqwest::Client) -> Self {
        let cell_state_timeout = rep_client::STATE_TIMEOUT;
        Config { listen, tls: None, bbs, http, weights: Weights::default(), cell_state_timeout }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot serve the auctioneer")]
    Serve(#[from] serve::Error),
}

pub async fn run(config: Config, shutdown: CancellationToken) -> Result<(), Error> {
    let Config { listen, tls, bbs, http, weights, cell_state_timeout } = config;
    let listener = Listener::bind(listen).await?;
    let batch = Arc::new(Batch::default());
    let auctioneer = hold::Auctioneer { bbs, http, weights, cell_state_timeout };
    let server = serve(listener, http::router(batch.clone()), tls, shutdown.clone());
    tracing::info!("auctioneer.started");
    tokio::join!(server, hold_auctions(&auctioneer, &batch, &shutdown));
    tracing::info!("auctioneer.exited");
    Ok(())
}

/// One auction at a time; one under way is brought to its end.
async fn hold_auctions(auctioneer: &hold::Auctioneer, batch: &Batch, shutdown: &CancellationToken) {
    loop {
        tokio::select! {
            () = batch.filled() => {}
            () = shutdown.cancelled() => return,
        }
        while let Err(error) = auctioneer.hold(batch).await {
            tracing::error!(%error, "failed-to-fetch-reps");
            tokio::select! {
                () = tokio::time::sleep(RETRY_AFTER) => {}
                () = shutdown.cancelled() => return,
            }
        }
    }
}
