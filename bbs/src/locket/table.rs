//! Who holds what, and until when. Pure: the time is handed in, and nothing is told to anyone.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use bbs_models::{LockKind, Resource};

/// Keys held at once; a cell holds one.
pub const LOCKS_MAX: usize = 100_000;
pub const KEY_BYTES_MAX: usize = 255;
pub const OWNER_BYTES_MAX: usize = 255;
/// A cell's presence with all its tags is a few hundred bytes.
pub const VALUE_BYTES_MAX: usize = 64 * 1024;
/// A longer time to live is cut: a holder that died should be missed within the day.
pub const TTL_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Why a request is not granted. The texts are those that clients know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("lock-collision")]
    Collision,
    #[error("invalid-ttl")]
    InvalidTtl,
    #[error("invalid-owner")]
    InvalidOwner,
    #[error("invalid-type")]
    InvalidType,
    #[error("resource-not-found")]
    NotFound,
    #[error("{what} is longer than {bytes_max} bytes")]
    TooLong { what: &'static str, bytes_max: usize },
    #[error("{LOCKS_MAX} keys are held already")]
    Full,
    /// The database, not the request, is at fault.
    #[error("failed-to-write: {0}")]
    Store(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    pub resource: Resource,
    pub ttl: Duration,
}

/// What a granted lock was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Granted {
    Acquired,
    /// Held before by the same owner, with another value or time to live.
    Changed,
    Renewed,
}

#[derive(Debug, Default)]
pub struct Table {
    held: HashMap<String, (Held, Instant)>,
    /// When each key expires, soonest first.
    expiries: BTreeSet<(Instant, String)>,
}

impl Table {
    /// What was held when the last Locket ended. Every holder gets its full time again to be heard of.
    pub fn restored(held: Vec<Held>, now: Instant) -> Self {
        let mut table = Self::default();
        for held in held {
            table.put(held, now);
        }
        table
    }

    /// What locking would be, without doing it.
    pub fn check_lock(&self, resource: &Resource, ttl: Duration) -> Result<Granted, Refusal> {
        if ttl.is_zero() {
            return Err(Refusal::InvalidTtl);
        }
        if resource.owner.is_empty() {
            return Err(Refusal::InvalidOwner);
        }
        fits("the key", &resource.key, KEY_BYTES_MAX)?;
        fits("the owner", &resource.owner, OWNER_BYTES_MAX)?;
        fits("the value", &resource.value, VALUE_BYTES_MAX)?;
        match self.held.get(&resource.key) {
            None if self.held.len() >= LOCKS_MAX => Err(Refusal::Full),
            None => Ok(Granted::Acquired),
            Some((held, _)) if held.resource.owner != resource.owner => Err(Refusal::Collision),
            Some((held, _)) if held.resource == *resource && held.ttl == ttl.min(TTL_MAX) => {
                Ok(Granted::Renewed)
            }
            Some(_) => Ok(Granted::Changed),
        }
    }

    pub fn put(&mut self, held: Held, now: Instant) {
        let held = Held { ttl: held.ttl.min(TTL_MAX), ..held };
        let (key, expires) = (held.resource.key.clone(), now + held.ttl);
        if let Some((_, before)) = self.held.insert(key.clone(), (held, expires)) {
            self.expiries.remove(&(before, key.clone()));
        }
        self.expiries.insert((expires, key));
    }

    /// Whether there is something to release: `false` if nobody holds the key.
    pub fn check_release(&self, key: &str, owner: &str) -> Result<bool, Refusal> {
        match self.held.get(key) {
            None => Ok(false),
            Some((held, _)) if held.resource.owner == owner => Ok(true),
            Some(_) => Err(Refusal::Collision),
        }
    }

    pub fn take(&mut self, key: &str) -> Option<Resource> {
        let (held, expires) = self.held.remove(key)?;
        self.expiries.remove(&(expires, key.to_string()));
        Some(held.resource)
    }

    pub fn fetch(&self, key: &str) -> Result<Resource, Refusal> {
        self.held.get(key).map(|(held, _)| held.resource.clone()).ok_or(Refusal::NotFound)
    }

    /// All of one kind, by key.
    pub fn fetch_all(&self, kind: LockKind) -> Vec<Resource> {
        let mut found: Vec<Resource> = self
            .held
            .values()
            .map(|(held, _)| &held.resource)
            .filter(|held| held.kind == kind)
            .cloned()
            .collect();
        found.sort_by(|a, b| a.key.cmp(&b.key));
        found
    }

    pub fn count(&self, kind: LockKind) -> usize {
        self.held.values().filter(|(held, _)| held.resource.kind == kind).count()
    }

    pub fn next_expiry(&self) -> Option<Instant> {
        self.expiries.first().map(|(at, _)| *at)
    }

    /// The keys whose time is over.
    pub fn expired(&self, now: Instant) -> Vec<String> {
        self.expiries.iter().take_while(|(at, _)| *at <= now).map(|(_, key)| key.clone()).collect()
    }
}

fn fits(what: &'static str, text: &str, bytes_max: usize) -> Result<(), Refusal> {
    if text.len() <= bytes_max { Ok(()) } else { Err(Refusal::TooLong { what, bytes_max }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resource(key: &str, owner: &str) -> Resource {
        Resource { key: key.into(), owner: owner.into(), value: "v".into(), kind: LockKind::Lock }
    }

    const TTL: Duration = Duration::from_secs(15);

    fn holding(now: Instant) -> Table {
        Table::restored(vec![Held { resource: resource("bbs", "one"), ttl: TTL }], now)
    }

    #[test]
    fn a_key_has_one_owner() {
        let table = holding(Instant::now());
        let changed = Resource { value: "w".into(), ..resource("bbs", "one") };
        for (resource, ttl, expected) in [
            (resource("bbs", "one"), TTL, Ok(Granted::Renewed)),
            (changed, TTL, Ok(Granted::Changed)),
            (resource("bbs", "one"), TTL * 2, Ok(Granted::Changed)),
            (resource("bbs", "two"), TTL, Err(Refusal::Collision)),
            (resource("other", "two"), TTL, Ok(Granted::Acquired)),
            (resource("other", "two"), Duration::ZERO, Err(Refusal::InvalidTtl)),
            (resource("other", ""), TTL, Err(Refusal::InvalidOwner)),
        ] {
            assert_eq!(table.check_lock(&resource, ttl), expected, "{resource:?} {ttl:?}");
        }
        let long = resource(&"k".repeat(KEY_BYTES_MAX + 1), "one");
        assert!(matches!(table.check_lock(&long, TTL), Err(Refusal::TooLong { .. })));
    }

    #[test]
    fn only_the_owner_releases() {
        let mut table = holding(Instant::now());
        assert_eq!(table.check_release("bbs", "two"), Err(Refusal::Collision));
        assert_eq!(table.check_release("none", "two"), Ok(false));
        assert_eq!(table.check_release("bbs", "one"), Ok(true));
        assert_eq!(table.take("bbs"), Some(resource("bbs", "one")));
        assert_eq!(table.fetch("bbs"), Err(Refusal::NotFound));
        assert_eq!(table.next_expiry(), None);
    }

    #[test]
    fn a_renewal_puts_the_expiry_off() {
        let start = Instant::now();
        let mut table = holding(start);
        assert_eq!(table.next_expiry(), Some(start + TTL));
        table.put(Held { resource: resource("bbs", "one"), ttl: TTL }, start + Duration::from_secs(10));
        assert!(table.expired(start + TTL).is_empty());
        assert_eq!(table.expired(start + TTL + Duration::from_secs(10)), ["bbs"]);
    }
}
