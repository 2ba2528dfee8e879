//! Cells, what runs on them already, and work for them. The same at each run.

use std::collections::BTreeMap;

use auction::{Cell, Constraint, Lrp, Resource, Resources, Rootfses, Weights};
use simulation::MACHINE_TOTAL;

pub struct Scenario {
    /// Of its files.
    pub name: &'static str,
    pub about: String,
    pub cells: Vec<Cell>,
    pub lrps: Vec<Lrp>,
    pub weights: Weights,
}

pub const ROOTFS: &str = "preloaded:linux";
/// What every piece of work takes of the disk; there is enough.
pub const DISK_MB: i32 = 10;
const CONTAINERS: i32 = 250;

pub fn all() -> Vec<Scenario> {
    vec![
        few(),
        mixed(),
        deploy(),
        large_lrp(),
        lopsided_zones(),
        pressure(),
        in_flight(),
        bin_pack(),
        uniform("scale-4000", 4_000, 100),
        uniform("scale-20000", 20_000, 1_000),
    ]
}

fn cells(count: usize, zones: usize, total: Resources) -> Vec<Cell> {
    let cell = |at: usize| Cell {
        id: format!("cell-{at}"),
        index: i32::try_from(at).unwrap_or(i32::MAX),
        zone: format!("z{}", at % zones),
        rootfses: Rootfses(BTreeMap::from([("preloaded".into(), Some(["linux".into()].into()))])),
        available: total,
        total,
        ..Cell::default()
    };
    (0..count).map(cell).collect()
}

fn with_memory(memory_mb: i32) -> Resources {
    Resources { memory_mb, disk_mb: 100_000, containers: CONTAINERS }
}

/// So many instances of one LRP.
fn instances(process_guid: &str, count: i32, memory_mb: i32) -> Vec<Lrp> {
    let one = |index| Lrp {
        process_guid: process_guid.into(),
        index,
        resource: Resource { memory_mb, disk_mb: DISK_MB },
        constraint: Constraint { rootfs: ROOTFS.into(), ..Constraint::default() },
    };
    (0..count).map(one).collect()
}

/// So many LRPs of one instance.
fn singles(name: &str, count: usize, memory_mb: i32) -> Vec<Lrp> {
    (0..count).flat_map(|at| instances(&format!("{name}-{at}"), 1, memory_mb)).collect()
}

/// Runs there already.
pub fn occupy(cell: &mut Cell, lrp: &Lrp) {
    cell.available.memory_mb -= lrp.resource.memory_mb;
    cell.available.disk_mb -= lrp.resource.disk_mb;
    cell.available.containers -= 1;
    cell.lrps.push(lrp.process_guid.clone());
}

/// A number that looks like any.
fn scattered(at: usize) -> usize {
    at.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40
}

fn scenario(name: &'static str, about: &str, cells: Vec<Cell>, lrps: Vec<Lrp>) -> Scenario {
    Scenario { name, about: about.into(), cells, lrps, weights: Weights::default() }
}

fn few() -> Scenario {
    let about = "200 LRPs of one instance on 20 empty cells";
    scenario("few", about, cells(20, 2, with_memory(10_240)), singles("app", 200, 256))
}

/// Half of the work are single instances, half are twelve large LRPs; of three sizes, in no order.
fn mixed() -> Scenario {
    let mut lrps: Vec<Lrp> = Vec::new();
    for (memory_mb, count) in [(128, 3_600), (256, 400), (512, 100)] {
        lrps.extend(singles(&format!("single-{memory_mb}"), count, memory_mb));
        let each = i32::try_from(count / 4).unwrap_or(0);
        lrps.extend((0..4).flat_map(|at| instances(&format!("large-{memory_mb}-{at}"), each, memory_mb)));
    }
    let mut keyed: Vec<(usize, Lrp)> =
        lrps.into_iter().enumerate().map(|(at, lrp)| (scattered(at), lrp)).collect();
    keyed.sort_by_key(|(key, _)| *key);
    let lrps = keyed.into_iter().map(|(_, lrp)| lrp).collect();
    let about = "8,200 instances of three sizes, half of them of 12 LRPs, on 100 empty cells";
    scenario("mixed", about, cells(100, 3, with_memory(24_576)), lrps)
}

/// The cells that a deployment has just made anew are empty.
fn deploy() -> Scenario {
    let mut cells = cells(100, 2, with_memory(24_576));
    for (at, cell) in cells.iter_mut().enumerate().take(95) {
        singles(&format!("old-{at}"), 50, 128).iter().for_each(|lrp| occupy(cell, lrp));
    }
    let about = "500 LRPs of one instance; 95 cells have 50 each, 5 cells are new and empty";
    scenario("deploy", about, cells, singles("app", 500, 128))
}

fn large_lrp() -> Scenario {
    let mut cells = cells(100, 3, with_memory(24_576));
    for (at, cell) in cells.iter_mut().enumerate() {
        singles(&format!("old-{at}"), 78 + scattered(at) % 3, 128).iter().for_each(|lrp| occupy(cell, lrp));
    }
    let about = "one LRP of 400 instances on 100 cells that have 78 to 80 others each";
    scenario("large-lrp", about, cells, instances("app", 400, 128))
}

fn lopsided_zones() -> Scenario {
    let mut cells = cells(9, 9, with_memory(12_288));
    for (at, cell) in cells.iter_mut().enumerate() {
        cell.zone = ["z0", "z1", "z1", "z1", "z2", "z2", "z2", "z2", "z2"][at].into();
    }
    singles("old", 50, 128).iter().for_each(|lrp| occupy(&mut cells[0], lrp));
    let about =
        "one LRP of 60 instances on zones of 1, 3 and 5 cells; the one cell of the first is half full";
    scenario("lopsided-zones", about, cells, instances("app", 60, 128))
}

/// Two thirds of it fit.
fn pressure() -> Scenario {
    let sizes = (0..150).map(|at| (at, 1 + i32::try_from(scattered(at) % 20).unwrap_or(0)));
    let lrps: Vec<Lrp> = sizes.flat_map(|(at, count)| instances(&format!("app-{at}"), count, 256)).collect();
    let fits = i32::try_from(lrps.len() * 2 / 3 / 20).unwrap_or(0);
    let about = "150 LRPs of 1 to 20 instances on 20 cells that have room for two thirds of them";
    scenario("pressure", about, cells(20, 3, with_memory(fits * 256)), lrps)
}

fn in_flight() -> Scenario {
    let about = "4,000 instances on 100 cells that may start 1,000 at a time";
    let mut scenario = Scenario { about: about.into(), ..uniform("in-flight", 4_000, 100) };
    scenario.weights.starting_containers_max = 1_000;
    scenario
}

fn bin_pack() -> Scenario {
    let about = "800 LRPs of one instance on 40 cells, to be filled in their order (weight 0.5)";
    let mut scenario =
        scenario("bin-pack", about, cells(40, 2, with_memory(12_288)), singles("app", 800, 128));
    scenario.weights.bin_pack_first_fit = 0.5;
    scenario
}

/// LRPs of ten instances on cells in three zones that fit three times as much.
fn uniform(name: &'static str, instances_all: usize, cell_count: usize) -> Scenario {
    let lrps = (0..instances_all / 10).flat_map(|at| instances(&format!("app-{at}"), 10, 256)).collect();
    let per_cell = i32::try_from(3 * instances_all / cell_count).unwrap_or(i32::MAX);
    let about = format!("{instances_all} instances of LRPs of ten, on {cell_count} empty cells");
    scenario(name, &about, cells(cell_count, 3, with_memory(256 * per_cell)), lrps)
}

fn machines(count: usize) -> Vec<Cell> {
    let signed = |value: u64| i32::try_from(value).unwrap_or(i32::MAX);
    let total = Resources {
        memory_mb: signed(MACHINE_TOTAL.memory_mb),
        disk_mb: signed(MACHINE_TOTAL.disk_mb),
        containers: signed(MACHINE_TOTAL.containers),
    };
    cells(count, 3, total)
}

/// For cells as simulated machines are.
pub fn on_reps(count: usize) -> Scenario {
    let lrps = (0..count).flat_map(|at| {
        let (wide, narrow) = (format!("wide-{at}"), format!("narrow-{at}"));
        [instances(&wide, 8, 64), instances(&narrow, 2, 256), singles(&format!("one-{at}"), 4, 128)].concat()
    });
    let about = format!("{} instances on {count} reps, each a process, through the auctioneer", 14 * count);
    let lrps = lrps.collect();
    scenario("processes", &about, machines(count), lrps)
}

/// More than fits: of two auctioneers each finds out from refusals what the other did.
pub fn on_few_reps() -> Scenario {
    let lrps = (0..60).flat_map(|at| instances(&format!("app-{at}"), 2, 256)).collect();
    let about =
        "120 instances for the 96 places of 6 reps, each a process; of two auctioneers each has half of them";
    scenario("rivalry", about, machines(6), lrps)
}
