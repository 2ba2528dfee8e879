//! What the Garden API takes and gives, with its JSON names.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

pub type Properties = BTreeMap<String, String>;

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerSpec {
    #[serde(skip_serializing_if = "is_default")]
    pub handle: String,
    /// Nanoseconds; 0: the server's default.
    #[serde(skip_serializing_if = "is_default")]
    pub grace_time: u64,
    /// Deprecated in favour of `image.uri`, still sent.
    #[serde(rename = "rootfs", skip_serializing_if = "is_default")]
    pub rootfs_path: String,
    pub image: ImageRef,
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub bind_mounts: Vec<BindMount>,
    #[serde(skip_serializing_if = "is_default")]
    pub network: String,
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub properties: Properties,
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub env: Vec<String>,
    #[serde(skip_serializing_if = "is_default")]
    pub privileged: bool,
    pub limits: Limits,
    #[serde(
        rename = "netout_rules",
        skip_serializing_if = "is_default",
        deserialize_with = "null_is_default"
    )]
    pub net_out: Vec<NetOutRule>,
    #[serde(rename = "netin", skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub net_in: Vec<NetIn>,
}

/// Go clients send `null` for an empty list or map.
fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageRef {
    #[serde(skip_serializing_if = "is_default")]
    pub uri: String,
    #[serde(skip_serializing_if = "is_default")]
    pub username: String,
    #[serde(skip_serializing_if = "is_default")]
    pub password: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BindMount {
    #[serde(skip_serializing_if = "is_default")]
    pub src_path: String,
    #[serde(skip_serializing_if = "is_default")]
    pub dst_path: String,
    /// 0: read-only, 1: read-write.
    #[serde(skip_serializing_if = "is_default")]
    pub mode: u8,
    /// 0: a path of the host, 1: of the container.
    #[serde(skip_serializing_if = "is_default")]
    pub origin: u8,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    #[serde(rename = "bandwidth_limits")]
    pub bandwidth: BandwidthLimits,
    #[serde(rename = "cpu_limits")]
    pub cpu: CpuLimits,
    #[serde(rename = "disk_limits")]
    pub disk: DiskLimits,
    #[serde(rename = "memory_limits")]
    pub memory: MemoryLimits,
    #[serde(rename = "pid_limits")]
    pub pid: PidLimits,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BandwidthLimits {
    #[serde(rename = "rate", skip_serializing_if = "is_default")]
    pub rate_in_bytes_per_second: u64,
    #[serde(rename = "burst", skip_serializing_if = "is_default")]
    pub burst_rate_in_bytes_per_second: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CpuLimits {
    #[serde(skip_serializing_if = "is_default")]
    pub weight: u64,
    #[serde(skip_serializing_if = "is_default")]
    pub limit_in_shares: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DiskLimits {
    #[serde(skip_serializing_if = "is_default")]
    pub inode_soft: u64,
    #[serde(skip_serializing_if = "is_default")]
    pub inode_hard: u64,
    #[serde(skip_serializing_if = "is_default")]
    pub byte_soft: u64,
    #[serde(skip_serializing_if = "is_default")]
    pub byte_hard: u64,
    /// 0: total (the image counts), 1: exclusive.
    #[serde(skip_serializing_if = "is_default")]
    pub scope: u8,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MemoryLimits {
    #[serde(skip_serializing_if = "is_default")]
    pub limit_in_bytes: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PidLimits {
    #[serde(skip_serializing_if = "is_default")]
    pub max: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NetIn {
    pub host_port: u32,
    pub container_port: u32,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NetOutRule {
    /// 0 all, 1 tcp, 2 udp, 3 icmp, 4 icmpv6.
    #[serde(skip_serializing_if = "is_default")]
    pub protocol: u8,
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub networks: Vec<IpRange>,
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub ports: Vec<PortRange>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icmps: Option<IcmpControl>,
    #[serde(skip_serializing_if = "is_default")]
    pub log: bool,
}

/// Both ends included; an end that is missing equals the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpRange {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<IpAddr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<IpAddr>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PortRange {
    #[serde(skip_serializing_if = "is_default")]
    pub start: u16,
    #[serde(skip_serializing_if = "is_default")]
    pub end: u16,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct IcmpControl {
    #[serde(rename = "type", skip_serializing_if = "is_default")]
    pub kind: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<u8>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProcessSpec {
    #[serde(skip_serializing_if = "is_default")]
    pub id: String,
    #[serde(skip_serializing_if = "is_default")]
    pub path: String,
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub args: Vec<String>,
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub env: Vec<String>,
    #[serde(skip_serializing_if = "is_default")]
    pub dir: String,
    /// A name, a uid or `uid:gid`, looked up in the container; empty: root.
    #[serde(skip_serializing_if = "is_default")]
    pub user: String,
    pub rlimits: ResourceLimits,
    #[serde(rename = "limits", skip_serializing_if = "Option::is_none")]
    pub override_container_limits: Option<ProcessLimits>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tty: Option<TtySpec>,
    pub image: ImageRef,
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub bind_mounts: Vec<BindMount>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProcessLimits {
    pub cpu_limits: CpuLimits,
    pub memory_limits: MemoryLimits,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TtySpec {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window_size: Option<WindowSize>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct WindowSize {
    #[serde(skip_serializing_if = "is_default")]
    pub columns: u16,
    #[serde(skip_serializing_if = "is_default")]
    pub rows: u16,
}

/// `setrlimit` values, soft and hard alike, by their names without `RLIMIT_`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ResourceLimits {
    #[serde(rename = "as", skip_serializing_if = "Option::is_none")]
    pub address_space: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub core: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fsize: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub locks: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memlock: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub msgqueue: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nice: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nofile: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nproc: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rss: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rtprio: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sigpending: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stack: Option<u64>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Capacity {
    #[serde(skip_serializing_if = "is_default")]
    pub memory_in_bytes: u64,
    #[serde(skip_serializing_if = "is_default")]
    pub disk_in_bytes: u64,
    #[serde(skip_serializing_if = "is_default")]
    pub schedulable_disk_in_bytes: u64,
    #[serde(skip_serializing_if = "is_default")]
    pub max_containers: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ContainerInfo {
    /// `active` or `stopped`.
    pub state: String,
    /// `Out of memory` once the kernel has killed one of its processes, whichever, for want of memory.
    #[serde(deserialize_with = "null_is_default")]
    pub events: Vec<String>,
    #[serde(rename = "HostIP")]
    pub host_ip: String,
    #[serde(rename = "ContainerIP")]
    pub container_ip: String,
    #[serde(rename = "ContainerIPv6")]
    pub container_ipv6: String,
    #[serde(rename = "ExternalIP")]
    pub external_ip: String,
    pub container_path: String,
    #[serde(rename = "ProcessIDs", deserialize_with = "null_is_default")]
    pub process_ids: Vec<String>,
    #[serde(deserialize_with = "null_is_default")]
    pub properties: Properties,
    #[serde(deserialize_with = "null_is_default")]
    pub mapped_ports: Vec<MappedPort>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct MappedPort {
    pub host_port: u32,
    pub container_port: u32,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Metrics {
    #[serde(rename = "MemoryStat")]
    pub memory: MemoryStat,
    #[serde(rename = "CPUStat")]
    pub cpu: CpuStat,
    #[serde(rename = "DiskStat")]
    pub disk: DiskStat,
    #[serde(rename = "NetworkStat")]
    pub network: Option<NetworkStat>,
    #[serde(rename = "PidStat")]
    pub pid: PidStat,
    /// Nanoseconds since creation.
    #[serde(rename = "Age")]
    pub age: u64,
    /// Nanoseconds of CPU the container was entitled to since creation.
    #[serde(rename = "CPUEntitlement")]
    pub cpu_entitlement: u64,
}

/// Bytes, by the kernel's names in `memory.stat`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MemoryStat {
    pub active_anon: u64,
    pub active_file: u64,
    pub cache: u64,
    pub hierarchical_memory_limit: u64,
    pub inactive_anon: u64,
    pub inactive_file: u64,
    pub mapped_file: u64,
    pub pgfault: u64,
    pub pgmajfault: u64,
    pub pgpgin: u64,
    pub pgpgout: u64,
    pub rss: u64,
    pub total_active_anon: u64,
    pub total_active_file: u64,
    pub total_cache: u64,
    pub total_inactive_anon: u64,
    pub total_inactive_file: u64,
    pub total_mapped_file: u64,
    pub total_pgfault: u64,
    pub total_pgmajfault: u64,
    pub total_pgpgin: u64,
    pub total_pgpgout: u64,
    pub total_rss: u64,
    pub total_unevictable: u64,
    pub unevictable: u64,
    pub swap: u64,
    pub hierarchical_memsw_limit: u64,
    pub total_swap: u64,
    /// What the limit is held against, less reclaimable file cache.
    #[serde(rename = "TotalUsageTowardLimit")]
    pub total_usage_toward_limit: u64,
    /// The most that was ever held against the limit, file cache and all; 0 where the kernel does not tell.
    #[serde(skip_serializing_if = "is_default")]
    pub peak: u64,
    pub anon: u64,
    pub file: u64,
    pub swapcached: u64,
}

/// Nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct CpuStat {
    pub usage: u64,
    pub user: u64,
    pub system: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct PidStat {
    pub current: u64,
    pub max: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DiskStat {
    pub total_bytes_used: u64,
    pub total_inodes_used: u64,
    pub exclusive_bytes_used: u64,
    pub exclusive_inodes_used: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NetworkStat {
    pub rx_bytes: u64,
    pub tx_bytes: u64,
}
