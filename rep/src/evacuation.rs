//! Emptying a cell before it goes away. Once begun it cannot be taken back: the cell takes no more work, its instances
//! are started elsewhere, and each is deleted here when the BBS says that its replacement runs, at the latest when the
//! time is up. Tasks are waited for just as long.

use std::time::Duration;

use bbs_client::BbsClient;
use bbs_models::{ActualLrpFilter, Presence};
use futures_util::future::join_all;
use tokio_util::sync::CancellationToken;

use crate::Containers;

/// How long deleting what is left may take beyond the grace time of its processes.
const CLEAN_UP_MARGIN: Duration = Duration::from_secs(5);

/// Whether an evacuation has begun; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Evacuation(CancellationToken);

impl Evacuation {
    pub fn begin(&self) {
        if !self.has_begun() {
            tracing::info!("evacuation has begun");
        }
        self.0.cancel();
    }

    pub fn has_begun(&self) -> bool {
        self.0.is_cancelled()
    }

    pub async fn begun(&self) {
        self.0.cancelled().await;
    }
}

/// How long an evacuation may take, and how often to look whether it is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    pub timeout: Duration,
    pub polling_interval: Duration,
    /// What processes get to end by themselves.
    pub graceful_shutdown_interval: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Times {
            timeout: Duration::from_secs(600),
            polling_interval: Duration::from_secs(10),
            graceful_shutdown_interval: Duration::from_secs(10),
        }
    }
}

/// Waits for an evacuation to begin and then until the cell is empty or the time is up, when it empties the cell. Answers
/// how many evacuating instances the BBS still had of it, where it could be asked.
pub async fn run(
    evacuation: &Evacuation,
    times: Times,
    cell_id: &str,
    bbs: &BbsClient,
    executor: &dyn Containers,
) -> Option<usize> {
    evacuation.begun().await;
    executor.empty_at_stop();
    if tokio::time::timeout(times.timeout, until_empty(executor, times.polling_interval)).await.is_err() {
        tracing::error!("failed-to-evacuate-before-timeout");
        tell_of_timeout(cell_id, executor);
        delete_all(executor, times.graceful_shutdown_interval + CLEAN_UP_MARGIN).await;
    }
    let stranded = remove_stranded(cell_id, bbs).await;
    tracing::info!("evacuation is complete");
    stranded
}

async fn until_empty(executor: &dyn Containers, polling_interval: Duration) {
    loop {
        let left = executor.guids().len();
        if left == 0 {
            return;
        }
        tracing::info!(containers = left, "evacuation-incomplete");
        tokio::time::sleep(polling_interval).await;
    }
}

/// Each app is told why its instance is stopped though no other runs yet.
fn tell_of_timeout(cell_id: &str, executor: &dyn Containers) {
    for container in executor.list() {
        let guid = container.guid;
        executor.announce(&guid, &format!("Cell {cell_id} reached evacuation timeout for instance {guid}"));
    }
}

async fn delete_all(executor: &dyn Containers, timeout: Duration) {
    let delete = |container: executor::Container| async move {
        if let Err(error) = executor.delete(&container.guid).await {
            tracing::error!(guid = container.guid, %error, "cannot delete a container");
        }
    };
    if tokio::time::timeout(timeout, join_all(executor.list().into_iter().map(delete))).await.is_err() {
        tracing::error!("failed-to-cleanup-all-containers");
    }
}

/// Evacuating instances of this cell that the BBS still lists are gone now.
async fn remove_stranded(cell_id: &str, bbs: &BbsClient) -> Option<usize> {
    let filter = ActualLrpFilter { cell_id: cell_id.into(), ..ActualLrpFilter::default() };
    let lrps = match bbs.actual_lrps(&filter).await {
        Ok(lrps) => lrps,
        Err(error) => {
            tracing::error!(%error, "cannot list the instances of this cell");
            return None;
        }
    };
    let stranded: Vec<_> = lrps.iter().filter(|lrp| lrp.presence == Presence::Evacuating).collect();
    for (lrp, instance) in stranded.iter().filter_map(|lrp| Some((lrp, lrp.instance()?))) {
        tracing::info!(lrp = %lrp.key, instance_guid = instance.instance_guid, "removing a stranded evacuating instance");
        if let Err(error) = bbs.remove_evacuating_actual_lrp(&lrp.key, instance).await {
            tracing::error!(%error, "cannot remove a stranded evacuating instance");
        }
    }
    Some(stranded.len())
}
