//! `registry-cache`: a registry that fetches images from others once and keeps them.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use diego_base::serve::Listen;
use rootfs::registry::cache;
use tokio_util::sync::CancellationToken;

use super::flags::{Log, Registries};

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
    #[command(flatten)]
    registries: Registries,
    #[command(flatten)]
    pub log: Log,
}

pub async fn run(flags: Flags, shutdown: CancellationToken) -> Result<()> {
    let mut config = cache::Config::new(Listen::Tcp(flags.listen), flags.dir);
    config.advertised = flags.advertise;
    config.keep_pinned = Duration::from_secs(u64::from(flags.keep_pinned_days) * 24 * 3600);
    config.upstream = flags.registries.policy();
    Ok(cache::run(config, shutdown).await?)
}
