//! The cell's voice: takes work from auctions, turns container events into transitions of LRPs and Tasks at the BBS,
//! and empties the cell when it is told to. Runs no recipe itself: that is the executor's.

pub mod auction_cell;
mod containers;
pub mod evacuation;
pub mod harmonizer;
pub mod health;
pub mod http;
pub mod lrp;
mod occurrence;
pub mod presence;
pub mod recipe;
pub mod stacks;
pub mod tags;
pub mod task;
pub mod trace;
pub mod usage;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use auction_cell::AuctionCell;
pub use auction_cell::Identity;
use bbs_client::BbsClient;
use bbs_models::PreferredAddress;
pub use containers::{Containers, SharedContainers};
use diego_base::serve::{self, Listen, Listener, serve};
use diego_base::tls::ServerTls;
use evacuation::Evacuation;
use executor::Executor;
pub use occurrence::{Call, Occurrence, Witness};
pub use presence::{LocketPresences, PresenceTimes, Presences};
pub use stacks::{LayeringMode, Stacks};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub struct Config {
    pub identity: Identity,
    /// For the platform; what `identity.rep_url` leads to.
    pub listen: Listen,
    pub tls: Option<ServerTls>,
    /// For the machine's administrator; `None`: nobody.
    pub admin_listen: Option<Listen>,
    pub admin_tls: Option<ServerTls>,
    pub bbs: BbsClient,
    pub presences: Arc<dyn Presences>,
    /// Plain HTTP, for clients of the presence that know no `rep_url`.
    pub rep_address: String,
    pub layering_mode: LayeringMode,
    /// Which address of an instance routers are to use.
    pub preferred_address: PreferredAddress,
    pub intervals: harmonizer::Intervals,
    pub evacuation: evacuation::Times,
    pub usage_interval: Duration,
    /// Is told what happens.
    pub witness: Arc<dyn Witness>,
    /// `None`: garden is only asked whether it answers.
    pub garden_check: Option<health::Check>,
}

impl Config {
    /// The defaults of a cell.
    pub fn new(identity: Identity, listen: Listen, bbs: BbsClient, presences: Arc<dyn Presences>) -> Self {
        Config {
            rep_address: identity.rep_url.clone(),
            identity,
            listen,
            tls: None,
            admin_listen: None,
            admin_tls: None,
            bbs,
            presences,
            layering_mode: LayeringMode::default(),
            preferred_address: PreferredAddress::Host,
            intervals: harmonizer::Intervals::default(),
            evacuation: evacuation::Times::default(),
            usage_interval: Duration::from_secs(15),
            witness: Arc::new(()),
            garden_check: None,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot serve the rep")]
    Serve(#[from] serve::Error),
}

/// Until told to stop, or until an evacuation is over. Runs `executor` too, and stops it when nothing uses it any more;
/// the presence goes last. Whether containers, and with them the presence, stay for the next rep is the executor's
/// configuration; after an evacuation has begun none does.
pub async fn run(config: Config, executor: Executor, shutdown: CancellationToken) -> Result<(), Error> {
    let network = Listener::bind(config.listen).await?;
    let admin = match config.admin_listen {
        Some(listen) => Some(Listener::bind(listen).await?),
        None => None,
    };
    let presence = presence::of(&config.identity, &config.rep_address, executor.total_resources());
    let cell = Cell {
        identity: config.identity,
        bbs: config.bbs,
        executor: executor.clone(),
        evacuation: Evacuation::default(),
        usage: Arc::new(usage::Usage::default()),
        traces: trace::Traces::default(),
        stop: shutdown.child_token(),
        witness: config.witness,
    };
    let runs = executor.clone();
    let executor_runs = Part::start(|stop| async move { runs.run(stop).await });
    let presences = config.presences;
    let present = Part::start(|stop| async move { presences.keep(presence, stop).await });
    tracing::info!(cell_id = cell.identity.cell_id, "rep.started");
    tokio::join!(
        harmonizer::run(
            cell.surrounded(config.layering_mode, config.preferred_address),
            config.intervals,
            cell.stop.clone()
        ),
        serve(network, http::network_router(cell.api(), cell.witness.clone()), config.tls, cell.stop.clone()),
        cell.serve_admin(admin, config.admin_tls),
        cell.evacuate(config.evacuation),
        health::watch(&cell.executor, config.garden_check.as_ref(), &*cell.witness, &cell.stop),
        cell.usage.run(&cell.executor, config.usage_interval, &cell.stop),
    );
    executor_runs.stop("executor").await;
    match executor.leaves_containers() {
        true => present.abandon(),
        false => present.stop("presence").await,
    }
    tracing::info!(cell_id = cell.identity.cell_id, "rep.exited");
    Ok(())
}

/// What the parts of a rep share.
struct Cell {
    identity: Identity,
    bbs: BbsClient,
    executor: Executor,
    evacuation: Evacuation,
    usage: Arc<usage::Usage>,
    traces: trace::Traces,
    witness: Arc<dyn Witness>,
    stop: CancellationToken,
}

impl Cell {
    fn surrounded(
        &self,
        layering_mode: LayeringMode,
        preferred_address: PreferredAddress,
    ) -> harmonizer::Surrounded {
        harmonizer::Surrounded {
            cell_id: self.identity.cell_id.clone(),
            zone: self.identity.zone.clone(),
            preferred_address,
            recipes: recipe::Surroundings { stacks: self.identity.stacks.clone(), layering_mode },
            bbs: self.bbs.clone(),
            executor: self.containers(),
            evacuation: self.evacuation.clone(),
            traces: self.traces.clone(),
            replaced: Mutex::default(),
            witness: self.witness.clone(),
        }
    }

    fn containers(&self) -> SharedContainers {
        Arc::new(self.executor.clone())
    }

    fn api(&self) -> Arc<http::Api> {
        Arc::new(http::Api {
            cell_id: self.identity.cell_id.clone(),
            auction_cell: AuctionCell::new(
                self.identity.clone(),
                self.containers(),
                self.evacuation.clone(),
                self.traces.clone(),
            ),
            traces: self.traces.clone(),
            usage: self.usage.clone(),
            logs: self.executor.logs().clone(),
            executor: self.containers(),
        })
    }

    async fn serve_admin(&self, listener: Option<Listener>, tls: Option<ServerTls>) {
        if let Some(listener) = listener {
            serve(listener, http::admin_router(self.evacuation.clone()), tls, self.stop.clone()).await;
        }
    }

    async fn until_evacuated(&self, times: evacuation::Times) {
        let stranded =
            evacuation::run(&self.evacuation, times, &self.identity.cell_id, &self.bbs, &self.executor).await;
        if let Some(instances) = stranded {
            self.witness.saw(Occurrence::Stranded { instances });
        }
    }

    /// A cell that is empty has nothing left to do.
    async fn evacuate(&self, times: evacuation::Times) {
        tokio::select! {
            () = self.until_evacuated(times) => self.stop.cancel(),
            () = self.stop.cancelled() => {}
        }
    }
}

/// Something that outlives the rest of the rep, and is stopped by itself.
struct Part {
    stop: CancellationToken,
    runs: JoinHandle<()>,
}

impl Part {
    fn start<F: Future<Output = ()> + Send + 'static>(run: impl FnOnce(CancellationToken) -> F) -> Self {
        let stop = CancellationToken::new();
        Part { runs: tokio::spawn(run(stop.clone())), stop }
    }

    /// Ends it without its last act.
    fn abandon(self) {
        self.runs.abort();
    }

    async fn stop(self, name: &'static str) {
        self.stop.cancel();
        if let Err(error) = self.runs.await {
            tracing::error!(part = name, %error, "a part of the rep ended early");
        }
    }
}
