//! The same placement as the published algorithm's, written down as plainly as can be: every piece of work looks at every
//! cell. On many small clusters of all kinds.

use std::collections::BTreeMap;

use auction::*;

/// Enough chance to get around, the same each time.
struct Chance(u64);

impl Chance {
    fn below(&mut self, end: u64) -> i32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        i32::try_from((self.0 >> 33) % end).unwrap()
    }

    fn happens(&mut self, percent: i32) -> bool {
        self.below(100) < percent
    }

    fn tags(&mut self, percent: i32) -> Vec<String> {
        if self.happens(percent) { vec!["isolated".into()] } else { Vec::new() }
    }

    fn constraint(&mut self) -> Constraint {
        let rootfs =
            ["docker:///a", "docker:///b", "preloaded:linux", "preloaded:other"][self.below(4) as usize];
        Constraint { rootfs: rootfs.into(), placement_tags: self.tags(10), volume_drivers: Vec::new() }
    }

    fn cell(&mut self, at: i32, alike: bool) -> Cell {
        let one = |chance: &mut Chance, usual| if alike { usual } else { 1 + chance.below(2 * usual as u64) };
        let total =
            Resources { memory_mb: one(self, 4000), disk_mb: one(self, 8000), containers: one(self, 30) };
        let mut has = |total: i32| if alike { total } else { self.below(total as u64 + 1) };
        let available = Resources {
            memory_mb: has(total.memory_mb),
            disk_mb: has(total.disk_mb),
            containers: has(total.containers),
        };
        let names = Some(["linux".to_string()].into());
        Cell {
            id: format!("cell-{at}"),
            zone: format!("z{}", self.below(3)),
            index: at,
            rootfses: Rootfses(BTreeMap::from([("docker".into(), None), ("preloaded".into(), names)])),
            placement_tags: self.tags(15),
            available,
            total,
            lrps: (0..self.below(4)).map(|_| format!("lrp-{}", self.below(4))).collect(),
            tasks: self.below(3) as usize,
            starting_containers: self.below(3),
            proxy_memory_mb: [0, 32][self.below(2) as usize],
            ..Cell::default()
        }
    }

    fn batch(&mut self) -> Batch {
        let sizes = [(64, 64), (128, 512), (1024, 1024)];
        let resource = |chance: &mut Chance| {
            let (memory_mb, disk_mb) = sizes[chance.below(3) as usize];
            Resource { memory_mb, disk_mb }
        };
        let lrps = (0..self.below(60)).map(|at| Lrp {
            process_guid: format!("lrp-{}", at % 5),
            index: at / 5,
            resource: resource(self),
            constraint: self.constraint(),
        });
        let lrps = lrps.collect();
        let tasks = (0..self.below(20))
            .map(|_| Task { resource: resource(self), constraint: self.constraint() })
            .collect();
        Batch { lrps, tasks }
    }
}

/// The cells as they become.
struct Plain {
    cells: Vec<Cell>,
    zones: Vec<String>,
    weights: Weights,
}

enum Work<'a> {
    Lrp(&'a Lrp),
    Task(&'a Task),
}

impl Plain {
    fn new(cells: &[Cell], weights: Weights) -> Plain {
        let mut zones: Vec<String> = cells.iter().map(|cell| cell.zone.clone()).collect();
        zones.sort();
        zones.dedup();
        Plain { cells: cells.to_vec(), zones, weights }
    }

    fn matches(cell: &Cell, constraint: &Constraint) -> bool {
        let (scheme, name) = constraint.rootfs.split_once(':').unwrap();
        let rootfs = match cell.rootfses.0.get(scheme) {
            Some(names) => names.as_ref().is_none_or(|names| names.contains(name)),
            None => false,
        };
        rootfs && cell.placement_tags == constraint.placement_tags
    }

    fn needs(cell: &Cell, work: &Work) -> Resource {
        match work {
            Work::Lrp(lrp) => {
                Resource { memory_mb: lrp.resource.memory_mb + cell.proxy_memory_mb, ..lrp.resource }
            }
            Work::Task(task) => task.resource,
        }
    }

    /// `None`: it does not fit.
    fn score(&self, cell: &Cell, work: &Work) -> Option<f64> {
        let needs = Plain::needs(cell, work);
        let left = &cell.available;
        if left.containers < 1 || left.memory_mb < needs.memory_mb || left.disk_mb < needs.disk_mb {
            return None;
        }
        let used = |left: i32, needs: i32, total: i32| f64::from(total - left + needs) / f64::from(total);
        let resources = (used(left.memory_mb, needs.memory_mb, cell.total.memory_mb)
            + used(left.disk_mb, needs.disk_mb, cell.total.disk_mb)
            + used(left.containers, 1, cell.total.containers))
            / 3.0;
        let starting = f64::from(cell.starting_containers) * self.weights.starting_container;
        let extra = match work {
            Work::Task(_) => 1000.0 * cell.tasks as f64,
            Work::Lrp(lrp) => {
                let there = cell.lrps.iter().filter(|guid| **guid == lrp.process_guid).count();
                1000.0 * there as f64 + self.bin_pack(cell)
            }
        };
        Some(resources + starting + extra)
    }

    fn bin_pack(&self, cell: &Cell) -> f64 {
        if self.weights.bin_pack_first_fit == 0.0 {
            return 0.0;
        }
        let before =
            |other: &&Cell| other.zone == cell.zone && (other.index, &other.id) < (cell.index, &cell.id);
        self.cells.iter().filter(before).count() as f64 * self.weights.bin_pack_first_fit
    }

    fn best(&self, work: &Work, constraint: &Constraint, zones: &[&String]) -> Option<f64> {
        let there = |cell: &&Cell| zones.contains(&&cell.zone) && Plain::matches(cell, constraint);
        let scores = self.cells.iter().filter(there).filter_map(|cell| self.score(cell, work));
        scores.min_by(f64::total_cmp)
    }

    /// That `outcome` is as good as any, within what rounding makes of it.
    fn judge(&mut self, work: Work, outcome: &Outcome) {
        let constraint = match &work {
            Work::Lrp(lrp) => lrp.constraint.clone(),
            Work::Task(task) => task.constraint.clone(),
        };
        let zones: Vec<&String> = self.zones.iter().collect();
        let mut expected = None;
        match &work {
            Work::Task(_) => expected = self.best(&work, &constraint, &zones).map(|best| (best, zones)),
            Work::Lrp(lrp) => {
                let instances = |zone: &str| {
                    let there =
                        self.cells.iter().filter(|cell| cell.zone == zone).flat_map(|cell| &cell.lrps);
                    there.filter(|guid| **guid == lrp.process_guid).count()
                };
                for count in 0..100 {
                    let group: Vec<&String> =
                        zones.iter().filter(|zone| instances(zone) == count).copied().collect();
                    if let Some(best) = self.best(&work, &constraint, &group) {
                        expected = Some((best, group));
                        break;
                    }
                }
            }
        }
        match (expected, outcome) {
            (None, Err(_)) => {}
            (Some((best, group)), Ok(winner)) => {
                let cell = &self.cells[*winner];
                let score = self.score(cell, &work).expect("it fits");
                assert!(Plain::matches(cell, &constraint) && group.contains(&&cell.zone), "{}", cell.id);
                assert!((score - best).abs() < 1e-9, "{} has {score}, the best {best}", cell.id);
                self.take(*winner, &work);
            }
            (expected, outcome) => panic!("{expected:?} was expected, {outcome:?} came"),
        }
    }

    fn take(&mut self, winner: usize, work: &Work) {
        let cell = &mut self.cells[winner];
        let needs = Plain::needs(cell, work);
        cell.available.memory_mb -= needs.memory_mb;
        cell.available.disk_mb -= needs.disk_mb;
        cell.available.containers -= 1;
        cell.starting_containers += 1;
        match work {
            Work::Lrp(lrp) => cell.lrps.push(lrp.process_guid.clone()),
            Work::Task(_) => cell.tasks += 1,
        }
    }
}

#[test]
fn every_winner_is_as_good_as_the_best_of_all_cells() {
    let mut placed = 0;
    for seed in 0..100 {
        let mut chance = Chance(seed);
        let alike = chance.happens(50);
        let cells: Vec<Cell> = (0..1 + chance.below(40)).map(|at| chance.cell(at, alike)).collect();
        let batch = chance.batch();
        let bin_pack_first_fit = if chance.happens(30) { 0.5 } else { 0.0 };
        let weights = Weights { bin_pack_first_fit, ..Weights::default() };
        let placement = place(&cells, &batch, &weights);
        let mut plain = Plain::new(&cells, weights);
        let mut lrps: Vec<usize> = (0..batch.lrps.len()).collect();
        lrps.sort_by_key(|&at| (batch.lrps[at].index, std::cmp::Reverse(batch.lrps[at].resource.memory_mb)));
        let mut tasks: Vec<usize> = (0..batch.tasks.len()).collect();
        tasks.sort_by_key(|&at| std::cmp::Reverse(batch.tasks[at].resource.memory_mb));
        let (first, later) = lrps.split_at(lrps.partition_point(|&at| batch.lrps[at].index == 0));
        first.iter().for_each(|&at| plain.judge(Work::Lrp(&batch.lrps[at]), &placement.lrps[at]));
        tasks.iter().for_each(|&at| plain.judge(Work::Task(&batch.tasks[at]), &placement.tasks[at]));
        later.iter().for_each(|&at| plain.judge(Work::Lrp(&batch.lrps[at]), &placement.lrps[at]));
        placed += placement.lrps.iter().flatten().count();
    }
    assert!(placed > 500, "{placed} placed");
}
