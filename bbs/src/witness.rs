//! What a BBS does and holds, for whoever measures it. Measuring decides nothing.

use std::collections::HashSet;
use std::time::Duration;

use bbs_models::{ActualLrpState, TaskState};

use crate::convergence::Repair;
use crate::state::State;

/// Told of what happens; nothing waits for long.
pub trait Witness: Send + Sync {
    /// A request, the beginning of an event stream too.
    fn answered(&self, _took: Duration) {}
    /// One statement, or all of a commit.
    fn asked_database(&self, _took: Duration, _answered: bool) {}
    fn task_started(&self, _cell_id: &str) {}
    /// As its cell tells it.
    fn task_ended(&self, _cell_id: &str, _failed: bool) {}
    /// One look at everything and what it led to.
    fn converged(&self, _took: Duration, _counts: &Counts) {}
}

/// Measures nothing.
pub struct Nobody;

impl Witness for Nobody {}

/// How many there are, when all is looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    pub lrps_desired: usize,
    pub lrps_unclaimed: usize,
    pub lrps_claimed: usize,
    pub lrps_running: usize,
    pub lrps_crashed: usize,
    pub lrps_missing: usize,
    pub lrps_extra: usize,
    pub suspect_claimed: usize,
    pub suspect_running: usize,
    /// DesiredLRPs of which an instance has crashed and waits.
    pub crashing_desired: usize,
    pub tasks_pending: usize,
    pub tasks_running: usize,
    pub tasks_completed: usize,
    pub tasks_resolving: usize,
    pub tasks_pruned: usize,
    pub tasks_kicked: usize,
    pub fresh_domains: Vec<String>,
    pub present_cells: usize,
    /// That are away, and of which suspect instances are waited for.
    pub suspect_cells: usize,
}

impl Counts {
    pub fn of(state: &State, repairs: &[Repair], present_cells: usize, now_ns: i64) -> Counts {
        let fresh = state.domains().filter(|(_, expires_at_ns)| *expires_at_ns > now_ns);
        let mut counts = Counts {
            lrps_desired: state.desired_lrps().map(|lrp| lrp.instances as usize).sum(),
            fresh_domains: fresh.map(|(name, _)| name.to_string()).collect(),
            present_cells,
            ..Counts::default()
        };
        counts.count_lrps(state);
        counts.count_tasks(state);
        repairs.iter().for_each(|repair| counts.count_repair(repair));
        counts
    }

    fn count_lrps(&mut self, state: &State) {
        let (mut crashing, mut suspect_cells) = (HashSet::new(), HashSet::new());
        for (process_guid, _, slot) in state.slots() {
            match slot.ordinary.as_ref().map(|lrp| &lrp.state) {
                Some(ActualLrpState::Unclaimed { .. }) => self.lrps_unclaimed += 1,
                Some(ActualLrpState::Claimed { .. }) => self.lrps_claimed += 1,
                Some(ActualLrpState::Running { .. }) => self.lrps_running += 1,
                Some(ActualLrpState::Crashed) => {
                    self.lrps_crashed += 1;
                    crashing.insert(process_guid);
                }
                None => {}
            }
            let Some(suspect) = &slot.suspect else { continue };
            match suspect.is_running() {
                true => self.suspect_running += 1,
                false => self.suspect_claimed += 1,
            }
            suspect_cells.extend(suspect.instance().map(|instance| instance.cell_id.as_str()));
        }
        self.crashing_desired = crashing.len();
        self.suspect_cells = suspect_cells.len();
    }

    fn count_tasks(&mut self, state: &State) {
        for task in state.tasks() {
            match task.state {
                TaskState::Pending => self.tasks_pending += 1,
                TaskState::Running { .. } => self.tasks_running += 1,
                TaskState::Completed(_) => self.tasks_completed += 1,
                TaskState::Resolving(_) => self.tasks_resolving += 1,
            }
        }
    }

    fn count_repair(&mut self, repair: &Repair) {
        match repair {
            Repair::CreateInstance { .. } => self.lrps_missing += 1,
            Repair::Retire { .. } => self.lrps_extra += 1,
            Repair::DeleteTask { .. } => self.tasks_pruned += 1,
            Repair::AuctionTask { .. } | Repair::CallBack { .. } => self.tasks_kicked += 1,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::picture;
    use crate::state::Change;
    use std::sync::Arc;

    #[test]
    fn everything_is_counted_as_what_it_is() {
        let mut state = picture::board(Some(2), &["U S:R@a", "X", "R@b"]);
        let after = Some(Arc::new(picture::task(TaskState::Running { cell_id: "a".into() })));
        state.apply(&Change::Task { before: None, after });
        let key = bbs_models::ActualLrpKey::new("p", 2, "d");
        let counts = Counts::of(&state, &[Repair::Retire { key }], 1, 0);
        let lrps = [counts.lrps_unclaimed, counts.lrps_crashed, counts.lrps_running, counts.lrps_claimed];
        assert_eq!(lrps, [1, 1, 1, 0]);
        assert_eq!((counts.lrps_desired, counts.lrps_extra, counts.crashing_desired), (2, 1, 1));
        assert_eq!((counts.suspect_running, counts.suspect_claimed, counts.suspect_cells), (1, 0, 1));
        assert_eq!((counts.tasks_running, counts.tasks_pending, counts.present_cells), (1, 0, 1));
    }
}
