//! The life of Tasks as clients, cells and auctioneers ask for it.

use std::sync::Arc;

use bbs_models::{Error, Task, TaskDefinition, TaskOutcome};

use super::Controllers;
use crate::board::Draft;
use crate::state::Change;
use crate::transitions::task;

impl Controllers {
    pub async fn desire_task(
        &self,
        trace_id: &str,
        guid: String,
        domain: String,
        definition: TaskDefinition,
    ) -> Result<(), Error> {
        let desired = self
            .change(trace_id, guid, |old, guid, now_ns| task::desire(old, guid, domain, definition, now_ns));
        if let Some(task) = desired.await? {
            self.auctions.request_task(trace_id, &task);
        }
        Ok(())
    }

    /// Whether the cell should start it.
    pub async fn start_task(&self, trace_id: &str, guid: String, cell_id: String) -> Result<bool, Error> {
        let holder = cell_id.clone();
        let should_start = self
            .board
            .write(trace_id, move |draft| {
                let change = task::start(old(draft, &guid), holder, draft.now_ns)?;
                let should_start = change.is_some();
                change.into_iter().for_each(|change| draft.record(change));
                Ok(should_start)
            })
            .await?;
        if should_start {
            self.witness.task_started(&cell_id);
        }
        Ok(should_start)
    }

    /// Also stops it at the cell that runs it.
    pub async fn cancel_task(&self, trace_id: &str, guid: String) -> Result<(), Error> {
        let (before, after) = self
            .board
            .write(trace_id, move |draft| {
                let before = old(draft, &guid);
                draft.record(task::fail(before.clone(), task::CANCELLED.into(), draft.now_ns)?);
                Ok((before, old(draft, &guid)))
            })
            .await?;
        after.into_iter().for_each(|task| self.callbacks.call(&task));
        if let Some((task, cell_id)) =
            before.as_ref().and_then(|task| task.cell_id().map(|cell_id| (task, cell_id)))
        {
            self.cells.cancel_soon(trace_id, cell_id, &task.task_guid);
        }
        Ok(())
    }

    pub async fn fail_task(&self, trace_id: &str, guid: String, reason: String) -> Result<(), Error> {
        self.ended(self.change(trace_id, guid, |old, _, now_ns| task::fail(old, reason, now_ns)).await?)
    }

    pub async fn reject_task(&self, trace_id: &str, guid: String, reason: String) -> Result<(), Error> {
        let retries_max = self.task_retries_max;
        let reject = move |old, _, now_ns| task::reject(old, reason, retries_max, now_ns);
        self.ended(self.change(trace_id, guid, reject).await?)
    }

    pub async fn complete_task(
        &self,
        trace_id: &str,
        guid: String,
        cell_id: String,
        outcome: TaskOutcome,
    ) -> Result<(), Error> {
        let (holder, failed) = (cell_id.clone(), matches!(outcome, TaskOutcome::Failed { .. }));
        let complete = move |old, _, now_ns| task::complete(old, &holder, outcome, now_ns);
        let task = self.change(trace_id, guid, complete).await?;
        self.witness.task_ended(&cell_id, failed);
        self.ended(task)
    }

    fn ended(&self, task: Option<Arc<Task>>) -> Result<(), Error> {
        task.iter().filter(|task| task.outcome().is_some()).for_each(|task| self.callbacks.call(task));
        Ok(())
    }

    pub async fn resolving_task(&self, trace_id: &str, guid: String) -> Result<(), Error> {
        self.change(trace_id, guid, |old, _, now_ns| task::resolving(old, now_ns)).await.map(drop)
    }

    pub async fn delete_task(&self, trace_id: &str, guid: String) -> Result<(), Error> {
        self.change(trace_id, guid, |old, _, _| task::delete(old)).await.map(drop)
    }

    /// One transition of one Task; what it is afterwards.
    async fn change(
        &self,
        trace_id: &str,
        guid: String,
        decide: impl FnOnce(Option<Arc<Task>>, String, i64) -> Result<Change, Error> + Send + 'static,
    ) -> Result<Option<Arc<Task>>, Error> {
        self.board
            .write(trace_id, move |draft| {
                draft.record(decide(old(draft, &guid), guid.clone(), draft.now_ns)?);
                Ok(old(draft, &guid))
            })
            .await
    }
}

fn old(draft: &Draft<'_>, guid: &str) -> Option<Arc<Task>> {
    draft.state().task(guid).cloned()
}
