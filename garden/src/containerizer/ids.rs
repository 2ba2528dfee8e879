//! Ranges of host ids for user namespaces: one of its own for each container, or one shared by all.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use garden_init::IdRange;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IdPool {
    /// Containers cannot touch one another's files even where both can reach them.
    Own { base: u32, ids_per_container: u32, containers_max: u32 },
    /// All containers look the same to the host, for image stores that were written for that.
    Shared(IdRange),
}

impl Default for IdPool {
    fn default() -> IdPool {
        // Above the ranges that distributions give to users for their own (from 100000, and from 524288).
        IdPool::Own { base: 0x2000_0000, ids_per_container: 65_536, containers_max: 16_384 }
    }
}

/// A range of a container that is there already.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("host ids from {} are another container's already", range.base)]
pub struct Taken {
    range: IdRange,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("all {containers_max} ranges of host ids are taken")]
pub struct Exhausted {
    containers_max: u32,
}

#[derive(Debug, Clone)]
pub struct Allocator {
    pool: IdPool,
    taken: Arc<Mutex<BTreeSet<u32>>>,
}

/// A range that is free again once dropped.
#[derive(Debug)]
pub struct Allocated {
    pub range: IdRange,
    indexes: Range<u32>,
    taken: Arc<Mutex<BTreeSet<u32>>>,
}

impl Allocator {
    pub fn new(pool: IdPool) -> Allocator {
        Allocator { pool, taken: Arc::default() }
    }

    pub fn allocate(&self) -> Result<Allocated, Exhausted> {
        match self.pool {
            IdPool::Shared(range) => Ok(Allocated { range, indexes: 0..0, taken: self.taken.clone() }),
            IdPool::Own { base, ids_per_container, containers_max } => {
                let mut taken = lock(&self.taken);
                let index = (0..containers_max)
                    .find(|index| !taken.contains(index))
                    .ok_or(Exhausted { containers_max })?;
                taken.insert(index);
                let range =
                    IdRange { base: base + index * ids_per_container, count: ids_per_container, root: None };
                Ok(Allocated { range, indexes: index..index + 1, taken: self.taken.clone() })
            }
        }
    }

    /// What a container of an earlier garden has, whatever pool it is from: nobody else gets any of it.
    pub fn adopt(&self, range: IdRange) -> Result<Allocated, Taken> {
        let indexes = match self.pool {
            IdPool::Shared(_) => 0..0,
            IdPool::Own { base, ids_per_container, containers_max } => {
                let end = range.base.saturating_add(range.count).saturating_sub(base);
                let first = range.base.saturating_sub(base) / ids_per_container;
                first.min(containers_max)..end.div_ceil(ids_per_container).min(containers_max)
            }
        };
        let mut taken = lock(&self.taken);
        if indexes.clone().any(|index| taken.contains(&index)) {
            return Err(Taken { range });
        }
        taken.extend(indexes.clone());
        Ok(Allocated { range, indexes, taken: self.taken.clone() })
    }
}

impl Drop for Allocated {
    fn drop(&mut self) {
        let mut taken = lock(&self.taken);
        self.indexes.clone().for_each(|index| _ = taken.remove(&index));
    }
}

fn lock(taken: &Mutex<BTreeSet<u32>>) -> MutexGuard<'_, BTreeSet<u32>> {
    taken.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_container_has_a_range_of_its_own_until_it_is_gone() {
        let allocator = Allocator::new(IdPool::Own { base: 1000, ids_per_container: 10, containers_max: 2 });
        let first = allocator.allocate().unwrap();
        let second = allocator.allocate().unwrap();
        assert_eq!((first.range.base, second.range.base), (1000, 1010));
        assert_eq!(allocator.allocate().unwrap_err(), Exhausted { containers_max: 2 });
        drop(first);
        assert_eq!(allocator.allocate().unwrap().range.base, 1000);
    }

    #[test]
    fn what_a_container_has_already_is_given_to_nobody() {
        let allocator = Allocator::new(IdPool::Own { base: 1000, ids_per_container: 10, containers_max: 4 });
        let ids = |base, count| IdRange { base, count, root: None };
        let own = allocator.adopt(ids(1010, 10)).unwrap();
        assert!(allocator.adopt(ids(1010, 10)).is_err());
        // Of other pools: beside ours, or across its borders.
        let beside = [allocator.adopt(ids(0, 900)).unwrap()];
        let above = allocator.adopt(ids(5000, u32::MAX)).unwrap();
        let across = allocator.adopt(ids(995, 10)).unwrap();
        let bases =
            || [allocator.allocate().unwrap(), allocator.allocate().unwrap()].map(|ids| ids.range.base);
        assert_eq!(bases(), [1020, 1030]);
        drop((own, across, beside, above));
        assert_eq!(bases(), [1000, 1010]);
    }

    #[test]
    fn the_shared_range_never_runs_out() {
        let allocator = Allocator::new(IdPool::Shared(IdRange { base: 5, count: 6, root: None }));
        let held: Vec<_> = (0..100).map(|_| allocator.allocate().unwrap()).collect();
        assert!(held.iter().all(|one| one.range == IdRange { base: 5, count: 6, root: None }));
    }
}
