//! What the executor's caller sees: containers, the requests that make them, and the events they emit.
//!
//! ```text
//! Reserved ──run──▶ Initializing ──created──▶ Created ──started──▶ Running ──▶ Completed
//!     └───────────────────┴───────stop, failure────┴───────────────────────────────▲
//! ```
//!
//! What is written down of them for a later life of the executor has these names too: see `depot` before changing one.

use std::collections::BTreeMap;
use std::net::IpAddr;

use bbs_models::{Action, CheckDefinition, EnvironmentVariable, File};
use serde::{Deserialize, Serialize};

pub type Tags = BTreeMap<String, String>;

/// What a container takes from its cell. `0` pids is unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Resource {
    pub memory_mb: u64,
    pub disk_mb: u64,
    pub max_pids: u64,
}

/// What a cell has, or has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CellResources {
    pub memory_mb: u64,
    pub disk_mb: u64,
    pub containers: u64,
}

#[derive(Debug, Clone)]
pub struct AllocationRequest {
    pub guid: String,
    pub resource: Resource,
    pub tags: Tags,
}

/// Why one request of a batch was not allocated, in the words that auctioneers match on.
#[derive(Debug, Clone)]
pub struct AllocationFailure {
    pub guid: String,
    pub reason: String,
}

#[derive(Debug, Clone)]
pub struct RunRequest {
    pub guid: String,
    pub run_info: RunInfo,
    pub tags: Tags,
}

/// A change to a running container; `None` leaves as it is.
#[derive(Debug, Clone, Default)]
pub struct UpdateRequest {
    pub guid: String,
    pub internal_routes: Option<Vec<String>>,
    pub metric_tags: Option<BTreeMap<String, String>>,
}

/// The recipe and everything around it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct RunInfo {
    /// `docker://…`, `preloaded:…`, `preloaded+layer:…` or `oci:…`.
    pub rootfs: String,
    pub cpu_weight: u32,
    /// A host port of 0 asks garden for one.
    pub ports: Vec<PortMapping>,
    pub log_config: LogConfig,
    pub metric_tags: BTreeMap<String, String>,
    /// 0: no limit.
    pub start_timeout_ms: u64,
    pub privileged: bool,
    pub cached_dependencies: Vec<CachedDependency>,
    pub setup: Option<Action>,
    pub action: Option<Action>,
    pub monitor: Option<Action>,
    pub check_definition: Option<CheckDefinition>,
    pub egress_rules: Vec<EgressRule>,
    pub env: Vec<EnvironmentVariable>,
    pub trusted_system_certificates_path: String,
    pub network_properties: BTreeMap<String, String>,
    pub image_username: String,
    pub image_password: String,
    pub certificate_organizational_units: Vec<String>,
    pub internal_routes: Vec<String>,
    pub sidecars: Vec<Sidecar>,
    /// -1: unlimited.
    pub log_rate_limit_bytes_per_second: i64,
    pub volume_mounted_files: Vec<File>,
    /// Records of executors that knew of none have none.
    #[serde(default)]
    pub volume_mounts: Vec<VolumeMount>,
    /// Speak TLS for its ports, if the cell does.
    pub enable_container_proxy: bool,
}

/// Where its log lines say they come from.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct LogConfig {
    pub guid: String,
    pub index: i32,
    pub source_name: String,
    pub tags: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PortMapping {
    pub container_port: u16,
    pub host_port: u16,
    /// 0: no TLS proxy in front of this port.
    pub container_tls_proxy_port: u16,
    pub host_tls_proxy_port: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CachedDependency {
    pub name: String,
    pub from: String,
    pub to: String,
    pub cache_key: String,
    pub log_source: String,
    pub checksum_algorithm: String,
    pub checksum_value: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Sidecar {
    pub action: Action,
    pub memory_mb: u64,
    pub disk_mb: u64,
}

/// A volume that a driver of the cell mounts.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct VolumeMount {
    pub driver: String,
    pub volume_id: String,
    /// For the driver.
    pub config: serde_json::Map<String, serde_json::Value>,
    pub container_path: String,
    pub writable: bool,
}

/// One egress rule, as the BBS has it (its `SecurityGroupRule`).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct EgressRule {
    /// `tcp`, `udp`, `icmp`, `icmpv6` or `all`.
    pub protocol: String,
    /// Addresses, `a-b` ranges or CIDRs.
    pub destinations: Vec<String>,
    pub ports: Vec<u16>,
    pub port_range: Option<(u16, u16)>,
    pub icmp: Option<(i32, i32)>,
    pub log: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    Reserved,
    Initializing,
    Created,
    Running,
    Completed(RunResult),
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RunResult {
    pub failed: bool,
    /// At most `FAILURE_REASON_BYTES_MAX` bytes.
    pub failure_reason: String,
    /// A failure that another cell might not have.
    pub retryable: bool,
    /// The container completed because it was told to stop.
    pub stopped: bool,
}

/// A snapshot; the executor owns the container itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Container {
    pub guid: String,
    pub resource: Resource,
    pub tags: Tags,
    pub state: State,
    /// `None` while reserved.
    #[serde(skip)]
    pub run_info: Option<std::sync::Arc<RunInfo>>,
    pub routable: bool,
    /// Nanoseconds since the epoch.
    pub allocated_at: i64,
    pub external_ip: Option<IpAddr>,
    pub internal_ip: Option<IpAddr>,
    pub internal_ipv6: Option<IpAddr>,
    /// The mapped ports, host ports filled in, once created.
    pub ports: Vec<PortMapping>,
    /// Garden has a container for it, so that its files can be read: also after it completed, until deleted.
    pub in_garden: bool,
    /// Bytes; 0: none. Known once created.
    pub memory_limit_bytes: u64,
    pub disk_limit_bytes: u64,
}

impl Container {
    /// A container as allocation makes it: everything that later stages fill in is empty.
    pub fn reserved(guid: &str, resource: Resource, tags: Tags, allocated_at: i64) -> Self {
        Container {
            guid: guid.to_string(),
            resource,
            tags,
            state: State::Reserved,
            run_info: None,
            routable: false,
            allocated_at,
            external_ip: None,
            internal_ip: None,
            internal_ipv6: None,
            ports: Vec::new(),
            in_garden: false,
            memory_limit_bytes: 0,
            disk_limit_bytes: 0,
        }
    }

    pub fn is_completed(&self) -> bool {
        matches!(self.state, State::Completed(_))
    }
}

/// What one container uses, as garden counts it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ContainerMetrics {
    pub memory_usage_bytes: u64,
    pub memory_limit_bytes: u64,
    pub disk_usage_bytes: u64,
    pub disk_limit_bytes: u64,
    /// CPU time spent and CPU time entitled to since creation.
    pub cpu_ns: u64,
    pub cpu_entitlement_ns: u64,
    pub age_ns: u64,
    pub rx_bytes: Option<u64>,
    pub tx_bytes: Option<u64>,
    /// Of the lines that passed the log rate limit, since creation.
    pub log_bytes: u64,
    pub log_rate_limit_bytes_per_second: i64,
}

/// Something that became true about a container, in order for each container.
#[derive(Debug, Clone)]
pub enum Event {
    Reserved(Container),
    Running(Container),
    /// `routable` changed while running.
    RoutableChanged(Container),
    Completed(Container),
}

impl Event {
    pub fn container(&self) -> &Container {
        match self {
            Event::Reserved(c) | Event::Running(c) | Event::RoutableChanged(c) | Event::Completed(c) => c,
        }
    }
}
