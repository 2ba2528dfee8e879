//! What LRPs and Tasks have in common on the wire: variables, files, egress rules, volumes, layers, tags.

use std::collections::BTreeMap;

use prost::Message;
use serde::{Deserialize, Serialize};

use super::Invalid;
use super::action::check_checksum;
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

#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct PortRange {
    #[prost(uint32, tag = "1")]
    pub start: u32,
    #[prost(uint32, tag = "2")]
    pub end: u32,
}

#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct IcmpInfo {
    #[prost(int32, tag = "1")]
    #[serde(rename = "type")]
    pub kind: i32,
    #[prost(int32, tag = "2")]
    pub code: i32,
}

#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct SecurityGroupRule {
    /// `tcp`, `udp`, `icmp`, `icmpv6`, `all`.
    #[prost(string, tag = "1")]
    #[serde(skip_serializing_if = "is_default")]
    pub protocol: String,
    #[prost(string, repeated, tag = "2")]
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub destinations: Vec<String>,
    #[prost(uint32, repeated, packed = "false", tag = "3")]
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub ports: Vec<u32>,
    #[prost(message, optional, tag = "4")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port_range: Option<PortRange>,
    #[prost(message, optional, tag = "5")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icmp_info: Option<IcmpInfo>,
    #[prost(bool, tag = "6")]
    pub log: bool,
    #[prost(string, repeated, tag = "7")]
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub annotations: Vec<String>,
}

#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct SharedDevice {
    #[prost(string, tag = "1")]
    pub volume_id: String,
    #[prost(string, tag = "2")]
    pub mount_config: String,
}

#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct DedicatedDevice {
    #[prost(string, tag = "1")]
    pub mounter_id: String,
    #[prost(string, tag = "2")]
    pub mount_config: String,
    #[prost(string, tag = "3")]
    pub device_config: String,
}

#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct VolumeMount {
    #[prost(string, tag = "1")]
    pub driver: String,
    #[prost(string, tag = "3")]
    pub container_dir: String,
    /// `r` or `rw`.
    #[prost(string, tag = "6")]
    pub mode: String,
    #[prost(message, optional, tag = "7")]
    pub shared: Option<SharedDevice>,
    #[prost(message, optional, tag = "8")]
    pub dedicated: Option<DedicatedDevice>,
}

#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct VolumePlacement {
    #[prost(string, repeated, tag = "1")]
    #[serde(deserialize_with = "null_is_default")]
    pub driver_names: Vec<String>,
}

#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct CachedDependency {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub from: String,
    #[prost(string, tag = "3")]
    pub to: String,
    #[prost(string, tag = "4")]
    pub cache_key: String,
    #[prost(string, tag = "5")]
    pub log_source: String,
    #[prost(string, tag = "6")]
    #[serde(skip_serializing_if = "is_default")]
    pub checksum_algorithm: String,
    #[prost(string, tag = "7")]
    #[serde(skip_serializing_if = "is_default")]
    pub checksum_value: String,
}

#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageLayer {
    #[prost(string, tag = "1")]
    #[serde(skip_serializing_if = "is_default")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub url: String,
    #[prost(string, tag = "3")]
    pub destination_path: String,
    /// 1 shared, 2 exclusive.
    #[prost(int32, tag = "4")]
    #[serde(with = "layer_type")]
    pub layer_type: i32,
    /// 1 tgz, 2 tar, 3 zip.
    #[prost(int32, tag = "5")]
    #[serde(with = "media_type")]
    pub media_type: i32,
    /// 1 sha256, 2 sha512.
    #[prost(int32, tag = "6")]
    #[serde(with = "digest_algorithm", skip_serializing_if = "is_default")]
    pub digest_algorithm: i32,
    #[prost(string, tag = "7")]
    #[serde(skip_serializing_if = "is_default")]
    pub digest_value: String,
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
        invalid.require(tags.get("source_id") == Some(&source), "source_id should match metrics_guid");
    }
    invalid.or(tags)
}

pub(super) fn wire_metric_tags(tags: models::MetricTags) -> BTreeMap<String, MetricTagValue> {
    tags.into_iter().map(|(name, value)| (name, value.into())).collect()
}

impl TryFrom<SecurityGroupRule> for models::SecurityGroupRule {
    type Error = Invalid;

    fn try_from(wire: SecurityGroupRule) -> Result<Self, Invalid> {
        let mut invalid = Invalid::default();
        let protocol = invalid.take(parse_protocol(&wire));
        let destinations = parse_destinations(&wire.destinations);
        match (protocol, destinations) {
            (Some(protocol), Ok(destinations)) => {
                Ok(Self { protocol, destinations, log: wire.log, annotations: wire.annotations })
            }
            (_, Err(text)) => {
                invalid.add_field(&format!("destinations [ {text} ]"));
                Err(invalid)
            }
            (None, Ok(_)) => Err(invalid),
        }
    }
}

fn parse_protocol(wire: &SecurityGroupRule) -> Result<models::RuleProtocol, Invalid> {
    let mut invalid = Invalid::default();
    let with_ports = matches!(wire.protocol.as_str(), "tcp" | "udp");
    let with_icmp = matches!(wire.protocol.as_str(), "icmp" | "icmpv6");
    if !with_ports && !with_icmp && wire.protocol != "all" {
        return Err(Invalid::field("protocol"));
    }
    let ports = if with_ports { invalid.take(parse_rule_ports(wire)) } else { None };
    if !with_ports {
        invalid.require(wire.port_range.is_none(), "port_range");
        invalid.require(wire.ports.is_empty(), "ports");
    }
    if with_icmp {
        let field = if wire.protocol == "icmp" { "icmp_info" } else { "icmpv6_info" };
        invalid.require(wire.icmp_info.is_some(), field);
    } else {
        invalid.require(wire.icmp_info.is_none(), "icmp_info");
    }
    let icmp = wire.icmp_info.as_ref().map(|info| models::IcmpType { kind: info.kind, code: info.code });
    match (wire.protocol.as_str(), ports, icmp) {
        ("tcp", Some(ports), None) => invalid.or(models::RuleProtocol::Tcp(ports)),
        ("udp", Some(ports), None) => invalid.or(models::RuleProtocol::Udp(ports)),
        ("icmp", None, Some(icmp)) => invalid.or(models::RuleProtocol::Icmp(icmp)),
        ("icmpv6", None, Some(icmp)) => invalid.or(models::RuleProtocol::IcmpV6(icmp)),
        ("all", None, None) => invalid.or(models::RuleProtocol::All),
        _ => Err(invalid),
    }
}

fn parse_rule_ports(wire: &SecurityGroupRule) -> Result<models::RulePorts, Invalid> {
    let mut invalid = Invalid::default();
    let port = |port: u32| u16::try_from(port).ok().filter(|&port| port > 0);
    match (&wire.port_range, wire.ports.is_empty()) {
        (None, true) => invalid.add("Missing required field: ports or port_range"),
        (Some(_), false) => invalid.add("Invalid: ports and port_range provided"),
        (Some(range), true) => match (port(range.start), port(range.end)) {
            (Some(start), Some(end)) if start <= end => return Ok(models::RulePorts::Range { start, end }),
            _ => invalid.add_field("port_range"),
        },
        (None, false) => match wire.ports.iter().copied().map(port).collect() {
            Some(ports) => return Ok(models::RulePorts::List(ports)),
            None => invalid.add_field("ports"),
        },
    }
    Err(invalid)
}

fn parse_destinations(wire: &[String]) -> Result<Vec<models::Destination>, String> {
    if wire.is_empty() {
        return Err("Must have at least 1 destination".to_string());
    }
    let (parsed, refused): (Vec<_>, Vec<_>) =
        wire.iter().map(|text| text.parse::<models::Destination>()).partition(Result::is_ok);
    if refused.is_empty() {
        return Ok(parsed.into_iter().filter_map(Result::ok).collect());
    }
    let texts: Vec<String> =
        refused.into_iter().filter_map(Result::err).map(|error| error.to_string()).collect();
    Err(texts.join(", "))
}

impl From<models::SecurityGroupRule> for SecurityGroupRule {
    fn from(rule: models::SecurityGroupRule) -> Self {
        let mut wire = Self {
            destinations: rule.destinations.iter().map(|text| text.as_str().to_string()).collect(),
            log: rule.log,
            annotations: rule.annotations,
            ..Self::default()
        };
        let (protocol, ports, icmp) = match rule.protocol {
            models::RuleProtocol::All => ("all", None, None),
            models::RuleProtocol::Tcp(ports) => ("tcp", Some(ports), None),
            models::RuleProtocol::Udp(ports) => ("udp", Some(ports), None),
            models::RuleProtocol::Icmp(icmp) => ("icmp", None, Some(icmp)),
            models::RuleProtocol::IcmpV6(icmp) => ("icmpv6", None, Some(icmp)),
        };
        wire.protocol = protocol.to_string();
        match ports {
            Some(models::RulePorts::List(ports)) => wire.ports = ports.into_iter().map(u32::from).collect(),
            Some(models::RulePorts::Range { start, end }) => {
                wire.port_range = Some(PortRange { start: start.into(), end: end.into() });
            }
            None => {}
        }
        wire.icmp_info = icmp.map(|icmp| IcmpInfo { kind: icmp.kind, code: icmp.code });
        wire
    }
}

impl TryFrom<VolumeMount> for models::VolumeMount {
    type Error = Invalid;

    fn try_from(wire: VolumeMount) -> Result<Self, Invalid> {
        let mut invalid = Invalid::default();
        if wire.driver.is_empty() {
            invalid.add("invalid volume_mount driver");
        }
        let mode = match wire.mode.as_str() {
            "r" => models::VolumeMode::ReadOnly,
            "rw" => models::VolumeMode::ReadWrite,
            _ => {
                invalid.add("invalid volume_mount mode");
                models::VolumeMode::ReadOnly
            }
        };
        let device = match (wire.shared, wire.dedicated) {
            (Some(device), _) => {
                if device.volume_id.is_empty() {
                    invalid.add("invalid volume_mount volume id");
                }
                models::VolumeDevice::Shared {
                    volume_id: device.volume_id,
                    mount_config: device.mount_config,
                }
            }
            (None, Some(device)) => {
                if device.mounter_id.is_empty() {
                    invalid.add("invalid volume_mount mounter id");
                }
                models::VolumeDevice::Dedicated {
                    mounter_id: device.mounter_id,
                    mount_config: device.mount_config,
                    device_config: device.device_config,
                }
            }
            (None, None) => models::VolumeDevice::None,
        };
        invalid.or(Self { driver: wire.driver, container_dir: wire.container_dir, mode, device })
    }
}

impl From<models::VolumeMount> for VolumeMount {
    fn from(mount: models::VolumeMount) -> Self {
        let mode = match mount.mode {
            models::VolumeMode::ReadOnly => "r",
            models::VolumeMode::ReadWrite => "rw",
        };
        let (shared, dedicated) = match mount.device {
            models::VolumeDevice::None => (None, None),
            models::VolumeDevice::Shared { volume_id, mount_config } => {
                (Some(SharedDevice { volume_id, mount_config }), None)
            }
            models::VolumeDevice::Dedicated { mounter_id, mount_config, device_config } => {
                (None, Some(DedicatedDevice { mounter_id, mount_config, device_config }))
            }
        };
        Self {
            driver: mount.driver,
            container_dir: mount.container_dir,
            mode: mode.to_string(),
            shared,
            dedicated,
        }
    }
}

impl TryFrom<CachedDependency> for models::CachedDependency {
    type Error = Invalid;

    fn try_from(wire: CachedDependency) -> Result<Self, Invalid> {
        let mut invalid = Invalid::default();
        invalid.require(!wire.from.is_empty(), "from");
        invalid.require(!wire.to.is_empty(), "to");
        check_checksum(&mut invalid, &wire.checksum_algorithm, &wire.checksum_value);
        invalid.or(Self {
            name: wire.name,
            from: wire.from,
            to: wire.to,
            cache_key: wire.cache_key,
            log_source: wire.log_source,
            checksum_algorithm: wire.checksum_algorithm,
            checksum_value: wire.checksum_value,
        })
    }
}

impl From<models::CachedDependency> for CachedDependency {
    fn from(dependency: models::CachedDependency) -> Self {
        Self {
            name: dependency.name,
            from: dependency.from,
            to: dependency.to,
            cache_key: dependency.cache_key,
            log_source: dependency.log_source,
            checksum_algorithm: dependency.checksum_algorithm,
            checksum_value: dependency.checksum_value,
        }
    }
}

impl TryFrom<ImageLayer> for models::ImageLayer {
    type Error = Invalid;

    fn try_from(wire: ImageLayer) -> Result<Self, Invalid> {
        let mut invalid = Invalid::default();
        invalid.require(!wire.url.is_empty(), "url");
        invalid.require(!wire.destination_path.is_empty(), "destination_path");
        invalid.require((1..=2).contains(&wire.layer_type), "layer_type");
        let media_type = match wire.media_type {
            1 => Some(models::LayerMediaType::Tgz),
            2 => Some(models::LayerMediaType::Tar),
            3 => Some(models::LayerMediaType::Zip),
            _ => None,
        };
        invalid.require(media_type.is_some(), "media_type");
        let digest = parse_digest(&mut invalid, &wire);
        let kind = match (wire.layer_type, digest) {
            (1, digest) => Some(models::LayerKind::Shared { digest }),
            (2, Some(digest)) => Some(models::LayerKind::Exclusive { digest }),
            _ => None,
        };
        match (kind, media_type) {
            (Some(kind), Some(media_type)) => invalid.or(Self {
                name: wire.name,
                url: wire.url,
                destination_path: wire.destination_path,
                kind,
                media_type,
            }),
            _ => Err(invalid),
        }
    }
}

fn parse_digest(invalid: &mut Invalid, wire: &ImageLayer) -> Option<models::LayerDigest> {
    let exclusive = wire.layer_type == 2;
    let algorithm = match wire.digest_algorithm {
        1 => Some(models::DigestAlgorithm::Sha256),
        2 => Some(models::DigestAlgorithm::Sha512),
        _ => None,
    };
    let value = &wire.digest_value;
    invalid.require(algorithm.is_some() || (value.is_empty() && !exclusive), "digest_algorithm");
    invalid.require(!value.is_empty() || (algorithm.is_none() && !exclusive), "digest_value");
    algorithm
        .filter(|_| !value.is_empty())
        .map(|algorithm| models::LayerDigest { algorithm, value: value.clone() })
}

impl From<models::ImageLayer> for ImageLayer {
    fn from(layer: models::ImageLayer) -> Self {
        let (layer_type, digest) = match layer.kind {
            models::LayerKind::Shared { digest } => (1, digest),
            models::LayerKind::Exclusive { digest } => (2, Some(digest)),
        };
        Self {
            name: layer.name,
            url: layer.url,
            destination_path: layer.destination_path,
            layer_type,
            media_type: match layer.media_type {
                models::LayerMediaType::Tgz => 1,
                models::LayerMediaType::Tar => 2,
                models::LayerMediaType::Zip => 3,
            },
            digest_algorithm: digest.as_ref().map_or(0, |digest| match digest.algorithm {
                models::DigestAlgorithm::Sha256 => 1,
                models::DigestAlgorithm::Sha512 => 2,
            }),
            digest_value: digest.map_or_else(String::new, |digest| digest.value),
        }
    }
}

/// Layers of one recipe; exclusive ones need a user to own their files.
pub(super) fn parse_layers(
    invalid: &mut Invalid,
    wire: Vec<ImageLayer>,
    legacy_download_user: &str,
) -> Vec<models::ImageLayer> {
    let needs_user = wire.iter().any(|layer| layer.layer_type == 2);
    let layers = invalid.list(Some("image_layer"), wire);
    invalid.require(!needs_user || !legacy_download_user.is_empty(), "legacy_download_user");
    layers
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
