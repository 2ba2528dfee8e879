//! The BBS's calls about Tasks.

use bbs_models::wire::{
    CompleteTaskRequest, DesireTaskRequest, StartTaskRequest, StartTaskResponse, TaskGuidRequest,
    TaskReasonRequest, TaskResponse, TasksRequest, TasksResponse,
};
use bbs_models::{Task, TaskDefinition, TaskFilter};

use crate::client::{Result, parse_all, parse_one};
use crate::{BbsClient, paths};

impl BbsClient {
    pub async fn tasks(&self, filter: &TaskFilter) -> Result<Vec<Task>> {
        let request = TasksRequest { domain: filter.domain.clone(), cell_id: filter.cell_id.clone() };
        let response: TasksResponse = self.call(paths::TASKS, &request).await?;
        parse_all(paths::TASKS, response.tasks)
    }

    pub async fn tasks_by_domain(&self, domain: &str) -> Result<Vec<Task>> {
        self.tasks(&TaskFilter { domain: domain.to_string(), ..TaskFilter::default() }).await
    }

    pub async fn tasks_by_cell(&self, cell_id: &str) -> Result<Vec<Task>> {
        self.tasks(&TaskFilter { cell_id: cell_id.to_string(), ..TaskFilter::default() }).await
    }

    pub async fn task_by_guid(&self, task_guid: &str) -> Result<Task> {
        let request = TaskGuidRequest { task_guid: task_guid.to_string() };
        let response: TaskResponse = self.call(paths::TASK, &request).await?;
        parse_one(paths::TASK, "task", response.task)
    }

    pub async fn desire_task(
        &self,
        task_guid: &str,
        domain: &str,
        definition: &TaskDefinition,
    ) -> Result<()> {
        let request = DesireTaskRequest {
            task_definition: Some(definition.clone().into()),
            task_guid: task_guid.to_string(),
            domain: domain.to_string(),
        };
        self.change(paths::DESIRE_TASK, &request).await
    }

    /// Whether this call changed the Task to Running: false if this cell had started it before.
    pub async fn start_task(&self, task_guid: &str, cell_id: &str) -> Result<bool> {
        let request = StartTaskRequest { task_guid: task_guid.to_string(), cell_id: cell_id.to_string() };
        let response: StartTaskResponse = self.call(paths::START_TASK, &request).await?;
        Ok(response.should_start)
    }

    pub async fn cancel_task(&self, task_guid: &str) -> Result<()> {
        self.change(paths::CANCEL_TASK, &TaskGuidRequest { task_guid: task_guid.to_string() }).await
    }

    /// Deprecated in favour of [`cancel_task`](Self::cancel_task) and [`reject_task`](Self::reject_task).
    pub async fn fail_task(&self, task_guid: &str, reason: &str) -> Result<()> {
        let request = TaskReasonRequest { task_guid: task_guid.to_string(), reason: reason.to_string() };
        self.change(paths::FAIL_TASK, &request).await
    }

    /// No place was found for it; the BBS decides whether to try again.
    pub async fn reject_task(&self, task_guid: &str, reason: &str) -> Result<()> {
        let request = TaskReasonRequest { task_guid: task_guid.to_string(), reason: reason.to_string() };
        self.change(paths::REJECT_TASK, &request).await
    }

    /// `reason` is of a failed Task, `result` of one that succeeded.
    pub async fn complete_task(
        &self,
        task_guid: &str,
        cell_id: &str,
        failed: bool,
        reason: &str,
        result: &str,
    ) -> Result<()> {
        let request = CompleteTaskRequest {
            task_guid: task_guid.to_string(),
            cell_id: cell_id.to_string(),
            failed,
            failure_reason: reason.to_string(),
            result: result.to_string(),
        };
        self.change(paths::COMPLETE_TASK, &request).await
    }

    /// The completion is being handled by this client now; only one gets to do so.
    pub async fn resolving_task(&self, task_guid: &str) -> Result<()> {
        self.change(paths::RESOLVING_TASK, &TaskGuidRequest { task_guid: task_guid.to_string() }).await
    }

    pub async fn delete_task(&self, task_guid: &str) -> Result<()> {
        self.change(paths::DELETE_TASK, &TaskGuidRequest { task_guid: task_guid.to_string() }).await
    }
}
