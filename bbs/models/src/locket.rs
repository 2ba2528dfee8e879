//! What Locket keeps: locks, of which each key has one owner, and presences, by which a process says it is there.

/// How long a lock outlives its last renewal, unless its holder asks otherwise.
pub const LOCK_TTL_SECONDS: u64 = 15;
/// Between two renewals.
pub const LOCK_RENEWAL_SECONDS: u64 = 5;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resource {
    pub key: String,
    /// New for each process that holds the key, so that a restarted one does not take itself for the old.
    pub owner: String,
    /// A presence's is JSON: a cell's is its [`CellPresence`](crate::CellPresence).
    pub value: String,
    pub kind: LockKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LockKind {
    Lock,
    Presence,
}

impl LockKind {
    /// The deprecated textual type, still sent beside the number.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lock => "lock",
            Self::Presence => "presence",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "lock" => Some(Self::Lock),
            "presence" => Some(Self::Presence),
            _ => None,
        }
    }
}
