//! Carry out what the API asks for: have the board change, then tell the auctioneer, the cells and the callbacks.
//!
//! What is told to others is told after the commit, from queues with a limit. If it gets lost, because a peer is away
//! or a queue is full, nothing is lost but time: convergence finds what is missing and says it again.

mod actual_lrps;
mod auctions;
mod callbacks;
mod cells;
mod convergence;
mod desired_lrps;
mod evacuation;
mod tasks;

use std::sync::Arc;

use bbs_models::{ActualLrpKey, Error};
use tokio::sync::mpsc;

pub use auctions::{Auctioneer, Auctions};
pub use callbacks::Callbacks;
pub use cells::{Cells, RepClients, Reps};
pub use convergence::{Intervals, VACANCIES_QUEUED_MAX, keep_converging};

use crate::board::Board;
use crate::transitions::domain;
use crate::witness::Witness;

/// What the API's routes call. Clones share everything.
#[derive(Clone)]
pub struct Controllers {
    pub board: Board,
    pub auctions: Auctions,
    pub cells: Cells,
    pub callbacks: Callbacks,
    /// Indices that have just lost their instance and may still be desired: convergence need not look for them.
    pub vacancies: mpsc::Sender<ActualLrpKey>,
    /// How often a Task may be rejected before it fails.
    pub task_retries_max: u32,
    pub witness: Arc<dyn Witness>,
}

impl Controllers {
    pub async fn upsert_domain(&self, trace_id: &str, name: String, ttl_s: u32) -> Result<(), Error> {
        self.board
            .write(trace_id, move |draft| {
                let before = draft.state().domain(&name);
                draft.record(domain::upsert(name, before, ttl_s, draft.now_ns));
                Ok(())
            })
            .await
    }

    pub fn fresh_domains(&self) -> Vec<String> {
        let now_ns = self.board.now_ns();
        self.board.read(|state| {
            let fresh = state.domains().filter(|(_, expires_at_ns)| *expires_at_ns > now_ns);
            fresh.map(|(name, _)| name.to_string()).collect()
        })
    }
}
