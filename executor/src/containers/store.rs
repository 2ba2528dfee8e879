//! The containers of this cell and what they leave of its resources, behind one lock.
//!
//! A change and its event happen under that lock, so that events come in the order things became true. Nothing
//! here waits: work is done by each container's owner task (see `life`).

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::life::Command;
use crate::events::Hub;
use crate::{
    AllocationFailure, AllocationRequest, CellResources, Container, Error, Event, Resource, RunResult, State,
};

/// Of a failure reason; applications write part of it.
pub const FAILURE_REASON_BYTES_MAX: usize = 10_000;

/// Garden has no container any more for one that was there.
pub(crate) const MISSING: &str = "missing garden container";

const NOTHING: CellResources = CellResources { memory_mb: 0, disk_mb: 0, containers: 0 };

pub(crate) struct Store {
    hub: Hub,
    inner: Mutex<Inner>,
}

struct Inner {
    slots: HashMap<String, Slot>,
    total: CellResources,
    taken: CellResources,
}

struct Slot {
    container: Container,
    /// Where the owner task takes commands; none while reserved, or when it expired before it had one.
    owner: Option<mpsc::Sender<Command>>,
    /// By a clock that is not turned; the container's own time is for those who look at it.
    reserved_at: Instant,
}

/// What a delete finds.
pub(crate) enum Owner {
    /// Never ran: it is gone already.
    Removed,
    Task(mpsc::Sender<Command>),
}

impl Store {
    pub fn new(total: CellResources, hub: Hub) -> Self {
        Store { hub, inner: Mutex::new(Inner { slots: HashMap::new(), total, taken: NOTHING }) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic while the lock was held is a bug that must not take the whole cell's bookkeeping with it.
        self.inner.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub fn allocate(&self, request: AllocationRequest, now_ns: i64) -> Result<(), AllocationFailure> {
        let guid = request.guid.clone();
        self.reserve(request, now_ns).map_err(|error| AllocationFailure { guid, reason: error.to_string() })
    }

    fn reserve(&self, request: AllocationRequest, now_ns: i64) -> Result<(), Error> {
        if request.guid.is_empty() {
            return Err(Error::GuidNotSpecified);
        }
        let mut inner = self.lock();
        if inner.slots.contains_key(&request.guid) {
            return Err(Error::GuidNotAvailable);
        }
        check(inner.remaining(), &request.resource)?;
        inner.taken.memory_mb += request.resource.memory_mb;
        inner.taken.disk_mb += request.resource.disk_mb;
        inner.taken.containers += 1;
        let container = Container::reserved(&request.guid, request.resource, request.tags, now_ns);
        inner.slots.insert(
            request.guid,
            Slot { container: container.clone(), owner: None, reserved_at: Instant::now() },
        );
        self.hub.emit(Event::Reserved(container));
        Ok(())
    }

    /// As an earlier life left it, with the owner that will do the rest if it was more than reserved. No event: who lists,
    /// after it has subscribed, finds it.
    pub fn restore(&self, container: Container, owner: Option<mpsc::Sender<Command>>) {
        let mut inner = self.lock();
        inner.taken.memory_mb += container.resource.memory_mb;
        inner.taken.disk_mb += container.resource.disk_mb;
        inner.taken.containers += 1;
        inner.slots.insert(container.guid.clone(), Slot { container, owner, reserved_at: Instant::now() });
    }

    /// Reserved to Initializing, with the owner that will do the rest.
    pub fn initialize(
        &self,
        request: crate::RunRequest,
        owner: mpsc::Sender<Command>,
    ) -> Result<Container, Error> {
        let mut inner = self.lock();
        let slot = inner.slots.get_mut(&request.guid).ok_or(Error::ContainerNotFound)?;
        if slot.container.state != State::Reserved {
            return Err(Error::InvalidTransition);
        }
        slot.container.state = State::Initializing;
        slot.container.run_info = Some(std::sync::Arc::new(request.run_info));
        slot.container.tags.extend(request.tags);
        slot.owner = Some(owner);
        Ok(slot.container.clone())
    }

    /// Changes a container without an event of its own.
    pub fn change(&self, guid: &str, change: impl FnOnce(&mut Container)) -> Option<Container> {
        let mut inner = self.lock();
        let slot = inner.slots.get_mut(guid)?;
        change(&mut slot.container);
        Some(slot.container.clone())
    }

    /// Created to Running.
    pub fn run(&self, guid: &str, routable: bool) {
        let mut inner = self.lock();
        let Some(slot) = inner.slots.get_mut(guid) else { return };
        if slot.container.state == State::Created {
            slot.container.state = State::Running;
            slot.container.routable = routable;
            self.hub.emit(Event::Running(slot.container.clone()));
        }
    }

    pub fn set_routable(&self, guid: &str, routable: bool) {
        let mut inner = self.lock();
        let Some(slot) = inner.slots.get_mut(guid) else { return };
        if slot.container.state == State::Running && slot.container.routable != routable {
            slot.container.routable = routable;
            self.hub.emit(Event::RoutableChanged(slot.container.clone()));
        }
    }

    /// Any state but Completed to Completed; what completed stays as it is.
    pub fn complete(&self, guid: &str, result: RunResult) {
        let mut inner = self.lock();
        if let Some(slot) = inner.slots.get_mut(guid) {
            complete(&mut slot.container, result, &self.hub);
        }
    }

    /// Reservations that nobody ran in time are completed, for their owner to learn of it and delete them.
    pub fn expire(&self, lifespan: Duration) -> Vec<String> {
        let mut expired = Vec::new();
        for slot in self.lock().slots.values_mut() {
            let container = &mut slot.container;
            if container.state == State::Reserved && slot.reserved_at.elapsed() >= lifespan {
                complete(container, failure("expired container", false), &self.hub);
                expired.push(container.guid.clone());
            }
        }
        expired
    }

    pub fn owner(&self, guid: &str) -> Result<Option<mpsc::Sender<Command>>, Error> {
        let inner = self.lock();
        Ok(inner.slots.get(guid).ok_or(Error::ContainerNotFound)?.owner.clone())
    }

    /// Stops what has no owner to be stopped by; false if it has one.
    pub fn stop_unowned(&self, guid: &str) -> bool {
        let mut inner = self.lock();
        let Some(slot) = inner.slots.get_mut(guid).filter(|slot| slot.owner.is_none()) else { return false };
        complete(&mut slot.container, stopped_before_running(), &self.hub);
        true
    }

    /// Whom to ask for the end of a container; one that has no owner ends here.
    pub fn delete(&self, guid: &str) -> Result<Owner, Error> {
        let mut inner = self.lock();
        let slot = inner.slots.get_mut(guid).ok_or(Error::ContainerNotFound)?;
        if let Some(owner) = &slot.owner {
            return Ok(Owner::Task(owner.clone()));
        }
        complete(&mut slot.container, stopped_before_running(), &self.hub);
        inner.remove(guid);
        Ok(Owner::Removed)
    }

    /// Forgets a container and gives back what it took; safe to call twice.
    pub fn remove(&self, guid: &str) {
        self.lock().remove(guid);
    }

    pub fn contains(&self, guid: &str) -> bool {
        self.lock().slots.contains_key(guid)
    }

    pub fn get(&self, guid: &str) -> Option<Container> {
        self.lock().slots.get(guid).map(|slot| slot.container.clone())
    }

    pub fn list(&self) -> Vec<Container> {
        self.lock().slots.values().map(|slot| slot.container.clone()).collect()
    }

    pub fn guids(&self) -> Vec<String> {
        self.lock().slots.keys().cloned().collect()
    }

    pub fn owners(&self) -> Vec<mpsc::Sender<Command>> {
        self.lock().slots.values().filter_map(|slot| slot.owner.clone()).collect()
    }

    pub fn remaining(&self) -> CellResources {
        self.lock().remaining()
    }

    pub fn total(&self) -> CellResources {
        self.lock().total
    }

    /// What there is of the disk may change while containers have their parts of it.
    pub fn set_disk_mb(&self, disk_mb: u64) {
        self.lock().total.disk_mb = disk_mb;
    }
}

impl Inner {
    fn remove(&mut self, guid: &str) {
        if let Some(slot) = self.slots.remove(guid) {
            self.taken.memory_mb -= slot.container.resource.memory_mb;
            self.taken.disk_mb -= slot.container.resource.disk_mb;
            self.taken.containers -= 1;
        }
    }

    /// Nothing, where more was given than there is by now.
    fn remaining(&self) -> CellResources {
        CellResources {
            memory_mb: self.total.memory_mb.saturating_sub(self.taken.memory_mb),
            disk_mb: self.total.disk_mb.saturating_sub(self.taken.disk_mb),
            containers: self.total.containers.saturating_sub(self.taken.containers),
        }
    }
}

fn complete(container: &mut Container, mut result: RunResult, hub: &Hub) {
    if container.is_completed() {
        return;
    }
    result.shorten();
    container.state = State::Completed(result);
    hub.emit(Event::Completed(container.clone()));
}

impl RunResult {
    /// As much of it as is kept.
    pub(crate) fn shorten(&mut self) {
        truncate(&mut self.failure_reason, FAILURE_REASON_BYTES_MAX);
    }
}

pub(crate) fn failure(reason: &str, retryable: bool) -> RunResult {
    RunResult { failed: true, failure_reason: reason.to_string(), retryable, stopped: false }
}

pub(crate) fn stopped_before_running() -> RunResult {
    RunResult { stopped: true, ..failure("stopped-before-running", false) }
}

fn check(remaining: CellResources, wanted: &Resource) -> Result<(), Error> {
    let short = [
        ("containers", remaining.containers < 1),
        ("disk", remaining.disk_mb < wanted.disk_mb),
        ("memory", remaining.memory_mb < wanted.memory_mb),
    ];
    let names: Vec<_> = short.iter().filter(|(_, is_short)| *is_short).map(|(name, _)| *name).collect();
    match names.is_empty() {
        true => Ok(()),
        false => Err(Error::InsufficientResources(names.join(", "))),
    }
}

/// Cuts at a character's boundary.
pub(crate) fn truncate(text: &mut String, bytes_max: usize) {
    if text.len() > bytes_max {
        let mut end = bytes_max;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
    }
}
