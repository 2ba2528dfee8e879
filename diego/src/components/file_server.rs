//! `file-server`: static files, and blobs that are put there, over plain HTTP.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use diego_base::serve::Listen;
use tokio_util::sync::CancellationToken;

use super::flags::Log;

#[derive(Args)]
pub struct Flags {
    #[arg(long, default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// Served under `/v1/static/`.
    #[arg(long)]
    static_dir: PathBuf,
    /// Kept and served under `/v1/blobs/`.
    #[arg(long)]
    blob_dir: Option<PathBuf>,
    #[command(flatten)]
    pub log: Log,
}

pub async fn run(flags: Flags, shutdown: CancellationToken) -> Result<()> {
    let Flags { listen, static_dir, blob_dir, log: _ } = flags;
    anyhow::ensure!(static_dir.is_dir(), "cannot serve {}: it is no directory", static_dir.display());
    let config = brain::file_server::Config { listen: Listen::Tcp(listen), static_dir, blob_dir };
    Ok(brain::file_server::run(config, shutdown).await?)
}
