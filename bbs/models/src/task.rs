//! A Task: work that runs once and ends with a result.
//!
//! ```text
//! Pending ──start──▶ Running ──complete──▶ Completed ──resolving──▶ Resolving ──delete──▶
//!    └───────────── cancel, reject ───────────▲
//! ```

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::wire;
use crate::{
    Action, CachedDependency, CertificateProperties, EnvironmentVariable, File, ImageCredentials, ImageLayer,
    LogRateLimit, MetricTags, Network, SecurityGroupRule, VolumeMount,
};

/// Memory, disk and pids of 0 mean no limit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(into = "wire::TaskDefinition", try_from = "wire::TaskDefinition")]
pub struct TaskDefinition {
    pub rootfs: String,
    pub action: Action,
    pub environment_variables: Vec<EnvironmentVariable>,
    pub memory_mb: u32,
    pub disk_mb: u32,
    pub max_pids: u32,
    pub cpu_weight: u32,
    pub privileged: bool,
    pub log_source: String,
    pub log_guid: String,
    pub metrics_guid: String,
    pub metric_tags: MetricTags,
    pub log_rate_limit: Option<LogRateLimit>,
    /// Read when the action has succeeded; its content is the result. Empty: no result.
    pub result_file: String,
    /// POSTed to on completion; empty: the client asks.
    pub completion_callback_url: String,
    pub annotation: String,
    pub egress_rules: Vec<SecurityGroupRule>,
    pub network: Option<Network>,
    pub cached_dependencies: Vec<CachedDependency>,
    pub image_layers: Vec<ImageLayer>,
    pub image_credentials: Option<ImageCredentials>,
    pub legacy_download_user: String,
    pub trusted_system_certificates_path: String,
    pub volume_mounts: Vec<VolumeMount>,
    pub volume_mounted_files: Vec<File>,
    pub placement_tags: Vec<String>,
    pub certificate_properties: Option<CertificateProperties>,
}

impl TaskDefinition {
    pub fn new(rootfs: impl Into<String>, action: Action) -> Self {
        Self {
            rootfs: rootfs.into(),
            action,
            environment_variables: Vec::new(),
            memory_mb: 0,
            disk_mb: 0,
            max_pids: 0,
            cpu_weight: 0,
            privileged: false,
            log_source: String::new(),
            log_guid: String::new(),
            metrics_guid: String::new(),
            metric_tags: MetricTags::new(),
            log_rate_limit: None,
            result_file: String::new(),
            completion_callback_url: String::new(),
            annotation: String::new(),
            egress_rules: Vec::new(),
            network: None,
            cached_dependencies: Vec::new(),
            image_layers: Vec::new(),
            image_credentials: None,
            legacy_download_user: String::new(),
            trusted_system_certificates_path: String::new(),
            volume_mounts: Vec::new(),
            volume_mounted_files: Vec::new(),
            placement_tags: Vec::new(),
            certificate_properties: None,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(into = "wire::Task", try_from = "wire::Task")]
pub struct Task {
    pub task_guid: String,
    pub domain: String,
    pub definition: TaskDefinition,
    /// Nanoseconds since the epoch, as all times here.
    pub created_at_ns: i64,
    pub updated_at_ns: i64,
    pub state: TaskState,
    /// How often an auction found no place.
    pub rejection_count: u32,
    pub rejection_reason: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TaskState {
    Pending,
    Running {
        cell_id: String,
    },
    Completed(TaskCompletion),
    /// Its callback is being called.
    Resolving(TaskCompletion),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskCompletion {
    pub outcome: TaskOutcome,
    pub first_completed_at_ns: i64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TaskOutcome {
    Succeeded { result: String },
    Failed { reason: String },
}

impl TaskState {
    /// The name on the wire: `Pending`, `Running`, `Completed`, `Resolving`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Running { .. } => "Running",
            Self::Completed(_) => "Completed",
            Self::Resolving(_) => "Resolving",
        }
    }
}

impl fmt::Display for TaskState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Task {
    pub fn pending(
        task_guid: impl Into<String>,
        domain: impl Into<String>,
        definition: TaskDefinition,
        now_ns: i64,
    ) -> Self {
        Self {
            task_guid: task_guid.into(),
            domain: domain.into(),
            definition,
            created_at_ns: now_ns,
            updated_at_ns: now_ns,
            state: TaskState::Pending,
            rejection_count: 0,
            rejection_reason: String::new(),
        }
    }

    /// The cell that runs it, while one does.
    pub fn cell_id(&self) -> Option<&str> {
        match &self.state {
            TaskState::Running { cell_id } => Some(cell_id),
            _ => None,
        }
    }

    /// Once it is completed.
    pub fn outcome(&self) -> Option<&TaskOutcome> {
        match &self.state {
            TaskState::Completed(completion) | TaskState::Resolving(completion) => Some(&completion.outcome),
            _ => None,
        }
    }

    /// What the completion callback is sent, once completed.
    pub fn callback(&self) -> Option<TaskCallback> {
        let (failed, failure_reason, result) = match self.outcome()? {
            TaskOutcome::Succeeded { result } => (false, String::new(), result.clone()),
            TaskOutcome::Failed { reason } => (true, reason.clone(), String::new()),
        };
        Some(TaskCallback {
            task_guid: self.task_guid.clone(),
            failed,
            failure_reason,
            result,
            annotation: self.definition.annotation.clone(),
            created_at: self.created_at_ns,
        })
    }
}

/// The JSON body of a completion callback.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskCallback {
    pub task_guid: String,
    pub failed: bool,
    pub failure_reason: String,
    pub result: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub annotation: String,
    pub created_at: i64,
}

/// Which Tasks are asked for; an empty field matches all.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TaskFilter {
    pub domain: String,
    pub cell_id: String,
}
