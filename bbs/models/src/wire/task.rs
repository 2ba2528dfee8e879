//! Tasks on the wire.

use std::collections::BTreeMap;

use prost::Message;
use serde::{Deserialize, Serialize};

use super::actual_lrp::wire_unsigned;
use super::desired_lrp::parse_action;
use super::image_layer::{CachedDependency, ImageLayer, parse_layers};
use super::json::*;
use super::part::*;
use super::{Action, Invalid, SecurityGroupRule, VolumeMount};
use crate as models;

#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct TaskDefinition {
    #[prost(string, tag = "1")]
    #[serde(rename = "rootfs")]
    pub root_fs: String,
    #[prost(message, repeated, tag = "2")]
    #[serde(rename = "env", skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub environment_variables: Vec<EnvironmentVariable>,
    #[prost(message, optional, tag = "3")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action: Option<Action>,
    #[prost(int32, tag = "4")]
    pub disk_mb: i32,
    #[prost(int32, tag = "5")]
    pub memory_mb: i32,
    #[prost(uint32, tag = "6")]
    pub cpu_weight: u32,
    #[prost(bool, tag = "7")]
    pub privileged: bool,
    #[prost(string, tag = "8")]
    pub log_source: String,
    #[prost(string, tag = "9")]
    pub log_guid: String,
    #[prost(string, tag = "10")]
    pub metrics_guid: String,
    #[prost(string, tag = "11")]
    pub result_file: String,
    #[prost(string, tag = "12")]
    #[serde(skip_serializing_if = "is_default")]
    pub completion_callback_url: String,
    #[prost(string, tag = "13")]
    #[serde(skip_serializing_if = "is_default")]
    pub annotation: String,
    #[prost(message, repeated, tag = "14")]
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub egress_rules: Vec<SecurityGroupRule>,
    #[prost(message, repeated, tag = "15")]
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub cached_dependencies: Vec<CachedDependency>,
    #[prost(string, tag = "16")]
    #[serde(skip_serializing_if = "is_default")]
    pub legacy_download_user: String,
    #[prost(string, tag = "17")]
    #[serde(skip_serializing_if = "is_default")]
    pub trusted_system_certificates_path: String,
    #[prost(message, repeated, tag = "18")]
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub volume_mounts: Vec<VolumeMount>,
    #[prost(message, optional, tag = "19")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<Network>,
    #[prost(string, repeated, tag = "20")]
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub placement_tags: Vec<String>,
    #[prost(int32, tag = "21")]
    pub max_pids: i32,
    #[prost(message, optional, tag = "22")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate_properties: Option<CertificateProperties>,
    #[prost(string, tag = "23")]
    pub image_username: String,
    #[prost(string, tag = "24")]
    pub image_password: String,
    #[prost(message, repeated, tag = "25")]
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub image_layers: Vec<ImageLayer>,
    #[prost(message, optional, tag = "26")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_rate_limit: Option<LogRateLimit>,
    #[prost(btree_map = "string, message", tag = "27")]
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub metric_tags: BTreeMap<String, MetricTagValue>,
    #[prost(message, repeated, tag = "28")]
    #[serde(with = "null_or_list")]
    pub volume_mounted_files: Vec<File>,
}

#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct Task {
    #[prost(message, optional, tag = "1")]
    #[serde(flatten)]
    pub task_definition: Option<TaskDefinition>,
    #[prost(string, tag = "2")]
    pub task_guid: String,
    #[prost(string, tag = "3")]
    pub domain: String,
    #[prost(int64, tag = "4")]
    pub created_at: i64,
    #[prost(int64, tag = "5")]
    pub updated_at: i64,
    #[prost(int64, tag = "6")]
    pub first_completed_at: i64,
    /// 1 pending, 2 running, 3 completed, 4 resolving.
    #[prost(int32, tag = "7")]
    #[serde(with = "task_state")]
    pub state: i32,
    #[prost(string, tag = "8")]
    pub cell_id: String,
    #[prost(string, tag = "9")]
    pub result: String,
    #[prost(bool, tag = "10")]
    pub failed: bool,
    #[prost(string, tag = "11")]
    pub failure_reason: String,
    #[prost(int32, tag = "12")]
    pub rejection_count: i32,
    #[prost(string, tag = "13")]
    pub rejection_reason: String,
}

impl TryFrom<TaskDefinition> for models::TaskDefinition {
    type Error = Invalid;

    fn try_from(wire: TaskDefinition) -> Result<Self, Invalid> {
        let mut invalid = Invalid::default();
        invalid.require(is_rootfs_url(&wire.root_fs), "rootfs");
        let action = parse_action(&mut invalid, wire.action);
        let memory_mb = invalid.unsigned("memory_mb", wire.memory_mb);
        let disk_mb = invalid.unsigned("disk_mb", wire.disk_mb);
        let log_rate_limit = wire.log_rate_limit.and_then(|limit| match limit.try_into() {
            Ok(limit) => Some(limit),
            Err(Invalid { .. }) => {
                invalid.add_field("log_rate_limit");
                None
            }
        });
        let max_pids = invalid.unsigned("max_pids", wire.max_pids);
        invalid.require(wire.annotation.len() <= models::ANNOTATION_BYTES_MAX, "annotation");
        let egress_rules = invalid.list(Some("egress_rules"), wire.egress_rules);
        let image_credentials = parse_credentials(&mut invalid, wire.image_username, wire.image_password);
        let cached_dependencies = invalid.list(Some("cached_dependency"), wire.cached_dependencies);
        let image_layers = parse_layers(&mut invalid, wire.image_layers, &wire.legacy_download_user);
        let environment_variables = parse_environment(&mut invalid, wire.environment_variables);
        let volume_mounts = invalid.list(None, wire.volume_mounts);
        let metric_tags = invalid.take_field("metric_tags", parse_metric_tags(wire.metric_tags, ""));
        invalid.require(files_fit(&wire.volume_mounted_files), "volumeMountedFiles");
        let Some(action) = action else { return Err(invalid) };
        invalid.or(Self {
            rootfs: wire.root_fs,
            action,
            environment_variables,
            memory_mb,
            disk_mb,
            max_pids,
            cpu_weight: wire.cpu_weight,
            privileged: wire.privileged,
            log_source: wire.log_source,
            log_guid: wire.log_guid,
            metrics_guid: wire.metrics_guid,
            metric_tags: metric_tags.unwrap_or_default(),
            log_rate_limit,
            result_file: wire.result_file,
            completion_callback_url: wire.completion_callback_url,
            annotation: wire.annotation,
            egress_rules,
            network: wire.network.map(Into::into),
            cached_dependencies,
            image_layers,
            image_credentials,
            legacy_download_user: wire.legacy_download_user,
            trusted_system_certificates_path: wire.trusted_system_certificates_path,
            volume_mounts,
            volume_mounted_files: wire.volume_mounted_files.into_iter().map(Into::into).collect(),
            placement_tags: wire.placement_tags,
            certificate_properties: wire.certificate_properties.map(Into::into),
        })
    }
}

impl From<models::TaskDefinition> for TaskDefinition {
    fn from(definition: models::TaskDefinition) -> Self {
        let (image_username, image_password) = split_credentials(definition.image_credentials);
        Self {
            root_fs: definition.rootfs,
            environment_variables: definition.environment_variables.into_iter().map(Into::into).collect(),
            action: Some(definition.action.into()),
            disk_mb: wire_unsigned(definition.disk_mb),
            memory_mb: wire_unsigned(definition.memory_mb),
            cpu_weight: definition.cpu_weight,
            privileged: definition.privileged,
            log_source: definition.log_source,
            log_guid: definition.log_guid,
            metrics_guid: definition.metrics_guid,
            result_file: definition.result_file,
            completion_callback_url: definition.completion_callback_url,
            annotation: definition.annotation,
            egress_rules: definition.egress_rules.into_iter().map(Into::into).collect(),
            cached_dependencies: definition.cached_dependencies.into_iter().map(Into::into).collect(),
            legacy_download_user: definition.legacy_download_user,
            trusted_system_certificates_path: definition.trusted_system_certificates_path,
            volume_mounts: definition.volume_mounts.into_iter().map(Into::into).collect(),
            network: definition.network.map(Into::into),
            placement_tags: definition.placement_tags,
            max_pids: wire_unsigned(definition.max_pids),
            certificate_properties: definition.certificate_properties.map(Into::into),
            image_username,
            image_password,
            image_layers: definition.image_layers.into_iter().map(Into::into).collect(),
            log_rate_limit: definition.log_rate_limit.map(Into::into),
            metric_tags: wire_metric_tags(definition.metric_tags),
            volume_mounted_files: definition.volume_mounted_files.into_iter().map(Into::into).collect(),
        }
    }
}

/// Guid, domain and definition, as a new Task needs them.
pub(super) fn parse_task_parts(
    invalid: &mut Invalid,
    task_guid: &str,
    domain: &str,
    definition: Option<TaskDefinition>,
) -> Option<models::TaskDefinition> {
    invalid.require(!domain.is_empty(), "domain");
    invalid.require(is_guid(task_guid), "task_guid");
    let Some(definition) = definition else {
        invalid.add_field("task_definition");
        return None;
    };
    invalid.take(definition.try_into())
}

impl TryFrom<Task> for models::Task {
    type Error = Invalid;

    fn try_from(mut wire: Task) -> Result<Self, Invalid> {
        let mut invalid = Invalid::default();
        let definition = wire.task_definition.take();
        let definition = parse_task_parts(&mut invalid, &wire.task_guid, &wire.domain, definition);
        let rejection_count = invalid.unsigned("rejection_count", wire.rejection_count);
        let state = match wire.state {
            1 => Some(models::TaskState::Pending),
            2 => Some(models::TaskState::Running { cell_id: std::mem::take(&mut wire.cell_id) }),
            3 => Some(models::TaskState::Completed(completion(&mut wire))),
            4 => Some(models::TaskState::Resolving(completion(&mut wire))),
            _ => None,
        };
        invalid.require(state.is_some(), "state");
        match (definition, state) {
            (Some(definition), Some(state)) => invalid.or(Self {
                task_guid: wire.task_guid,
                domain: wire.domain,
                definition,
                created_at_ns: wire.created_at,
                updated_at_ns: wire.updated_at,
                state,
                rejection_count,
                rejection_reason: wire.rejection_reason,
            }),
            _ => Err(invalid),
        }
    }
}

fn completion(wire: &mut Task) -> models::TaskCompletion {
    let outcome = if wire.failed {
        models::TaskOutcome::Failed { reason: std::mem::take(&mut wire.failure_reason) }
    } else {
        models::TaskOutcome::Succeeded { result: std::mem::take(&mut wire.result) }
    };
    models::TaskCompletion { outcome, first_completed_at_ns: wire.first_completed_at }
}

impl From<models::Task> for Task {
    fn from(task: models::Task) -> Self {
        let mut wire = Self {
            task_definition: Some(task.definition.into()),
            task_guid: task.task_guid,
            domain: task.domain,
            created_at: task.created_at_ns,
            updated_at: task.updated_at_ns,
            rejection_count: wire_unsigned(task.rejection_count),
            rejection_reason: task.rejection_reason,
            ..Self::default()
        };
        let completion = match task.state {
            models::TaskState::Pending => {
                wire.state = 1;
                None
            }
            models::TaskState::Running { cell_id } => {
                wire.state = 2;
                wire.cell_id = cell_id;
                None
            }
            models::TaskState::Completed(completion) => {
                wire.state = 3;
                Some(completion)
            }
            models::TaskState::Resolving(completion) => {
                wire.state = 4;
                Some(completion)
            }
        };
        if let Some(completion) = completion {
            wire.first_completed_at = completion.first_completed_at_ns;
            match completion.outcome {
                models::TaskOutcome::Succeeded { result } => wire.result = result,
                models::TaskOutcome::Failed { reason } => (wire.failed, wire.failure_reason) = (true, reason),
            }
        }
        wire
    }
}
