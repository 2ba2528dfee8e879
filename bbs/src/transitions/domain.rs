//! Domains: who desires LRPs in one says, again and again, that it is fresh. Only then what is extra is destroyed.

use std::time::Duration;

use super::restart::nanoseconds;
use crate::state::Change;

/// Never becomes stale.
pub const FOREVER_NS: i64 = i64::MAX;

/// A `ttl_s` of 0 means for ever.
pub fn upsert(domain: String, before: Option<i64>, ttl_s: u32, now_ns: i64) -> Change {
    let after = match ttl_s {
        0 => FOREVER_NS,
        seconds => now_ns.saturating_add(nanoseconds(Duration::from_secs(seconds.into()))),
    };
    Change::Domain { domain, before, after: Some(after) }
}

/// `None` while it is fresh.
pub fn prune(domain: String, before: Option<i64>, now_ns: i64) -> Option<Change> {
    let expires_at_ns = before?;
    (expires_at_ns <= now_ns).then_some(Change::Domain { domain, before, after: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expiry(change: Change) -> Option<i64> {
        let Change::Domain { after, .. } = change else { panic!("no domain") };
        after
    }

    #[test]
    fn a_domain_is_fresh_for_its_seconds_and_without_seconds_for_ever() {
        assert_eq!(expiry(upsert("d".into(), None, 2, 5)), Some(2_000_000_005));
        assert_eq!(expiry(upsert("d".into(), Some(1), 0, 5)), Some(FOREVER_NS));
        assert_eq!(expiry(upsert("d".into(), None, u32::MAX, i64::MAX - 1)), Some(i64::MAX));
    }

    #[test]
    fn only_a_stale_domain_is_pruned() {
        assert!(prune("d".into(), Some(10), 9).is_none());
        assert!(prune("d".into(), Some(10), 10).is_some());
        assert!(prune("d".into(), None, 10).is_none());
    }
}
