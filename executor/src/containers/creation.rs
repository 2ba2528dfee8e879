//! From an initialized container to one that exists in garden: what is mounted into it, what garden is asked for,
//! and what it answered. Undone by [`release`], which is safe however far this came.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::future;
use garden_client::{
    BindMount, ContainerInfo, ContainerSpec, CpuLimits, DiskLimits, ImageRef, Limits, MemoryLimits,
    NETWORK_NAMESPACE_PROPERTY, NetworkNamespace, NotANamespace, PidLimits, Properties,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::store::{failure, stopped_before_running};
use super::{egress, files};
use crate::cache::{Fetched, Wanted};
use crate::credentials::Issued;
use crate::depot::Journal;
use crate::edge::ports::Front;
use crate::edge::{self, Edge, Place, Shown};
use crate::logs::{LogStream, Out};
use crate::steps::{byte_size, report};
use crate::volumes::{self, Volume};
use crate::{
    Attempt, CachedDependency, Container, Occurrence, PortMapping, RunInfo, RunResult, Shared, VolumeMount,
    credentials,
};

const MEBIBYTE: u64 = 1024 * 1024;
const MODE_READ_ONLY: u8 = 0;
const MODE_READ_WRITE: u8 = 1;
const ORIGIN_HOST: u8 = 0;
const SCOPE_TOTAL: u8 = 0;
const SCOPE_EXCLUSIVE: u8 = 1;

/// What a created container holds on to until it is destroyed.
#[derive(Default)]
pub(crate) struct Held {
    pub dependencies: Vec<Fetched>,
    pub volumes: Vec<Volume>,
    /// Given to whoever runs it.
    pub edge: Option<Edge>,
}

/// What is created, and by whose wish.
pub(crate) struct Order<'a> {
    pub shared: &'a Arc<Shared>,
    pub guid: &'a str,
    pub run_info: &'a RunInfo,
    pub logs: &'a LogStream,
    pub stop: &'a CancellationToken,
    pub journal: &'a Journal,
}

/// What is mounted and set in the environment besides what the recipe says itself.
#[derive(Default)]
struct Furnishing {
    mounts: Vec<BindMount>,
    env: Vec<String>,
}

impl Order<'_> {
    pub async fn create(&self, held: &mut Held) -> Result<Container, RunResult> {
        let furnishing = self.furnish(held).await?;
        if self.stop.is_cancelled() {
            return Err(stopped_before_running());
        }
        let (cell, guid) = (&self.shared.config.cell_id, self.guid);
        self.logs.announce(Out::Out, &format!("Cell {cell} creating container for instance {guid}"));
        match self.create_in_garden(furnishing, held).await {
            Ok((container, edge)) => {
                held.edge = edge;
                self.logs.announce(
                    Out::Out,
                    &format!("Cell {cell} successfully created container for instance {guid}"),
                );
                Ok(container)
            }
            Err(error) => {
                tracing::error!(guid, error, "executor.container-setup-failed");
                self.logs.announce(
                    Out::Err,
                    &format!("Cell {cell} failed to create container for instance {guid}: {error}"),
                );
                Err(failure(&format!("failed to create container: {error}"), true))
            }
        }
    }

    async fn furnish(&self, held: &mut Held) -> Result<Furnishing, RunResult> {
        let mut furnishing = Furnishing::default();
        self.dependencies(held, &mut furnishing).await?;
        let config = &self.shared.config;
        let certificates_path = &self.run_info.trusted_system_certificates_path;
        if let Some(source) = &config.trusted_system_certificates
            && !certificates_path.is_empty()
        {
            furnishing.mounts.push(read_only(source.clone(), certificates_path));
            furnishing.env.push(format!("CF_SYSTEM_CERT_PATH={certificates_path}"));
        }
        self.volumes(held, &mut furnishing).await?;
        if config.instance_identity.is_some() {
            let dir = credentials::prepare(config, self.guid).map_err(|error| {
                self.log_failure(&error);
                failure("failed to create credentials directory", true)
            })?;
            furnishing.mounts.push(read_only(dir, credentials::CONTAINER_PATH));
            furnishing.env.extend(credentials::environment());
        }
        if !self.run_info.volume_mounted_files.is_empty() {
            let written = files::write(config, self.guid, &self.run_info.volume_mounted_files);
            let dir = written.map_err(|error| {
                self.log_failure(&error);
                failure("failed to create volume mounted files", true)
            })?;
            furnishing.mounts.push(read_only(dir, files::CONTAINER_PATH));
        }
        if let Some(assets) = &config.healthcheck_assets {
            furnishing.mounts.push(read_only(assets.clone(), "/etc/cf-assets/healthcheck"));
        }
        Ok(furnishing)
    }

    fn log_failure(&self, error: &dyn std::error::Error) {
        tracing::error!(guid = self.guid, error = %report(error), "executor.container-setup-failed");
    }

    /// One after the other, as they may lie within one another.
    async fn volumes(&self, held: &mut Held, furnishing: &mut Furnishing) -> Result<(), RunResult> {
        for mount in &self.run_info.volume_mounts {
            let mounting = self.stop.run_until_cancelled(self.volume(mount, held)).await;
            let source = mounting.ok_or_else(stopped_before_running)?.map_err(|error| {
                self.log_failure(&error);
                let told = error.for_users().map(|told| format!(", errors: {told}")).unwrap_or_default();
                failure(&format!("failed to mount volume{told}"), true)
            })?;
            let mode = if mount.writable { MODE_READ_WRITE } else { MODE_READ_ONLY };
            furnishing.mounts.push(BindMount { mode, ..read_only(source, &mount.container_path) });
        }
        Ok(())
    }

    async fn volume(&self, mount: &VolumeMount, held: &mut Held) -> Result<PathBuf, volumes::Error> {
        let begun = Instant::now();
        let mounting = async {
            let volume = self.shared.volumes.volume(self.guid, mount)?;
            let path = self.shared.volumes.mount(&volume, &mount.config).await?;
            Ok::<_, volumes::Error>((volume, path))
        };
        let mounted = mounting.await;
        let (driver, attempt) = (mount.driver.as_str().into(), Attempt::of(begun, &mounted));
        self.shared.config.witness.saw(Occurrence::Mount { driver, attempt });
        let (volume, path) = mounted?;
        held.volumes.push(volume);
        Ok(path)
    }

    /// All at once; the first that fails ends the others.
    async fn dependencies(&self, held: &mut Held, furnishing: &mut Furnishing) -> Result<(), RunResult> {
        let cancel = self.stop.child_token();
        let fetching = self.run_info.cached_dependencies.iter().map(|dependency| async {
            let fetched = self.dependency(dependency, &cancel).await;
            if fetched.is_none() {
                cancel.cancel();
            }
            fetched
        });
        let fetched = future::join_all(fetching).await;
        if self.stop.is_cancelled() {
            return Err(stopped_before_running());
        }
        for (dependency, fetched) in self.run_info.cached_dependencies.iter().zip(fetched) {
            let fetched = fetched.ok_or_else(|| failure("failed to download cached artifacts", true))?;
            furnishing.mounts.push(read_only(fetched.path().to_path_buf(), &dependency.to));
            held.dependencies.push(fetched);
        }
        Ok(())
    }

    async fn dependency(&self, dependency: &CachedDependency, cancel: &CancellationToken) -> Option<Fetched> {
        let logs = self.logs.with_source(&dependency.log_source);
        let name = &dependency.name;
        let tell = |text: String| {
            if !name.is_empty() {
                logs.announce(Out::Out, &text);
            }
        };
        tell(format!("Downloading {name}..."));
        let wanted = Wanted {
            url: &dependency.from,
            cache_key: &dependency.cache_key,
            checksum_algorithm: &dependency.checksum_algorithm,
            checksum_value: &dependency.checksum_value,
        };
        match self.shared.cache.directory(&wanted, cancel).await {
            Ok(fetched) => {
                tell(match fetched.downloaded_bytes {
                    0 => format!("Downloaded {name}"),
                    bytes => format!("Downloaded {name} ({})", byte_size(bytes)),
                });
                Some(fetched)
            }
            Err(error) => {
                if !cancel.is_cancelled() {
                    self.log_failure(&error);
                    tell(format!("Downloading {name} failed"));
                }
                None
            }
        }
    }

    async fn create_in_garden(
        &self,
        furnishing: Furnishing,
        held: &Held,
    ) -> Result<(Container, Option<Edge>), String> {
        let garden = &self.shared.garden;
        let fronts = self.fronts()?;
        let spec = self.spec(furnishing, &fronts)?;
        let limits = (spec.limits.memory.limit_in_bytes, spec.limits.disk.byte_hard);
        let begun = Instant::now();
        let created = garden.create(spec).await;
        self.shared.config.witness.saw(Occurrence::Create(Attempt::of(begun, &created)));
        created.map_err(|error| error.to_string())?;
        self.shared.store.change(self.guid, |container| container.in_garden = true);
        let info = garden.info(self.guid).await.map_err(|error| error.to_string())?;
        let addresses = Addresses::of(&info);
        let identity = self.identity(&addresses)?;
        let edge = match &identity {
            Some(identity) => self.open_edge(&fronts, &info, &addresses, identity).await?,
            None => None,
        };
        let served: &[Front] = if edge.is_some() { &fronts } else { &[] };
        let ports = edge::ports::mapped(&ports(self.run_info), served, &info);
        let fill = move |container: &mut Container| {
            container.in_garden = true;
            (container.memory_limit_bytes, container.disk_limit_bytes) = limits;
            container.external_ip = addresses.external;
            container.internal_ip = addresses.internal;
            container.internal_ipv6 = addresses.internal_v6;
            container.ports = ports;
            if container.state == crate::State::Initializing {
                container.state = crate::State::Created;
            }
        };
        let (downloads, volumes) =
            (held.dependencies.iter().map(Fetched::name).collect(), held.volumes.clone());
        let noted = fill.clone();
        let noted = self.journal.note(move |record| {
            noted(&mut record.container);
            record.downloads = downloads;
            record.volumes = volumes;
        });
        noted.await.map_err(|error| report(&error))?;
        let container = self.shared.store.change(self.guid, fill);
        Ok((container.ok_or_else(|| "container not found".to_string())?, edge))
    }

    /// What the container is shown as, and shows; where it finds that itself.
    pub(super) fn identity(&self, addresses: &Addresses) -> Result<Option<Issued>, String> {
        let config = &self.shared.config;
        let Some(authority) = &config.instance_identity else { return Ok(None) };
        let ip = addresses.internal.or(addresses.external);
        let issued = credentials::identity(config, authority, self.guid, self.run_info, ip)
            .and_then(|issued| credentials::write(config, self.guid, &issued).map(|()| issued));
        issued.map(Some).map_err(|error| report(&error))
    }

    /// The ports that speak TLS.
    pub(super) fn fronts(&self) -> Result<Vec<Front>, String> {
        if self.shared.edges.is_none() || !self.run_info.enable_container_proxy {
            return Ok(Vec::new());
        }
        edge::ports::fronts(&ports(self.run_info)).map_err(|error| error.to_string())
    }

    /// Before the app has its first process: nobody else has the ports yet.
    pub(super) async fn open_edge(
        &self,
        fronts: &[Front],
        info: &ContainerInfo,
        addresses: &Addresses,
        identity: &Issued,
    ) -> Result<Option<Edge>, String> {
        let config = &self.shared.config;
        let (Some(edges), Some(authority)) = (&self.shared.edges, &config.instance_identity) else {
            return Ok(None);
        };
        if fronts.is_empty() {
            return Ok(None);
        }
        let (Some(told), Some(app)) = (info.properties.get(NETWORK_NAMESPACE_PROPERTY), addresses.internal)
        else {
            return edges.cannot_enter(self.guid).map(|()| None);
        };
        let network: NetworkNamespace = told.parse().map_err(|error: NotANamespace| error.to_string())?;
        let routes = &self.run_info.internal_routes;
        let to_containers =
            credentials::container_to_container(config, authority, self.guid, self.run_info, routes)
                .map_err(|error| report(&error))?;
        let shown = Shown { to_routers: identity, to_containers: &to_containers };
        let place = Place { network, app, has_ipv6: addresses.internal_v6.is_some() };
        let opened = edges.open(self.guid, place, fronts, shown, self.stop.child_token()).await;
        opened.map(Some).map_err(|error| report(&error))
    }

    fn spec(&self, furnishing: Furnishing, fronts: &[Front]) -> Result<ContainerSpec, String> {
        let (config, run_info) = (&self.shared.config, self.run_info);
        let unproxied = config.container_proxy.as_ref().is_none_or(|proxy| proxy.unproxied_port_mappings);
        let resource =
            self.shared.store.get(self.guid).map(|container| container.resource).unwrap_or_default();
        let mut env: Vec<String> =
            run_info.env.iter().map(|var| format!("{}={}", var.name, var.value)).collect();
        env.extend(furnishing.env);
        let cpu = CpuLimits {
            weight: if config.set_cpu_weight { resource.memory_mb } else { 0 },
            limit_in_shares: config.cpu_shares_max * u64::from(run_info.cpu_weight) / 100,
        };
        // The root filesystem a cell has preloaded is not its user's to pay for; an image of one's own is.
        let preloaded = run_info.rootfs.starts_with("preloaded");
        let disk = DiskLimits {
            byte_hard: resource.disk_mb * MEBIBYTE,
            inode_hard: config.container_inode_limit,
            scope: if preloaded { SCOPE_EXCLUSIVE } else { SCOPE_TOTAL },
            ..DiskLimits::default()
        };
        Ok(ContainerSpec {
            handle: self.guid.to_string(),
            image: ImageRef {
                uri: run_info.rootfs.clone(),
                username: run_info.image_username.clone(),
                password: run_info.image_password.clone(),
            },
            privileged: run_info.privileged,
            bind_mounts: furnishing.mounts,
            env,
            limits: Limits {
                cpu,
                disk,
                memory: MemoryLimits { limit_in_bytes: resource.memory_mb * MEBIBYTE },
                pid: PidLimits { max: resource.max_pids },
                ..Limits::default()
            },
            properties: properties(&config.owner_name, run_info),
            net_in: edge::ports::net_in(&ports(run_info), fronts, unproxied),
            net_out: egress::net_out_rules(&run_info.egress_rules).map_err(|error| error.to_string())?,
            ..ContainerSpec::default()
        })
    }
}

/// Gives back what [`Order::create`] made outside garden.
pub(crate) async fn release(shared: &Shared, guid: &str, held: &mut Held) {
    held.dependencies.clear();
    for dir in [credentials::dir(&shared.config, guid), files::dir(&shared.config, guid)] {
        match tokio::fs::remove_dir_all(&dir).await {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::error!(guid, dir = %dir.display(), %error, "executor.cannot-remove-directory")
            }
        }
    }
}

/// Gives back the volumes of a container that garden no longer has. A driver that fails is asked again, by and by.
pub(crate) async fn unmount(shared: &Shared, guid: &str, held: &mut Held) {
    while let Some(volume) = held.volumes.pop() {
        let begun = Instant::now();
        let unmounted = shared.volumes.unmount(&volume).await;
        let (driver, attempt) = (volume.driver.as_str().into(), Attempt::of(begun, &unmounted));
        shared.config.witness.saw(Occurrence::Unmount { driver, attempt });
        if let Err(error) = unmounted {
            tracing::error!(guid, error = %report(&error), "executor.failed-to-unmount-volume");
        }
    }
}

fn read_only(source: PathBuf, destination: &str) -> BindMount {
    BindMount {
        src_path: source.to_string_lossy().into_owned(),
        dst_path: destination.to_string(),
        mode: MODE_READ_ONLY,
        origin: ORIGIN_HOST,
    }
}

/// `executor:owner`, `network.…`, and the log configuration for whoever reads garden instead of us.
fn properties(owner: &str, run_info: &RunInfo) -> Properties {
    let network = run_info.network_properties.iter();
    let mut properties: Properties =
        network.map(|(key, value)| (format!("network.{key}"), value.clone())).collect();
    properties.insert(super::OWNER_PROPERTY.to_string(), owner.to_string());
    properties.insert("log_config".to_string(), super::log_config_json(&run_info.log_config));
    properties
}

/// The first mapping of each container port.
fn ports(run_info: &RunInfo) -> Vec<PortMapping> {
    let mut ports: Vec<PortMapping> = Vec::new();
    for port in &run_info.ports {
        if !ports.iter().any(|seen| seen.container_port == port.container_port) {
            ports.push(*port);
        }
    }
    ports
}

pub(super) struct Addresses {
    external: Option<IpAddr>,
    internal: Option<IpAddr>,
    internal_v6: Option<IpAddr>,
}

impl Addresses {
    pub fn of(info: &ContainerInfo) -> Self {
        Addresses {
            external: info.external_ip.parse().ok(),
            internal: info.container_ip.parse().ok(),
            internal_v6: info.container_ipv6.parse().ok(),
        }
    }
}
