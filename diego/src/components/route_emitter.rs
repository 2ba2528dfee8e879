//! `route-emitter`: tells routers over NATS where instances answer, those of one cell or all of them.

use std::time::Duration;

use anyhow::Result;
use brain::route_emitter::{Config, Credentials};
use clap::Args;
use tokio_util::sync::CancellationToken;

use super::flags::{self, Bbs, Log, Tls};

#[derive(Args)]
pub struct Flags {
    #[command(flatten)]
    bbs: Bbs,
    /// NATS servers, as `HOST:PORT,HOST:PORT`; one of them is enough.
    #[arg(long, value_delimiter = ',', default_value = "127.0.0.1:4222")]
    nats_addresses: Vec<String>,
    #[arg(long, default_value = "")]
    nats_user: String,
    #[arg(long, default_value = "", env = "NATS_PASSWORD", hide_env_values = true)]
    nats_password: String,
    /// Tell only of this cell's instances; otherwise of all.
    #[arg(long)]
    cell_id: Option<String>,
    /// The Locket whose lock says which of several emitters without a cell works, as `HOST:PORT`.
    #[arg(long, conflicts_with = "cell_id")]
    locket: Option<String>,
    /// Lead to instances' own addresses instead of their cells'.
    #[arg(long)]
    direct_instance_routes: bool,
    /// Seconds between two tellings of everything, until routers ask for another pace.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..))]
    emit_interval: u64,
    /// Seconds between two readings of everything from the BBS.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    sync_interval: u64,
    #[command(flatten)]
    tls: Tls,
    #[command(flatten)]
    pub log: Log,
}

pub async fn run(flags: Flags, shutdown: CancellationToken) -> Result<()> {
    let client = flags.tls.client();
    let mut config = Config::new(flags.bbs.client(&client)?, flags.nats_addresses);
    config.nats_credentials = Credentials { user: flags.nats_user, password: flags.nats_password };
    config.cell_id = flags.cell_id;
    config.locket = flags.locket.map(|address| flags::locket(&address, &client)).transpose()?;
    config.direct_instance_routes = flags.direct_instance_routes;
    config.emit_interval = Duration::from_secs(flags.emit_interval);
    config.sync_interval = Duration::from_secs(flags.sync_interval);
    Ok(brain::route_emitter::run(config, shutdown).await?)
}
