//! Places large batches and prints how long it took and how even the outcome is.
//! `cargo run --release -p auction --example simulate`

use std::collections::BTreeMap;
use std::time::Instant;

use auction::*;

fn main() {
    for (instances, cells) in [(4_000, 100), (20_000, 1_000), (100_000, 5_000)] {
        simulate(instances, cells, instances);
        simulate(instances, cells, 50);
    }
}

/// Cells in three zones that fit three times the batch; every LRP has `instances_each` or fewer.
fn simulate(instances: usize, cells: usize, lrps: usize) {
    let per_cell = i32::try_from(3 * instances.div_ceil(cells)).expect("a small number");
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
        process_guid: format!("lrp-{}", at % lrps),
        index: i32::try_from(at / lrps).expect("a small number"),
        resource: Resource { memory_mb: 256, disk_mb: 1024 },
        constraint: Constraint { rootfs: "docker:///busybox".into(), ..Constraint::default() },
    });
    let batch = Batch { lrps: lrps.collect(), tasks: vec![] };
    let began = Instant::now();
    let placement = place(&cells, &batch, &Weights::default());
    let took = began.elapsed();
    let mut by_cell = vec![0; cells.len()];
    placement.lrps.iter().flatten().for_each(|&winner| by_cell[winner] += 1);
    println!(
        "{instances} instances of {} LRPs on {} cells: {took:?}, {} placed, {} to {} a cell",
        batch.lrps.iter().filter(|lrp| lrp.index == 0).count(),
        cells.len(),
        placement.lrps.iter().flatten().count(),
        by_cell.iter().min().expect("cells"),
        by_cell.iter().max().expect("cells"),
    );
}
