//! Changes as rows, and rows as the state they once were.

use std::path::Path;
use std::sync::Arc;

use bbs_models::{ActualLrp, DesiredLrp, Presence, Task, wire};
use prost::Message;

use crate::state::{Change, Move, Slot, SlotChange, State};
use crate::store::{self, ActualKey, Contents, Write};

/// The rows to write so that the file knows of `change`.
pub fn writes(change: &Change, writes: &mut Vec<Write>) {
    match change {
        Change::ActualLrp(change) => {
            for presence in [Presence::Ordinary, Presence::Evacuating, Presence::Suspect] {
                writes.extend(actual_lrp(change, presence));
            }
        }
        Change::DesiredLrp { before, after } => writes.extend(desired_lrp(before, after)),
        Change::Task { before, after } => writes.extend(task(before, after)),
        Change::Domain { domain, after, .. } => writes.push(match *after {
            Some(expires_at_ns) => Write::PutDomain { domain: domain.clone(), expires_at_ns },
            None => Write::DropDomain { domain: domain.clone() },
        }),
    }
}

fn actual_lrp(change: &SlotChange, presence: Presence) -> Option<Write> {
    let key = || ActualKey {
        process_guid: change.process_guid.clone(),
        index: i32::try_from(change.index).unwrap_or(i32::MAX),
        presence: presence as i32,
    };
    match (change.before.get(presence), change.after.get(presence)) {
        (None, None) => None,
        (Some(before), Some(after)) if Arc::ptr_eq(before, after) => None,
        (Some(_), None) => Some(Write::DropActualLrp { key: key() }),
        (_, Some(lrp)) => Some(Write::PutActualLrp {
            key: key(),
            domain: lrp.key.domain.clone(),
            state: lrp.state.name(),
            cell_id: lrp.cell_id().unwrap_or_default().into(),
            record: wire::ActualLrp::from(ActualLrp::clone(lrp)).encode_to_vec(),
        }),
    }
}

fn desired_lrp(before: &Option<Arc<DesiredLrp>>, after: &Option<Arc<DesiredLrp>>) -> Option<Write> {
    match (before, after) {
        (_, Some(lrp)) => Some(Write::PutDesiredLrp {
            process_guid: lrp.process_guid.clone(),
            domain: lrp.domain.clone(),
            record: wire::DesiredLrp::from(DesiredLrp::clone(lrp)).encode_to_vec(),
        }),
        (Some(lrp), None) => Some(Write::DropDesiredLrp { process_guid: lrp.process_guid.clone() }),
        (None, None) => None,
    }
}

fn task(before: &Option<Arc<Task>>, after: &Option<Arc<Task>>) -> Option<Write> {
    match (before, after) {
        (_, Some(task)) => Some(Write::PutTask {
            guid: task.task_guid.clone(),
            domain: task.domain.clone(),
            state: task.state.name(),
            cell_id: task.cell_id().unwrap_or_default().into(),
            record: wire::Task::from(Task::clone(task)).encode_to_vec(),
        }),
        (Some(task), None) => Some(Write::DropTask { guid: task.task_guid.clone() }),
        (None, None) => None,
    }
}

/// The state that the file's rows make up. A record that cannot be read is not skipped: the file is corrupt.
pub fn state(contents: Contents, path: &Path) -> Result<State, store::Error> {
    let mut state = State::default();
    let corrupt = |kind: &str, key: &str, why: String| store::Error::Corrupt {
        path: path.into(),
        reason: format!("the record of {kind} {key} cannot be read: {why}"),
    };
    for (key, record) in contents.desired_lrps {
        let lrp: DesiredLrp =
            decode::<wire::DesiredLrp, _>(&record).map_err(|why| corrupt("DesiredLRP", &key, why))?;
        state.apply(&Change::DesiredLrp { before: None, after: Some(Arc::new(lrp)) });
    }
    for (key, record) in contents.actual_lrps {
        let lrp: ActualLrp =
            decode::<wire::ActualLrp, _>(&record).map_err(|why| corrupt("ActualLRP", &key, why))?;
        let before = state.slot(&lrp.key.process_guid, lrp.key.index);
        state.apply(&Change::ActualLrp(placed(before, Arc::new(lrp))));
    }
    for (key, record) in contents.tasks {
        let task: Task = decode::<wire::Task, _>(&record).map_err(|why| corrupt("Task", &key, why))?;
        state.apply(&Change::Task { before: None, after: Some(Arc::new(task)) });
    }
    for (domain, expires_at_ns) in contents.domains {
        state.apply(&Change::Domain { domain, before: None, after: Some(expires_at_ns) });
    }
    Ok(state)
}

fn decode<W, T>(record: &[u8]) -> Result<T, String>
where
    W: Message + Default,
    T: TryFrom<W>,
    T::Error: std::fmt::Display,
{
    let wire = W::decode(record).map_err(|error| error.to_string())?;
    T::try_from(wire).map_err(|error| error.to_string())
}

fn placed(before: Slot, lrp: Arc<ActualLrp>) -> SlotChange {
    let mut after = before.clone();
    *after.slot_mut(lrp.presence) = Some(lrp.clone());
    SlotChange {
        process_guid: lrp.key.process_guid.clone(),
        index: lrp.key.index,
        before,
        after,
        moves: vec![Move::Created(lrp)],
        crashed: false,
    }
}
