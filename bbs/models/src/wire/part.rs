//! What LRPs and Tasks have in common on the wire: variables, files, networks, limits, tags.

use std::collections::BTreeMap;

use prost::Message;
use serde::{Deserialize, Serialize};

use super::Invalid;
use super::json::*;
use crate as models;

#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct EnvironmentVariable {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub value: String,
}

#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct File {
    #[prost(string, tag = "1")]
    pub path: String,
    #[prost(string, tag = "2")]
    pub content: String,
}

#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct Network {
    #[prost(btree_map = "string, string", tag = "1")]
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub properties: BTreeMap<String, String>,
}

#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct CertificateProperties {
    #[prost(string, repeated, tag = "1")]
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub organizational_unit: Vec<String>,
}

#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct LogRateLimit {
    /// -1 is unlimited.
    #[prost(int64, tag = "1")]
    #[serde(skip_serializing_if = "is_default")]
    pub bytes_per_second: i64,
}

#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct ModificationTag {
    #[prost(string, tag = "1")]
    pub epoch: String,
    #[prost(uint32, tag = "2")]
    pub index: u32,
}

/// Either `static` or `dynamic`.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct MetricTagValue {
    #[prost(string, tag = "1")]
    #[serde(rename = "static", skip_serializing_if = "is_default")]
    pub static_value: String,
    /// 1 index, 2 instance guid.
    #[prost(int32, tag = "2")]
    #[serde(with = "dynamic_value", skip_serializing_if = "is_default")]
    pub dynamic: i32,
}

impl From<EnvironmentVariable> for models::EnvironmentVariable {
    fn from(wire: EnvironmentVariable) -> Self {
        Self { name: wire.name, value: wire.value }
    }
}

impl From<models::EnvironmentVariable> for EnvironmentVariable {
    fn from(variable: models::EnvironmentVariable) -> Self {
        Self { name: variable.name, value: variable.value }
    }
}

impl From<File> for models::File {
    fn from(wire: File) -> Self {
        Self { path: wire.path, content: wire.content }
    }
}

impl From<models::File> for File {
    fn from(file: models::File) -> Self {
        Self { path: file.path, content: file.content }
    }
}

impl From<Network> for models::Network {
    fn from(wire: Network) -> Self {
        Self { properties: wire.properties }
    }
}

impl From<models::Network> for Network {
    fn from(network: models::Network) -> Self {
        Self { properties: network.properties }
    }
}

impl From<CertificateProperties> for models::CertificateProperties {
    fn from(wire: CertificateProperties) -> Self {
        Self { organizational_unit: wire.organizational_unit }
    }
}

impl From<models::CertificateProperties> for CertificateProperties {
    fn from(properties: models::CertificateProperties) -> Self {
        Self { organizational_unit: properties.organizational_unit }
    }
}

impl From<ModificationTag> for models::ModificationTag {
    fn from(wire: ModificationTag) -> Self {
        Self { epoch: wire.epoch, index: wire.index }
    }
}

impl From<models::ModificationTag> for ModificationTag {
    fn from(tag: models::ModificationTag) -> Self {
        Self { epoch: tag.epoch, index: tag.index }
    }
}

impl TryFrom<LogRateLimit> for models::LogRateLimit {
    type Error = Invalid;

    fn try_from(wire: LogRateLimit) -> Result<Self, Invalid> {
        match wire.bytes_per_second {
            -1 => Ok(Self::Unlimited),
            bytes => u64::try_from(bytes)
                .map(Self::BytesPerSecond)
                .map_err(|_| Invalid::field("log_rate_limit_bytes_per_second")),
        }
    }
}

impl From<models::LogRateLimit> for LogRateLimit {
    fn from(limit: models::LogRateLimit) -> Self {
        let bytes_per_second = match limit {
            models::LogRateLimit::Unlimited => -1,
            models::LogRateLimit::BytesPerSecond(bytes) => i64::try_from(bytes).unwrap_or(i64::MAX),
        };
        Self { bytes_per_second }
    }
}

impl TryFrom<MetricTagValue> for models::MetricTagValue {
    type Error = Invalid;

    fn try_from(wire: MetricTagValue) -> Result<Self, Invalid> {
        match (wire.static_value.is_empty(), wire.dynamic) {
            (true, 1) => Ok(Self::Index),
            (true, 2) => Ok(Self::InstanceGuid),
            (false, dynamic) if !(1..=2).contains(&dynamic) => Ok(Self::Static(wire.static_value)),
            _ => {
                let mut invalid = Invalid::field("static");
                invalid.add_field("dynamic");
                Err(invalid)
            }
        }
    }
}

impl From<models::MetricTagValue> for MetricTagValue {
    fn from(value: models::MetricTagValue) -> Self {
        match value {
            models::MetricTagValue::Static(text) => Self { static_value: text, dynamic: 0 },
            models::MetricTagValue::Index => Self { static_value: String::new(), dynamic: 1 },
            models::MetricTagValue::InstanceGuid => Self { static_value: String::new(), dynamic: 2 },
        }
    }
}

/// A `source_id` among the tags must be the deprecated `metrics_guid`, if there is one.
pub(super) fn parse_metric_tags(
    wire: BTreeMap<String, MetricTagValue>,
    metrics_guid: &str,
) -> Result<models::MetricTags, Invalid> {
    let mut invalid = Invalid::default();
    let mut tags = models::MetricTags::new();
    for (name, value) in wire {
        if let Some(value) = invalid.take(value.try_into()) {
            tags.insert(name, value);
        }
    }
    if !tags.is_empty() && !metrics_guid.is_empty() {
        let source = models::MetricTagValue::Static(metrics_guid.to_string());
        invalid
            .require(tags.get(models::SOURCE_ID_TAG) == Some(&source), "source_id should match metrics_guid");
    }
    invalid.or(tags)
}

pub(super) fn wire_metric_tags(tags: models::MetricTags) -> BTreeMap<String, MetricTagValue> {
    tags.into_iter().map(|(name, value)| (name, value.into())).collect()
}

/// Both or neither.
pub(super) fn parse_credentials(
    invalid: &mut Invalid,
    username: String,
    password: String,
) -> Option<models::ImageCredentials> {
    match (username.is_empty(), password.is_empty()) {
        (true, true) => return None,
        (true, false) => invalid.add_field("image_username"),
        (false, true) => invalid.add_field("image_password"),
        (false, false) => {}
    }
    Some(models::ImageCredentials { username, password })
}

pub(super) fn split_credentials(credentials: Option<models::ImageCredentials>) -> (String, String) {
    credentials.map_or_else(Default::default, |credentials| (credentials.username, credentials.password))
}

/// A root filesystem is a URL: something before a colon.
pub(super) fn is_rootfs_url(rootfs: &str) -> bool {
    let Some((scheme, _)) = rootfs.split_once(':') else { return false };
    let mut bytes = scheme.bytes();
    bytes.next().is_some_and(|first| first.is_ascii_alphabetic())
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
        && !rootfs.bytes().any(|byte| byte.is_ascii_control())
}

/// Process guids and task guids: `^[a-zA-Z0-9_-]+$`.
pub(super) fn is_guid(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
}

pub(super) fn files_fit(files: &[File]) -> bool {
    files.iter().map(|file| file.content.len()).sum::<usize>() <= models::VOLUME_MOUNTED_FILES_BYTES_MAX
}

pub(super) fn parse_environment(
    invalid: &mut Invalid,
    wire: Vec<EnvironmentVariable>,
) -> Vec<models::EnvironmentVariable> {
    if wire.iter().any(|variable| variable.name.is_empty()) {
        invalid.add("invalid field: name cannot be blank");
    }
    wire.into_iter().map(Into::into).collect()
}
