//! `route-emitter`: tells routers over NATS where instances answer, those of one cell or all of them.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use brain::route_emitter::{Config, Credentials};
use clap::Args;
use diego_base::tls::{ClientTls, Files};
use tokio_util::sync::CancellationToken;

use super::flags::{Bbs, BbsTls, Health, Locket, Log, Tls, interval};
use super::health;
use crate::dev::Parts;

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
    #[command(flatten)]
    nats_tls: NatsTls,
    /// Tell only of this cell's instances; otherwise of all.
    #[arg(long)]
    cell_id: Option<String>,
    /// One with a cell needs no lock.
    #[command(flatten)]
    locket: Locket,
    /// Lead to instances' own addresses instead of their cells'.
    #[arg(long)]
    direct_instance_routes: bool,
    /// Seconds between two tellings of everything, until routers ask for another pace.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..))]
    emit_interval: u64,
    /// Between two readings of everything from the BBS.
    #[arg(long, default_value = "60s", value_parser = interval)]
    sync_interval: Duration,
    /// Of the interval, how much at most the answer to a router's start is put off by chance.
    #[arg(long, default_value_t = 0.2)]
    jitter_factor: f64,
    /// Between two sayings that an address is no more.
    #[arg(long, default_value = "30s", value_parser = interval)]
    unregistration_interval: Duration,
    /// How often that is said.
    #[arg(long, default_value_t = 20)]
    unregistration_send_count: u32,
    /// Do not tell the name service.
    #[arg(long)]
    without_internal_routes: bool,
    #[command(flatten)]
    health: Health,
    #[command(flatten)]
    tls: Tls,
    #[command(flatten)]
    bbs_tls: BbsTls,
    #[command(flatten)]
    pub log: Log,
}

/// With these, TLS is spoken with NATS servers, and none without it.
#[derive(Args)]
#[command(next_help_heading = "TLS")]
struct NatsTls {
    /// Shown to NATS servers.
    #[arg(long, requires_all = ["nats_key_file", "nats_ca_cert_file"])]
    nats_cert_file: Option<PathBuf>,
    #[arg(long, requires = "nats_cert_file")]
    nats_key_file: Option<PathBuf>,
    /// Authorities, in PEM, one of which must have signed a NATS server's certificate.
    #[arg(long, requires = "nats_cert_file")]
    nats_ca_cert_file: Option<PathBuf>,
}

impl NatsTls {
    fn load(self) -> Result<Option<ClientTls>> {
        let pair = self.nats_cert_file.zip(self.nats_key_file);
        let files = pair.map(|(cert, key)| Files { cert, key, ca: self.nats_ca_cert_file });
        Ok(files.map(|files| ClientTls::load(&files)).transpose()?)
    }
}

pub async fn run(flags: Flags, shutdown: CancellationToken) -> Result<()> {
    let client = flags.tls.client();
    let bbs = flags.bbs.client(&flags.bbs_tls.config(&client))?;
    let mut config = Config::new(bbs, flags.nats_addresses);
    config.nats_credentials = Credentials { user: flags.nats_user, password: flags.nats_password };
    config.nats_tls = flags.nats_tls.load()?;
    if flags.cell_id.is_none() {
        config.lock = flags.locket.lock(&client)?;
    }
    config.cell_id = flags.cell_id;
    config.direct_instance_routes = flags.direct_instance_routes;
    config.emit_interval = Duration::from_secs(flags.emit_interval);
    config.sync_interval = flags.sync_interval;
    config.jitter_factor = flags.jitter_factor;
    config.unregistration_interval = flags.unregistration_interval;
    config.unregistration_send_count = flags.unregistration_send_count;
    config.internal_routes = !flags.without_internal_routes;
    let mut parts = Parts::default();
    if let Some(address) = flags.health.health_address {
        parts.start("health answer", health::run(address, parts.shutdown()));
    }
    parts.start("route emitter", brain::route_emitter::run(config, parts.shutdown()));
    super::together(parts, shutdown).await
}
