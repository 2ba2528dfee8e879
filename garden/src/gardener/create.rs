//! How a container comes to be, step by step, and what happens when a step fails.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use garden_client::{BindMount, ContainerSpec, Error, Result};

use super::entry::{Entry, Stage};
use super::image::Root;
use super::pace::Pace;
use super::warm::Place;
use super::{Gardener, blocking};
use crate::containerizer::{self, Blank, Container};
use crate::depot::{HANDLE_BYTES_MAX, Record};

/// Where pid 1 waits for a later garden, in the container's directory.
const SOCKET: &str = "pid1";
pub(super) const WRITABLE: u8 = 1;

/// By which a container's creator chooses who makes it, where garden has an OCI runtime.
const RUNTIME_PROPERTY: &str = "garden.runtime";
const BUILT_IN: &str = "built-in";
/// Also where that keeps what it knows, in the container's directory.
const OCI: &str = "oci";

/// In the order in which they are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Recorded,
    RootMounted,
    Connected,
    Started,
}

impl Step {
    #[cfg(test)]
    pub const ALL: [Step; 4] = [Step::Recorded, Step::RootMounted, Step::Connected, Step::Started];
}

impl Gardener {
    pub(super) async fn create_container(&self, mut spec: ContainerSpec) -> Result<String> {
        if spec.handle.is_empty() {
            spec.handle = uuid::Uuid::new_v4().to_string();
        }
        if spec.privileged && !self.0.config.allow_privileged {
            return Err(Error::Other("privileged container creation is disabled".into()));
        }
        if !spec.rootfs_path.is_empty() && !spec.image.uri.is_empty() {
            return Err(Error::Other("Cannot provide both Image.URI and RootFSPath".into()));
        }
        check_handle(&spec.handle)?;
        let entry = self.enter(&spec)?;
        let gardener = self.clone();
        let creating = tokio::spawn(async move {
            let handle = spec.handle.clone();
            let mut pace = Pace::start();
            match gardener.take_steps(&entry, spec, &mut pace).await {
                Ok(()) => {
                    tracing::info!(handle, milliseconds = pace.total_ms(), steps = %pace, "created");
                    Ok(handle)
                }
                Err(error) => {
                    tracing::error!(handle, %error, steps = %pace, "creation failed, cleaning up");
                    match entry.is_stuck() {
                        false => gardener.undo(entry).await,
                        true => _ = tokio::spawn(async move { gardener.undo(entry).await }),
                    }
                    Err(error)
                }
            }
        });
        creating.await.map_err(|error| Error::Other(format!("interrupted: {error}")))?
    }

    /// Takes the handle.
    fn enter(&self, spec: &ContainerSpec) -> Result<Arc<Entry>> {
        let mut recorded = spec.clone();
        recorded.image.password = String::new();
        let mut record = Record::new(recorded, self.0.clock.now_ns());
        if record.grace_time_ns == 0 {
            let default = self.0.config.default_grace_time.as_nanos();
            record.grace_time_ns = u64::try_from(default).unwrap_or(u64::MAX);
        }
        let mut entries = self.entries();
        if entries.contains_key(&spec.handle) {
            return Err(Error::Other(format!("Handle '{}' already in use", spec.handle)));
        }
        let limit = self.0.config.max_containers;
        if limit > 0 && entries.len() as u64 >= limit {
            return Err(Error::Other("max containers reached".into()));
        }
        let entry = Arc::new(Entry::new(record, Stage::Creating));
        entries.insert(spec.handle.clone(), entry.clone());
        Ok(entry)
    }

    async fn take_steps(&self, entry: &Arc<Entry>, spec: ContainerSpec, pace: &mut Pace) -> Result<()> {
        // Its grace time begins when it is made.
        let _in_use = entry.in_use();
        let wanted = self.wanted_network(&spec)?;
        let (place, image) = tokio::join!(self.place(spec.privileged, wanted), self.pull(&spec));
        let (place, image) = match (place, image) {
            (Ok(place), Ok(image)) => (place, image),
            (Ok(place), Err(error)) => {
                place.give_back(&self.0.networker);
                return Err(error);
            }
            (Err(error), _) => return Err(error),
        };
        pace.done("place and image");
        let blank = self.record(entry, &spec, place).await?;
        pace.done("record");
        self.checkpoint(Step::Recorded)?;
        let root = self.mount(entry, &spec, &blank, image).await?;
        self.checkpoint(Step::RootMounted)?;
        pace.done("root");
        let files = self.connect(entry, &spec, &blank).await?;
        pace.done("network");
        self.checkpoint(Step::Connected)?;
        let container = self.start_pid_1(entry, spec, blank, root, files).await?;
        pace.done("pid 1");
        let container = Arc::new(container);
        // From here on an undo must end it, too.
        entry.created(container);
        self.checkpoint(Step::Started)?;
        self.change(entry.clone(), |record| record.created = true).await
    }

    /// Before anything exists that would outlive garden.
    async fn record(&self, entry: &Arc<Entry>, spec: &ContainerSpec, place: Place) -> Result<Arc<Blank>> {
        let Place { blank, connection } = place;
        let Some(mut connection) = connection else {
            self.change(entry.clone(), |record| record.plugged = true).await?;
            return Ok(Arc::new(blank));
        };
        let (gardener, net_in) = (self.clone(), spec.net_in.clone());
        connection.net_out = spec.net_out.clone();
        let recorded = entry.clone();
        let reserve = move || {
            let mut reserve_and_save = || {
                gardener.0.networker.reserve_ports(&mut connection, &net_in)?;
                let connection = connection.clone();
                Ok(recorded.change(&gardener.0.depot, |record| record.connection = Some(connection))?)
            };
            // Not in the record, so nobody else would give it back.
            reserve_and_save()
                .inspect_err(|_: &RecordError| gardener.0.networker.disconnect(connection.clone()))
        };
        self.step(entry, "write the record", blocking(reserve)).await?;
        Ok(Arc::new(blank))
    }

    async fn start_pid_1(
        &self,
        entry: &Arc<Entry>,
        spec: ContainerSpec,
        blank: Arc<Blank>,
        root: Root,
        files: Vec<BindMount>,
    ) -> Result<Container> {
        let directory = self.0.depot.directory(&spec.handle);
        let socket = directory.join(SOCKET);
        let oci = self.runtime(&spec)?.map(|runtime| containerizer::Instance {
            runtime,
            directory: directory.join(OCI),
            id: spec.handle.clone(),
        });
        let spec = containerizer::Spec {
            handle: spec.handle,
            privileged: spec.privileged,
            env: root.env.into_iter().chain(spec.env).collect(),
            bind_mounts: files.into_iter().chain(spec.bind_mounts).collect(),
            limits: spec.limits,
            socket: Some(socket),
            oci,
        };
        let by_runtime = spec.oci.is_some();
        let record = blank.record(&spec)?;
        self.change(entry.clone(), move |kept| kept.container = Some(record)).await?;
        // The steps before it have let it go.
        let blank = Arc::into_inner(blank).ok_or_else(|| Error::Other("the blank is still in use".into()))?;
        let start = async move { Ok(blank.start(spec, root.fd).await?) };
        let container = self.step(entry, "start pid 1", start).await?;
        if by_runtime {
            // Only now it is known which process became pid 1.
            let init = container.init_record()?;
            let set = |record: containerizer::Record| containerizer::Record { init, ..record };
            self.change(entry.clone(), |kept| kept.container = kept.container.take().map(set)).await?;
        }
        Ok(container)
    }

    /// The OCI runtime that is to make the container; `None`: we do.
    fn runtime(&self, spec: &ContainerSpec) -> Result<Option<containerizer::Runtime>> {
        let runtime = &self.0.config.containerizer.oci;
        match spec.properties.get(RUNTIME_PROPERTY).map(String::as_str) {
            Some(BUILT_IN) => Ok(None),
            Some(OCI) if runtime.is_none() => {
                Err(Error::Other("this garden was given no OCI runtime to make containers with".into()))
            }
            Some(OCI) => Ok(runtime.clone()),
            Some(other) => {
                Err(Error::Other(format!("there is no runtime '{other}': it is {OCI} or {BUILT_IN}")))
            }
            None => Ok(runtime.clone().filter(|_| self.0.config.oci_for_all)),
        }
    }

    /// Takes a creation back. What cannot be taken back stays known, to be destroyed again.
    async fn undo(&self, entry: Arc<Entry>) {
        entry.unstuck().await;
        let container = match entry.begin_undo() {
            Ok(container) => container,
            Err(error) => {
                tracing::info!(handle = entry.handle, %error, "a failed creation is cleaned up by another");
                return;
            }
        };
        if let Err(error) = self.take_away(entry.clone(), container).await {
            tracing::error!(handle = entry.handle, %error, "cannot clean up after a failed creation");
        }
    }

    #[cfg(test)]
    fn checkpoint(&self, step: Step) -> Result<()> {
        crate::milestone::passed();
        let fail_after = *self.0.fail_after.lock().unwrap();
        if fail_after == Some(step) { Err(Error::Other(format!("failed after {step:?}"))) } else { Ok(()) }
    }

    /// Where tests make creations fail.
    #[cfg(not(test))]
    fn checkpoint(&self, _: Step) -> Result<()> {
        Ok(())
    }
}

#[derive(Debug, thiserror::Error)]
enum RecordError {
    #[error(transparent)]
    Networker(#[from] crate::networker::Error),
    #[error(transparent)]
    Depot(#[from] crate::depot::Error),
}

#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    #[error(transparent)]
    Networker(#[from] crate::networker::Error),
    #[error("cannot write {}", path.display())]
    File { path: PathBuf, source: std::io::Error },
}

pub(super) fn etc_files(
    directory: &Path,
    hosts: &str,
    resolv_conf: &str,
    blank: &Blank,
) -> std::result::Result<Vec<BindMount>, ConnectError> {
    let owner = blank.ids().map_or(0, |ids| ids.root_id());
    let files = [("hosts", hosts), ("resolv.conf", resolv_conf)];
    files.into_iter().map(|(name, text)| etc_file(directory, name, text, owner)).collect()
}

/// Belongs to the container's root, who may change it as in a machine of its own.
fn etc_file(
    directory: &Path,
    name: &str,
    text: &str,
    owner: u32,
) -> std::result::Result<BindMount, ConnectError> {
    let path = directory.join(name);
    let write = || {
        std::fs::write(&path, text)?;
        std::os::unix::fs::chown(&path, Some(owner), Some(owner))
    };
    match write() {
        Ok(()) => Ok(BindMount {
            src_path: path.to_string_lossy().into_owned(),
            dst_path: format!("/etc/{name}"),
            mode: WRITABLE,
            origin: 0,
        }),
        Err(source) => Err(ConnectError::File { path, source }),
    }
}

/// A handle names directories and control groups.
fn check_handle(handle: &str) -> Result<()> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b':');
    if handle.len() <= HANDLE_BYTES_MAX && !handle.starts_with('.') && handle.bytes().all(plain) {
        return Ok(());
    }
    let shown: String = handle.chars().take(HANDLE_BYTES_MAX).collect();
    Err(Error::Other(format!(
        "'{shown}' is no handle: up to {HANDLE_BYTES_MAX} letters, digits, '-', '_', '.' and ':', not starting with '.'"
    )))
}
