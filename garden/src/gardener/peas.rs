//! Processes with an image of their own: the image is pulled, mounted as a root of its own, and let go again when the
//! process has ended.
//!
//! One task for each sees it through from its start to the last thing it had, whatever becomes of the client that asked
//! for it. The destruction of a container stops those that still wait for their image, and waits for all.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use garden_client::{BindMount, ContainerSpec, DiskLimits, Error, Process, ProcessIo, ProcessSpec, Result};
use rootfs::store::{BaseIds, DiskLimit, DiskScope, Image};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::create::WRITABLE;
use super::entry::Entry;
use super::image::{MOUNT, Root, Wanted};
use super::{Gardener, blocking, chain};
use crate::containerizer::{Container, Pea, PeaBlank, PeaRecord, PeaSpec};
use crate::depot;
use crate::plugins::image::Made;
use crate::plugins::root;

/// For all peas of a container to be gone after its pid 1; each step of theirs has a deadline of its own.
const END_DEADLINE: Duration = Duration::from_secs(60);

/// The scope of a disk limit that the image does not count for.
const EXCLUSIVE: u8 = 1;

const RECORD: &str = "write the record of a pea";

/// What says who a container is in its network: its peas are shown the same files.
const NETWORK_FILES: [&str; 2] = ["hosts", "resolv.conf"];

/// For those of an earlier garden to answer; what answers later is taken over then.
const ANSWER_DEADLINE: Duration = Duration::from_secs(2);

/// Those of one container. Each stands in the depot from before it has anything until it has nothing any more.
#[derive(Default)]
pub(super) struct Peas {
    /// Cancelled when the container goes.
    ending: CancellationToken,
    tasks: TaskTracker,
}

type Started = Result<(Pea, Box<dyn Process>)>;

impl Gardener {
    pub(super) async fn run_pea(
        &self,
        entry: Arc<Entry>,
        container: Arc<Container>,
        spec: ProcessSpec,
        io: ProcessIo,
    ) -> Result<Box<dyn Process>> {
        let (answer, answered) = oneshot::channel();
        let (gardener, same_entry) = (self.clone(), entry.clone());
        let task = async move { gardener.see_through(&same_entry, &container, spec, io, answer).await };
        entry.peas.tasks.spawn(task);
        answered.await.unwrap_or_else(|_| Err(Error::Other("interrupted: the process did not start".into())))
    }

    async fn see_through(
        &self,
        entry: &Arc<Entry>,
        container: &Container,
        spec: ProcessSpec,
        io: ProcessIo,
        answer: oneshot::Sender<Result<Box<dyn Process>>>,
    ) {
        let (blank, image) = match self.prepare_pea(entry, container, &spec).await {
            Ok(prepared) => prepared,
            Err(error) => return refuse(entry, &spec, error, answer),
        };
        let name = format!("pea-{}", uuid::Uuid::new_v4());
        match self.start_pea(&name, entry, blank, image, &spec, io).await {
            Ok((pea, process)) => {
                // A client that is gone loses sight of it, no more.
                _ = answer.send(Ok(process));
                pea.over().await;
                self.take_away_pea(entry, &name, Some(pea)).await;
            }
            Err(error) if entry.is_stuck() => {
                refuse(entry, &spec, error, answer);
                entry.unstuck().await;
                self.take_away_pea(entry, &name, None).await;
            }
            Err(error) => {
                self.take_away_pea(entry, &name, None).await;
                refuse(entry, &spec, error, answer);
            }
        }
    }

    /// Only this may take long. What comes after it ends soon once the container has ended, and is not to be left half done.
    async fn prepare_pea(
        &self,
        entry: &Entry,
        container: &Container,
        spec: &ProcessSpec,
    ) -> Result<(PeaBlank, Wanted)> {
        let image = ContainerSpec {
            image: spec.image.clone(),
            privileged: container.spec().privileged,
            ..ContainerSpec::default()
        };
        let blank = async { Ok(self.0.containerizer.pea_blank(container, &spec.id).await?) };
        let prepared = async { tokio::try_join!(blank, self.pull(&image)) };
        tokio::select! {
            prepared = prepared => prepared,
            () = entry.peas.ending.cancelled() => Err(is_going(entry)),
        }
    }

    async fn start_pea(
        &self,
        name: &str,
        entry: &Arc<Entry>,
        blank: PeaBlank,
        image: Wanted,
        spec: &ProcessSpec,
        io: ProcessIo,
    ) -> Started {
        let directory = self.0.depot.directory(&entry.handle);
        let mut pea = PeaSpec {
            name: name.into(),
            env: Vec::new(),
            bind_mounts: shown(&self.network_files(&entry.handle)),
            pid_limit: entry.with_record(|record| record.spec.limits.pid),
            socket: directory.join(name),
        };
        let mut record = blank.record(&pea, spec)?;
        record.imaged = matches!(image, Wanted::Plugin(_));
        let (blank, root) = self.record_and_mount(entry, record.clone(), blank, image).await?;
        pea.env = root.env;
        let spec = spec.clone();
        let run = async move { Ok(blank.run(pea, record, &spec, root.fd, io).await?) };
        self.step(entry, "start a process with its own image", run).await
    }

    async fn record_and_mount(
        &self,
        entry: &Arc<Entry>,
        record: PeaRecord,
        blank: PeaBlank,
        image: Wanted,
    ) -> Result<(PeaBlank, Root)> {
        let (gardener, handle, recorded) = (self.clone(), entry.handle.clone(), record.clone());
        let save = move || gardener.0.depot.save_pea(&handle, &recorded);
        let made = match image {
            Wanted::Stored(image) => return self.mount_stored_pea(entry, save, record, blank, image).await,
            Wanted::Raw(root) => {
                self.step(entry, RECORD, blocking(save)).await?;
                Made { root, ..Made::default() }
            }
            Wanted::Plugin(image) => {
                self.step(entry, RECORD, blocking(save)).await?;
                let (privileged, disk) =
                    entry.with_record(|record| (record.spec.privileged, record.spec.limits.disk));
                let disk = DiskLimits { scope: EXCLUSIVE, ..disk };
                let directory = self.0.depot.directory(&entry.handle).join(format!("{}.image", record.name));
                let ending = &entry.peas.ending;
                // A program that is cut short has ended before it is told to take away what it had made.
                let made =
                    self.make_by_plugin(&record.name, privileged, image, disk, directory, ending).await;
                if ending.is_cancelled() {
                    return Err(is_going(entry));
                }
                made?
            }
        };
        let env = made.env.clone();
        let fd = self.step(entry, MOUNT, blocking(move || root::assemble(&made))).await?;
        Ok((blank, Root { fd, env }))
    }

    /// What it writes is held to what its container may write, but counted by itself.
    async fn mount_stored_pea(
        &self,
        entry: &Entry,
        save: impl FnOnce() -> depot::Result<()> + Send + 'static,
        record: PeaRecord,
        blank: PeaBlank,
        image: Image,
    ) -> Result<(PeaBlank, Root)> {
        let disk = entry.with_record(|record| record.spec.limits.disk);
        let limit = DiskLimit { bytes: disk.byte_hard, inodes: disk.inode_hard, scope: DiskScope::Exclusive };
        let base = blank.root_id().map_or(BaseIds::default(), |id| BaseIds { uid: id, gid: id });
        let gardener = self.clone();
        let mount = move || {
            save()?;
            let namespace = blank.user_namespace();
            let root = gardener.0.store.mount(&record.name, &image, namespace, base, limit)?;
            Ok::<_, MountError>((blank, Root { fd: root.fd, env: image.config.env.clone() }))
        };
        self.step(entry, MOUNT, blocking(mount)).await
    }

    /// Takes over the peas that an earlier garden had in a container of its; what of them is gone is taken away.
    pub(super) async fn adopt_peas(&self, entry: &Arc<Entry>, container: &Arc<Container>) {
        let (gardener, handle) = (self.clone(), entry.handle.clone());
        let read = move || {
            gardener.0.depot.drop_half_peas(&handle)?;
            gardener.0.depot.peas(&handle)
        };
        let records = match blocking(read).await {
            Ok(records) => records,
            Err(error) => {
                tracing::error!(handle = entry.handle, %error, "cannot tell which peas there are");
                return;
            }
        };
        let answered = records.into_iter().map(|record| {
            let (tell, told) = oneshot::channel();
            let (gardener, entry, container) = (self.clone(), entry.clone(), container.clone());
            let tasks = entry.peas.tasks.clone();
            tasks.spawn(async move { gardener.adopt_pea(&entry, &container, record, tell).await });
            told
        });
        // Those that do not answer go on being waited for, but not by us.
        _ = tokio::time::timeout(ANSWER_DEADLINE, join_all(answered)).await;
    }

    async fn adopt_pea(
        &self,
        entry: &Entry,
        container: &Container,
        record: PeaRecord,
        tell: oneshot::Sender<()>,
    ) {
        let name = record.name.clone();
        let known = self.0.containerizer.known_pea(&entry.handle, record);
        let pea = match known {
            Ok(pea) => pea,
            Err(error) => {
                tracing::error!(handle = entry.handle, name, error = chain(&error), "cannot take a pea over");
                return;
            }
        };
        let taken_over = pea.take_over(container).await;
        _ = tell.send(());
        match taken_over {
            Ok(()) => pea.over().await,
            Err(error) => {
                tracing::warn!(handle = entry.handle, name, error = chain(&error), "a pea is gone");
            }
        }
        self.take_away_pea(entry, &name, Some(pea)).await;
    }

    /// What fails keeps its record, and is tried again when the container goes.
    async fn take_away_pea(&self, entry: &Entry, name: &str, pea: Option<Pea>) {
        if let Err(error) = self.try_to_take_away_pea(entry, name, pea).await {
            tracing::error!(handle = entry.handle, name, %error, "cannot take a pea away");
        }
    }

    /// Processes first: they hold the root. Without a `pea` it is found by its record, if it got that far.
    async fn try_to_take_away_pea(&self, entry: &Entry, name: &str, pea: Option<Pea>) -> Result<()> {
        let pea = match pea {
            Some(pea) => Some(pea),
            None => {
                let records = self.recorded_peas(entry).await?;
                let record = records.into_iter().find(|record| record.name == name);
                record.map(|record| self.0.containerizer.known_pea(&entry.handle, record)).transpose()?
            }
        };
        if let Some(pea) = pea {
            pea.destroy().await?;
            if pea.record().imaged {
                let privileged = entry.with_record(|record| record.spec.privileged);
                self.delete_by_plugin(name, privileged).await?;
            }
        }
        let (gardener, handle, name) = (self.clone(), entry.handle.clone(), name.to_owned());
        blocking(move || {
            gardener.0.store.unmount(&name)?;
            Ok::<_, MountError>(gardener.0.depot.drop_pea(&handle, &name)?)
        })
        .await
    }

    async fn recorded_peas(&self, entry: &Entry) -> Result<Vec<PeaRecord>> {
        let (gardener, handle) = (self.clone(), entry.handle.clone());
        blocking(move || gardener.0.depot.peas(&handle)).await
    }

    /// Of a container whose pid 1 has ended, and its peas' processes with it.
    pub(super) async fn end_peas(&self, entry: &Entry) -> Result<()> {
        let peas = &entry.peas;
        peas.ending.cancel();
        peas.tasks.close();
        if tokio::time::timeout(END_DEADLINE, peas.tasks.wait()).await.is_err() {
            return Err(Error::Other(format!("peas of '{}' did not end in {END_DEADLINE:?}", entry.handle)));
        }
        let mut outcome = Ok(());
        for record in self.recorded_peas(entry).await? {
            let taken_away = self.try_to_take_away_pea(entry, &record.name, None).await;
            outcome = outcome.and(taken_away);
        }
        outcome
    }
}

fn is_going(entry: &Entry) -> Error {
    Error::Other(format!("container '{}' is being destroyed", entry.handle))
}

fn refuse(
    entry: &Entry,
    spec: &ProcessSpec,
    error: Error,
    answer: oneshot::Sender<Result<Box<dyn Process>>>,
) {
    tracing::error!(handle = entry.handle, process = spec.id, %error, "cannot start a process with its own image");
    _ = answer.send(Err(error));
}

#[derive(Debug, thiserror::Error)]
enum MountError {
    #[error(transparent)]
    Depot(#[from] depot::Error),
    #[error(transparent)]
    Store(#[from] rootfs::store::Error),
}

/// The network files of a container; one without a network has none.
fn shown(directory: &Path) -> Vec<BindMount> {
    let files = NETWORK_FILES.iter().map(|name| (directory.join(name), format!("/etc/{name}")));
    files
        .filter(|(path, _)| path.exists())
        .map(|(path, dst_path)| BindMount {
            src_path: path.to_string_lossy().into_owned(),
            dst_path,
            mode: WRITABLE,
            origin: 0,
        })
        .collect()
}
