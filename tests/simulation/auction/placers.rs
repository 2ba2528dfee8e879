//! Three ways to place work: the product's, and two that an auction has to be better than.

use std::time::{Duration, Instant};

use auction::{Batch, Cell, Lrp, place};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::measure::Measured;
use crate::scenarios::{Scenario, occupy};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placer {
    /// [`auction::place`].
    Published,
    /// The fullest cell that can take it.
    BestFit,
    /// Any cell that can take it.
    Random,
}

impl Placer {
    pub const ALL: [Placer; 3] = [Placer::Published, Placer::BestFit, Placer::Random];

    pub fn name(self) -> &'static str {
        match self {
            Placer::Published => "published",
            Placer::BestFit => "best fit",
            Placer::Random => "random",
        }
    }

    /// Auctions, until one places nothing more. What was placed has started when the next one begins.
    pub fn run(self, scenario: &Scenario) -> Measured {
        let mut cells = scenario.cells.clone();
        let mut waiting = scenario.lrps.clone();
        let (mut took, mut rounds) = (Duration::ZERO, 0);
        let mut placed: Vec<(usize, Lrp)> = Vec::new();
        let mut dice = StdRng::seed_from_u64(1);
        while !waiting.is_empty() {
            let began = Instant::now();
            let winners = self.place(scenario, &cells, &waiting, &mut dice);
            took += began.elapsed();
            rounds += 1;
            let before = placed.len();
            let mut rest = Vec::new();
            for (lrp, winner) in waiting.into_iter().zip(winners) {
                match winner {
                    Some(at) => {
                        occupy(&mut cells[at], &lrp);
                        placed.push((at, lrp));
                    }
                    None => rest.push(lrp),
                }
            }
            waiting = rest;
            if placed.len() == before {
                break;
            }
        }
        Measured::new(scenario, placed, rounds, took)
    }

    fn place(
        self,
        scenario: &Scenario,
        cells: &[Cell],
        lrps: &[Lrp],
        dice: &mut StdRng,
    ) -> Vec<Option<usize>> {
        match self {
            Placer::Published => {
                let batch = Batch { lrps: lrps.to_vec(), tasks: Vec::new() };
                place(cells, &batch, &scenario.weights).lrps.into_iter().map(Result::ok).collect()
            }
            Placer::BestFit => one_by_one(cells, lrps, |cells, lrp| {
                let able = (0..cells.len()).filter(|&at| fits(&cells[at], lrp));
                able.min_by_key(|&at| cells[at].available.memory_mb)
            }),
            Placer::Random => one_by_one(cells, lrps, |cells, lrp| {
                let able: Vec<usize> = (0..cells.len()).filter(|&at| fits(&cells[at], lrp)).collect();
                (!able.is_empty()).then(|| able[dice.random_range(0..able.len())])
            }),
        }
    }
}

/// In the order in which it came.
fn one_by_one(
    cells: &[Cell],
    lrps: &[Lrp],
    mut choose: impl FnMut(&[Cell], &Lrp) -> Option<usize>,
) -> Vec<Option<usize>> {
    let mut cells = cells.to_vec();
    let place = |lrp: &Lrp| {
        let winner = choose(&cells, lrp)?;
        occupy(&mut cells[winner], lrp);
        Some(winner)
    };
    lrps.iter().map(place).collect()
}

fn fits(cell: &Cell, lrp: &Lrp) -> bool {
    cell.available.memory_mb >= lrp.resource.memory_mb
        && cell.available.disk_mb >= lrp.resource.disk_mb
        && cell.available.containers > 0
}
