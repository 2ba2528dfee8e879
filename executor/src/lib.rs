//! Runs recipes: turns an allocated container and its actions into processes inside a garden container.
//!
//! Knows containers and steps; knows no LRP and no Task. The rep drives it through [`Executor`] and learns what
//! happened from its [`Event`]s.

mod cache;
mod checks;
pub mod config;
pub mod container;
mod containers;
mod credentials;
mod depot;
mod edge;
mod error;
mod events;
mod garden;
mod garden_check;
pub mod logs;
mod metrics;
mod namespace;
mod occurrence;
mod recipe;
mod steps;
mod volumes;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cache::Cache;
use checks::Rounds;
pub use config::{Config, ContainerProxy, DIRECTORY_MARK, InstanceIdentity, WorkLimits};
pub use container::*;
use containers::restore::{self, Waiting};
pub use containers::store::FAILURE_REASON_BYTES_MAX;
use containers::store::{Owner, Store};
use containers::{life, reaper, reservation};
use depot::Depot;
use edge::Edges;
pub use error::{Error, StartError};
pub use events::{EVENTS_BEHIND_MAX, Events, Heard, Hub};
pub use garden_check::{GardenCheck, GardenCheckError};
use garden_client::Garden;
pub use garden_client::Reader;
use logs::{LogStream, Logs, Out};
use metrics::{Measured, Streams};
use namespace::Errands;
pub use occurrence::{Attempt, Occurrence, Protocol, Witness};
use rootfs_ledger::Ledger;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use volumes::Volumes;

/// A cell's executor; cheap to clone.
#[derive(Clone)]
pub struct Executor(Arc<Shared>);

/// What every container's owner task shares.
pub(crate) struct Shared {
    config: Config,
    garden: Arc<dyn Garden>,
    logs: Logs,
    hub: Hub,
    store: Store,
    cache: Cache,
    ledger: Ledger,
    errands: Errands,
    rounds: Rounds,
    edges: Option<Edges>,
    volumes: Volumes,
    streams: Streams,
    measured: Measured,
    creates: Semaphore,
    deletes: Semaphore,
    reads: Semaphore,
    uploads: Semaphore,
    checks: Semaphore,
    healthy: AtomicBool,
    depot: Depot,
    /// Containers of an earlier life.
    waiting: Waiting,
    owners: TaskTracker,
    /// Nothing new is begun any more.
    closing: CancellationToken,
    /// What is under way is dropped.
    leaving: CancellationToken,
    /// Nothing is to be left at the end.
    empties: AtomicBool,
}

impl Executor {
    /// Knows the containers that an earlier life has left, from what is written down of them, and what the cache kept;
    /// starts nothing: see [`Executor::run`].
    pub fn new(config: Config, garden: Arc<dyn Garden>, logs: Logs) -> Result<Self, StartError> {
        let depot = Depot::open(&config.depot_dir)?;
        let found = depot.found().map_err(|error| StartError::Depot(steps::report(&error)))?;
        restore::prepare_work_dir(&config, &found)?;
        let work = &config.work;
        let ledger = ledger(&config)?;
        let cache = Cache::open(
            &config.cache_dir,
            config.cache_bytes_max,
            work.downloads,
            config.http.clone(),
            ledger.clone(),
            &restore::downloads(&found),
        )?;
        let errands = Errands::start().map_err(|error| StartError::Networks(steps::report(&error)))?;
        let rounds = Rounds::start().map_err(|error| StartError::Networks(steps::report(&error)))?;
        let edges = edges(&config, &errands)?;
        let hub = Hub::default();
        let store = Store::new(config.total, hub.clone());
        Ok(Executor(Arc::new(Shared {
            volumes: Volumes::new(config.volume_driver_dirs.clone(), &found),
            waiting: Waiting::new(found, &store),
            store,
            depot,
            owners: TaskTracker::new(),
            hub,
            garden,
            logs,
            cache,
            ledger,
            errands,
            rounds,
            edges,
            streams: Streams::default(),
            measured: Measured::default(),
            creates: Semaphore::new(work.creates.max(1)),
            deletes: Semaphore::new(work.deletes.max(1)),
            reads: Semaphore::new(work.reads.max(1)),
            uploads: Semaphore::new(work.uploads.max(1)),
            checks: Semaphore::new(work.checks.max(1)),
            healthy: AtomicBool::new(true),
            closing: CancellationToken::new(),
            leaving: CancellationToken::new(),
            empties: AtomicBool::new(config.destroy_containers_on_stop),
            config,
        })))
    }

    /// The background: goes on with what an earlier life left, destroys what it left without a record, then expires
    /// reservations and reaps containers until told to stop. Ends once all containers are as they were for a later life
    /// to find, or, when nothing is to be left, once all of them have been stopped and destroyed.
    pub async fn run(&self, shutdown: CancellationToken) {
        reaper::run(&self.0, shutdown).await;
    }

    /// Whether containers outlive it.
    pub fn leaves_containers(&self) -> bool {
        !self.0.empties.load(Ordering::SeqCst)
    }

    /// Leave no container at the end, whatever the configuration says.
    pub fn empty_at_stop(&self) {
        self.0.empties.store(true, Ordering::SeqCst);
    }

    /// Reserves; answers those it had to refuse, each with its reason.
    pub fn allocate(&self, requests: Vec<AllocationRequest>) -> Vec<AllocationFailure> {
        reservation::make_all(&self.0, requests)
    }

    /// Begins to turn a reservation into a running container. Answers at once; the rest is told by events.
    /// Must be called within a tokio runtime.
    pub fn run_container(&self, request: RunRequest) -> Result<(), Error> {
        life::start(&self.0, request)
    }

    /// Changes a container that has been run.
    pub async fn update(&self, request: UpdateRequest) -> Result<(), Error> {
        let owner = self.0.store.owner(&request.guid)?.ok_or(Error::InvalidTransition)?;
        let (reply, answer) = oneshot::channel();
        ask(&owner, life::Command::Update(request, reply)).await?;
        answer.await.map_err(|_| Error::ContainerNotFound)?
    }

    /// Tells a container to stop gracefully; a Completed event says that it has. Stopping twice is once.
    pub async fn stop(&self, guid: &str) -> Result<(), Error> {
        match self.0.store.owner(guid)? {
            Some(owner) => ask(&owner, life::Command::Stop).await,
            None => {
                reservation::stop(&self.0, guid);
                Ok(())
            }
        }
    }

    /// Stops a container if need be, waits until it has, and leaves nothing of it; its resources are free again
    /// when this answers. On an error it is still listed, completed, and delete may be called again.
    pub async fn delete(&self, guid: &str) -> Result<(), Error> {
        match reservation::delete(&self.0, guid)? {
            Owner::Removed => Ok(()),
            Owner::Task(owner) => {
                let (reply, answer) = oneshot::channel();
                // An owner that is gone has left nothing; only one that died has left its container.
                if ask(&owner, life::Command::Delete(reply)).await.is_ok()
                    && let Ok(result) = answer.await
                {
                    return result;
                }
                life::bury(&self.0, guid).await
            }
        }
    }

    pub fn get(&self, guid: &str) -> Result<Container, Error> {
        self.0.store.get(guid).ok_or(Error::ContainerNotFound)
    }

    /// In no particular order.
    pub fn list(&self) -> Vec<Container> {
        self.0.store.list()
    }

    /// Of all containers, in no particular order.
    pub fn guids(&self) -> Vec<String> {
        self.0.store.guids()
    }

    pub fn remaining_resources(&self) -> CellResources {
        self.0.store.remaining()
    }

    pub fn total_resources(&self) -> CellResources {
        self.0.store.total()
    }

    /// Events from now on. Subscribe, then list: nothing falls between the two.
    pub fn subscribe(&self) -> Events {
        self.0.hub.subscribe()
    }

    /// A file or directory of a container as a tar stream, read as root. The container must have been created.
    pub async fn files(&self, guid: &str, path: &str) -> Result<Reader, Error> {
        if !self.get(guid)?.in_garden {
            return Err(Error::ContainerNotFound);
        }
        let _permit = self.0.reads.acquire().await.map_err(|_| Error::ShuttingDown)?;
        Ok(self.0.garden.stream_out(guid, "root", path).await?)
    }

    /// Names of the volume drivers that answer.
    pub fn volume_drivers(&self) -> Vec<String> {
        self.0.volumes.drivers()
    }

    pub async fn ping(&self) -> Result<(), Error> {
        Ok(self.0.garden.ping().await?)
    }

    /// Makes a container in garden, runs a process in it and destroys it; each call is tried some times.
    pub async fn check_garden(&self, check: &GardenCheck) -> Result<(), GardenCheckError> {
        garden_check::perform(&self.0, check).await
    }

    /// After a check that was dropped.
    pub async fn clear_garden_check(&self, check: &GardenCheck) -> Result<(), GardenCheckError> {
        garden_check::clear(&self.0, check).await
    }

    pub fn healthy(&self) -> bool {
        self.0.healthy.load(Ordering::SeqCst)
    }

    pub fn set_healthy(&self, healthy: bool) {
        self.0.healthy.store(healthy, Ordering::SeqCst);
    }

    /// By guid, of created and running containers; one that garden cannot measure just now is left out.
    pub async fn metrics(&self) -> Result<BTreeMap<String, ContainerMetrics>, Error> {
        metrics::measure(&self.0).await
    }

    /// The platform's own word in the log of a container that has been asked to run; of another nobody listens.
    pub fn announce(&self, guid: &str, text: &str) {
        let Some(run_info) = self.0.store.get(guid).and_then(|container| container.run_info) else { return };
        let (config, shared) = (&run_info.log_config, &self.0);
        let limits = (0, 0);
        LogStream::new(
            &shared.logs,
            config,
            guid,
            limits,
            shared.config.clock.clone(),
            shared.config.witness.clone(),
        )
        .announce(Out::Out, text);
    }

    pub fn logs(&self) -> &Logs {
        &self.0.logs
    }
}

async fn ask(owner: &mpsc::Sender<life::Command>, command: life::Command) -> Result<(), Error> {
    owner.send(command).await.map_err(|_| Error::ContainerNotFound)
}

/// Downloads and uploads are beside one another, so that one account is enough for both.
fn ledger(config: &Config) -> Result<Ledger, StartError> {
    let dir = &config.cache_dir;
    std::fs::create_dir_all(dir)
        .map_err(|source| StartError::Directory { path: dir.to_path_buf(), source })?;
    let ledger = match &config.ledger {
        Some(ledger) => ledger.of_disk(dir),
        None => Ledger::open(dir),
    };
    ledger.map_err(StartError::Disk)
}

fn edges(config: &Config, errands: &Errands) -> Result<Option<Edges>, StartError> {
    let Some(proxy) = &config.container_proxy else { return Ok(None) };
    if config.instance_identity.is_none() {
        return Err(StartError::NoIdentity);
    }
    let edges = Edges::new(proxy, errands.clone());
    edges.map(Some).map_err(|error| StartError::ContainerProxy(steps::report(&error)))
}

pub(crate) fn base64(bytes: &[u8]) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

pub(crate) fn base64_decode(text: &str) -> Option<Vec<u8>> {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.decode(text).ok()
}
