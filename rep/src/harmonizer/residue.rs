//! The sync of everything: each container is looked at, and what the BBS believes to be on this cell but is not, is
//! taken back.

use std::collections::BTreeMap;

use bbs_models::{ActualLrp, ActualLrpFilter, Presence, TaskFilter};

use super::carry_out::may_pass;
use super::{Operation, Outcome, Surrounded};
use crate::tags::LrpInstance;
use crate::task::MISSING_CONTAINER;

/// What the BBS has on this cell under one guid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Residue {
    /// An instance, its evacuating twin, or both.
    Lrp {
        lrp: LrpInstance,
        ordinary: bool,
        evacuating: bool,
    },
    Task,
}

/// One operation for each guid that either side knows.
pub(super) async fn look(around: &Surrounded) -> Result<BTreeMap<String, Operation>, bbs_client::Error> {
    let lrp_filter = ActualLrpFilter { cell_id: around.cell_id.clone(), ..ActualLrpFilter::default() };
    let task_filter = TaskFilter { cell_id: around.cell_id.clone(), ..TaskFilter::default() };
    let (lrps, tasks) = tokio::join!(around.bbs.actual_lrps(&lrp_filter), around.bbs.tasks(&task_filter));
    let task_guids = tasks?.into_iter().map(|task| task.task_guid).collect();
    // Read last: a container made meanwhile is no residue.
    let containers = around.executor.guids();
    around.forget_all_but(&containers);
    Ok(compare(containers, &lrps?, task_guids))
}

fn compare(
    containers: Vec<String>,
    lrps: &[ActualLrp],
    task_guids: Vec<String>,
) -> BTreeMap<String, Operation> {
    let containers = containers.into_iter().map(|guid| (guid, Operation::Container));
    let mut operations: BTreeMap<String, Operation> = containers.collect();
    for lrp in lrps {
        let Some(instance) = lrp.instance() else { continue };
        let is_evacuating = lrp.presence == Presence::Evacuating;
        match operations.get_mut(&instance.instance_guid) {
            Some(Operation::Residue(Residue::Lrp { ordinary, evacuating, .. })) => {
                *(if is_evacuating { evacuating } else { ordinary }) = true;
            }
            Some(_) => {}
            None => {
                let found = LrpInstance { key: lrp.key.clone(), instance: instance.clone() };
                let (ordinary, evacuating) = (!is_evacuating, is_evacuating);
                let residue = Residue::Lrp { lrp: found, ordinary, evacuating };
                operations.insert(instance.instance_guid.clone(), Operation::Residue(residue));
            }
        }
    }
    for guid in task_guids {
        operations.entry(guid).or_insert(Operation::Residue(Residue::Task));
    }
    operations
}

pub(super) async fn remove(around: &Surrounded, guid: &str, residue: &Residue) -> Outcome {
    if around.executor.get(guid).is_ok() {
        return Outcome::Settled;
    }
    tracing::info!(guid, ?residue, "the BBS has something that this cell has not");
    let bbs = &around.bbs;
    let mut answers = Vec::new();
    match residue {
        Residue::Lrp { lrp, ordinary, evacuating } => {
            if *ordinary {
                answers.push(bbs.remove_actual_lrp(&lrp.key, Some(&lrp.instance)).await);
            }
            if *evacuating {
                answers.push(bbs.remove_evacuating_actual_lrp(&lrp.key, &lrp.instance).await);
            }
        }
        Residue::Task => {
            answers.push(bbs.complete_task(guid, &around.cell_id, true, MISSING_CONTAINER, "").await);
        }
    }
    let mut outcome = Outcome::Settled;
    for error in answers.into_iter().filter_map(Result::err) {
        tracing::info!(guid, %error, "cannot take back what the BBS has");
        if may_pass(&error) {
            outcome = Outcome::Retry;
        }
    }
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;
    use bbs_models::{ActualLrpInstanceKey, ActualLrpKey};

    fn lrp(instance_guid: &str, presence: Presence) -> ActualLrp {
        let instance = ActualLrpInstanceKey::new(instance_guid, "cell");
        ActualLrp { presence, ..ActualLrp::claimed(ActualLrpKey::new("pg", 0, "d"), instance, 0) }
    }

    fn check(containers: &[&str], lrps: &[ActualLrp], tasks: &[&str], expected: &[&str]) {
        let owned = |guids: &[&str]| guids.iter().map(|guid| guid.to_string()).collect::<Vec<_>>();
        let mut found: Vec<_> = compare(owned(containers), lrps, owned(tasks))
            .into_iter()
            .map(|(guid, operation)| match operation {
                Operation::Container => format!("{guid}: look"),
                Operation::Residue(Residue::Task) => format!("{guid}: task"),
                Operation::Residue(Residue::Lrp { ordinary, evacuating, .. }) => {
                    format!(
                        "{guid}: lrp{}{}",
                        if ordinary { " ordinary" } else { "" },
                        if evacuating { " evacuating" } else { "" }
                    )
                }
            })
            .collect();
        found.sort();
        assert_eq!(found, expected);
    }

    #[test]
    fn what_only_the_bbs_has_is_residue() {
        use Presence::*;
        check(&["a", "t"], &[lrp("a", Ordinary)], &["t"], &["a: look", "t: look"]);
        check(&[], &[lrp("a", Ordinary)], &["t"], &["a: lrp ordinary", "t: task"]);
        check(&[], &[lrp("a", Suspect)], &[], &["a: lrp ordinary"]);
        check(&[], &[lrp("a", Evacuating)], &[], &["a: lrp evacuating"]);
        check(&[], &[lrp("a", Ordinary), lrp("a", Evacuating)], &[], &["a: lrp ordinary evacuating"]);
        check(&["b"], &[ActualLrp::unclaimed(ActualLrpKey::new("pg", 1, "d"), 0)], &[], &["b: look"]);
    }
}
