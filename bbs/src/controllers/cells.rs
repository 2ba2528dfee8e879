//! The cells that are there, and what the BBS tells their reps: stop, cancel, update.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use bbs_models::{ActualLrpInstanceKey, ActualLrpKey, CellPresence, Error};
use diego_base::http::Way;
use futures_util::StreamExt;
use rep_client::{InternalRoute, LrpUpdate, RepClient};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;

/// Messages to reps that may wait; further ones are left to convergence.
const CALLS_QUEUED_MAX: usize = 10_000;
/// Messages to reps on their way at once.
const CALLS_CONCURRENT_MAX: usize = 64;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// What reps can be told: over HTTP, or as a part of this process.
#[async_trait]
pub trait Reps: Send + Sync {
    async fn stop(
        &self,
        cell: &CellPresence,
        trace_id: &str,
        key: &ActualLrpKey,
        instance: &ActualLrpInstanceKey,
    ) -> Result<(), Failure>;
    async fn cancel(&self, cell: &CellPresence, trace_id: &str, task_guid: &str) -> Result<(), Failure>;
    async fn update(&self, cell: &CellPresence, trace_id: &str, update: &LrpUpdate) -> Result<(), Failure>;
}

/// Reps over HTTP, at the address that the cell's presence names.
pub struct RepClients(pub Way);

impl RepClients {
    fn client(&self, cell: &CellPresence, trace_id: &str) -> RepClient {
        let url = if cell.rep_url.is_empty() { &cell.rep_address } else { &cell.rep_url };
        RepClient::new(self.0.clone(), url).traced(trace_id)
    }
}

#[async_trait]
impl Reps for RepClients {
    async fn stop(
        &self,
        cell: &CellPresence,
        trace_id: &str,
        key: &ActualLrpKey,
        instance: &ActualLrpInstanceKey,
    ) -> Result<(), Failure> {
        let client = self.client(cell, trace_id);
        Ok(client.stop_lrp_instance(&key.process_guid, &instance.instance_guid).await?)
    }

    async fn cancel(&self, cell: &CellPresence, trace_id: &str, task_guid: &str) -> Result<(), Failure> {
        Ok(self.client(cell, trace_id).cancel_task(task_guid).await?)
    }

    async fn update(&self, cell: &CellPresence, trace_id: &str, update: &LrpUpdate) -> Result<(), Failure> {
        Ok(self.client(cell, trace_id).update_lrp_instance(update).await?)
    }
}

struct Call {
    cell: CellPresence,
    trace_id: String,
    message: Message,
}

enum Message {
    Stop(ActualLrpKey, ActualLrpInstanceKey),
    Cancel(String),
    Update(LrpUpdate),
}

#[derive(Clone)]
pub struct Cells {
    present: watch::Receiver<Vec<CellPresence>>,
    reps: Arc<dyn Reps>,
    calls: mpsc::Sender<Call>,
}

impl Cells {
    /// The cells, and what sends the messages to their reps until every sender is gone.
    pub fn new(
        present: watch::Receiver<Vec<CellPresence>>,
        reps: Arc<dyn Reps>,
    ) -> (Cells, impl Future<Output = ()> + Send) {
        let (calls, queue) = mpsc::channel(CALLS_QUEUED_MAX);
        (Cells { present, reps: reps.clone(), calls }, send(reps, queue))
    }

    pub fn list(&self) -> Vec<CellPresence> {
        self.present.borrow().clone()
    }

    pub fn watch(&self) -> watch::Receiver<Vec<CellPresence>> {
        self.present.clone()
    }

    pub fn find(&self, cell_id: &str) -> Option<CellPresence> {
        self.present.borrow().iter().find(|cell| cell.cell_id == cell_id).cloned()
    }

    /// Tells the rep, some time soon. `false` if its cell is not there.
    pub fn stop_soon(&self, trace_id: &str, key: &ActualLrpKey, instance: &ActualLrpInstanceKey) -> bool {
        self.call(trace_id, &instance.cell_id, Message::Stop(key.clone(), instance.clone()))
    }

    pub fn cancel_soon(&self, trace_id: &str, cell_id: &str, task_guid: &str) -> bool {
        self.call(trace_id, cell_id, Message::Cancel(task_guid.into()))
    }

    /// `None` leaves the routes, or the tags, as they are.
    pub fn update_soon(
        &self,
        trace_id: &str,
        key: &ActualLrpKey,
        instance: &ActualLrpInstanceKey,
        internal_routes: Option<Vec<String>>,
        metric_tags: Option<BTreeMap<String, String>>,
    ) -> bool {
        let routes =
            |names: Vec<String>| names.into_iter().map(|hostname| InternalRoute { hostname }).collect();
        let update = LrpUpdate {
            instance_guid: instance.instance_guid.clone(),
            process_guid: key.process_guid.clone(),
            index: i32::try_from(key.index).unwrap_or(i32::MAX),
            domain: key.domain.clone(),
            internal_routes: internal_routes.map(routes),
            metric_tags,
        };
        self.call(trace_id, &instance.cell_id, Message::Update(update))
    }

    fn call(&self, trace_id: &str, cell_id: &str, message: Message) -> bool {
        let Some(cell) = self.find(cell_id) else {
            tracing::info!(cell_id, "a rep is not told: its cell is not present");
            return false;
        };
        if self.calls.try_send(Call { cell, trace_id: trace_id.into(), message }).is_err() {
            tracing::warn!(cell_id, "too many messages wait for reps: one is left to convergence");
        }
        true
    }

    /// Tells the rep now, and waits until it has taken it.
    pub async fn stop(
        &self,
        cell: &CellPresence,
        trace_id: &str,
        key: &ActualLrpKey,
        instance: &ActualLrpInstanceKey,
    ) -> Result<(), Error> {
        self.reps.stop(cell, trace_id, key, instance).await.map_err(|error| Error::unknown(error.to_string()))
    }
}

async fn send(reps: Arc<dyn Reps>, queue: mpsc::Receiver<Call>) {
    ReceiverStream::new(queue)
        .for_each_concurrent(CALLS_CONCURRENT_MAX, |Call { cell, trace_id, message }| {
            let reps = reps.clone();
            async move {
                let told = match &message {
                    Message::Stop(key, instance) => reps.stop(&cell, &trace_id, key, instance).await,
                    Message::Cancel(task_guid) => reps.cancel(&cell, &trace_id, task_guid).await,
                    Message::Update(update) => reps.update(&cell, &trace_id, update).await,
                };
                if let Err(error) = told {
                    tracing::error!(cell_id = %cell.cell_id, %error, "cannot tell a rep");
                }
            }
        })
        .await;
}
