//! One instance of an LRP as it is: who runs it, where, since when.
//!
//! ```text
//!                   claim              start
//!      UNCLAIMED ─────────▶ CLAIMED ─────────▶ RUNNING
//!        ▲   ▲                 │                  │
//!        │   └──── remove ─────┴──── crash ───────┤
//!        └──────── restart ──── CRASHED ◀─────────┘
//! ```
//!
//! Which transitions are allowed when is decided in the BBS, not here.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ModificationTag;
use crate::wire;

/// Which instance of which LRP is meant; more than one cell may work on the same key for a moment.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ActualLrpKey {
    pub process_guid: String,
    pub index: u32,
    pub domain: String,
}

impl ActualLrpKey {
    pub fn new(process_guid: impl Into<String>, index: u32, domain: impl Into<String>) -> Self {
        Self { process_guid: process_guid.into(), index, domain: domain.into() }
    }
}

impl fmt::Display for ActualLrpKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.process_guid, self.index)
    }
}

/// One attempt at running a key: new with each claim, so that a late message of an old attempt is recognised.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ActualLrpInstanceKey {
    pub instance_guid: String,
    pub cell_id: String,
}

impl ActualLrpInstanceKey {
    pub fn new(instance_guid: impl Into<String>, cell_id: impl Into<String>) -> Self {
        Self { instance_guid: instance_guid.into(), cell_id: cell_id.into() }
    }
}

/// How an instance is reached.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(into = "wire::ActualLrpNetInfo")]
pub struct ActualLrpNetInfo {
    /// The cell's address, on which `host_port`s listen.
    pub address: String,
    pub ports: Vec<PortMapping>,
    /// The container's own address.
    pub instance_address: String,
    pub instance_ipv6_address: String,
    pub preferred_address: PreferredAddress,
}

/// Ports above 65535 do not exist here; a TLS proxy port of 0 on the wire is `None`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct PortMapping {
    pub container_port: u16,
    pub host_port: u16,
    pub container_tls_proxy_port: Option<u16>,
    pub host_tls_proxy_port: Option<u16>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum PreferredAddress {
    #[default]
    Unknown,
    Instance,
    Host,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum Presence {
    #[default]
    Ordinary,
    Evacuating,
    Suspect,
}

#[derive(Debug, Clone, PartialEq)]
pub enum ActualLrpState {
    /// Nobody works on it; `placement_error` is empty or says why the last auction failed.
    Unclaimed {
        placement_error: String,
    },
    Claimed {
        instance: ActualLrpInstanceKey,
    },
    Running {
        instance: ActualLrpInstanceKey,
        net_info: ActualLrpNetInfo,
    },
    /// Waits for its restart, or for good.
    Crashed,
}

impl ActualLrpState {
    /// The name on the wire: `UNCLAIMED`, `CLAIMED`, `RUNNING`, `CRASHED`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Unclaimed { .. } => "UNCLAIMED",
            Self::Claimed { .. } => "CLAIMED",
            Self::Running { .. } => "RUNNING",
            Self::Crashed => "CRASHED",
        }
    }
}

impl fmt::Display for ActualLrpState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(into = "wire::ActualLrp", try_from = "wire::ActualLrp")]
pub struct ActualLrp {
    pub key: ActualLrpKey,
    pub state: ActualLrpState,
    pub presence: Presence,
    /// Crashes since it last ran for a while.
    pub crash_count: u32,
    /// Of the last crash; kept while the instance is restarted.
    pub crash_reason: String,
    /// When `state` was entered, in nanoseconds since the epoch.
    pub since_ns: i64,
    pub modification_tag: ModificationTag,
    /// Host names under which other instances find this one.
    pub internal_routes: Vec<String>,
    pub metric_tags: BTreeMap<String, String>,
    /// Whether the readiness check lets traffic through; `None` if the cell said nothing about it.
    pub routable: Option<bool>,
    pub availability_zone: String,
}

impl ActualLrp {
    pub fn unclaimed(key: ActualLrpKey, since_ns: i64) -> Self {
        Self {
            key,
            state: ActualLrpState::Unclaimed { placement_error: String::new() },
            presence: Presence::Ordinary,
            crash_count: 0,
            crash_reason: String::new(),
            since_ns,
            modification_tag: ModificationTag::default(),
            internal_routes: Vec::new(),
            metric_tags: BTreeMap::new(),
            routable: None,
            availability_zone: String::new(),
        }
    }

    pub fn claimed(key: ActualLrpKey, instance: ActualLrpInstanceKey, since_ns: i64) -> Self {
        Self { state: ActualLrpState::Claimed { instance }, ..Self::unclaimed(key, since_ns) }
    }

    pub fn running(
        key: ActualLrpKey,
        instance: ActualLrpInstanceKey,
        net_info: ActualLrpNetInfo,
        since_ns: i64,
    ) -> Self {
        Self { state: ActualLrpState::Running { instance, net_info }, ..Self::unclaimed(key, since_ns) }
    }

    /// The attempt that works on it, while one does.
    pub fn instance(&self) -> Option<&ActualLrpInstanceKey> {
        match &self.state {
            ActualLrpState::Claimed { instance } | ActualLrpState::Running { instance, .. } => Some(instance),
            ActualLrpState::Unclaimed { .. } | ActualLrpState::Crashed => None,
        }
    }

    pub fn net_info(&self) -> Option<&ActualLrpNetInfo> {
        match &self.state {
            ActualLrpState::Running { net_info, .. } => Some(net_info),
            _ => None,
        }
    }

    pub fn cell_id(&self) -> Option<&str> {
        self.instance().map(|instance| instance.cell_id.as_str())
    }

    pub fn instance_guid(&self) -> Option<&str> {
        self.instance().map(|instance| instance.instance_guid.as_str())
    }

    /// Empty unless it is unclaimed and an auction failed.
    pub fn placement_error(&self) -> &str {
        match &self.state {
            ActualLrpState::Unclaimed { placement_error } => placement_error,
            _ => "",
        }
    }

    pub fn is_running(&self) -> bool {
        matches!(self.state, ActualLrpState::Running { .. })
    }
}

/// What a cell reports of an instance that runs, when it starts or while its cell is evacuated.
#[derive(Debug, Clone, PartialEq)]
pub struct RunningInstance {
    pub key: ActualLrpKey,
    pub instance: ActualLrpInstanceKey,
    pub net_info: ActualLrpNetInfo,
    pub internal_routes: Vec<String>,
    pub metric_tags: BTreeMap<String, String>,
    pub routable: Option<bool>,
    pub availability_zone: String,
}

/// Which ActualLRPs are asked for; an empty field matches all.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ActualLrpFilter {
    pub domain: String,
    pub cell_id: String,
    pub process_guid: String,
    pub index: Option<u32>,
}

/// The view of the deprecated group API: at most one instance and one evacuating twin of a key.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
#[serde(into = "wire::ActualLrpGroup")]
pub struct ActualLrpGroup {
    pub instance: Option<ActualLrp>,
    pub evacuating: Option<ActualLrp>,
}
