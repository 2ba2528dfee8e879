//! `rep`: a cell's voice and its executor, over a garden that is a process of its own.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bbs_models::PreferredAddress;
use clap::Args;
use diego_base::directory;
use diego_base::http::ClientConfig;
use diego_base::serve::Listen;
use executor::logs::Logs;
use executor::{CellResources, Executor};
use garden_client::{Address, Capacity, Garden, HttpGarden};
use rep::{Identity, LayeringMode, LocketPresences, Stacks};
use tokio_util::sync::CancellationToken;

use super::edge::Edge;
use super::flags::{self, Bbs, Log, Tls, stack, with_files};
use super::forward::{self, Forward, Forwarding};
use super::garden_check;
use super::metrics::{self, Said, Tally};
use super::tuning::Tuning;

/// Between two attempts to reach a garden that is not up yet.
const GARDEN_RETRY: Duration = Duration::from_millis(200);
pub const CONTAINERS_MAX: u64 = 250;
/// Beside the records of containers.
const PRESENCE_OWNER_FILE: &str = ".presence-owner";

#[derive(Args)]
pub struct Flags {
    /// Garden's unix socket, or its HOST:PORT.
    #[arg(long, default_value = "/run/diego/garden.sock", value_parser = garden_address)]
    garden: Address,
    /// For containers, in MiB; otherwise what garden has.
    #[arg(long)]
    disk_mb: Option<u64>,
    /// Of garden's disk, in MiB, kept for others than containers; without effect beside --disk-mb.
    #[arg(long, default_value_t = 0)]
    disk_kept_mb: u64,
    #[arg(long, default_value_t = CONTAINERS_MAX)]
    max_containers: u64,
    /// Destroy all containers when told to stop, instead of leaving them to the next rep.
    #[arg(long)]
    destroy_containers_on_stop: bool,
    #[command(flatten)]
    voice: Voice,
    #[command(flatten)]
    pub log: Log,
}

/// What a rep is told, wherever its garden is.
#[derive(Args)]
pub struct Voice {
    /// The cell's name; no two cells of a BBS may have the same.
    #[arg(long)]
    cell_id: String,
    /// Which of the cells of its kind it is; the auctioneer prefers lower ones when it packs them.
    #[arg(long, default_value_t = 0)]
    cell_index: i32,
    /// Instances of an LRP are spread over zones first.
    #[arg(long, default_value = "z1")]
    zone: String,
    /// For the platform: the auctioneer and the BBS call here.
    #[arg(long, default_value = "127.0.0.1:1801")]
    listen: SocketAddr,
    /// For this machine's administrator: ping and evacuate. Over TLS as --listen is.
    #[arg(long, default_value = "127.0.0.1:1800")]
    admin_listen: SocketAddr,
    /// Serve /metrics, for Prometheus, on this address.
    #[arg(long)]
    debug_listen: Option<SocketAddr>,
    /// The URL at which the platform reaches --listen, if that does not say it.
    #[arg(long)]
    rep_url: Option<String>,
    /// Where clients look that know no --rep-url; otherwise that URL.
    #[arg(long)]
    rep_address: Option<String>,
    /// Tell routers that they had better use the containers' own addresses.
    #[arg(long)]
    advertise_preference_for_instance_address: bool,
    /// The Locket that is told that this cell is there, as `HOST:PORT`.
    #[arg(long, default_value = "127.0.0.1:8891")]
    locket: String,
    /// What is known of containers, downloads, the cache and instances' credentials.
    #[arg(long, default_value = "/var/lib/diego/rep")]
    state_dir: PathBuf,
    #[command(flatten)]
    offer: Offer,
    #[command(flatten)]
    edge: Edge,
    #[command(flatten)]
    forward: Forward,
    #[command(flatten)]
    bbs: Bbs,
    #[command(flatten)]
    tls: Tls,
    #[command(flatten)]
    peers: Peers,
    #[command(flatten)]
    garden_check: garden_check::CheckFlags,
    #[command(flatten)]
    tuning: Tuning,
}

/// Whoever is to be met with another certificate than the rest.
#[derive(Args)]
#[command(next_help_heading = "TLS")]
struct Peers {
    /// Shown to Locket; otherwise --cert-file is.
    #[arg(long, requires = "locket_key_file")]
    locket_cert_file: Option<PathBuf>,
    #[arg(long, requires = "locket_cert_file")]
    locket_key_file: Option<PathBuf>,
    /// Authorities, in PEM, one of which must have signed Locket's certificate.
    #[arg(long, requires = "locket_cert_file")]
    locket_ca_cert_file: Option<PathBuf>,
    /// Shown to where downloads come from and uploads go to; otherwise --cert-file is.
    #[arg(long, requires = "downloads_key_file")]
    downloads_cert_file: Option<PathBuf>,
    #[arg(long, requires = "downloads_cert_file")]
    downloads_key_file: Option<PathBuf>,
    /// Authorities, in PEM, one of which must have signed their certificates.
    #[arg(long, requires = "downloads_cert_file")]
    downloads_ca_cert_file: Option<PathBuf>,
    /// Believe whatever certificate they show: for trials.
    #[arg(long)]
    downloads_skip_cert_verify: bool,
}

impl Peers {
    fn locket(&self, usual: &ClientConfig) -> ClientConfig {
        with_files(usual, [&self.locket_cert_file, &self.locket_key_file, &self.locket_ca_cert_file])
    }

    /// However long they take.
    fn downloads(&self, usual: &ClientConfig) -> ClientConfig {
        let files = [&self.downloads_cert_file, &self.downloads_key_file, &self.downloads_ca_cert_file];
        let skip_cert_verify = self.downloads_skip_cert_verify;
        ClientConfig { timeout: None, skip_cert_verify, ..with_files(usual, files) }
    }
}

/// What the cell can run, and how much of it.
#[derive(Args)]
struct Offer {
    /// A root filesystem by its name and its path where garden runs, as NAME=PATH. May be given many times.
    #[arg(long = "stack", value_parser = stack)]
    stacks: Vec<(String, String)>,
    /// A directory of more of them: each file NAME.tar in it, or below it, is one. Looked at when the rep begins.
    #[arg(long)]
    extra_rootfs_dir: Option<PathBuf>,
    /// A URL scheme of which the cell runs any image. May be given many times.
    #[arg(long = "rootfs-provider", default_values = ["docker", "oci"])]
    rootfs_providers: Vec<String>,
    /// Only work with this tag comes here, and none without it. May be given many times.
    #[arg(long = "placement-tag")]
    placement_tags: Vec<String>,
    /// Work with this tag may come here too. May be given many times.
    #[arg(long = "optional-placement-tag")]
    optional_placement_tags: Vec<String>,
    /// What else the cell says of itself in its presence, as KEY=VALUE. May be given many times.
    #[arg(long = "annotation", value_name = "KEY=VALUE", value_parser = annotation)]
    annotations: Vec<(String, String)>,
    /// Make a droplet a layer of the root filesystem instead of unpacking it in each container.
    #[arg(long)]
    two_layer: bool,
    /// A directory of files that say where volume drivers are: NAME.json, NAME.spec or NAME.sock. May be given many times.
    #[arg(long = "volume-driver-dir")]
    volume_driver_dirs: Vec<PathBuf>,
    /// For containers, in MiB; otherwise what garden has.
    #[arg(long)]
    memory_mb: Option<u64>,
}

/// What depends on where garden is.
pub struct Limits {
    pub disk_mb: Option<u64>,
    /// Of garden's, where `disk_mb` does not say it all.
    pub disk_kept_mb: u64,
    pub containers: u64,
    pub destroy_containers_on_stop: bool,
}

fn annotation(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.into(), value.into())),
        _ => Err("it must be KEY=VALUE".into()),
    }
}

fn garden_address(text: &str) -> Result<Address, String> {
    if text.contains('/') {
        return Ok(Address::Unix(text.into()));
    }
    text.parse().map(Address::Tcp).map_err(|_| "it must be /PATH or IP:PORT".into())
}

pub async fn run(flags: Flags, shutdown: CancellationToken) -> Result<()> {
    let garden = HttpGarden::new(flags.garden);
    let limits = Limits {
        disk_mb: flags.disk_mb,
        disk_kept_mb: flags.disk_kept_mb,
        containers: flags.max_containers,
        destroy_containers_on_stop: flags.destroy_containers_on_stop,
    };
    speak(flags.voice, limits, Arc::new(garden), shutdown).await
}

/// A rep over any garden.
pub async fn speak(
    voice: Voice,
    limits: Limits,
    garden: Arc<dyn Garden>,
    shutdown: CancellationToken,
) -> Result<()> {
    let client = voice.tls.client();
    let presences = LocketPresences {
        locket: flags::locket(&voice.locket, &voice.peers.locket(&client))?,
        owner: owner(&voice.depot_dir())?,
        times: voice.tuning.presence(),
    };
    let identity = voice.identity();
    let bbs = voice.bbs.client(&ClientConfig { timeout: voice.tuning.bbs_timeout(), ..client.clone() })?;
    let listen = Listen::Tcp(voice.listen);
    let mut config = rep::Config::new(identity, listen, bbs, Arc::new(presences));
    if let Some(address) = &voice.rep_address {
        config.rep_address.clone_from(address);
    }
    config.tls = voice.tls.server()?;
    config.admin_listen = Some(Listen::Tcp(voice.admin_listen));
    config.admin_tls = voice.tls.server()?;
    if voice.offer.two_layer {
        config.layering_mode = LayeringMode::TwoLayer;
    }
    if voice.advertise_preference_for_instance_address {
        config.preferred_address = PreferredAddress::Instance;
    }
    voice.tuning.apply_to_rep(&mut config);
    let begun = Instant::now();
    let first_stack = voice.offer.stacks.first().map(|(_, path)| path.as_str());
    config.garden_check = voice.garden_check.check(&config.identity.stacks, first_stack)?;
    let capacity = tokio::select! {
        capacity = until_garden_answers(garden.as_ref()) => capacity,
        () = shutdown.cancelled() => return Ok(()),
    };
    let forwarding = voice.forward.start(&voice.cell_id)?;
    let tally = Tally::new(forwarding.as_ref().map(Forwarding::teller));
    tally.say(Said::Took(metrics::names::STALLED_GARDEN, begun.elapsed()));
    config.witness = Arc::new(tally.clone());
    let logs = forward::logs(forwarding.as_ref());
    let executor = executor(&voice, limits, capacity, client, garden, logs, tally.clone())?;
    // Outlives the rep, so that the last words of the containers it stops are forwarded too.
    let ended = CancellationToken::new();
    if let Some(address) = voice.debug_listen {
        let forwarder = forwarding.as_ref().map(Forwarding::forwarder);
        let debug = metrics::Debug { executor: executor.clone(), tally: tally.clone(), forwarder };
        debug.serve(address, ended.clone()).await?;
    }
    let forwarding =
        forwarding.map(|forwarding| tokio::spawn(forwarding.run(executor.clone(), tally, ended.clone())));
    let result = rep::run(config, executor, shutdown).await;
    ended.cancel();
    if let Some(forwarding) = forwarding {
        forwarding.await.context("forwarding logs and metrics failed")?;
    }
    Ok(result?)
}

/// As whom the presence is held: made once, so that a rep that is started again holds it on.
fn owner(depot_dir: &Path) -> Result<String> {
    let path = depot_dir.join(PRESENCE_OWNER_FILE);
    directory::claim(depot_dir, executor::DIRECTORY_MARK)?;
    match std::fs::read_to_string(&path) {
        Ok(owner) if !owner.trim().is_empty() => return Ok(owner.trim().to_owned()),
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot read {}", path.display()));
        }
        _ => {}
    }
    let owner = uuid::Uuid::new_v4().to_string();
    std::fs::write(&path, &owner).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(owner)
}

/// Garden and the rep may start in any order; a garden that never comes is a cell that never is.
async fn until_garden_answers(garden: &dyn Garden) -> Capacity {
    let mut said = false;
    loop {
        match garden.capacity().await {
            Ok(capacity) => return capacity,
            Err(error) if !said => tracing::info!(target: "rep", %error, "waiting for garden"),
            Err(error) => tracing::debug!(target: "rep", %error, "waiting for garden"),
        }
        said = true;
        tokio::time::sleep(GARDEN_RETRY).await;
    }
}

fn executor(
    voice: &Voice,
    limits: Limits,
    capacity: Capacity,
    client: ClientConfig,
    garden: Arc<dyn Garden>,
    logs: Logs,
    tally: Tally,
) -> Result<Executor> {
    let http = diego_base::http::client(&voice.peers.downloads(&client))
        .context("cannot make a client for downloads")?;
    let total = voice.resources(&limits, capacity);
    anyhow::ensure!(
        total.disk_mb > 0 || limits.disk_kept_mb == 0,
        "auto disk limit must result in a positive number: garden has {} MiB, {} are kept for others",
        capacity.disk_in_bytes >> 20,
        limits.disk_kept_mb
    );
    let mut config = executor::Config::new(&voice.cell_id, total, voice.state_dir.clone(), http);
    voice.tuning.apply_to_executor(&mut config);
    config.depot_dir = voice.depot_dir();
    config.disk_follows_garden = limits.disk_mb.is_none();
    config.disk_kept_mb = limits.disk_kept_mb;
    config.destroy_containers_on_stop = limits.destroy_containers_on_stop;
    config.volume_driver_dirs.clone_from(&voice.offer.volume_driver_dirs);
    config.witness = Arc::new(tally);
    voice.edge.apply(&mut config)?;
    config.ledger = Some(super::disk::account(&config.cache_dir)?);
    Ok(Executor::new(config, garden, logs)?)
}

impl Voice {
    /// Beside what containers use of this cell.
    fn depot_dir(&self) -> PathBuf {
        self.tuning.temp_dir.as_ref().unwrap_or(&self.state_dir).join("executor-containers")
    }

    fn resources(&self, limits: &Limits, garden: Capacity) -> CellResources {
        // Where garden is checked, the check has a place too: a full cell is no sick one.
        let checks = u64::from(self.garden_check.is_told());
        // Not more than garden can make.
        let containers = match garden.max_containers {
            0 => limits.containers,
            most => limits.containers.min(most.saturating_sub(checks)),
        };
        let disk_mb = (garden.disk_in_bytes >> 20).saturating_sub(limits.disk_kept_mb);
        CellResources {
            memory_mb: self.offer.memory_mb.unwrap_or(garden.memory_in_bytes >> 20),
            disk_mb: limits.disk_mb.unwrap_or(disk_mb),
            containers,
        }
    }

    fn identity(&self) -> Identity {
        let url = || format!("{}://{}", self.tls.scheme(), self.listen);
        let mut stacks = Stacks(self.offer.stacks.iter().cloned().collect());
        let extra_stacks = self.offer.extra_rootfs_dir.as_ref().map(|dir| {
            stacks.take_in(dir).unwrap_or_else(|error| {
                tracing::warn!(target: "rep", dir = %dir.display(), %error, "missing-extra-rootfs");
                Default::default()
            })
        });
        Identity {
            cell_id: self.cell_id.clone(),
            rep_url: self.rep_url.clone().unwrap_or_else(url),
            cell_index: self.cell_index,
            zone: self.zone.clone(),
            stacks,
            extra_stacks: extra_stacks.unwrap_or_default(),
            annotations: self.offer.annotations.iter().cloned().collect(),
            rootfs_schemes: self.offer.rootfs_providers.clone(),
            placement_tags: self.offer.placement_tags.clone(),
            optional_placement_tags: self.offer.optional_placement_tags.clone(),
            ..Identity::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn garden_is_at_a_path_or_at_an_address() {
        assert_eq!(garden_address("/run/g.sock"), Ok(Address::Unix("/run/g.sock".into())));
        assert_eq!(garden_address("127.0.0.1:7777"), Ok(Address::Tcp(([127, 0, 0, 1], 7777).into())));
        assert!(garden_address("garden").is_err());
    }
}
