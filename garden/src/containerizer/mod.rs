//! Makes containers and runs processes in them.
//!
//! ```text
//! Containerizer ──blank──▶ Blank ──start(spec, root)──▶ Container ──destroy──▶ nothing left
//!                (namespaces)      (plan carried out)      (run, attach, stream, stats)
//! ```
//! A blank has its namespaces and can be given a network and a root made for its ids; it costs the kernel work that is
//! best paid ahead. Pure rules turn a spec into a plan; `garden-init` carries it out and then serves requests.
//! Images, networks and the depot are not known here.

mod adoption;
mod apparmor;
mod blank;
mod capabilities;
mod container;
mod control;
mod ids;
pub(crate) mod liveness;
mod metrics;
mod nursery;
mod oci;
pub(crate) mod owner;
mod pea;
mod process;
mod record;
mod rules;
mod seccomp;
pub(crate) mod streams;
pub(crate) mod tar_out;
pub(crate) mod watched;

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use blank::Blank;
pub use container::Container;
pub use garden_sys::cgroup::IoRates;
use garden_sys::cgroup::{self, DeviceRule, Hierarchies};
pub use ids::{IdPool, IdRange};
pub use metrics::Usage;
pub use oci::{Instance, Runtime};
pub use pea::{Pea, PeaBlank, PeaRecord, PeaSpec};
pub use record::{InitRecord, Record, clean_up};
pub use rules::{CPU_SHARES_MAX, CPU_SHARES_MIN, Spec};
pub use tar_out::TarOut;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read the program garden-init at {}: {source}", path.display())]
    Program { path: PathBuf, source: io::Error },
    #[error("another garden on this host uses the control group {}", path.display())]
    InUse { path: PathBuf },
    #[error("cannot claim the control group {}: {source}", path.display())]
    Claim { path: PathBuf, source: io::Error },
    #[error("cannot use the nursery: {act}: {source}")]
    Nursery { act: &'static str, source: io::Error },
    #[error("cannot make a blank container: {message}")]
    Birth { message: String },
    #[error("cannot {act} container {handle}: {source}")]
    Container { act: &'static str, handle: String, source: io::Error },
    #[error("cannot create container {handle}: {message}")]
    Plan { handle: String, message: String },
    #[error("cannot give a process of container {handle} a root of its own: {message}")]
    Pea { handle: String, message: String },
    #[error(transparent)]
    AppArmor(#[from] apparmor::Error),
    #[error("{handle:?} cannot be the handle of a container")]
    Handle { handle: String },
    #[error("cannot take over container {handle}: {source}")]
    Adoption { handle: String, source: adoption::Error },
    #[error("cannot bind {source_path} to {destination}: {why}")]
    BindMount { source_path: String, destination: String, why: &'static str },
    #[error("cannot open {} to bind it: {source}", path.display())]
    BindSource { path: PathBuf, source: io::Error },
    #[error("it took longer than {deadline:?} to {step}")]
    Late { step: &'static str, deadline: Duration },
    #[error("interrupted")]
    Interrupted,
    #[error(transparent)]
    Ids(#[from] ids::Exhausted),
    #[error(transparent)]
    IdsTaken(#[from] ids::Taken),
    #[error(transparent)]
    Cgroup(#[from] cgroup::Error),
    #[error(transparent)]
    Oci(#[from] oci::Error),
    #[error(transparent)]
    Refused(#[from] owner::Refused),
    #[error("process ID '{id}' already in use")]
    ProcessExists { id: String },
    #[error("unknown process: {id}")]
    ProcessNotFound { id: String },
    #[error("{0}")]
    Unsupported(&'static str),
}

pub type Result<T> = std::result::Result<T, Error>;

impl From<Error> for garden_client::Error {
    fn from(error: Error) -> garden_client::Error {
        match error {
            Error::Refused(owner::Refused::ExecutableNotFound { message }) => {
                garden_client::Error::ExecutableNotFound(message)
            }
            Error::ProcessNotFound { id } => garden_client::Error::ProcessNotFound { process_id: id },
            other => garden_client::Error::Other(other.to_string()),
        }
    }
}

#[derive(Debug, Clone)]
pub struct Config {
    /// The program `garden-init`.
    pub init: PathBuf,
    pub cgroup_root: PathBuf,
    /// The group all containers' groups are in: `diego`, or `diego-TAG` where several gardens share a machine.
    pub cgroup_parent: String,
    pub ids: IdPool,
    /// Memory limits count swap too.
    pub swap_limited: bool,
    /// CPU time in each 100 ms for each share; 0: no quota.
    pub cpu_quota_per_share_us: u64,
    /// Quota left over from earlier periods that may be used on top; 0: none.
    pub cpu_burst_us: u64,
    /// Of disk time, beside other containers: 10 to 1000; 0: the kernel's own.
    pub io_weight: u64,
    /// For each container, on each disk; only cgroup version 2 has them.
    pub io_rates: IoRates,
    pub no_new_privileges: bool,
    pub deadlines: Deadlines,
    /// The AppArmor profile of every process of unprivileged containers; loaded by whoever sets up the machine.
    pub apparmor: Option<String>,
    /// Set in each container: `net.ipv4.tcp_keepalive_time` and such.
    pub sysctls: Vec<(String, String)>,
    /// For containers that are to be made by it.
    pub oci: Option<Runtime>,
}

const ANSWER_DEADLINE: Duration = Duration::from_secs(30);

/// How long containers are waited for before what was asked of them is an error. None of these is ever met by one that
/// works; a machine in trouble is slow.
#[derive(Debug, Clone, Copy)]
pub struct Deadlines {
    /// For an init process to take a request, and to start a process: about a millisecond.
    pub answer: Duration,
    /// For processes to end by themselves when the container is stopped, and again when they are killed for that.
    pub stop: Duration,
    /// For a container that is killed to be gone.
    pub kill: Duration,
    /// For a tar stream to move, however little.
    pub stall: Duration,
}

impl Default for Deadlines {
    fn default() -> Deadlines {
        Deadlines {
            answer: ANSWER_DEADLINE,
            stop: Duration::from_secs(10),
            kill: record::KILL_DEADLINE,
            stall: Duration::from_secs(120),
        }
    }
}

impl Default for Config {
    fn default() -> Config {
        Config {
            init: "garden-init".into(),
            cgroup_root: "/sys/fs/cgroup".into(),
            cgroup_parent: "diego".into(),
            ids: IdPool::default(),
            swap_limited: true,
            cpu_quota_per_share_us: 0,
            cpu_burst_us: 0,
            io_weight: 0,
            io_rates: IoRates::default(),
            no_new_privileges: false,
            deadlines: Deadlines::default(),
            apparmor: None,
            sysctls: Vec::new(),
            oci: None,
        }
    }
}

/// All that containers may use of devices, whoever they are; nodes of others can be made, but not opened.
const fn device(major: u32, minor: Option<u32>) -> DeviceRule {
    DeviceRule { kind: 'c', major: Some(major), minor, access: "rwm" }
}

const DEVICES_ALLOWED: [DeviceRule; 12] = [
    DeviceRule { kind: 'c', major: None, minor: None, access: "m" },
    DeviceRule { kind: 'b', major: None, minor: None, access: "m" },
    device(1, Some(3)),
    device(1, Some(5)),
    device(1, Some(7)),
    device(1, Some(8)),
    device(1, Some(9)),
    device(5, Some(0)),
    device(5, Some(2)),
    device(136, None),
    device(10, Some(200)),
    device(10, Some(229)),
];

/// What containers share.
struct Shared {
    config: Config,
    hierarchies: Hierarchies,
    /// The seccomp filter, compiled once.
    filter: Vec<u64>,
    _claim: Option<std::fs::File>,
}

/// Two gardens with one parent group would sweep each other's containers away. The lock goes with its process however
/// that ends. `None`: there is no control group at all.
fn claim(hierarchies: &Hierarchies, parent: &str) -> Result<Option<std::fs::File>> {
    use rustix::fs::{FlockOperation, flock};
    let group = hierarchies.cgroup(parent, "any");
    let Some(path) = group.directories().first().and_then(|directory| directory.parent()) else {
        return Ok(None);
    };
    let failed = |source: io::Error| Error::Claim { path: path.into(), source };
    let directory = std::fs::File::open(path).map_err(failed)?;
    match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(directory)),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(Error::InUse { path: path.into() }),
        Err(error) => Err(failed(error.into())),
    }
}

pub struct Containerizer {
    shared: Arc<Shared>,
    nursery: nursery::Nursery,
    ids: ids::Allocator,
}

impl Containerizer {
    /// Needs root. Makes the parent control group where it is missing.
    pub fn new(config: Config) -> Result<Containerizer> {
        config.apparmor.as_deref().map(|profile| apparmor::check("/sys".as_ref(), profile)).transpose()?;
        let nursery = nursery::Nursery::new(&config.init)?;
        let mut hierarchies = Hierarchies::probe(&config.cgroup_root)?;
        if config.io_weight > 0 {
            hierarchies = hierarchies.with_io_weights(&config.cgroup_root);
        }
        hierarchies.prepare(&config.cgroup_parent, &DEVICES_ALLOWED)?;
        let claim = claim(&hierarchies, &config.cgroup_parent)?;
        let ids = ids::Allocator::new(config.ids.clone());
        let filter = seccomp::default_filter();
        let shared = Arc::new(Shared { config, hierarchies, filter, _claim: claim });
        Ok(Containerizer { shared, nursery, ids })
    }

    /// New namespaces with a child in them that waits for a plan; it ends when the blank is dropped, or garden dies.
    pub async fn blank(&self, privileged: bool) -> Result<Blank> {
        let ids = if privileged { None } else { Some(self.ids.allocate()?) };
        let born = self.nursery.bear(ids.as_ref().map(|ids| ids.range)).await?;
        Ok(Blank::new(self.shared.clone(), born, ids))
    }

    /// A container that an earlier garden has made, as its record tells: its ids are nobody else's from now on. Nobody speaks
    /// with it before [`Containerizer::take_over`]; it can be destroyed, alive or not.
    pub fn adopt(&self, record: &Record) -> Result<Container> {
        // From a disk that may have seen anything.
        rules::check_handle(&record.cgroup_name)?;
        rules::check_handle(&record.cgroup_parent)?;
        let ids = record.ids.map(|range| self.ids.adopt(range)).transpose()?;
        let spec = Spec {
            handle: record.handle.clone(),
            privileged: record.ids.is_none(),
            env: record.env.clone(),
            limits: record.limits.clone(),
            socket: record.init.socket.clone(),
            oci: record.oci.clone(),
            ..Spec::default()
        };
        let cgroup = self.shared.hierarchies.cgroup(&record.cgroup_parent, &record.cgroup_name);
        let pidfd = match record.init.find() {
            Ok(known) => known.map(|known| known.pidfd),
            Err(source) => {
                return Err(Error::Container { act: "look for", handle: record.handle.clone(), source });
            }
        };
        Ok(Container::new(spec, cgroup, record.init.pid, pidfd, ids, self.shared.config.deadlines))
    }

    /// Hears from an adopted container what runs in it. Waits until it tells, or has ended.
    pub async fn take_over(&self, container: &Container, record: &Record) -> Result<()> {
        let failed = |source| Error::Adoption { handle: record.handle.clone(), source };
        if !container.is_alive() {
            return Err(failed(adoption::Error::Gone(record.init.pid)));
        }
        container.take_over(&record.init).await.map_err(failed)
    }

    /// Ends everything in control groups of ours but those of `kept`: what a killed garden left that no record tells of.
    /// All are tried; the answer is a failure, if there was one. Blocks.
    pub fn sweep(&self, kept: &BTreeSet<String>) -> Result<()> {
        let (hierarchies, parent) = (&self.shared.hierarchies, &self.shared.config.cgroup_parent);
        let stray = hierarchies.names(parent)?.into_iter().filter(|name| !kept.contains(name));
        let mut outcome = Ok(());
        for name in stray {
            tracing::info!(name, "removing a control group without a container");
            outcome = outcome.and(hierarchies.cgroup(parent, &name).remove());
        }
        Ok(outcome?)
    }

    /// Ends everything in the control groups that a container of this handle has, if it has any. Blocks.
    pub fn end_groups(&self, handle: &str) -> Result<()> {
        let (hierarchies, parent) = (&self.shared.hierarchies, &self.shared.config.cgroup_parent);
        if rules::check_handle(handle).is_err() {
            // No group was ever made by this name.
            return Ok(());
        }
        pea::remove_groups(hierarchies, parent, handle)?;
        Ok(hierarchies.cgroup(parent, handle).remove()?)
    }

    /// The names (handles) of control groups that some earlier garden left behind, or this one uses.
    pub fn cgroup_names(&self) -> Result<Vec<String>> {
        Ok(self.shared.hierarchies.names(&self.shared.config.cgroup_parent)?)
    }

    /// Drops the parent control group, when no container is left.
    pub fn remove_cgroup_parent(&self) -> Result<()> {
        let config = &self.shared.config;
        self.shared.hierarchies.remove_parent(&config.cgroup_parent)?;
        if config.oci.is_some() {
            oci::remove_other_parents(&config.cgroup_root, &config.cgroup_parent);
        }
        Ok(())
    }
}
