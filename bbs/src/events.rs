//! What subscribers are told of a [`Change`]. Pure.
//!
//! There are three streams: DesiredLRPs with instances, DesiredLRPs with groups (deprecated), and Tasks. Of what one
//! change causes, the crash is told first, then what runs, then what no longer does: a router that follows the
//! stream always has somewhere to send a request.

use std::sync::Arc;

use bbs_models::{
    ActualLrp, ActualLrpCrash, ActualLrpGroup, ActualLrpInstanceKey, ActualLrpState, DesiredLrp, Event,
    Presence, Task,
};

use crate::state::{Change, Move, Slot, SlotChange};

/// The events of one change, by stream.
#[derive(Debug, Default)]
pub struct Events {
    /// For both LRP streams.
    pub desired_lrps: Vec<Event>,
    pub instances: Vec<Event>,
    pub groups: Vec<Event>,
    pub tasks: Vec<Event>,
}

pub fn of(change: &Change, trace_id: &str) -> Events {
    match change {
        Change::ActualLrp(change) => {
            let groups = groups(&change.before, &change.after, change.crashed);
            Events { instances: instances(change, trace_id), groups, ..Events::default() }
        }
        Change::DesiredLrp { before, after } => {
            Events { desired_lrps: desired(before, after, trace_id), ..Events::default() }
        }
        Change::Task { before, after } => Events { tasks: tasks(before, after), ..Events::default() },
        Change::Domain { .. } => Events::default(),
    }
}

fn desired(before: &Option<Arc<DesiredLrp>>, after: &Option<Arc<DesiredLrp>>, trace_id: &str) -> Vec<Event> {
    let boxed = |lrp: &Arc<DesiredLrp>| Box::new(DesiredLrp::clone(lrp));
    let trace_id = trace_id.to_string();
    match (before, after) {
        (None, Some(lrp)) => vec![Event::DesiredLrpCreated { lrp: boxed(lrp), trace_id }],
        (Some(before), Some(after)) => {
            vec![Event::DesiredLrpChanged { before: boxed(before), after: boxed(after), trace_id }]
        }
        (Some(lrp), None) => vec![Event::DesiredLrpRemoved { lrp: boxed(lrp), trace_id }],
        (None, None) => vec![],
    }
}

fn tasks(before: &Option<Arc<Task>>, after: &Option<Arc<Task>>) -> Vec<Event> {
    let boxed = |task: &Arc<Task>| Box::new(Task::clone(task));
    match (before, after) {
        (None, Some(task)) => vec![Event::TaskCreated(boxed(task))],
        (Some(before), Some(after)) => {
            vec![Event::TaskChanged { before: boxed(before), after: boxed(after) }]
        }
        (Some(task), None) => vec![Event::TaskRemoved(boxed(task))],
        (None, None) => vec![],
    }
}

fn boxed(lrp: &ActualLrp) -> Box<ActualLrp> {
    Box::new(lrp.clone())
}

fn created(lrp: &ActualLrp, trace_id: &str) -> Event {
    Event::ActualLrpInstanceCreated { lrp: boxed(lrp), trace_id: trace_id.into() }
}

fn removed(lrp: &ActualLrp, trace_id: &str) -> Event {
    Event::ActualLrpInstanceRemoved { lrp: boxed(lrp), trace_id: trace_id.into() }
}

fn changed(before: &ActualLrp, after: &ActualLrp, trace_id: &str) -> Event {
    let trace_id = trace_id.into();
    Event::ActualLrpInstanceChanged { before: boxed(before), after: boxed(after), trace_id }
}

fn crash(before: &ActualLrp, after: &ActualLrp) -> Event {
    let nobody = || ActualLrpInstanceKey::new("", "");
    Event::ActualLrpCrashed(ActualLrpCrash {
        key: after.key.clone(),
        instance: before.instance().cloned().unwrap_or_else(nobody),
        crash_count: after.crash_count,
        crash_reason: after.crash_reason.clone(),
        since_ns: after.since_ns,
    })
}

fn instances(change: &SlotChange, trace_id: &str) -> Vec<Event> {
    let mut events = Vec::new();
    for one in &change.moves {
        match one {
            Move::Created(lrp) => events.push(created(lrp, trace_id)),
            Move::Removed(lrp) => events.push(removed(lrp, trace_id)),
            Move::Changed { before, after } => {
                if change.crashed {
                    events.push(crash(before, after));
                }
                // Whatever was there before an instance waits again is gone, and what waits is something new.
                let waits = |lrp: &ActualLrp| matches!(lrp.state, ActualLrpState::Unclaimed { .. });
                if waits(after) && !waits(before) {
                    events.push(created(after, trace_id));
                    events.push(removed(before, trace_id));
                } else {
                    events.push(changed(before, after, trace_id));
                }
            }
        }
    }
    events.sort_by_key(rank);
    events
}

fn rank(event: &Event) -> u8 {
    let runs = match event {
        Event::ActualLrpCrashed(_) => return 0,
        Event::ActualLrpInstanceCreated { lrp, .. } => lrp.is_running(),
        Event::ActualLrpInstanceChanged { after, .. } => after.is_running(),
        Event::ActualLrpGroupCreated(group) => speaker_runs(group),
        Event::ActualLrpGroupChanged { after, .. } => speaker_runs(after),
        _ => false,
    };
    if runs { 1 } else { 2 }
}

fn speaker_runs(group: &ActualLrpGroup) -> bool {
    group.resolve().is_some_and(|(lrp, _)| lrp.is_running())
}

fn groups(before: &Slot, after: &Slot, crashed: bool) -> Vec<Event> {
    let (before, after) = (before.group(), after.group());
    let mut events = group_member(&before.instance, &after.instance, crashed);
    events.extend(group_member(&before.evacuating, &after.evacuating, false));
    events.sort_by_key(rank);
    events
}

/// Its ordinary instance is told to stop, and no request is to come to it any more: routers forget it while it still
/// answers. That it is gone is told again when it is.
pub fn leaving(slot: &Slot, trace_id: &str) -> Events {
    let groups = groups(slot, &Slot { ordinary: None, ..slot.clone() }, false);
    let instances = slot.ordinary.iter().map(|lrp| removed(lrp, trace_id)).collect();
    Events { instances, groups, ..Events::default() }
}

fn group_of(lrp: &ActualLrp) -> Box<ActualLrpGroup> {
    let lrp_box = Some(lrp.clone());
    Box::new(match lrp.presence {
        Presence::Evacuating => ActualLrpGroup { instance: None, evacuating: lrp_box },
        Presence::Ordinary | Presence::Suspect => ActualLrpGroup { instance: lrp_box, evacuating: None },
    })
}

/// Groups do not tell a suspect from an ordinary instance.
fn is_same(before: &ActualLrp, after: &ActualLrp) -> bool {
    before == after || *before == ActualLrp { presence: before.presence, ..after.clone() }
}

/// One of a group's two members. Unlike in the stream of instances, whoever waits again is still the same.
fn group_member(before: &Option<ActualLrp>, after: &Option<ActualLrp>, crashed: bool) -> Vec<Event> {
    let (before, after) = match (before, after) {
        (None, None) => return vec![],
        (Some(before), Some(after)) if is_same(before, after) => return vec![],
        (None, Some(after)) => return vec![Event::ActualLrpGroupCreated(group_of(after))],
        (Some(before), None) => return vec![Event::ActualLrpGroupRemoved(group_of(before))],
        (Some(before), Some(after)) => (before, after),
    };
    let other_attempt =
        before.instance().is_some() && after.instance().is_some() && before.instance() != after.instance();
    if other_attempt {
        return vec![
            Event::ActualLrpGroupCreated(group_of(after)),
            Event::ActualLrpGroupRemoved(group_of(before)),
        ];
    }
    let changed = Event::ActualLrpGroupChanged { before: group_of(before), after: group_of(after) };
    if crashed { vec![crash(before, after), changed] } else { vec![changed] }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::picture::{GUID, on, report, slot};
    use crate::transitions::{actual_lrp, suspect};

    fn names(events: &[Event]) -> Vec<&'static str> {
        events.iter().map(|event| event.event_type().trim_start_matches("actual_lrp_")).collect()
    }

    fn check(change: Option<SlotChange>, instances: &[&str], groups: &[&str]) {
        let events = of(&Change::ActualLrp(change.expect("a change")), "trace");
        assert_eq!((names(&events.instances), names(&events.groups)), (instances.into(), groups.into()));
    }

    #[test]
    fn what_runs_is_told_before_what_no_longer_does() {
        let start = |text| actual_lrp::start(slot(text), report("a"), "e".into(), 1).unwrap();
        check(start("-"), &["instance_created"], &["created"]);
        check(start("C@a"), &["instance_changed"], &["changed"]);
        check(start("C@a E:R@b"), &["instance_changed", "instance_removed"], &["changed", "removed"]);
        check(start("C@a S:R@b"), &["instance_changed", "instance_removed"], &["created", "removed"]);
    }

    #[test]
    fn a_crash_is_told_first_even_if_it_is_restarted_at_once() {
        let crash = |text| actual_lrp::crash(slot(text), GUID, 0, &on("a"), "why".into(), 1).unwrap().0;
        let restarted = ["crashed", "instance_created", "instance_removed"];
        check(crash("R@a"), &restarted, &["crashed", "changed"]);
        check(crash("U S:R@a"), &["instance_removed"], &["changed"]);
    }

    #[test]
    fn whoever_waits_anew_is_a_new_instance_but_the_same_group() {
        let unclaim = |text| actual_lrp::unclaim(slot(text), GUID, 0, 1).unwrap();
        for text in ["C@a", "R@a", "X"] {
            check(unclaim(text), &["instance_created", "instance_removed"], &["changed"]);
        }
        let fail = actual_lrp::fail(slot("U"), GUID, 0, "no room".into(), 1).unwrap();
        check(fail, &["instance_changed"], &["changed"]);
    }

    #[test]
    fn a_suspect_is_the_same_instance() {
        let lost = suspect::cell_lost(slot("R@a"), GUID, 0, &on("a"), "e".into(), 1).unwrap();
        check(lost, &["instance_changed", "instance_created"], &[]);
        let back = suspect::promote(slot("U S:R@a"), GUID, 0).unwrap();
        check(back, &["instance_changed", "instance_removed"], &[]);
        let relieved = suspect::remove(slot("C@b S:R@a"), GUID, 0).unwrap();
        check(relieved, &["instance_removed"], &["created", "removed"]);
    }

    #[test]
    fn who_is_told_to_stop_is_told_of_where_it_spoke_for_its_group() {
        for (text, groups) in [
            ("R@a", &["removed"][..]),
            ("R@a E:R@b", &["removed"]),
            ("C@a S:R@b", &[]),
            ("R@a S:R@b", &["created", "removed"]),
        ] {
            let told = leaving(&slot(text), "trace");
            assert_eq!(
                (names(&told.instances), names(&told.groups)),
                (vec!["instance_removed"], groups.into())
            );
        }
    }
}
