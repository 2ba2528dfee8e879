//! Instances on cells that are about to leave: each runs on, as the evacuating one, until its replacement does.

use bbs_models::{
    ActualLrp, ActualLrpInstanceKey, ActualLrpState, Error, ModificationTag, Presence, UpdateStrategy,
};

use super::actual_lrp::{self, Outcome, Report, Work};
use crate::state::{Slot, SlotChange};

/// What the leaving cell is told, and what the BBS does about it.
#[derive(Debug, Clone)]
pub struct Evacuated {
    pub change: Option<SlotChange>,
    pub keep_container: bool,
    /// A replacement wants to be placed.
    pub auction: bool,
}

impl Evacuated {
    fn let_go(change: Option<SlotChange>) -> Evacuated {
        Evacuated { change, keep_container: false, auction: false }
    }

    fn kept(change: Option<SlotChange>) -> Evacuated {
        Evacuated { change, keep_container: true, auction: false }
    }
}

/// What the DesiredLRP says about replacing its instances.
#[derive(Debug, Clone, Copy)]
pub struct Replacing {
    pub strategy: UpdateStrategy,
    /// Whether as many ordinary instances run as are desired; one at a time is replaced under `Recreate`.
    pub all_running: bool,
}

/// A leaving instance has become unneeded.
pub fn remove_evacuating(
    slot: Slot,
    process_guid: &str,
    index: u32,
    instance: &ActualLrpInstanceKey,
) -> Outcome {
    if slot.evacuating.as_ref().and_then(|lrp| lrp.instance()) != Some(instance) {
        return Err(Error::not_found());
    }
    let mut work = Work::on(slot, process_guid, index);
    work.remove(Presence::Evacuating);
    Ok(work.done())
}

/// It had not started yet on the leaving cell: it is placed anew.
pub fn evacuate_claimed(
    slot: Slot,
    process_guid: &str,
    index: u32,
    instance: &ActualLrpInstanceKey,
    now_ns: i64,
) -> Result<Evacuated, Error> {
    match without_leftover(slot, process_guid, index, instance)? {
        Ok(removed) => Ok(Evacuated::let_go(removed)),
        Err(slot) => {
            let change = actual_lrp::unclaim(slot, process_guid, index, now_ns)?;
            Ok(Evacuated { change, keep_container: false, auction: true })
        }
    }
}

pub fn evacuate_crashed(
    slot: Slot,
    process_guid: &str,
    index: u32,
    instance: &ActualLrpInstanceKey,
    reason: String,
    now_ns: i64,
) -> Result<Evacuated, Error> {
    match without_leftover(slot, process_guid, index, instance)? {
        Ok(removed) => Ok(Evacuated::let_go(removed)),
        Err(slot) => {
            let (change, auction) = actual_lrp::crash(slot, process_guid, index, instance, reason, now_ns)?;
            Ok(Evacuated { change, keep_container: false, auction })
        }
    }
}

pub fn evacuate_stopped(
    slot: Slot,
    process_guid: &str,
    index: u32,
    instance: &ActualLrpInstanceKey,
) -> Result<Evacuated, Error> {
    match without_leftover(slot, process_guid, index, instance)? {
        Ok(removed) => Ok(Evacuated::let_go(removed)),
        Err(slot) => actual_lrp::remove(slot, process_guid, index, Some(instance)).map(Evacuated::let_go),
    }
}

/// An evacuating or suspect instance that ended is just removed (`Ok`); an ordinary one is given back (`Err`).
fn without_leftover(
    slot: Slot,
    process_guid: &str,
    index: u32,
    instance: &ActualLrpInstanceKey,
) -> Result<Result<Option<SlotChange>, Slot>, Error> {
    let presence = slot.find(instance).ok_or_else(Error::not_found)?.presence;
    if presence == Presence::Ordinary {
        return Ok(Err(slot));
    }
    let mut work = Work::on(slot, process_guid, index);
    work.remove(presence);
    Ok(Ok(work.done()))
}

/// It runs on the leaving cell. `replacing` is `None` when the DesiredLRP is gone.
pub fn evacuate_running(
    slot: Slot,
    report: Report,
    replacing: Option<Replacing>,
    epoch: String,
    now_ns: i64,
) -> Evacuated {
    let target = slot.find(&report.instance).cloned();
    let (process_guid, index) = (report.key.process_guid.clone(), report.key.index);
    let Some(replacing) = replacing.filter(|_| !is_replaced(&slot, &report.instance)) else {
        return Evacuated::let_go(relieved(slot, &process_guid, index, &report.instance));
    };
    match (replacing.strategy, target.map(|lrp| lrp.presence)) {
        (UpdateStrategy::Recreate, None) => Evacuated::let_go(None),
        (UpdateStrategy::Recreate, Some(Presence::Evacuating | Presence::Suspect)) => {
            Evacuated::let_go(relieved(slot, &process_guid, index, &report.instance))
        }
        (UpdateStrategy::Recreate, Some(Presence::Ordinary)) => {
            recreate(slot, &process_guid, index, replacing.all_running, now_ns)
        }
        (UpdateStrategy::Rolling, None | Some(Presence::Evacuating)) => {
            keep_evacuating(slot, report, epoch, now_ns)
        }
        (UpdateStrategy::Rolling, Some(Presence::Ordinary | Presence::Suspect)) => {
            roll(slot, report, epoch, now_ns)
        }
    }
}

/// Nobody waits for it: the index is no longer wanted, or somebody else runs it or has crashed with it.
fn is_replaced(slot: &Slot, instance: &ActualLrpInstanceKey) -> bool {
    match &slot.ordinary {
        None => true,
        Some(ordinary) => match &ordinary.state {
            ActualLrpState::Running { instance: other, .. } => other != instance,
            ActualLrpState::Crashed => true,
            ActualLrpState::Unclaimed { .. } | ActualLrpState::Claimed { .. } => false,
        },
    }
}

/// Its container goes: so does its record, whatever it is.
fn relieved(
    slot: Slot,
    process_guid: &str,
    index: u32,
    instance: &ActualLrpInstanceKey,
) -> Option<SlotChange> {
    let presence = slot.find(instance)?.presence;
    let mut work = Work::on(slot, process_guid, index);
    work.remove(presence);
    work.done()
}

/// Stopped first, started elsewhere afterwards; and only while all others run.
fn recreate(slot: Slot, process_guid: &str, index: u32, all_running: bool, now_ns: i64) -> Evacuated {
    if !all_running {
        return Evacuated::kept(None);
    }
    match actual_lrp::unclaim(slot, process_guid, index, now_ns) {
        Ok(change) => Evacuated { change, keep_container: false, auction: true },
        Err(_) => Evacuated::let_go(None),
    }
}

/// The replacement is on its way; only one may wait for it.
fn keep_evacuating(slot: Slot, report: Report, epoch: String, now_ns: i64) -> Evacuated {
    let mut work = Work::on(slot, &report.key.process_guid, report.key.index);
    match work.slot.evacuating.clone() {
        Some(other) if other.instance() != Some(&report.instance) => return Evacuated::let_go(None),
        Some(same) if same.key == report.key && same.net_info() == Some(&report.net_info) => {}
        Some(old) => {
            let mut tag = old.modification_tag.clone();
            tag.increment();
            work.change(old, evacuating(&report, tag, now_ns));
        }
        None => work.create(evacuating(&report, ModificationTag::new(epoch, 0), now_ns)),
    }
    Evacuated::kept(work.done())
}

fn evacuating(report: &Report, tag: ModificationTag, now_ns: i64) -> ActualLrp {
    ActualLrp { presence: Presence::Evacuating, ..actual_lrp::running(report, tag, now_ns) }
}

/// The instance becomes the evacuating one, and a new one waits in its place (unless that was so already).
fn roll(slot: Slot, report: Report, epoch: String, now_ns: i64) -> Evacuated {
    let mut work = Work::on(slot, &report.key.process_guid, report.key.index);
    let Some(target) = work.slot.find(&report.instance).cloned() else { return Evacuated::let_go(None) };
    let net_info = target.net_info().cloned().unwrap_or(report.net_info.clone());
    let leaving = ActualLrp {
        state: ActualLrpState::Running { instance: report.instance.clone(), net_info },
        presence: Presence::Evacuating,
        since_ns: now_ns,
        modification_tag: ModificationTag::new(epoch, 0),
        crash_count: 0,
        crash_reason: String::new(),
        ..ActualLrp::clone(&target)
    };
    let ordinary = target.presence == Presence::Ordinary;
    work.change(target.clone(), leaving);
    if ordinary {
        let state = ActualLrpState::Unclaimed { placement_error: String::new() };
        work.create(actual_lrp::entered(&target, state, now_ns));
    }
    Evacuated { change: work.done(), keep_container: true, auction: ordinary }
}
