//! The state of an auction under way: what each cell has left once the work placed so far is counted in.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::order::Order;
use crate::value::{Mismatch, split};
use crate::{Cell, Constraint, Failure, Lrp, Outcome, Resource, Resources, Shortage, Task, Weights};

/// Outweighs any difference in resources: a cell with one instance less wins.
const LOCALITY_OFFSET: f64 = 1000.0;
/// Where fewer than one in so many cells of a zone are compatible, just those are looked at, in whatever order.
const SPARSE: usize = 8;

pub(crate) struct Board<'a> {
    weights: Weights,
    cells: &'a [Cell],
    slots: Vec<Slot>,
    zone_count: usize,
    starting_containers: i32,
    processes: HashMap<&'a str, Process>,
    /// For each zone, for LRPs and for Tasks.
    orders: Vec<[Order; 2]>,
    /// Schemes of which some cell has only certain root filesystems: their names matter.
    named_schemes: BTreeSet<&'a str>,
    classes: HashMap<Class<'a>, usize>,
    compatible: Vec<Result<Vec<ZoneSlots>, Failure>>,
    /// What nothing could take since something was taken.
    hopeless: HashMap<(usize, Kind, Resource), Shortage>,
}

/// Constraints that the same cells match.
#[derive(PartialEq, Eq, Hash)]
struct Class<'a> {
    scheme: &'a str,
    name: &'a str,
    volume_drivers: &'a [String],
    placement_tags: &'a [String],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Lrp,
    Task,
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
            zone_count: zones.len(),
            starting_containers: cells.iter().map(|cell| cell.starting_containers).sum(),
            processes: HashMap::new(),
            orders: (0..zones.len()).map(|_| Default::default()).collect(),
            named_schemes: named_schemes(cells),
            classes: HashMap::new(),
            compatible: Vec::new(),
            hopeless: HashMap::new(),
            slots,
        };
        for at in 0..board.slots.len() {
            let slot = &board.slots[at];
            for kind in [Kind::Lrp, Kind::Task] {
                let key = slot.key(kind, weights);
                board.orders[slot.zone][kind as usize].insert(key, at, &slot.total);
            }
            for process_guid in &cells[board.slots[at].cell].lrps {
                board.count_instance(process_guid, at);
            }
        }
        board
    }

    pub fn place_lrp(&mut self, lrp: &'a Lrp) -> Outcome {
        self.check_starting()?;
        let class = self.class(&lrp.constraint);
        let zones = self.compatible[class].as_ref().map_err(Clone::clone)?;
        let winner = match self.hopeless.get(&(class, Kind::Lrp, lrp.resource)) {
            Some(shortage) => Err(*shortage),
            None => self.best_for_lrp(&lrp.resource, zones, self.processes.get(lrp.process_guid.as_str())),
        };
        let winner = self.remember(class, Kind::Lrp, lrp.resource, winner)?;
        let proxy_memory_mb = self.cells[self.slots[winner].cell].proxy_memory_mb;
        self.take(winner, with_proxy(&lrp.resource, proxy_memory_mb), 0);
        self.count_instance(&lrp.process_guid, winner);
        Ok(self.slots[winner].cell)
    }

    pub fn place_task(&mut self, task: &'a Task) -> Outcome {
        self.check_starting()?;
        let class = self.class(&task.constraint);
        let zones = self.compatible[class].as_ref().map_err(Clone::clone)?;
        let winner = match self.hopeless.get(&(class, Kind::Task, task.resource)) {
            Some(shortage) => Err(*shortage),
            None => self.best_for_task(&task.resource, zones),
        };
        let winner = self.remember(class, Kind::Task, task.resource, winner)?;
        self.take(winner, task.resource, 1);
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
            for zone in group {
                self.look(zone, Kind::Lrp, resource, &mut search, |search, at| {
                    let slot = &self.slots[at];
                    let resource = with_proxy(resource, self.cells[slot.cell].proxy_memory_mb);
                    let there = process.and_then(|process| process.by_slot.get(&at)).copied().unwrap_or(0);
                    let extra = LOCALITY_OFFSET * f64::from(there)
                        + f64::from(slot.index) * self.weights.bin_pack_first_fit;
                    search.consider(at, slot, &resource, extra);
                });
            }
            if search.best.is_some() {
                break;
            }
        }
        search.winner()
    }

    fn best_for_task(&self, resource: &Resource, zones: &[ZoneSlots]) -> Result<usize, Shortage> {
        let mut search = Search::default();
        for zone in zones {
            self.look(zone, Kind::Task, resource, &mut search, |search, at| {
                let slot = &self.slots[at];
                search.consider(at, slot, resource, LOCALITY_OFFSET * slot.tasks as f64);
            });
        }
        search.winner()
    }

    /// At each compatible cell of a zone that may be the best so far.
    fn look(
        &self,
        zone: &ZoneSlots,
        kind: Kind,
        resource: &Resource,
        search: &mut Search,
        consider: impl Fn(&mut Search, usize),
    ) {
        let order = &self.orders[zone.zone][kind as usize];
        if zone.slots.len() * SPARSE < order.len() {
            return zone.slots.iter().for_each(|&at| consider(search, at));
        }
        let all = zone.slots.len() == order.len();
        order.each(order.share_min(resource), |at| {
            if all || zone.slots.binary_search(&at).is_ok() {
                consider(search, at);
            }
            search.best.map(|(score, _)| score)
        });
    }

    fn remember(
        &mut self,
        class: usize,
        kind: Kind,
        resource: Resource,
        winner: Result<usize, Shortage>,
    ) -> Outcome {
        winner.map_err(|shortage| {
            self.hopeless.insert((class, kind, resource), shortage);
            Failure::InsufficientResources(shortage)
        })
    }

    fn check_starting(&self) -> Result<(), Failure> {
        let max = self.weights.starting_containers_max;
        if max > 0 && self.starting_containers >= max {
            return Err(Failure::TooManyStarting);
        }
        Ok(())
    }

    /// Remembers which cells this constraint allows, or the mismatch of the cell that came closest.
    fn class(&mut self, constraint: &'a Constraint) -> usize {
        let (scheme, name) = split(&constraint.rootfs);
        let name = if self.named_schemes.contains(scheme) { name } else { "" };
        let (volume_drivers, placement_tags) = (&constraint.volume_drivers, &constraint.placement_tags);
        let (next, class) = (self.compatible.len(), Class { scheme, name, volume_drivers, placement_tags });
        let known = *self.classes.entry(class).or_insert(next);
        if known == next {
            let compatible = self.match_cells(constraint);
            self.compatible.push(compatible);
        }
        known
    }

    fn match_cells(&self, constraint: &Constraint) -> Result<Vec<ZoneSlots>, Failure> {
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
        if !zones.is_empty() {
            return Ok(zones);
        }
        Err(match closest {
            Mismatch::Rootfs => Failure::Rootfs,
            Mismatch::VolumeDrivers => Failure::VolumeDrivers,
            Mismatch::PlacementTags => Failure::PlacementTags(constraint.placement_tags.clone()),
        })
    }

    fn count_instance(&mut self, process_guid: &'a str, at: usize) {
        let process = self.processes.entry(process_guid).or_default();
        process.by_zone.resize(self.zone_count, 0);
        process.by_zone[self.slots[at].zone] += 1;
        *process.by_slot.entry(at).or_default() += 1;
    }

    fn take(&mut self, at: usize, resource: Resource, tasks: usize) {
        let slot = &mut self.slots[at];
        let before = [Kind::Lrp, Kind::Task].map(|kind| slot.key(kind, &self.weights));
        slot.tasks += tasks;
        slot.available.memory_mb -= resource.memory_mb;
        slot.available.disk_mb -= resource.disk_mb;
        slot.available.containers -= 1;
        slot.starting_containers += 1;
        slot.load = slot.weigh(&self.weights);
        for (kind, before) in [Kind::Lrp, Kind::Task].into_iter().zip(before) {
            self.orders[slot.zone][kind as usize].moved(before, slot.key(kind, &self.weights), at);
        }
        self.starting_containers += 1;
        self.hopeless.clear();
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

    /// The least its score can be before the work is counted in.
    fn key(&self, kind: Kind, weights: &Weights) -> f64 {
        match kind {
            Kind::Lrp => self.load + f64::from(self.index) * weights.bin_pack_first_fit,
            Kind::Task => self.load + LOCALITY_OFFSET * self.tasks as f64,
        }
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

fn named_schemes(cells: &[Cell]) -> BTreeSet<&str> {
    let all = cells.iter().flat_map(|cell| &cell.rootfses.0);
    all.filter(|(_, names)| names.is_some()).map(|(scheme, _)| scheme.as_str()).collect()
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
        if self.best.is_none_or(|(best, first)| score < best || (score == best && at < first)) {
            self.best = Some((score, at));
        }
    }

    fn winner(self) -> Result<usize, Shortage> {
        self.best.map(|(_, at)| at).ok_or(self.shortage)
    }
}
