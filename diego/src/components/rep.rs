//! `rep`: a cell's voice and its executor, over a garden that is a process of its own.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use bbs_models::PreferredAddress;
use clap::Args;
use diego_base::http::ClientConfig;
use diego_base::serve::Listen;
use diego_base::tls::Files;
use executor::logs::Logs;
use executor::{CellResources, Executor};
use garden_client::{Address, Capacity, Garden, HttpGarden};
use rep::{Identity, LayeringMode, Stacks};
use tokio_util::sync::CancellationToken;

use super::edge::Edge;
use super::flags::{self, Bbs, Log, Tls, stack};
use super::forward::{self, Forward};
use super::tuning::Tuning;

/// Between two attempts to reach a garden that is not up yet.
const GARDEN_RETRY: Duration = Duration::from_millis(200);

#[derive(Args)]
pub struct Flags {
    /// The cell's name; no two cells of a BBS may have the same.
    #[arg(long)]
    cell_id: String,
    /// Instances of an LRP are spread over zones first.
    #[arg(long, default_value = "z1")]
    zone: String,
    /// For the platform: the auctioneer and the BBS call here.
    #[arg(long, default_value = "127.0.0.1:1801")]
    listen: SocketAddr,
    /// For this machine's administrator: ping and evacuate.
    #[arg(long, default_value = "127.0.0.1:1800")]
    admin_listen: SocketAddr,
    /// The URL at which the platform reaches --listen, if that does not say it.
    #[arg(long)]
    rep_url: Option<String>,
    /// Tell routers that they had better use the containers' own addresses.
    #[arg(long)]
    advertise_preference_for_instance_address: bool,
    /// Garden's unix socket, or its HOST:PORT.
    #[arg(long, default_value = "/run/diego/garden.sock", value_parser = garden_address)]
    garden: Address,
    /// The Locket that is told that this cell is there, as `HOST:PORT`.
    #[arg(long, default_value = "127.0.0.1:8891")]
    locket: String,
    /// Downloads, the cache and instances' credentials.
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
    tuning: Tuning,
    #[command(flatten)]
    pub log: Log,
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
}

impl Peers {
    fn locket(&self, usual: &ClientConfig) -> ClientConfig {
        with_files(usual, [&self.locket_cert_file, &self.locket_key_file, &self.locket_ca_cert_file])
    }

    /// However long they take.
    fn downloads(&self, usual: &ClientConfig) -> ClientConfig {
        let files = [&self.downloads_cert_file, &self.downloads_key_file, &self.downloads_ca_cert_file];
        ClientConfig { timeout: None, ..with_files(usual, files) }
    }
}

fn with_files(usual: &ClientConfig, [cert, key, ca]: [&Option<PathBuf>; 3]) -> ClientConfig {
    let files = cert.clone().zip(key.clone()).map(|(cert, key)| Files { cert, key, ca: ca.clone() });
    ClientConfig { tls: files.or_else(|| usual.tls.clone()), ..usual.clone() }
}

/// What the cell can run, and how much of it.
#[derive(Args)]
struct Offer {
    /// A root filesystem by its name and its path where garden runs, as NAME=PATH. May be given many times.
    #[arg(long = "stack", value_parser = stack)]
    stacks: Vec<(String, String)>,
    /// A URL scheme of which the cell runs any image. May be given many times.
    #[arg(long = "rootfs-provider", default_values = ["docker", "oci"])]
    rootfs_providers: Vec<String>,
    /// Only work with this tag comes here, and none without it. May be given many times.
    #[arg(long = "placement-tag")]
    placement_tags: Vec<String>,
    /// Work with this tag may come here too. May be given many times.
    #[arg(long = "optional-placement-tag")]
    optional_placement_tags: Vec<String>,
    /// Make a droplet a layer of the root filesystem instead of unpacking it in each container.
    #[arg(long)]
    two_layer: bool,
    /// For containers, in MiB; otherwise what garden has.
    #[arg(long)]
    memory_mb: Option<u64>,
    /// For containers, in MiB; otherwise what garden has.
    #[arg(long)]
    disk_mb: Option<u64>,
    #[arg(long, default_value_t = 250)]
    max_containers: u64,
}

fn garden_address(text: &str) -> Result<Address, String> {
    if text.contains('/') {
        return Ok(Address::Unix(text.into()));
    }
    text.parse().map(Address::Tcp).map_err(|_| "it must be /PATH or IP:PORT".into())
}

pub async fn run(flags: Flags, shutdown: CancellationToken) -> Result<()> {
    let client = flags.tls.client();
    let presences = flags::locket(&flags.locket, &flags.peers.locket(&client))?;
    let mut config = rep::Config::new(
        flags.identity(),
        Listen::Tcp(flags.listen),
        flags.bbs.client(&client)?,
        Arc::new(presences),
    );
    config.tls = flags.tls.server()?;
    config.admin_listen = Some(Listen::Tcp(flags.admin_listen));
    if flags.offer.two_layer {
        config.layering_mode = LayeringMode::TwoLayer;
    }
    if flags.advertise_preference_for_instance_address {
        config.preferred_address = PreferredAddress::Instance;
    }
    flags.tuning.apply_to_rep(&mut config);
    let garden = HttpGarden::new(flags.garden.clone());
    let capacity = tokio::select! {
        capacity = until_garden_answers(&garden) => capacity,
        () = shutdown.cancelled() => return Ok(()),
    };
    let forwarding = flags.forward.start(&flags.cell_id)?;
    let logs = forward::logs(forwarding.as_ref());
    let executor = executor(&flags, capacity, client, garden, logs)?;
    // Outlives the rep, so that the last words of the containers it stops are forwarded too.
    let ended = CancellationToken::new();
    let forwarding =
        forwarding.map(|forwarding| tokio::spawn(forwarding.run(executor.clone(), ended.clone())));
    let result = rep::run(config, executor, shutdown).await;
    ended.cancel();
    if let Some(forwarding) = forwarding {
        forwarding.await.context("forwarding logs and metrics failed")?;
    }
    Ok(result?)
}

/// Garden and the rep may start in any order; a garden that never comes is a cell that never is.
async fn until_garden_answers(garden: &HttpGarden) -> Capacity {
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
    flags: &Flags,
    capacity: Capacity,
    client: ClientConfig,
    garden: HttpGarden,
    logs: Logs,
) -> Result<Executor> {
    let state_dir = &flags.state_dir;
    std::fs::create_dir_all(state_dir).with_context(|| format!("cannot make {}", state_dir.display()))?;
    let http = diego_base::http::client(&flags.peers.downloads(&client))
        .context("cannot make a client for downloads")?;
    let total = flags.offer.resources(capacity);
    let mut config = executor::Config::new(&flags.cell_id, total, state_dir.to_owned(), http);
    config.disk_follows_garden = flags.offer.disk_mb.is_none();
    flags.tuning.apply_to_executor(&mut config);
    flags.edge.apply(&mut config)?;
    Ok(Executor::new(config, Arc::new(garden), logs)?)
}

impl Flags {
    fn identity(&self) -> Identity {
        let url = || format!("{}://{}", self.tls.scheme(), self.listen);
        Identity {
            cell_id: self.cell_id.clone(),
            rep_url: self.rep_url.clone().unwrap_or_else(url),
            zone: self.zone.clone(),
            stacks: Stacks(self.offer.stacks.iter().cloned().collect()),
            rootfs_schemes: self.offer.rootfs_providers.clone(),
            placement_tags: self.offer.placement_tags.clone(),
            optional_placement_tags: self.offer.optional_placement_tags.clone(),
            ..Identity::default()
        }
    }
}

impl Offer {
    fn resources(&self, garden: Capacity) -> CellResources {
        // Not more than garden can make.
        let containers = match garden.max_containers {
            0 => self.max_containers,
            most => self.max_containers.min(most),
        };
        CellResources {
            memory_mb: self.memory_mb.unwrap_or(garden.memory_in_bytes >> 20),
            disk_mb: self.disk_mb.unwrap_or(garden.disk_in_bytes >> 20),
            containers,
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
