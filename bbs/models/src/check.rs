//! Declarative health checks of an LRP: startup and liveness in `checks`, readiness apart.

use serde::{Deserialize, Serialize};

use crate::wire;

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(into = "wire::CheckDefinition", try_from = "wire::CheckDefinition")]
pub struct CheckDefinition {
    pub checks: Vec<Check>,
    pub log_source: String,
    pub readiness_checks: Vec<Check>,
}

/// A time of 0 means the cell's default.
#[derive(Debug, Clone, PartialEq)]
pub enum Check {
    Tcp {
        port: u16,
        connect_timeout_ms: u64,
        interval_ms: u64,
    },
    /// Only status 200 passes.
    Http {
        port: u16,
        path: String,
        request_timeout_ms: u64,
        interval_ms: u64,
    },
}
