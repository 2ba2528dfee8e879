//! Ranges of host ids for user namespaces: one of its own for each container, or one shared by all.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

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
    index: Option<(u32, Arc<Mutex<BTreeSet<u32>>>)>,
}

impl Allocator {
    pub fn new(pool: IdPool) -> Allocator {
        Allocator { pool, taken: Arc::default() }
    }

    pub fn allocate(&self) -> Result<Allocated, Exhausted> {
        match self.pool {
            IdPool::Shared(range) => Ok(Allocated { range, index: None }),
            IdPool::Own { base, ids_per_container, containers_max } => {
                let mut taken = self.taken.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                let index = (0..containers_max)
                    .find(|index| !taken.contains(index))
                    .ok_or(Exhausted { containers_max })?;
                taken.insert(index);
                let range = IdRange { base: base + index * ids_per_container, count: ids_per_container, root: None };
                Ok(Allocated { range, index: Some((index, self.taken.clone())) })
            }
        }
    }
}

impl Drop for Allocated {
    fn drop(&mut self) {
        if let Some((index, taken)) = self.index.take() {
            taken.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).remove(&index);
        }
    }
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
    fn the_shared_range_never_runs_out() {
        let allocator = Allocator::new(IdPool::Shared(IdRange { base: 5, count: 6, root: None }));
        let held: Vec<_> = (0..100).map(|_| allocator.allocate().unwrap()).collect();
        assert!(held.iter().all(|one| one.range == IdRange { base: 5, count: 6, root: None }));
    }
}
