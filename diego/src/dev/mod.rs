//! `diego dev`: a whole Diego in one process, with embedded defaults, below one state directory.
//!
//! The parts speak to one another as they would across machines, but for two seams: the executor calls garden in
//! process, and the cell's presence reaches the BBS without Locket in between.

mod lifecycle;
pub use lifecycle::beside;
mod parts;
pub use parts::Parts;
mod slot;
mod sockets;
mod state;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bbs_client::BbsClient;
use bbs_models::CellPresence;
use brain::routes::watch::Routing;
use brain::ssh_proxy::BbsInstances;
use brain::{auctioneer, file_server, router, routes, ssh_proxy};
use brain_client::AuctioneerClient;
use clap::Args;
use diego_base::clock::SystemClock;
use diego_base::telemetry;
use executor::{CellResources, ContainerProxy, Executor, InstanceIdentity};
use garden::Gardener;
use garden::networker::Network;
use garden_client::Garden;
use rootfs::ledger::Ledger;
use rootfs::registry::cache;
use sockets::{Addresses, Socket, Sockets};
use state::StateDir;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::components::Registries;
use crate::operator::Endpoints;

const CELL_ID: &str = "cell-dev";
const ZONE: &str = "z1";
/// Where clouds answer with a machine's own credentials: no container has business there.
const LINK_LOCAL: Network = Network::new(Ipv4Addr::new(169, 254, 0, 0), 16);
/// Until the cell is among those that take work.
const READY_TIME: Duration = Duration::from_secs(20);

#[derive(Args)]
pub struct Flags {
    #[command(flatten)]
    addresses: Addresses,
    /// A root filesystem for droplets, as `NAME=PATH` of a directory or a tar. May be given many times.
    #[arg(long = "stack", value_parser = stack)]
    stacks: Vec<(String, PathBuf)>,
    #[command(flatten)]
    registries: Box<Registries>,
    /// Apps answer under `NAME.DOMAIN`.
    #[arg(long, default_value = "localhost")]
    domain: String,
    /// The address by which instances are reached from outside of this machine.
    #[arg(long, default_value = "127.0.0.1")]
    external_ip: IpAddr,
    /// Memory for containers, in MiB; otherwise all of the machine's.
    #[arg(long)]
    memory_mb: Option<u64>,
    /// Disk for what containers write, in MiB; otherwise half of what is free where the state directory is.
    #[arg(long)]
    disk_mb: Option<u64>,
    #[arg(long, default_value_t = 250)]
    max_containers: u64,
    /// Another number lets another Diego run on the same machine.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(..=i64::from(slot::SLOT_MAX)))]
    slot: u8,
    /// `debug`, `info` or `error`, or `info,garden=debug`.
    #[arg(long, default_value = "info")]
    log_level: String,
}

fn stack(text: &str) -> Result<(String, PathBuf), String> {
    let (name, path) = text.split_once('=').ok_or("it must be NAME=PATH")?;
    let path = Path::new(path).canonicalize().map_err(|error| format!("cannot use {path}: {error}"))?;
    Ok((name.into(), path))
}

pub async fn run(state: &Path, flags: Flags) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("diego dev makes containers, and only root can; try: sudo diego dev");
    }
    let state = StateDir::lock(state)?;
    telemetry::init(&flags.log_level, Box::new(state.log_file()?));
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut diego = Diego::default();
    let lived = tokio::select! {
        ended = live(&state, &flags, &mut diego) => ended,
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
    };
    state.remove_endpoints();
    lived.and(diego.stop().await)
}

/// What runs, in the two halves in which it is stopped.
#[derive(Default)]
struct Diego {
    cell: Parts,
    gardener: Option<Gardener>,
    cluster: Parts,
}

impl Diego {
    /// The cell first: what its containers' ends mean is told to a BBS that still listens.
    async fn stop(self) -> Result<()> {
        let cell = self.cell.stop().await;
        if let Some(gardener) = self.gardener {
            gardener.shut_down().await;
        }
        cell.and(self.cluster.stop().await)
    }
}

/// The boot order, and then until a part ends by itself.
async fn live(state: &StateDir, flags: &Flags, diego: &mut Diego) -> Result<()> {
    let sockets = Sockets::bind(&flags.addresses, &state.known_addresses())?;
    state.remember_addresses(&sockets.known())?;
    let host_key = state.kept("ssh_host_key.pem", || Ok(ssh_proxy::keys::generate()?.private_pem))?;
    let endpoints = endpoints(state, &sockets, flags)?;
    let bbs = BbsClient::new(&endpoints.bbs_url, &Default::default())?;
    let (presences, cells) = watch::channel(Vec::<CellPresence>::new());
    let ledger = Ledger::open(&state.path("")).context("cannot keep an account of the disk")?;
    let gardener = gardener(state, flags, &ledger, &diego.cluster).await?;
    diego.gardener = Some(gardener.clone());

    lifecycle::pack(&state.dir("static")?)?;
    let caches = (sockets.file_server, sockets.registry_cache);
    start_caches(state, &mut diego.cluster, &ledger, caches, &flags.registries)?;
    start_control(state, &mut diego.cluster, &bbs, cells, sockets.bbs, sockets.auctioneer)?;
    let credentials = endpoints.ssh_credentials.clone();
    let identity = identity(state)?;
    let backends = router::Backends::signed_by(&identity.ca_certificate_pem)?;
    let ssh = (sockets.ssh, host_key, credentials);
    start_connections(&mut diego.cluster, &bbs, (sockets.router, backends), ssh);
    let resources = resources(flags, &gardener).await?;
    let cell = executor::Config { ledger: Some(ledger), ..cell_config(state, resources, identity)? };
    start_cell(flags, diego, &bbs, presences, cell, (sockets.rep, sockets.rep_admin))?;

    let ready = async {
        until_ready(&bbs).await?;
        state.write_endpoints(&endpoints)?;
        greet(&endpoints, state)?;
        std::future::pending::<Result<()>>().await
    };
    tokio::select! {
        failed = ready => failed,
        error = diego.cluster.first_to_end() => Err(error),
        error = diego.cell.first_to_end() => Err(error),
    }
}

fn endpoints(state: &StateDir, sockets: &Sockets, flags: &Flags) -> Result<Endpoints> {
    let password = state.kept("ssh_password", || Ok(uuid::Uuid::new_v4().simple().to_string()))?;
    Ok(Endpoints {
        pid: std::process::id(),
        bbs_url: sockets.bbs.url(),
        router_address: sockets.router.address.to_string(),
        domain: flags.domain.clone(),
        ssh_address: sockets.ssh.address.to_string(),
        ssh_credentials: format!("diego:{password}"),
        file_server_url: sockets.file_server.url(),
        registry_cache_url: sockets.registry_cache.url(),
        preloaded: flags.stacks.iter().map(|(name, _)| name.clone()).collect(),
    })
}

async fn gardener(state: &StateDir, flags: &Flags, ledger: &Ledger, cluster: &Parts) -> Result<Gardener> {
    let mut config = garden::gardener::Config::new(state.dir("garden")?);
    config.containerizer.init = lifecycle::beside("garden-init")?;
    config.networker.external_ip = Some(flags.external_ip);
    config.networker.deny_networks = vec![LINK_LOCAL.into()];
    config.max_containers = flags.max_containers;
    config.rootfs.quota.image_bytes = flags.disk_mb.map(|mebibytes| mebibytes << 20);
    config.rootfs.ledger = Some(ledger.clone());
    config.rootfs.registries = (*flags.registries).clone().policy();
    config.destroy_containers_on_stop = true;
    slot::apply(flags.slot, &mut config.containerizer, &mut config.networker);
    let gardener = Gardener::start(config, Arc::new(SystemClock), cluster.shutdown()).await;
    gardener.context("cannot start garden")
}

fn start_caches(
    state: &StateDir,
    cluster: &mut Parts,
    ledger: &Ledger,
    (files, registry): (Socket, Socket),
    registries: &Registries,
) -> Result<()> {
    let blobs = state.dir("blobs")?;
    let account = ledger.of_disk(&blobs)?;
    let make_room: file_server::MakeRoom = Arc::new(move |bytes| {
        let claim = account.claim("a blob", bytes).map_err(|error| error.to_string())?;
        Ok(Box::new(claim))
    });
    let files = file_server::Config {
        listen: files.listen(),
        static_dir: state.dir("static")?,
        blobs: Some(file_server::BlobDir { path: blobs, make_room }),
    };
    cluster.start("file server", file_server::run(files, cluster.shutdown()));
    let address = registry.address.to_string();
    let mut registry = cache::Config::new(registry.listen(), state.dir("registry-cache")?);
    registry.advertised = Some(address);
    registry.ledger = Some(ledger.clone());
    registry.upstream = registries.clone().policy();
    cluster.start("registry cache", cache::run(registry, cluster.shutdown()));
    Ok(())
}

fn start_control(
    state: &StateDir,
    cluster: &mut Parts,
    bbs: &BbsClient,
    cells: watch::Receiver<Vec<CellPresence>>,
    bbs_socket: Socket,
    auctioneer_socket: Socket,
) -> Result<()> {
    let http = diego_base::http::client(&Default::default())?;
    let auctioneer = Arc::new(AuctioneerClient::new(http.clone(), &auctioneer_socket.url()));
    let config = bbs::Config::new(bbs_socket.listen(), state.path("bbs.sqlite"), auctioneer, cells)?;
    cluster.start("BBS", bbs::run(config, cluster.shutdown()));
    let config = auctioneer::Config::new(auctioneer_socket.listen(), bbs.clone(), http);
    cluster.start("auctioneer", auctioneer::run(config, cluster.shutdown()));
    Ok(())
}

fn start_connections(
    cluster: &mut Parts,
    bbs: &BbsClient,
    (router_socket, backends): (Socket, router::Backends),
    (ssh, host_key, credentials): (Socket, String, String),
) {
    let routing = Routing::default();
    cluster.start_endless("routes", routes::watch::run(bbs.clone(), routing.clone(), cluster.shutdown()));
    cluster.start("router", router::run(router_socket.listen(), routing, backends, cluster.shutdown()));
    let mut config = ssh_proxy::Config::new(
        ssh.listen(),
        Arc::new(BbsInstances { bbs: bbs.clone(), connect_to_instance_address: false }),
    );
    config.host_key = Some(host_key);
    config.diego_credentials = Some(credentials);
    cluster.start("ssh proxy", ssh_proxy::run(config, cluster.shutdown()));
}

/// The authority that signs what instances show, kept for those that outlive this process.
fn identity(state: &StateDir) -> Result<InstanceIdentity> {
    let pem = state.kept("instance_identity_ca.pem", || Ok(InstanceIdentity::new_authority()?))?;
    InstanceIdentity::of(&pem).context("instance_identity_ca.pem holds no certificate with its key")
}

fn cell_config(
    state: &StateDir,
    resources: CellResources,
    identity: InstanceIdentity,
) -> Result<executor::Config> {
    let downloads = diego_base::http::ClientConfig { timeout: None, ..Default::default() };
    let http = diego_base::http::client(&downloads)?;
    let mut config = executor::Config::new(CELL_ID, resources, state.dir("executor")?, http);
    config.disk_follows_garden = true;
    config.destroy_containers_on_stop = true;
    config.instance_identity = Some(identity);
    config.container_proxy = Some(ContainerProxy::default());
    Ok(config)
}

fn start_cell(
    flags: &Flags,
    diego: &mut Diego,
    bbs: &BbsClient,
    presences: watch::Sender<Vec<CellPresence>>,
    config: executor::Config,
    (socket, admin): (Socket, Socket),
) -> Result<()> {
    let Some(gardener) = &diego.gardener else { bail!("a cell needs garden") };
    let executor = Executor::new(config, Arc::new(gardener.clone()), executor::logs::Logs::new(Vec::new()))?;
    let identity = rep::Identity {
        cell_id: CELL_ID.into(),
        rep_url: socket.url(),
        zone: ZONE.into(),
        stacks: rep::Stacks(stacks(flags)),
        rootfs_schemes: vec!["docker".into(), "oci".into()],
        ..Default::default()
    };
    let mut config = rep::Config::new(identity, socket.listen(), bbs.clone(), Arc::new(presences));
    config.admin_listen = Some(admin.listen());
    diego.cell.start("rep", rep::run(config, executor, diego.cell.shutdown()));
    Ok(())
}

fn stacks(flags: &Flags) -> BTreeMap<String, String> {
    let path = |path: &PathBuf| path.display().to_string();
    flags.stacks.iter().map(|(name, at)| (name.clone(), path(at))).collect()
}

async fn resources(flags: &Flags, gardener: &Gardener) -> Result<CellResources> {
    let capacity = gardener.capacity().await.context("cannot tell what garden can give")?;
    Ok(CellResources {
        memory_mb: flags.memory_mb.unwrap_or(capacity.memory_in_bytes >> 20),
        disk_mb: capacity.disk_in_bytes >> 20,
        containers: flags.max_containers,
    })
}

/// A BBS that answers and knows a cell is all that clients need.
async fn until_ready(bbs: &BbsClient) -> Result<()> {
    let ready = async {
        while !matches!(bbs.cells().await, Ok(cells) if !cells.is_empty()) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(READY_TIME, ready).await.context("the cell did not become ready")
}

fn greet(endpoints: &Endpoints, state: &StateDir) -> Result<()> {
    let state = state.path("");
    let state = state.display();
    crate::operator::print(&format!(
        "Diego is ready. State: {state}  Log: {state}diego.log\n\
         \n\
         Apps answer under http://NAME.{}:{}\n\
         Run an image:   diego --state {state} run HOST:PORT/REPOSITORY:TAG\n\
         Stop with Ctrl-C.",
        endpoints.domain,
        endpoints.router_address.rsplit(':').next().unwrap_or_default(),
    ))
}
