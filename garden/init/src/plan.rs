//! The Plan: everything about a container that is decided before it exists, as data. Carried out by `garden-init` in
//! the container's own namespaces; descriptors it names are indexes into those sent along with it.

use serde::{Deserialize, Serialize};

/// Index into the descriptors sent with the plan.
pub type Descriptor = usize;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    pub role: Role,
    /// No user namespace: root inside is root of the host.
    pub privileged: bool,
    /// The detached mount that becomes `/`.
    pub root: Descriptor,
    /// A listening socket by which a later agent finds this container; kept until the end.
    pub listener: Option<Descriptor>,
    /// Files to which pid 1 writes `0` to put itself into the container's control groups.
    pub cgroups: Vec<Descriptor>,
    pub cgroup_view: CgroupView,
    pub devices: Vec<Device>,
    pub bind_mounts: Vec<BindMount>,
    /// Covered so that they can be neither read nor listed.
    pub masked_paths: Vec<String>,
    pub read_only_paths: Vec<String>,
    /// The most any process may ever have; bit n is capability n.
    pub capabilities: u64,
    /// The most a process of a user other than root may have.
    pub non_root_capabilities: u64,
    /// A compiled filter, its instructions packed; empty: none.
    pub seccomp: Vec<u64>,
    pub no_new_privileges: bool,
    /// The AppArmor profile that every process gets.
    #[serde(default)]
    pub apparmor: Option<String>,
}

/// What the process that carries out the plan becomes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Of a container, all of whose namespaces are new.
    Pid1 {
        hostname: String,
        /// `net.ipv4.tcp_keepalive_time` and such, with their values.
        sysctls: Vec<(String, String)>,
    },
    /// The init of a pea: everything but the mounts is its container's, and set up already.
    Pea,
}

/// What is mounted below `/sys/fs/cgroup`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum CgroupView {
    Nothing,
    /// Directory and mount options of each.
    V1(Vec<(String, String)>),
    V2,
}

/// A node in `/dev`: bound from the host's where nodes cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    pub name: String,
    pub major: u32,
    pub minor: u32,
}

/// A detached mount and where it goes; the place is made when it is missing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BindMount {
    pub source: Source,
    pub destination: String,
    pub read_only: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    /// A detached mount made in the host, its attributes already set.
    Detached(Descriptor),
    /// A path of the container's own root.
    Container(String),
}
