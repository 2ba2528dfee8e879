//! `locket`: locks and presences, with their database file, over gRPC.

use std::net::SocketAddr;

use anyhow::Result;
use bbs::Location;
use bbs::locket::{Config, Error, Locket};
use bbs_models::CellPresence;
use clap::Args;
use diego_base::serve::Listen;
use diego_base::telemetry::LevelSwitch;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::flags::{Log, Tls, address};
use super::report::{Figures, Report};
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
    let locket = Opened::open(flags.database).await?;
    let (mut parts, figures) = (Parts::default(), Figures::default());
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
    pub async fn open(database: impl Into<Location>) -> Result<Opened, Error> {
        let close = CancellationToken::new();
        let (locket, owner) = Locket::open(Some(database), close.clone()).await?;
        Ok(Opened { locket, owner: tokio::spawn(owner), close })
    }

    pub fn cells(&self) -> watch::Receiver<Vec<CellPresence>> {
        self.locket.cells()
    }

    /// The table is closed last: what is asked before the server is gone is answered.
    pub async fn serve(self, config: Config, shutdown: CancellationToken) -> Result<(), Error> {
        let served = bbs::locket::run(config, self.locket, shutdown).await;
        self.close.cancel();
        if let Err(error) = self.owner.await {
            tracing::error!(%error, "the table of locks ended early");
        }
        served
    }
}
