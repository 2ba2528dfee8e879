//! A recipe: what a Task or an LRP does inside its container, as a tree of actions.
//!
//! These values are parsed: an `Action` that exists has exactly one kind, and what must not be empty is not.
//! Their wire twins are in [`crate::wire`].

use serde::{Deserialize, Serialize};

use crate::wire;

/// Further inside one another actions are refused: whatever they pass on their way, messages, files or stacks, takes so many.
pub const ACTIONS_NESTED_MAX: usize = 32;

/// One node of a recipe. Field names and meanings are those of the BBS API.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(into = "wire::Action", try_from = "wire::Action")]
pub enum Action {
    Run(RunAction),
    Download(DownloadAction),
    Upload(UploadAction),
    Timeout(TimeoutAction),
    EmitProgress(EmitProgressAction),
    Try(TryAction),
    Parallel(ManyActions),
    Serial(ManyActions),
    Codependent(ManyActions),
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(into = "wire::RunAction", try_from = "wire::RunAction")]
pub struct RunAction {
    pub path: String,
    pub args: Vec<String>,
    pub dir: String,
    pub env: Vec<EnvironmentVariable>,
    pub resource_limits: Option<ResourceLimits>,
    pub user: String,
    pub log_source: String,
    pub suppress_log_output: bool,
    pub volume_mounted_files: Vec<File>,
}

/// What a process may have. Its owner reads again what was said, even if that is nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ResourceLimits {
    /// `RLIMIT_NOFILE`.
    pub nofile: Option<u64>,
    /// Deprecated, and without effect.
    pub nproc: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Default)]
pub struct DownloadAction {
    pub artifact: String,
    pub from: String,
    pub to: String,
    pub cache_key: String,
    pub log_source: String,
    pub user: String,
    /// `md5`, `sha1`, `sha256`, or empty for no check.
    pub checksum_algorithm: String,
    pub checksum_value: String,
}

#[derive(Debug, Clone, PartialEq, Default)]
pub struct UploadAction {
    pub artifact: String,
    pub from: String,
    pub to: String,
    pub log_source: String,
    pub user: String,
}

#[derive(Debug, Clone, PartialEq)]
pub struct TimeoutAction {
    pub action: Box<Action>,
    pub timeout_ms: i64,
    pub log_source: String,
}

#[derive(Debug, Clone, PartialEq)]
pub struct EmitProgressAction {
    pub action: Box<Action>,
    pub start_message: String,
    pub success_message: String,
    pub failure_message_prefix: String,
    pub log_source: String,
}

#[derive(Debug, Clone, PartialEq)]
pub struct TryAction {
    pub action: Box<Action>,
    pub log_source: String,
}

/// The children of a parallel, serial or codependent action; never empty.
#[derive(Debug, Clone, PartialEq)]
pub struct ManyActions {
    pub actions: Vec<Action>,
    pub log_source: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct EnvironmentVariable {
    pub name: String,
    pub value: String,
}

/// A file given with a recipe, mounted into the container (`volume_mounted_files`).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct File {
    pub path: String,
    pub content: String,
}
