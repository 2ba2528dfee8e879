//! What cells, auctioneers and operators say about instances.

use bbs_models::{ActualLrpInstanceKey, ActualLrpKey, Error};

use super::Controllers;
use crate::board::{Draft, new_guid};
use crate::events;
use crate::state::Slot;
use crate::transitions::actual_lrp::{self, Report};

/// How often a stop is tried on a rep before a retirement is given up.
const RETIRE_ATTEMPTS_MAX: u32 = 5;

impl Controllers {
    pub async fn claim(
        &self,
        trace_id: &str,
        process_guid: String,
        index: u32,
        instance: ActualLrpInstanceKey,
    ) -> Result<(), Error> {
        self.board
            .write(trace_id, move |draft| {
                let slot = draft.state().slot(&process_guid, index);
                let change = actual_lrp::claim(slot, &process_guid, index, instance, draft.now_ns)?;
                draft.record_slot(change);
                Ok(())
            })
            .await
    }

    pub async fn start(&self, trace_id: &str, report: Report) -> Result<(), Error> {
        self.board
            .write(trace_id, move |draft| {
                let slot = draft.state().slot(&report.key.process_guid, report.key.index);
                let change = actual_lrp::start(slot, report, new_guid(), draft.now_ns)?;
                draft.record_slot(change);
                Ok(())
            })
            .await
    }

    pub async fn crash(
        &self,
        trace_id: &str,
        key: ActualLrpKey,
        instance: ActualLrpInstanceKey,
        reason: String,
    ) -> Result<(), Error> {
        let (process_guid, index) = (key.process_guid.clone(), key.index);
        let restarts = self
            .board
            .write(trace_id, move |draft| {
                let (guid, index) = (&key.process_guid, key.index);
                let slot = draft.state().slot(guid, index);
                let (change, restarts) =
                    actual_lrp::crash(slot, guid, index, &instance, reason, draft.now_ns)?;
                draft.record_slot(change);
                Ok(restarts)
            })
            .await?;
        if restarts { self.request_auction(trace_id, &process_guid, index) } else { Ok(()) }
    }

    /// A place for an instance that waits. Without a DesiredLRP there is none to be had.
    pub(super) fn request_auction(
        &self,
        trace_id: &str,
        process_guid: &str,
        index: u32,
    ) -> Result<(), Error> {
        let desired = self.board.read(|state| state.desired_lrp(process_guid).cloned());
        let desired = desired.ok_or_else(Error::not_found)?;
        self.auctions.request_lrps(trace_id, &desired, &[index]);
        Ok(())
    }

    pub async fn fail(&self, trace_id: &str, key: ActualLrpKey, reason: String) -> Result<(), Error> {
        self.board
            .write(trace_id, move |draft| {
                let slot = draft.state().slot(&key.process_guid, key.index);
                let change = actual_lrp::fail(slot, &key.process_guid, key.index, reason, draft.now_ns)?;
                draft.record_slot(change);
                Ok(())
            })
            .await
    }

    /// Only if `instance` still has it; without one, whoever has it. If the index is still desired, it is filled soon.
    pub async fn remove(
        &self,
        trace_id: &str,
        process_guid: String,
        index: u32,
        instance: Option<ActualLrpInstanceKey>,
    ) -> Result<(), Error> {
        let vacancy = self
            .board
            .write(trace_id, move |draft| {
                let slot = draft.state().slot(&process_guid, index);
                let change = actual_lrp::remove(slot, &process_guid, index, instance.as_ref())?;
                draft.record_slot(change);
                Ok(vacancy(draft, &process_guid, index))
            })
            .await?;
        self.fill_soon(vacancy);
        Ok(())
    }

    fn fill_soon(&self, vacancy: Option<ActualLrpKey>) {
        // With a full queue it is found by the next look at everything.
        vacancy.into_iter().for_each(|key| drop(self.vacancies.try_send(key)));
    }

    /// What was there: a cell may have it by now, which leaves it as it is.
    async fn remove_idle(&self, trace_id: &str, key: &ActualLrpKey) -> Result<Slot, Error> {
        let (process_guid, index) = (key.process_guid.clone(), key.index);
        let (slot, vacancy) = self
            .board
            .write(trace_id, move |draft| {
                let slot = draft.state().slot(&process_guid, index);
                let change = actual_lrp::retire(slot.clone(), &process_guid, index)?;
                let is_gone = draft.record_slot(change);
                Ok((slot, is_gone.then(|| vacancy(draft, &process_guid, index)).flatten()))
            })
            .await?;
        self.fill_soon(vacancy);
        Ok(slot)
    }

    /// Has it stopped at its cell, or removes it if no cell has it (any more).
    pub async fn retire(&self, trace_id: &str, key: &ActualLrpKey) -> Result<(), Error> {
        let mut slot = self.board.read(|state| state.slot(&key.process_guid, key.index));
        if slot.ordinary.as_ref().ok_or_else(Error::not_found)?.instance().is_none() {
            slot = self.remove_idle(trace_id, key).await?;
        }
        let Some((lrp, instance)) = slot.ordinary.as_ref().and_then(|lrp| Some((lrp, lrp.instance()?)))
        else {
            return Ok(());
        };
        let Some(cell) = self.cells.find(&instance.cell_id) else {
            let (guid, instance) = (key.process_guid.clone(), instance.clone());
            return self.remove(trace_id, guid, key.index, Some(instance)).await;
        };
        self.board.hub().publish(events::leaving(&slot, trace_id));
        for attempt in 1.. {
            match self.cells.stop(&cell, trace_id, &lrp.key, instance).await {
                Err(error) if attempt < RETIRE_ATTEMPTS_MAX => {
                    tracing::warn!(%error, attempt, lrp = %lrp.key, "cannot retire yet");
                }
                told => return told,
            }
        }
        Ok(())
    }
}

/// An index that is still desired and has just lost its instance.
fn vacancy(draft: &Draft<'_>, process_guid: &str, index: u32) -> Option<ActualLrpKey> {
    let desired = draft.state().desired_lrp(process_guid).filter(|lrp| index < lrp.instances)?;
    Some(ActualLrpKey::new(process_guid, index, &desired.domain))
}
