//! `registry-cache`: a registry that fetches images from others once and keeps them.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use diego_base::serve::Listen;
use rootfs::registry::cache::{self, Network, Writers};
use tokio_util::sync::CancellationToken;

use super::flags::{Log, Registries, Tls};

#[derive(Args)]
pub struct Flags {
    #[arg(long, default_value = "127.0.0.1:5050")]
    listen: SocketAddr,
    /// Where images are kept.
    #[arg(long)]
    dir: PathBuf,
    /// `HOST:PORT` under which cells reach this cache; otherwise as whoever asks has asked.
    #[arg(long)]
    advertise: Option<String>,
    /// For how many days a resolved image that nobody asks for stays when the disk needs its room.
    #[arg(long, default_value_t = 7)]
    keep_pinned_days: u16,
    /// Who may push, delete, and have images pinned: a file with USER:PASSWORD in each line. Everybody may pull.
    #[arg(long, value_name = "FILE")]
    push_accounts: Option<PathBuf>,
    /// From where the same needs no account, as 10.0.0.0/8; without this and without accounts it is this machine. May be
    /// given many times.
    #[arg(long, value_name = "NETWORK")]
    push_from: Vec<Network>,
    #[command(flatten)]
    registries: Registries,
    #[command(flatten)]
    tls: Tls,
    #[command(flatten)]
    pub log: Log,
}

impl Flags {
    fn writers(&self) -> Result<Writers> {
        Ok(match (&self.push_accounts, self.push_from.is_empty()) {
            (None, true) => Writers::default(),
            (None, false) => Writers::from_networks(self.push_from.clone()),
            (Some(file), _) => Writers::from_networks(self.push_from.clone()).with_accounts(file)?,
        })
    }
}

pub async fn run(flags: Flags, shutdown: CancellationToken) -> Result<()> {
    let (writers, tls) = (flags.writers()?, flags.tls.server()?);
    let ledger = super::disk::account(&flags.dir)?;
    let mut config = cache::Config::new(Listen::Tcp(flags.listen), flags.dir);
    config.ledger = Some(ledger);
    (config.writers, config.tls) = (writers, tls);
    config.advertised = flags.advertise;
    config.keep_pinned = Duration::from_secs(u64::from(flags.keep_pinned_days) * 24 * 3600);
    config.upstream = flags.registries.policy();
    Ok(cache::run(config, shutdown).await?)
}
