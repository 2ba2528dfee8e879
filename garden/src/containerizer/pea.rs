//! Peas: processes of a container with a root file system of their own.
//!
//! ```text
//! Containerizer ──pea_blank(container)──▶ PeaBlank ──run(spec, root)──▶ Pea ──over──▶ ──destroy──▶ nothing left
//! ```
//! A pea is in all namespaces of its container but the one of mounts. Its init, born by the nursery and spoken to as a
//! pid 1 is, starts the one process, tells of its exit, and ends. Being in the container's pid namespace, all of it ends
//! with the container; being in the container's hands as much as any process there, it may be killed or stopped at any
//! moment, and what it says is believed no more than what a pid 1 says.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use garden_client::{Limits, ProcessIo, ProcessLimits, ProcessSpec};
use garden_init::Role;
use garden_sys::cgroup::{Cgroup, Hierarchies, Part};
use garden_sys::process as sys;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use super::container::{Claim, Container, end_of};
use super::control::Control;
use super::nursery::Joined;
use super::owner::{Owner, QUEUE_MAX};
use super::record::{KILL_DEADLINE, remove_socket};
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
    /// Where its init listens for a later agent.
    pub socket: Option<PathBuf>,
}

impl Containerizer {
    /// A child in the container's namespaces that waits for a plan. Its process id is taken from now on.
    pub async fn pea_blank(&self, container: &Container, process_id: &str) -> Result<PeaBlank> {
        let claim = container.claim(process_id)?;
        let joined = self.nursery.join(container.pidfd()?, container.spec().privileged).await?;
        Ok(PeaBlank { shared: self.shared.clone(), container: container.clone(), claim, joined })
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

    /// Starts the process in `root`, a detached mount. Nothing is left of the pea when it fails.
    pub async fn run(
        self,
        pea: PeaSpec,
        process: &ProcessSpec,
        root: OwnedFd,
        io: ProcessIo,
    ) -> Result<(Pea, Box<dyn garden_client::Process>)> {
        let PeaBlank { shared, container, claim, joined } = self;
        let spec = spec(&container, &pea, process)?;
        let group = Group::of(&shared, &container, &pea.name, process.override_container_limits.is_some());
        let Joined { pidfd, user_namespace: _, socket } = joined;
        let (commands, waiting) = mpsc::channel(QUEUE_MAX);
        let handle = container.handle().to_owned();
        let pea = Pea::new(handle, claim.id().into(), pidfd, group, spec.socket.clone());
        let started = async {
            let control = start(&shared, &spec, &pea.inner.group, socket, root).await?;
            pea.own(Owner::of_pea(control, waiting));
            let mut spawn = rules::spawn_spec(claim.id().into(), &spec.env, process);
            if spawn.dir.is_empty() {
                spawn.dir = DIRECTORY_DEFAULT.into();
            }
            container.launch(&commands, spawn, io).await
        };
        match started.await {
            Ok(process) => Ok((pea, process)),
            Err(error) => {
                if let Err(left) = pea.destroy().await {
                    tracing::error!(handle = spec.handle, error = %left, "cannot remove a pea that did not start");
                }
                Err(error)
            }
        }
    }
}

/// Limits of its own, or those that hold for the container anyway, which then are not set again.
fn limits(container: &Limits, own: Option<&ProcessLimits>) -> Limits {
    match own {
        // How many processes there may be is not the process's to say.
        Some(own) => {
            Limits { cpu: own.cpu_limits, memory: own.memory_limits, pid: container.pid, ..Limits::default() }
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
        limits: limits(&of_container.limits, process.override_container_limits.as_ref()),
        socket: pea.socket.clone(),
    })
}

async fn start(
    shared: &Shared,
    spec: &Spec,
    group: &Group,
    socket: OwnedFd,
    root: OwnedFd,
) -> Result<Control> {
    let files = match group {
        Group::Own(group) => blank::limited_cgroup(shared, group, spec)?,
        Group::Part(part) => {
            part.create()?;
            part.join_files()?
        }
    };
    let mut prepared =
        rules::plan(&shared.config, spec, shared.hierarchies.view(), files.len(), &shared.filter)?;
    prepared.plan.role = Role::Pea;
    let control =
        blank::hand_over(spec, prepared, socket, root, files).await.map_err(|error| match error {
            Error::Plan { handle, message } => Error::Pea { handle, message },
            other => other,
        })?;
    if let Group::Own(group) = group {
        group.limit_cpu(&rules::cpu_limits(&shared.config, &spec.limits))?;
    }
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
    fn of(shared: &Shared, container: &Container, name: &str, own: bool) -> Group {
        let parent = &shared.config.cgroup_parent;
        if own {
            let name = format!("{}{NAME_SEPARATOR}{name}", container.handle());
            Group::Own(shared.hierarchies.cgroup(parent, &name))
        } else {
            Group::Part(container.cgroup().part(name))
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
    process_id: String,
    pidfd: OwnedFd,
    group: Group,
    socket: Option<PathBuf>,
    /// Whether nobody speaks with its init any more.
    over: watch::Sender<bool>,
}

impl Pea {
    fn new(handle: String, process_id: String, pidfd: OwnedFd, group: Group, socket: Option<PathBuf>) -> Pea {
        let (over, _) = watch::channel(false);
        Pea { inner: Arc::new(Inner { handle, process_id, pidfd, group, socket, over }) }
    }

    fn own(&self, owner: Owner) {
        let pea = self.clone();
        tokio::spawn(async move {
            owner.run().await;
            pea.inner.over.send_replace(true);
        });
    }

    pub fn process_id(&self) -> &str {
        &self.inner.process_id
    }

    /// Until its process has ended and its exit status has arrived, or its init is gone.
    pub async fn over(&self) {
        // The sender lives in ourselves.
        let _ = self.inner.over.subscribe().wait_for(|over| *over).await;
    }

    /// Ends it and all that its process has left, and removes what it had. Safe to call twice; what failed is tried again
    /// by the next call.
    pub async fn destroy(&self) -> Result<()> {
        let failed = |act| {
            let handle = self.inner.handle.clone();
            move |source| Error::Container { act, handle, source }
        };
        sys::kill(&self.inner.pidfd).map_err(failed("kill a pea of"))?;
        let ended = timeout(KILL_DEADLINE, end_of(self.inner.pidfd.as_fd())).await;
        let ended = ended.map_err(|_| Error::Late { step: "kill a pea", deadline: KILL_DEADLINE })?;
        ended.map_err(failed("watch a pea of"))?;
        let inner = self.inner.clone();
        let removed = tokio::task::spawn_blocking(move || inner.group.remove()).await;
        removed.map_err(|error| {
            failed("remove the control groups of a pea of")(std::io::Error::other(error))
        })??;
        remove_socket(self.inner.socket.as_deref()).map_err(failed("remove the socket of a pea of"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use garden_client::{CpuLimits, MemoryLimits, PidLimits};

    #[test]
    fn limits_of_its_own_take_the_place_of_the_containers() {
        let container = Limits {
            memory: MemoryLimits { limit_in_bytes: 1 << 20 },
            cpu: CpuLimits { weight: 9, limit_in_shares: 0 },
            pid: PidLimits { max: 7 },
            ..Limits::default()
        };
        assert_eq!(limits(&container, None), Limits::default());
        let none = limits(&container, Some(&ProcessLimits::default()));
        assert_eq!(none, Limits { pid: container.pid, ..Limits::default() });
        let own =
            ProcessLimits { memory_limits: MemoryLimits { limit_in_bytes: 5 }, ..ProcessLimits::default() };
        assert_eq!(limits(&container, Some(&own)).memory.limit_in_bytes, 5);
    }
}
