//! What is placed, where it may go, and what comes out.

use std::collections::{BTreeMap, BTreeSet};

use crate::Failure;

/// What one container takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Resource {
    pub memory_mb: i32,
    pub disk_mb: i32,
}

/// What a cell has, or has left.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Resources {
    pub memory_mb: i32,
    pub disk_mb: i32,
    pub containers: i32,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Constraint {
    /// A URL: `preloaded:cflinuxfs4`, `docker:///busybox`.
    pub rootfs: String,
    pub volume_drivers: Vec<String>,
    pub placement_tags: Vec<String>,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Lrp {
    pub process_guid: String,
    pub index: i32,
    pub resource: Resource,
    pub constraint: Constraint,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Task {
    pub resource: Resource,
    pub constraint: Constraint,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Batch {
    pub lrps: Vec<Lrp>,
    pub tasks: Vec<Task>,
}

/// By URL scheme: `None` for any root filesystem, otherwise the names of those that are there.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rootfses(pub BTreeMap<String, Option<BTreeSet<String>>>);

impl Rootfses {
    /// `scheme` and `name` are the rootfs URL's: `preloaded`, `cflinuxfs4`.
    fn has(&self, scheme: &str, name: &str) -> bool {
        match self.0.get(scheme) {
            Some(None) => true,
            Some(Some(names)) => names.contains(name),
            None => false,
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Cell {
    pub id: String,
    pub zone: String,
    pub index: i32,
    pub rootfses: Rootfses,
    pub volume_drivers: Vec<String>,
    /// A piece of work must ask for all of these.
    pub placement_tags: Vec<String>,
    /// And may ask for these.
    pub optional_placement_tags: Vec<String>,
    pub available: Resources,
    pub total: Resources,
    /// The process guid of each LRP instance it has.
    pub lrps: Vec<String>,
    pub tasks: usize,
    pub starting_containers: i32,
    /// Taken by each LRP instance on top of its own memory.
    pub proxy_memory_mb: i32,
}

impl Cell {
    /// How far it gets in matching: rootfs, then volume drivers, then placement tags.
    pub(crate) fn matches(&self, constraint: &Constraint) -> Result<(), Mismatch> {
        let (scheme, name) = split(&constraint.rootfs);
        if !self.rootfses.has(scheme, name) {
            return Err(Mismatch::Rootfs);
        }
        if !constraint.volume_drivers.iter().all(|driver| self.volume_drivers.contains(driver)) {
            return Err(Mismatch::VolumeDrivers);
        }
        let desired = &constraint.placement_tags;
        let offers = |tag| self.placement_tags.contains(tag) || self.optional_placement_tags.contains(tag);
        let tags = self.placement_tags.iter().all(|tag| desired.contains(tag)) && desired.iter().all(offers);
        if tags { Ok(()) } else { Err(Mismatch::PlacementTags) }
    }
}

/// Ordered by how far matching got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Mismatch {
    Rootfs,
    VolumeDrivers,
    PlacementTags,
}

/// Scheme, and name without query and fragment.
pub(crate) fn split(rootfs: &str) -> (&str, &str) {
    let (scheme, rest) = rootfs.split_once(':').unwrap_or(("", rootfs));
    (scheme, rest.split(['?', '#']).next().unwrap_or_default())
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Weights {
    /// Added to a cell's score for each container it is starting.
    pub starting_container: f64,
    /// Above 0, cells are filled in the order of their index; added for each place in that order.
    pub bin_pack_first_fit: f64,
    /// Containers that may be starting on all cells together; 0: no limit.
    pub starting_containers_max: i32,
}

impl Default for Weights {
    fn default() -> Self {
        Self { starting_container: 0.25, bin_pack_first_fit: 0.0, starting_containers_max: 0 }
    }
}

/// An index into the cells that were given, or why there is none.
pub type Outcome = Result<usize, Failure>;

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Placement {
    pub lrps: Vec<Outcome>,
    pub tasks: Vec<Outcome>,
}
