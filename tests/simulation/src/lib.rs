//! A whole control plane in one thread, under a seed: the product's BBS, auctioneer and reps, on a clock, a network, a
//! disk and machines that are simulated, and break. The same seed leads to the same history, message by message.
//!
//! What is real: every request and answer as it is on the wire, the BBS from its API to its commits with all its
//! queues and convergence, the auctioneer and the auction, each rep's API, harmonizer and evacuation. What is not: the
//! network, the database's rows ([`bbs::memory`]), Locket (presences that run out) and containers.

mod cells;
mod chance;
mod chaos;
mod ledger;
mod locket;
mod machine;
mod network;
mod plane;
mod sabotage;
mod settled;

use std::time::Duration;

pub use cells::rep_router;
use chance::Chance;
use chaos::World;
use ledger::Ledger;
pub use machine::TOTAL as MACHINE_TOTAL;
pub use sabotage::Sabotage;

/// What became of one seed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    pub seed: u64,
    /// Messages that arrived, or got lost.
    pub steps: u64,
    /// Of the simulated clock.
    pub lasted: Duration,
    /// From the end of all disturbance until all was as it should be.
    pub settled_after: Option<Duration>,
    pub tasks_run: usize,
    pub commits: u64,
    pub violations: Vec<String>,
    pub trace: Vec<String>,
    /// The same for two runs in which the same happened.
    pub fingerprint: u64,
}

/// Lives through one seed.
pub fn simulate(seed: u64, sabotage: Sabotage) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime without I/O needs nothing");
    diego_base::names::under_seed(seed);
    let outcome = runtime.block_on(async {
        let began = tokio::time::Instant::now();
        let ledger = Ledger::new();
        let mut world = World::new(Chance::new(seed), ledger.clone(), sabotage);
        let settled_after = world.live().await;
        Outcome {
            seed,
            steps: ledger.steps(),
            lasted: began.elapsed(),
            settled_after,
            tasks_run: ledger.tasks_run(),
            commits: world.commits(),
            violations: ledger.violations(),
            trace: ledger.trace(),
            fingerprint: ledger.fingerprint(),
        }
    });
    runtime.shutdown_background();
    outcome
}
