//! The Garden API over the parts that make containers: the store of images, the containerizer, the networker and the
//! depot. It knows in which order they do their work and how it is undone; how, they know.
//!
//! ```text
//! start    records ─▶ living: reserved, reached, heard │ others: destroyed ─▶ strays swept
//! create   handle ─▶ image + place (blank, link) ─▶ ports reserved ─▶ recorded ─▶ root ─▶ firewall ─▶ recorded ─▶ pid 1
//! destroy  pid 1 ─▶ network, root ─▶ record          every step, whatever the others said; again if one failed
//! ```
//! Containers do not wait for one another: there is a map of them, locked for look-ups only, and each is in one
//! [`entry::Stage`] that says who deals with it. Creation and destruction run in tasks of their own, so that a caller
//! who gives up does not leave halves.

mod create;
mod destroy;
mod drift;
mod entry;
mod image;
mod measure;
mod network;
mod pace;
mod peas;
mod reaper;
mod restore;
#[cfg(test)]
mod survival;
#[cfg(test)]
pub(crate) mod tests;
mod throttle;
mod warm;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use diego_base::clock::Clock;
use garden_client::{
    Capacity, ContainerInfo, ContainerSpec, Error, Garden, ImageRef, Limits, Metrics, NetIn, NetOutRule,
    Process, ProcessIo, ProcessSpec, Properties, Reader, Result, Signal, WindowSize,
};
use tokio_util::sync::CancellationToken;

use crate::containerizer::{self, Containerizer};
use crate::depot::{self, Depot};
use crate::networker::{self, Networker};
use crate::plugins::image::ImagePlugin;
use crate::plugins::network::NetworkPlugin;
use crate::{capacity, properties};
use entry::{Entry, InUse};
use restore::Found;
use warm::Warm;

/// Of a clean stop, when it is to take containers with it.
const LAST_DESTRUCTIONS_AT_ONCE: usize = 16;

/// A disk in trouble is slow; what takes longer will not come.
const STEP_DEADLINE: Duration = Duration::from_secs(60);

/// As many as clients usually ask for at once.
pub const WARM_PLACES: usize = 4;

#[derive(Debug, Clone)]
pub struct Config {
    /// Records of containers, and the store of images in `store` below it.
    pub directory: PathBuf,
    pub containerizer: containerizer::Config,
    pub networker: networker::Config,
    /// Makes the networks instead.
    pub network_plugin: Option<NetworkPlugin>,
    /// Make the roots instead, of unprivileged containers and of privileged ones.
    pub image_plugin: Option<ImagePlugin>,
    pub privileged_image_plugin: Option<ImagePlugin>,
    pub rootfs: rootfs::store::Config,
    /// For containers whose creator gives none. Zero: they are never reaped.
    pub default_grace_time: Duration,
    /// For each thing that is asked of the kernel, or of a disk, on behalf of one container: they take milliseconds.
    pub step_deadline: Duration,
    /// Zero: as many as there are networks.
    pub max_containers: u64,
    pub allow_privileged: bool,
    /// For a creator that names no image.
    pub default_rootfs: String,
    /// Percent of a CPU that one share entitles to; `None`: all CPUs spread over all memory, in MiB.
    pub cpu_entitlement_per_share: Option<f64>,
    /// How often to look who has used more CPU than it is entitled to, and has to make way.
    pub cpu_throttling: Option<Duration>,
    /// Places for containers that are made ahead: namespaces with their link. A few hundred KiB each.
    pub warm_places: usize,
    /// Containers of an earlier garden are destroyed at the start, not taken over.
    pub destroy_containers_on_start: bool,
    /// The OCI runtime makes all containers whose creators do not say otherwise.
    pub oci_for_all: bool,
    /// A clean stop takes containers with it, so that nothing is left on the host.
    pub destroy_containers_on_stop: bool,
}

impl Config {
    pub fn new(directory: PathBuf) -> Self {
        Self {
            directory,
            containerizer: containerizer::Config::default(),
            networker: networker::Config::default(),
            network_plugin: None,
            image_plugin: None,
            privileged_image_plugin: None,
            rootfs: rootfs::store::Config::default(),
            default_grace_time: Duration::ZERO,
            step_deadline: STEP_DEADLINE,
            max_containers: 0,
            allow_privileged: true,
            default_rootfs: String::new(),
            cpu_entitlement_per_share: None,
            cpu_throttling: None,
            warm_places: WARM_PLACES,
            destroy_containers_on_start: false,
            oci_for_all: false,
            destroy_containers_on_stop: false,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cannot open the depot")]
    Depot(#[from] depot::Error),
    #[error("cannot open the store of images")]
    Store(#[from] rootfs::store::Error),
    #[error("cannot start the networker")]
    Networker(#[from] networker::Error),
    #[error("cannot start the containerizer")]
    Containerizer(#[from] containerizer::Error),
    #[error("cannot tell what this machine has")]
    Capacity(#[source] std::io::Error),
    #[error("the start was interrupted")]
    Interrupted,
}

/// Cheap to clone; all clones are the same garden.
#[derive(Clone)]
pub struct Gardener(Arc<Inner>);

struct Inner {
    config: Config,
    clock: Arc<dyn Clock>,
    depot: Depot,
    store: rootfs::store::Store,
    networker: Networker,
    containerizer: Containerizer,
    total_memory_bytes: u64,
    cpu_entitlement_per_share: f64,
    warm: Warm,
    entries: Mutex<BTreeMap<String, Arc<Entry>>>,
    #[cfg(test)]
    fail_after: Mutex<Option<create::Step>>,
}

impl Gardener {
    /// Opens everything, and takes over the containers that an earlier garden on the same directory has left; what it left
    /// half made, or half destroyed, goes. Containers are reaped until `shutdown`.
    pub async fn start(
        config: Config,
        clock: Arc<dyn Clock>,
        shutdown: CancellationToken,
    ) -> std::result::Result<Self, StartError> {
        let runtime = tokio::runtime::Handle::current();
        let opening = tokio::task::spawn_blocking(move || {
            // Parts of the store start tasks when they are opened.
            let _runtime = runtime.enter();
            let opened = Inner::open(config, clock)?;
            let changes = opened.0.networker.listen()?;
            Ok::<_, StartError>((opened, changes))
        });
        let ((inner, found), changes) = opening.await.map_err(|_| StartError::Interrupted)??;
        let gardener = Gardener(Arc::new(inner));
        gardener.restore(found).await?;
        tokio::spawn(reaper::reap(gardener.clone(), shutdown.clone()));
        tokio::spawn(gardener.0.store.clone().serve_admin(shutdown.clone()));
        if let Some(interval) = gardener.0.config.cpu_throttling {
            tokio::spawn(throttle::throttle(gardener.clone(), interval, shutdown.clone()));
        }
        if let Some(changes) = changes {
            tokio::spawn(drift::keep_networks(gardener.clone(), changes, shutdown.clone()));
        }
        tokio::spawn(warm::keep_warm(gardener.clone(), shutdown));
        Ok(gardener)
    }

    /// The last thing: with no container left, nothing of garden is left on the host either.
    pub async fn shut_down(&self) {
        if tokio::time::timeout(self.0.config.step_deadline, self.0.warm.close(&self.0.networker))
            .await
            .is_err()
        {
            tracing::error!("a place for a container is still being made: the next garden takes it away");
        }
        if self.0.config.destroy_containers_on_stop {
            let handles: Vec<String> = self.entries().keys().cloned().collect();
            let destroying = handles.into_iter().map(|handle| async move {
                if let Err(error) = self.destroy(&handle).await {
                    tracing::error!(handle, %error, "cannot destroy a container at the end");
                }
            });
            use futures_util::StreamExt as _;
            futures_util::stream::iter(destroying)
                .buffer_unordered(LAST_DESTRUCTIONS_AT_ONCE)
                .collect::<()>()
                .await;
        }
        if !self.entries().is_empty() {
            return;
        }
        let gardener = self.clone();
        let last = tokio::task::spawn_blocking(move || {
            gardener.0.store.settle();
            gardener.0.networker.settle();
            if let Err(error) = gardener.0.networker.remove_table() {
                tracing::error!(error = chain(&error), "cannot remove the firewall");
            }
            if let Err(error) = gardener.0.containerizer.remove_cgroup_parent() {
                tracing::error!(error = chain(&error), "cannot remove the control group of all containers");
            }
        });
        _ = last.await;
    }

    /// The store of images, for who wants to pull ahead or to know what it holds.
    pub fn store(&self) -> &rootfs::store::Store {
        &self.0.store
    }

    /// The host's address by which mapped ports are reached from elsewhere.
    pub fn external_ip(&self) -> std::net::IpAddr {
        self.0.networker.external_ip()
    }

    /// Directories in the depot (-1: it cannot be read), and containers that could not be destroyed. Blocking.
    pub(crate) fn counts(&self) -> (i64, usize) {
        let directories = self.0.depot.count().map_or(-1, |count| count as i64);
        (directories, self.entries().values().filter(|entry| entry.is_broken()).count())
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Entry>>> {
        self.0.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To look into each while others come and go.
    fn all_entries(&self) -> Vec<Arc<Entry>> {
        self.entries().values().cloned().collect()
    }

    fn entry(&self, handle: &str) -> Result<Arc<Entry>> {
        self.entries().get(handle).cloned().ok_or_else(|| Error::ContainerNotFound { handle: handle.into() })
    }

    /// The container and the right to use it: while that lives, its grace time does not run.
    fn used(&self, handle: &str) -> Result<(Arc<containerizer::Container>, InUse)> {
        let entry = self.entry(handle)?;
        let in_use = entry.in_use();
        Ok((entry.container()?, in_use))
    }

    async fn change(
        &self,
        entry: Arc<Entry>,
        change: impl FnOnce(&mut depot::Record) + Send + 'static,
    ) -> Result<()> {
        let (gardener, changed) = (self.clone(), entry.clone());
        let change = blocking(move || changed.change(&gardener.0.depot, change));
        self.step(&entry, "write the record", change).await
    }

    /// What is done to a container, and waited for as long as such things take at the most. `act` says in the error what it
    /// was. It goes on then, and nothing more happens to this container before it has ended; no other is held up.
    async fn step<T: Send + 'static>(
        &self,
        entry: &Entry,
        act: &'static str,
        step: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let (token, deadline) = (entry.step(), self.0.config.step_deadline);
        let under_way = tokio::spawn(async move {
            let _token = token;
            step.await
        });
        match tokio::time::timeout(deadline, under_way).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(error)) => Err(Error::Other(format!("interrupted: {error}"))),
            Err(_) => Err(Error::Other(format!(
                "cannot {act} of container '{}' in {deadline:?}: the machine does not answer",
                entry.handle
            ))),
        }
    }
}

impl Inner {
    fn open(config: Config, clock: Arc<dyn Clock>) -> std::result::Result<(Self, Found), StartError> {
        let depot = Depot::open(config.directory.join(depot::DIRECTORY))?;
        let store = rootfs::store::Store::open(&config.directory.join("store"), config.rootfs.clone())?;
        let containerizer = Containerizer::new(config.containerizer.clone())?;
        // After the store, which one garden at a time can open: the records are ours alone.
        let found = restore::read(&depot, &config)?;
        let idle = config.network_plugin.is_some();
        let networking = networker::Config { idle, ..config.networker.clone() };
        let networker = Networker::start(networking, &found.connections())?;
        let published = match networker.published() {
            Some(published) => published.write(&config.directory),
            None => networker::Published::remove(&config.directory),
        };
        // A disk that is full is no reason not to look after the containers that are there.
        if let Err(error) = published {
            tracing::error!(error = chain(&error), "cannot write down for others what holds for networks");
        }
        let total_memory_bytes = capacity::total_memory().map_err(StartError::Capacity)?;
        let inner = Self {
            cpu_entitlement_per_share: config
                .cpu_entitlement_per_share
                .unwrap_or_else(|| measure::default_entitlement_per_share(total_memory_bytes)),
            total_memory_bytes,
            warm: Warm::new(config.warm_places),
            config,
            clock,
            depot,
            store,
            networker,
            containerizer,
            entries: Mutex::default(),
            #[cfg(test)]
            fail_after: Mutex::default(),
        };
        Ok((inner, found))
    }
}

/// Runs what blocks for a moment where that holds nobody up, and says its error in full.
async fn blocking<T, E>(act: impl FnOnce() -> std::result::Result<T, E> + Send + 'static) -> Result<T>
where
    T: Send + 'static,
    E: std::error::Error + Send + 'static,
{
    match tokio::task::spawn_blocking(act).await {
        Ok(result) => result.map_err(|error| Error::Other(chain(&error))),
        Err(error) => Err(Error::Other(format!("interrupted: {error}"))),
    }
}

/// An error with its causes, each said once.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

#[async_trait::async_trait]
impl Garden for Gardener {
    async fn ping(&self) -> Result<()> {
        Ok(())
    }

    async fn capacity(&self) -> Result<Capacity> {
        let store = self.0.store.clone();
        let disk = blocking(move || store.capacity()).await?;
        let networks = match self.0.config.network_plugin {
            Some(_) => u64::MAX,
            None => self.0.networker.capacity(),
        };
        let limit = self.0.config.max_containers;
        Ok(Capacity {
            memory_in_bytes: self.0.total_memory_bytes,
            disk_in_bytes: disk,
            schedulable_disk_in_bytes: match self.plugin_capacity().await {
                Some(bytes) => bytes?,
                None => disk,
            },
            max_containers: if limit == 0 { networks } else { networks.min(limit) },
        })
    }

    async fn create(&self, spec: ContainerSpec) -> Result<String> {
        self.create_container(spec).await
    }

    async fn destroy(&self, handle: &str) -> Result<()> {
        let entry = self.entry(handle)?;
        let container = entry.begin_destruction()?;
        self.destroy_begun(entry, container).await
    }

    async fn containers(&self, wanted: &Properties) -> Result<Vec<String>> {
        let entries = self.all_entries();
        let found = entries.iter().filter(|entry| {
            entry.with_record(|record| properties::matches(wanted, &record.properties, record.created))
        });
        Ok(found.map(|entry| entry.handle.clone()).collect())
    }

    async fn bulk_info(&self, handles: &[String]) -> Result<BTreeMap<String, Result<ContainerInfo>>> {
        let gardener = self.clone();
        let handles = handles.to_vec();
        blocking(move || Ok::<_, std::convert::Infallible>(gardener.infos(handles))).await
    }

    async fn bulk_metrics(&self, handles: &[String]) -> Result<BTreeMap<String, Result<Metrics>>> {
        let gardener = self.clone();
        let handles = handles.to_vec();
        let disks = self.plugin_disks(&handles).await;
        blocking(move || Ok::<_, std::convert::Infallible>(gardener.all_metrics(handles, &disks))).await
    }

    async fn stop(&self, handle: &str, kill: bool) -> Result<()> {
        let (container, in_use) = self.used(handle)?;
        container.stop(kill).await?;
        self.change(in_use.entry(), |record| record.stopped = true).await
    }

    async fn info(&self, handle: &str) -> Result<ContainerInfo> {
        let _in_use = self.entry(handle)?.in_use();
        one(self.bulk_info(&[handle.to_owned()]).await?, handle)
    }

    async fn metrics(&self, handle: &str) -> Result<Metrics> {
        let _in_use = self.entry(handle)?.in_use();
        one(self.bulk_metrics(&[handle.to_owned()]).await?, handle)
    }

    async fn current_limits(&self, handle: &str) -> Result<Limits> {
        let entry = self.entry(handle)?;
        let _in_use = entry.in_use();
        Ok(entry.with_record(|record| record.spec.limits.clone()))
    }

    async fn stream_in(&self, handle: &str, user: &str, path: &str, tar: Reader) -> Result<()> {
        let (container, _in_use) = self.used(handle)?;
        Ok(container.stream_in(user, path, tar).await?)
    }

    async fn stream_out(&self, handle: &str, user: &str, path: &str) -> Result<Reader> {
        let (container, _in_use) = self.used(handle)?;
        Ok(container.stream_out(user, path).await?)
    }

    async fn run(&self, handle: &str, spec: ProcessSpec, io: ProcessIo) -> Result<Box<dyn Process>> {
        let (container, in_use) = self.used(handle)?;
        let process = match spec.image == ImageRef::default() {
            true => container.run(&spec, io).await?,
            false => self.run_pea(in_use.entry(), container, spec, io).await?,
        };
        Ok(Box::new(Followed { process, _in_use: in_use }))
    }

    async fn attach(&self, handle: &str, process_id: &str, io: ProcessIo) -> Result<Box<dyn Process>> {
        let (container, in_use) = self.used(handle)?;
        let process = container.attach(process_id, io)?;
        Ok(Box::new(Followed { process, _in_use: in_use }))
    }

    async fn net_in(&self, handle: &str, host_port: u32, container_port: u32) -> Result<(u32, u32)> {
        let (_container, in_use) = self.used(handle)?;
        let mapped = self.map_port(in_use.entry(), NetIn { host_port, container_port }).await?;
        Ok((mapped.host_port, mapped.container_port))
    }

    async fn bulk_net_out(&self, handle: &str, rules: &[NetOutRule]) -> Result<()> {
        let (_container, in_use) = self.used(handle)?;
        self.open_egress(in_use.entry(), rules.to_vec()).await
    }

    async fn set_grace_time(&self, handle: &str, grace_time: Duration) -> Result<()> {
        let entry = self.entry(handle)?;
        // The new grace time begins when this is done, not when the container was last used.
        let _in_use = entry.in_use();
        let grace_time_ns = u64::try_from(grace_time.as_nanos()).unwrap_or(u64::MAX);
        self.change(entry.clone(), move |record| record.grace_time_ns = grace_time_ns).await
    }

    async fn properties(&self, handle: &str) -> Result<Properties> {
        let entry = self.entry(handle)?;
        let _in_use = entry.in_use();
        Ok(entry.with_record(|record| record.properties.clone()))
    }

    async fn property(&self, handle: &str, name: &str) -> Result<String> {
        let entry = self.entry(handle)?;
        let _in_use = entry.in_use();
        let value = entry.with_record(|record| record.properties.get(name).cloned());
        value.ok_or_else(|| Error::Other(format!("property does not exist: {name}")))
    }

    async fn set_property(&self, handle: &str, name: &str, value: &str) -> Result<()> {
        let entry = self.entry(handle)?;
        let _in_use = entry.in_use();
        let (name, value) = (name.to_owned(), value.to_owned());
        self.change(entry, move |record| _ = record.properties.insert(name, value)).await
    }

    async fn remove_property(&self, handle: &str, name: &str) -> Result<()> {
        let entry = self.entry(handle)?;
        let _in_use = entry.in_use();
        if !entry.with_record(|record| record.properties.contains_key(name)) {
            return Err(Error::Other(format!("cannot Remove {handle}:{name}")));
        }
        let name = name.to_owned();
        self.change(entry, move |record| _ = record.properties.remove(&name)).await
    }
}

fn one<T>(mut all: BTreeMap<String, Result<T>>, handle: &str) -> Result<T> {
    all.remove(handle).unwrap_or_else(|| Err(Error::ContainerNotFound { handle: handle.into() }))
}

/// A process whose container is in use as long as somebody follows it.
struct Followed {
    process: Box<dyn Process>,
    _in_use: InUse,
}

#[async_trait::async_trait]
impl Process for Followed {
    fn id(&self) -> &str {
        self.process.id()
    }

    async fn wait(&self) -> Result<i32> {
        self.process.wait().await
    }

    async fn signal(&self, signal: Signal) -> Result<()> {
        self.process.signal(signal).await
    }

    async fn set_window_size(&self, size: WindowSize) -> Result<()> {
        self.process.set_window_size(size).await
    }
}
