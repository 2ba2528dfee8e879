//! Requests and responses about Tasks.

use prost::Message;

use super::part::is_guid;
use super::{Error, Invalid, Task, TaskDefinition};
use crate as models;

#[derive(Clone, PartialEq, Message)]
pub struct TasksRequest {
    #[prost(string, tag = "1")]
    pub domain: String,
    #[prost(string, tag = "2")]
    pub cell_id: String,
}

impl TasksRequest {
    pub fn parse(self) -> Result<models::TaskFilter, Invalid> {
        Ok(models::TaskFilter { domain: self.domain, cell_id: self.cell_id })
    }
}

#[derive(Clone, PartialEq, Message)]
pub struct TasksResponse {
    #[prost(message, optional, tag = "1")]
    pub error: Option<Error>,
    #[prost(message, repeated, tag = "2")]
    pub tasks: Vec<Task>,
}

#[derive(Clone, PartialEq, Message)]
pub struct TaskResponse {
    #[prost(message, optional, tag = "1")]
    pub error: Option<Error>,
    #[prost(message, optional, tag = "2")]
    pub task: Option<Task>,
}

/// TaskByGuidRequest, and TaskGuidRequest of cancel, resolving and delete.
#[derive(Clone, PartialEq, Message)]
pub struct TaskGuidRequest {
    #[prost(string, tag = "1")]
    pub task_guid: String,
}

impl TaskGuidRequest {
    pub fn parse(self) -> Result<String, Invalid> {
        let mut invalid = Invalid::default();
        invalid.require(!self.task_guid.is_empty(), "task_guid");
        invalid.or(self.task_guid)
    }
}

#[derive(Clone, PartialEq, Message)]
pub struct DesireTaskRequest {
    #[prost(message, optional, tag = "1")]
    pub task_definition: Option<TaskDefinition>,
    #[prost(string, tag = "2")]
    pub task_guid: String,
    #[prost(string, tag = "3")]
    pub domain: String,
}

impl DesireTaskRequest {
    /// Task guid, domain and definition.
    pub fn parse(self) -> Result<(String, String, models::TaskDefinition), Invalid> {
        let mut invalid = Invalid::default();
        invalid.require(is_guid(&self.task_guid), "task_guid");
        invalid.require(!self.domain.is_empty(), "domain");
        let Some(definition) = self.task_definition else {
            invalid.add_field("task_definition");
            return Err(invalid);
        };
        match invalid.take(definition.try_into()) {
            Some(definition) => invalid.or((self.task_guid, self.domain, definition)),
            None => Err(invalid),
        }
    }
}

#[derive(Clone, PartialEq, Message)]
pub struct StartTaskRequest {
    #[prost(string, tag = "1")]
    pub task_guid: String,
    #[prost(string, tag = "2")]
    pub cell_id: String,
}

impl StartTaskRequest {
    /// Task guid and cell id.
    pub fn parse(self) -> Result<(String, String), Invalid> {
        let mut invalid = Invalid::default();
        invalid.require(is_guid(&self.task_guid), "task_guid");
        invalid.require(!self.cell_id.is_empty(), "cell_id");
        invalid.or((self.task_guid, self.cell_id))
    }
}

#[derive(Clone, PartialEq, Message)]
pub struct StartTaskResponse {
    #[prost(message, optional, tag = "1")]
    pub error: Option<Error>,
    #[prost(bool, tag = "2")]
    pub should_start: bool,
}

/// FailTaskRequest (deprecated) and RejectTaskRequest.
#[derive(Clone, PartialEq, Message)]
pub struct TaskReasonRequest {
    #[prost(string, tag = "1")]
    pub task_guid: String,
    #[prost(string, tag = "2")]
    pub reason: String,
}

impl TaskReasonRequest {
    /// Task guid and reason. Both messages name a missing reason `failure_reason`.
    pub fn parse(self) -> Result<(String, String), Invalid> {
        let mut invalid = Invalid::default();
        invalid.require(is_guid(&self.task_guid), "task_guid");
        invalid.require(!self.reason.is_empty(), "failure_reason");
        invalid.or((self.task_guid, self.reason))
    }
}

#[derive(Clone, PartialEq, Message)]
pub struct CompleteTaskRequest {
    #[prost(string, tag = "1")]
    pub task_guid: String,
    #[prost(string, tag = "2")]
    pub cell_id: String,
    #[prost(bool, tag = "3")]
    pub failed: bool,
    #[prost(string, tag = "4")]
    pub failure_reason: String,
    #[prost(string, tag = "5")]
    pub result: String,
}

impl CompleteTaskRequest {
    pub fn new(task_guid: &str, cell_id: &str, outcome: models::TaskOutcome) -> Self {
        let mut request =
            Self { task_guid: task_guid.to_string(), cell_id: cell_id.to_string(), ..Self::default() };
        match outcome {
            models::TaskOutcome::Succeeded { result } => request.result = result,
            models::TaskOutcome::Failed { reason } => {
                (request.failed, request.failure_reason) = (true, reason)
            }
        }
        request
    }

    /// Task guid, cell id and outcome.
    pub fn parse(self) -> Result<(String, String, models::TaskOutcome), Invalid> {
        let mut invalid = Invalid::default();
        invalid.require(is_guid(&self.task_guid), "task_guid");
        invalid.require(!self.cell_id.is_empty(), "cell_id");
        let outcome = if self.failed {
            models::TaskOutcome::Failed { reason: self.failure_reason }
        } else {
            models::TaskOutcome::Succeeded { result: self.result }
        };
        invalid.or((self.task_guid, self.cell_id, outcome))
    }
}
