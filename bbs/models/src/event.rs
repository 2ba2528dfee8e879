//! What happened, in the order it became true. The BBS streams these; each has a type name and a key.

use crate::{
    ActualLrp, ActualLrpGroup, ActualLrpInstanceKey, ActualLrpKey, ActualLrpState, DesiredLrp, Task,
};

#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    DesiredLrpCreated {
        lrp: Box<DesiredLrp>,
        trace_id: String,
    },
    DesiredLrpChanged {
        before: Box<DesiredLrp>,
        after: Box<DesiredLrp>,
        trace_id: String,
    },
    DesiredLrpRemoved {
        lrp: Box<DesiredLrp>,
        trace_id: String,
    },
    ActualLrpInstanceCreated {
        lrp: Box<ActualLrp>,
        trace_id: String,
    },
    /// From the wire, `before` and `after` have no internal routes and no metric tags: it does not carry them.
    ActualLrpInstanceChanged {
        before: Box<ActualLrp>,
        after: Box<ActualLrp>,
        trace_id: String,
    },
    ActualLrpInstanceRemoved {
        lrp: Box<ActualLrp>,
        trace_id: String,
    },
    ActualLrpCrashed(ActualLrpCrash),
    /// The three group events are deprecated twins of the instance events.
    ActualLrpGroupCreated(Box<ActualLrpGroup>),
    ActualLrpGroupChanged {
        before: Box<ActualLrpGroup>,
        after: Box<ActualLrpGroup>,
    },
    ActualLrpGroupRemoved(Box<ActualLrpGroup>),
    TaskCreated(Box<Task>),
    TaskChanged {
        before: Box<Task>,
        after: Box<Task>,
    },
    TaskRemoved(Box<Task>),
}

#[derive(Debug, Clone, PartialEq)]
pub struct ActualLrpCrash {
    pub key: ActualLrpKey,
    /// The attempt that crashed.
    pub instance: ActualLrpInstanceKey,
    pub crash_count: u32,
    pub crash_reason: String,
    pub since_ns: i64,
}

impl Event {
    /// The name on the stream.
    pub fn event_type(&self) -> &'static str {
        match self {
            Self::DesiredLrpCreated { .. } => "desired_lrp_created",
            Self::DesiredLrpChanged { .. } => "desired_lrp_changed",
            Self::DesiredLrpRemoved { .. } => "desired_lrp_removed",
            Self::ActualLrpInstanceCreated { .. } => "actual_lrp_instance_created",
            Self::ActualLrpInstanceChanged { .. } => "actual_lrp_instance_changed",
            Self::ActualLrpInstanceRemoved { .. } => "actual_lrp_instance_removed",
            Self::ActualLrpCrashed(_) => "actual_lrp_crashed",
            Self::ActualLrpGroupCreated(_) => "actual_lrp_created",
            Self::ActualLrpGroupChanged { .. } => "actual_lrp_changed",
            Self::ActualLrpGroupRemoved(_) => "actual_lrp_removed",
            Self::TaskCreated(_) => "task_created",
            Self::TaskChanged { .. } => "task_changed",
            Self::TaskRemoved(_) => "task_removed",
        }
    }

    /// Process guid, instance guid or task guid of what it is about; empty if it has none.
    pub fn key(&self) -> &str {
        match self {
            Self::DesiredLrpCreated { lrp, .. } | Self::DesiredLrpRemoved { lrp, .. } => &lrp.process_guid,
            Self::DesiredLrpChanged { before, .. } => &before.process_guid,
            Self::ActualLrpInstanceCreated { lrp, .. } | Self::ActualLrpInstanceRemoved { lrp, .. } => {
                lrp.instance_guid().unwrap_or_default()
            }
            Self::ActualLrpInstanceChanged { before, after, .. } => {
                after.instance_guid().or(before.instance_guid()).unwrap_or_default()
            }
            Self::ActualLrpCrashed(crash) => &crash.instance.instance_guid,
            Self::ActualLrpGroupCreated(group) | Self::ActualLrpGroupRemoved(group) => group.instance_guid(),
            Self::ActualLrpGroupChanged { before, .. } => before.instance_guid(),
            Self::TaskCreated(task) | Self::TaskRemoved(task) => &task.task_guid,
            Self::TaskChanged { before, .. } => &before.task_guid,
        }
    }

    /// Whether a cell's own stream carries it. DesiredLRP events and Tasks that no cell runs are for all cells.
    pub fn concerns_cell(&self, cell_id: &str) -> bool {
        match self {
            Self::DesiredLrpCreated { .. }
            | Self::DesiredLrpChanged { .. }
            | Self::DesiredLrpRemoved { .. } => true,
            Self::ActualLrpInstanceCreated { lrp, .. } | Self::ActualLrpInstanceRemoved { lrp, .. } => {
                lrp.cell_id() == Some(cell_id)
            }
            // Whose claim another cell has outrun has nothing to do with what runs there.
            Self::ActualLrpInstanceChanged { before, after, .. } => {
                after.cell_id().or(before.cell_id()) == Some(cell_id)
            }
            Self::ActualLrpCrashed(crash) => crash.instance.cell_id == cell_id,
            Self::ActualLrpGroupCreated(group) | Self::ActualLrpGroupRemoved(group) => group.is_on(cell_id),
            Self::ActualLrpGroupChanged { before, after } => before.is_on(cell_id) || after.is_on(cell_id),
            Self::TaskCreated(task) | Self::TaskRemoved(task) => task.cell_id() == Some(cell_id),
            Self::TaskChanged { before, after } => {
                before.cell_id() == Some(cell_id) || after.cell_id() == Some(cell_id)
            }
        }
    }
}

impl ActualLrpGroup {
    /// The member that speaks for the group, and whether it is the evacuating one.
    pub fn resolve(&self) -> Option<(&ActualLrp, bool)> {
        match (&self.instance, &self.evacuating) {
            (None, None) => None,
            (None, Some(evacuating)) => Some((evacuating, true)),
            (Some(instance), None) => Some((instance, false)),
            (Some(instance), Some(evacuating)) => match instance.state {
                ActualLrpState::Running { .. } | ActualLrpState::Crashed => Some((instance, false)),
                _ => Some((evacuating, true)),
            },
        }
    }

    fn instance_guid(&self) -> &str {
        self.resolve().and_then(|(lrp, _)| lrp.instance_guid()).unwrap_or_default()
    }

    fn is_on(&self, cell_id: &str) -> bool {
        self.resolve().is_some_and(|(lrp, _)| lrp.cell_id() == Some(cell_id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on(cell_id: &str, running: bool) -> Box<ActualLrp> {
        let (key, instance) = (ActualLrpKey::new("p", 0, "d"), ActualLrpInstanceKey::new("i", cell_id));
        Box::new(match (cell_id, running) {
            ("", _) => ActualLrp::unclaimed(key, 1),
            (_, true) => ActualLrp::running(key, instance, Default::default(), 1),
            (_, false) => ActualLrp::claimed(key, instance, 1),
        })
    }

    #[test]
    fn a_cell_hears_of_changes_of_what_it_has_and_of_what_it_has_lost_to_nobody() {
        for (before, after, a, b) in [
            (on("", false), on("a", false), true, false),
            (on("a", false), on("a", true), true, false),
            (on("b", false), on("a", true), true, false),
            (on("a", true), on("", false), true, false),
        ] {
            let event = Event::ActualLrpInstanceChanged { before, after, trace_id: String::new() };
            assert_eq!((event.concerns_cell("a"), event.concerns_cell("b")), (a, b), "{event:?}");
        }
    }
}
