//! Pure placement: cells and a batch of work go in, a [`Placement`] comes out. No I/O, no clock, no chance: the same
//! input gives the same placement, and ties go to the first zone by name, then the first cell by index and id.
//!
//! The order of work: instances of index 0, then Tasks, then all other instances (by index), the largest memory first
//! in each; so that under pressure every LRP has its first instance before any has its second.
//!
//! An instance goes to the zone with the fewest instances of its LRP that can take it, there to the cell of the lowest
//! score; a Task to the cell of the lowest score anywhere. The score of a cell is
//! `used fraction of memory, disk and containers, averaged, once it is placed` + `starting containers × weight`
//! + `1000 × instances of the same LRP there` (for a Task: Tasks there) + `index in its zone × bin-pack weight`.
//!
//! What it costs: cells are matched once for each constraint that may match differently, counts of instances are kept and
//! never recounted, and a placement changes the scores of one cell only. The cells of a zone are kept in the order of
//! what the score is before the work is counted in, so that only the first few of them are looked at for each piece of
//! work: the cost grows with the work, and with the logarithm of the cells. What nothing could take is not looked for
//! again until something was placed.

mod board;
mod failure;
mod order;
mod value;

use std::cmp::Reverse;

use board::Board;
pub use failure::*;
pub use value::*;

/// Places as much of `batch` as it can. Outcomes stand in the order of the batch; a winner is an index into `cells`.
pub fn place(cells: &[Cell], batch: &Batch, weights: &Weights) -> Placement {
    if cells.is_empty() {
        return Placement {
            lrps: vec![Err(Failure::NoCells); batch.lrps.len()],
            tasks: vec![Err(Failure::NoCells); batch.tasks.len()],
        };
    }
    let mut board = Board::new(cells, weights);
    let mut placement = Placement {
        lrps: vec![Err(Failure::NoCells); batch.lrps.len()],
        tasks: vec![Err(Failure::NoCells); batch.tasks.len()],
    };
    for turn in turns(batch) {
        match turn {
            Turn::Lrp(at) => placement.lrps[at] = board.place_lrp(&batch.lrps[at]),
            Turn::Task(at) => placement.tasks[at] = board.place_task(&batch.tasks[at]),
        }
    }
    placement
}

enum Turn {
    Lrp(usize),
    Task(usize),
}

fn turns(batch: &Batch) -> Vec<Turn> {
    let mut lrps: Vec<usize> = (0..batch.lrps.len()).collect();
    lrps.sort_by_key(|&at| (batch.lrps[at].index, Reverse(batch.lrps[at].resource.memory_mb)));
    let mut tasks: Vec<usize> = (0..batch.tasks.len()).collect();
    tasks.sort_by_key(|&at| Reverse(batch.tasks[at].resource.memory_mb));
    let after_first = lrps.partition_point(|&at| batch.lrps[at].index <= 0);
    let later = lrps.split_off(after_first);
    lrps.into_iter()
        .map(Turn::Lrp)
        .chain(tasks.into_iter().map(Turn::Task))
        .chain(later.into_iter().map(Turn::Lrp))
        .collect()
}
