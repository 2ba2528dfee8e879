//! Makes things as they should be: looks at all the state every so often, and whenever a cell comes or goes, and
//! carries out what [`crate::convergence`] finds, in transactions of bounded size.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bbs_models::{ActualLrpKey, Error, Task};
use futures_util::StreamExt;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Controllers;
use crate::board::{Draft, new_guid};
use crate::convergence::{LiveCells, Patience, Repair, repairs};
use crate::transitions::{actual_lrp, domain, evacuation, suspect, task};
use crate::witness::Counts;

/// Repairs of one transaction: others get their turn in between.
const REPAIRS_PER_COMMIT_MAX: usize = 500;
/// Retirements under way at once; each may wait for a rep.
const RETIREMENTS_CONCURRENT_MAX: usize = 20;

/// Vacancies that may wait to be filled.
pub const VACANCIES_QUEUED_MAX: usize = 10_000;
/// A removed instance is missed for so long before it is replaced; several removed together are replaced together.
const VACANT_FOR: Duration = Duration::from_millis(200);

#[derive(Debug, Clone, Copy)]
pub struct Intervals {
    /// Between two looks.
    pub every: Duration,
    /// After the start, before a cell that has not shown itself counts as missing.
    pub cells_settle: Duration,
    pub patience: Patience,
}

impl Default for Intervals {
    fn default() -> Intervals {
        Intervals {
            every: Duration::from_secs(30),
            cells_settle: Duration::from_secs(15),
            patience: Patience::default(),
        }
    }
}

struct Convergence {
    controllers: Controllers,
    intervals: Intervals,
    started: Instant,
}

/// What of a repair cannot be done in the transaction itself.
enum Afterwards {
    AuctionLrp(ActualLrpKey),
    AuctionTask(Arc<Task>),
    CallBack(Arc<Task>),
}

/// Until `shutdown`.
pub async fn keep_converging(
    controllers: Controllers,
    intervals: Intervals,
    mut vacancies: mpsc::Receiver<ActualLrpKey>,
    shutdown: CancellationToken,
) {
    let mut cells = controllers.cells.watch();
    let convergence = Convergence { controllers, intervals, started: Instant::now() };
    let mut cells_open = true;
    let mut vacant = Vec::new();
    let mut next = Instant::now() + convergence.wait();
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep_until(next) => {}
            changed = cells.changed(), if cells_open => cells_open = changed.is_ok(),
            _ = vacancies.recv_many(&mut vacant, REPAIRS_PER_COMMIT_MAX) => {}
        }
        let work = async {
            if vacant.is_empty() {
                convergence.converge().await;
                next = Instant::now() + convergence.wait();
            } else {
                convergence.fill(std::mem::take(&mut vacant)).await;
            }
        };
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            () = work => {}
        }
    }
}

impl Convergence {
    /// Until the next look. The first one that may call cells missing comes as soon as it may.
    fn wait(&self) -> Duration {
        let settled = self.intervals.cells_settle.saturating_sub(self.started.elapsed());
        if settled.is_zero() { self.intervals.every } else { settled.min(self.intervals.every) }
    }

    async fn fill(&self, vacant: Vec<ActualLrpKey>) {
        tokio::time::sleep(VACANT_FOR).await;
        self.carry_out(vacant.into_iter().map(|key| Repair::CreateInstance { key }).collect()).await;
    }

    fn live_cells(&self) -> LiveCells {
        if self.started.elapsed() < self.intervals.cells_settle {
            return LiveCells::NotYetKnown;
        }
        let cells = self.controllers.cells.list();
        LiveCells::Known(cells.into_iter().map(|cell| cell.cell_id).collect::<HashSet<_>>())
    }

    /// One look, and all that follows from it.
    async fn converge(&self) {
        let begun = Instant::now();
        let live = self.live_cells();
        let (board, patience) = (&self.controllers.board, &self.intervals.patience);
        let now_ns = board.now_ns();
        let present_cells = self.controllers.cells.list().len();
        let (found, counts) = board.read(|state| {
            let found = repairs(state, &live, patience, now_ns);
            let counts = Counts::of(state, &found, present_cells, now_ns);
            (found, counts)
        });
        let duration_ns = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
        tracing::info!(repairs = found.len(), duration_ns, "converged");
        let (retirements, rest): (Vec<_>, Vec<_>) =
            found.into_iter().partition(|repair| matches!(repair, Repair::Retire { .. }));
        let (updates, rest): (Vec<_>, Vec<_>) =
            rest.into_iter().partition(|repair| matches!(repair, Repair::UpdateInstance { .. }));
        updates.into_iter().for_each(|repair| self.update(repair));
        let mut rest = rest.into_iter().peekable();
        while rest.peek().is_some() {
            self.carry_out(rest.by_ref().take(REPAIRS_PER_COMMIT_MAX).collect()).await;
        }
        self.retire(retirements).await;
        self.controllers.witness.converged(begun.elapsed(), &counts);
    }

    fn update(&self, repair: Repair) {
        if let Repair::UpdateInstance { key, instance, internal_routes, metric_tags } = repair {
            self.controllers.cells.update_soon("", &key, &instance, internal_routes, metric_tags);
        }
    }

    async fn retire(&self, repairs: Vec<Repair>) {
        futures_util::stream::iter(repairs)
            .for_each_concurrent(RETIREMENTS_CONCURRENT_MAX, |repair| async move {
                let Repair::Retire { key } = repair else { return };
                if let Err(error) = self.controllers.retire("", &key).await {
                    tracing::warn!(lrp = %key, %error, "cannot retire");
                }
            })
            .await;
    }

    async fn carry_out(&self, repairs: Vec<Repair>) {
        let written = self
            .controllers
            .board
            .write("", move |draft| {
                // What cannot be repaired any more has moved on by itself.
                Ok(repairs.into_iter().filter_map(|repair| one(draft, repair).ok().flatten()).collect())
            })
            .await;
        match written {
            Ok(afterwards) => self.follow_up(afterwards),
            Err(error) => tracing::error!(%error, "cannot write what convergence found"),
        }
    }

    fn follow_up(&self, afterwards: Vec<Afterwards>) {
        let mut indices: BTreeMap<String, Vec<u32>> = BTreeMap::new();
        for one in afterwards {
            match one {
                Afterwards::AuctionLrp(key) => indices.entry(key.process_guid).or_default().push(key.index),
                Afterwards::AuctionTask(task) => self.controllers.auctions.request_task("", &task),
                Afterwards::CallBack(task) => self.controllers.callbacks.call(&task),
            }
        }
        for (process_guid, indices) in indices {
            let desired = self.controllers.board.read(|state| state.desired_lrp(&process_guid).cloned());
            desired.iter().for_each(|lrp| self.controllers.auctions.request_lrps("", lrp, &indices));
        }
    }
}

/// One repair, on the newest state.
fn one(draft: &mut Draft<'_>, repair: Repair) -> Result<Option<Afterwards>, Error> {
    let now_ns = draft.now_ns;
    let slot = |draft: &Draft<'_>, key: &ActualLrpKey| draft.state().slot(&key.process_guid, key.index);
    let change = match repair {
        Repair::PruneDomain { domain } => {
            let before = draft.state().domain(&domain);
            domain::prune(domain, before, now_ns).into_iter().for_each(|change| draft.record(change));
            return Ok(None);
        }
        Repair::CreateInstance { key } => {
            let desired = draft.state().desired_lrp(&key.process_guid);
            if desired.is_none_or(|lrp| key.index >= lrp.instances) {
                return Ok(None);
            }
            let change = actual_lrp::create(slot(draft, &key), key.clone(), new_guid(), now_ns)?;
            draft.record_slot(change);
            return Ok(Some(Afterwards::AuctionLrp(key)));
        }
        Repair::AuctionAgain { key } => {
            let waits = slot(draft, &key).ordinary.is_some_and(|lrp| lrp.state.name() == "UNCLAIMED");
            return Ok(waits.then_some(Afterwards::AuctionLrp(key)));
        }
        Repair::RestartCrashed { key } => {
            let slot = slot(draft, &key);
            let change = actual_lrp::restart_crashed(slot, &key.process_guid, key.index, now_ns)?;
            draft.record_slot(change);
            return Ok(Some(Afterwards::AuctionLrp(key)));
        }
        Repair::CellLost { key, instance } => {
            let slot = slot(draft, &key);
            let (guid, index) = (&key.process_guid, key.index);
            let change = suspect::cell_lost(slot, guid, index, &instance, new_guid(), now_ns)?;
            draft.record_slot(change);
            return Ok(Some(Afterwards::AuctionLrp(key)));
        }
        Repair::PromoteSuspect { key } => suspect::promote(slot(draft, &key), &key.process_guid, key.index)?,
        Repair::RemoveSuspect { key } => suspect::remove(slot(draft, &key), &key.process_guid, key.index)?,
        Repair::RemoveEvacuating { key, instance } => {
            evacuation::remove_evacuating(slot(draft, &key), &key.process_guid, key.index, &instance)?
        }
        Repair::FailTask { guid, reason } => {
            return task_repair(draft, &guid, |old| task::fail(old, reason.into(), now_ns))
                .map(|task| task.map(Afterwards::CallBack));
        }
        Repair::DemoteTask { guid } => return task_repair(draft, &guid, task::demote).map(|_| None),
        Repair::DeleteTask { guid } => return task_repair(draft, &guid, task::prune).map(|_| None),
        Repair::AuctionTask { guid } => {
            let task = draft.state().task(&guid).cloned();
            let task = task.filter(|task| task.state == bbs_models::TaskState::Pending);
            return Ok(task.map(Afterwards::AuctionTask));
        }
        Repair::CallBack { guid } => {
            return Ok(draft.state().task(&guid).cloned().map(Afterwards::CallBack));
        }
        Repair::Retire { .. } | Repair::UpdateInstance { .. } => None,
    };
    draft.record_slot(change);
    Ok(None)
}

fn task_repair(
    draft: &mut Draft<'_>,
    guid: &str,
    decide: impl FnOnce(Option<Arc<Task>>) -> Result<crate::state::Change, Error>,
) -> Result<Option<Arc<Task>>, Error> {
    let change = decide(draft.state().task(guid).cloned())?;
    draft.record(change);
    Ok(draft.state().task(guid).cloned())
}
