//! CPU throttling: a container that has used more CPU than it is entitled to makes way for those that have not.
//!
//! Established servers keep two groups, of good and of bad containers, and move processes between them; the bad group
//! weighs what its containers are entitled to together, the good one the rest of the machine. Here nothing is moved, for
//! on version 2 a process that moves leaves its memory and its memory limit behind. What each weighs is worked out
//! instead: the same proportions, among those that want CPU at the moment.
//!
//! Weights are looked over each interval. Processes with limits of their own are not throttled.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::{Gardener, chain, measure};
use crate::containerizer::{CPU_SHARES_MAX, CPU_SHARES_MIN, Container};

const MIB: u64 = 1 << 20;
/// CPU in an interval, in thousandths of it, from which on a container counts as wanting more.
const AWAKE_PER_MILLE: u64 = 10;

/// What a container has a right to, and what it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Load {
    shares: u64,
    entitled_ns: u64,
    used_ns: u64,
    /// It has used CPU since the last look.
    awake: bool,
}

impl Load {
    fn is_bad(&self) -> bool {
        self.used_ns > self.entitled_ns
    }
}

/// What each container shall weigh. `machine` is the weight of all containers together, `multiplier` says how much of it
/// one share of a bad container stands for.
fn weights(loads: &[Load], machine: u64, multiplier: f64) -> Vec<u64> {
    let sum = |good: bool, awake: bool| -> u64 {
        let counted = loads.iter().filter(|load| load.is_bad() != good && (load.awake || !awake));
        counted.map(|load| load.shares).sum()
    };
    let all_bad = scale(sum(false, false), multiplier);
    let (some_bad, some_good) = (sum(false, false) > 0, loads.iter().any(|load| !load.is_bad()));
    if !(some_bad && some_good) {
        return loads.iter().map(|load| load.shares).collect();
    }
    // More bad shares than the machine has: the good then weigh all they can.
    let good = machine.checked_sub(all_bad).filter(|good| *good > 0).unwrap_or(CPU_SHARES_MAX);
    let awake_good = sum(true, true);
    let weight = |load: &Load| {
        if load.is_bad() {
            return scale(load.shares, multiplier);
        }
        // One that sleeps shares with those awake when it wakes before the next look.
        let sharing = if load.awake { awake_good } else { awake_good + load.shares };
        scale(good, load.shares as f64 / sharing.max(1) as f64)
    };
    loads.iter().map(|load| weight(load).clamp(CPU_SHARES_MIN, CPU_SHARES_MAX)).collect()
}

fn scale(value: u64, factor: f64) -> u64 {
    (value as f64 * factor) as u64
}

/// A container as it was at the last look.
struct Seen {
    used_ns: u64,
    weight: u64,
}

/// Until `shutdown`; then everybody weighs what its shares say.
pub async fn throttle(gardener: Gardener, interval: Duration, shutdown: CancellationToken) {
    let mut seen = BTreeMap::new();
    while shutdown.run_until_cancelled(tokio::time::sleep(interval)).await.is_some() {
        let gardener = gardener.clone();
        let looked = tokio::task::spawn_blocking(move || {
            look(&gardener, interval, &mut seen);
            seen
        });
        seen = looked.await.unwrap_or_default();
    }
    _ = tokio::task::spawn_blocking(move || {
        for (container, _) in measured(&gardener) {
            set(&container, container.cpu_shares());
        }
    })
    .await;
}

/// Each container with the CPU it has used. One that is not whole now is looked at next time.
fn measured(gardener: &Gardener) -> Vec<(Arc<Container>, u64)> {
    let entries: Vec<_> = gardener.entries().values().cloned().collect();
    let containers = entries.iter().filter_map(|entry| entry.container().ok());
    containers.filter_map(|container| Some((container.clone(), container.usage().ok()?.cpu.usage))).collect()
}

fn look(gardener: &Gardener, interval: Duration, seen: &mut BTreeMap<String, Seen>) {
    let measured = measured(gardener);
    let awake_ns = interval.as_nanos() as u64 * AWAKE_PER_MILLE / 1000;
    let load = |(container, used_ns): &(Arc<Container>, u64)| {
        let before = seen.get(container.handle()).map_or(0, |seen| seen.used_ns);
        let entitled_ns = gardener.entitled_ns(container.handle()).unwrap_or(u64::MAX);
        let awake = used_ns.saturating_sub(before) > awake_ns;
        Load { shares: container.cpu_shares(), entitled_ns, used_ns: *used_ns, awake }
    };
    let loads: Vec<Load> = measured.iter().map(load).collect();
    let multiplier = gardener.0.cpu_entitlement_per_share
        / measure::default_entitlement_per_share(gardener.0.total_memory_bytes);
    let weights = weights(&loads, gardener.0.total_memory_bytes / MIB, multiplier);
    let mut now = BTreeMap::new();
    for ((container, used_ns), weight) in measured.into_iter().zip(weights) {
        // At first by all means: an earlier garden may have weighed it otherwise.
        let before = seen.get(container.handle()).map(|seen| seen.weight);
        if before != Some(weight) {
            tracing::debug!(handle = container.handle(), weight, ?before, "CPU weight");
            set(&container, weight);
        }
        now.insert(container.handle().to_owned(), Seen { used_ns, weight });
    }
    *seen = now;
}

fn set(container: &Container, weight: u64) {
    if let Err(error) = container.weigh(weight) {
        // It may just be ending; if it is not, the next look tries again.
        tracing::debug!(handle = container.handle(), error = chain(&error), "cannot set the CPU weight");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `good` or `bad`, `+` for awake, and shares: `bad+100`.
    fn check(loads: &str, machine: u64, multiplier: f64, expected: &[u64]) {
        let loads: Vec<Load> = loads
            .split_whitespace()
            .map(|load| Load {
                shares: load.trim_start_matches(|c: char| !c.is_ascii_digit()).parse().unwrap(),
                entitled_ns: 10,
                used_ns: if load.starts_with("bad") { 11 } else { 10 },
                awake: load.contains('+'),
            })
            .collect();
        assert_eq!(weights(&loads, machine, multiplier), expected, "{loads:?}");
    }

    #[test]
    fn the_bad_weigh_what_they_are_entitled_to_and_the_good_the_rest() {
        check("", 1000, 1.0, &[]);
        check("good+100 good200", 1000, 1.0, &[100, 200]);
        check("bad+100 bad+200", 1000, 1.0, &[100, 200]);
        check("good+100 bad+200", 1000, 1.0, &[800, 200]);
        check("good+100 good+300 bad+200", 1000, 1.0, &[200, 600, 200]);
        check("good+100 good700 bad+200", 1000, 1.0, &[800, 700, 200]);
        check("good100 good300 bad+200", 1000, 1.0, &[800, 800, 200]);
        check("good+100 bad+200", 1000, 0.5, &[900, 100]);
        check("good+100 bad+2000", 1000, 1.0, &[CPU_SHARES_MAX, 2000]);
        check("good+1 bad+1", 1000, 0.0, &[1000, CPU_SHARES_MIN]);
    }
}
