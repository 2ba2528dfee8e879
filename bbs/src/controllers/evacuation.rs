//! What leaving cells say about their instances, and whether they are told to keep the container.

use std::sync::Arc;

use bbs_models::{ActualLrpInstanceKey, ActualLrpKey, DesiredLrp, Error};

use super::Controllers;
use crate::board::{Draft, new_guid};
use crate::state::State;
use crate::transitions::actual_lrp::Report;
use crate::transitions::evacuation::{self, Evacuated, Replacing};

impl Controllers {
    pub async fn remove_evacuating(
        &self,
        trace_id: &str,
        key: ActualLrpKey,
        instance: ActualLrpInstanceKey,
    ) -> Result<(), Error> {
        self.board
            .write(trace_id, move |draft| {
                let slot = draft.state().slot(&key.process_guid, key.index);
                let change = evacuation::remove_evacuating(slot, &key.process_guid, key.index, &instance)?;
                draft.record_slot(change);
                Ok(())
            })
            .await
    }

    pub async fn evacuate_claimed(
        &self,
        trace_id: &str,
        key: ActualLrpKey,
        instance: ActualLrpInstanceKey,
    ) -> Result<bool, Error> {
        self.evacuate(trace_id, key.clone(), move |draft| {
            let slot = draft.state().slot(&key.process_guid, key.index);
            evacuation::evacuate_claimed(slot, &key.process_guid, key.index, &instance, draft.now_ns)
        })
        .await
    }

    pub async fn evacuate_crashed(
        &self,
        trace_id: &str,
        key: ActualLrpKey,
        instance: ActualLrpInstanceKey,
        reason: String,
    ) -> Result<bool, Error> {
        self.evacuate(trace_id, key.clone(), move |draft| {
            let (guid, index) = (&key.process_guid, key.index);
            let slot = draft.state().slot(guid, index);
            evacuation::evacuate_crashed(slot, guid, index, &instance, reason, draft.now_ns)
        })
        .await
    }

    pub async fn evacuate_stopped(
        &self,
        trace_id: &str,
        key: ActualLrpKey,
        instance: ActualLrpInstanceKey,
    ) -> Result<bool, Error> {
        self.evacuate(trace_id, key.clone(), move |draft| {
            let slot = draft.state().slot(&key.process_guid, key.index);
            evacuation::evacuate_stopped(slot, &key.process_guid, key.index, &instance)
        })
        .await
    }

    pub async fn evacuate_running(&self, trace_id: &str, report: Report) -> Result<bool, Error> {
        self.evacuate(trace_id, report.key.clone(), move |draft| {
            let slot = draft.state().slot(&report.key.process_guid, report.key.index);
            let desired = draft.state().desired_lrp(&report.key.process_guid).cloned();
            let replacing = desired.map(|desired| replacing(draft.state(), &desired));
            Ok(evacuation::evacuate_running(slot, report, replacing, new_guid(), draft.now_ns))
        })
        .await
    }

    /// Whether the cell keeps the container.
    async fn evacuate(
        &self,
        trace_id: &str,
        key: ActualLrpKey,
        decide: impl FnOnce(&mut Draft<'_>) -> Result<Evacuated, Error> + Send + 'static,
    ) -> Result<bool, Error> {
        let (keep_container, auction) = self
            .board
            .write(trace_id, move |draft| {
                let evacuated = decide(draft)?;
                draft.record_slot(evacuated.change);
                Ok((evacuated.keep_container, evacuated.auction))
            })
            .await?;
        if auction && let Err(error) = self.request_auction(trace_id, &key.process_guid, key.index) {
            tracing::info!(%error, lrp = %key, "no replacement is placed: the LRP is no longer desired");
        }
        Ok(keep_container)
    }
}

fn replacing(state: &State, desired: &Arc<DesiredLrp>) -> Replacing {
    let running = state
        .slots_of(&desired.process_guid)
        .filter(|(_, slot)| slot.ordinary.as_ref().is_some_and(|lrp| lrp.is_running()))
        .count();
    Replacing {
        strategy: desired.update_strategy,
        all_running: running >= usize::try_from(desired.instances).unwrap_or(usize::MAX),
    }
}
