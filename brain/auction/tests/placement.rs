//! What is placed where, as a table. A cell is `id:900MB`, with more after slashes:
//! `a:900MB/z2/disk=50/has=p,p/tasks=2/starting=1/tags=x,y/optional=w/drivers=nfs/index=3/containers=1/proxy=32`;
//! its total is always 1000 MB, 1000 MB of disk and 100 containers. Work is `lrp p.0 100MB` or `task 100MB`, in one
//! batch separated by `;`, with `disk=`, `tags=`, `drivers=` and `rootfs=`. Expected are cell ids or failures.

use std::collections::BTreeMap;

use auction::*;

fn cell(text: &str) -> Cell {
    let mut parts = text.split('/');
    let (id, memory) = parts.next().unwrap().split_once(':').unwrap();
    let total = Resources { memory_mb: 1000, disk_mb: 1000, containers: 100 };
    let rootfses = BTreeMap::from([
        ("docker".into(), None),
        ("preloaded".into(), Some(["linux".to_string()].into_iter().collect())),
    ]);
    let mut cell = Cell {
        id: id.into(),
        zone: "z1".into(),
        available: Resources { memory_mb: megabytes(memory), ..total },
        total,
        rootfses: Rootfses(rootfses),
        ..Cell::default()
    };
    for part in parts {
        let (name, value) = part.split_once('=').unwrap_or(("zone", part));
        let list = || value.split(',').map(str::to_owned).collect::<Vec<_>>();
        match name {
            "zone" => cell.zone = value.into(),
            "disk" => cell.available.disk_mb = value.parse().unwrap(),
            "containers" => cell.available.containers = value.parse().unwrap(),
            "has" => cell.lrps = list(),
            "tasks" => cell.tasks = value.parse().unwrap(),
            "starting" => cell.starting_containers = value.parse().unwrap(),
            "tags" => cell.placement_tags = list(),
            "optional" => cell.optional_placement_tags = list(),
            "drivers" => cell.volume_drivers = list(),
            "index" => cell.index = value.parse().unwrap(),
            "proxy" => cell.proxy_memory_mb = value.parse().unwrap(),
            _ => panic!("{part}"),
        }
    }
    cell
}

fn megabytes(text: &str) -> i32 {
    text.strip_suffix("MB").unwrap().parse().unwrap()
}

enum Work {
    Lrp(Lrp),
    Task(Task),
}

fn work(text: &str) -> Work {
    let mut words = text.split_whitespace();
    let kind = words.next().unwrap();
    let mut lrp = Lrp { process_guid: "p".into(), ..Lrp::default() };
    lrp.constraint.rootfs = "preloaded:linux".into();
    for word in words {
        let list = |value: &str| value.split(',').map(str::to_owned).collect::<Vec<_>>();
        match word.split_once('=') {
            Some(("disk", value)) => lrp.resource.disk_mb = value.parse().unwrap(),
            Some(("tags", value)) => lrp.constraint.placement_tags = list(value),
            Some(("drivers", value)) => lrp.constraint.volume_drivers = list(value),
            Some(("rootfs", value)) => lrp.constraint.rootfs = value.into(),
            Some(_) => panic!("{word}"),
            None if word.ends_with("MB") => lrp.resource.memory_mb = megabytes(word),
            None => {
                let (guid, index) = word.split_once('.').unwrap();
                (lrp.process_guid, lrp.index) = (guid.into(), index.parse().unwrap());
            }
        }
    }
    match kind {
        "lrp" => Work::Lrp(lrp),
        "task" => Work::Task(Task { resource: lrp.resource, constraint: lrp.constraint }),
        _ => panic!("{text}"),
    }
}

fn check_with(weights: Weights, cells: &str, batch: &str, expected: &str) {
    let cells: Vec<Cell> = cells.split_whitespace().map(cell).collect();
    let (mut lrps, mut tasks, mut order) = (Vec::new(), Vec::new(), Vec::new());
    for text in batch.split(';') {
        match work(text) {
            Work::Lrp(lrp) => {
                order.push((true, lrps.len()));
                lrps.push(lrp);
            }
            Work::Task(task) => {
                order.push((false, tasks.len()));
                tasks.push(task);
            }
        }
    }
    let placement = place(&cells, &Batch { lrps, tasks }, &weights);
    let placed = order.iter().map(|&(is_lrp, at)| {
        let outcome = if is_lrp { &placement.lrps[at] } else { &placement.tasks[at] };
        match outcome {
            Ok(winner) => cells[*winner].id.clone(),
            Err(failure) => failure.to_string(),
        }
    });
    assert_eq!(placed.collect::<Vec<_>>().join("; "), expected, "{batch}");
}

fn check(cells: &str, batch: &str, expected: &str) {
    check_with(Weights::default(), cells, batch, expected);
}

#[test]
fn the_emptier_cell_wins() {
    check("a:900MB b:300MB", "lrp p.0 100MB", "a");
    check("a:300MB b:900MB", "lrp p.0 100MB", "b");
    check("a:900MB/disk=100 b:800MB", "task 100MB", "b");
    check("a:500MB b:500MB", "lrp p.0 1MB", "a");
}

#[test]
fn instances_of_one_lrp_are_spread_over_cells() {
    check("a:900MB/has=p b:300MB", "lrp p.1 100MB", "b");
    check("a:900MB/has=p,p b:300MB/has=p", "lrp p.3 100MB", "b");
    check("a:900MB b:900MB", "lrp p.0 10MB; lrp p.1 10MB; lrp p.2 10MB; lrp p.3 10MB", "a; b; a; b");
    check("a:900MB/has=p b:50MB", "lrp p.1 100MB", "a");
}

#[test]
fn instances_of_one_lrp_are_spread_over_zones_first() {
    check("a:200MB/z1 b:900MB/z2/has=p c:900MB/z2", "lrp p.1 100MB", "a");
    check("a:50MB/z1 b:900MB/z2/has=p c:900MB/z2", "lrp p.1 100MB", "c");
    check("a:300MB/z1 b:900MB/z2", "lrp p.0 100MB", "b");
    check(
        "a:900MB/z1 b:900MB/z1 c:900MB/z2",
        "lrp p.0 1MB; lrp p.1 1MB; lrp p.2 1MB; lrp p.3 1MB",
        "a; c; b; c",
    );
}

#[test]
fn zones_count_instances_on_incompatible_cells_too() {
    check("a:900MB/z1/has=p/tags=x b:900MB/z1 c:300MB/z2", "lrp p.1 100MB", "c");
}

#[test]
fn tasks_go_where_the_fewest_tasks_are() {
    check("a:900MB/tasks=2 b:300MB/tasks=1", "task 100MB", "b");
    check("a:900MB/z1/tasks=1 b:300MB/z2", "task 100MB", "b");
}

#[test]
fn a_cell_that_is_starting_containers_waits() {
    check("a:500MB/starting=3 b:400MB", "lrp p.0 100MB", "b");
    let heavier = Weights { starting_container: 0.0, ..Weights::default() };
    check_with(heavier, "a:500MB/starting=3 b:400MB", "lrp p.0 100MB", "a");
}

#[test]
fn first_instances_come_before_tasks_and_tasks_before_further_instances() {
    check(
        "a:100MB",
        "lrp p.1 100MB; task 100MB; lrp p.0 100MB",
        &format!("{SHORT}: memory; {SHORT}: memory; a"),
    );
    check("a:100MB", "lrp p.1 100MB; task 100MB", &format!("{SHORT}: memory; a"));
    check("a:100MB", "lrp p.0 10MB; lrp q.0 100MB", &format!("{SHORT}: memory; a"));
    check("a:100MB", "task 10MB; task 100MB", &format!("{SHORT}: memory; a"));
}

const SHORT: &str = "insufficient resources";

#[test]
fn what_all_cells_lack_is_named() {
    check("a:50MB b:60MB", "lrp p.0 100MB", "insufficient resources: memory");
    check("a:50MB/disk=5 b:60MB/disk=5", "lrp p.0 100MB disk=10", "insufficient resources: disk, memory");
    check("a:50MB b:900MB/disk=5", "lrp p.0 100MB disk=10", "insufficient resources");
    check(
        "a:50MB/disk=5/containers=0",
        "task 100MB disk=10",
        "insufficient resources: containers, disk, memory",
    );
    check("a:900MB/containers=1", "task 10MB; task 9MB", "a; insufficient resources: containers");
}

#[test]
fn only_compatible_cells_are_asked() {
    check("a:900MB", "lrp p.0 1MB rootfs=docker:///busybox", "a");
    check("a:900MB", "lrp p.0 1MB rootfs=preloaded:linux?layer=x", "a");
    check("a:900MB", "lrp p.0 1MB rootfs=preloaded:windows", "found no compatible cell for required rootfs");
    check("a:900MB", "task 1MB rootfs=oci:/a", "found no compatible cell for required rootfs");
    check("a:900MB b:100MB/drivers=nfs,smb", "lrp p.0 1MB drivers=nfs", "b");
    check("a:900MB", "lrp p.0 1MB drivers=nfs", "found no compatible cell with required volume drivers");
}

#[test]
fn required_tags_must_be_asked_for_and_optional_ones_may_be() {
    check("a:900MB/tags=x b:100MB", "lrp p.0 1MB", "b");
    check("a:900MB b:100MB/tags=x", "lrp p.0 1MB tags=x", "b");
    check("a:900MB/tags=x/optional=y", "lrp p.0 1MB tags=x,y", "a");
    check("a:900MB/optional=y", "lrp p.0 1MB", "a");
    check("a:900MB/tags=x", "lrp p.0 1MB", "found no compatible cell with no placement tags");
    check("a:900MB/tags=x", "lrp p.0 1MB tags=y", "found no compatible cell with placement tag \"y\"");
    check(
        "a:900MB/tags=x",
        "task 1MB tags=x,y",
        "found no compatible cell with placement tags \"x\" and \"y\"",
    );
}

#[test]
fn the_mismatch_of_the_closest_cell_is_told() {
    check(
        "a:1MB/z1/tags=x b:1MB/z2",
        "lrp p.0 1MB drivers=nfs",
        "found no compatible cell with required volume drivers",
    );
    check(
        "a:1MB/z1/drivers=nfs/tags=x b:1MB/z2",
        "lrp p.0 1MB drivers=nfs",
        "found no compatible cell with no placement tags",
    );
}

#[test]
fn bin_packing_fills_cells_in_the_order_of_their_index() {
    let packing = Weights { bin_pack_first_fit: 5.0, ..Weights::default() };
    check_with(
        packing,
        "a:900MB/index=7 b:300MB/index=2",
        "lrp p.0 100MB; lrp q.0 100MB; lrp r.0 100MB",
        "b; b; b",
    );
    check_with(packing, "a:900MB/index=7 b:150MB/index=2", "lrp p.0 100MB; lrp q.0 100MB", "b; a");
}

#[test]
fn the_proxys_memory_is_counted() {
    check("a:120MB/proxy=32", "lrp p.0 100MB", "insufficient resources: memory");
    check("a:120MB/proxy=32", "task 100MB", "a");
    check("a:264MB/proxy=32", "lrp p.0 100MB; lrp q.0 100MB", "a; a");
    check("a:263MB/proxy=32", "lrp p.0 100MB; lrp q.0 100MB", "a; insufficient resources: memory");
}

#[test]
fn no_more_containers_start_at_once_than_allowed() {
    let capped = Weights { starting_containers_max: 3, ..Weights::default() };
    let waiting = "waiting to start instance: reached in-flight start limit";
    check_with(
        capped,
        "a:900MB/starting=1 b:900MB",
        "task 1MB; lrp p.0 1MB; lrp p.1 1MB",
        &format!("a; b; {waiting}"),
    );
}

#[test]
fn without_cells_nothing_is_placed() {
    check("", "lrp p.0 1MB; task 1MB", &["unable to communicate to compatible cells"; 2].join("; "));
}

/// 20 LRPs of 50 instances on 20 equal cells in 4 zones: every cell gets its 50, and every LRP at most 3 a cell.
#[test]
fn a_large_batch_is_spread_evenly() {
    let cells: Vec<Cell> = (0..20).map(|at| cell(&format!("c{at}:1000MB/z{}", at % 4))).collect();
    let mut batch = Batch::default();
    for process in 0..20 {
        for index in 0..50 {
            let Work::Lrp(lrp) = work(&format!("lrp p{process}.{index} 10MB disk=10")) else {
                unreachable!()
            };
            batch.lrps.push(lrp);
        }
    }
    let placement = place(&cells, &batch, &Weights::default());
    let mut by_cell = BTreeMap::<usize, usize>::new();
    let mut by_cell_and_lrp = BTreeMap::<(usize, &str), usize>::new();
    for (lrp, outcome) in batch.lrps.iter().zip(&placement.lrps) {
        let winner = *outcome.as_ref().unwrap();
        *by_cell.entry(winner).or_default() += 1;
        *by_cell_and_lrp.entry((winner, &lrp.process_guid)).or_default() += 1;
    }
    assert!(by_cell.values().all(|&count| count == 50), "{by_cell:?}");
    assert!(by_cell_and_lrp.values().all(|&count| (2..=3).contains(&count)));
    assert_eq!(
        place(&cells, &batch, &Weights::default()),
        placement,
        "the same input gives the same placement"
    );
}
