//! The auctions that wait for the next batch, each once.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rep_client::{Lrp, Task};
use tokio::sync::Notify;

/// Instances and Tasks that may wait. More are turned away; the BBS's convergence asks again.
pub const WAITING_MAX: usize = 200_000;

/// A piece of work, and how often a cell has refused it.
#[derive(Debug, Clone, PartialEq)]
pub struct Auction<T> {
    pub work: T,
    pub refusals: u32,
}

#[derive(Debug, Default)]
pub struct Batch {
    waiting: Mutex<Waiting>,
    filled: Notify,
}

#[derive(Debug, Default)]
pub struct Waiting {
    pub lrps: Vec<Auction<Lrp>>,
    pub tasks: Vec<Auction<Task>>,
    known: HashSet<String>,
    /// Of the request that began the batch.
    pub trace_id: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{WAITING_MAX} auctions are waiting already")]
pub struct Full;

impl Batch {
    pub fn add(
        &self,
        lrps: Vec<Auction<Lrp>>,
        tasks: Vec<Auction<Task>>,
        trace_id: &str,
    ) -> Result<(), Full> {
        let mut waiting = self.lock();
        if waiting.len() + lrps.len() + tasks.len() > WAITING_MAX {
            return Err(Full);
        }
        if waiting.is_empty() {
            waiting.trace_id = trace_id.into();
        }
        for lrp in lrps {
            if waiting.known.insert(format!("lrp {}", lrp.work.identifier())) {
                waiting.lrps.push(lrp);
            }
        }
        for task in tasks {
            if waiting.known.insert(format!("task {}", task.work.task_guid)) {
                waiting.tasks.push(task);
            }
        }
        if !waiting.is_empty() {
            self.filled.notify_one();
        }
        Ok(())
    }

    pub async fn filled(&self) {
        self.filled.notified().await;
    }

    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    pub fn trace_id(&self) -> String {
        self.lock().trace_id.clone()
    }

    pub fn drain(&self) -> Waiting {
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    fn len(&self) -> usize {
        self.lrps.len() + self.tasks.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lrp(process_guid: &str, index: i32) -> Auction<Lrp> {
        Auction { work: Lrp { process_guid: process_guid.into(), index, ..Lrp::default() }, refusals: 0 }
    }

    fn task(guid: &str) -> Auction<Task> {
        Auction { work: Task { task_guid: guid.into(), ..Task::default() }, refusals: 0 }
    }

    #[test]
    fn what_is_asked_for_twice_is_auctioned_once() {
        let batch = Batch::default();
        batch.add(vec![lrp("a", 0), lrp("a", 1)], vec![task("a.0")], "one").unwrap();
        batch.add(vec![lrp("a", 1), lrp("b", 1)], vec![task("a.0"), task("t")], "two").unwrap();
        let drained = batch.drain();
        let lrps: Vec<_> = drained.lrps.iter().map(|lrp| lrp.work.identifier()).collect();
        assert_eq!(lrps, ["a.0", "a.1", "b.1"]);
        assert_eq!(drained.tasks.len(), 2);
        assert_eq!(drained.trace_id, "one");
        assert!(batch.is_empty());
        batch.add(vec![lrp("a", 1)], vec![], "").unwrap();
        assert_eq!(batch.drain().lrps.len(), 1, "what was drained may be asked for again");
    }

    #[tokio::test]
    async fn work_that_comes_during_an_auction_is_not_forgotten() {
        let batch = Batch::default();
        batch.add(vec![lrp("a", 0)], vec![], "").unwrap();
        batch.filled().await;
        batch.add(vec![lrp("a", 1)], vec![], "").unwrap();
        batch.filled().await;
        assert_eq!(batch.drain().lrps.len(), 2);
    }

    #[test]
    fn a_full_batch_turns_work_away() {
        let batch = Batch::default();
        let many = (0..WAITING_MAX as i32).map(|index| lrp("a", index)).collect();
        batch.add(many, vec![], "").unwrap();
        assert_eq!(batch.add(vec![], vec![task("t")], ""), Err(Full));
    }
}
