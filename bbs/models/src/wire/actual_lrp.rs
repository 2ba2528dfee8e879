//! ActualLRPs on the wire, where the state is a text and every field is always there.

use std::collections::BTreeMap;

use prost::Message;
use serde::{Deserialize, Serialize};

use super::json::*;
use super::{Invalid, ModificationTag};
use crate as models;

#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct ActualLrpKey {
    #[prost(string, tag = "1")]
    pub process_guid: String,
    #[prost(int32, tag = "2")]
    pub index: i32,
    #[prost(string, tag = "3")]
    pub domain: String,
}

#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct ActualLrpInstanceKey {
    #[prost(string, tag = "1")]
    pub instance_guid: String,
    #[prost(string, tag = "2")]
    pub cell_id: String,
}

#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct PortMapping {
    #[prost(uint32, tag = "1")]
    pub container_port: u32,
    #[prost(uint32, tag = "2")]
    pub host_port: u32,
    #[prost(uint32, tag = "3")]
    pub container_tls_proxy_port: u32,
    #[prost(uint32, tag = "4")]
    pub host_tls_proxy_port: u32,
}

#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct ActualLrpNetInfo {
    #[prost(string, tag = "1")]
    pub address: String,
    #[prost(message, repeated, tag = "2")]
    #[serde(with = "null_or_list")]
    pub ports: Vec<PortMapping>,
    #[prost(string, tag = "3")]
    #[serde(skip_serializing_if = "is_default")]
    pub instance_address: String,
    /// 0 unknown, 1 instance, 2 host.
    #[prost(int32, tag = "4")]
    #[serde(with = "preferred_address")]
    pub preferred_address: i32,
    #[prost(string, tag = "5")]
    #[serde(skip_serializing_if = "is_default")]
    pub instance_ipv6_address: String,
}

#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct ActualLrpInternalRoute {
    #[prost(string, tag = "1")]
    pub hostname: String,
}

/// The first three and the modification tag are always written, even if empty.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct ActualLrp {
    #[prost(message, required, tag = "1")]
    #[serde(flatten)]
    pub actual_lrp_key: ActualLrpKey,
    #[prost(message, required, tag = "2")]
    #[serde(flatten)]
    pub actual_lrp_instance_key: ActualLrpInstanceKey,
    #[prost(message, required, tag = "3")]
    #[serde(flatten)]
    pub actual_lrp_net_info: ActualLrpNetInfo,
    #[prost(int32, tag = "4")]
    pub crash_count: i32,
    #[prost(string, tag = "5")]
    #[serde(skip_serializing_if = "is_default")]
    pub crash_reason: String,
    #[prost(string, tag = "6")]
    pub state: String,
    #[prost(string, tag = "7")]
    #[serde(skip_serializing_if = "is_default")]
    pub placement_error: String,
    #[prost(int64, tag = "8")]
    pub since: i64,
    #[prost(message, required, tag = "9")]
    pub modification_tag: ModificationTag,
    /// 0 ordinary, 1 evacuating, 2 suspect.
    #[prost(int32, tag = "10")]
    #[serde(with = "presence")]
    pub presence: i32,
    #[prost(message, repeated, tag = "11")]
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub actual_lrp_internal_routes: Vec<ActualLrpInternalRoute>,
    #[prost(btree_map = "string, string", tag = "12")]
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub metric_tags: BTreeMap<String, String>,
    #[prost(bool, optional, tag = "13")]
    #[serde(rename = "OptionalRoutable", with = "routable")]
    pub routable: Option<bool>,
    #[prost(string, tag = "14")]
    pub availability_zone: String,
}

/// The part of an ActualLRP that an instance-changed event carries.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct ActualLrpInfo {
    #[prost(message, required, tag = "3")]
    #[serde(flatten)]
    pub actual_lrp_net_info: ActualLrpNetInfo,
    #[prost(int32, tag = "4")]
    pub crash_count: i32,
    #[prost(string, tag = "5")]
    #[serde(skip_serializing_if = "is_default")]
    pub crash_reason: String,
    #[prost(string, tag = "6")]
    pub state: String,
    #[prost(string, tag = "7")]
    #[serde(skip_serializing_if = "is_default")]
    pub placement_error: String,
    #[prost(int64, tag = "8")]
    pub since: i64,
    #[prost(message, required, tag = "9")]
    pub modification_tag: ModificationTag,
    #[prost(int32, tag = "10")]
    #[serde(with = "presence")]
    pub presence: i32,
    #[prost(bool, optional, tag = "11")]
    #[serde(rename = "OptionalRoutable", with = "changed_routable")]
    pub routable: Option<bool>,
    #[prost(string, tag = "12")]
    pub availability_zone: String,
}

#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct ActualLrpGroup {
    #[prost(message, optional, tag = "1")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance: Option<ActualLrp>,
    #[prost(message, optional, tag = "2")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub evacuating: Option<ActualLrp>,
}

impl TryFrom<ActualLrpKey> for models::ActualLrpKey {
    type Error = Invalid;

    fn try_from(wire: ActualLrpKey) -> Result<Self, Invalid> {
        let mut invalid = Invalid::default();
        invalid.require(!wire.process_guid.is_empty(), "process_guid");
        let index = invalid.unsigned("index", wire.index);
        invalid.require(!wire.domain.is_empty(), "domain");
        invalid.or(Self { process_guid: wire.process_guid, index, domain: wire.domain })
    }
}

impl From<models::ActualLrpKey> for ActualLrpKey {
    fn from(key: models::ActualLrpKey) -> Self {
        Self { process_guid: key.process_guid, index: wire_unsigned(key.index), domain: key.domain }
    }
}

/// Quantities above `i32::MAX` cannot be parsed, so only a caller that computes one can meet the cap.
pub(super) fn wire_unsigned(value: u32) -> i32 {
    i32::try_from(value).unwrap_or(i32::MAX)
}

impl TryFrom<ActualLrpInstanceKey> for models::ActualLrpInstanceKey {
    type Error = Invalid;

    fn try_from(wire: ActualLrpInstanceKey) -> Result<Self, Invalid> {
        let mut invalid = Invalid::default();
        invalid.require(!wire.cell_id.is_empty(), "cell_id");
        invalid.require(!wire.instance_guid.is_empty(), "instance_guid");
        invalid.or(Self { instance_guid: wire.instance_guid, cell_id: wire.cell_id })
    }
}

impl From<models::ActualLrpInstanceKey> for ActualLrpInstanceKey {
    fn from(key: models::ActualLrpInstanceKey) -> Self {
        Self { instance_guid: key.instance_guid, cell_id: key.cell_id }
    }
}

impl TryFrom<PortMapping> for models::PortMapping {
    type Error = Invalid;

    fn try_from(wire: PortMapping) -> Result<Self, Invalid> {
        let port = |port: u32| u16::try_from(port).map_err(|_| Invalid::field("ports"));
        let some = |number: u32| Ok::<_, Invalid>(Some(port(number)?).filter(|&port| port > 0));
        Ok(Self {
            container_port: port(wire.container_port)?,
            host_port: port(wire.host_port)?,
            container_tls_proxy_port: some(wire.container_tls_proxy_port)?,
            host_tls_proxy_port: some(wire.host_tls_proxy_port)?,
        })
    }
}

impl From<models::PortMapping> for PortMapping {
    fn from(mapping: models::PortMapping) -> Self {
        Self {
            container_port: mapping.container_port.into(),
            host_port: mapping.host_port.into(),
            container_tls_proxy_port: mapping.container_tls_proxy_port.unwrap_or(0).into(),
            host_tls_proxy_port: mapping.host_tls_proxy_port.unwrap_or(0).into(),
        }
    }
}

/// Does not ask for an address: a request that reports one does.
impl TryFrom<ActualLrpNetInfo> for models::ActualLrpNetInfo {
    type Error = Invalid;

    fn try_from(wire: ActualLrpNetInfo) -> Result<Self, Invalid> {
        let mut invalid = Invalid::default();
        let ports = invalid.list(None, wire.ports);
        invalid.or(Self {
            address: wire.address,
            ports,
            instance_address: wire.instance_address,
            instance_ipv6_address: wire.instance_ipv6_address,
            preferred_address: match wire.preferred_address {
                1 => models::PreferredAddress::Instance,
                2 => models::PreferredAddress::Host,
                _ => models::PreferredAddress::Unknown,
            },
        })
    }
}

impl From<models::ActualLrpNetInfo> for ActualLrpNetInfo {
    fn from(net_info: models::ActualLrpNetInfo) -> Self {
        Self {
            address: net_info.address,
            ports: net_info.ports.into_iter().map(Into::into).collect(),
            instance_address: net_info.instance_address,
            preferred_address: match net_info.preferred_address {
                models::PreferredAddress::Unknown => 0,
                models::PreferredAddress::Instance => 1,
                models::PreferredAddress::Host => 2,
            },
            instance_ipv6_address: net_info.instance_ipv6_address,
        }
    }
}

impl TryFrom<ActualLrp> for models::ActualLrp {
    type Error = Invalid;

    fn try_from(wire: ActualLrp) -> Result<Self, Invalid> {
        let info = ActualLrpInfo {
            actual_lrp_net_info: wire.actual_lrp_net_info,
            crash_count: wire.crash_count,
            crash_reason: wire.crash_reason,
            state: wire.state,
            placement_error: wire.placement_error,
            since: wire.since,
            modification_tag: wire.modification_tag,
            presence: wire.presence,
            routable: wire.routable,
            availability_zone: wire.availability_zone,
        };
        let lrp = info.with_keys(wire.actual_lrp_key.try_into()?, wire.actual_lrp_instance_key)?;
        Ok(Self {
            internal_routes: wire
                .actual_lrp_internal_routes
                .into_iter()
                .map(|route| route.hostname)
                .collect(),
            metric_tags: wire.metric_tags,
            ..lrp
        })
    }
}

impl ActualLrpInfo {
    /// The whole, but for internal routes and metric tags. `instance` is used in the states that have one.
    pub(super) fn with_keys(
        self,
        key: models::ActualLrpKey,
        instance: ActualLrpInstanceKey,
    ) -> Result<models::ActualLrp, Invalid> {
        let mut invalid = Invalid::default();
        let state = match self.state.as_str() {
            "UNCLAIMED" => models::ActualLrpState::Unclaimed { placement_error: self.placement_error },
            "CLAIMED" => models::ActualLrpState::Claimed { instance: instance.try_into()? },
            "RUNNING" => models::ActualLrpState::Running {
                instance: instance.try_into()?,
                net_info: self.actual_lrp_net_info.try_into()?,
            },
            "CRASHED" => models::ActualLrpState::Crashed,
            _ => return Err(Invalid::field("state")),
        };
        let crash_count = invalid.unsigned("crash_count", self.crash_count);
        let presence = match self.presence {
            0 => models::Presence::Ordinary,
            1 => models::Presence::Evacuating,
            2 => models::Presence::Suspect,
            _ => return Err(Invalid::field("presence")),
        };
        invalid.or(models::ActualLrp {
            key,
            state,
            presence,
            crash_count,
            crash_reason: self.crash_reason,
            since_ns: self.since,
            modification_tag: self.modification_tag.into(),
            internal_routes: Vec::new(),
            metric_tags: BTreeMap::new(),
            routable: self.routable,
            availability_zone: self.availability_zone,
        })
    }
}

impl From<models::ActualLrp> for ActualLrp {
    fn from(lrp: models::ActualLrp) -> Self {
        let instance = lrp.instance().cloned().map(Into::into).unwrap_or_default();
        let key = lrp.key.clone().into();
        let routes =
            lrp.internal_routes.iter().map(|hostname| ActualLrpInternalRoute { hostname: hostname.clone() });
        let routes = routes.collect();
        let metric_tags = lrp.metric_tags.clone();
        let info = ActualLrpInfo::from(lrp);
        Self {
            actual_lrp_key: key,
            actual_lrp_instance_key: instance,
            actual_lrp_net_info: info.actual_lrp_net_info,
            crash_count: info.crash_count,
            crash_reason: info.crash_reason,
            state: info.state,
            placement_error: info.placement_error,
            since: info.since,
            modification_tag: info.modification_tag,
            presence: info.presence,
            actual_lrp_internal_routes: routes,
            metric_tags,
            routable: info.routable,
            availability_zone: info.availability_zone,
        }
    }
}

impl From<models::ActualLrp> for ActualLrpInfo {
    fn from(lrp: models::ActualLrp) -> Self {
        let state = lrp.state.name().to_string();
        let (net_info, placement_error) = match lrp.state {
            models::ActualLrpState::Running { net_info, .. } => (net_info.into(), String::new()),
            models::ActualLrpState::Unclaimed { placement_error } => (Default::default(), placement_error),
            models::ActualLrpState::Claimed { .. } | models::ActualLrpState::Crashed => Default::default(),
        };
        Self {
            actual_lrp_net_info: net_info,
            crash_count: wire_unsigned(lrp.crash_count),
            crash_reason: lrp.crash_reason,
            state,
            placement_error,
            since: lrp.since_ns,
            modification_tag: lrp.modification_tag.into(),
            presence: match lrp.presence {
                models::Presence::Ordinary => 0,
                models::Presence::Evacuating => 1,
                models::Presence::Suspect => 2,
            },
            routable: lrp.routable,
            availability_zone: lrp.availability_zone,
        }
    }
}

impl TryFrom<ActualLrpGroup> for models::ActualLrpGroup {
    type Error = Invalid;

    fn try_from(wire: ActualLrpGroup) -> Result<Self, Invalid> {
        Ok(Self {
            instance: wire.instance.map(TryInto::try_into).transpose()?,
            evacuating: wire.evacuating.map(TryInto::try_into).transpose()?,
        })
    }
}

impl From<models::ActualLrpGroup> for ActualLrpGroup {
    fn from(group: models::ActualLrpGroup) -> Self {
        Self { instance: group.instance.map(Into::into), evacuating: group.evacuating.map(Into::into) }
    }
}
