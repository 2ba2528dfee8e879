//! Check definitions on the wire.

use prost::Message;
use serde::{Deserialize, Serialize};

use super::Invalid;
use super::json::*;
use crate as models;

#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct CheckDefinition {
    #[prost(message, repeated, tag = "1")]
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub checks: Vec<Check>,
    #[prost(string, tag = "2")]
    pub log_source: String,
    #[prost(message, repeated, tag = "3")]
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub readiness_checks: Vec<Check>,
}

/// Exactly one is set.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct Check {
    #[prost(message, optional, tag = "1")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp_check: Option<TcpCheck>,
    #[prost(message, optional, tag = "2")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http_check: Option<HttpCheck>,
}

#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct TcpCheck {
    #[prost(uint32, tag = "1")]
    pub port: u32,
    #[prost(uint64, tag = "2")]
    #[serde(skip_serializing_if = "is_default")]
    pub connect_timeout_ms: u64,
    #[prost(uint64, tag = "3")]
    #[serde(skip_serializing_if = "is_default")]
    pub interval_ms: u64,
}

#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct HttpCheck {
    #[prost(uint32, tag = "1")]
    pub port: u32,
    #[prost(uint64, tag = "2")]
    #[serde(skip_serializing_if = "is_default")]
    pub request_timeout_ms: u64,
    #[prost(string, tag = "3")]
    pub path: String,
    #[prost(uint64, tag = "4")]
    #[serde(skip_serializing_if = "is_default")]
    pub interval_ms: u64,
}

impl TryFrom<CheckDefinition> for models::CheckDefinition {
    type Error = Invalid;

    fn try_from(wire: CheckDefinition) -> Result<Self, Invalid> {
        let mut invalid = Invalid::default();
        let checks = invalid.list(None, wire.checks);
        let readiness_checks = invalid.list(None, wire.readiness_checks);
        invalid.or(Self { checks, log_source: wire.log_source, readiness_checks })
    }
}

fn port(port: u32) -> Result<u16, Invalid> {
    u16::try_from(port).ok().filter(|&port| port > 0).ok_or_else(|| Invalid::field("port"))
}

impl TryFrom<Check> for models::Check {
    type Error = Invalid;

    fn try_from(wire: Check) -> Result<Self, Invalid> {
        match (wire.tcp_check, wire.http_check) {
            (Some(check), None) => Ok(Self::Tcp {
                port: port(check.port)?,
                connect_timeout_ms: check.connect_timeout_ms,
                interval_ms: check.interval_ms,
            }),
            (None, Some(check)) => Ok(Self::Http {
                port: port(check.port)?,
                path: check.path,
                request_timeout_ms: check.request_timeout_ms,
                interval_ms: check.interval_ms,
            }),
            _ => Err(Invalid::field("check")),
        }
    }
}

impl From<models::CheckDefinition> for CheckDefinition {
    fn from(definition: models::CheckDefinition) -> Self {
        Self {
            checks: definition.checks.into_iter().map(Into::into).collect(),
            log_source: definition.log_source,
            readiness_checks: definition.readiness_checks.into_iter().map(Into::into).collect(),
        }
    }
}

impl From<models::Check> for Check {
    fn from(check: models::Check) -> Self {
        match check {
            models::Check::Tcp { port, connect_timeout_ms, interval_ms } => Self {
                tcp_check: Some(TcpCheck { port: port.into(), connect_timeout_ms, interval_ms }),
                http_check: None,
            },
            models::Check::Http { port, path, request_timeout_ms, interval_ms } => Self {
                tcp_check: None,
                http_check: Some(HttpCheck { port: port.into(), request_timeout_ms, path, interval_ms }),
            },
        }
    }
}
