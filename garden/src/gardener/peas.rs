//! Processes with an image of their own: the image is pulled, mounted as a root of its own, and let go again when the
//! process has ended.
//!
//! One task for each sees it through from its start to the last thing it had, whatever becomes of the client that asked
//! for it. The destruction of a container stops those that still wait for their image, and waits for all.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use garden_client::{BindMount, Error, Process, ProcessIo, ProcessSpec, Result};
use rootfs::store::{BaseIds, DiskLimit, DiskScope, Image};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::create::WRITABLE;
use super::entry::Entry;
use super::{Gardener, blocking};
use crate::containerizer::{Container, Pea, PeaBlank, PeaSpec};

/// For all peas of a container to be gone after its pid 1; each step of theirs has a deadline of its own.
const END_DEADLINE: Duration = Duration::from_secs(60);

/// What says who a container is in its network: its peas are shown the same files.
const NETWORK_FILES: [&str; 2] = ["hosts", "resolv.conf"];

/// Those of one container.
#[derive(Default)]
pub(super) struct Peas {
    /// Cancelled when the container goes.
    ending: CancellationToken,
    tasks: TaskTracker,
    /// What could not be taken away, to be tried again when the container goes.
    broken: Mutex<Vec<Remains>>,
}

impl Peas {
    fn broken(&self) -> MutexGuard<'_, Vec<Remains>> {
        self.broken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What there may be left of a pea.
struct Remains {
    /// Of its root.
    name: String,
    pea: Option<Pea>,
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
        entry: &Entry,
        container: &Container,
        spec: ProcessSpec,
        io: ProcessIo,
        answer: oneshot::Sender<Result<Box<dyn Process>>>,
    ) {
        let name = format!("pea-{}", uuid::Uuid::new_v4());
        match self.start_pea(&name, entry, container, &spec, io).await {
            Ok((pea, process)) => {
                // A client that is gone loses sight of it, no more.
                _ = answer.send(Ok(process));
                pea.over().await;
                self.take_away_or_keep(entry, Remains { name, pea: Some(pea) }).await;
            }
            Err(error) => {
                tracing::error!(handle = entry.handle, process = spec.id, %error, "cannot start a process with its own image");
                self.take_away_or_keep(entry, Remains { name, pea: None }).await;
                _ = answer.send(Err(error));
            }
        }
    }

    async fn start_pea(
        &self,
        name: &str,
        entry: &Entry,
        container: &Container,
        spec: &ProcessSpec,
        io: ProcessIo,
    ) -> Started {
        let prepared = async {
            let blank = async { Ok(self.0.containerizer.pea_blank(container, &spec.id).await?) };
            tokio::try_join!(blank, self.pull_stored(&spec.image))
        };
        // Only this may take long. What comes after it ends soon once the container has ended, and is not to be left
        // half done.
        let (blank, image) = tokio::select! {
            prepared = prepared => prepared?,
            () = entry.peas.ending.cancelled() => {
                return Err(Error::Other(format!("container '{}' is being destroyed", entry.handle)));
            }
        };
        let base = container.root_id().map_or(BaseIds::default(), |id| BaseIds { uid: id, gid: id });
        let (blank, root) = self.mount_pea(name, entry, blank, &image, base).await?;
        let directory = self.0.depot.directory(&entry.handle);
        let socket = directory.join(name);
        let pea = PeaSpec {
            name: name.into(),
            env: image.config.env.clone(),
            bind_mounts: network_files(&directory),
            socket: Some(socket),
        };
        Ok(blank.run(pea, spec, root, io).await?)
    }

    /// What it writes is held to what its container may write, but counted by itself.
    async fn mount_pea(
        &self,
        name: &str,
        entry: &Entry,
        blank: PeaBlank,
        image: &Image,
        base: BaseIds,
    ) -> Result<(PeaBlank, std::os::fd::OwnedFd)> {
        let disk = entry.with_record(|record| record.spec.limits.disk);
        let limit = DiskLimit { bytes: disk.byte_hard, inodes: disk.inode_hard, scope: DiskScope::Exclusive };
        let (gardener, name, image) = (self.clone(), name.to_owned(), image.clone());
        blocking(move || {
            let root = gardener.0.store.mount(&name, &image, blank.user_namespace(), base, limit)?;
            Ok::<_, rootfs::store::Error>((blank, root.fd))
        })
        .await
    }

    async fn take_away_or_keep(&self, entry: &Entry, remains: Remains) {
        if let Err(error) = self.take_away_pea(&remains).await {
            tracing::error!(handle = entry.handle, name = remains.name, %error, "cannot take away what is left of a pea");
            entry.peas.broken().push(remains);
        }
    }

    /// Processes first: they hold the root.
    async fn take_away_pea(&self, remains: &Remains) -> Result<()> {
        if let Some(pea) = &remains.pea {
            pea.destroy().await?;
        }
        let (gardener, name) = (self.clone(), remains.name.clone());
        blocking(move || gardener.0.store.unmount(&name)).await
    }

    /// Of a container whose pid 1 has ended, and its peas' processes with it.
    pub(super) async fn end_peas(&self, entry: &Entry) -> Result<()> {
        let peas = &entry.peas;
        peas.ending.cancel();
        peas.tasks.close();
        if tokio::time::timeout(END_DEADLINE, peas.tasks.wait()).await.is_err() {
            return Err(Error::Other(format!("peas of '{}' did not end in {END_DEADLINE:?}", entry.handle)));
        }
        let broken = std::mem::take(&mut *peas.broken());
        let mut outcome = Ok(());
        for remains in broken {
            if let Err(error) = self.take_away_pea(&remains).await {
                peas.broken().push(remains);
                outcome = Err(error);
            }
        }
        outcome
    }
}

/// A container without a network has none.
fn network_files(directory: &Path) -> Vec<BindMount> {
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
