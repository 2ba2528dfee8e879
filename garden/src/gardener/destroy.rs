//! How a container goes: every step is taken whatever became of the others, the record is dropped last.

use std::sync::Arc;

use garden_client::Error;

use super::entry::{Entry, Stage};
use super::pace::Pace;
use super::{Gardener, StartError, blocking};
use crate::containerizer::{self, Container};
use crate::depot::{self, Record};
use crate::networker::Connection;

impl Gardener {
    /// Of an entry whose destruction has begun. Afterwards it is gone, or broken and may be tried again.
    pub(crate) async fn take_away(
        &self,
        entry: Arc<Entry>,
        container: Option<Arc<Container>>,
    ) -> garden_client::Result<()> {
        let mut pace = Pace::start();
        // Processes first: they hold the root and the network.
        let ended = self.end_processes(&entry, container.as_deref()).await;
        let peas_ended = self.end_peas(&entry).await;
        pace.done("processes");
        let disconnected = self.disconnect(&entry).await;
        let unmounted = self.unmount(&entry).await;
        pace.done("root");
        let mut failures: Vec<Error> =
            [ended, peas_ended, disconnected, unmounted].into_iter().filter_map(Result::err).collect();
        if failures.is_empty() {
            failures.extend(self.forget(&entry).await.err());
        }
        if failures.is_empty() {
            pace.done("record");
            tracing::info!(handle = entry.handle, milliseconds = pace.total_ms(), steps = %pace, "destroyed");
            return Ok(());
        }
        entry.broken(container);
        let failures: Vec<String> = failures.iter().map(Error::to_string).collect();
        let error =
            Error::Other(format!("cannot destroy container '{}': {}", entry.handle, failures.join("; ")));
        tracing::error!(handle = entry.handle, %error, "destruction failed");
        Err(error)
    }

    async fn end_processes(&self, entry: &Entry, container: Option<&Container>) -> garden_client::Result<()> {
        if let Some(container) = container {
            return Ok(container.destroy().await?);
        }
        match entry.with_record(|record| record.container.clone()) {
            Some(record) => blocking(move || containerizer::clean_up(&record)).await,
            // It never had a pid 1.
            None => Ok(()),
        }
    }

    async fn forget(&self, entry: &Entry) -> garden_client::Result<()> {
        let (gardener, handle) = (self.clone(), entry.handle.clone());
        blocking(move || gardener.0.depot.drop_record(&handle)).await?;
        self.entries().remove(&entry.handle);
        Ok(())
    }
}

/// What an earlier garden left, at start.
impl Gardener {
    /// A directory without a readable record tells nothing: it goes, and what belonged to it is swept.
    pub(crate) async fn leftover_records(&self) -> Result<Vec<Record>, StartError> {
        let gardener = self.clone();
        let read = move || -> Result<Vec<Record>, depot::Error> {
            let mut records = Vec::new();
            for found in gardener.0.depot.found()? {
                match found.record {
                    Some(record) => records.push(record),
                    None => gardener.0.depot.drop_directory(&found)?,
                }
            }
            Ok(records)
        };
        let read = tokio::task::spawn_blocking(read).await.map_err(|_| StartError::Interrupted)?;
        Ok(read?)
    }

    pub(crate) fn enter_leftover(&self, record: Record) {
        let entry = Entry::new(record, Stage::Broken(None));
        self.entries().insert(entry.handle.clone(), Arc::new(entry));
    }

    /// Roots and links that belong to no container that is known.
    pub(crate) async fn sweep(&self) -> Result<(), StartError> {
        let gardener = self.clone();
        let sweep = move || -> Result<(), StartError> {
            let kept: Vec<Record> = gardener.entries().values().map(|entry| entry.record()).collect();
            let live = kept.iter().map(|record| record.handle.clone()).collect();
            for handle in gardener.0.store.recover(&live)? {
                tracing::info!(handle, "removed a root without a container");
            }
            let connections: Vec<&Connection> =
                kept.iter().filter_map(|record| record.connection.as_ref()).collect();
            Ok(gardener.0.networker.delete_stray_links(&connections)?)
        };
        tokio::task::spawn_blocking(sweep).await.map_err(|_| StartError::Interrupted)?
    }
}
