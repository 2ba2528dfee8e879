//! Instances on cells that are not heard from: kept as suspects, for they may well run, while others replace them.

use bbs_models::{ActualLrp, ActualLrpInstanceKey, Error, Presence};

use super::actual_lrp::{Outcome, Work, fresh, unclaim};
use crate::state::Slot;

/// The cell of `instance` is lost. The first time, the instance becomes suspect and a new one waits in its place; if
/// a suspect is there already, the replacement was lost too and waits again.
pub fn cell_lost(
    slot: Slot,
    process_guid: &str,
    index: u32,
    instance: &ActualLrpInstanceKey,
    epoch: String,
    now_ns: i64,
) -> Outcome {
    let old = slot.ordinary.clone().filter(|lrp| lrp.instance() == Some(instance));
    let old = old.ok_or_else(Error::not_found)?;
    if slot.suspect.is_some() {
        return unclaim(slot, process_guid, index, now_ns);
    }
    let mut work = Work::on(slot, process_guid, index);
    let key = old.key.clone();
    let suspect = ActualLrp { presence: Presence::Suspect, ..ActualLrp::clone(&old) };
    work.change(old, suspect);
    work.create(fresh(key, epoch, now_ns));
    Ok(work.done())
}

/// The cell of the suspect is back: it never stopped, and its replacement is not needed.
pub fn promote(slot: Slot, process_guid: &str, index: u32) -> Outcome {
    let old = slot.suspect.clone().ok_or_else(Error::not_found)?;
    let mut work = Work::on(slot, process_guid, index);
    let ordinary = ActualLrp { presence: Presence::Ordinary, ..ActualLrp::clone(&old) };
    work.change(old, ordinary);
    Ok(work.done())
}

pub fn remove(slot: Slot, process_guid: &str, index: u32) -> Outcome {
    let mut work = Work::on(slot, process_guid, index);
    work.remove(Presence::Suspect);
    Ok(work.done())
}
