//! `file-server`: static files, and blobs that are put there, over plain HTTP.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use brain::file_server::{BlobDir, Config, MakeRoom};
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
    let blobs = blob_dir.map(with_account).transpose()?;
    let config = Config { listen: Listen::Tcp(listen), static_dir, blobs };
    Ok(brain::file_server::run(config, shutdown).await?)
}

fn with_account(path: PathBuf) -> Result<BlobDir> {
    let ledger = super::disk::account(&path)?;
    let make_room: MakeRoom = Arc::new(move |bytes| {
        let claim = ledger.claim("a blob", bytes).map_err(|error| error.to_string())?;
        Ok(Box::new(claim))
    });
    Ok(BlobDir { path, make_room })
}
