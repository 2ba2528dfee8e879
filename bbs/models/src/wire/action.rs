//! Actions on the wire: a message with nine fields of which one is set. They are boxed: a list of empty actions, two bytes
//! each on the wire, is nine words each in memory and not nine structs.

use prost::Message;
use serde::{Deserialize, Serialize};

use super::json::*;
use super::{EnvironmentVariable, File, Invalid};
use crate as models;

#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct Action {
    #[prost(message, optional, boxed, tag = "1")]
    #[serde(rename = "download", skip_serializing_if = "Option::is_none")]
    pub download_action: Option<Box<DownloadAction>>,
    #[prost(message, optional, boxed, tag = "2")]
    #[serde(rename = "upload", skip_serializing_if = "Option::is_none")]
    pub upload_action: Option<Box<UploadAction>>,
    #[prost(message, optional, boxed, tag = "3")]
    #[serde(rename = "run", skip_serializing_if = "Option::is_none")]
    pub run_action: Option<Box<RunAction>>,
    #[prost(message, optional, boxed, tag = "4")]
    #[serde(rename = "timeout", skip_serializing_if = "Option::is_none")]
    pub timeout_action: Option<Box<TimeoutAction>>,
    #[prost(message, optional, boxed, tag = "5")]
    #[serde(rename = "emit_progress", skip_serializing_if = "Option::is_none")]
    pub emit_progress_action: Option<Box<EmitProgressAction>>,
    #[prost(message, optional, boxed, tag = "6")]
    #[serde(rename = "try", skip_serializing_if = "Option::is_none")]
    pub try_action: Option<Box<TryAction>>,
    #[prost(message, optional, boxed, tag = "7")]
    #[serde(rename = "parallel", skip_serializing_if = "Option::is_none")]
    pub parallel_action: Option<Box<ManyActions>>,
    #[prost(message, optional, boxed, tag = "8")]
    #[serde(rename = "serial", skip_serializing_if = "Option::is_none")]
    pub serial_action: Option<Box<ManyActions>>,
    #[prost(message, optional, boxed, tag = "9")]
    #[serde(rename = "codependent", skip_serializing_if = "Option::is_none")]
    pub codependent_action: Option<Box<ManyActions>>,
}

#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct DownloadAction {
    #[prost(string, tag = "1")]
    #[serde(skip_serializing_if = "is_default")]
    pub artifact: String,
    #[prost(string, tag = "2")]
    pub from: String,
    #[prost(string, tag = "3")]
    pub to: String,
    #[prost(string, tag = "4")]
    pub cache_key: String,
    #[prost(string, tag = "5")]
    #[serde(skip_serializing_if = "is_default")]
    pub log_source: String,
    #[prost(string, tag = "6")]
    pub user: String,
    #[prost(string, tag = "7")]
    #[serde(skip_serializing_if = "is_default")]
    pub checksum_algorithm: String,
    #[prost(string, tag = "8")]
    #[serde(skip_serializing_if = "is_default")]
    pub checksum_value: String,
}

#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct UploadAction {
    #[prost(string, tag = "1")]
    #[serde(skip_serializing_if = "is_default")]
    pub artifact: String,
    #[prost(string, tag = "2")]
    pub from: String,
    #[prost(string, tag = "3")]
    pub to: String,
    #[prost(string, tag = "4")]
    #[serde(skip_serializing_if = "is_default")]
    pub log_source: String,
    #[prost(string, tag = "5")]
    pub user: String,
}

#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct RunAction {
    #[prost(string, tag = "1")]
    pub path: String,
    #[prost(string, repeated, tag = "2")]
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub args: Vec<String>,
    #[prost(string, tag = "3")]
    #[serde(skip_serializing_if = "is_default")]
    pub dir: String,
    #[prost(message, repeated, tag = "4")]
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub env: Vec<EnvironmentVariable>,
    #[prost(message, optional, tag = "5")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource_limits: Option<ResourceLimits>,
    #[prost(string, tag = "6")]
    pub user: String,
    #[prost(string, tag = "7")]
    #[serde(skip_serializing_if = "is_default")]
    pub log_source: String,
    #[prost(bool, tag = "8")]
    pub suppress_log_output: bool,
    #[prost(message, repeated, tag = "9")]
    #[serde(with = "null_or_list")]
    pub volume_mounted_files: Vec<File>,
}

#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct ResourceLimits {
    #[prost(uint64, optional, tag = "1")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nofile: Option<u64>,
    /// Deprecated.
    #[prost(uint64, optional, tag = "2")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nproc: Option<u64>,
}

#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct TimeoutAction {
    #[prost(message, optional, boxed, tag = "1")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action: Option<Box<Action>>,
    /// Read by nobody since `timeout_ms`.
    #[prost(int64, tag = "2")]
    #[serde(rename = "timeout", skip_serializing_if = "is_default")]
    pub deprecated_timeout_ns: i64,
    #[prost(string, tag = "3")]
    #[serde(skip_serializing_if = "is_default")]
    pub log_source: String,
    #[prost(int64, tag = "4")]
    pub timeout_ms: i64,
}

#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct EmitProgressAction {
    #[prost(message, optional, boxed, tag = "1")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action: Option<Box<Action>>,
    #[prost(string, tag = "2")]
    pub start_message: String,
    #[prost(string, tag = "3")]
    pub success_message: String,
    #[prost(string, tag = "4")]
    pub failure_message_prefix: String,
    #[prost(string, tag = "5")]
    #[serde(skip_serializing_if = "is_default")]
    pub log_source: String,
}

#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct TryAction {
    #[prost(message, optional, boxed, tag = "1")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action: Option<Box<Action>>,
    #[prost(string, tag = "2")]
    #[serde(skip_serializing_if = "is_default")]
    pub log_source: String,
}

/// ParallelAction, SerialAction and CodependentAction have the same fields.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct ManyActions {
    #[prost(message, repeated, tag = "1")]
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub actions: Vec<Action>,
    #[prost(string, tag = "2")]
    #[serde(skip_serializing_if = "is_default")]
    pub log_source: String,
}

/// `md5`, `sha1`, `sha256`; value and algorithm come together.
pub(super) fn check_checksum(invalid: &mut Invalid, algorithm: &str, value: &str) {
    match (algorithm.is_empty(), value.is_empty()) {
        (true, true) => {}
        (true, false) => invalid.add_field("checksum algorithm"),
        (false, true) => invalid.add_field("checksum value"),
        (false, false) => {
            let known = ["md5", "sha1", "sha256"].contains(&algorithm.to_lowercase().as_str());
            invalid.require(known, "invalid algorithm");
        }
    }
}

impl Action {
    fn is_deeper_than(&self, levels: usize) -> bool {
        let Some(levels) = levels.checked_sub(1) else { return true };
        let wrapped = [
            self.timeout_action.as_ref().and_then(|wrapper| wrapper.action.as_ref()),
            self.emit_progress_action.as_ref().and_then(|wrapper| wrapper.action.as_ref()),
            self.try_action.as_ref().and_then(|wrapper| wrapper.action.as_ref()),
        ];
        let lists = [&self.parallel_action, &self.serial_action, &self.codependent_action];
        let listed = lists.into_iter().flatten().flat_map(|many| &many.actions);
        wrapped.into_iter().flatten().map(Box::as_ref).chain(listed).any(|child| child.is_deeper_than(levels))
    }
}

impl TryFrom<Action> for models::Action {
    type Error = Invalid;

    fn try_from(wire: Action) -> Result<Self, Invalid> {
        if wire.is_deeper_than(models::ACTIONS_NESTED_MAX) {
            let mut invalid = Invalid::default();
            invalid.add(format!("actions are nested more than {} deep", models::ACTIONS_NESTED_MAX));
            return Err(invalid);
        }
        if let Some(action) = wire.download_action {
            return Ok(Self::Download((*action).try_into()?));
        }
        if let Some(action) = wire.upload_action {
            return Ok(Self::Upload((*action).try_into()?));
        }
        if let Some(action) = wire.run_action {
            return Ok(Self::Run((*action).try_into()?));
        }
        if let Some(action) = wire.timeout_action {
            return Ok(Self::Timeout((*action).try_into()?));
        }
        if let Some(action) = wire.emit_progress_action {
            return Ok(Self::EmitProgress((*action).try_into()?));
        }
        if let Some(action) = wire.try_action {
            return Ok(Self::Try((*action).try_into()?));
        }
        if let Some(actions) = wire.parallel_action {
            return Ok(Self::Parallel((*actions).try_into()?));
        }
        if let Some(actions) = wire.serial_action {
            return Ok(Self::Serial((*actions).try_into()?));
        }
        if let Some(actions) = wire.codependent_action {
            return Ok(Self::Codependent((*actions).try_into()?));
        }
        Err(Invalid::field("inner-action"))
    }
}

impl TryFrom<DownloadAction> for models::DownloadAction {
    type Error = Invalid;

    fn try_from(wire: DownloadAction) -> Result<Self, Invalid> {
        let mut invalid = Invalid::default();
        invalid.require(!wire.from.is_empty(), "from");
        invalid.require(!wire.to.is_empty(), "to");
        invalid.require(!wire.user.is_empty(), "user");
        check_checksum(&mut invalid, &wire.checksum_algorithm, &wire.checksum_value);
        invalid.or(Self {
            artifact: wire.artifact,
            from: wire.from,
            to: wire.to,
            cache_key: wire.cache_key,
            log_source: wire.log_source,
            user: wire.user,
            checksum_algorithm: wire.checksum_algorithm,
            checksum_value: wire.checksum_value,
        })
    }
}

impl TryFrom<UploadAction> for models::UploadAction {
    type Error = Invalid;

    fn try_from(wire: UploadAction) -> Result<Self, Invalid> {
        let mut invalid = Invalid::default();
        invalid.require(!wire.to.is_empty(), "to");
        invalid.require(!wire.from.is_empty(), "from");
        invalid.require(!wire.user.is_empty(), "user");
        invalid.or(Self {
            artifact: wire.artifact,
            from: wire.from,
            to: wire.to,
            log_source: wire.log_source,
            user: wire.user,
        })
    }
}

impl TryFrom<RunAction> for models::RunAction {
    type Error = Invalid;

    fn try_from(wire: RunAction) -> Result<Self, Invalid> {
        let mut invalid = Invalid::default();
        invalid.require(!wire.path.is_empty(), "path");
        invalid.require(!wire.user.is_empty(), "user");
        invalid.or(Self {
            path: wire.path,
            args: wire.args,
            dir: wire.dir,
            env: wire.env.into_iter().map(Into::into).collect(),
            resource_limits: wire
                .resource_limits
                .map(|ResourceLimits { nofile, nproc }| models::ResourceLimits { nofile, nproc }),
            user: wire.user,
            log_source: wire.log_source,
            suppress_log_output: wire.suppress_log_output,
            volume_mounted_files: wire.volume_mounted_files.into_iter().map(Into::into).collect(),
        })
    }
}

fn inner(invalid: &mut Invalid, action: Option<Box<Action>>) -> Option<Box<models::Action>> {
    match action {
        None => {
            invalid.add_field("action");
            None
        }
        Some(action) => invalid.take((*action).try_into()).map(Box::new),
    }
}

impl TryFrom<TimeoutAction> for models::TimeoutAction {
    type Error = Invalid;

    fn try_from(wire: TimeoutAction) -> Result<Self, Invalid> {
        let mut invalid = Invalid::default();
        let action = inner(&mut invalid, wire.action);
        invalid.require(wire.timeout_ms > 0, "timeout_ms");
        match action {
            Some(action) => {
                invalid.or(Self { action, timeout_ms: wire.timeout_ms, log_source: wire.log_source })
            }
            None => Err(invalid),
        }
    }
}

impl TryFrom<EmitProgressAction> for models::EmitProgressAction {
    type Error = Invalid;

    fn try_from(wire: EmitProgressAction) -> Result<Self, Invalid> {
        let mut invalid = Invalid::default();
        let action = inner(&mut invalid, wire.action).ok_or(invalid)?;
        Ok(Self {
            action,
            start_message: wire.start_message,
            success_message: wire.success_message,
            failure_message_prefix: wire.failure_message_prefix,
            log_source: wire.log_source,
        })
    }
}

impl TryFrom<TryAction> for models::TryAction {
    type Error = Invalid;

    fn try_from(wire: TryAction) -> Result<Self, Invalid> {
        let mut invalid = Invalid::default();
        let action = inner(&mut invalid, wire.action).ok_or(invalid)?;
        Ok(Self { action, log_source: wire.log_source })
    }
}

impl TryFrom<ManyActions> for models::ManyActions {
    type Error = Invalid;

    fn try_from(wire: ManyActions) -> Result<Self, Invalid> {
        let mut invalid = Invalid::default();
        invalid.require(!wire.actions.is_empty(), "actions");
        let actions = invalid.list(None, wire.actions);
        invalid.or(Self { actions, log_source: wire.log_source })
    }
}

impl From<models::Action> for Action {
    fn from(action: models::Action) -> Self {
        let mut wire = Self::default();
        match action {
            models::Action::Download(action) => wire.download_action = Some(Box::new(action.into())),
            models::Action::Upload(action) => wire.upload_action = Some(Box::new(action.into())),
            models::Action::Run(action) => wire.run_action = Some(Box::new(action.into())),
            models::Action::Timeout(action) => wire.timeout_action = Some(Box::new(action.into())),
            models::Action::EmitProgress(action) => wire.emit_progress_action = Some(Box::new(action.into())),
            models::Action::Try(action) => wire.try_action = Some(Box::new(action.into())),
            models::Action::Parallel(actions) => wire.parallel_action = Some(Box::new(actions.into())),
            models::Action::Serial(actions) => wire.serial_action = Some(Box::new(actions.into())),
            models::Action::Codependent(actions) => wire.codependent_action = Some(Box::new(actions.into())),
        }
        wire
    }
}

impl From<models::DownloadAction> for DownloadAction {
    fn from(action: models::DownloadAction) -> Self {
        Self {
            artifact: action.artifact,
            from: action.from,
            to: action.to,
            cache_key: action.cache_key,
            log_source: action.log_source,
            user: action.user,
            checksum_algorithm: action.checksum_algorithm,
            checksum_value: action.checksum_value,
        }
    }
}

impl From<models::UploadAction> for UploadAction {
    fn from(action: models::UploadAction) -> Self {
        Self {
            artifact: action.artifact,
            from: action.from,
            to: action.to,
            log_source: action.log_source,
            user: action.user,
        }
    }
}

impl From<models::RunAction> for RunAction {
    fn from(action: models::RunAction) -> Self {
        Self {
            path: action.path,
            args: action.args,
            dir: action.dir,
            env: action.env.into_iter().map(Into::into).collect(),
            resource_limits: action
                .resource_limits
                .map(|models::ResourceLimits { nofile, nproc }| ResourceLimits { nofile, nproc }),
            user: action.user,
            log_source: action.log_source,
            suppress_log_output: action.suppress_log_output,
            volume_mounted_files: action.volume_mounted_files.into_iter().map(Into::into).collect(),
        }
    }
}

impl From<models::TimeoutAction> for TimeoutAction {
    fn from(action: models::TimeoutAction) -> Self {
        Self {
            action: Some(Box::new((*action.action).into())),
            deprecated_timeout_ns: 0,
            log_source: action.log_source,
            timeout_ms: action.timeout_ms,
        }
    }
}

impl From<models::EmitProgressAction> for EmitProgressAction {
    fn from(action: models::EmitProgressAction) -> Self {
        Self {
            action: Some(Box::new((*action.action).into())),
            start_message: action.start_message,
            success_message: action.success_message,
            failure_message_prefix: action.failure_message_prefix,
            log_source: action.log_source,
        }
    }
}

impl From<models::TryAction> for TryAction {
    fn from(action: models::TryAction) -> Self {
        Self { action: Some(Box::new((*action.action).into())), log_source: action.log_source }
    }
}

impl From<models::ManyActions> for ManyActions {
    fn from(actions: models::ManyActions) -> Self {
        Self {
            actions: actions.actions.into_iter().map(Into::into).collect(),
            log_source: actions.log_source,
        }
    }
}
