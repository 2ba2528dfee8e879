//! One auction from its first question to its last answer.

use std::collections::HashMap;
use std::time::Duration;

use auction::{Constraint, Resource, Weights};
use bbs_client::BbsClient;
use bbs_models::ActualLrpKey;
use diego_base::http::Way;
use futures_util::{StreamExt, stream};
use rep_client::{Lrp, RepClient, Task, Work};

use super::batch::{Auction, Batch, Waiting};
use super::cells::{self, Participant};

/// Requests to cells, or to the BBS, under way at the same time.
const REQUESTS_AT_ONCE_MAX: usize = 100;
/// A piece of work that so many cells refused is given up until the BBS asks for it again.
const REFUSALS_MAX: u32 = 3;
/// What is said of work that cells accepted to be asked for and then refused: others were faster.
const REFUSED: &str = "insufficient resources";

pub struct Auctioneer {
    pub bbs: BbsClient,
    pub http: Way,
    pub weights: Weights,
    pub cell_state_timeout: Duration,
}

/// What each cell is to do, and what nobody can.
#[derive(Default)]
struct Decided {
    work: Vec<(RepClient, Work)>,
    failed_lrps: Vec<(Lrp, String)>,
    failed_tasks: Vec<(Task, String)>,
}

impl Auctioneer {
    /// Fails only if the BBS could not say which cells there are; the batch is then still full.
    pub async fn hold(&self, batch: &Batch) -> Result<(), bbs_client::Error> {
        if batch.is_empty() {
            return Ok(());
        }
        let trace_id = batch.trace_id();
        let presences = self.bbs.cells().await?;
        let participants = cells::fetch(presences, &self.http, self.cell_state_timeout, &trace_id).await;
        // Drained as late as can be: what came in meanwhile is placed too.
        let waiting = batch.drain();
        tracing::info!(
            lrps = waiting.lrps.len(),
            tasks = waiting.tasks.len(),
            cells = participants.len(),
            "scheduling"
        );
        let before = Before::of(&waiting);
        let mut decided = decide(waiting, participants, &self.weights);
        let refused = commit(std::mem::take(&mut decided.work)).await;
        before.sort_refused(refused, batch, &mut decided, &trace_id);
        before.count(&decided);
        self.report(decided).await;
        Ok(())
    }

    async fn report(&self, decided: Decided) {
        let fail = stream::iter(decided.failed_lrps)
            .for_each_concurrent(REQUESTS_AT_ONCE_MAX, |(lrp, reason)| fail(self.bbs.clone(), lrp, reason));
        let reject = stream::iter(decided.failed_tasks)
            .for_each_concurrent(REQUESTS_AT_ONCE_MAX, |(task, reason)| {
                reject(self.bbs.clone(), task, reason)
            });
        tokio::join!(fail, reject);
    }
}

async fn fail(bbs: BbsClient, lrp: Lrp, reason: String) {
    let index = u32::try_from(lrp.index).unwrap_or(0);
    let key = ActualLrpKey::new(&lrp.process_guid, index, &lrp.domain);
    tracing::info!(lrp = %key, reason, "cannot place an instance");
    if let Err(error) = bbs.fail_actual_lrp(&key, &reason).await {
        tracing::error!(lrp = %key, %error, "failed-to-fail-LRP");
    }
}

async fn reject(bbs: BbsClient, task: Task, reason: String) {
    tracing::info!(task_guid = task.task_guid, reason, "cannot place a Task");
    if let Err(error) = bbs.reject_task(&task.task_guid, &reason).await {
        tracing::error!(task_guid = task.task_guid, %error, "failed-to-reject-task");
    }
}

fn decide(waiting: Waiting, participants: Vec<Participant>, weights: &Weights) -> Decided {
    let (clients, cells): (Vec<_>, Vec<_>) =
        participants.into_iter().map(|known| (known.client, known.cell)).unzip();
    let batch = auction::Batch {
        lrps: waiting.lrps.iter().map(|auction| lrp(&auction.work)).collect(),
        tasks: waiting.tasks.iter().map(|auction| task(&auction.work)).collect(),
    };
    let placement = auction::place(&cells, &batch, weights);
    let mut work: Vec<Work> =
        cells.iter().map(|cell| Work { cell_id: cell.id.clone(), ..Work::default() }).collect();
    let mut decided = Decided::default();
    for (auction, outcome) in waiting.lrps.into_iter().zip(placement.lrps) {
        match outcome {
            Ok(winner) => work[winner].lrps.push(auction.work),
            Err(failure) => decided.failed_lrps.push((auction.work, failure.to_string())),
        }
    }
    for (auction, outcome) in waiting.tasks.into_iter().zip(placement.tasks) {
        match outcome {
            Ok(winner) => work[winner].tasks.push(auction.work),
            Err(failure) => decided.failed_tasks.push((auction.work, failure.to_string())),
        }
    }
    decided.work = clients.into_iter().zip(work).filter(|(_, work)| !work.is_empty()).collect();
    decided
}

/// What cells refused. Work for a cell that did not answer may have been taken or not: it is neither placed elsewhere,
/// which could make it run twice, nor reported; convergence finds out.
async fn commit(work: Vec<(RepClient, Work)>) -> Vec<Work> {
    stream::iter(work)
        .map(|(client, work)| perform(client, work))
        .buffer_unordered(REQUESTS_AT_ONCE_MAX)
        .collect()
        .await
}

async fn perform(client: RepClient, work: Work) -> Work {
    client.perform(&work).await.unwrap_or_else(|error| {
        tracing::error!(cell_id = work.cell_id, %error, "failed-to-commit");
        Work::default()
    })
}

/// What is remembered of a batch while it is decided on.
struct Before {
    lrps: usize,
    tasks: usize,
    /// Of those that were refused before, by LRP identifier or Task guid.
    refusals: HashMap<String, u32>,
}

impl Before {
    fn of(waiting: &Waiting) -> Self {
        let lrps = waiting.lrps.iter().map(|auction| (auction.work.identifier(), auction.refusals));
        let tasks = waiting.tasks.iter().map(|auction| (auction.work.task_guid.clone(), auction.refusals));
        let refusals = lrps.chain(tasks).filter(|(_, refusals)| *refusals > 0).collect();
        Before { lrps: waiting.lrps.len(), tasks: waiting.tasks.len(), refusals }
    }

    /// Refused work is auctioned again at once, with the states as they are then, unless it was refused too often.
    fn sort_refused(&self, refused: Vec<Work>, batch: &Batch, decided: &mut Decided, trace_id: &str) {
        let refusals = |id: &str| self.refusals.get(id).copied().unwrap_or(0) + 1;
        let (mut lrps_again, mut tasks_again) = (Vec::new(), Vec::new());
        for lrp in refused.iter().flat_map(|work| &work.lrps) {
            match refusals(&lrp.identifier()) {
                refusals if refusals < REFUSALS_MAX => {
                    lrps_again.push(Auction { work: lrp.clone(), refusals })
                }
                _ => decided.failed_lrps.push((lrp.clone(), REFUSED.into())),
            }
        }
        for task in refused.iter().flat_map(|work| &work.tasks) {
            match refusals(&task.task_guid) {
                refusals if refusals < REFUSALS_MAX => {
                    tasks_again.push(Auction { work: task.clone(), refusals })
                }
                _ => decided.failed_tasks.push((task.clone(), REFUSED.into())),
            }
        }
        if let Err(full) = batch.add(lrps_again, tasks_again, trace_id) {
            tracing::error!(%full, "refused work is left to convergence");
        }
    }

    fn count(&self, decided: &Decided) {
        let (lrps, tasks) = (decided.failed_lrps.len(), decided.failed_tasks.len());
        let counters = [
            ("AuctioneerLRPAuctionsStarted", self.lrps.saturating_sub(lrps)),
            ("AuctioneerLRPAuctionsFailed", lrps),
            ("AuctioneerTaskAuctionsStarted", self.tasks.saturating_sub(tasks)),
            ("AuctioneerTaskAuctionsFailed", tasks),
        ];
        for (metric, delta) in counters.into_iter().filter(|(_, delta)| *delta > 0) {
            tracing::info!(metric, delta, "auction completed");
        }
    }
}

fn lrp(lrp: &Lrp) -> auction::Lrp {
    auction::Lrp {
        process_guid: lrp.process_guid.clone(),
        index: lrp.index,
        resource: Resource { memory_mb: lrp.memory_mb, disk_mb: lrp.disk_mb },
        constraint: Constraint {
            rootfs: lrp.rootfs.clone(),
            volume_drivers: lrp.volume_drivers.clone(),
            placement_tags: lrp.placement_tags.clone(),
        },
    }
}

fn task(task: &Task) -> auction::Task {
    auction::Task {
        resource: Resource { memory_mb: task.memory_mb, disk_mb: task.disk_mb },
        constraint: Constraint {
            rootfs: task.rootfs.clone(),
            volume_drivers: task.volume_drivers.clone(),
            placement_tags: task.placement_tags.clone(),
        },
    }
}
