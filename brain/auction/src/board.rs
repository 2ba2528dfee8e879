//! The state of an auction under way: what each cell has left once the work placed so far is counted in.

use std::collections::{BTreeMap, HashMap};

use crate::value::Mismatch;
use crate::{Cell, Constraint, Failure, Lrp, Outcome, Resource, Resources, Shortage, Task, Weights};

/// Outweighs any difference in resources: a cell with one instance less wins.
const LOCALITY_OFFSET: f64 = 1000.0;

pub(crate) struct Board<'a> {
    weights: Weights,
    cells: &'a [Cell],
    slots: Vec<Slot>,
    zone_count: usize,
    starting_containers: i32,
    processes: HashMap<&'a str, Process>,
    compatible: HashMap<&'a Constraint, Result<Vec<ZoneSlots>, Failure>>,
    /// Instances of the LRP being placed, by slot; all zero between two placements.
    locality: Vec<u32>,
}

/// A cell in the order by which ties are broken, and its share of the score that does not depend on the work.
struct Slot {
    cell: usize,
    zone: usize,
    /// Its place among the cells of its zone if bin packing, else the cell's own index.
    index: i32,
    available: Resources,
    total: Resources,
    starting_containers: i32,
    tasks: usize,
    /// `(used memory + used disk + used containers) / 3 + starting containers × weight`.
    load: f64,
}

/// Where the instances of one LRP are.
#[derive(Default)]
struct Process {
    by_slot: HashMap<usize, u32>,
    by_zone: Vec<u32>,
}

/// The compatible cells of one zone.
struct ZoneSlots {
    zone: usize,
    slots: Vec<usize>,
}

impl<'a> Board<'a> {
    pub fn new(cells: &'a [Cell], weights: &Weights) -> Self {
        let mut order: Vec<usize> = (0..cells.len()).collect();
        order.sort_by_key(|&at| (&cells[at].zone, cells[at].index, &cells[at].id));
        let mut zones: BTreeMap<&str, i32> = BTreeMap::new();
        let mut slots: Vec<Slot> = Vec::with_capacity(cells.len());
        for at in order {
            let cells_in_zone = zones.entry(&cells[at].zone).or_default();
            let index = if weights.bin_pack_first_fit > 0.0 { *cells_in_zone } else { cells[at].index };
            *cells_in_zone += 1;
            slots.push(Slot::new(at, &cells[at], zones.len() - 1, index, weights));
        }
        let mut board = Board {
            weights: *weights,
            cells,
            locality: vec![0; slots.len()],
            zone_count: zones.len(),
            starting_containers: cells.iter().map(|cell| cell.starting_containers).sum(),
            processes: HashMap::new(),
            compatible: HashMap::new(),
            slots,
        };
        for at in 0..board.slots.len() {
            for process_guid in &cells[board.slots[at].cell].lrps {
                board.count_instance(process_guid, at);
            }
        }
        board
    }

    pub fn place_lrp(&mut self, lrp: &'a Lrp) -> Outcome {
        self.check_starting()?;
        self.match_cells(&lrp.constraint);
        let zones = self.compatible[&lrp.constraint].as_ref().map_err(Clone::clone)?;
        let process = self.processes.get(lrp.process_guid.as_str());
        if let Some(process) = process {
            process.by_slot.iter().for_each(|(&slot, &count)| self.locality[slot] = count);
        }
        let winner = self.best_for_lrp(&lrp.resource, zones, process);
        if let Some(process) = process {
            process.by_slot.keys().for_each(|&slot| self.locality[slot] = 0);
        }
        let winner = winner.map_err(Failure::InsufficientResources)?;
        let proxy_memory_mb = self.cells[self.slots[winner].cell].proxy_memory_mb;
        self.take(winner, with_proxy(&lrp.resource, proxy_memory_mb));
        self.count_instance(&lrp.process_guid, winner);
        Ok(self.slots[winner].cell)
    }

    pub fn place_task(&mut self, task: &'a Task) -> Outcome {
        self.check_starting()?;
        self.match_cells(&task.constraint);
        let zones = self.compatible[&task.constraint].as_ref().map_err(Clone::clone)?;
        let mut search = Search::default();
        for &at in zones.iter().flat_map(|zone| &zone.slots) {
            let slot = &self.slots[at];
            search.consider(at, slot, &task.resource, LOCALITY_OFFSET * slot.tasks as f64);
        }
        let winner = search.winner().map_err(Failure::InsufficientResources)?;
        self.take(winner, task.resource);
        self.slots[winner].tasks += 1;
        Ok(self.slots[winner].cell)
    }

    /// Zones with equally many instances compete with one another; only if none of them can take it, the next do.
    fn best_for_lrp(
        &self,
        resource: &Resource,
        zones: &[ZoneSlots],
        process: Option<&Process>,
    ) -> Result<usize, Shortage> {
        let instances = |zone: &ZoneSlots| process.map_or(0, |process| process.by_zone[zone.zone]);
        let mut ordered: Vec<&ZoneSlots> = zones.iter().collect();
        ordered.sort_by_key(|zone| instances(zone));
        let mut search = Search::default();
        for group in ordered.chunk_by(|a, b| instances(a) == instances(b)) {
            for &at in group.iter().flat_map(|zone| &zone.slots) {
                let slot = &self.slots[at];
                let resource = with_proxy(resource, self.cells[slot.cell].proxy_memory_mb);
                let extra = LOCALITY_OFFSET * f64::from(self.locality[at])
                    + f64::from(slot.index) * self.weights.bin_pack_first_fit;
                search.consider(at, slot, &resource, extra);
            }
            if search.best.is_some() {
                break;
            }
        }
        search.winner()
    }

    fn check_starting(&self) -> Result<(), Failure> {
        let max = self.weights.starting_containers_max;
        if max > 0 && self.starting_containers >= max {
            return Err(Failure::TooManyStarting);
        }
        Ok(())
    }

    /// Remembers which cells this constraint allows, or the mismatch of the cell that came closest.
    fn match_cells(&mut self, constraint: &'a Constraint) {
        if self.compatible.contains_key(constraint) {
            return;
        }
        let mut zones: Vec<ZoneSlots> = Vec::new();
        let mut closest = Mismatch::Rootfs;
        for (at, slot) in self.slots.iter().enumerate() {
            match self.cells[slot.cell].matches(constraint) {
                Err(mismatch) => closest = closest.max(mismatch),
                Ok(()) => match zones.last_mut() {
                    Some(last) if last.zone == slot.zone => last.slots.push(at),
                    _ => zones.push(ZoneSlots { zone: slot.zone, slots: vec![at] }),
                },
            }
        }
        let compatible = if !zones.is_empty() {
            Ok(zones)
        } else {
            Err(match closest {
                Mismatch::Rootfs => Failure::Rootfs,
                Mismatch::VolumeDrivers => Failure::VolumeDrivers,
                Mismatch::PlacementTags => Failure::PlacementTags(constraint.placement_tags.clone()),
            })
        };
        self.compatible.insert(constraint, compatible);
    }

    fn count_instance(&mut self, process_guid: &'a str, at: usize) {
        let process = self.processes.entry(process_guid).or_default();
        process.by_zone.resize(self.zone_count, 0);
        process.by_zone[self.slots[at].zone] += 1;
        *process.by_slot.entry(at).or_default() += 1;
    }

    fn take(&mut self, at: usize, resource: Resource) {
        let slot = &mut self.slots[at];
        slot.available.memory_mb -= resource.memory_mb;
        slot.available.disk_mb -= resource.disk_mb;
        slot.available.containers -= 1;
        slot.starting_containers += 1;
        slot.load = slot.weigh(&self.weights);
        self.starting_containers += 1;
    }
}

impl Slot {
    fn new(at: usize, cell: &Cell, zone: usize, index: i32, weights: &Weights) -> Self {
        let mut slot = Slot {
            cell: at,
            zone,
            index,
            available: cell.available,
            total: cell.total,
            starting_containers: cell.starting_containers,
            tasks: cell.tasks,
            load: 0.0,
        };
        slot.load = slot.weigh(weights);
        slot
    }

    fn weigh(&self, weights: &Weights) -> f64 {
        let used = |available: i32, total: i32| fraction(total - available, total);
        let memory = used(self.available.memory_mb, self.total.memory_mb);
        let disk = used(self.available.disk_mb, self.total.disk_mb);
        let containers = used(self.available.containers, self.total.containers);
        (memory + disk + containers) / 3.0 + f64::from(self.starting_containers) * weights.starting_container
    }

    fn shortage(&self, resource: &Resource) -> Shortage {
        Shortage {
            containers: self.available.containers < 1,
            disk: self.available.disk_mb < resource.disk_mb,
            memory: self.available.memory_mb < resource.memory_mb,
        }
    }

    /// How much more of the cell would be used.
    fn share(&self, resource: &Resource) -> f64 {
        (fraction(resource.memory_mb, self.total.memory_mb)
            + fraction(resource.disk_mb, self.total.disk_mb)
            + fraction(1, self.total.containers))
            / 3.0
    }
}

/// A cell that has none of something is as full of it as can be.
fn fraction(part: i32, total: i32) -> f64 {
    if total > 0 { f64::from(part) / f64::from(total) } else { 1.0 }
}

fn with_proxy(resource: &Resource, proxy_memory_mb: i32) -> Resource {
    Resource { memory_mb: resource.memory_mb.saturating_add(proxy_memory_mb), ..*resource }
}

/// The lowest score so far, and what all cells that could not take the work were short of.
struct Search {
    best: Option<(f64, usize)>,
    shortage: Shortage,
}

impl Default for Search {
    fn default() -> Self {
        Search { best: None, shortage: Shortage::ALL }
    }
}

impl Search {
    fn consider(&mut self, at: usize, slot: &Slot, resource: &Resource, extra: f64) {
        let shortage = slot.shortage(resource);
        if !shortage.is_none() {
            self.shortage = self.shortage.and(shortage);
            return;
        }
        let score = slot.load + slot.share(resource) + extra;
        if self.best.is_none_or(|(best, _)| score < best) {
            self.best = Some((score, at));
        }
    }

    fn winner(self) -> Result<usize, Shortage> {
        self.best.map(|(_, at)| at).ok_or(self.shortage)
    }
}
