//! `locket`: locks and presences, with their database file, over gRPC.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use bbs::Location;
use bbs::locket::{Call, Config, Ended, Error, Locket, Witness};
use bbs_models::{CellPresence, LockKind};
use clap::Args;
use diego_base::serve::Listen;
use diego_base::telemetry::LevelSwitch;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::flags::{Log, Tls, address};
use super::report::{Figures, Report, Tag};
use crate::dev::Parts;

#[derive(Args)]
pub struct Flags {
    #[arg(long, default_value = "127.0.0.1:8891", value_parser = address)]
    listen: SocketAddr,
    /// A file, made if it is not there, for one process at a time; or the URL of a server's database, as in
    /// `postgres://USER:PASSWORD@HOST/DATABASE` or `mysql://…`, which several Lockets may share.
    #[arg(
        long,
        default_value = "/var/lib/diego/locket.sqlite",
        env = "LOCKET_DATABASE",
        hide_env_values = true
    )]
    database: Location,
    #[command(flatten)]
    tls: Tls,
    #[command(flatten)]
    report: Report,
    #[command(flatten)]
    pub log: Log,
}

pub async fn run(flags: Flags, levels: LevelSwitch, shutdown: CancellationToken) -> Result<()> {
    let config = Config { listen: Listen::Tcp(flags.listen), tls: flags.tls.server()? };
    let (mut parts, figures) = (Parts::default(), Figures::default());
    let locket = Opened::open(flags.database, Arc::new(Measured::new(figures.clone()))).await?;
    flags.report.start("locket", &figures, levels, &mut parts)?;
    parts.start("Locket", locket.serve(config, parts.shutdown()));
    super::together(parts, shutdown).await
}

/// A table of locks whose owner runs.
pub struct Opened {
    locket: Locket,
    owner: JoinHandle<()>,
    close: CancellationToken,
}

impl Opened {
    pub async fn open(database: impl Into<Location>, witness: Arc<dyn Witness>) -> Result<Opened, Error> {
        let close = CancellationToken::new();
        let (locket, owner) = Locket::open_watched(Some(database), witness, close.clone()).await?;
        Ok(Opened { locket, owner: tokio::spawn(owner), close })
    }

    pub fn cells(&self) -> watch::Receiver<Vec<CellPresence>> {
        self.locket.cells()
    }

    /// The table is closed last: what is asked before the server is gone is answered. Without its owner there is nothing to
    /// serve.
    pub async fn serve(mut self, config: Config, shutdown: CancellationToken) -> Result<(), Error> {
        let shutdown = shutdown.child_token();
        let mut serving = pin!(bbs::locket::run(config, self.locket, shutdown.clone()));
        let (served, ended) = tokio::select! {
            served = &mut serving => {
                self.close.cancel();
                (served, self.owner.await)
            }
            ended = &mut self.owner => {
                shutdown.cancel();
                (serving.await.and(Err(Error::Lost)), ended)
            }
        };
        if let Err(error) = ended {
            tracing::error!(%error, "the table of locks ended early");
        }
        served
    }
}

/// What a Locket does, under the names that platforms know.
struct Measured(Figures);

impl Measured {
    fn new(figures: Figures) -> Measured {
        for name in [STARTED, SUCCEEDED, FAILED, CANCELLED, IN_FLIGHT] {
            Call::ALL.iter().for_each(|call| figures.counts(name, of(*call), 0.0));
        }
        [LockKind::Lock, LockKind::Presence]
            .iter()
            .for_each(|kind| figures.counts(expired(*kind), None, 0.0));
        Measured(figures)
    }
}

const STARTED: &str = "RequestsStarted";
const SUCCEEDED: &str = "RequestsSucceeded";
const FAILED: &str = "RequestsFailed";
const CANCELLED: &str = "RequestsCancelled";
const IN_FLIGHT: &str = "RequestsInFlight";

fn of(call: Call) -> Option<Tag> {
    Some(Tag { name: "request-type", value: call.name().into() })
}

fn expired(kind: LockKind) -> &'static str {
    match kind {
        LockKind::Lock => "LocksExpired",
        LockKind::Presence => "PresenceExpired",
    }
}

impl Witness for Measured {
    fn began(&self, call: Call) {
        self.0.counts(STARTED, of(call), 1.0);
        self.0.counts(IN_FLIGHT, of(call), 1.0);
    }

    fn ended(&self, call: Call, took: Duration, how: Ended) {
        let name = match how {
            Ended::Well => SUCCEEDED,
            Ended::Badly => FAILED,
            Ended::GivenUp => CANCELLED,
        };
        self.0.counts(name, of(call), 1.0);
        self.0.counts(IN_FLIGHT, of(call), -1.0);
        self.0.took_at_most("RequestLatencyMax", of(call), took);
    }

    fn asked_database(&self, took: Duration, answered: bool) {
        self.0.asked_database(took, answered);
    }

    fn holds(&self, kind: LockKind, keys: usize) {
        let name = match kind {
            LockKind::Lock => "ActiveLocks",
            LockKind::Presence => "ActivePresences",
        };
        self.0.stands(name, keys as f64);
    }

    fn expired(&self, kind: LockKind) {
        self.0.counts(expired(kind), None, 1.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_locket_is_measured_under_the_names_that_platforms_know() {
        let figures = Figures::default();
        let measured = Measured::new(figures.clone());
        for how in [Ended::Well, Ended::Well, Ended::Badly, Ended::GivenUp] {
            measured.began(Call::Lock);
            measured.ended(Call::Lock, Duration::from_nanos(7), how);
        }
        measured.began(Call::Fetch);
        measured.asked_database(Duration::from_nanos(9), true);
        measured.asked_database(Duration::from_nanos(5), false);
        measured.holds(LockKind::Presence, 3);
        measured.expired(LockKind::Presence);
        let page = figures.page();
        for expected in [
            "requests_started{request_type=\"Lock\"} 4\n",
            "requests_succeeded{request_type=\"Lock\"} 2\n",
            "requests_failed{request_type=\"Lock\"} 1\n",
            "requests_cancelled{request_type=\"Lock\"} 1\n",
            "requests_in_flight{request_type=\"Lock\"} 0\n",
            "requests_in_flight{request_type=\"Fetch\"} 1\n",
            "requests_started{request_type=\"Release\"} 0\n",
            "request_latency_max{request_type=\"Lock\"} 7\n",
            "db_queries_total 2\n",
            "db_queries_succeeded 1\n",
            "db_queries_failed 1\n",
            "db_query_duration_max 9\n",
            "db_open_connections 0\n",
            "active_presences 3\n",
            "presence_expired 1\n",
            "locks_expired 0\n",
        ] {
            assert!(page.contains(expected), "{expected} is not in\n{page}");
        }
    }
}
