//! How a container goes: every step is taken whatever became of the others, the record is dropped last. But its network
//! is nobody else's as long as its processes may live.

use std::sync::Arc;

use garden_client::Error;

use super::entry::Entry;
use super::pace::Pace;
use super::{Gardener, blocking};
use crate::containerizer::{self, Container};
use crate::milestone;

impl Gardener {
    /// The same as [`Gardener::take_away`], to its end also when nobody waits for it any more.
    pub(super) async fn destroy_begun(
        &self,
        entry: Arc<Entry>,
        container: Option<Arc<Container>>,
    ) -> garden_client::Result<()> {
        let gardener = self.clone();
        let destroying = tokio::spawn(async move { gardener.take_away(entry, container).await });
        destroying.await.map_err(|error| Error::Other(format!("interrupted: {error}")))?
    }

    /// Of an entry whose destruction has begun. Afterwards it is gone, or broken and may be tried again.
    pub(crate) async fn take_away(
        &self,
        entry: Arc<Entry>,
        container: Option<Arc<Container>>,
    ) -> garden_client::Result<()> {
        let mut pace = Pace::start();
        // A garden that dies from here on is followed by one that goes on with this.
        let marked = self.mark_going(&entry).await;
        milestone::passed();
        // Processes first: they hold the root and the network.
        let ended = self.end_processes(&entry, container.as_deref()).await;
        milestone::passed();
        let peas_ended = self.end_peas(&entry).await;
        pace.done("processes");
        let disconnected = match ended.is_ok() && peas_ended.is_ok() {
            true => self.disconnect(&entry).await,
            // Tried again with them.
            false => Ok(()),
        };
        milestone::passed();
        let unmounted = self.unmount(&entry).await;
        pace.done("root");
        milestone::passed();
        let mut failures: Vec<Error> =
            [ended, peas_ended, disconnected, unmounted].into_iter().filter_map(Result::err).collect();
        if failures.is_empty() {
            // With all of it gone the mark is not missed: a disk that is too full for it must not keep what fills it.
            failures.extend(self.forget(&entry).await.err());
        } else {
            failures.extend(self.note_network(&entry).await.err());
            failures.extend(marked.err());
        }
        if failures.is_empty() {
            pace.done("record");
            tracing::info!(handle = entry.handle, milliseconds = pace.total_ms(), steps = %pace, "destroyed");
            return Ok(());
        }
        self.set_aside(&entry, container);
        let failures: Vec<String> = failures.iter().map(Error::to_string).collect();
        let error =
            Error::Other(format!("cannot destroy container '{}': {}", entry.handle, failures.join("; ")));
        tracing::error!(handle = entry.handle, %error, "destruction failed");
        Err(error)
    }

    /// To be destroyed again, once nothing of this is under way any more.
    fn set_aside(&self, entry: &Arc<Entry>, container: Option<Arc<Container>>) {
        if !entry.is_stuck() {
            return entry.broken(container);
        }
        let entry = entry.clone();
        tokio::spawn(async move {
            entry.unstuck().await;
            entry.broken(container);
        });
    }

    async fn mark_going(&self, entry: &Entry) -> garden_client::Result<()> {
        let (gardener, handle) = (self.clone(), entry.handle.clone());
        let mark = blocking(move || gardener.0.depot.mark_going(&handle));
        self.step(entry, "note the end", mark).await
    }

    async fn end_processes(&self, entry: &Entry, container: Option<&Container>) -> garden_client::Result<()> {
        if let Some(container) = container {
            return Ok(container.destroy().await?);
        }
        match entry.with_record(|record| record.container.clone()) {
            Some(record) => {
                let clean_up = blocking(move || containerizer::clean_up(&record));
                self.step(entry, "end the processes", clean_up).await
            }
            // It never had a pid 1, or nobody can tell which.
            None => {
                let (gardener, handle) = (self.clone(), entry.handle.clone());
                let end = blocking(move || gardener.0.containerizer.end_groups(&handle));
                self.step(entry, "remove the control groups", end).await
            }
        }
    }

    /// What is left stays known, maybe to a later garden: its network may be another's by then.
    async fn note_network(&self, entry: &Arc<Entry>) -> garden_client::Result<()> {
        if entry.with_record(|record| record.connection.is_some()) {
            return Ok(());
        }
        self.change(entry.clone(), |_| ()).await
    }

    async fn forget(&self, entry: &Arc<Entry>) -> garden_client::Result<()> {
        let (gardener, forgotten) = (self.clone(), entry.clone());
        let forget = blocking(move || forgotten.forget(&gardener.0.depot));
        self.step(entry, "drop the record", forget).await?;
        milestone::passed();
        let mut entries = self.entries();
        // Its handle may be another's by now.
        if entries.get(&entry.handle).is_some_and(|known| Arc::ptr_eq(known, entry)) {
            entries.remove(&entry.handle);
        }
        Ok(())
    }
}
