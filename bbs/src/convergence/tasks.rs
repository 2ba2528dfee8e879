//! Tasks: those that wait too long, whose cell is not there, whose client was not told, whom nobody asks for.

use bbs_models::{Task, TaskState};

use super::{LiveCells, Patience, Repair, is_far, is_over};
use crate::state::State;

pub const EXPIRED: &str = "not started within time limit";
pub const CELL_DISAPPEARED: &str = "cell disappeared before completion";

pub fn repairs(state: &State, live: &LiveCells, patience: &Patience, now_ns: i64, repairs: &mut Vec<Repair>) {
    for task in state.tasks() {
        one(task, live, patience, now_ns, repairs);
    }
}

fn one(task: &Task, live: &LiveCells, patience: &Patience, now_ns: i64, repairs: &mut Vec<Repair>) {
    let guid = || task.task_guid.clone();
    let is_kicked = is_far(task.updated_at_ns, patience.kick_task, now_ns);
    // Looks are as far apart as kicks: with the whole of it, each second one would find a Task that was just rejected.
    let waits = is_far(task.updated_at_ns, patience.kick_task / 2, now_ns);
    let has_callback = !task.definition.completion_callback_url.is_empty();
    match &task.state {
        TaskState::Pending => {
            if is_over(task.created_at_ns, patience.expire_pending_task, now_ns) {
                repairs.push(Repair::FailTask { guid: guid(), reason: EXPIRED });
            } else if waits {
                repairs.push(Repair::AuctionTask { guid: guid() });
            }
        }
        TaskState::Running { cell_id } => {
            if live.is_missing(cell_id) {
                repairs.push(Repair::FailTask { guid: guid(), reason: CELL_DISAPPEARED });
            }
        }
        TaskState::Completed(completion) | TaskState::Resolving(completion) => {
            let is_resolving = matches!(task.state, TaskState::Resolving(_));
            if is_resolving && !is_kicked {
                return;
            }
            if is_resolving {
                repairs.push(Repair::DemoteTask { guid: guid() });
            }
            if is_over(completion.first_completed_at_ns, patience.expire_completed_task, now_ns) {
                repairs.push(Repair::DeleteTask { guid: guid() });
            } else if is_kicked && has_callback {
                repairs.push(Repair::CallBack { guid: guid() });
            }
        }
    }
}
