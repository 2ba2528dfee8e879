//! The cells of one zone, the least loaded first, so that the best of them is found without looking at all of them.

use std::cmp::Ordering;
use std::collections::BTreeSet;

use crate::{Resource, Resources};

#[derive(Debug, Clone, Copy, PartialEq)]
struct Key(f64);

impl Eq for Key {}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Key {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.total_cmp(&other.0)
    }
}

/// By the share of the score that does not depend on the work.
#[derive(Debug, Default)]
pub(crate) struct Order {
    slots: BTreeSet<(Key, usize)>,
    /// The most that any cell has of each.
    total_max: Resources,
}

impl Order {
    pub fn insert(&mut self, key: f64, at: usize, total: &Resources) {
        self.slots.insert((Key(key), at));
        self.total_max.memory_mb = self.total_max.memory_mb.max(total.memory_mb);
        self.total_max.disk_mb = self.total_max.disk_mb.max(total.disk_mb);
        self.total_max.containers = self.total_max.containers.max(total.containers);
    }

    pub fn moved(&mut self, before: f64, after: f64, at: usize) {
        self.slots.remove(&(Key(before), at));
        self.slots.insert((Key(after), at));
    }

    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// No cell's score grows by less than this when it takes the work.
    pub fn share_min(&self, resource: &Resource) -> f64 {
        let least = |part: i32, total: i32| {
            if total > 0 { (f64::from(part) / f64::from(total)).min(1.0) } else { 1.0 }
        };
        (least(resource.memory_mb, self.total_max.memory_mb)
            + least(resource.disk_mb, self.total_max.disk_mb)
            + least(1, self.total_max.containers))
            / 3.0
    }

    /// The cells one after the other, until none of those that are left can have a score below the best, which `consider`
    /// answers: of many cells that are loaded alike only the first is looked at.
    pub fn each(&self, share_min: f64, mut consider: impl FnMut(usize) -> Option<f64>) {
        let mut best = f64::INFINITY;
        for (Key(key), at) in &self.slots {
            if key + share_min >= best {
                return;
            }
            best = consider(*at).unwrap_or(f64::INFINITY);
        }
    }
}
