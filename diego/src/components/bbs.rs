//! `bbs`: the bulletin board, with its database file, over HTTP, alone or as the one of several that holds the lock.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use bbs::{Counts, Intervals, Location, Patience, Witness};
use bbs_client::{Lock, LocketClient, watch_cells};
use bbs_models::{CellPresence, LockKind};
use brain_client::AuctioneerClient;
use clap::Args;
use diego_base::http::ClientConfig;
use diego_base::serve::Listen;
use diego_base::telemetry::LevelSwitch;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::encryption::Encryption;
use super::flags::{Health, Locket, Log, RepTls, Tls, address, interval, with_files};
use super::report::{Figures, Report, Tag};
use super::{health, locket};
use crate::dev::Parts;

/// Whoever holds it in Locket is the one BBS that works.
const LOCK_KEY: &str = "bbs";
/// Between two questions to Locket about who is there.
const CELLS_INTERVAL: Duration = Duration::from_secs(1);

#[derive(Args)]
pub struct Flags {
    #[arg(long, default_value = "127.0.0.1:8889", value_parser = address)]
    listen: SocketAddr,
    /// A file, made if it is not there, for one process at a time; or the URL of a server's database, as in
    /// `postgres://USER:PASSWORD@HOST/DATABASE` or `mysql://…`, where the BBS that started last is the one that writes.
    #[arg(long, default_value = "/var/lib/diego/bbs.sqlite", env = "BBS_DATABASE", hide_env_values = true)]
    database: Location,
    #[arg(long, default_value = "http://127.0.0.1:9016")]
    auctioneer_url: String,
    /// The Locket that knows the cells. Without it the BBS is a Locket too, see --locket-listen. With --lock-owner this
    /// BBS works only while it holds the lock there.
    #[command(flatten)]
    lock: Locket,
    /// Where cells and others find the Locket inside this process.
    #[arg(long, default_value = "127.0.0.1:8891", conflicts_with = "locket")]
    locket_listen: SocketAddr,
    /// Where that Locket remembers its locks.
    #[arg(long, default_value = "/var/lib/diego/locket.sqlite", conflicts_with = "locket")]
    locket_database: PathBuf,
    #[command(flatten)]
    encryption: Encryption,
    #[command(flatten)]
    pace: Pace,
    #[command(flatten)]
    health: Health,
    #[command(flatten)]
    tls: Tls,
    #[command(flatten)]
    auctioneer_tls: AuctioneerTls,
    #[command(flatten)]
    rep_tls: RepTls,
    #[command(flatten)]
    report: Report,
    #[command(flatten)]
    pub log: Log,
}

/// How long things may stay as they are.
#[derive(Args)]
#[command(next_help_heading = "Convergence")]
struct Pace {
    /// Between two looks at everything. A BBS that has just begun calls no cell missing for so long, or for 15 s.
    #[arg(long, default_value = "30s", value_parser = interval)]
    converge_repeat_interval: Duration,
    /// A Task that waits for a cell or for its client is told of again.
    #[arg(long, default_value = "30s", value_parser = interval)]
    kick_task_duration: Duration,
    /// A Task that no cell has taken fails.
    #[arg(long, default_value = "30m", value_parser = interval)]
    expire_pending_task_duration: Duration,
    /// A completed Task whose client could not be told is forgotten.
    #[arg(long, default_value = "2m", value_parser = interval)]
    expire_completed_task_duration: Duration,
    /// How often a Task may be rejected by auctions before it fails.
    #[arg(long, default_value_t = bbs::TASK_RETRIES_MAX)]
    max_task_retries: u32,
    /// For all that is asked of cells and the auctioneer, and for completion callbacks.
    #[arg(long, default_value = "10s", value_parser = interval)]
    communication_timeout: Duration,
}

impl Pace {
    fn intervals(&self) -> Intervals {
        let patience = Patience {
            kick_task: self.kick_task_duration,
            expire_pending_task: self.expire_pending_task_duration,
            expire_completed_task: self.expire_completed_task_duration,
            ..Patience::default()
        };
        let every = self.converge_repeat_interval;
        // Whoever looks more often than that is told at the first look.
        let cells_settle = Intervals::default().cells_settle.min(every);
        Intervals { every, cells_settle, patience }
    }
}

/// The certificate that the auctioneer is shown.
#[derive(Args)]
#[command(next_help_heading = "TLS")]
struct AuctioneerTls {
    /// Shown to the auctioneer; otherwise --cert-file is.
    #[arg(long, requires = "auctioneer_key_file")]
    auctioneer_cert_file: Option<PathBuf>,
    #[arg(long, requires = "auctioneer_cert_file")]
    auctioneer_key_file: Option<PathBuf>,
    /// Authorities, in PEM, one of which must have signed the auctioneer's certificate.
    #[arg(long, requires = "auctioneer_cert_file")]
    auctioneer_ca_cert_file: Option<PathBuf>,
}

impl AuctioneerTls {
    fn config(&self, usual: &ClientConfig) -> ClientConfig {
        let files = [&self.auctioneer_cert_file, &self.auctioneer_key_file, &self.auctioneer_ca_cert_file];
        with_files(usual, files)
    }
}

pub async fn run(flags: Flags, levels: LevelSwitch, shutdown: CancellationToken) -> Result<()> {
    let (mut parts, figures) = (Parts::default(), Figures::default());
    flags.report.start("bbs", &figures, levels, &mut parts)?;
    if let Some(address) = flags.health.health_address {
        parts.start("health answer", health::run(address, parts.shutdown()));
    }
    let lock = match flags.lock.has_owner() {
        true => flags.lock.lock(&flags.tls.client())?,
        false => None,
    };
    if let Some(lock) = &lock {
        let following = figures.clone().follow_lock(lock.held.subscribe(), parts.shutdown());
        parts.start_endless("watch of the lock", following);
    }
    parts.start_any("BBS", be_the_one(flags, lock, figures, parts.shutdown()));
    super::together(parts, shutdown).await
}

/// Where several may be, once the lock is held and until it is lost.
async fn be_the_one(
    flags: Flags,
    lock: Option<Lock>,
    figures: Figures,
    shutdown: CancellationToken,
) -> Result<()> {
    let Some(lock) = lock else { return work(flags, figures, shutdown).await };
    let worked = lock.while_held(LOCK_KEY, &shutdown, |stop| work(flags, figures, stop)).await;
    worked.context("the lock of the BBS was lost")?.unwrap_or(Ok(()))
}

async fn work(flags: Flags, figures: Figures, shutdown: CancellationToken) -> Result<()> {
    let mut parts = Parts::default();
    let cells = tokio::select! {
        cells = cells(&flags, &mut parts) => cells?,
        () = shutdown.cancelled() => return Ok(()),
    };
    let usual = ClientConfig { timeout: Some(flags.pace.communication_timeout), ..flags.tls.client() };
    let client = |whom, config: &ClientConfig| {
        diego_base::http::client(config).with_context(|| format!("cannot make a client for {whom}"))
    };
    let auctioneer = client("the auctioneer", &flags.auctioneer_tls.config(&usual))?;
    let auctioneer = Arc::new(AuctioneerClient::new(auctioneer, &flags.auctioneer_url));
    let mut config = bbs::Config::new(Listen::Tcp(flags.listen), flags.database, auctioneer, cells)?;
    config.tls = flags.tls.server()?;
    config.keys = flags.encryption.keys()?;
    config.reps = Arc::new(bbs::RepClients(client("cells", &flags.rep_tls.config(&usual))?.into()));
    config.callbacks = client("callbacks", &usual)?;
    figures.adds("BBSMasterElected", 1);
    config.witness = Arc::new(Measured(figures));
    config.intervals = flags.pace.intervals();
    config.task_retries_max = flags.pace.max_task_retries;
    parts.start("BBS", bbs::run(config, parts.shutdown()));
    super::together(parts, shutdown).await
}

/// From the Locket that was named, or from the one started here.
async fn cells(flags: &Flags, parts: &mut Parts) -> Result<watch::Receiver<Vec<CellPresence>>> {
    let Some(locket) = flags.lock.client(&flags.tls.client())? else {
        return start_locket(flags, parts).await;
    };
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
    let locket = locket::Opened::open(flags.locket_database.clone(), Arc::new(bbs::locket::Nobody)).await?;
    let cells = locket.cells();
    let config = bbs::locket::Config { listen: Listen::Tcp(flags.locket_listen), tls: flags.tls.server()? };
    parts.start("Locket", locket.serve(config, parts.shutdown()));
    Ok(cells)
}

fn of_cell(cell_id: &str) -> Option<Tag> {
    Some(Tag { name: "cell-id", value: cell_id.to_owned().into() })
}

/// What the BBS does, under the names that platforms know.
struct Measured(Figures);

impl Witness for Measured {
    fn answered(&self, took: Duration) {
        self.0.adds("RequestCount", 1);
        self.0.took_at_most("RequestLatency", None, took);
    }

    fn task_started(&self, cell_id: &str) {
        self.0.counts("TasksStarted", of_cell(cell_id), 1.0);
    }

    fn task_ended(&self, cell_id: &str, failed: bool) {
        self.0.counts(if failed { "TasksFailed" } else { "TasksSucceeded" }, of_cell(cell_id), 1.0);
    }

    fn asked_database(&self, took: Duration, answered: bool) {
        self.0.asked_database(took, answered);
    }

    fn converged(&self, took: Duration, counts: &Counts) {
        for (runs, duration) in [
            ("ConvergenceLRPRuns", "ConvergenceLRPDuration"),
            ("ConvergenceTaskRuns", "ConvergenceTaskDuration"),
        ] {
            self.0.adds(runs, 1);
            self.0.took(duration, took);
        }
        self.0.adds("ConvergenceTasksPruned", counts.tasks_pruned as u64);
        self.0.adds("ConvergenceTasksKicked", counts.tasks_kicked as u64);
        for (name, count) in [
            ("LRPsDesired", counts.lrps_desired),
            ("LRPsUnclaimed", counts.lrps_unclaimed),
            ("LRPsClaimed", counts.lrps_claimed),
            ("LRPsRunning", counts.lrps_running),
            ("CrashedActualLRPs", counts.lrps_crashed),
            ("LRPsMissing", counts.lrps_missing),
            ("LRPsExtra", counts.lrps_extra),
            ("SuspectClaimedActualLRPs", counts.suspect_claimed),
            ("SuspectRunningActualLRPs", counts.suspect_running),
            ("CrashingDesiredLRPs", counts.crashing_desired),
            ("TasksPending", counts.tasks_pending),
            ("TasksRunning", counts.tasks_running),
            ("TasksCompleted", counts.tasks_completed),
            ("TasksResolving", counts.tasks_resolving),
            ("PresentCells", counts.present_cells),
            ("SuspectCells", counts.suspect_cells),
        ] {
            self.0.stands(name, count as f64);
        }
        let domains = counts.fresh_domains.iter().map(|name| (format!("Domain.{name}"), 1.0));
        self.0.stand_together("Domain.", domains);
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Only {
        #[command(flatten)]
        pace: Pace,
    }

    #[test]
    fn cells_have_until_the_first_look_to_show_themselves_and_no_more_than_usual() {
        for (every, settle) in [("1s", 1), ("30s", 15), ("1h", 15)] {
            let told = Only::try_parse_from(["bbs", "--converge-repeat-interval", every]).unwrap();
            assert_eq!(told.pace.intervals().cells_settle, Duration::from_secs(settle), "{every}");
        }
    }
}
