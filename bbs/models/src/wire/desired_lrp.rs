//! DesiredLRPs on the wire, their updates and views.

use std::collections::BTreeMap;

use prost::Message;
use serde::{Deserialize, Serialize};

use super::actual_lrp::wire_unsigned;
use super::image_layer::{CachedDependency, ImageLayer, parse_layers};
use super::json::*;
use super::part::*;
use super::routes::{ProtoRoutes, parse_routes};
use super::{Action, CheckDefinition, Invalid, SecurityGroupRule, VolumeMount, VolumePlacement};
use crate as models;

#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct DesiredLrp {
    #[prost(string, tag = "1")]
    pub process_guid: String,
    #[prost(string, tag = "2")]
    pub domain: String,
    #[prost(string, tag = "3")]
    #[serde(rename = "rootfs")]
    pub root_fs: String,
    #[prost(int32, tag = "4")]
    pub instances: i32,
    #[prost(message, repeated, tag = "5")]
    #[serde(rename = "env", with = "null_or_list")]
    pub environment_variables: Vec<EnvironmentVariable>,
    #[prost(message, optional, tag = "6")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub setup: Option<Action>,
    #[prost(message, optional, tag = "7")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action: Option<Action>,
    #[prost(int64, tag = "27")]
    pub start_timeout_ms: i64,
    /// Read by nobody since `start_timeout_ms`.
    #[prost(uint32, tag = "8")]
    #[serde(rename = "deprecated_timeout_ns", skip_serializing_if = "is_default")]
    pub deprecated_start_timeout_s: u32,
    #[prost(message, optional, tag = "9")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub monitor: Option<Action>,
    #[prost(int32, tag = "10")]
    pub disk_mb: i32,
    #[prost(int32, tag = "11")]
    pub memory_mb: i32,
    #[prost(uint32, tag = "12")]
    pub cpu_weight: u32,
    #[prost(bool, tag = "13")]
    pub privileged: bool,
    #[prost(uint32, repeated, packed = "false", tag = "14")]
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub ports: Vec<u32>,
    #[prost(message, optional, tag = "15")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub routes: Option<ProtoRoutes>,
    #[prost(string, tag = "16")]
    pub log_source: String,
    #[prost(string, tag = "17")]
    pub log_guid: String,
    /// Deprecated in favour of the metric tag `source_id`.
    #[prost(string, tag = "18")]
    pub metrics_guid: String,
    #[prost(string, tag = "19")]
    pub annotation: String,
    #[prost(message, repeated, tag = "20")]
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub egress_rules: Vec<SecurityGroupRule>,
    #[prost(message, optional, tag = "21")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub modification_tag: Option<ModificationTag>,
    #[prost(message, repeated, tag = "22")]
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub cached_dependencies: Vec<CachedDependency>,
    #[prost(string, tag = "23")]
    #[serde(skip_serializing_if = "is_default")]
    pub legacy_download_user: String,
    #[prost(string, tag = "24")]
    #[serde(skip_serializing_if = "is_default")]
    pub trusted_system_certificates_path: String,
    #[prost(message, repeated, tag = "25")]
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub volume_mounts: Vec<VolumeMount>,
    #[prost(message, optional, tag = "26")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<Network>,
    #[prost(string, repeated, tag = "28")]
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub placement_tags: Vec<String>,
    #[prost(int32, tag = "29")]
    pub max_pids: i32,
    #[prost(message, optional, tag = "30")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate_properties: Option<CertificateProperties>,
    #[prost(string, tag = "31")]
    #[serde(skip_serializing_if = "is_default")]
    pub image_username: String,
    #[prost(string, tag = "32")]
    #[serde(skip_serializing_if = "is_default")]
    pub image_password: String,
    #[prost(message, optional, tag = "33")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub check_definition: Option<CheckDefinition>,
    #[prost(message, repeated, tag = "34")]
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub image_layers: Vec<ImageLayer>,
    #[prost(btree_map = "string, message", tag = "35")]
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub metric_tags: BTreeMap<String, MetricTagValue>,
    #[prost(message, repeated, tag = "36")]
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub sidecars: Vec<Sidecar>,
    #[prost(message, optional, tag = "37")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_rate_limit: Option<LogRateLimit>,
    #[prost(message, repeated, tag = "38")]
    #[serde(with = "null_or_list")]
    pub volume_mounted_files: Vec<File>,
    /// 0 rolling, 1 recreate; a number in JSON too.
    #[prost(int32, tag = "39")]
    pub update_strategy: i32,
}

#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct Sidecar {
    #[prost(message, optional, tag = "1")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action: Option<Action>,
    #[prost(int32, tag = "2")]
    pub disk_mb: i32,
    #[prost(int32, tag = "3")]
    pub memory_mb: i32,
}

#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct DesiredLrpUpdate {
    #[prost(int32, optional, tag = "1")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instances: Option<i32>,
    #[prost(message, optional, tag = "2")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub routes: Option<ProtoRoutes>,
    #[prost(string, optional, tag = "3")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub annotation: Option<String>,
    /// Empty leaves the tags as they are.
    #[prost(btree_map = "string, message", tag = "4")]
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub metric_tags: BTreeMap<String, MetricTagValue>,
    #[prost(string, optional, tag = "5")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_username: Option<String>,
    #[prost(string, optional, tag = "6")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_password: Option<String>,
}

#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct DesiredLrpKey {
    #[prost(string, tag = "1")]
    pub process_guid: String,
    #[prost(string, tag = "2")]
    pub domain: String,
    #[prost(string, tag = "3")]
    pub log_guid: String,
}

#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct DesiredLrpResource {
    #[prost(int32, tag = "1")]
    pub memory_mb: i32,
    #[prost(int32, tag = "2")]
    pub disk_mb: i32,
    #[prost(string, tag = "3")]
    #[serde(rename = "rootfs")]
    pub root_fs: String,
    #[prost(int32, tag = "4")]
    pub max_pids: i32,
}

#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct DesiredLrpSchedulingInfo {
    #[prost(message, required, tag = "1")]
    #[serde(flatten)]
    pub desired_lrp_key: DesiredLrpKey,
    #[prost(string, tag = "2")]
    pub annotation: String,
    #[prost(int32, tag = "3")]
    pub instances: i32,
    #[prost(message, required, tag = "4")]
    #[serde(flatten)]
    pub desired_lrp_resource: DesiredLrpResource,
    #[prost(message, required, tag = "5")]
    pub routes: ProtoRoutes,
    #[prost(message, required, tag = "6")]
    #[serde(flatten)]
    pub modification_tag: ModificationTag,
    #[prost(message, optional, tag = "7")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume_placement: Option<VolumePlacement>,
    #[prost(string, repeated, tag = "8")]
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub placement_tags: Vec<String>,
}

impl TryFrom<DesiredLrp> for models::DesiredLrp {
    type Error = Invalid;

    fn try_from(wire: DesiredLrp) -> Result<Self, Invalid> {
        let mut invalid = Invalid::default();
        invalid.require(files_fit(&wire.volume_mounted_files), "volumeMountedFiles");
        invalid.require(!wire.domain.is_empty(), "domain");
        invalid.require(is_rootfs_url(&wire.root_fs), "rootfs");
        let instances = invalid.unsigned("instances", wire.instances);
        let memory_mb = invalid.unsigned("memory_mb", wire.memory_mb);
        let disk_mb = invalid.unsigned("disk_mb", wire.disk_mb);
        let log_rate_limit = wire.log_rate_limit.and_then(|limit| invalid.take(limit.try_into()));
        invalid.require(wire.annotation.len() <= models::ANNOTATION_BYTES_MAX, "annotation");
        let max_pids = invalid.unsigned("max_pids", wire.max_pids);
        let routes = wire.routes.and_then(|routes| invalid.take(parse_routes(routes))).unwrap_or_default();
        let metric_tags =
            invalid.take_field("metric_tags", parse_metric_tags(wire.metric_tags, &wire.metrics_guid));
        invalid.require(is_guid(&wire.process_guid), "process_guid");
        let setup = wire.setup.and_then(|action| invalid.take_field("setup", action.try_into()));
        let action = parse_action(&mut invalid, wire.action);
        let monitor = wire.monitor.and_then(|action| invalid.take_field("monitor", action.try_into()));
        let environment_variables = parse_environment(&mut invalid, wire.environment_variables);
        let ports = parse_ports(&mut invalid, wire.ports);
        let egress_rules = invalid.list(Some("egress_rules"), wire.egress_rules);
        let cached_dependencies = invalid.list(Some("cached_dependency"), wire.cached_dependencies);
        let image_layers = parse_layers(&mut invalid, wire.image_layers, &wire.legacy_download_user);
        let sidecars = invalid.list(Some("sidecars"), wire.sidecars);
        let volume_mounts = invalid.list(None, wire.volume_mounts);
        let image_credentials = parse_credentials(&mut invalid, wire.image_username, wire.image_password);
        let check_definition = wire
            .check_definition
            .and_then(|checks| invalid.take_field("check_definition", checks.try_into()));
        let Some(action) = action else { return Err(invalid) };
        invalid.or(Self {
            process_guid: wire.process_guid,
            domain: wire.domain,
            log_guid: wire.log_guid,
            rootfs: wire.root_fs,
            instances,
            memory_mb,
            disk_mb,
            max_pids,
            cpu_weight: wire.cpu_weight,
            privileged: wire.privileged,
            environment_variables,
            setup,
            action,
            monitor,
            sidecars,
            check_definition,
            start_timeout_ms: wire.start_timeout_ms,
            ports,
            routes,
            egress_rules,
            network: wire.network.map(Into::into),
            log_source: wire.log_source,
            metrics_guid: wire.metrics_guid,
            metric_tags: metric_tags.unwrap_or_default(),
            log_rate_limit,
            annotation: wire.annotation,
            placement_tags: wire.placement_tags,
            cached_dependencies,
            image_layers,
            image_credentials,
            legacy_download_user: wire.legacy_download_user,
            trusted_system_certificates_path: wire.trusted_system_certificates_path,
            volume_mounts,
            volume_mounted_files: wire.volume_mounted_files.into_iter().map(Into::into).collect(),
            certificate_properties: wire.certificate_properties.map(Into::into),
            update_strategy: match wire.update_strategy {
                1 => models::UpdateStrategy::Recreate,
                _ => models::UpdateStrategy::Rolling,
            },
            modification_tag: wire.modification_tag.map(Into::into).unwrap_or_default(),
        })
    }
}

/// The one action a recipe cannot do without.
pub(super) fn parse_action(invalid: &mut Invalid, wire: Option<Action>) -> Option<models::Action> {
    match wire {
        Some(action) => invalid.take_field("action", action.try_into()),
        None => {
            invalid.add("invalid action type");
            None
        }
    }
}

fn parse_ports(invalid: &mut Invalid, wire: Vec<u32>) -> Vec<u16> {
    let ports: Option<Vec<u16>> = wire.into_iter().map(|port| u16::try_from(port).ok()).collect();
    invalid.require(ports.is_some(), "ports");
    ports.unwrap_or_default()
}

impl From<models::DesiredLrp> for DesiredLrp {
    fn from(lrp: models::DesiredLrp) -> Self {
        let (image_username, image_password) = split_credentials(lrp.image_credentials);
        Self {
            process_guid: lrp.process_guid,
            domain: lrp.domain,
            root_fs: lrp.rootfs,
            instances: wire_unsigned(lrp.instances),
            environment_variables: lrp.environment_variables.into_iter().map(Into::into).collect(),
            setup: lrp.setup.map(Into::into),
            action: Some(lrp.action.into()),
            start_timeout_ms: lrp.start_timeout_ms,
            deprecated_start_timeout_s: 0,
            monitor: lrp.monitor.map(Into::into),
            disk_mb: wire_unsigned(lrp.disk_mb),
            memory_mb: wire_unsigned(lrp.memory_mb),
            cpu_weight: lrp.cpu_weight,
            privileged: lrp.privileged,
            ports: lrp.ports.into_iter().map(u32::from).collect(),
            routes: Some(lrp.routes.into()),
            log_source: lrp.log_source,
            log_guid: lrp.log_guid,
            metrics_guid: lrp.metrics_guid,
            annotation: lrp.annotation,
            egress_rules: lrp.egress_rules.into_iter().map(Into::into).collect(),
            modification_tag: Some(lrp.modification_tag.into()),
            cached_dependencies: lrp.cached_dependencies.into_iter().map(Into::into).collect(),
            legacy_download_user: lrp.legacy_download_user,
            trusted_system_certificates_path: lrp.trusted_system_certificates_path,
            volume_mounts: lrp.volume_mounts.into_iter().map(Into::into).collect(),
            network: lrp.network.map(Into::into),
            placement_tags: lrp.placement_tags,
            max_pids: wire_unsigned(lrp.max_pids),
            certificate_properties: lrp.certificate_properties.map(Into::into),
            image_username,
            image_password,
            check_definition: lrp.check_definition.map(Into::into),
            image_layers: lrp.image_layers.into_iter().map(Into::into).collect(),
            metric_tags: wire_metric_tags(lrp.metric_tags),
            sidecars: lrp.sidecars.into_iter().map(Into::into).collect(),
            log_rate_limit: lrp.log_rate_limit.map(Into::into),
            volume_mounted_files: lrp.volume_mounted_files.into_iter().map(Into::into).collect(),
            update_strategy: match lrp.update_strategy {
                models::UpdateStrategy::Rolling => 0,
                models::UpdateStrategy::Recreate => 1,
            },
        }
    }
}

impl TryFrom<Sidecar> for models::Sidecar {
    type Error = Invalid;

    fn try_from(wire: Sidecar) -> Result<Self, Invalid> {
        let mut invalid = Invalid::default();
        let action = parse_action(&mut invalid, wire.action);
        let memory_mb = invalid.unsigned("memory_mb", wire.memory_mb);
        let disk_mb = invalid.unsigned("disk_mb", wire.disk_mb);
        match action {
            Some(action) => invalid.or(Self { action, disk_mb, memory_mb }),
            None => Err(invalid),
        }
    }
}

impl From<models::Sidecar> for Sidecar {
    fn from(sidecar: models::Sidecar) -> Self {
        Self {
            action: Some(sidecar.action.into()),
            disk_mb: wire_unsigned(sidecar.disk_mb),
            memory_mb: wire_unsigned(sidecar.memory_mb),
        }
    }
}

impl TryFrom<DesiredLrpUpdate> for models::DesiredLrpUpdate {
    type Error = Invalid;

    fn try_from(wire: DesiredLrpUpdate) -> Result<Self, Invalid> {
        let mut invalid = Invalid::default();
        let instances = wire.instances.map(|instances| invalid.unsigned("instances", instances));
        let annotation_bytes = wire.annotation.as_ref().map_or(0, String::len);
        invalid.require(annotation_bytes <= models::ANNOTATION_BYTES_MAX, "annotation");
        let routes = wire.routes.and_then(|routes| invalid.take(parse_routes(routes)));
        let metric_tags = invalid.take_field("metric_tags", parse_metric_tags(wire.metric_tags, ""));
        let image_credentials = match (wire.image_username, wire.image_password) {
            (Some(username), Some(password)) => {
                invalid.require(username.is_empty() || !password.is_empty(), "image_password");
                invalid.require(password.is_empty() || !username.is_empty(), "image_username");
                Some(models::ImageCredentials { username, password })
            }
            (Some(_), None) => {
                invalid.add_field("image_password");
                None
            }
            (None, Some(_)) => {
                invalid.add_field("image_username");
                None
            }
            (None, None) => None,
        };
        invalid.or(Self {
            instances,
            routes,
            annotation: wire.annotation,
            metric_tags: metric_tags.filter(|tags| !tags.is_empty()),
            image_credentials,
        })
    }
}

impl From<models::DesiredLrpUpdate> for DesiredLrpUpdate {
    fn from(update: models::DesiredLrpUpdate) -> Self {
        let (image_username, image_password) = match update.image_credentials {
            Some(credentials) => (Some(credentials.username), Some(credentials.password)),
            None => (None, None),
        };
        Self {
            instances: update.instances.map(wire_unsigned),
            routes: update.routes.map(Into::into),
            annotation: update.annotation,
            metric_tags: update.metric_tags.map(wire_metric_tags).unwrap_or_default(),
            image_username,
            image_password,
        }
    }
}

impl TryFrom<DesiredLrpSchedulingInfo> for models::SchedulingInfo {
    type Error = Invalid;

    fn try_from(wire: DesiredLrpSchedulingInfo) -> Result<Self, Invalid> {
        let mut invalid = Invalid::default();
        let (key, resource) = (wire.desired_lrp_key, wire.desired_lrp_resource);
        invalid.require(!key.domain.is_empty(), "domain");
        invalid.require(is_guid(&key.process_guid), "process_guid");
        invalid.require(is_rootfs_url(&resource.root_fs), "rootfs");
        let resource = models::DesiredLrpResource {
            memory_mb: invalid.unsigned("memory_mb", resource.memory_mb),
            disk_mb: invalid.unsigned("disk_mb", resource.disk_mb),
            max_pids: invalid.unsigned("max_pids", resource.max_pids),
            rootfs: resource.root_fs,
        };
        let routes = invalid.take(parse_routes(wire.routes)).unwrap_or_default();
        let instances = invalid.unsigned("instances", wire.instances);
        invalid.or(Self {
            key: key.into(),
            annotation: wire.annotation,
            instances,
            resource,
            routes,
            modification_tag: wire.modification_tag.into(),
            volume_drivers: wire.volume_placement.map(|placement| placement.driver_names).unwrap_or_default(),
            placement_tags: wire.placement_tags,
        })
    }
}

impl From<models::SchedulingInfo> for DesiredLrpSchedulingInfo {
    fn from(scheduling: models::SchedulingInfo) -> Self {
        Self {
            desired_lrp_key: scheduling.key.into(),
            annotation: scheduling.annotation,
            instances: wire_unsigned(scheduling.instances),
            desired_lrp_resource: DesiredLrpResource {
                memory_mb: wire_unsigned(scheduling.resource.memory_mb),
                disk_mb: wire_unsigned(scheduling.resource.disk_mb),
                root_fs: scheduling.resource.rootfs,
                max_pids: wire_unsigned(scheduling.resource.max_pids),
            },
            routes: scheduling.routes.into(),
            modification_tag: scheduling.modification_tag.into(),
            volume_placement: Some(VolumePlacement { driver_names: scheduling.volume_drivers }),
            placement_tags: scheduling.placement_tags,
        }
    }
}

impl From<DesiredLrpKey> for models::DesiredLrpKey {
    fn from(wire: DesiredLrpKey) -> Self {
        Self { process_guid: wire.process_guid, domain: wire.domain, log_guid: wire.log_guid }
    }
}

impl From<models::DesiredLrpKey> for DesiredLrpKey {
    fn from(key: models::DesiredLrpKey) -> Self {
        Self { process_guid: key.process_guid, domain: key.domain, log_guid: key.log_guid }
    }
}

impl TryFrom<DesiredLrp> for models::RoutingInfo {
    type Error = Invalid;

    fn try_from(wire: DesiredLrp) -> Result<Self, Invalid> {
        let mut invalid = Invalid::default();
        invalid.require(is_guid(&wire.process_guid), "process_guid");
        let instances = invalid.unsigned("instances", wire.instances);
        let routes = wire.routes.and_then(|routes| invalid.take(parse_routes(routes))).unwrap_or_default();
        let metric_tags = invalid.take_field("metric_tags", parse_metric_tags(wire.metric_tags, ""));
        invalid.or(Self {
            key: models::DesiredLrpKey {
                process_guid: wire.process_guid,
                domain: wire.domain,
                log_guid: wire.log_guid,
            },
            instances,
            routes,
            modification_tag: wire.modification_tag.map(Into::into).unwrap_or_default(),
            metric_tags: metric_tags.unwrap_or_default(),
        })
    }
}

impl From<models::RoutingInfo> for DesiredLrp {
    fn from(routing: models::RoutingInfo) -> Self {
        Self {
            process_guid: routing.key.process_guid,
            domain: routing.key.domain,
            log_guid: routing.key.log_guid,
            instances: wire_unsigned(routing.instances),
            routes: Some(routing.routes.into()),
            modification_tag: Some(routing.modification_tag.into()),
            metric_tags: wire_metric_tags(routing.metric_tags),
            ..Self::default()
        }
    }
}
