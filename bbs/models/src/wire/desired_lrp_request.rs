//! Requests and responses about DesiredLRPs.

use prost::Message;

use super::{DesiredLrp, DesiredLrpSchedulingInfo, DesiredLrpUpdate, Error, Invalid};
use crate as models;

#[derive(Clone, PartialEq, Message)]
pub struct DesiredLrpsRequest {
    #[prost(string, tag = "1")]
    pub domain: String,
    #[prost(string, repeated, tag = "2")]
    pub process_guids: Vec<String>,
    #[prost(string, repeated, tag = "3")]
    pub app_guids: Vec<String>,
}

impl DesiredLrpsRequest {
    pub fn parse(self) -> Result<models::DesiredLrpFilter, Invalid> {
        let (domain, process_guids, app_guids) = (self.domain, self.process_guids, self.app_guids);
        Ok(models::DesiredLrpFilter { domain, process_guids, app_guids })
    }
}

impl From<models::DesiredLrpFilter> for DesiredLrpsRequest {
    fn from(filter: models::DesiredLrpFilter) -> Self {
        Self { domain: filter.domain, process_guids: filter.process_guids, app_guids: filter.app_guids }
    }
}

#[derive(Clone, PartialEq, Message)]
pub struct DesiredLrpsResponse {
    #[prost(message, optional, tag = "1")]
    pub error: Option<Error>,
    #[prost(message, repeated, tag = "2")]
    pub desired_lrps: Vec<DesiredLrp>,
}

#[derive(Clone, PartialEq, Message)]
pub struct DesiredLrpResponse {
    #[prost(message, optional, tag = "1")]
    pub error: Option<Error>,
    #[prost(message, optional, tag = "2")]
    pub desired_lrp: Option<DesiredLrp>,
}

#[derive(Clone, PartialEq, Message)]
pub struct DesiredLrpSchedulingInfosResponse {
    #[prost(message, optional, tag = "1")]
    pub error: Option<Error>,
    #[prost(message, repeated, tag = "2")]
    pub desired_lrp_scheduling_infos: Vec<DesiredLrpSchedulingInfo>,
}

/// DesiredLRPSchedulingInfoByProcessGuidResponse.
#[derive(Clone, PartialEq, Message)]
pub struct DesiredLrpSchedulingInfoResponse {
    #[prost(message, optional, tag = "1")]
    pub error: Option<Error>,
    #[prost(message, optional, tag = "2")]
    pub desired_lrp_scheduling_info: Option<DesiredLrpSchedulingInfo>,
}

/// DesiredLRPByProcessGuidRequest, RemoveDesiredLRPRequest and ActualLRPGroupsByProcessGuidRequest.
#[derive(Clone, PartialEq, Message)]
pub struct ProcessGuidRequest {
    #[prost(string, tag = "1")]
    pub process_guid: String,
}

impl ProcessGuidRequest {
    pub fn parse(self) -> Result<String, Invalid> {
        let mut invalid = Invalid::default();
        invalid.require(!self.process_guid.is_empty(), "process_guid");
        invalid.or(self.process_guid)
    }
}

#[derive(Clone, PartialEq, Message)]
pub struct DesireLrpRequest {
    #[prost(message, optional, tag = "1")]
    pub desired_lrp: Option<DesiredLrp>,
}

impl DesireLrpRequest {
    pub fn parse(self) -> Result<models::DesiredLrp, Invalid> {
        self.desired_lrp.ok_or_else(|| Invalid::field("desired_lrp"))?.try_into()
    }
}

#[derive(Clone, PartialEq, Message)]
pub struct UpdateDesiredLrpRequest {
    #[prost(string, tag = "1")]
    pub process_guid: String,
    #[prost(message, optional, tag = "2")]
    pub update: Option<DesiredLrpUpdate>,
}

impl UpdateDesiredLrpRequest {
    pub fn parse(self) -> Result<(String, models::DesiredLrpUpdate), Invalid> {
        let mut invalid = Invalid::default();
        invalid.require(!self.process_guid.is_empty(), "process_guid");
        let update = self.update.and_then(|update| invalid.take(update.try_into()));
        invalid.or((self.process_guid, update.unwrap_or_default()))
    }
}
