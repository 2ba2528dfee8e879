//! The life of a Task.
//!
//! ```text
//!            start              complete                  resolving             delete
//!  PENDING ─────────▶ RUNNING ────────────▶ COMPLETED ──────────────▶ RESOLVING ───────▶
//!   │  ▲ ◀── reject ────┘                    ▲ ▲   ◀───── demote ─────────┘
//!   │  └─ reject                             │ │
//!   └──────── cancel, fail, last reject ─────┘ └── cancel, fail (from RUNNING)
//! ```

use std::sync::Arc;

use bbs_models::{Error, Task, TaskCompletion, TaskDefinition, TaskOutcome, TaskState};

use super::truncated;
use crate::state::Change;

pub const CANCELLED: &str = "task was cancelled";
const PENDING: &str = "Pending";
const RUNNING: &str = "Running";
const COMPLETED: &str = "Completed";
const RESOLVING: &str = "Resolving";

type Old = Option<Arc<Task>>;

fn known(old: Old) -> Result<Arc<Task>, Error> {
    old.ok_or_else(Error::not_found)
}

fn changed(old: Arc<Task>, state: TaskState, now_ns: i64) -> Change {
    let new = Task { state, updated_at_ns: now_ns, ..Task::clone(&old) };
    Change::Task { before: Some(old), after: Some(Arc::new(new)) }
}

fn completed(old: Arc<Task>, outcome: TaskOutcome, now_ns: i64) -> Change {
    let outcome = match outcome {
        TaskOutcome::Failed { reason } => TaskOutcome::Failed { reason: truncated(reason) },
        succeeded => succeeded,
    };
    let completion = TaskCompletion { outcome, first_completed_at_ns: now_ns };
    changed(old, TaskState::Completed(completion), now_ns)
}

pub fn desire(
    old: Old,
    guid: String,
    domain: String,
    definition: TaskDefinition,
    now_ns: i64,
) -> Result<Change, Error> {
    if old.is_some() {
        return Err(Error::exists());
    }
    let task = Task::pending(guid, domain, definition, now_ns);
    Ok(Change::Task { before: None, after: Some(Arc::new(task)) })
}

/// `None`: the cell was told before that it should start it, and is not told again.
pub fn start(old: Old, cell_id: String, now_ns: i64) -> Result<Option<Change>, Error> {
    let old = known(old)?;
    match &old.state {
        TaskState::Pending => Ok(Some(changed(old, TaskState::Running { cell_id }, now_ns))),
        TaskState::Running { cell_id: holder } if *holder == cell_id => Ok(None),
        state => Err(Error::task_transition(state.name(), RUNNING)),
    }
}

/// Ends it without a result, whoever works on it; also from PENDING.
pub fn fail(old: Old, reason: String, now_ns: i64) -> Result<Change, Error> {
    let old = known(old)?;
    match &old.state {
        TaskState::Pending | TaskState::Running { .. } => {
            Ok(completed(old, TaskOutcome::Failed { reason }, now_ns))
        }
        state => Err(Error::task_transition(state.name(), COMPLETED)),
    }
}

pub fn complete(old: Old, cell_id: &str, outcome: TaskOutcome, now_ns: i64) -> Result<Change, Error> {
    let old = known(old)?;
    match &old.state {
        TaskState::Running { cell_id: holder } if holder != cell_id => {
            Err(Error::running_on_different_cell(cell_id, holder))
        }
        TaskState::Running { .. } => Ok(completed(old, outcome, now_ns)),
        state => Err(Error::task_transition(state.name(), COMPLETED)),
    }
}

/// What auctioneers say of work that they could not place.
const PLACEMENT_ERRORS: [&str; 4] = [
    "insufficient resources",
    "unable to communicate to compatible cells",
    "found no compatible cell",
    "waiting to start instance",
];

/// No cell could take it, or the one that took it could not run it. It waits again, until it has been rejected too
/// often. A Task that runs is rejected by its cell alone: that an auctioneer, asked twice, found no second place for
/// it must not make it run again.
pub fn reject(old: Old, reason: String, retries_max: u32, now_ns: i64) -> Result<Change, Error> {
    let old = known(old)?;
    let is_last = old.rejection_count >= retries_max;
    if !matches!(old.state, TaskState::Pending | TaskState::Running { .. }) {
        return Err(match is_last {
            true => Error::task_transition(old.state.name(), COMPLETED),
            false => Error::bad_request(),
        });
    }
    let is_unplaced = PLACEMENT_ERRORS.iter().any(|error| reason.starts_with(error));
    if is_unplaced && matches!(old.state, TaskState::Running { .. }) {
        return Err(Error::task_transition(RUNNING, PENDING));
    }
    let reason = truncated(reason);
    let rejected = Task {
        rejection_count: old.rejection_count.saturating_add(1),
        rejection_reason: reason.clone(),
        state: TaskState::Pending,
        updated_at_ns: now_ns,
        ..Task::clone(&old)
    };
    if !is_last {
        return Ok(Change::Task { before: Some(old), after: Some(Arc::new(rejected)) });
    }
    let Change::Task { after, .. } = completed(Arc::new(rejected), TaskOutcome::Failed { reason }, now_ns)
    else {
        return Err(Error::bad_request());
    };
    Ok(Change::Task { before: Some(old), after })
}

/// Whoever gets this answered is the only one who tells the Task's client.
pub fn resolving(old: Old, now_ns: i64) -> Result<Change, Error> {
    let old = known(old)?;
    match &old.state {
        TaskState::Completed(completion) => {
            let state = TaskState::Resolving(completion.clone());
            Ok(changed(old, state, now_ns))
        }
        state => Err(Error::task_transition(state.name(), RESOLVING)),
    }
}

/// Whoever wanted to tell the client did not come back: somebody else may try.
pub fn demote(old: Old) -> Result<Change, Error> {
    let old = known(old)?;
    match &old.state {
        TaskState::Resolving(completion) => {
            let (state, since_ns) = (TaskState::Completed(completion.clone()), old.updated_at_ns);
            Ok(changed(old, state, since_ns))
        }
        state => Err(Error::task_transition(state.name(), COMPLETED)),
    }
}

pub fn delete(old: Old) -> Result<Change, Error> {
    let old = known(old)?;
    match &old.state {
        TaskState::Resolving(_) => Ok(Change::Task { before: Some(old), after: None }),
        state => Err(Error::task_transition(state.name(), RESOLVING)),
    }
}

/// Nobody asked for its result in time.
pub fn prune(old: Old) -> Result<Change, Error> {
    let old = known(old)?;
    match &old.state {
        TaskState::Completed(_) => Ok(Change::Task { before: Some(old), after: None }),
        state => Err(Error::task_transition(state.name(), RESOLVING)),
    }
}
