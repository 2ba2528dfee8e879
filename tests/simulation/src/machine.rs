//! A cell's machine: containers that take their time, crash and end, and do nothing else. They outlive the rep, not the
//! machine.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use executor::{
    AllocationFailure, AllocationRequest, CellResources, Container, Error, Event, Events, Hub, Reader,
    RunRequest, RunResult, State, UpdateRequest,
};
use rep::Containers;
use rep::tags::{self, Lifecycle};
use tokio_util::sync::CancellationToken;

use crate::chance::Chance;
use crate::ledger::Ledger;
use crate::sabotage::Sabotage;

/// What a cell has.
pub const TOTAL: CellResources = CellResources { memory_mb: 4096, disk_mb: 16_384, containers: 60 };
const CRASH_LOOK: Duration = Duration::from_secs(5);

/// Clones are the same machine, in the hands of one rep.
#[derive(Clone)]
pub struct Machine(Arc<Inner>, CancellationToken);

struct Inner {
    cell_id: String,
    chance: Chance,
    ledger: Ledger,
    sabotage: Sabotage,
    hub: Hub,
    containers: Mutex<BTreeMap<String, Container>>,
    /// Of an instance, at each look.
    crashes: Mutex<f64>,
    power: CancellationToken,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Machine {
    pub fn new(cell_id: &str, chance: Chance, ledger: Ledger, sabotage: Sabotage) -> Machine {
        let inner = Inner {
            cell_id: cell_id.into(),
            chance,
            ledger,
            sabotage,
            hub: Hub::default(),
            containers: Mutex::default(),
            crashes: Mutex::new(0.0),
            power: CancellationToken::new(),
        };
        Machine(Arc::new(inner), CancellationToken::new())
    }

    /// A rep whose process has ended does nothing more.
    pub fn for_rep(&self, life: CancellationToken) -> Machine {
        Machine(self.0.clone(), life)
    }

    fn heed(&self) -> Result<(), Error> {
        if self.1.is_cancelled() || self.0.power.is_cancelled() { Err(Error::ShuttingDown) } else { Ok(()) }
    }

    pub fn set_crashes(&self, probability: f64) {
        *lock(&self.0.crashes) = probability;
    }

    /// Everything on it is gone.
    pub fn power_off(&self) {
        self.0.power.cancel();
        let gone = std::mem::take(&mut *lock(&self.0.containers));
        gone.values().for_each(|container| self.ended(container));
    }

    /// Moves a container on, if it is still `from`.
    fn enter(&self, guid: &str, from: &State, to: State) -> Option<Container> {
        let mut containers = lock(&self.0.containers);
        let container = containers.get_mut(guid).filter(|container| container.state == *from)?;
        container.state = to;
        Some(container.clone())
    }

    fn complete(&self, guid: &str, result: RunResult) {
        let completed = {
            let mut containers = lock(&self.0.containers);
            let Some(container) = containers.get_mut(guid).filter(|container| !container.is_completed())
            else {
                return;
            };
            let before = container.clone();
            container.state = State::Completed(result);
            (before, container.clone())
        };
        self.ended(&completed.0);
        self.0.hub.emit(Event::Completed(completed.1));
    }

    fn ended(&self, container: &Container) {
        if container.state != State::Running {
            return;
        }
        if let Some((key, instance_guid)) = self.instance(container) {
            self.0.ledger.instance_ends(&key, &self.0.cell_id, &instance_guid);
        }
    }

    fn instance(&self, container: &Container) -> Option<((String, u32), String)> {
        match tags::read(&container.tags, &self.0.cell_id) {
            Ok(Lifecycle::Lrp(lrp)) => {
                Some(((lrp.key.process_guid, lrp.key.index), lrp.instance.instance_guid))
            }
            _ => None,
        }
    }

    fn began(&self, container: &Container) {
        match self.instance(container) {
            Some((key, instance_guid)) => {
                self.0.ledger.instance_begins(&key, &self.0.cell_id, &instance_guid);
            }
            None => self.0.ledger.task_begins(&container.guid, &self.0.cell_id),
        }
    }

    async fn live(self, guid: String) {
        let chance = &self.0.chance;
        tokio::time::sleep(chance.duration(50..1_500)).await;
        if self.enter(&guid, &State::Initializing, State::Created).is_none() {
            return;
        }
        tokio::time::sleep(chance.duration(50..1_500)).await;
        let Some(container) = self.enter(&guid, &State::Created, State::Running) else { return };
        self.began(&container);
        let is_task = self.instance(&container).is_none();
        self.0.hub.emit(Event::Running(container.clone()));
        if is_task {
            tokio::time::sleep(chance.duration(500..20_000)).await;
            if self.0.sabotage == Sabotage::TasksRunTwice && !self.0.power.is_cancelled() {
                self.began(&container);
            }
            return self.complete(&guid, outcome(chance.happens(0.2)));
        }
        loop {
            tokio::time::sleep(CRASH_LOOK).await;
            match self.get(&guid) {
                Ok(container) if container.state == State::Running => {}
                _ => return,
            }
            let crashes = *lock(&self.0.crashes);
            if chance.happens(crashes) {
                return self.complete(&guid, outcome(true));
            }
        }
    }
}

fn outcome(failed: bool) -> RunResult {
    let failure_reason = if failed { "it exited with status 1".into() } else { String::new() };
    RunResult { failed, failure_reason, retryable: false, stopped: false }
}

fn stopped() -> RunResult {
    RunResult { stopped: true, ..outcome(false) }
}

#[async_trait]
impl Containers for Machine {
    fn allocate(&self, requests: Vec<AllocationRequest>) -> Vec<AllocationFailure> {
        let mut failures = Vec::new();
        for AllocationRequest { guid, resource, tags } in requests {
            let short = self.remaining_resources().memory_mb < resource.memory_mb
                || self.remaining_resources().containers == 0;
            let taken = lock(&self.0.containers).contains_key(&guid);
            if short || taken || self.0.power.is_cancelled() {
                let reason = if taken { "container guid not available" } else { "insufficient resources" };
                failures.push(AllocationFailure { guid, reason: reason.into() });
                continue;
            }
            let container = Container::reserved(&guid, resource, tags, 0);
            lock(&self.0.containers).insert(guid, container.clone());
            self.0.hub.emit(Event::Reserved(container));
        }
        failures
    }

    fn run_container(&self, request: RunRequest) -> Result<(), Error> {
        self.heed()?;
        {
            let mut containers = lock(&self.0.containers);
            let container = containers.get_mut(&request.guid).ok_or(Error::ContainerNotFound)?;
            if container.state != State::Reserved {
                return Err(Error::InvalidTransition);
            }
            container.state = State::Initializing;
            container.tags.extend(request.tags);
            container.run_info = Some(Arc::new(request.run_info));
            container.external_ip = Some([10, 0, 0, 1].into());
        }
        tokio::spawn(self.clone().live(request.guid));
        Ok(())
    }

    async fn update(&self, _: UpdateRequest) -> Result<(), Error> {
        Ok(())
    }

    async fn stop(&self, guid: &str) -> Result<(), Error> {
        self.heed()?;
        let container = self.get(guid)?;
        if self.0.sabotage == Sabotage::NothingStops {
            return Ok(());
        }
        if container.state == State::Reserved {
            self.complete(guid, stopped());
            return Ok(());
        }
        let (machine, guid, grace) = (self.clone(), guid.to_string(), self.0.chance.duration(0..3_000));
        tokio::spawn(async move {
            tokio::time::sleep(grace).await;
            machine.complete(&guid, stopped());
        });
        Ok(())
    }

    async fn delete(&self, guid: &str) -> Result<(), Error> {
        self.heed()?;
        let container = self.get(guid)?;
        if !container.is_completed() {
            if self.0.sabotage == Sabotage::NothingStops {
                return Ok(());
            }
            tokio::time::sleep(self.0.chance.duration(0..2_000)).await;
            self.complete(guid, stopped());
        }
        lock(&self.0.containers).remove(guid);
        Ok(())
    }

    fn get(&self, guid: &str) -> Result<Container, Error> {
        lock(&self.0.containers).get(guid).cloned().ok_or(Error::ContainerNotFound)
    }

    fn list(&self) -> Vec<Container> {
        lock(&self.0.containers).values().cloned().collect()
    }

    fn guids(&self) -> Vec<String> {
        lock(&self.0.containers).keys().cloned().collect()
    }

    fn remaining_resources(&self) -> CellResources {
        let containers = lock(&self.0.containers);
        let taken = |of: fn(&Container) -> u64| containers.values().map(of).sum::<u64>();
        CellResources {
            memory_mb: TOTAL.memory_mb.saturating_sub(taken(|container| container.resource.memory_mb)),
            disk_mb: TOTAL.disk_mb.saturating_sub(taken(|container| container.resource.disk_mb)),
            containers: TOTAL.containers.saturating_sub(taken(|_| 1)),
        }
    }

    fn total_resources(&self) -> CellResources {
        TOTAL
    }

    fn subscribe(&self) -> Events {
        self.0.hub.subscribe()
    }

    async fn files(&self, _: &str, _: &str) -> Result<Reader, Error> {
        Err(Error::ContainerNotFound)
    }

    fn volume_drivers(&self) -> Vec<String> {
        Vec::new()
    }

    fn healthy(&self) -> bool {
        true
    }

    fn announce(&self, _: &str, _: &str) {}

    fn empty_at_stop(&self) {}
}
