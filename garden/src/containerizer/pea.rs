//! Peas: processes of a container with a root file system of their own.
//!
//! ```text
//! Containerizer ──pea_blank(container)──▶ PeaBlank ──run(spec, root)──▶ Pea ──over──▶ ──destroy──▶ nothing left
//! ```
//! A pea is in all namespaces of its container but the one of mounts. Its init, born by the nursery and spoken to as a
//! pid 1 is, starts the one process, tells of its exit, and ends. Being in the container's pid namespace, all of it ends
//! with the container; being in the container's hands as much as any process there, it may be killed or stopped at any
//! moment, and what it says is believed no more than what a pid 1 says.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use garden_client::{Limits, PidLimits, ProcessIo, ProcessLimits, ProcessSpec};
use garden_init::{Request, Role};
use garden_sys::cgroup::{Cgroup, Hierarchies, Part};
use garden_sys::process as sys;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};

use super::adoption::{self, Adopted};
use super::container::{Claim, Container, first_request};
use super::control::Control;
use super::nursery::Joined;
use super::owner::{Command, Owner, QUEUE_MAX};
use super::process::Running;
use super::record::InitRecord;
use super::rules::{self, Spec};
use super::{Containerizer, Error, Result, Shared, blank};

/// Between the handle of a container and the name of its pea in the name of a pea's own control group; no handle has it.
const NAME_SEPARATOR: char = '@';

/// Where the working directory of a pea is when its spec says nothing.
const DIRECTORY_DEFAULT: &str = "/";

/// What a pea is besides its process and its root file system.
#[derive(Debug, Clone, Default)]
pub struct PeaSpec {
    /// Given to nothing else while any of it is left; names its control group.
    pub name: String,
    /// Of its image. That of the container is of another image and does not count.
    pub env: Vec<String>,
    /// Before those of the process itself.
    pub bind_mounts: Vec<garden_client::BindMount>,
    /// The container's: it holds for a pea with limits of its own, too.
    pub pid_limit: PidLimits,
    /// Where its init listens for a later agent.
    pub socket: PathBuf,
}

/// What must be on disk before a pea has a process, so that a later garden can take it over, or away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeaRecord {
    pub name: String,
    pub process_id: String,
    pub init: InitRecord,
    pub own_limits: bool,
    /// Its root is made by a plugin, which is to be told of its end.
    pub imaged: bool,
}

impl PeaRecord {
    /// Of its control group beside the container's, if it has one there.
    pub fn group_name(&self, handle: &str) -> Option<String> {
        self.own_limits.then(|| format!("{handle}{NAME_SEPARATOR}{}", self.name))
    }
}

impl Containerizer {
    /// A child in the container's namespaces that waits for a plan. Its process id is taken from now on.
    pub async fn pea_blank(&self, container: &Container, process_id: &str) -> Result<PeaBlank> {
        let claim = container.claim(process_id)?;
        let joined = self.nursery.join(container.pidfd()?, container.spec().privileged).await?;
        Ok(PeaBlank { shared: self.shared.clone(), container: container.clone(), claim, joined })
    }

    /// One that a garden has made, this or an earlier one, as its record tells: to be destroyed, or taken over first.
    pub fn known_pea(&self, handle: &str, record: PeaRecord) -> Result<Pea> {
        // From a disk that may have seen anything.
        rules::check_handle(&record.name)?;
        rules::check_handle(handle)?;
        let group = Group::of(&self.shared, handle, &record);
        Ok(Pea::new(handle.into(), record, group, None))
    }
}

pub struct PeaBlank {
    shared: Arc<Shared>,
    container: Container,
    claim: Claim,
    joined: Joined,
}

impl PeaBlank {
    /// The container's; `None` for a privileged one.
    pub fn user_namespace(&self) -> Option<BorrowedFd<'_>> {
        self.joined.user_namespace.as_ref().map(AsFd::as_fd)
    }

    /// The host id of the container's root; `None` for a privileged one.
    pub fn root_id(&self) -> Option<u32> {
        self.container.root_id()
    }

    /// To be on disk before [`PeaBlank::run`].
    pub fn record(&self, pea: &PeaSpec, process: &ProcessSpec) -> Result<PeaRecord> {
        let failed = |source| {
            let handle = self.container.handle().into();
            Error::Container { act: "find the start time of a pea of", handle, source }
        };
        // In the container's hands all the while its image was pulled: it may be gone, and its id a stranger's.
        let started = sys::start_time_of_held(Path::new("/proc"), self.joined.pid, &self.joined.pidfd);
        let started = started.map_err(failed)?;
        Ok(PeaRecord {
            name: pea.name.clone(),
            process_id: self.claim.id().into(),
            init: InitRecord {
                pid: self.joined.pid,
                started: started.ok_or_else(|| failed(std::io::ErrorKind::NotFound.into()))?,
                boot: super::record::this_boot(),
                socket: Some(pea.socket.clone()),
            },
            own_limits: process.override_container_limits.is_some(),
            imaged: false,
        })
    }

    /// Starts the process in `root`, a detached mount. What there is of it when it fails is for the caller to destroy, by
    /// its record.
    pub async fn run(
        self,
        pea: PeaSpec,
        record: PeaRecord,
        process: &ProcessSpec,
        root: OwnedFd,
        io: ProcessIo,
    ) -> Result<(Pea, Box<dyn garden_client::Process>)> {
        let PeaBlank { shared, container, claim, joined } = self;
        let spec = spec(&container, &pea, process)?;
        let group = Group::of(&shared, container.handle(), &record);
        let (commands, waiting) = mpsc::channel(QUEUE_MAX);
        let pea = Pea::new(container.handle().to_owned(), record, group, Some(joined.pidfd));
        let control = start(&shared, &spec, &pea.inner.group, joined.socket, root).await?;
        pea.own(Owner::new(control, waiting).of_pea());
        let mut spawn = rules::spawn_spec(claim.id().into(), &spec.env, process);
        if spawn.dir.is_empty() {
            spawn.dir = DIRECTORY_DEFAULT.into();
        }
        let process = container.launch(&commands, spawn, io).await?;
        Ok((pea, process))
    }
}

/// Limits of its own, or those that hold for the container anyway, which then are not set again.
fn limits(container: PidLimits, own: Option<&ProcessLimits>) -> Limits {
    match own {
        // How many processes there may be is not the process's to say.
        Some(own) => {
            Limits { cpu: own.cpu_limits, memory: own.memory_limits, pid: container, ..Limits::default() }
        }
        None => Limits::default(),
    }
}

fn spec(container: &Container, pea: &PeaSpec, process: &ProcessSpec) -> Result<Spec> {
    rules::check_handle(&pea.name)?;
    let of_container = container.spec();
    Ok(Spec {
        handle: of_container.handle.clone(),
        privileged: of_container.privileged,
        env: pea.env.clone(),
        bind_mounts: pea.bind_mounts.iter().chain(&process.bind_mounts).cloned().collect(),
        limits: limits(pea.pid_limit, process.override_container_limits.as_ref()),
        socket: Some(pea.socket.clone()),
        oci: None,
    })
}

async fn start(
    shared: &Arc<Shared>,
    spec: &Spec,
    group: &Arc<Group>,
    socket: OwnedFd,
    root: OwnedFd,
) -> Result<Control> {
    let (of, in_group, its) = (shared.clone(), group.clone(), spec.clone());
    let (plan, fds) = blank::apart(move || {
        let files = match &*in_group {
            Group::Own(group) => blank::limited_cgroup(&of, group, &its)?,
            Group::Part(part) => {
                part.create()?;
                part.join_files()?
            }
        };
        let view = of.hierarchies.view();
        let mut prepared = rules::plan(&of.config, &its, view, files.len(), &of.filter)?;
        prepared.plan.role = Role::Pea;
        blank::gather(&its, prepared, root, files)
    })
    .await?;
    let control = blank::converse(spec, plan, socket, &fds).await.map_err(|error| match error {
        Error::Plan { handle, message } => Error::Pea { handle, message },
        other => other,
    })?;
    let (of, in_group, its) = (shared.clone(), group.clone(), spec.clone());
    blank::apart(move || match &*in_group {
        Group::Own(group) => Ok(group.limit_cpu(&rules::cpu_limits(&of.config, &its.limits))?),
        Group::Part(_) => Ok(()),
    })
    .await?;
    Ok(control)
}

/// Where its processes are.
enum Group {
    /// With limits of its own, beside the container's: what it uses is not the container's.
    Own(Cgroup),
    /// Within the container's, whose limits and figures count it.
    Part(Part),
}

impl Group {
    fn of(shared: &Shared, handle: &str, record: &PeaRecord) -> Group {
        let parent = &shared.config.cgroup_parent;
        match record.group_name(handle) {
            Some(name) => Group::Own(shared.hierarchies.cgroup(parent, &name)),
            None => Group::Part(shared.hierarchies.cgroup(parent, handle).part(&record.name)),
        }
    }

    fn remove(&self) -> Result<()> {
        match self {
            Group::Own(group) => Ok(group.remove()?),
            Group::Part(part) => Ok(part.remove()?),
        }
    }
}

/// The groups of all peas that had limits of their own in the container of this name.
pub fn remove_groups(hierarchies: &Hierarchies, parent: &str, container: &str) -> Result<()> {
    let prefix = format!("{container}{NAME_SEPARATOR}");
    for name in hierarchies.names(parent)?.iter().filter(|name| name.starts_with(&prefix)) {
        hierarchies.cgroup(parent, name).remove()?;
    }
    Ok(())
}

#[derive(Clone)]
pub struct Pea {
    inner: Arc<Inner>,
}

struct Inner {
    /// Of its container.
    handle: String,
    record: PeaRecord,
    group: Arc<Group>,
    /// Of its init; `None`: that of an earlier garden, or of a start that failed, is found by its record.
    pidfd: Option<OwnedFd>,
    /// Whether nobody speaks with its init any more.
    over: watch::Sender<bool>,
}

impl Pea {
    fn new(handle: String, record: PeaRecord, group: Group, pidfd: Option<OwnedFd>) -> Pea {
        let (over, _) = watch::channel(false);
        Pea { inner: Arc::new(Inner { handle, record, group: Arc::new(group), pidfd, over }) }
    }

    fn own(&self, owner: Owner) {
        let pea = self.clone();
        tokio::spawn(async move {
            owner.run().await;
            pea.inner.over.send_replace(true);
        });
    }

    pub fn record(&self) -> &PeaRecord {
        &self.inner.record
    }

    /// Until its process has ended and its exit status has arrived, or its init is gone.
    pub async fn over(&self) {
        // The sender lives in ourselves.
        let _ = self.inner.over.subscribe().wait_for(|over| *over).await;
    }

    /// Speaks with the init that an earlier garden has started: from now on its process is one of the container's. Waits until
    /// it answers, or has ended.
    pub async fn take_over(&self, container: &Container) -> Result<()> {
        let (handle, record) = (&self.inner.handle, &self.inner.record);
        let failed = |source| Error::Adoption { handle: handle.clone(), source };
        let io_failed = |source| failed(adoption::Error::Io { act: "listen to a pea's process", source });
        let _claim = container.claim(&record.process_id)?;
        // Held, so that its pid cannot become another's.
        let known = record.init.find().map_err(io_failed)?;
        let _known = known.ok_or_else(|| failed(adoption::Error::Gone(record.init.pid)))?;
        let mut control = adoption::reach(&record.init).await.map_err(failed)?;
        let told = adoption::hear(&mut control).await.map_err(failed)?;
        let (commands, waiting) = mpsc::channel(QUEUE_MAX);
        let mut running = HashMap::new();
        // Others than the one that was started there are not believed.
        if let Some(Adopted { id, ends, status }) = told.into_iter().find(|told| told.id == record.process_id)
        {
            let (exit_sender, exit) = watch::channel(status);
            let adopted = Running::adopted(id.clone(), ends, exit, commands.clone()).map_err(io_failed)?;
            container.remember(adopted);
            match status {
                None => drop(running.insert(id, exit_sender)),
                // Heard of; there is room for this one.
                Some(_) => drop(commands.try_send(Command::Tell(Request::Acknowledge { process: id }))),
            }
        }
        self.own(Owner::adopting(control, waiting, running, first_request()).of_pea());
        Ok(())
    }

    /// Ends it and all that its process has left, and removes what it had. Safe to call twice; what failed is tried again
    /// by the next call.
    pub async fn destroy(&self) -> Result<()> {
        let inner = self.inner.clone();
        let failed = |act| {
            let handle = self.inner.handle.clone();
            move |source| Error::Container { act, handle, source }
        };
        let (end, interrupted) = (failed("end a pea of"), failed("remove a pea of"));
        let ended = tokio::task::spawn_blocking(move || {
            let init = &inner.record.init;
            inner.pidfd.as_ref().map_or_else(|| init.end(), |pidfd| init.end_held(pidfd)).map_err(end)?;
            inner.group.remove()
        });
        ended.await.map_err(|error| interrupted(std::io::Error::other(error)))?
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use garden_client::MemoryLimits;

    #[test]
    fn limits_of_its_own_take_the_place_of_the_containers() {
        let container = PidLimits { max: 7 };
        assert_eq!(limits(container, None), Limits::default());
        let none = limits(container, Some(&ProcessLimits::default()));
        assert_eq!(none, Limits { pid: container, ..Limits::default() });
        let own =
            ProcessLimits { memory_limits: MemoryLimits { limit_in_bytes: 5 }, ..ProcessLimits::default() };
        assert_eq!(limits(container, Some(&own)).memory.limit_in_bytes, 5);
    }
}
