//! Requests and responses about ActualLRPs, evacuation included.

use std::collections::BTreeMap;

use prost::Message;

use super::actual_lrp::wire_unsigned;
use super::{
    ActualLrp, ActualLrpGroup, ActualLrpInstanceKey, ActualLrpInternalRoute, ActualLrpKey, ActualLrpNetInfo,
    Error, Invalid,
};
use crate as models;

#[derive(Clone, PartialEq, Message)]
pub struct ActualLrpsRequest {
    #[prost(string, tag = "1")]
    pub domain: String,
    #[prost(string, tag = "2")]
    pub cell_id: String,
    #[prost(string, tag = "3")]
    pub process_guid: String,
    #[prost(int32, optional, tag = "4")]
    pub index: Option<i32>,
}

impl ActualLrpsRequest {
    pub fn parse(self) -> Result<models::ActualLrpFilter, Invalid> {
        let (domain, cell_id, process_guid) = (self.domain, self.cell_id, self.process_guid);
        Ok(models::ActualLrpFilter { domain, cell_id, process_guid, index: self.index.map(index_or_nobodys) })
    }
}

impl From<models::ActualLrpFilter> for ActualLrpsRequest {
    fn from(filter: models::ActualLrpFilter) -> Self {
        Self {
            domain: filter.domain,
            cell_id: filter.cell_id,
            process_guid: filter.process_guid,
            index: filter.index.map(wire_unsigned),
        }
    }
}

/// A negative index is nobody's: so is one that no instance can have.
fn index_or_nobodys(index: i32) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

/// ActualLRPsResponse and ActualLRPsByProcessGuidsResponse.
#[derive(Clone, PartialEq, Message)]
pub struct ActualLrpsResponse {
    #[prost(message, optional, tag = "1")]
    pub error: Option<Error>,
    #[prost(message, repeated, tag = "2")]
    pub actual_lrps: Vec<ActualLrp>,
}

#[derive(Clone, PartialEq, Message)]
pub struct ActualLrpsByProcessGuidsRequest {
    #[prost(string, repeated, tag = "1")]
    pub process_guids: Vec<String>,
}

impl ActualLrpsByProcessGuidsRequest {
    pub fn parse(self) -> Result<Vec<String>, Invalid> {
        let mut invalid = Invalid::default();
        if self.process_guids.is_empty() {
            invalid.add("process_guids must not be empty");
        }
        invalid.or(self.process_guids)
    }
}

#[derive(Clone, PartialEq, Message)]
pub struct ActualLrpGroupsRequest {
    #[prost(string, tag = "1")]
    pub domain: String,
    #[prost(string, tag = "2")]
    pub cell_id: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct ActualLrpGroupByProcessGuidAndIndexRequest {
    #[prost(string, tag = "1")]
    pub process_guid: String,
    #[prost(int32, tag = "2")]
    pub index: i32,
}

impl ActualLrpGroupByProcessGuidAndIndexRequest {
    pub fn new(process_guid: &str, index: u32) -> Self {
        Self { process_guid: process_guid.to_string(), index: wire_unsigned(index) }
    }

    pub fn parse(self) -> Result<(String, u32), Invalid> {
        let mut invalid = Invalid::default();
        invalid.require(!self.process_guid.is_empty(), "process_guid");
        let index = invalid.unsigned("index", self.index);
        invalid.or((self.process_guid, index))
    }
}

#[derive(Clone, PartialEq, Message)]
pub struct ActualLrpGroupsResponse {
    #[prost(message, optional, tag = "1")]
    pub error: Option<Error>,
    #[prost(message, repeated, tag = "2")]
    pub actual_lrp_groups: Vec<ActualLrpGroup>,
}

#[derive(Clone, PartialEq, Message)]
pub struct ActualLrpGroupResponse {
    #[prost(message, optional, tag = "1")]
    pub error: Option<Error>,
    #[prost(message, optional, tag = "2")]
    pub actual_lrp_group: Option<ActualLrpGroup>,
}

/// ClaimActualLRPRequest and RemoveActualLRPRequest.
#[derive(Clone, PartialEq, Message)]
pub struct IndexedInstanceRequest {
    #[prost(string, tag = "1")]
    pub process_guid: String,
    #[prost(int32, tag = "2")]
    pub index: i32,
    #[prost(message, optional, tag = "3")]
    pub actual_lrp_instance_key: Option<ActualLrpInstanceKey>,
}

impl IndexedInstanceRequest {
    pub fn new(process_guid: &str, index: u32, instance: Option<&models::ActualLrpInstanceKey>) -> Self {
        Self {
            process_guid: process_guid.to_string(),
            index: wire_unsigned(index),
            actual_lrp_instance_key: instance.cloned().map(Into::into),
        }
    }

    pub fn parse_claim(self) -> Result<(String, u32, models::ActualLrpInstanceKey), Invalid> {
        let mut invalid = Invalid::default();
        invalid.require(!self.process_guid.is_empty(), "process_guid");
        let index = index_or_nobodys(self.index);
        match take_instance(&mut invalid, self.actual_lrp_instance_key) {
            Some(instance) => invalid.or((self.process_guid, index, instance)),
            None => Err(invalid),
        }
    }

    /// Without an instance, whatever works on the index is removed.
    pub fn parse_remove(self) -> Result<(String, u32, Option<models::ActualLrpInstanceKey>), Invalid> {
        let mut invalid = Invalid::default();
        invalid.require(!self.process_guid.is_empty(), "process_guid");
        let index = invalid.unsigned("index", self.index);
        let instance = self.actual_lrp_instance_key.filter(|key| *key != ActualLrpInstanceKey::default());
        let instance = instance.and_then(|key| invalid.take(key.try_into()));
        invalid.or((self.process_guid, index, instance))
    }
}

fn take_key(invalid: &mut Invalid, wire: Option<ActualLrpKey>) -> Option<models::ActualLrpKey> {
    match wire {
        Some(key) => invalid.take(key.try_into()),
        None => {
            invalid.add_field("actual_lrp_key");
            None
        }
    }
}

fn take_instance(
    invalid: &mut Invalid,
    wire: Option<ActualLrpInstanceKey>,
) -> Option<models::ActualLrpInstanceKey> {
    match wire {
        Some(key) => invalid.take(key.try_into()),
        None => {
            invalid.add_field("actual_lrp_instance_key");
            None
        }
    }
}

fn take_net_info(invalid: &mut Invalid, wire: Option<ActualLrpNetInfo>) -> Option<models::ActualLrpNetInfo> {
    match wire {
        Some(net_info) if !net_info.address.is_empty() => invalid.take(net_info.try_into()),
        Some(_) => {
            invalid.add_field("address");
            None
        }
        None => {
            invalid.add_field("actual_lrp_net_info");
            None
        }
    }
}

#[derive(Clone, PartialEq, Message)]
pub struct StartActualLrpRequest {
    #[prost(message, optional, tag = "1")]
    pub actual_lrp_key: Option<ActualLrpKey>,
    #[prost(message, optional, tag = "2")]
    pub actual_lrp_instance_key: Option<ActualLrpInstanceKey>,
    #[prost(message, optional, tag = "3")]
    pub actual_lrp_net_info: Option<ActualLrpNetInfo>,
    #[prost(message, repeated, tag = "4")]
    pub actual_lrp_internal_routes: Vec<ActualLrpInternalRoute>,
    #[prost(btree_map = "string, string", tag = "5")]
    pub metric_tags: BTreeMap<String, String>,
    #[prost(bool, optional, tag = "6")]
    pub routable: Option<bool>,
    #[prost(string, tag = "7")]
    pub availability_zone: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct EvacuateRunningActualLrpRequest {
    #[prost(message, optional, tag = "1")]
    pub actual_lrp_key: Option<ActualLrpKey>,
    #[prost(message, optional, tag = "2")]
    pub actual_lrp_instance_key: Option<ActualLrpInstanceKey>,
    #[prost(message, optional, tag = "3")]
    pub actual_lrp_net_info: Option<ActualLrpNetInfo>,
    #[prost(message, repeated, tag = "5")]
    pub actual_lrp_internal_routes: Vec<ActualLrpInternalRoute>,
    #[prost(btree_map = "string, string", tag = "6")]
    pub metric_tags: BTreeMap<String, String>,
    #[prost(bool, optional, tag = "7")]
    pub routable: Option<bool>,
    #[prost(string, tag = "8")]
    pub availability_zone: String,
}

impl StartActualLrpRequest {
    pub fn parse(self) -> Result<models::RunningInstance, Invalid> {
        let mut invalid = Invalid::default();
        let key = take_key(&mut invalid, self.actual_lrp_key);
        let instance = take_instance(&mut invalid, self.actual_lrp_instance_key);
        let net_info = take_net_info(&mut invalid, self.actual_lrp_net_info);
        match (key, instance, net_info) {
            (Some(key), Some(instance), Some(net_info)) => invalid.or(models::RunningInstance {
                key,
                instance,
                net_info,
                internal_routes: self
                    .actual_lrp_internal_routes
                    .into_iter()
                    .map(|route| route.hostname)
                    .collect(),
                metric_tags: self.metric_tags,
                routable: self.routable,
                availability_zone: self.availability_zone,
            }),
            _ => Err(invalid),
        }
    }
}

impl EvacuateRunningActualLrpRequest {
    pub fn parse(self) -> Result<models::RunningInstance, Invalid> {
        let start = StartActualLrpRequest {
            actual_lrp_key: self.actual_lrp_key,
            actual_lrp_instance_key: self.actual_lrp_instance_key,
            actual_lrp_net_info: self.actual_lrp_net_info,
            actual_lrp_internal_routes: self.actual_lrp_internal_routes,
            metric_tags: self.metric_tags,
            routable: self.routable,
            availability_zone: self.availability_zone,
        };
        start.parse()
    }
}

impl From<models::RunningInstance> for StartActualLrpRequest {
    fn from(running: models::RunningInstance) -> Self {
        let route = |hostname| ActualLrpInternalRoute { hostname };
        Self {
            actual_lrp_key: Some(running.key.into()),
            actual_lrp_instance_key: Some(running.instance.into()),
            actual_lrp_net_info: Some(running.net_info.into()),
            actual_lrp_internal_routes: running.internal_routes.into_iter().map(route).collect(),
            metric_tags: running.metric_tags,
            routable: running.routable,
            availability_zone: running.availability_zone,
        }
    }
}

impl From<models::RunningInstance> for EvacuateRunningActualLrpRequest {
    fn from(running: models::RunningInstance) -> Self {
        let start = StartActualLrpRequest::from(running);
        Self {
            actual_lrp_key: start.actual_lrp_key,
            actual_lrp_instance_key: start.actual_lrp_instance_key,
            actual_lrp_net_info: start.actual_lrp_net_info,
            actual_lrp_internal_routes: start.actual_lrp_internal_routes,
            metric_tags: start.metric_tags,
            routable: start.routable,
            availability_zone: start.availability_zone,
        }
    }
}

/// CrashActualLRPRequest and EvacuateCrashedActualLRPRequest.
#[derive(Clone, PartialEq, Message)]
pub struct CrashActualLrpRequest {
    #[prost(message, optional, tag = "1")]
    pub actual_lrp_key: Option<ActualLrpKey>,
    #[prost(message, optional, tag = "2")]
    pub actual_lrp_instance_key: Option<ActualLrpInstanceKey>,
    #[prost(string, tag = "3")]
    pub error_message: String,
}

impl CrashActualLrpRequest {
    pub fn new(
        key: &models::ActualLrpKey,
        instance: &models::ActualLrpInstanceKey,
        error_message: &str,
    ) -> Self {
        Self {
            actual_lrp_key: Some(key.clone().into()),
            actual_lrp_instance_key: Some(instance.clone().into()),
            error_message: error_message.to_string(),
        }
    }

    pub fn parse_crash(
        self,
    ) -> Result<(models::ActualLrpKey, models::ActualLrpInstanceKey, String), Invalid> {
        let keys = InstanceRequest {
            actual_lrp_key: self.actual_lrp_key,
            actual_lrp_instance_key: self.actual_lrp_instance_key,
        };
        let (key, instance) = keys.parse()?;
        Ok((key, instance, self.error_message))
    }

    /// An evacuated crash must say why.
    pub fn parse_evacuate(
        self,
    ) -> Result<(models::ActualLrpKey, models::ActualLrpInstanceKey, String), Invalid> {
        let mut invalid = Invalid::default();
        let has_message = !self.error_message.is_empty();
        let parsed = invalid.take(self.parse_crash());
        invalid.require(has_message, "error_message");
        match parsed {
            Some(parsed) => invalid.or(parsed),
            None => Err(invalid),
        }
    }
}

/// EvacuateClaimed-, EvacuateStopped- and RemoveEvacuatingActualLRPRequest.
#[derive(Clone, PartialEq, Message)]
pub struct InstanceRequest {
    #[prost(message, optional, tag = "1")]
    pub actual_lrp_key: Option<ActualLrpKey>,
    #[prost(message, optional, tag = "2")]
    pub actual_lrp_instance_key: Option<ActualLrpInstanceKey>,
}

impl InstanceRequest {
    pub fn new(key: &models::ActualLrpKey, instance: &models::ActualLrpInstanceKey) -> Self {
        Self {
            actual_lrp_key: Some(key.clone().into()),
            actual_lrp_instance_key: Some(instance.clone().into()),
        }
    }

    pub fn parse(self) -> Result<(models::ActualLrpKey, models::ActualLrpInstanceKey), Invalid> {
        let mut invalid = Invalid::default();
        let key = take_key(&mut invalid, self.actual_lrp_key);
        let instance = take_instance(&mut invalid, self.actual_lrp_instance_key);
        key.zip(instance).ok_or(invalid)
    }
}

#[derive(Clone, PartialEq, Message)]
pub struct FailActualLrpRequest {
    #[prost(message, optional, tag = "1")]
    pub actual_lrp_key: Option<ActualLrpKey>,
    #[prost(string, tag = "2")]
    pub error_message: String,
}

impl FailActualLrpRequest {
    pub fn parse(self) -> Result<(models::ActualLrpKey, String), Invalid> {
        let mut invalid = Invalid::default();
        let key = take_key(&mut invalid, self.actual_lrp_key);
        invalid.require(!self.error_message.is_empty(), "error_message");
        match key {
            Some(key) => invalid.or((key, self.error_message)),
            None => Err(invalid),
        }
    }
}

#[derive(Clone, PartialEq, Message)]
pub struct RetireActualLrpRequest {
    #[prost(message, optional, tag = "1")]
    pub actual_lrp_key: Option<ActualLrpKey>,
}

impl RetireActualLrpRequest {
    pub fn parse(self) -> Result<models::ActualLrpKey, Invalid> {
        let mut invalid = Invalid::default();
        take_key(&mut invalid, self.actual_lrp_key).ok_or(invalid)
    }
}

#[derive(Clone, PartialEq, Message)]
pub struct EvacuationResponse {
    #[prost(message, optional, tag = "1")]
    pub error: Option<Error>,
    #[prost(bool, tag = "2")]
    pub keep_container: bool,
}
