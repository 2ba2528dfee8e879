//! The same questions, answered in the BBS's own words: for tools that show what there is, valid or not.

use bbs_models::wire::{
    self, ActualLrpGroupByProcessGuidAndIndexRequest, ActualLrpGroupResponse, ActualLrpGroupsRequest,
    ActualLrpGroupsResponse, ActualLrpsRequest, ActualLrpsResponse, DesireLrpRequest, DesireTaskRequest,
    DesiredLrpResponse, DesiredLrpSchedulingInfosResponse, DesiredLrpsRequest, DesiredLrpsResponse,
    ProcessGuidRequest, TaskGuidRequest, TaskResponse, TasksRequest, TasksResponse, UpdateDesiredLrpRequest,
};
use bbs_models::{ActualLrpFilter, DesiredLrpFilter, TaskFilter};
use reqwest::Method;
use serde::Serialize;
use serde_json::value::RawValue;

use crate::client::Result;
use crate::{BbsClient, Error, EventStream, paths};

/// An event in JSON.
#[derive(Debug, Serialize)]
pub struct RawEvent {
    #[serde(rename = "type")]
    pub kind: String,
    pub data: Box<RawValue>,
}

/// Neither what is sent nor what is answered is looked at.
pub struct Raw<'a>(&'a BbsClient);

impl BbsClient {
    pub fn raw(&self) -> Raw<'_> {
        Raw(self)
    }
}

impl Raw<'_> {
    pub async fn desired_lrps(&self, filter: DesiredLrpFilter) -> Result<Vec<wire::DesiredLrp>> {
        let answer: DesiredLrpsResponse =
            self.0.call(paths::DESIRED_LRPS, &DesiredLrpsRequest::from(filter)).await?;
        Ok(answer.desired_lrps)
    }

    pub async fn desired_lrp(&self, process_guid: String) -> Result<Option<wire::DesiredLrp>> {
        let answer: DesiredLrpResponse =
            self.0.call(paths::DESIRED_LRP, &ProcessGuidRequest { process_guid }).await?;
        Ok(answer.desired_lrp)
    }

    pub async fn scheduling_infos(
        &self,
        filter: DesiredLrpFilter,
    ) -> Result<Vec<wire::DesiredLrpSchedulingInfo>> {
        let answer: DesiredLrpSchedulingInfosResponse =
            self.0.call(paths::SCHEDULING_INFOS, &DesiredLrpsRequest::from(filter)).await?;
        Ok(answer.desired_lrp_scheduling_infos)
    }

    pub async fn desire_lrp(&self, desired_lrp: Option<wire::DesiredLrp>) -> Result<()> {
        self.0.change(paths::DESIRE_LRP, &DesireLrpRequest { desired_lrp }).await
    }

    pub async fn update_desired_lrp(
        &self,
        process_guid: String,
        update: Option<wire::DesiredLrpUpdate>,
    ) -> Result<()> {
        self.0.change(paths::UPDATE_DESIRED_LRP, &UpdateDesiredLrpRequest { process_guid, update }).await
    }

    pub async fn tasks(&self, filter: TaskFilter) -> Result<Vec<wire::Task>> {
        let request = TasksRequest { domain: filter.domain, cell_id: filter.cell_id };
        let answer: TasksResponse = self.0.call(paths::TASKS, &request).await?;
        Ok(answer.tasks)
    }

    pub async fn task(&self, task_guid: String) -> Result<Option<wire::Task>> {
        let answer: TaskResponse = self.0.call(paths::TASK, &TaskGuidRequest { task_guid }).await?;
        Ok(answer.task)
    }

    /// Of the Task only what is desired counts.
    pub async fn desire_task(&self, task: wire::Task) -> Result<()> {
        let wire::Task { task_definition, task_guid, domain, .. } = task;
        self.0.change(paths::DESIRE_TASK, &DesireTaskRequest { task_definition, task_guid, domain }).await
    }

    pub async fn actual_lrps(&self, filter: ActualLrpFilter) -> Result<Vec<wire::ActualLrp>> {
        let answer: ActualLrpsResponse =
            self.0.call(paths::ACTUAL_LRPS, &ActualLrpsRequest::from(filter)).await?;
        Ok(answer.actual_lrps)
    }

    pub async fn actual_lrp_groups(
        &self,
        domain: String,
        cell_id: String,
    ) -> Result<Vec<wire::ActualLrpGroup>> {
        let request = ActualLrpGroupsRequest { domain, cell_id };
        let answer: ActualLrpGroupsResponse = self.0.call(paths::ACTUAL_LRP_GROUPS, &request).await?;
        Ok(answer.actual_lrp_groups)
    }

    pub async fn actual_lrp_groups_of(&self, process_guid: String) -> Result<Vec<wire::ActualLrpGroup>> {
        let request = ProcessGuidRequest { process_guid };
        let answer: ActualLrpGroupsResponse =
            self.0.call(paths::ACTUAL_LRP_GROUPS_BY_PROCESS_GUID, &request).await?;
        Ok(answer.actual_lrp_groups)
    }

    pub async fn actual_lrp_group(
        &self,
        process_guid: &str,
        index: u32,
    ) -> Result<Option<wire::ActualLrpGroup>> {
        let request = ActualLrpGroupByProcessGuidAndIndexRequest::new(process_guid, index);
        let answer: ActualLrpGroupResponse = self.0.call(paths::ACTUAL_LRP_GROUP, &request).await?;
        Ok(answer.actual_lrp_group)
    }

    pub async fn task_events(&self) -> Result<EventStream<RawEvent>> {
        self.0.subscribe_as(Method::POST, paths::TASK_EVENTS, "", shown).await
    }

    /// Of one cell, if it is not empty.
    pub async fn instance_events(&self, cell_id: &str) -> Result<EventStream<RawEvent>> {
        self.0.subscribe_as(Method::POST, paths::INSTANCE_EVENTS, cell_id, shown).await
    }

    /// Deprecated.
    pub async fn group_events(&self, cell_id: &str) -> Result<EventStream<RawEvent>> {
        self.0.subscribe_as(Method::GET, paths::EVENTS, cell_id, shown).await
    }
}

fn shown(event_type: &str, payload: &[u8]) -> Option<Result<RawEvent>> {
    let kind = event_type.to_owned();
    match wire::event_json(event_type, payload) {
        Ok(data) => data.map(|data| Ok(RawEvent { kind, data })),
        Err(error) => Some(Err(Error::Stream { reason: format!("{kind}: {error}") })),
    }
}
