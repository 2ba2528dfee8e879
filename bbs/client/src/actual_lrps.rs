//! The BBS's calls about ActualLRPs: what cells report, and what everyone asks.

use std::collections::BTreeMap;

use bbs_models::wire::{
    ActualLrpGroupByProcessGuidAndIndexRequest, ActualLrpGroupResponse, ActualLrpGroupsRequest,
    ActualLrpGroupsResponse, ActualLrpsByProcessGuidsRequest, ActualLrpsRequest, ActualLrpsResponse,
    CrashActualLrpRequest, EvacuateRunningActualLrpRequest, EvacuationResponse, FailActualLrpRequest,
    IndexedInstanceRequest, InstanceRequest, ProcessGuidRequest, RetireActualLrpRequest,
    StartActualLrpRequest,
};
use bbs_models::{
    ActualLrp, ActualLrpFilter, ActualLrpGroup, ActualLrpInstanceKey, ActualLrpKey, ActualLrpNetInfo,
    RunningInstance,
};
use prost::Message;

use crate::client::{Result, parse_all, parse_one};
use crate::{BbsClient, paths};

/// What a cell knows of an instance that runs.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct StartedLrp {
    pub net_info: ActualLrpNetInfo,
    pub internal_routes: Vec<String>,
    pub metric_tags: BTreeMap<String, String>,
    pub routable: bool,
    pub availability_zone: String,
}

impl StartedLrp {
    fn of(&self, key: &ActualLrpKey, instance: &ActualLrpInstanceKey) -> RunningInstance {
        RunningInstance {
            key: key.clone(),
            instance: instance.clone(),
            net_info: self.net_info.clone(),
            internal_routes: self.internal_routes.clone(),
            metric_tags: self.metric_tags.clone(),
            routable: Some(self.routable),
            availability_zone: self.availability_zone.clone(),
        }
    }

    /// What the first revision of the routes knows.
    fn minimal(&self, key: &ActualLrpKey, instance: &ActualLrpInstanceKey) -> RunningInstance {
        RunningInstance {
            internal_routes: Vec::new(),
            metric_tags: BTreeMap::new(),
            routable: None,
            availability_zone: String::new(),
            ..self.of(key, instance)
        }
    }
}

impl BbsClient {
    pub async fn actual_lrps(&self, filter: &ActualLrpFilter) -> Result<Vec<ActualLrp>> {
        let request = ActualLrpsRequest::from(filter.clone());
        let response: ActualLrpsResponse = self.call(paths::ACTUAL_LRPS, &request).await?;
        parse_all(paths::ACTUAL_LRPS, response.actual_lrps)
    }

    /// Of no process guids there are none.
    pub async fn actual_lrps_by_process_guids(&self, process_guids: &[String]) -> Result<Vec<ActualLrp>> {
        if process_guids.is_empty() {
            return Ok(Vec::new());
        }
        let path = paths::ACTUAL_LRPS_BY_PROCESS_GUIDS;
        let request = ActualLrpsByProcessGuidsRequest { process_guids: process_guids.to_vec() };
        let response: ActualLrpsResponse = self.call(path, &request).await?;
        parse_all(path, response.actual_lrps)
    }

    /// Of one domain and one cell, where these are not empty. Deprecated, as all groups are.
    pub async fn actual_lrp_groups(&self, domain: &str, cell_id: &str) -> Result<Vec<ActualLrpGroup>> {
        let request = ActualLrpGroupsRequest { domain: domain.into(), cell_id: cell_id.into() };
        let response: ActualLrpGroupsResponse = self.call(paths::ACTUAL_LRP_GROUPS, &request).await?;
        parse_all(paths::ACTUAL_LRP_GROUPS, response.actual_lrp_groups)
    }

    pub async fn actual_lrp_groups_of(&self, process_guid: &str) -> Result<Vec<ActualLrpGroup>> {
        let path = paths::ACTUAL_LRP_GROUPS_BY_PROCESS_GUID;
        let request = ProcessGuidRequest { process_guid: process_guid.into() };
        let response: ActualLrpGroupsResponse = self.call(path, &request).await?;
        parse_all(path, response.actual_lrp_groups)
    }

    pub async fn actual_lrp_group(&self, process_guid: &str, index: u32) -> Result<ActualLrpGroup> {
        let request = ActualLrpGroupByProcessGuidAndIndexRequest::new(process_guid, index);
        let response: ActualLrpGroupResponse = self.call(paths::ACTUAL_LRP_GROUP, &request).await?;
        parse_one(paths::ACTUAL_LRP_GROUP, "actual_lrp_group", response.actual_lrp_group)
    }

    pub async fn claim_actual_lrp(&self, key: &ActualLrpKey, instance: &ActualLrpInstanceKey) -> Result<()> {
        let request = IndexedInstanceRequest::new(&key.process_guid, key.index, Some(instance));
        self.change(paths::CLAIM_ACTUAL_LRP, &request).await
    }

    pub async fn start_actual_lrp(
        &self,
        key: &ActualLrpKey,
        instance: &ActualLrpInstanceKey,
        started: &StartedLrp,
    ) -> Result<()> {
        let request = StartActualLrpRequest::from(started.of(key, instance));
        match self.change(paths::START_ACTUAL_LRP, &request).await {
            Err(error) if error.is_unknown_route() => {
                let request = StartActualLrpRequest::from(started.minimal(key, instance));
                self.change(paths::START_ACTUAL_LRP_R0, &request).await
            }
            result => result,
        }
    }

    pub async fn crash_actual_lrp(
        &self,
        key: &ActualLrpKey,
        instance: &ActualLrpInstanceKey,
        reason: &str,
    ) -> Result<()> {
        let request = CrashActualLrpRequest::new(key, instance, reason);
        self.change(paths::CRASH_ACTUAL_LRP, &request).await
    }

    /// An auction found no place for it.
    pub async fn fail_actual_lrp(&self, key: &ActualLrpKey, placement_error: &str) -> Result<()> {
        let request = FailActualLrpRequest {
            actual_lrp_key: Some(key.clone().into()),
            error_message: placement_error.to_string(),
        };
        self.change(paths::FAIL_ACTUAL_LRP, &request).await
    }

    /// Without an instance, whatever works on the key is removed.
    pub async fn remove_actual_lrp(
        &self,
        key: &ActualLrpKey,
        instance: Option<&ActualLrpInstanceKey>,
    ) -> Result<()> {
        let request = IndexedInstanceRequest::new(&key.process_guid, key.index, instance);
        self.change(paths::REMOVE_ACTUAL_LRP, &request).await
    }

    /// Stops an instance; the BBS starts another if it is still desired.
    pub async fn retire_actual_lrp(&self, key: &ActualLrpKey) -> Result<()> {
        let request = RetireActualLrpRequest { actual_lrp_key: Some(key.clone().into()) };
        self.change(paths::RETIRE_ACTUAL_LRP, &request).await
    }

    pub async fn remove_evacuating_actual_lrp(
        &self,
        key: &ActualLrpKey,
        instance: &ActualLrpInstanceKey,
    ) -> Result<()> {
        let request = InstanceRequest::new(key, instance);
        self.change(paths::REMOVE_EVACUATING_ACTUAL_LRP, &request).await
    }

    /// As the other evacuations, answers whether the cell keeps the container.
    pub async fn evacuate_claimed_actual_lrp(
        &self,
        key: &ActualLrpKey,
        instance: &ActualLrpInstanceKey,
    ) -> Result<bool> {
        self.evacuate(paths::EVACUATE_CLAIMED_ACTUAL_LRP, &InstanceRequest::new(key, instance)).await
    }

    pub async fn evacuate_crashed_actual_lrp(
        &self,
        key: &ActualLrpKey,
        instance: &ActualLrpInstanceKey,
        reason: &str,
    ) -> Result<bool> {
        let request = CrashActualLrpRequest::new(key, instance, reason);
        self.evacuate(paths::EVACUATE_CRASHED_ACTUAL_LRP, &request).await
    }

    pub async fn evacuate_stopped_actual_lrp(
        &self,
        key: &ActualLrpKey,
        instance: &ActualLrpInstanceKey,
    ) -> Result<bool> {
        self.evacuate(paths::EVACUATE_STOPPED_ACTUAL_LRP, &InstanceRequest::new(key, instance)).await
    }

    pub async fn evacuate_running_actual_lrp(
        &self,
        key: &ActualLrpKey,
        instance: &ActualLrpInstanceKey,
        started: &StartedLrp,
    ) -> Result<bool> {
        let request = EvacuateRunningActualLrpRequest::from(started.of(key, instance));
        match self.evacuate(paths::EVACUATE_RUNNING_ACTUAL_LRP, &request).await {
            Err(error) if error.is_unknown_route() => {
                let request = EvacuateRunningActualLrpRequest::from(started.minimal(key, instance));
                self.evacuate(paths::EVACUATE_RUNNING_ACTUAL_LRP_R0, &request).await
            }
            result => result,
        }
    }

    async fn evacuate(&self, path: &'static str, request: &impl Message) -> Result<bool> {
        let response: EvacuationResponse = self.call(path, request).await?;
        Ok(response.keep_container)
    }
}
