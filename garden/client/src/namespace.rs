//! How garden tells whoever serves a container's network where that is: a property of its own making in a container's
//! info. A garden that does not tell is one whose containers nobody enters.

use std::fmt;
use std::str::FromStr;

/// In the properties of a container's info, as `PID:STARTED`; whatever its creator wrote there is not told.
pub const NETWORK_NAMESPACE_PROPERTY: &str = "garden.network.namespace";

/// The network namespace of one process, its container's first. The process is one for certain: ids of processes come
/// again, their start times do not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NetworkNamespace {
    /// In the numbering of the host that garden runs on.
    pub pid: i32,
    /// In clock ticks since that host's boot, as the kernel tells it in the process's `stat`.
    pub started: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{NETWORK_NAMESPACE_PROPERTY} is '{0}', not PID:STARTED")]
pub struct NotANamespace(String);

impl fmt::Display for NetworkNamespace {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}:{}", self.pid, self.started)
    }
}

impl FromStr for NetworkNamespace {
    type Err = NotANamespace;

    fn from_str(text: &str) -> Result<Self, NotANamespace> {
        let parse = || {
            let (pid, started) = text.split_once(':')?;
            Some(NetworkNamespace { pid: pid.parse().ok()?, started: started.parse().ok()? })
        };
        parse().filter(|found| found.pid > 0).ok_or_else(|| NotANamespace(text.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_is_a_process_and_its_start() {
        let namespace = NetworkNamespace { pid: 42, started: 4711 };
        assert_eq!(namespace.to_string().parse(), Ok(namespace));
        for text in ["", "42", "42:", ":1", "0:1", "-1:1", "42:x", "42:1:2", "/proc/42/ns/net"] {
            assert!(text.parse::<NetworkNamespace>().is_err(), "{text}");
        }
    }
}
