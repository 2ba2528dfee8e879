//! A blank: namespaces with a child that waits; and how it becomes a container.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use garden_init::{ERROR_BYTES_MAX, EVENT_BYTES_MAX, EVENT_FDS_MAX, Event, IdRange, Plan, Request};
use garden_sys::cgroup::Cgroup;
use garden_sys::{mount, packets, process};
use tokio::time::timeout;

use super::container::Container;
use super::control::Control;
use super::ids::Allocated;
use super::nursery::Born;
use super::oci::{self, Created, Instance, Wanted};
use super::record::InitRecord;
use super::rules::{self, HostMount, Prepared, Spec};
use super::{Error, Record, Result, Shared};

/// Carrying out a plan takes a few milliseconds.
const START_DEADLINE: Duration = Duration::from_secs(30);

pub struct Blank {
    shared: Arc<Shared>,
    born: Born,
    ids: Option<Allocated>,
}

impl Blank {
    pub(super) fn new(shared: Arc<Shared>, born: Born, ids: Option<Allocated>) -> Blank {
        Blank { shared, born, ids }
    }

    /// In the host's numbering.
    pub fn pid(&self) -> i32 {
        self.born.pid
    }

    pub fn network_namespace(&self) -> BorrowedFd<'_> {
        self.born.network_namespace.as_fd()
    }

    /// `None` for a privileged container.
    pub fn user_namespace(&self) -> Option<BorrowedFd<'_>> {
        self.born.user_namespace.as_ref().map(AsFd::as_fd)
    }

    /// The host ids of the container's root and those after it; `None` for a privileged container.
    pub fn ids(&self) -> Option<IdRange> {
        self.ids.as_ref().map(|ids| ids.range)
    }

    /// What a later garden must know to end the container; to be on disk before [`Blank::start`].
    pub fn record(&self, spec: &Spec) -> Result<Record> {
        rules::check_handle(&spec.handle)?;
        let failed =
            |source| Error::Container { act: "find the start time of", handle: spec.handle.clone(), source };
        let started = process::start_time_of_held(Path::new("/proc"), self.born.pid, &self.born.pidfd);
        let started = started.map_err(failed)?;
        Ok(Record {
            handle: spec.handle.clone(),
            init: InitRecord {
                pid: self.born.pid,
                started: started.ok_or_else(|| failed(std::io::ErrorKind::NotFound.into()))?,
                boot: super::record::this_boot(),
                socket: spec.socket.clone(),
            },
            cgroup_root: self.shared.config.cgroup_root.clone(),
            cgroup_parent: self.shared.config.cgroup_parent.clone(),
            cgroup_name: spec.handle.clone(),
            ids: self.ids(),
            env: spec.env.clone(),
            limits: spec.limits.clone(),
            oci: spec.oci.clone(),
        })
    }

    /// Carries out the plan of `spec` on `root`, a detached mount. Nothing is left when it fails.
    pub async fn start(self, spec: Spec, root: OwnedFd) -> Result<Container> {
        rules::check_handle(&spec.handle)?;
        let Blank { shared, born, ids } = self;
        if let Some(instance) = spec.oci.clone() {
            return start_by_runtime(&shared, born, ids, spec, root, instance).await;
        }
        let config = &shared.config;
        let cgroup = shared.hierarchies.cgroup(&config.cgroup_parent, &spec.handle);
        let container = Container::new(spec, cgroup, born.pid, Some(born.pidfd), ids, config.deadlines);
        match carry_out(&shared, &container, born.socket, root).await {
            Ok(control) => {
                container.begin(control);
                Ok(container)
            }
            Err(error) => {
                if let Err(left) = container.destroy().await {
                    tracing::error!(handle = container.handle(), error = %left, "cannot remove a container that did not start");
                }
                Err(error)
            }
        }
    }
}

/// The same by an OCI runtime, in the namespaces of the blank, whose child then ends.
async fn start_by_runtime(
    shared: &Arc<Shared>,
    born: Born,
    ids: Option<Allocated>,
    spec: Spec,
    root: OwnedFd,
    instance: Instance,
) -> Result<Container> {
    let cgroup = shared.hierarchies.cgroup(&shared.config.cgroup_parent, &spec.handle);
    let created = create_by_runtime(shared, &born, ids.as_ref(), &spec, root, &instance, &cgroup).await;
    let (created, plan) = match created {
        Ok(created) => created,
        Err(error) => {
            let handle = spec.handle.clone();
            let left = move || -> Result<()> {
                instance.delete()?;
                Ok(cgroup.remove()?)
            };
            if let Ok(Err(left)) = tokio::task::spawn_blocking(left).await {
                tracing::error!(handle, error = %left, "cannot remove a container that its runtime did not make");
            }
            return Err(error);
        }
    };
    let container =
        Container::new(spec, cgroup, created.pid, Some(created.pidfd), ids, shared.config.deadlines);
    let conversation = async {
        let spec = container.spec();
        let failed = |act| move |source| Error::Container { act, handle: spec.handle.clone(), source };
        let listener = spec.socket.as_deref().map(listen).transpose();
        let fds = listener.map_err(failed("make the socket of"))?.into_iter().collect::<Vec<_>>();
        let control = converse(spec, plan, created.socket, &fds).await?;
        container.cgroup().limit_cpu(&rules::cpu_limits(&shared.config, &spec.limits))?;
        Ok(control)
    };
    match conversation.await {
        Ok(control) => container.begin(control),
        Err(error) => {
            if let Err(left) = container.destroy().await {
                tracing::error!(handle = container.handle(), error = %left, "cannot remove a container that did not start");
            }
            return Err(error);
        }
    }
    Ok(container)
}

async fn create_by_runtime(
    shared: &Arc<Shared>,
    born: &Born,
    ids: Option<&Allocated>,
    spec: &Spec,
    root: OwnedFd,
    instance: &Instance,
    cgroup: &Cgroup,
) -> Result<(Created, Plan)> {
    let (shared, spec, instance, cgroup) = (shared.clone(), spec.clone(), instance.clone(), cgroup.clone());
    let (blank, ids) = (born.pid, ids.map(|ids| ids.range));
    apart(move || {
        limited_cgroup(&shared, &cgroup, &spec)?;
        let prepared = rules::plan(&shared.config, &spec, shared.hierarchies.view(), 0, &shared.filter)?;
        let plan = oci::remaining(&prepared.plan);
        let mounts = prepared.mounts.iter().map(open_mount).collect::<Result<Vec<_>>>()?;
        let first_mount = 1 + spec.socket.iter().len();
        let config = &shared.config;
        let (spec, prepared) = (&spec, &prepared);
        let wanted = Wanted { config, spec, prepared, first_mount, blank, ids, root, mounts };
        Ok((instance.create(wanted)?, plan))
    })
    .await
}

async fn carry_out(
    shared: &Arc<Shared>,
    container: &Container,
    socket: OwnedFd,
    root: OwnedFd,
) -> Result<Control> {
    let (of, cgroup, spec) = (shared.clone(), container.cgroup().clone(), container.spec().clone());
    let (plan, fds) = apart(move || {
        let files = limited_cgroup(&of, &cgroup, &spec)?;
        let prepared = rules::plan(&of.config, &spec, of.hierarchies.view(), files.len(), &of.filter)?;
        gather(&spec, prepared, root, files)
    })
    .await?;
    let control = converse(container.spec(), plan, socket, &fds).await?;
    // Only now: a container with few shares starts slowly on a busy host.
    let (of, container) = (shared.clone(), container.clone());
    apart(move || {
        Ok(container.cgroup().limit_cpu(&rules::cpu_limits(&of.config, &container.spec().limits))?)
    })
    .await?;
    Ok(control)
}

/// Where a dead disk or a network file system that does not answer holds up nothing else.
pub(super) async fn apart<T: Send + 'static>(act: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(act).await.map_err(|_| Error::Interrupted)?
}

/// A blank's plan with all it names, opened. Blocks as long as the places take that are to be bound.
pub(super) fn gather(
    spec: &Spec,
    Prepared { plan, mounts }: Prepared,
    root: OwnedFd,
    cgroups: Vec<OwnedFd>,
) -> Result<(Plan, Vec<OwnedFd>)> {
    let failed = |act| move |source| Error::Container { act, handle: spec.handle.clone(), source };
    // An image plugin's, or a volume's, may lie in a shared mount of the host.
    mount::make_private(&root).map_err(failed("keep to itself the root of"))?;
    let mut fds = vec![root];
    if let Some(path) = &spec.socket {
        fds.push(listen(path).map_err(failed("make the socket of"))?);
        crate::milestone::passed();
    }
    fds.extend(cgroups);
    for mount in &mounts {
        fds.push(open_mount(mount)?);
    }
    Ok((plan, fds))
}

/// Gives a blank its plan, and hears whether it could be carried out.
pub(super) async fn converse(spec: &Spec, plan: Plan, socket: OwnedFd, fds: &[OwnedFd]) -> Result<Control> {
    let failed = |act| move |source| Error::Container { act, handle: spec.handle.clone(), source };
    let mut control = Control::new(socket, EVENT_BYTES_MAX, EVENT_FDS_MAX).map_err(failed("speak with"))?;
    let conversation = async {
        control.send(&Request::Plan(Box::new(plan)), fds).await.map_err(failed("send its plan to"))?;
        crate::milestone::passed();
        control.receive().await.map_err(failed("hear from"))
    };
    let answer = timeout(START_DEADLINE, conversation).await;
    let answer = answer
        .map_err(|_| Error::Late { step: "carry out the plan of a container", deadline: START_DEADLINE })??;
    let answer = answer.ok_or_else(|| failed("hear from")(std::io::ErrorKind::UnexpectedEof.into()))?;
    match serde_json::from_slice(&answer.bytes) {
        Ok(Event::Ready) => {
            crate::milestone::passed();
            Ok(control)
        }
        Ok(Event::Failed { mut message }) => {
            message.truncate(
                (0..=message.len().min(ERROR_BYTES_MAX))
                    .rev()
                    .find(|&end| message.is_char_boundary(end))
                    .unwrap_or(0),
            );
            Err(Error::Plan { handle: spec.handle.clone(), message })
        }
        Ok(_) => Err(failed("hear sense from")(std::io::ErrorKind::InvalidData.into())),
        Err(error) => Err(failed("understand")(error.into())),
    }
}

pub(super) fn limited_cgroup(shared: &Shared, cgroup: &Cgroup, spec: &Spec) -> Result<Vec<OwnedFd>> {
    cgroup.create()?;
    crate::milestone::passed();
    cgroup.limit(&rules::cgroup_limits(&shared.config, &spec.limits))?;
    Ok(cgroup.join_files()?)
}

/// For pid 1 to wait at for the next garden; only root of the host can reach it.
fn listen(path: &Path) -> std::io::Result<OwnedFd> {
    let name = path.file_name().and_then(|name| name.to_str());
    let (Some(directory), Some(name)) = (path.parent(), name) else {
        return Err(std::io::ErrorKind::InvalidInput.into());
    };
    packets::bind_below(directory, name)
}

fn open_mount(mount: &HostMount) -> Result<OwnedFd> {
    let failed = |source| Error::BindSource { path: mount.path.clone(), source };
    let clone = mount::clone_mount(&mount.path, true).map_err(failed)?;
    mount::make_private(&clone).map_err(failed)?;
    if mount.read_only {
        mount::set_attributes(&clone, mount::MountAttrFlags::MOUNT_ATTR_RDONLY, true).map_err(failed)?;
    }
    Ok(clone)
}
