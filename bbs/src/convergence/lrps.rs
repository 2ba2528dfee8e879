//! LRPs: what is missing, extra, waiting, crashed, or on cells that are not there.

use bbs_models::{ActualLrp, ActualLrpKey, ActualLrpState, DesiredLrp, resolve_metric_tags};

use super::{LiveCells, Patience, Repair, is_far};
use crate::internal_routes;
use crate::state::{Slot, State};
use crate::transitions::restart;

struct Look<'a> {
    state: &'a State,
    live: &'a LiveCells,
    patience: &'a Patience,
    now_ns: i64,
    repairs: &'a mut Vec<Repair>,
}

pub fn repairs(state: &State, live: &LiveCells, patience: &Patience, now_ns: i64, repairs: &mut Vec<Repair>) {
    let mut look = Look { state, live, patience, now_ns, repairs };
    for lrp in state.desired_lrps() {
        look.missing(lrp);
    }
    for (process_guid, index, slot) in state.slots() {
        let desired = state.desired_lrp(process_guid).filter(|lrp| index < lrp.instances);
        look.leaving(slot);
        match desired {
            Some(desired) => look.desired(desired, slot),
            None => look.extra(slot, state.desired_lrp(process_guid).is_some()),
        }
    }
}

impl Look<'_> {
    fn missing(&mut self, lrp: &DesiredLrp) {
        let present = self
            .state
            .slots_of(&lrp.process_guid)
            .filter(|(index, slot)| *index < lrp.instances && slot.ordinary.is_some());
        let mut present = present.map(|(index, _)| index).peekable();
        for index in 0..lrp.instances {
            if present.next_if_eq(&index).is_none() {
                let key = ActualLrpKey::new(&lrp.process_guid, index, &lrp.domain);
                self.repairs.push(Repair::CreateInstance { key });
            }
        }
    }

    fn leaving(&mut self, slot: &Slot) {
        let Some(evacuating) = &slot.evacuating else { return };
        if let Some(instance) = evacuating.instance().filter(|i| self.live.is_missing(&i.cell_id)) {
            let (key, instance) = (evacuating.key.clone(), instance.clone());
            self.repairs.push(Repair::RemoveEvacuating { key, instance });
        }
    }

    /// An index that should be there.
    fn desired(&mut self, desired: &DesiredLrp, slot: &Slot) {
        if let Some(suspect) = &slot.suspect {
            self.suspect(suspect, slot);
            if self.is_back(suspect) {
                return;
            }
        }
        let Some(lrp) = &slot.ordinary else { return };
        let key = lrp.key.clone();
        match &lrp.state {
            ActualLrpState::Unclaimed { .. } => {
                if is_far(lrp.since_ns, self.patience.unclaimed, self.now_ns) {
                    self.repairs.push(Repair::AuctionAgain { key });
                }
            }
            ActualLrpState::Crashed => {
                if restart::is_due(lrp.crash_count, lrp.since_ns, self.now_ns) {
                    self.repairs.push(Repair::RestartCrashed { key });
                }
            }
            ActualLrpState::Claimed { instance } | ActualLrpState::Running { instance, .. }
                if self.live.is_missing(&instance.cell_id) =>
            {
                self.repairs.push(Repair::CellLost { key, instance: instance.clone() });
            }
            ActualLrpState::Running { .. } => self.outdated(desired, lrp),
            ActualLrpState::Claimed { .. } => {}
        }
    }

    fn is_back(&self, suspect: &ActualLrp) -> bool {
        suspect.cell_id().is_some_and(|cell_id| self.live.is_live(cell_id))
    }

    fn suspect(&mut self, suspect: &ActualLrp, slot: &Slot) {
        let replaced = suspect.is_running() && slot.ordinary.as_ref().is_some_and(|lrp| lrp.is_running());
        let key = suspect.key.clone();
        if replaced {
            self.repairs.push(Repair::RemoveSuspect { key });
        } else if self.is_back(suspect) {
            self.repairs.push(Repair::PromoteSuspect { key });
        }
    }

    /// An index that should not be there. Only who says that the domain is fresh knows that for sure.
    fn extra(&mut self, slot: &Slot, lrp_desired: bool) {
        let Some(any) = slot.ordinary.as_ref().or(slot.suspect.as_ref()) else { return };
        let key = any.key.clone();
        if !self.state.is_fresh(&key.domain, self.now_ns) {
            // Which of two works is no question of the domain.
            slot.suspect.iter().for_each(|suspect| self.suspect(suspect, slot));
            return;
        }
        if slot.suspect.is_some() && (!lrp_desired || slot.ordinary.is_none()) {
            self.repairs.push(Repair::RemoveSuspect { key: key.clone() });
        }
        if slot.ordinary.is_some() {
            self.repairs.push(Repair::Retire { key });
        }
    }

    fn outdated(&mut self, desired: &DesiredLrp, lrp: &ActualLrp) {
        let Some(instance) = lrp.instance() else { return };
        let routes = internal_routes::of(&desired.routes);
        let internal_routes = (!internal_routes::are_same(&routes, &lrp.internal_routes)).then_some(routes);
        let tags = resolve_metric_tags(&desired.metric_tags, lrp.key.index, &instance.instance_guid);
        let metric_tags = (tags != lrp.metric_tags).then_some(tags);
        if internal_routes.is_some() || metric_tags.is_some() {
            let (key, instance) = (lrp.key.clone(), instance.clone());
            self.repairs.push(Repair::UpdateInstance { key, instance, internal_routes, metric_tags });
        }
    }
}
