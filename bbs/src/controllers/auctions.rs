//! Asking the auctioneer for places. Requests gather in a queue and go out together.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bbs_models::{DesiredLrp, Task};
use brain_client::{AuctioneerClient, LrpStartRequest, TaskStartRequest};
use rep_client::{PlacementConstraint, Resource};
use tokio::sync::mpsc;

/// Starts that may wait to be sent; further ones are left to convergence.
const STARTS_QUEUED_MAX: usize = 10_000;
/// Starts of one request.
const STARTS_PER_REQUEST_MAX: usize = 1_000;
/// How often one request is tried before convergence has to repeat it.
const ATTEMPTS_MAX: u32 = 3;
const ATTEMPTS_APART: Duration = Duration::from_millis(500);

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Where auctions are held: a process reached over HTTP, or a part of this one.
#[async_trait]
pub trait Auctioneer: Send + Sync {
    async fn request_lrp_auctions(&self, trace_id: &str, starts: &[LrpStartRequest]) -> Result<(), Failure>;
    async fn request_task_auctions(&self, trace_id: &str, starts: &[TaskStartRequest])
    -> Result<(), Failure>;
}

#[async_trait]
impl Auctioneer for AuctioneerClient {
    async fn request_lrp_auctions(&self, trace_id: &str, starts: &[LrpStartRequest]) -> Result<(), Failure> {
        Ok(AuctioneerClient::request_lrp_auctions(self, trace_id, starts).await?)
    }

    async fn request_task_auctions(
        &self,
        trace_id: &str,
        starts: &[TaskStartRequest],
    ) -> Result<(), Failure> {
        Ok(AuctioneerClient::request_task_auctions(self, trace_id, starts).await?)
    }
}

enum Start {
    Lrp { trace_id: String, start: LrpStartRequest },
    Task { trace_id: String, start: TaskStartRequest },
}

/// The queue to the auctioneer.
#[derive(Clone)]
pub struct Auctions(mpsc::Sender<Start>);

impl Auctions {
    /// The queue, and what empties it until every sender is gone.
    pub fn new(auctioneer: Arc<dyn Auctioneer>) -> (Auctions, impl Future<Output = ()> + Send) {
        let (sender, receiver) = mpsc::channel(STARTS_QUEUED_MAX);
        (Auctions(sender), send(auctioneer, receiver))
    }

    /// Places for these instances of an LRP.
    pub fn request_lrps(&self, trace_id: &str, lrp: &DesiredLrp, indices: &[u32]) {
        if indices.is_empty() {
            return;
        }
        let start = lrp_start(lrp, indices);
        self.queue(Start::Lrp { trace_id: trace_id.into(), start });
    }

    pub fn request_task(&self, trace_id: &str, task: &Task) {
        self.queue(Start::Task { trace_id: trace_id.into(), start: task_start(task) });
    }

    fn queue(&self, start: Start) {
        if self.0.try_send(start).is_err() {
            tracing::warn!("too many starts wait for the auctioneer: one is left to convergence");
        }
    }
}

fn small(number: u32) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

fn lrp_start(lrp: &DesiredLrp, indices: &[u32]) -> LrpStartRequest {
    let resource = Resource {
        memory_mb: small(lrp.memory_mb),
        disk_mb: small(lrp.disk_mb),
        max_pids: small(lrp.max_pids),
    };
    let constraint = PlacementConstraint {
        placement_tags: lrp.placement_tags.clone(),
        volume_drivers: lrp.volume_mounts.iter().map(|mount| mount.driver.clone()).collect(),
        rootfs: lrp.rootfs.clone(),
    };
    let indices = indices.iter().map(|index| small(*index)).collect();
    LrpStartRequest::new(&lrp.process_guid, &lrp.domain, indices, resource, constraint)
}

fn task_start(task: &Task) -> TaskStartRequest {
    let definition = &task.definition;
    let resource = Resource {
        memory_mb: small(definition.memory_mb),
        disk_mb: small(definition.disk_mb),
        max_pids: small(definition.max_pids),
    };
    let constraint = PlacementConstraint {
        placement_tags: definition.placement_tags.clone(),
        volume_drivers: definition.volume_mounts.iter().map(|mount| mount.driver.clone()).collect(),
        rootfs: definition.rootfs.clone(),
    };
    TaskStartRequest(rep_client::Task::new(&task.task_guid, &task.domain, resource, constraint))
}

async fn send(auctioneer: Arc<dyn Auctioneer>, mut queue: mpsc::Receiver<Start>) {
    let mut starts = Vec::new();
    while queue.recv_many(&mut starts, STARTS_PER_REQUEST_MAX).await > 0 {
        // A request carries one trace id: starts that came together from one client request stay together.
        let mut lrps: BTreeMap<String, Vec<LrpStartRequest>> = BTreeMap::new();
        let mut tasks: BTreeMap<String, Vec<TaskStartRequest>> = BTreeMap::new();
        for start in starts.drain(..) {
            match start {
                Start::Lrp { trace_id, start } => lrps.entry(trace_id).or_default().push(start),
                Start::Task { trace_id, start } => tasks.entry(trace_id).or_default().push(start),
            }
        }
        for (trace_id, starts) in &lrps {
            retried("LRP", || auctioneer.request_lrp_auctions(trace_id, starts)).await;
        }
        for (trace_id, starts) in &tasks {
            retried("Task", || auctioneer.request_task_auctions(trace_id, starts)).await;
        }
    }
}

async fn retried<F: Future<Output = Result<(), Failure>>>(kind: &str, request: impl Fn() -> F) {
    for attempt in 1..=ATTEMPTS_MAX {
        let Err(error) = request().await else { return };
        if attempt == ATTEMPTS_MAX {
            tracing::error!(%error, "cannot request {kind} auctions: convergence will");
            return;
        }
        tokio::time::sleep(ATTEMPTS_APART).await;
    }
}
