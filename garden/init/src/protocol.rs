//! Requests to pid 1 and its events, one JSON value a message, descriptors beside it.
//!
//! ```text
//! nursery:  garden ──Birth(+socket)──▶ garden-init ──Born(+pidfd, namespaces)──▶ garden
//! a blank:  garden ──Plan(+mounts …)──▶ blank ──Ready | Failed──▶ garden        (end of file first: the blank ends)
//! pid 1:    garden ──Request──▶ pid 1 ──Event──▶ garden                         (end of file: pid 1 listens for the next)
//! ```
//! The init of a pea is born and spoken to in the same way. It ends when it has nothing left to tell of its one process.

use serde::{Deserialize, Serialize};

use crate::Plan;

/// Largest message to garden-init: a plan, or a process with a full environment.
pub const REQUEST_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Largest message from garden-init; an answer to [`Request::Adopt`] is the longest.
pub const EVENT_BYTES_MAX: usize = 1024 * 1024;
/// Descriptors beside a request.
pub const REQUEST_FDS_MAX: usize = 253;
/// Descriptors beside a birth: the blank's socket and, for a pea, the pidfd of its container.
pub const BIRTH_FDS_MAX: usize = 2;
/// Descriptors beside an event: pidfd, user, network, or the three streams of a process.
pub const EVENT_FDS_MAX: usize = 4;
/// Longest name of a process.
pub const PROCESS_ID_BYTES_MAX: usize = 255;
/// Longest error text that pid 1 sends and garden keeps.
pub const ERROR_BYTES_MAX: usize = 4096;

/// To the nursery, with the blank's end of its control socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Birth {
    /// In new namespaces of every kind.
    Container {
        /// First host id and count of the container's own range; `None`: no user namespace.
        ids: Option<IdRange>,
    },
    /// In the namespaces of a container, whose pid 1's pidfd comes second; only its mounts will be its own.
    Pea {
        /// The container has no user namespace.
        privileged: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdRange {
    pub base: u32,
    pub count: u32,
    /// The container's root, where it is not `base`, which then is the host's number of the container's id 1.
    #[serde(default)]
    pub root: Option<u32>,
}

impl IdRange {
    /// The host's number of the container's root.
    pub fn root_id(&self) -> u32 {
        self.root.unwrap_or(self.base)
    }

    /// As the kernel takes it in `uid_map` and `gid_map`.
    pub fn map(&self) -> String {
        let IdRange { base, count, root } = self;
        match root {
            Some(root) => format!("0 {root} 1\n1 {base} {count}\n"),
            None => format!("0 {base} {count}\n"),
        }
    }
}

/// From the nursery. With `Born` come pidfd, network namespace (not of a pea) and, where there is one, user namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum BirthResult {
    Born { pid: i32 },
    Failed { message: String },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// The first; everything else comes after `Ready`.
    Plan(Box<Plan>),
    /// With the streams: see [`STREAMS_OF_PROCESS`].
    Spawn {
        request: u64,
        spec: Box<SpawnSpec>,
    },
    Signal {
        process: String,
        signal: i32,
    },
    WindowSize {
        process: String,
        columns: u16,
        rows: u16,
    },
    /// Closes pid 1's copy of the writing end, so that the process sees the end of its input.
    CloseStdin {
        process: String,
    },
    /// The signal to every process but pid 1.
    SignalAll {
        signal: i32,
    },
    /// With the reading end of a pipe.
    StreamIn {
        request: u64,
        user: String,
        path: String,
    },
    /// With the writing end of a pipe.
    StreamOut {
        request: u64,
        user: String,
        path: String,
    },
    /// Nobody will ask for the exit status any more; the process is forgotten.
    Acknowledge {
        process: String,
    },
    /// Tell a new agent about every process, with its streams.
    Adopt,
}

/// Descriptors of a `Spawn` without tty, in this order: the process's ends of stdin, stdout and stderr, then garden's
/// own ends of stdout, stderr and, if there is one, stdin. Pid 1 keeps copies of the latter, so that no output is lost and
/// nobody gets SIGPIPE when garden dies. With tty none are sent: `Started` brings the terminal's master, of which pid 1
/// keeps a copy.
pub const STREAMS_OF_PROCESS: usize = 3;

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SpawnSpec {
    pub process: String,
    pub path: String,
    pub args: Vec<String>,
    /// Later ones win; PATH, USER and HOME are added where missing.
    pub env: Vec<String>,
    /// Empty: the user's home directory.
    pub dir: String,
    /// Name, uid, `uid:gid`, `name:group`; empty: root.
    pub user: String,
    /// `RLIMIT_` numbers and values, soft and hard alike.
    pub rlimits: Vec<(u32, u64)>,
    pub tty: Option<WindowSize>,
    /// Whether garden's end of stdin is among the streams; without it the input is at its end at once.
    pub stdin: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSize {
    pub columns: u16,
    pub rows: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// The plan is carried out.
    Ready,
    /// The plan cannot be carried out; the container ends.
    Failed {
        message: String,
    },
    /// With tty: the master. `clamped`: limits that could only be set to the hard limit.
    Started {
        request: u64,
        pid: i32,
        clamped: Vec<u32>,
    },
    NotStarted {
        request: u64,
        reason: Refusal,
        message: String,
    },
    /// 128 + n for signal n. Repeated to each new agent until acknowledged, however often it has been told.
    Exited {
        process: String,
        status: i32,
    },
    /// A stream has been carried through, or not.
    Streamed {
        request: u64,
        error: Option<String>,
    },
    /// Answer to `Adopt`, once for each process, with garden's ends of its streams that are still open.
    Running {
        process: String,
        pid: i32,
        tty: bool,
        streams: Vec<StreamKind>,
    },
    /// All have been told.
    Adopted,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StreamKind {
    Stdin,
    Stdout,
    Stderr,
    Terminal,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    ExecutableNotFound,
    UnknownUser,
    ProcessExists,
    Other,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_of_an_unknown_kind_is_refused_not_guessed() {
        for text in ["{}", "null", "\"ready2\"", "{\"exited\":{\"process\":1,\"status\":0}}", "[\"ready\"]"] {
            assert!(serde_json::from_str::<Event>(text).is_err(), "{text}");
        }
        assert_eq!(serde_json::from_str::<Event>("\"ready\"").unwrap(), Event::Ready);
    }
}
