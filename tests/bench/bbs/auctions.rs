//! Auctions of large batches, in this process.

use std::collections::BTreeMap;
use std::time::Instant;

use auction::{Batch, Cell, Constraint, Lrp, Resource, Resources, Rootfses, Weights, place};

use super::figures::Report;

pub fn measure(report: &mut Report) {
    for (instances, cells) in [(4_000, 100), (20_000, 1_000)] {
        let mut best_s = f64::INFINITY;
        for _ in 0..5 {
            best_s = best_s.min(one(instances, cells));
        }
        report.figure(&format!("auction_{instances}_{cells}_s"), best_s, "s");
    }
}

/// Cells in three zones that fit three times the batch.
fn one(instances: usize, cells: usize) -> f64 {
    let per_cell = i32::try_from(3 * instances.div_ceil(cells)).unwrap_or(i32::MAX);
    let total = Resources { memory_mb: 256 * per_cell, disk_mb: 1024 * per_cell, containers: per_cell };
    let cells: Vec<Cell> = (0..cells)
        .map(|at| Cell {
            id: format!("cell-{at}"),
            zone: format!("z{}", at % 3),
            rootfses: Rootfses(BTreeMap::from([("docker".into(), None)])),
            available: total,
            total,
            ..Cell::default()
        })
        .collect();
    let lrps = (0..instances).map(|at| Lrp {
        process_guid: format!("lrp-{}", at % (instances / 10)),
        index: i32::try_from(at / (instances / 10)).unwrap_or(i32::MAX),
        resource: Resource { memory_mb: 256, disk_mb: 1024 },
        constraint: Constraint { rootfs: "docker:///busybox".into(), ..Constraint::default() },
    });
    let batch = Batch { lrps: lrps.collect(), tasks: vec![] };
    let began = Instant::now();
    let placed = place(&cells, &batch, &Weights::default()).lrps.iter().flatten().count();
    let took = began.elapsed().as_secs_f64();
    assert_eq!(placed, instances, "the cells have room for all");
    took
}
