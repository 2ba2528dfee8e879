//! One container as the gardener keeps it: where it stands in its life, what is recorded of it, and who uses it now.
//!
//! ```text
//! Creating ──▶ Created ──▶ Destroying ──▶ (gone)
//!     └──────────▲────────────▲   │  ▲
//!                │                ▼  │ again
//!                └────────────  Broken   ◀── found in the depot, until its pid 1 has answered
//! ```

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use garden_client::{Error, Result};
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::peas::Peas;
use crate::containerizer::Container;
use crate::depot::{self, Depot, Record};
use crate::networker::Connection;

/// A change takes a millisecond.
const STUCK: Duration = Duration::from_secs(1);
const LOOK_AGAIN: Duration = Duration::from_millis(1);

pub enum Stage {
    Creating,
    Created(Arc<Container>),
    Destroying,
    /// It cannot be used, only destroyed: that has failed before, or its pid 1 has not answered this garden yet. There is no
    /// container behind one whose creation failed, or that an earlier garden left half made.
    Broken(Option<Arc<Container>>),
}

pub struct Entry {
    pub handle: String,
    stage: Mutex<Stage>,
    record: Mutex<Recorded>,
    /// Held while the record, or what it tells of, changes: as long as a disk takes. Who only looks does not wait for it.
    changing: Mutex<()>,
    usage: Mutex<Usage>,
    pub(super) peas: Peas,
    /// What is being done to it on a thread of its own, however long that takes.
    steps: TaskTracker,
}

struct Recorded {
    record: Record,
    /// It goes from the disk, or has gone: nobody may write it again.
    forgotten: bool,
}

/// A network that stays as it is.
pub struct Held<'a> {
    _changing: Option<MutexGuard<'a, ()>>,
    pub handle: &'a str,
    pub connection: Connection,
}

/// The grace time runs while nobody uses the container.
struct Usage {
    users: usize,
    idle_since: Instant,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Entry {
    pub fn new(record: Record, stage: Stage) -> Self {
        let usage = Usage { users: 0, idle_since: Instant::now() };
        let handle = record.handle.clone();
        let steps = TaskTracker::new();
        // So that it can be waited for whenever it is empty.
        steps.close();
        Self {
            handle,
            stage: Mutex::new(stage),
            record: Mutex::new(Recorded { record, forgotten: false }),
            changing: Mutex::default(),
            usage: Mutex::new(usage),
            peas: Peas::default(),
            steps,
        }
    }

    /// To be held by what is done to the container until it is done, however long nobody waits for it any more.
    pub fn step(&self) -> TaskTrackerToken {
        self.steps.token()
    }

    /// Whether a step that was given up is still under way.
    pub fn is_stuck(&self) -> bool {
        !self.steps.is_empty()
    }

    /// Until no step is under way.
    pub async fn unstuck(&self) {
        self.steps.wait().await;
    }

    pub fn record(&self) -> Record {
        lock(&self.record).record.clone()
    }

    /// Looks at the record without a copy.
    pub fn with_record<T>(&self, look: impl FnOnce(&Record) -> T) -> T {
        look(&lock(&self.record).record)
    }

    /// Changes the record, on disk first: a record that cannot be saved has not changed. One change after the other, so that
    /// the last one is the one on disk. Blocks.
    pub fn change(
        &self,
        depot: &Depot,
        change: impl FnOnce(&mut Record),
    ) -> std::result::Result<(), depot::Error> {
        let change = |record: &mut Record| {
            change(record);
            Ok::<_, depot::Error>(())
        };
        self.try_change(depot, change, |_, ()| {})
    }

    /// The same of what may fail, and what else is to be undone, with the record as it was, if that cannot be saved.
    pub fn try_change<T, E: From<depot::Error>>(
        &self,
        depot: &Depot,
        change: impl FnOnce(&mut Record) -> std::result::Result<T, E>,
        undo: impl FnOnce(&Record, T),
    ) -> std::result::Result<T, E> {
        let _changing = lock(&self.changing);
        if lock(&self.record).forgotten {
            return Err(depot.gone(&self.handle).into());
        }
        let was = self.record();
        let mut changed = was.clone();
        let outcome = change(&mut changed)?;
        if let Err(error) = depot.save(&changed) {
            undo(&was, outcome);
            return Err(error.into());
        }
        lock(&self.record).record = changed;
        Ok(outcome)
    }

    /// Drops the record, which nobody can write again then: who still holds a container that is gone would leave a
    /// later garden a record of nothing, maybe with ids that are another's. Blocks.
    pub fn forget(&self, depot: &Depot) -> std::result::Result<(), depot::Error> {
        let _changing = lock(&self.changing);
        depot.drop_record(&self.handle)?;
        lock(&self.record).forgotten = true;
        Ok(())
    }

    /// Its network, to be taken away, once. Not from the disk, where the whole record mostly goes next. Blocks: nobody
    /// changes it any more then.
    pub fn take_connection(&self) -> Option<Connection> {
        let _changing = lock(&self.changing);
        lock(&self.record).record.connection.take()
    }

    /// Its network, and nobody changes it, or takes it away, while this is held. `None`: it has none, or not yet. Blocks, but
    /// not for one that is stuck.
    pub fn hold_connection(&self) -> Option<Held<'_>> {
        let started = Instant::now();
        let changing = loop {
            match self.changing.try_lock() {
                Ok(changing) => break Some(changing),
                Err(TryLockError::Poisoned(changing)) => break Some(changing.into_inner()),
                Err(TryLockError::WouldBlock) if started.elapsed() > STUCK => break None,
                Err(TryLockError::WouldBlock) => std::thread::sleep(LOOK_AGAIN),
            }
        };
        let is_made = matches!(&*lock(&self.stage), Stage::Created(_) | Stage::Broken(_));
        let connection = self.with_record(|record| record.connection.clone()).filter(|_| is_made)?;
        Some(Held { _changing: changing, handle: &self.handle, connection })
    }

    pub fn created(&self, container: Arc<Container>) {
        *lock(&self.stage) = Stage::Created(container);
    }

    pub fn broken(&self, container: Option<Arc<Container>>) {
        *lock(&self.stage) = Stage::Broken(container);
    }

    pub fn is_broken(&self) -> bool {
        matches!(&*lock(&self.stage), Stage::Broken(_))
    }

    /// The pid 1 of a container found in the depot has answered, in time or late. False: it is going already.
    pub fn taken_over(&self, container: Arc<Container>) -> bool {
        let mut stage = lock(&self.stage);
        let waits = matches!(&*stage, Stage::Broken(Some(_)));
        if waits {
            *stage = Stage::Created(container);
        }
        waits
    }

    /// From here on only the caller deals with it.
    pub fn begin_destruction(&self) -> Result<Option<Arc<Container>>> {
        let mut stage = lock(&self.stage);
        match std::mem::replace(&mut *stage, Stage::Destroying) {
            Stage::Creating => {
                *stage = Stage::Creating;
                Err(Error::Other(format!("container '{}' is being created", self.handle)))
            }
            Stage::Created(container) => Ok(Some(container)),
            Stage::Destroying => Err(Error::Other("container already being destroyed".into())),
            Stage::Broken(container) => Ok(container),
        }
    }

    /// The same for who failed to create it. Refused when somebody else destroys it already.
    pub fn begin_undo(&self) -> Result<Option<Arc<Container>>> {
        let mut stage = lock(&self.stage);
        if matches!(&*stage, Stage::Creating) {
            *stage = Stage::Broken(None);
        }
        drop(stage);
        self.begin_destruction()
    }

    /// The same if its grace time is over; without one it never is. Who uses it says so before asking for the container,
    /// so that it is either seen here or refused there.
    pub fn begin_reaping(&self, now: Instant) -> Option<Arc<Container>> {
        let grace_time = Duration::from_nanos(self.with_record(|record| record.grace_time_ns));
        let usage = lock(&self.usage);
        if usage.users > 0 || grace_time.is_zero() || now.duration_since(usage.idle_since) < grace_time {
            return None;
        }
        let mut stage = lock(&self.stage);
        let Stage::Created(container) = &*stage else { return None };
        let container = container.clone();
        *stage = Stage::Destroying;
        Some(container)
    }

    /// The container, to do something with it.
    pub fn container(&self) -> Result<Arc<Container>> {
        match &*lock(&self.stage) {
            Stage::Created(container) => Ok(container.clone()),
            Stage::Creating => Err(Error::Other(format!("container '{}' is being created", self.handle))),
            Stage::Destroying => Err(Error::Other(format!("container '{}' is being destroyed", self.handle))),
            Stage::Broken(_) => {
                Err(Error::Other(format!("container '{}' is broken and can only be destroyed", self.handle)))
            }
        }
    }

    /// The container if there is one, to be asked about.
    pub fn known_container(&self) -> Option<Arc<Container>> {
        match &*lock(&self.stage) {
            Stage::Created(container) => Some(container.clone()),
            Stage::Broken(container) => container.clone(),
            Stage::Creating | Stage::Destroying => None,
        }
    }

    pub fn in_use(self: &Arc<Self>) -> InUse {
        lock(&self.usage).users += 1;
        InUse(self.clone())
    }

    /// The grace time starts again.
    pub fn touch(&self) {
        lock(&self.usage).idle_since = Instant::now();
    }
}

/// Somebody does something with the container; the grace time starts again when this is dropped.
pub struct InUse(Arc<Entry>);

impl InUse {
    /// The same container, whatever has its handle by now.
    pub fn entry(&self) -> Arc<Entry> {
        self.0.clone()
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        let mut usage = lock(&self.0.usage);
        usage.users = usage.users.saturating_sub(1);
        usage.idle_since = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(stage: Stage) -> Entry {
        let spec = garden_client::ContainerSpec { handle: "one".into(), ..Default::default() };
        Entry::new(Record::new(spec, 7), stage)
    }

    #[test]
    fn a_forgotten_record_is_never_written_again() {
        let root = tempfile::tempdir().unwrap();
        let depot = Depot::open(root.path().to_owned()).unwrap();
        let entry = entry(Stage::Destroying);
        entry.change(&depot, |record| record.stopped = true).unwrap();
        entry.forget(&depot).unwrap();
        assert!(entry.change(&depot, |record| record.stopped = false).is_err());
        assert_eq!((depot.count().unwrap(), entry.record().stopped), (0, true));
        entry.forget(&depot).unwrap();
    }

    #[test]
    fn only_one_destroys() {
        for stage in [Stage::Creating, Stage::Broken(None)] {
            let entry = entry(stage);
            assert!(entry.begin_undo().is_ok());
            assert!(entry.begin_undo().is_err() && entry.begin_destruction().is_err());
            assert!(!entry.is_broken(), "who destroys it already is not disturbed");
        }
        assert!(entry(Stage::Creating).begin_destruction().is_err(), "its creator destroys it");
    }
}
