//! What is not as it should be, and what would make it so. Pure: a look at all the state, at one moment.
//!
//! Each [`Repair`] is decided on what was seen; whoever carries it out checks again, as the state moves on meanwhile.

mod lrps;
#[cfg(test)]
mod tables;
mod tasks;

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use bbs_models::{ActualLrpInstanceKey, ActualLrpKey};

use crate::state::State;

/// The cells that are there. Nobody is called missing before it is known who is there.
#[derive(Debug, Clone)]
pub enum LiveCells {
    Known(HashSet<String>),
    /// The BBS has just started: cells have not had the time to say that they are there.
    NotYetKnown,
}

impl LiveCells {
    fn is_missing(&self, cell_id: &str) -> bool {
        match self {
            LiveCells::Known(live) => !live.contains(cell_id),
            LiveCells::NotYetKnown => false,
        }
    }

    fn is_live(&self, cell_id: &str) -> bool {
        match self {
            LiveCells::Known(live) => live.contains(cell_id),
            LiveCells::NotYetKnown => false,
        }
    }
}

/// How long things may stay as they are.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// An unclaimed instance before it is auctioned again.
    pub unclaimed: Duration,
    /// A Task that is to be told about, before somebody is reminded; half of it, for one that waits for a cell.
    pub kick_task: Duration,
    /// A Task that waits for a cell, before it fails.
    pub expire_pending_task: Duration,
    /// A completed Task, before it is forgotten.
    pub expire_completed_task: Duration,
}

impl Default for Patience {
    fn default() -> Patience {
        Patience {
            unclaimed: Duration::from_secs(30),
            kick_task: Duration::from_secs(30),
            expire_pending_task: Duration::from_secs(1800),
            expire_completed_task: Duration::from_secs(120),
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub enum Repair {
    /// Nobody said for too long that it is fresh.
    PruneDomain {
        domain: String,
    },
    /// Desired, and nobody has it: it is created and auctioned.
    CreateInstance {
        key: ActualLrpKey,
    },
    /// It waits for too long: its auction may have been lost.
    AuctionAgain {
        key: ActualLrpKey,
    },
    /// It crashed, and its wait is over.
    RestartCrashed {
        key: ActualLrpKey,
    },
    /// Nobody desires it (any more).
    Retire {
        key: ActualLrpKey,
    },
    /// Its cell is not there: it becomes suspect, and another is placed.
    CellLost {
        key: ActualLrpKey,
        instance: ActualLrpInstanceKey,
    },
    /// The suspect's cell is there again.
    PromoteSuspect {
        key: ActualLrpKey,
    },
    /// The suspect is replaced, or nobody desires it.
    RemoveSuspect {
        key: ActualLrpKey,
    },
    /// The leaving cell has left.
    RemoveEvacuating {
        key: ActualLrpKey,
        instance: ActualLrpInstanceKey,
    },
    /// Its cell missed an update.
    UpdateInstance {
        key: ActualLrpKey,
        instance: ActualLrpInstanceKey,
        internal_routes: Option<Vec<String>>,
        metric_tags: Option<BTreeMap<String, String>>,
    },
    FailTask {
        guid: String,
        reason: &'static str,
    },
    AuctionTask {
        guid: String,
    },
    /// Whoever was to tell its client did not come back.
    DemoteTask {
        guid: String,
    },
    /// Nobody asked for its result.
    DeleteTask {
        guid: String,
    },
    /// Its client is to be told.
    CallBack {
        guid: String,
    },
}

/// All that is to be done, in an order in which it can be.
pub fn repairs(state: &State, live: &LiveCells, patience: &Patience, now_ns: i64) -> Vec<Repair> {
    let mut repairs: Vec<Repair> = state
        .domains()
        .filter(|(_, expires_at_ns)| *expires_at_ns <= now_ns)
        .map(|(domain, _)| Repair::PruneDomain { domain: domain.into() })
        .collect();
    lrps::repairs(state, live, patience, now_ns, &mut repairs);
    tasks::repairs(state, live, patience, now_ns, &mut repairs);
    repairs
}

/// So far from now that somebody should be reminded. What lies in the future was written before the clock was put back,
/// or by another clock: nobody knows how long ago it was, and nobody waits for a future that is hours away.
fn is_far(since_ns: i64, patience: Duration, now_ns: i64) -> bool {
    is_over(since_ns, patience, now_ns) || is_over(now_ns, patience, since_ns)
}

/// Longer ago than `patience`.
fn is_over(since_ns: i64, patience: Duration, now_ns: i64) -> bool {
    now_ns.saturating_sub(since_ns) > crate::transitions::restart::nanoseconds(patience)
}
