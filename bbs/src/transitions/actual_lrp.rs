//! The life of an ActualLRP on the cell that has it.
//!
//! ```text
//!                  claim               start
//!   UNCLAIMED ──────────────▶ CLAIMED ──────▶ RUNNING
//!    ▲  │ ▲ fail (stays)        │  ▲            │ │
//!    │  └─┘                     │  └── claim ───┘ │
//!    │◀──────── crash, while restarts are at once ┤
//!    │◀──────── unclaim ────────┤                 │
//!    └── unclaim, when due ── CRASHED ◀── crash ──┘
//! ```
//!
//! Each function takes what is at one index and returns what is there afterwards.

use std::collections::BTreeMap;
use std::sync::Arc;

use bbs_models::{
    ActualLrp, ActualLrpInstanceKey, ActualLrpKey, ActualLrpNetInfo, ActualLrpState, Error, ModificationTag,
    Presence,
};

use super::restart::{self, Restart};
use super::truncated;
use crate::state::{Move, Slot, SlotChange};

/// A slot while a transition works on it; it writes down what it does.
pub(super) struct Work {
    process_guid: String,
    index: u32,
    before: Slot,
    pub slot: Slot,
    moves: Vec<Move>,
}

impl Work {
    pub fn on(slot: Slot, process_guid: &str, index: u32) -> Work {
        Work { process_guid: process_guid.into(), index, before: slot.clone(), slot, moves: Vec::new() }
    }

    pub fn create(&mut self, lrp: ActualLrp) {
        let lrp = Arc::new(lrp);
        *self.slot.slot_mut(lrp.presence) = Some(lrp.clone());
        self.moves.push(Move::Created(lrp));
    }

    pub fn remove(&mut self, presence: Presence) {
        if let Some(lrp) = self.slot.slot_mut(presence).take() {
            self.moves.push(Move::Removed(lrp));
        }
    }

    /// `before` becomes `after`, which may have another presence; what was there is over.
    pub fn change(&mut self, before: Arc<ActualLrp>, after: ActualLrp) {
        let after = Arc::new(after);
        if before.presence != after.presence {
            *self.slot.slot_mut(before.presence) = None;
            self.remove(after.presence);
        }
        *self.slot.slot_mut(after.presence) = Some(after.clone());
        self.moves.push(Move::Changed { before, after });
    }

    /// `None` if nothing happened.
    pub fn done(self) -> Option<SlotChange> {
        self.finish(false)
    }

    pub fn crashed(self) -> Option<SlotChange> {
        self.finish(true)
    }

    fn finish(self, crashed: bool) -> Option<SlotChange> {
        let Work { process_guid, index, before, slot, moves } = self;
        (!moves.is_empty()).then_some(SlotChange { process_guid, index, before, after: slot, moves, crashed })
    }
}

/// `None`: it is as asked for already.
pub type Outcome = Result<Option<SlotChange>, Error>;

/// What a cell tells of an instance that it runs.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    pub key: ActualLrpKey,
    pub instance: ActualLrpInstanceKey,
    pub net_info: ActualLrpNetInfo,
    pub internal_routes: Vec<String>,
    pub metric_tags: BTreeMap<String, String>,
    pub routable: bool,
    pub availability_zone: String,
}

/// Something else than what was before: the tag says so, the state is entered now.
pub(super) fn entered(old: &ActualLrp, state: ActualLrpState, now_ns: i64) -> ActualLrp {
    let mut new = ActualLrp { state, since_ns: now_ns, ..old.clone() };
    new.modification_tag.increment();
    new
}

fn unclaimed_state() -> ActualLrpState {
    ActualLrpState::Unclaimed { placement_error: String::new() }
}

/// An index gets its instance, for which nobody works yet.
pub fn create(slot: Slot, key: ActualLrpKey, epoch: String, now_ns: i64) -> Outcome {
    if slot.ordinary.is_some() {
        return Err(Error::exists());
    }
    let mut work = Work::on(slot, &key.process_guid, key.index);
    work.create(fresh(key, epoch, now_ns));
    Ok(work.done())
}

pub(super) fn fresh(key: ActualLrpKey, epoch: String, now_ns: i64) -> ActualLrp {
    let mut lrp = ActualLrp::unclaimed(key, now_ns);
    lrp.modification_tag = ModificationTag::new(epoch, 0);
    lrp.routable = Some(false);
    lrp
}

pub fn claim(
    slot: Slot,
    process_guid: &str,
    index: u32,
    instance: ActualLrpInstanceKey,
    now_ns: i64,
) -> Outcome {
    if is_suspect(&slot, &instance) {
        return Ok(None);
    }
    let old = slot.ordinary.clone().ok_or_else(Error::not_found)?;
    match &old.state {
        ActualLrpState::Claimed { instance: holder } if *holder == instance => return Ok(None),
        ActualLrpState::Running { instance: holder, .. } if *holder == instance => {}
        ActualLrpState::Unclaimed { .. } => {}
        _ => return Err(Error::cannot_be_claimed()),
    }
    let mut work = Work::on(slot, process_guid, index);
    let new = entered(&old, ActualLrpState::Claimed { instance }, now_ns);
    work.change(old, new);
    Ok(work.done())
}

/// It runs. Whoever ran it before, leaving or not heard from, is relieved.
pub fn start(slot: Slot, report: Report, epoch: String, now_ns: i64) -> Outcome {
    if is_suspect(&slot, &report.instance) {
        return Ok(None);
    }
    let (process_guid, index) = (report.key.process_guid.clone(), report.key.index);
    let mut work = Work::on(slot, &process_guid, index);
    match work.slot.ordinary.clone() {
        None => work.create(running(&report, ModificationTag::new(epoch, 0), now_ns)),
        Some(old) if says_the_same(&old, &report) => {}
        Some(old) if may_start(&old, &report) => {
            let new = started(&old, report, now_ns);
            work.change(old, new);
        }
        Some(_) => return Err(Error::cannot_be_started()),
    }
    work.remove(Presence::Evacuating);
    work.remove(Presence::Suspect);
    Ok(work.done())
}

pub(super) fn running(report: &Report, tag: ModificationTag, now_ns: i64) -> ActualLrp {
    let Report { key, instance, net_info, .. } = report;
    let mut lrp = ActualLrp::running(key.clone(), instance.clone(), net_info.clone(), now_ns);
    lrp.modification_tag = tag;
    tell(&mut lrp, report);
    lrp
}

fn tell(lrp: &mut ActualLrp, report: &Report) {
    lrp.internal_routes.clone_from(&report.internal_routes);
    lrp.metric_tags.clone_from(&report.metric_tags);
    lrp.routable = Some(report.routable);
    lrp.availability_zone.clone_from(&report.availability_zone);
}

fn started(old: &ActualLrp, report: Report, now_ns: i64) -> ActualLrp {
    let state =
        ActualLrpState::Running { instance: report.instance.clone(), net_info: report.net_info.clone() };
    let mut new = entered(old, state, now_ns);
    tell(&mut new, &report);
    new
}

/// The heartbeat of a cell: most of them say nothing new.
fn says_the_same(old: &ActualLrp, report: &Report) -> bool {
    old.key == report.key
        && old.instance() == Some(&report.instance)
        && old.net_info() == Some(&report.net_info)
        && old.internal_routes == report.internal_routes
        && old.metric_tags == report.metric_tags
        && old.routable == Some(report.routable)
        && old.availability_zone == report.availability_zone
}

fn may_start(old: &ActualLrp, report: &Report) -> bool {
    old.key == report.key
        && match &old.state {
            // A claim does not bind: the cell that runs it first has it.
            ActualLrpState::Unclaimed { .. } | ActualLrpState::Claimed { .. } => true,
            ActualLrpState::Running { instance, .. } => *instance == report.instance,
            ActualLrpState::Crashed => false,
        }
}

/// A crash, and whether the instance wants to be placed again at once.
pub fn crash(
    slot: Slot,
    process_guid: &str,
    index: u32,
    instance: &ActualLrpInstanceKey,
    reason: String,
    now_ns: i64,
) -> Result<(Option<SlotChange>, bool), Error> {
    let suspect = is_suspect(&slot, instance);
    let mut work = Work::on(slot, process_guid, index);
    if suspect {
        work.remove(Presence::Suspect);
        return Ok((work.done(), false));
    }
    let old = work.slot.ordinary.clone().ok_or_else(Error::not_found)?;
    if old.instance() != Some(instance) {
        return Err(Error::cannot_be_crashed());
    }
    let crash_count = restart::count_crash(old.crash_count, old.is_running(), old.since_ns, now_ns);
    let restarts = restart::restart(crash_count) == Restart::Now;
    let state = if restarts { unclaimed_state() } else { ActualLrpState::Crashed };
    let new = ActualLrp { crash_count, crash_reason: truncated(reason), ..entered(&old, state, now_ns) };
    work.change(old, new);
    Ok((work.crashed(), restarts))
}

/// No cell could take it. An instance that is gone meanwhile needs no placement error.
pub fn fail(slot: Slot, process_guid: &str, index: u32, placement_error: String, now_ns: i64) -> Outcome {
    let Some(old) = slot.ordinary.clone() else { return Ok(None) };
    if !matches!(old.state, ActualLrpState::Unclaimed { .. }) {
        return Err(Error::cannot_be_failed());
    }
    let mut work = Work::on(slot, process_guid, index);
    let state = ActualLrpState::Unclaimed { placement_error: truncated(placement_error) };
    let new = entered(&old, state, now_ns);
    work.change(old, new);
    Ok(work.done())
}

/// It is over: at any cell (`None`), or only if `instance` still has it.
pub fn remove(
    slot: Slot,
    process_guid: &str,
    index: u32,
    instance: Option<&ActualLrpInstanceKey>,
) -> Outcome {
    let old = slot.ordinary.as_ref().ok_or_else(Error::not_found)?;
    if instance.is_some_and(|instance| old.instance() != Some(instance)) {
        return Err(Error::not_found());
    }
    let mut work = Work::on(slot, process_guid, index);
    work.remove(Presence::Ordinary);
    Ok(work.done())
}

/// It is no longer wanted. Where a cell has it, the cell is to be told first: nothing happens here.
pub fn retire(slot: Slot, process_guid: &str, index: u32) -> Outcome {
    let old = slot.ordinary.as_ref().ok_or_else(Error::not_found)?;
    if old.instance().is_some() {
        return Ok(None);
    }
    remove(slot, process_guid, index, None)
}

/// Taken from its cell, or out of its crash: it waits to be placed again.
pub fn unclaim(slot: Slot, process_guid: &str, index: u32, now_ns: i64) -> Outcome {
    let old = slot.ordinary.clone().ok_or_else(Error::not_found)?;
    if matches!(old.state, ActualLrpState::Unclaimed { .. }) {
        return Err(Error::cannot_be_unclaimed());
    }
    let mut work = Work::on(slot, process_guid, index);
    let new = entered(&old, unclaimed_state(), now_ns);
    work.change(old, new);
    Ok(work.done())
}

/// A crashed instance whose wait is over. Anything else has moved on and is left alone.
pub fn restart_crashed(slot: Slot, process_guid: &str, index: u32, now_ns: i64) -> Outcome {
    let due = slot.ordinary.as_ref().is_some_and(|lrp| {
        lrp.state == ActualLrpState::Crashed && restart::is_due(lrp.crash_count, lrp.since_ns, now_ns)
    });
    if due { unclaim(slot, process_guid, index, now_ns) } else { Err(Error::cannot_be_unclaimed()) }
}

pub(super) fn is_suspect(slot: &Slot, instance: &ActualLrpInstanceKey) -> bool {
    slot.suspect.as_ref().is_some_and(|lrp| lrp.instance() == Some(instance))
}
