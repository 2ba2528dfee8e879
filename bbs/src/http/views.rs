//! Values as today's and yesterday's clients read them. Pure.

use bbs_models::{
    ActualLrp, ActualLrpGroup, DesiredLrp, Event, MetricTagValue, SOURCE_ID_TAG, Task,
    exclusive_layers_as_downloads, shared_layers_as_dependencies, wire,
};

/// Which revision of a route was called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Revision {
    /// Clients that know no image layers: they are shown as cached dependencies and downloads.
    Old,
    Current,
}

pub fn actual_lrp(lrp: &ActualLrp) -> wire::ActualLrp {
    lrp.clone().into()
}

pub fn group(group: ActualLrpGroup) -> wire::ActualLrpGroup {
    group.into()
}

pub fn desired_lrp(lrp: &DesiredLrp, revision: Revision) -> wire::DesiredLrp {
    with_metrics_guid(older_lrp(lrp.clone(), revision)).into()
}

pub fn task(task: &Task, revision: Revision) -> wire::Task {
    older_task(task.clone(), revision).into()
}

fn older_lrp(mut lrp: DesiredLrp, revision: Revision) -> DesiredLrp {
    if revision == Revision::Old && !lrp.image_layers.is_empty() {
        let layers = std::mem::take(&mut lrp.image_layers);
        let mut dependencies = shared_layers_as_dependencies(&layers);
        dependencies.append(&mut lrp.cached_dependencies);
        lrp.cached_dependencies = dependencies;
        lrp.setup = exclusive_layers_as_downloads(&layers, &lrp.legacy_download_user, lrp.setup);
    }
    lrp
}

fn older_task(mut task: Task, revision: Revision) -> Task {
    let definition = &mut task.definition;
    if revision == Revision::Old && !definition.image_layers.is_empty() {
        let layers = std::mem::take(&mut definition.image_layers);
        let mut dependencies = shared_layers_as_dependencies(&layers);
        dependencies.append(&mut definition.cached_dependencies);
        definition.cached_dependencies = dependencies;
        let action = Some(definition.action.clone());
        if let Some(action) = exclusive_layers_as_downloads(&layers, &definition.legacy_download_user, action)
        {
            definition.action = action;
        }
    }
    task
}

/// The metrics guid and the `source_id` tag say the same thing: who has one of them gets both.
fn with_metrics_guid(mut lrp: DesiredLrp) -> DesiredLrp {
    match lrp.metric_tags.get(SOURCE_ID_TAG) {
        Some(MetricTagValue::Static(source_id)) if lrp.metrics_guid.is_empty() => {
            lrp.metrics_guid.clone_from(source_id);
        }
        None if !lrp.metrics_guid.is_empty() => {
            let source_id = MetricTagValue::Static(lrp.metrics_guid.clone());
            lrp.metric_tags.insert(SOURCE_ID_TAG.into(), source_id);
        }
        _ => {}
    }
    lrp
}

/// The payload of an event.
pub fn event(event: &Event, revision: Revision) -> Vec<u8> {
    match revision {
        Revision::Current => wire::encode_event(event),
        Revision::Old => wire::encode_event(&older_event(event.clone())),
    }
}

fn older_event(event: Event) -> Event {
    let lrp = |lrp: Box<DesiredLrp>| Box::new(older_lrp(*lrp, Revision::Old));
    let task = |task: Box<Task>| Box::new(older_task(*task, Revision::Old));
    match event {
        Event::DesiredLrpCreated { lrp: new, trace_id } => {
            Event::DesiredLrpCreated { lrp: lrp(new), trace_id }
        }
        Event::DesiredLrpChanged { before, after, trace_id } => {
            Event::DesiredLrpChanged { before: lrp(before), after: lrp(after), trace_id }
        }
        Event::DesiredLrpRemoved { lrp: old, trace_id } => {
            Event::DesiredLrpRemoved { lrp: lrp(old), trace_id }
        }
        Event::TaskCreated(new) => Event::TaskCreated(task(new)),
        Event::TaskChanged { before, after } => {
            Event::TaskChanged { before: task(before), after: task(after) }
        }
        Event::TaskRemoved(old) => Event::TaskRemoved(task(old)),
        other => other,
    }
}
