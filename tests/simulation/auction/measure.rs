//! How good a placement is.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::time::Duration;

use auction::Lrp;

use crate::scenarios::Scenario;

/// Fractions are of 1.
pub struct Measured {
    /// By cell, in the scenario's order: the fraction of its memory that was used before, and is now.
    pub loads: Vec<(f64, f64)>,
    pub placed: usize,
    pub failed: usize,
    /// The standard deviation of used memory over cells by its mean: 0 is perfectly even.
    pub spread: f64,
    /// Jain's index of used memory: 1 if all cells carry the same, 1/n if one carries all.
    pub evenness: f64,
    /// Instances that were placed: in the zone with the fewest and with the most.
    pub zones: (usize, usize),
    /// Of the LRPs with several instances placed: the largest part of one that is lost with one cell, and with one zone.
    pub lost_with_cell: f64,
    pub lost_with_zone: f64,
    /// LRPs of which not one instance was placed.
    pub without: usize,
    pub rounds: usize,
    pub took: Duration,
    /// What each cell got: identifiers of instances.
    pub holdings: Vec<BTreeSet<String>>,
}

impl Measured {
    /// `placed`: index of a cell, and what it got.
    pub fn new(scenario: &Scenario, placed: Vec<(usize, Lrp)>, rounds: usize, took: Duration) -> Measured {
        let loads = loads(scenario, &placed);
        let used: Vec<f64> = loads.iter().map(|(_, after)| *after).collect();
        let zones = counts(placed.iter().map(|(at, _)| scenario.cells[*at].zone.clone()));
        let empty = scenario.cells.iter().filter(|cell| !zones.contains_key(&cell.zone)).count();
        let fewest = if empty > 0 { 0 } else { zones.values().copied().min().unwrap_or(0) };
        let wanted: BTreeSet<&str> = scenario.lrps.iter().map(|lrp| lrp.process_guid.as_str()).collect();
        let got: BTreeSet<&str> = placed.iter().map(|(_, lrp)| lrp.process_guid.as_str()).collect();
        let mut holdings = vec![BTreeSet::new(); scenario.cells.len()];
        for (at, lrp) in &placed {
            holdings[*at].insert(format!("{}.{}", lrp.process_guid, lrp.index));
        }
        Measured {
            spread: spread(&used),
            evenness: evenness(&used),
            zones: (fewest, zones.values().copied().max().unwrap_or(0)),
            lost_with_cell: lost(&placed, |at| at),
            lost_with_zone: lost(&placed, |at| scenario.cells[at].zone.as_str()),
            without: wanted.len() - got.len(),
            failed: scenario.lrps.len() - placed.len(),
            placed: placed.len(),
            loads,
            rounds,
            took,
            holdings,
        }
    }
}

fn loads(scenario: &Scenario, placed: &[(usize, Lrp)]) -> Vec<(f64, f64)> {
    let mut used: Vec<i32> =
        scenario.cells.iter().map(|cell| cell.total.memory_mb - cell.available.memory_mb).collect();
    let before = used.clone();
    placed.iter().for_each(|(at, lrp)| used[*at] += lrp.resource.memory_mb);
    let fraction = |at: usize, used: i32| f64::from(used) / f64::from(scenario.cells[at].total.memory_mb);
    (0..used.len()).map(|at| (fraction(at, before[at]), fraction(at, used[at]))).collect()
}

fn counts<K: Ord>(keys: impl Iterator<Item = K>) -> BTreeMap<K, usize> {
    keys.fold(BTreeMap::new(), |mut counts, key| {
        *counts.entry(key).or_default() += 1;
        counts
    })
}

fn spread(values: &[f64]) -> f64 {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / count;
    if mean > 0.0 { variance.sqrt() / mean } else { 0.0 }
}

fn evenness(values: &[f64]) -> f64 {
    let squares = values.iter().map(|value| value * value).sum::<f64>();
    if squares > 0.0 { values.iter().sum::<f64>().powi(2) / (values.len() as f64 * squares) } else { 1.0 }
}

/// The largest part of an LRP's placed instances that are in one place.
fn lost<'a, P: Ord + 'a>(placed: &'a [(usize, Lrp)], place: impl Fn(usize) -> P) -> f64 {
    let of_lrps = counts(placed.iter().map(|(_, lrp)| lrp.process_guid.as_str()));
    let of_places = counts(placed.iter().map(|(at, lrp)| (lrp.process_guid.as_str(), place(*at))));
    let parts = of_places.iter().filter(|((guid, _), _)| of_lrps[guid] > 1);
    parts.map(|((guid, _), count)| *count as f64 / of_lrps[guid] as f64).fold(0.0, f64::max)
}

pub fn table(scenario: &Scenario, runs: &[(&str, Measured)]) -> String {
    let mut text = format!("{}: {}\n", scenario.name, scenario.about);
    text += "                   placed  failed  no instance  spread  evenness       zones  lost with a cell, a zone  rounds      time\n";
    for (name, run) in runs {
        let zones = format!("{}-{}", run.zones.0, run.zones.1);
        // Nothing is wrong with a text that cannot be written to.
        let _ = writeln!(
            text,
            "  {name:<15} {:>7} {:>7} {:>12} {:>7.3} {:>9.3} {zones:>11} {:>16.0} % {:>5.0} % {:>7} {:>9}",
            run.placed,
            run.failed,
            run.without,
            run.spread,
            run.evenness,
            100.0 * run.lost_with_cell,
            100.0 * run.lost_with_zone,
            run.rounds,
            time(run.took),
        );
    }
    text + "\n"
}

pub fn time(took: Duration) -> String {
    format!("{:.1} ms", took.as_secs_f64() * 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_even_has_no_spread() {
        assert_eq!((spread(&[2.0, 2.0]), evenness(&[2.0, 2.0])), (0.0, 1.0));
        assert_eq!((spread(&[0.0, 2.0]), evenness(&[0.0, 2.0])), (1.0, 0.5));
        assert_eq!((spread(&[0.0, 0.0]), evenness(&[0.0, 0.0])), (0.0, 1.0));
    }

    #[test]
    fn what_is_lost_is_the_largest_part_of_an_lrp_in_one_place() {
        let lrp = |at: usize, guid: &str| (at, Lrp { process_guid: guid.into(), ..Lrp::default() });
        let placed = [lrp(0, "a"), lrp(0, "a"), lrp(1, "a"), lrp(1, "b"), lrp(2, "a")];
        assert_eq!(lost(&placed, |at| at), 0.5);
        assert_eq!(lost(&placed, |at| at / 2), 0.75);
        assert_eq!(lost(&placed[3..4], |at| at), 0.0, "an LRP of one instance is lost with it anyway");
    }
}
