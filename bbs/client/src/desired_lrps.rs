//! The BBS's calls about DesiredLRPs.

use bbs_models::wire::{
    DesireLrpRequest, DesiredLrpResponse, DesiredLrpSchedulingInfoResponse,
    DesiredLrpSchedulingInfosResponse, DesiredLrpsRequest, DesiredLrpsResponse, ProcessGuidRequest,
    UpdateDesiredLrpRequest,
};
use bbs_models::{DesiredLrp, DesiredLrpFilter, DesiredLrpUpdate, RoutingInfo, SchedulingInfo};

use crate::client::{Result, parse_all, parse_one};
use crate::{BbsClient, paths};

impl BbsClient {
    pub async fn desired_lrps(&self, filter: &DesiredLrpFilter) -> Result<Vec<DesiredLrp>> {
        let request = DesiredLrpsRequest::from(filter.clone());
        let response: DesiredLrpsResponse = self.call(paths::DESIRED_LRPS, &request).await?;
        parse_all(paths::DESIRED_LRPS, response.desired_lrps)
    }

    pub async fn desired_lrp_by_process_guid(&self, process_guid: &str) -> Result<DesiredLrp> {
        let request = ProcessGuidRequest { process_guid: process_guid.to_string() };
        let response: DesiredLrpResponse = self.call(paths::DESIRED_LRP, &request).await?;
        parse_one(paths::DESIRED_LRP, "desired_lrp", response.desired_lrp)
    }

    pub async fn scheduling_infos(&self, filter: &DesiredLrpFilter) -> Result<Vec<SchedulingInfo>> {
        let request = DesiredLrpsRequest::from(filter.clone());
        let response: DesiredLrpSchedulingInfosResponse =
            self.call(paths::SCHEDULING_INFOS, &request).await?;
        parse_all(paths::SCHEDULING_INFOS, response.desired_lrp_scheduling_infos)
    }

    pub async fn scheduling_info_by_process_guid(&self, process_guid: &str) -> Result<SchedulingInfo> {
        let request = ProcessGuidRequest { process_guid: process_guid.to_string() };
        let response: DesiredLrpSchedulingInfoResponse = self.call(paths::SCHEDULING_INFO, &request).await?;
        parse_one(paths::SCHEDULING_INFO, "desired_lrp_scheduling_info", response.desired_lrp_scheduling_info)
    }

    pub async fn routing_infos(&self, filter: &DesiredLrpFilter) -> Result<Vec<RoutingInfo>> {
        let request = DesiredLrpsRequest::from(filter.clone());
        let response: DesiredLrpsResponse = self.call(paths::ROUTING_INFOS, &request).await?;
        parse_all(paths::ROUTING_INFOS, response.desired_lrps)
    }

    pub async fn desire_lrp(&self, lrp: &DesiredLrp) -> Result<()> {
        let request = DesireLrpRequest { desired_lrp: Some(lrp.clone().into()) };
        self.change(paths::DESIRE_LRP, &request).await
    }

    pub async fn update_desired_lrp(&self, process_guid: &str, update: &DesiredLrpUpdate) -> Result<()> {
        let request = UpdateDesiredLrpRequest {
            process_guid: process_guid.to_string(),
            update: Some(update.clone().into()),
        };
        self.change(paths::UPDATE_DESIRED_LRP, &request).await
    }

    pub async fn remove_desired_lrp(&self, process_guid: &str) -> Result<()> {
        let request = ProcessGuidRequest { process_guid: process_guid.to_string() };
        self.change(paths::REMOVE_DESIRED_LRP, &request).await
    }
}
