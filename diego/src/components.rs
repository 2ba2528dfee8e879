//! One subcommand a component: each reads its flags, starts the one function that is the component, and stops it when
//! the process is told to.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, Result};
use bbs_client::BbsClient;
use brain::{auctioneer, file_server};
use clap::{Args, Subcommand};
use diego_base::serve::Listen;
use diego_base::telemetry;
use rootfs::registry::cache;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

#[derive(Subcommand)]
pub enum Component {
    /// Make containers, behind the Garden API.
    #[command(alias = "gdn")]
    Garden(Garden),
    /// Place work on cells.
    Auctioneer(Auctioneer),
    /// Serve static files.
    FileServer(FileServer),
    /// Keep images close: a registry that fetches from others.
    RegistryCache(RegistryCache),
}

#[derive(Args)]
pub struct Garden {
    /// Listen on this unix socket.
    #[arg(long, default_value = "/run/diego/garden.sock", conflicts_with = "bind_ip")]
    bind_socket: PathBuf,
    /// Listen on this address instead.
    #[arg(long, requires = "bind_port")]
    bind_ip: Option<std::net::IpAddr>,
    #[arg(long)]
    bind_port: Option<u16>,
    /// Records of containers, and the images.
    #[arg(long, default_value = "/var/lib/diego/garden")]
    depot: PathBuf,
    /// For containers whose creator names no image.
    #[arg(long, default_value = "")]
    default_rootfs: String,
    /// Cut into networks of four addresses, one a container.
    #[arg(long, default_value = "10.254.0.0/18")]
    network_pool: garden::networker::Network,
    /// 0: as many as there are networks.
    #[arg(long, default_value_t = 0)]
    max_containers: u64,
    /// Destroy all containers when told to stop.
    #[arg(long)]
    destroy_containers_on_stop: bool,
    #[command(flatten)]
    log: Log,
}

#[derive(Args)]
pub struct Auctioneer {
    #[arg(long, default_value = "127.0.0.1:9016")]
    listen: SocketAddr,
    #[arg(long, default_value = "http://127.0.0.1:8889")]
    bbs_url: String,
    #[command(flatten)]
    log: Log,
}

#[derive(Args)]
pub struct FileServer {
    #[arg(long, default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// Served under `/v1/static/`.
    #[arg(long)]
    static_dir: PathBuf,
    /// Kept and served under `/v1/blobs/`.
    #[arg(long)]
    blob_dir: Option<PathBuf>,
    #[command(flatten)]
    log: Log,
}

#[derive(Args)]
pub struct RegistryCache {
    #[arg(long, default_value = "127.0.0.1:5050")]
    listen: SocketAddr,
    #[arg(long)]
    dir: PathBuf,
    #[command(flatten)]
    log: Log,
}

#[derive(Args)]
struct Log {
    /// `debug`, `info` or `error`.
    #[arg(long, default_value = "info")]
    log_level: String,
}

pub async fn run(component: Component) -> Result<()> {
    match component {
        Component::Garden(flags) => garden(flags).await,
        Component::Auctioneer(flags) => {
            let shutdown = begin(&flags.log)?;
            let http = diego_base::http::client(&Default::default())?;
            let bbs = BbsClient::new(&flags.bbs_url, &Default::default())?;
            let config = auctioneer::Config::new(Listen::Tcp(flags.listen), bbs, http);
            Ok(auctioneer::run(config, shutdown).await?)
        }
        Component::FileServer(FileServer { listen, static_dir, blob_dir, log }) => {
            let config = file_server::Config { listen: Listen::Tcp(listen), static_dir, blob_dir };
            Ok(file_server::run(config, begin(&log)?).await?)
        }
        Component::RegistryCache(RegistryCache { listen, dir, log }) => {
            Ok(cache::run(cache::Config::new(Listen::Tcp(listen), dir), begin(&log)?).await?)
        }
    }
}

async fn garden(flags: Garden) -> Result<()> {
    let shutdown = begin(&flags.log)?;
    let listen = match (flags.bind_ip, flags.bind_port) {
        (Some(ip), Some(port)) => Listen::Tcp(SocketAddr::new(ip, port)),
        _ => {
            if let Some(dir) = flags.bind_socket.parent() {
                std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
            }
            Listen::Unix(flags.bind_socket)
        }
    };
    let mut gardener = garden::gardener::Config::new(flags.depot);
    gardener.containerizer.init = crate::dev::beside("garden-init")?;
    gardener.networker.pool = flags.network_pool;
    gardener.default_rootfs = flags.default_rootfs;
    gardener.max_containers = flags.max_containers;
    gardener.destroy_containers_on_stop = flags.destroy_containers_on_stop;
    Ok(garden::run(garden::Config { listen, gardener }, shutdown).await?)
}

/// Logs go to stdout, as the process supervisors of existing deployments expect; SIGTERM and SIGINT end it.
fn begin(log: &Log) -> Result<CancellationToken> {
    telemetry::init(&log.log_level, Box::new(std::io::stdout()));
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let shutdown = CancellationToken::new();
    let told = shutdown.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        told.cancel();
    });
    Ok(shutdown)
}
