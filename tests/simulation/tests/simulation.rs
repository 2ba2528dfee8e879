//! That the simulation sees what it is there to see, and that what it has found once stays mended.

use simulation::{Sabotage, simulate};

/// Enough for each kind of sabotage to matter in one of them.
const SEEDS: std::ops::Range<u64> = 1..13;

/// That some seed leads to a violation that says so.
fn assert_found(sabotage: Sabotage, says: &str) {
    let mut violations = SEEDS.flat_map(|seed| simulate(seed, sabotage).violations);
    assert!(violations.any(|violation| violation.contains(says)), "nothing says: {says}");
}

#[test]
fn the_same_seed_is_the_same_history() {
    for seed in [1, 2] {
        let outcome = simulate(seed, Sabotage::None);
        assert!(outcome.steps > 100, "seed {seed}: something happens");
        assert_eq!(simulate(seed, Sabotage::None).fingerprint, outcome.fingerprint, "seed {seed}");
    }
}

#[test]
fn a_task_that_runs_twice_is_seen() {
    assert_found(Sabotage::TasksRunTwice, "has run on");
}

#[test]
fn an_instance_that_does_not_stop_is_seen() {
    assert_found(Sabotage::NothingStops, "runs");
}

#[test]
fn an_acknowledged_write_that_is_lost_is_seen() {
    assert_found(Sabotage::CommitsForgotten, "was acknowledged and is not written down");
}

#[test]
fn instances_that_nobody_places_are_seen() {
    assert_found(Sabotage::NoAuctions, "not as it should be");
}

/// The clock was put back by an hour, and instances and Tasks waited for one. An auctioneer that was asked twice for a
/// Task rejected it while it ran, and it ran again.
#[test]
fn what_was_found_before_stays_mended() {
    for seed in [1795379455000003, 1795379455000004, 1795379455000009, 1795379455000031] {
        assert_eq!(simulate(seed, Sabotage::None).violations, Vec::<String>::new(), "seed {seed}");
    }
}
