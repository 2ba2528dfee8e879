//! Whether everything is as people want it: in the BBS, and on the machines.

use std::collections::{BTreeMap, BTreeSet};

use bbs_models::{
    ActualLrp, ActualLrpFilter, ActualLrpState, DesiredLrp, DesiredLrpFilter, Presence, TaskFilter, TaskState,
};

use crate::chaos::World;

type Running = BTreeMap<(String, u32), BTreeSet<(String, String)>>;

impl World {
    /// Why not, if not; if so, how many instances have crashed and wait to be started again.
    pub async fn is_settled(&self) -> Result<usize, String> {
        let unanswered = |error: bbs_client::Error| error.to_string();
        let desired = self.bbs.desired_lrps(&DesiredLrpFilter::default()).await.map_err(unanswered)?;
        let actual = self.bbs.actual_lrps(&ActualLrpFilter::default()).await.map_err(unanswered)?;
        let tasks = self.bbs.tasks(&TaskFilter::default()).await.map_err(unanswered)?;
        self.as_wanted(&desired)?;
        if let Some(task) = tasks.iter().find(|task| !matches!(task.state, TaskState::Completed(_))) {
            return Err(format!("the Task {} is {}", task.task_guid, task.state.name()));
        }
        as_desired(&desired, &actual, &mut self.ledger.running())?;
        Ok(actual.iter().filter(|lrp| lrp.state == ActualLrpState::Crashed).count())
    }

    /// A write that was acknowledged and is not there will never come back.
    fn as_wanted(&self, desired: &[DesiredLrp]) -> Result<(), String> {
        for (guid, possible) in &self.wanted {
            let found = desired.iter().find(|lrp| lrp.process_guid == *guid).map(|lrp| lrp.instances);
            if !possible.contains(&found) {
                return Err(format!(
                    "of {guid} {found:?} instances are desired, which should be {possible:?}"
                ));
            }
        }
        Ok(())
    }
}

/// Each desired instance runs once, where the BBS says, and nothing else does.
fn as_desired(desired: &[DesiredLrp], actual: &[ActualLrp], running: &mut Running) -> Result<(), String> {
    let mut left: BTreeMap<(String, u32), Vec<&ActualLrp>> = BTreeMap::new();
    for lrp in actual {
        left.entry((lrp.key.process_guid.clone(), lrp.key.index)).or_default().push(lrp);
    }
    for lrp in desired {
        for index in 0..lrp.instances {
            let key = (lrp.process_guid.clone(), index);
            instance(&key, left.remove(&key).unwrap_or_default().as_slice(), running)?;
        }
    }
    match (left.keys().next(), running.first_key_value()) {
        (None, None) => Ok(()),
        (Some((guid, index)), _) => Err(format!("{guid}/{index} is there and not desired")),
        (_, Some(((guid, index), by))) => Err(format!("{guid}/{index} runs and should not: {by:?}")),
    }
}

fn instance(key: &(String, u32), lrps: &[&ActualLrp], running: &mut Running) -> Result<(), String> {
    let (guid, index) = key;
    let [lrp] = lrps else { return Err(format!("{guid}/{index} is there {} times", lrps.len())) };
    if lrp.presence != Presence::Ordinary {
        return Err(format!("{guid}/{index} is {:?}", lrp.presence));
    }
    let by = running.remove(key).unwrap_or_default();
    match &lrp.state {
        // It waits for its next start, which may be minutes away.
        ActualLrpState::Crashed if by.is_empty() => Ok(()),
        ActualLrpState::Running { instance, .. } => {
            let told = BTreeSet::from([(instance.cell_id.clone(), instance.instance_guid.clone())]);
            if by == told {
                Ok(())
            } else {
                Err(format!("{guid}/{index} runs as {by:?}, the BBS says {told:?}"))
            }
        }
        state => Err(format!("{guid}/{index} is {}", state.name())),
    }
}
