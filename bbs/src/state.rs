//! All that the BBS knows, in memory, and the one way it changes: by [`Change`]s, which can also be taken back.
//!
//! No I/O and no decisions: which change is allowed is decided in [`crate::transitions`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bbs_models::{
    ActualLrp, ActualLrpFilter, ActualLrpGroup, ActualLrpInstanceKey, DesiredLrp, DesiredLrpFilter, Presence,
    Task, TaskFilter,
};

/// Everybody who works on one index of an LRP: mostly one, up to three while cells leave or are not heard from.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Slot {
    pub ordinary: Option<Arc<ActualLrp>>,
    pub evacuating: Option<Arc<ActualLrp>>,
    pub suspect: Option<Arc<ActualLrp>>,
}

impl Slot {
    pub fn get(&self, presence: Presence) -> Option<&Arc<ActualLrp>> {
        match presence {
            Presence::Ordinary => self.ordinary.as_ref(),
            Presence::Evacuating => self.evacuating.as_ref(),
            Presence::Suspect => self.suspect.as_ref(),
        }
    }

    pub fn slot_mut(&mut self, presence: Presence) -> &mut Option<Arc<ActualLrp>> {
        match presence {
            Presence::Ordinary => &mut self.ordinary,
            Presence::Evacuating => &mut self.evacuating,
            Presence::Suspect => &mut self.suspect,
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = &Arc<ActualLrp>> {
        [&self.ordinary, &self.evacuating, &self.suspect].into_iter().flatten()
    }

    /// Who works as `instance`, whatever its presence.
    pub fn find(&self, instance: &ActualLrpInstanceKey) -> Option<&Arc<ActualLrp>> {
        self.iter().find(|lrp| lrp.instance() == Some(instance))
    }

    pub fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }

    /// The deprecated view: a suspect that still works speaks for the instance until its replacement runs.
    pub fn group(&self) -> ActualLrpGroup {
        let instance = match (&self.ordinary, &self.suspect) {
            (Some(ordinary), Some(suspect)) => Some(if ordinary.is_running() { ordinary } else { suspect }),
            (ordinary, suspect) => ordinary.as_ref().or(suspect.as_ref()),
        };
        ActualLrpGroup {
            instance: instance.map(|lrp| ActualLrp::clone(lrp)),
            evacuating: self.evacuating.as_ref().map(|lrp| ActualLrp::clone(lrp)),
        }
    }
}

/// One thing that became otherwise. Both sides are kept: to be undone, written, and told to subscribers.
#[derive(Debug, Clone)]
pub enum Change {
    ActualLrp(SlotChange),
    DesiredLrp { before: Option<Arc<DesiredLrp>>, after: Option<Arc<DesiredLrp>> },
    Task { before: Option<Arc<Task>>, after: Option<Arc<Task>> },
    Domain { domain: String, before: Option<i64>, after: Option<i64> },
}

#[derive(Debug, Clone)]
pub struct SlotChange {
    pub process_guid: String,
    pub index: u32,
    pub before: Slot,
    pub after: Slot,
    /// What happened to each instance, which `before` and `after` alone do not tell.
    pub moves: Vec<Move>,
    /// The instance crashed: subscribers are told so, even if it is restarted at once.
    pub crashed: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Move {
    Created(Arc<ActualLrp>),
    Changed { before: Arc<ActualLrp>, after: Arc<ActualLrp> },
    Removed(Arc<ActualLrp>),
}

#[derive(Debug, Default, Clone)]
pub struct State {
    // Ordered, so that the same history leads to the same answers and repairs in the same order.
    desired: BTreeMap<String, Arc<DesiredLrp>>,
    actual: BTreeMap<String, BTreeMap<u32, Slot>>,
    tasks: BTreeMap<String, Arc<Task>>,
    /// When each becomes stale, in nanoseconds since the epoch.
    domains: BTreeMap<String, i64>,
}

impl State {
    pub fn apply(&mut self, change: &Change) {
        match change {
            Change::ActualLrp(change) => self.set_slot(&change.process_guid, change.index, &change.after),
            Change::DesiredLrp { before, after } => {
                set(&mut self.desired, before, after, |lrp| &lrp.process_guid)
            }
            Change::Task { before, after } => set(&mut self.tasks, before, after, |task| &task.task_guid),
            Change::Domain { domain, after, .. } => self.set_domain(domain, *after),
        }
    }

    /// As if [`State::apply`] had not been. Changes are taken back in the reverse of their order.
    pub fn revert(&mut self, change: &Change) {
        match change {
            Change::ActualLrp(change) => self.set_slot(&change.process_guid, change.index, &change.before),
            Change::DesiredLrp { before, after } => {
                set(&mut self.desired, after, before, |lrp| &lrp.process_guid)
            }
            Change::Task { before, after } => set(&mut self.tasks, after, before, |task| &task.task_guid),
            Change::Domain { domain, before, .. } => self.set_domain(domain, *before),
        }
    }

    fn set_slot(&mut self, process_guid: &str, index: u32, slot: &Slot) {
        if !slot.is_empty() {
            match self.actual.get_mut(process_guid) {
                Some(slots) => slots.insert(index, slot.clone()),
                None => self.actual.entry(process_guid.into()).or_default().insert(index, slot.clone()),
            };
            return;
        }
        if let Some(slots) = self.actual.get_mut(process_guid) {
            slots.remove(&index);
            if slots.is_empty() {
                self.actual.remove(process_guid);
            }
        }
    }

    fn set_domain(&mut self, domain: &str, expires_at_ns: Option<i64>) {
        match expires_at_ns {
            Some(expires_at_ns) => self.domains.insert(domain.into(), expires_at_ns),
            None => self.domains.remove(domain),
        };
    }

    pub fn slot(&self, process_guid: &str, index: u32) -> Slot {
        self.actual.get(process_guid).and_then(|slots| slots.get(&index)).cloned().unwrap_or_default()
    }

    /// Each index of one LRP that somebody works on or that waits.
    pub fn slots_of(&self, process_guid: &str) -> impl Iterator<Item = (u32, &Slot)> {
        self.actual.get(process_guid).into_iter().flatten().map(|(index, slot)| (*index, slot))
    }

    pub fn slots(&self) -> impl Iterator<Item = (&str, u32, &Slot)> {
        self.actual
            .iter()
            .flat_map(|(guid, slots)| slots.iter().map(move |(index, slot)| (guid.as_str(), *index, slot)))
    }

    pub fn desired_lrp(&self, process_guid: &str) -> Option<&Arc<DesiredLrp>> {
        self.desired.get(process_guid)
    }

    pub fn desired_lrps(&self) -> impl Iterator<Item = &Arc<DesiredLrp>> {
        self.desired.values()
    }

    pub fn task(&self, guid: &str) -> Option<&Arc<Task>> {
        self.tasks.get(guid)
    }

    pub fn tasks(&self) -> impl Iterator<Item = &Arc<Task>> {
        self.tasks.values()
    }

    pub fn domains(&self) -> impl Iterator<Item = (&str, i64)> {
        self.domains.iter().map(|(domain, expires_at_ns)| (domain.as_str(), *expires_at_ns))
    }

    pub fn domain(&self, domain: &str) -> Option<i64> {
        self.domains.get(domain).copied()
    }

    pub fn is_fresh(&self, domain: &str, now_ns: i64) -> bool {
        self.domain(domain).is_some_and(|expires_at_ns| expires_at_ns > now_ns)
    }

    /// The slots that may match; the members still have to be asked one by one, with [`matches`].
    fn candidates<'a>(&'a self, filter: &'a ActualLrpFilter) -> Box<dyn Iterator<Item = &'a Slot> + 'a> {
        if filter.process_guid.is_empty() {
            return Box::new(self.actual.values().flat_map(BTreeMap::values));
        }
        let slots = self.actual.get(&filter.process_guid).into_iter();
        match filter.index {
            Some(index) => Box::new(slots.filter_map(move |slots| slots.get(&index))),
            None => Box::new(slots.flat_map(BTreeMap::values)),
        }
    }

    pub fn actual_lrps(&self, filter: &ActualLrpFilter) -> Vec<Arc<ActualLrp>> {
        self.candidates(filter).flat_map(Slot::iter).filter(|lrp| matches(filter, lrp)).cloned().collect()
    }

    /// As [`State::actual_lrps`], in the deprecated view: of each index only what matches is seen.
    pub fn groups(&self, filter: &ActualLrpFilter) -> Vec<ActualLrpGroup> {
        let seen = |lrp: &Option<Arc<ActualLrp>>| lrp.clone().filter(|lrp| matches(filter, lrp));
        self.candidates(filter)
            .map(|slot| Slot {
                ordinary: seen(&slot.ordinary),
                evacuating: seen(&slot.evacuating),
                suspect: seen(&slot.suspect),
            })
            .filter(|slot| !slot.is_empty())
            .map(|slot| slot.group())
            .collect()
    }

    pub fn actual_lrps_of(&self, process_guids: &[String]) -> Vec<Arc<ActualLrp>> {
        let guids: BTreeSet<&String> = process_guids.iter().collect();
        let slots = guids.into_iter().filter_map(|guid| self.actual.get(guid)).flat_map(BTreeMap::values);
        slots.flat_map(Slot::iter).cloned().collect()
    }

    pub fn desired_lrps_where(&self, filter: &DesiredLrpFilter) -> Vec<Arc<DesiredLrp>> {
        let wanted = |lrp: &&Arc<DesiredLrp>| {
            (filter.domain.is_empty() || lrp.domain == filter.domain)
                && (filter.app_guids.is_empty()
                    || filter.app_guids.iter().any(|app| lrp.process_guid.starts_with(app.as_str())))
        };
        if filter.process_guids.is_empty() {
            return self.desired.values().filter(wanted).cloned().collect();
        }
        let guids: BTreeSet<&String> = filter.process_guids.iter().collect();
        guids.into_iter().filter_map(|guid| self.desired.get(guid)).filter(wanted).cloned().collect()
    }

    pub fn tasks_where(&self, filter: &TaskFilter) -> Vec<Arc<Task>> {
        let wanted = |task: &&Arc<Task>| {
            (filter.domain.is_empty() || task.domain == filter.domain)
                && (filter.cell_id.is_empty() || task.cell_id() == Some(&filter.cell_id))
        };
        self.tasks.values().filter(wanted).cloned().collect()
    }
}

fn matches(filter: &ActualLrpFilter, lrp: &ActualLrp) -> bool {
    (filter.domain.is_empty() || lrp.key.domain == filter.domain)
        && (filter.cell_id.is_empty() || lrp.cell_id() == Some(&filter.cell_id))
        && (filter.process_guid.is_empty() || lrp.key.process_guid == filter.process_guid)
        && filter.index.is_none_or(|index| lrp.key.index == index)
}

fn set<T>(
    all: &mut BTreeMap<String, Arc<T>>,
    old: &Option<Arc<T>>,
    new: &Option<Arc<T>>,
    key: impl Fn(&T) -> &String,
) {
    match (new, old) {
        (Some(value), _) => all.insert(key(value).clone(), value.clone()),
        (None, Some(value)) => all.remove(key(value)),
        (None, None) => None,
    };
}
