//! Desiring, updating and removing LRPs. Instances that nobody runs come and go in the same transaction; those that a
//! cell runs are stopped or updated there afterwards.

use std::sync::Arc;

use bbs_models::{
    ActualLrp, ActualLrpKey, ActualLrpState, DesiredLrp, DesiredLrpUpdate, Error, MetricTags,
    resolve_metric_tags,
};

use super::Controllers;
use crate::board::{Draft, new_guid};
use crate::internal_routes;
use crate::state::Slot;
use crate::transitions::{actual_lrp, desired_lrp};

/// Instances of one LRP.
pub const INSTANCES_MAX: u32 = 100_000;

/// What is left to do once an update is committed.
struct Updated {
    lrp: Arc<DesiredLrp>,
    created: Vec<u32>,
    /// Too many: to be stopped at their cells.
    extra: Vec<Arc<ActualLrp>>,
    /// To be told of new internal routes or metric tags.
    kept: Vec<Arc<ActualLrp>>,
    internal_routes: Option<Vec<String>>,
    metric_tags: Option<MetricTags>,
}

impl Controllers {
    pub async fn desire_lrp(&self, trace_id: &str, lrp: DesiredLrp) -> Result<(), Error> {
        within_limit(lrp.instances)?;
        let (lrp, created) = self
            .board
            .write(trace_id, move |draft| {
                let old = draft.state().desired_lrp(&lrp.process_guid).cloned();
                let (guid, instances) = (lrp.process_guid.clone(), lrp.instances);
                draft.record(desired_lrp::desire(old, lrp, new_guid())?);
                let lrp = draft.state().desired_lrp(&guid).cloned().ok_or_else(Error::not_found)?;
                let created = create_instances(draft, &lrp, 0, instances);
                Ok((lrp, created))
            })
            .await?;
        self.auctions.request_lrps(trace_id, &lrp, &created);
        Ok(())
    }

    pub async fn update_lrp(
        &self,
        trace_id: &str,
        process_guid: String,
        update: DesiredLrpUpdate,
    ) -> Result<(), Error> {
        within_limit(update.instances.unwrap_or(0))?;
        let updated =
            self.board.write(trace_id, move |draft| update_in(draft, &process_guid, update)).await?;
        self.auctions.request_lrps(trace_id, &updated.lrp, &updated.created);
        self.stop_all(trace_id, &updated.extra);
        for lrp in updated.kept {
            let Some(instance) = lrp.instance() else { continue };
            let tags = updated.metric_tags.as_ref();
            let tags = tags.map(|tags| resolve_metric_tags(tags, lrp.key.index, &instance.instance_guid));
            self.cells.update_soon(trace_id, &lrp.key, instance, updated.internal_routes.clone(), tags);
        }
        Ok(())
    }

    pub async fn remove_lrp(&self, trace_id: &str, process_guid: String) -> Result<(), Error> {
        let extra = self
            .board
            .write(trace_id, move |draft| {
                let old = draft.state().desired_lrp(&process_guid).cloned();
                draft.record(desired_lrp::remove(old)?);
                remove_instances(draft, &process_guid, 0)
            })
            .await?;
        self.stop_all(trace_id, &extra);
        Ok(())
    }

    fn stop_all(&self, trace_id: &str, lrps: &[Arc<ActualLrp>]) {
        for lrp in lrps {
            if let Some(instance) = lrp.instance() {
                self.cells.stop_soon(trace_id, &lrp.key, instance);
            }
        }
    }
}

fn within_limit(instances: u32) -> Result<(), Error> {
    if instances > INSTANCES_MAX {
        return Err(Error::invalid_request(format!("Invalid field: instances (at most {INSTANCES_MAX})")));
    }
    Ok(())
}

/// The indices from `lower` to before `upper` that nobody has yet.
fn create_instances(draft: &mut Draft<'_>, lrp: &DesiredLrp, lower: u32, upper: u32) -> Vec<u32> {
    let mut created = Vec::new();
    for index in lower..upper {
        let slot = draft.state().slot(&lrp.process_guid, index);
        let key = ActualLrpKey::new(&lrp.process_guid, index, &lrp.domain);
        // An instance that is still there from before needs no place.
        if let Ok(change) = actual_lrp::create(slot, key, new_guid(), draft.now_ns) {
            draft.record_slot(change);
            created.push(index);
        }
    }
    created
}

fn staying(slot: &Slot) -> impl Iterator<Item = Arc<ActualLrp>> + use<> {
    [&slot.ordinary, &slot.suspect].into_iter().flatten().cloned().collect::<Vec<_>>().into_iter()
}

/// Removes the waiting and crashed instances from `lower` on, and returns those that a cell has: suspects too, whose
/// cell may be back. Evacuating ones leave anyway.
fn remove_instances(
    draft: &mut Draft<'_>,
    process_guid: &str,
    lower: u32,
) -> Result<Vec<Arc<ActualLrp>>, Error> {
    let slots = draft.state().slots_of(process_guid).filter(|(index, _)| *index >= lower);
    let lrps: Vec<Arc<ActualLrp>> = slots.flat_map(|(_, slot)| staying(slot)).collect();
    let mut running = Vec::new();
    for lrp in lrps {
        match &lrp.state {
            ActualLrpState::Unclaimed { .. } | ActualLrpState::Crashed => {
                let slot = draft.state().slot(process_guid, lrp.key.index);
                let change = actual_lrp::remove(slot, process_guid, lrp.key.index, None)?;
                draft.record_slot(change);
            }
            ActualLrpState::Claimed { .. } | ActualLrpState::Running { .. } => running.push(lrp),
        }
    }
    Ok(running)
}

fn update_in(draft: &mut Draft<'_>, process_guid: &str, update: DesiredLrpUpdate) -> Result<Updated, Error> {
    let old = draft.state().desired_lrp(process_guid).cloned();
    let before = old.clone().ok_or_else(Error::not_found)?;
    draft.record(desired_lrp::update(old, update)?);
    let lrp = draft.state().desired_lrp(process_guid).cloned().ok_or_else(Error::not_found)?;
    let created = create_instances(draft, &lrp, before.instances, lrp.instances);
    let extra = match lrp.instances < before.instances {
        true => remove_instances(draft, process_guid, lrp.instances)?,
        false => Vec::new(),
    };
    let internal_routes = internal_routes::changed(&before.routes, &lrp.routes);
    let metric_tags = (before.metric_tags != lrp.metric_tags).then(|| lrp.metric_tags.clone());
    let kept = match internal_routes.is_some() || metric_tags.is_some() {
        true => draft
            .state()
            .slots_of(process_guid)
            .filter(|(index, _)| *index < lrp.instances)
            .flat_map(|(_, slot)| staying(slot))
            .collect(),
        false => Vec::new(),
    };
    Ok(Updated { lrp, created, extra, kept, internal_routes, metric_tags })
}

#[cfg(test)]
mod tests {
    use super::staying;
    use crate::picture::{of_lrp, slot};

    #[test]
    fn suspects_are_told_to_stop_as_others_are_and_evacuating_ones_are_not() {
        for (text, expected) in [
            ("-", vec![]),
            ("R@a", vec!["R@a"]),
            ("U S:R@a", vec!["U", "S:R@a"]),
            ("C@b S:R@a E:R@c", vec!["C@b", "S:R@a"]),
            ("E:R@c", vec![]),
        ] {
            let found: Vec<String> = staying(&slot(text)).map(|lrp| of_lrp(&lrp)).collect();
            assert_eq!(found, expected, "of {text}");
        }
    }
}
