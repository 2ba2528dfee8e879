//! Brings what the BBS believes and what the executor has into harmony: on each event of a container, and for
//! everything every 30 s, which is also what mends whatever was missed while either side was away.
//!
//! One operation for one container at a time; what happens to it meanwhile is looked at afterwards. An operation
//! decides from the container as it is then, not as the event had it, so that an event is a reason to look and no more.

mod carry_out;
mod residue;
mod result_file;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bbs_client::BbsClient;
use bbs_models::PreferredAddress;
use executor::Heard;
use futures_util::FutureExt;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::containers::SharedContainers;
use crate::evacuation::Evacuation;
use crate::recipe::Surroundings;
use crate::trace::Traces;
use crate::{Occurrence, Witness};
use residue::Residue;

/// After an operation that the BBS could not answer: pauses before it is tried again, then it waits for the next sync.
const RETRY_AFTER: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(4)];
/// How long operations under way may take once the rep was told to stop.
const DRAIN_TIME: Duration = Duration::from_secs(5);
/// After a sync that failed.
const SYNC_RETRY_AFTER: Duration = Duration::from_secs(2);

/// Of the usual one. What is measured of all containers each 15 s began when this did: a sync falls between two of these.
const FIRST_INTERVAL: f64 = 0.75;

/// What every operation works with.
pub struct Surrounded {
    pub cell_id: String,
    pub zone: String,
    pub preferred_address: PreferredAddress,
    pub recipes: Surroundings,
    pub bbs: BbsClient,
    pub executor: SharedContainers,
    pub evacuation: Evacuation,
    pub traces: Traces,
    /// Guids of the instances whose replacement was asked for, each told to its app once.
    pub replaced: Mutex<HashSet<String>>,
    pub witness: Arc<dyn Witness>,
}

impl Surrounded {
    fn telling(&self, guid: &str) -> Telling<'_> {
        let bbs = self.traces.of(guid).map_or_else(|| self.bbs.clone(), |id| self.bbs.traced(id));
        Telling { around: self, bbs }
    }

    /// What is noted of containers that are gone is of no use any more.
    fn forget_all_but(&self, guids: &[String]) {
        let there: HashSet<&str> = guids.iter().map(String::as_str).collect();
        self.traces.keep(|guid| there.contains(guid));
        let mut replaced = self.replaced.lock().unwrap_or_else(PoisonError::into_inner);
        replaced.retain(|guid| there.contains(guid.as_str()));
    }
}

/// One container's affairs, told to the BBS under the trace id of whoever asked for them.
struct Telling<'a> {
    around: &'a Surrounded,
    bbs: BbsClient,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Intervals {
    pub sync: Duration,
    pub sync_while_evacuating: Duration,
}

impl Default for Intervals {
    fn default() -> Self {
        Intervals { sync: Duration::from_secs(30), sync_while_evacuating: Duration::from_secs(10) }
    }
}

/// A reason to act for one guid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Operation {
    Container,
    /// The BBS believes in it, the executor has nothing of it.
    Residue(Residue),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Settled,
    /// The BBS could not be asked.
    Retry,
}

/// Until told to stop, or until the executor is gone.
pub async fn run(around: Surrounded, intervals: Intervals, shutdown: CancellationToken) {
    let around = Arc::new(around);
    let mut events = around.executor.subscribe();
    let mut queue = Queue { around: around.clone(), waiting: HashMap::new(), running: JoinSet::new() };
    let mut syncing = tokio::spawn(look(around.clone()));
    let mut sync_under_way = true;
    let mut next_sync = Instant::now() + intervals.sync.mul_f64(FIRST_INTERVAL);
    let mut evacuating = false;
    loop {
        // In this order, so that the same history leads to the same future; events, of which there may be many, are last.
        tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            Some(finished) = queue.running.join_next() => queue.finished(finished),
            found = &mut syncing, if sync_under_way => {
                sync_under_way = false;
                match found {
                    Ok(Ok(operations)) => operations.into_iter().for_each(|(guid, operation)| queue.push(guid, operation)),
                    Ok(Err(error)) => {
                        tracing::error!(%error, "failed-to-generate-operations");
                        next_sync = next_sync.min(Instant::now() + SYNC_RETRY_AFTER);
                    }
                    Err(error) => tracing::error!(%error, "a sync ended early"),
                }
            }
            () = tokio::time::sleep_until(next_sync), if !sync_under_way => {
                let interval = if evacuating { intervals.sync_while_evacuating } else { intervals.sync };
                next_sync = Instant::now() + interval;
                syncing = tokio::spawn(look(around.clone()));
                sync_under_way = true;
            }
            () = around.evacuation.begun(), if !evacuating => {
                evacuating = true;
                next_sync = Instant::now();
            }
            heard = events.next() => match heard {
                Some(Heard::Event(event)) => queue.push(event.container().guid.clone(), Operation::Container),
                Some(Heard::Missed(missed)) => {
                    tracing::warn!(missed, "missed executor events; looking at every container");
                    for guid in around.executor.guids() {
                        queue.push(guid, Operation::Container);
                    }
                }
                None => break,
            },
        }
    }
    syncing.abort();
    queue.drain().await;
}

async fn look(around: Arc<Surrounded>) -> Result<BTreeMap<String, Operation>, bbs_client::Error> {
    let begun = Instant::now();
    let found = residue::look(&around).await;
    around.witness.saw(Occurrence::BulkSync { took: begun.elapsed() });
    found
}

/// At most one operation runs for a guid, and at most one waits.
struct Queue {
    around: Arc<Surrounded>,
    /// An entry for each guid an operation runs for.
    waiting: HashMap<String, Option<Operation>>,
    running: JoinSet<String>,
}

impl Queue {
    fn push(&mut self, guid: String, operation: Operation) {
        match self.waiting.get_mut(&guid) {
            // A container that there is matters more than one that there was not.
            Some(Some(Operation::Container)) => {}
            Some(waiting) => *waiting = Some(operation),
            None => self.start(guid, operation),
        }
    }

    fn start(&mut self, guid: String, operation: Operation) {
        self.waiting.insert(guid.clone(), None);
        let around = self.around.clone();
        self.running.spawn(async move {
            let carried_out = AssertUnwindSafe(carry_out(&around, &guid, &operation)).catch_unwind().await;
            if carried_out.is_err() {
                tracing::error!(guid, "an operation panicked; the next sync tries again");
            }
            guid
        });
    }

    fn finished(&mut self, finished: Result<String, tokio::task::JoinError>) {
        let Ok(guid) = finished else { return };
        if let Some(Some(next)) = self.waiting.remove(&guid) {
            self.start(guid, next);
        }
    }

    async fn drain(mut self) {
        let finish = async { while self.running.join_next().await.is_some() {} };
        if tokio::time::timeout(DRAIN_TIME, finish).await.is_err() {
            tracing::warn!(operations = self.running.len(), "operations were cut short by the shutdown");
        }
        self.running.shutdown().await;
    }
}

async fn carry_out(around: &Surrounded, guid: &str, operation: &Operation) {
    for pause in RETRY_AFTER.map(Some).into_iter().chain([None]) {
        let outcome = match operation {
            Operation::Container => carry_out::container(&around.telling(guid), guid).await,
            Operation::Residue(residue) => residue::remove(around, guid, residue).await,
        };
        match (outcome, pause) {
            (Outcome::Settled, _) => return,
            (Outcome::Retry, Some(pause)) => tokio::time::sleep(pause).await,
            (Outcome::Retry, None) => tracing::warn!(guid, "left to the next sync"),
        }
    }
}
