//! Changes as rows, and rows as the state they once were.

use std::sync::Arc;

use bbs_models::{ActualLrp, DesiredLrp, Presence, Task, wire};
use prost::Message;

use crate::state::{Change, Move, Slot, SlotChange, State};
use crate::store::{self, ActualKey, Contents, Record, Write};

/// The rows to write so that the database knows of `change`.
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

/// Characters of a name that is a column; as in the tables of the original.
pub const NAME_CHARS_MAX: usize = 255;

/// Whether all names can be written down, in each of the databases: one that cannot would keep its whole batch out.
pub fn fits(change: &Change) -> bool {
    let fits = |name: &str| name.chars().count() <= NAME_CHARS_MAX && !name.contains('\0');
    let all = |names: &[&str]| names.iter().all(|name| fits(name));
    match change {
        Change::ActualLrp(change) => change
            .after
            .iter()
            .all(|lrp| all(&[&change.process_guid, &lrp.key.domain, lrp.cell_id().unwrap_or_default()])),
        Change::DesiredLrp { after: Some(lrp), .. } => all(&[&lrp.process_guid, &lrp.domain]),
        Change::Task { after: Some(task), .. } => {
            all(&[&task.task_guid, &task.domain, task.cell_id().unwrap_or_default()])
        }
        Change::Domain { domain, after: Some(_), .. } => fits(domain),
        _ => true,
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

/// A row whose record should be written anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outdated {
    DesiredLrp(String),
    ActualLrp { process_guid: String, index: u32, presence: Presence },
    Task(String),
}

/// The write that brings the row up to date, if it is still there.
pub fn rewrite(state: &State, row: &Outdated) -> Option<Write> {
    match row {
        Outdated::DesiredLrp(guid) => desired_lrp(&None, &state.desired_lrp(guid).cloned()),
        Outdated::Task(guid) => task(&None, &state.task(guid).cloned()),
        Outdated::ActualLrp { process_guid, index, presence } => {
            let (after, index) = (state.slot(process_guid, *index), *index);
            let (process_guid, before, moves) = (process_guid.clone(), Slot::default(), Vec::new());
            actual_lrp(&SlotChange { process_guid, index, before, after, moves, crashed: false }, *presence)
        }
    }
}

/// The state that the rows make up, and which of them are outdated. A record that cannot be read is not skipped: the
/// database is corrupt.
pub fn state(contents: Contents, at: &str) -> Result<(State, Vec<Outdated>), store::Error> {
    let (mut state, mut outdated) = (State::default(), Vec::new());
    for (lrp, old) in decode_all::<wire::DesiredLrp, DesiredLrp>(contents.desired_lrps, "DesiredLRP", at)? {
        outdated.extend(old.then(|| Outdated::DesiredLrp(lrp.process_guid.clone())));
        state.apply(&Change::DesiredLrp { before: None, after: Some(lrp) });
    }
    for (lrp, old) in decode_all::<wire::ActualLrp, ActualLrp>(contents.actual_lrps, "ActualLRP", at)? {
        let (process_guid, index, presence) = (&lrp.key.process_guid, lrp.key.index, lrp.presence);
        let row = || Outdated::ActualLrp { process_guid: process_guid.clone(), index, presence };
        outdated.extend(old.then(row));
        let before = state.slot(process_guid, index);
        state.apply(&Change::ActualLrp(placed(before, lrp)));
    }
    for (task, old) in decode_all::<wire::Task, Task>(contents.tasks, "Task", at)? {
        outdated.extend(old.then(|| Outdated::Task(task.task_guid.clone())));
        state.apply(&Change::Task { before: None, after: Some(task) });
    }
    for (domain, expires_at_ns) in contents.domains {
        state.apply(&Change::Domain { domain, before: None, after: Some(expires_at_ns) });
    }
    Ok((state, outdated))
}

/// Fewer are decoded before other threads have begun.
const RECORDS_PER_THREAD_MIN: usize = 4096;

/// In their order, on all processors.
fn decode_all<W, T>(records: Vec<Record>, kind: &str, at: &str) -> Result<Vec<(Arc<T>, bool)>, store::Error>
where
    W: Message + Default,
    T: TryFrom<W> + Send + Sync,
    T::Error: std::fmt::Display,
{
    let one = |record: &Record| match decode::<W, T>(&record.bytes) {
        Ok(value) => Ok((Arc::new(value), record.is_outdated)),
        Err(why) => Err(store::Error::Corrupt {
            at: at.into(),
            reason: format!("the record of {kind} {} cannot be read: {why}", record.key),
        }),
    };
    let threads = std::thread::available_parallelism().map_or(1, |number| number.get());
    let share = records.len().div_ceil(threads).max(RECORDS_PER_THREAD_MIN);
    if records.len() <= share {
        return records.iter().map(one).collect();
    }
    let shares: Vec<Result<Vec<_>, _>> = std::thread::scope(|scope| {
        let at_work: Vec<_> =
            records.chunks(share).map(|share| scope.spawn(move || share.iter().map(one).collect())).collect();
        let done = at_work.into_iter().map(|thread| thread.join());
        done.map(|done| done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    });
    shares.into_iter().try_fold(Vec::with_capacity(records.len()), |mut all, share| {
        all.append(&mut share?);
        Ok(all)
    })
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
