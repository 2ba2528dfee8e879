//! One container's story: written by its owner and by its steps, each note before what it announces.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use super::{Error, Mark, RECORD, REQUEST, Record, Request, make, remove, write};
use crate::steps::{StepError, report};

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct Journal {
    dir: PathBuf,
    record: Arc<Mutex<Record>>,
    /// What an earlier life had written of the steps.
    earlier: Arc<BTreeMap<String, Mark>>,
}

impl Journal {
    pub(super) fn new(dir: PathBuf, record: Record) -> Journal {
        let earlier = Arc::new(record.steps.clone());
        Journal { dir, record: Arc::new(Mutex::new(record)), earlier }
    }

    /// The first note: from now on a later life knows of the container.
    pub async fn begin(&self, request: Request) -> Result<(), Error> {
        let dir = self.dir.clone();
        self.with(move |record| {
            make(&dir)?;
            write(&dir, REQUEST, &request)?;
            write(&dir, RECORD, record)
        })
        .await
    }

    /// The container was told to do something else from now on.
    pub async fn request(&self, request: Request) -> Result<(), Error> {
        let dir = self.dir.clone();
        self.with(move |_| write(&dir, REQUEST, &request)).await
    }

    pub async fn note(&self, change: impl FnOnce(&mut Record) + Send + 'static) -> Result<(), Error> {
        let dir = self.dir.clone();
        self.with(move |record| {
            change(record);
            write(&dir, RECORD, record)
        })
        .await
    }

    /// The last: nothing is left of the container. Safe to call twice.
    pub async fn forget(&self) -> Result<(), Error> {
        let dir = self.dir.clone();
        self.with(move |_| remove(&dir)).await
    }

    /// One after the other, also when nobody waits for it any more. It takes nobody who waits to be polled: a container's
    /// owner notes what it was told while its work waits here, too.
    async fn with(
        &self,
        act: impl FnOnce(&mut Record) -> Result<(), Error> + Send + 'static,
    ) -> Result<(), Error> {
        let record = self.record.clone();
        let acting = tokio::task::spawn_blocking(move || {
            act(&mut record.lock().unwrap_or_else(PoisonError::into_inner))
        });
        let interrupted =
            |error| Error { act: "write", path: self.dir.clone(), source: std::io::Error::other(error) };
        acting.await.map_err(interrupted)?
    }
}

/// Where a step is in its container's recipe, and what is written there. Steps that may be taken again at any time, those
/// of checks, have no place.
#[derive(Clone, Default)]
pub(crate) struct Place {
    journal: Option<Journal>,
    path: String,
}

impl Place {
    /// Of the whole recipe.
    pub fn of(journal: &Journal) -> Place {
        Place { journal: Some(journal.clone()), path: "0".to_string() }
    }

    pub fn child(&self, position: usize) -> Place {
        let Some(journal) = &self.journal else { return Place::default() };
        Place { journal: Some(journal.clone()), path: format!("{}.{position}", self.path) }
    }

    pub fn is_recorded(&self) -> bool {
        self.journal.is_some()
    }

    /// What an earlier life had written here.
    pub fn earlier(&self) -> Option<&Mark> {
        self.journal.as_ref()?.earlier.get(&self.path)
    }

    /// What is to follow must not happen without this.
    pub async fn note(&self, mark: Mark) -> Result<(), StepError> {
        let Some(journal) = &self.journal else { return Ok(()) };
        let path = self.path.clone();
        let noted = journal.note(move |record| _ = record.steps.insert(path, mark)).await;
        noted.map_err(|error| StepError::Plain(report(&error)))
    }

    /// It has happened already; without the note a later life may have to find that out anew.
    pub async fn note_after(&self, mark: Mark) {
        if let Err(error) = self.note(mark).await {
            tracing::error!(place = self.path, %error, "executor.depot.not-noted");
        }
    }
}
