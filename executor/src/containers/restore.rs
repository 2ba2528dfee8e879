//! What an earlier executor has left: its containers are known from the first moment on, and gone on with once this one
//! runs.
//!
//! ```text
//! record       garden has it                          garden does not
//! reserved     is still reserved, from now on             the same
//! initializing completed: not created yet, may be tried elsewhere
//! created,     its steps go on from what is noted     completed: missing
//!   running
//! completed    waits to be deleted                    the same
//! none         destroyed by the reaper
//! ```

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use diego_base::directory;
use tokio::sync::mpsc;

use super::life::{self, COMMANDS_MAX, Command, Past};
use super::store::{Store, failure};
use crate::cache::Cache;
use crate::config::DIRECTORY_MARK;
use crate::depot::{Found, keep_only};
use crate::{Config, Shared, StartError, State};

const NOT_CREATED: &str = "the cell's agent was started again before the container was created";

/// Containers whose owners have not begun yet.
#[derive(Default)]
pub(crate) struct Waiting(Mutex<Vec<One>>);

struct One {
    found: Found,
    commands: mpsc::Receiver<Command>,
}

impl Waiting {
    /// Enters what was found into the store.
    pub fn new(found: Vec<Found>, store: &Store) -> Waiting {
        let enter = |found: Found| {
            if found.record.container.state == State::Reserved {
                store.restore(found.record.container, None);
                return None;
            }
            let (owner, commands) = mpsc::channel(COMMANDS_MAX);
            let mut container = found.record.container.clone();
            container.run_info = found.request.as_ref().ok().map(|request| request.run_info.clone());
            store.restore(container, Some(owner));
            Some(One { found, commands })
        };
        Waiting(Mutex::new(found.into_iter().filter_map(enter).collect()))
    }

    /// Once.
    pub fn go_on(&self, shared: &Arc<Shared>) {
        let all = std::mem::take(&mut *self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
        for One { found, commands } in all {
            let (guid, state) = (&found.record.container.guid, &found.record.container.state);
            tracing::info!(guid, ?state, "executor.container-of-an-earlier-life");
            let past = past(&found, &shared.cache);
            life::go_on(shared, found, past, commands);
        }
        shared.cache.forget_again();
    }
}

fn past(found: &Found, cache: &Cache) -> Past {
    let record = &found.record;
    match (&record.container.state, &found.request) {
        (State::Completed(_), _) => Past::Completed,
        (State::Reserved | State::Initializing, _) => Past::Over(failure(NOT_CREATED, true)),
        (State::Created | State::Running, Ok(_)) => {
            let downloads = record.downloads.iter().filter_map(|name| cache.again(name)).collect();
            Past::Created { downloads, stopping: record.stopping }
        }
        (State::Created | State::Running, Err(why)) => {
            Past::Over(failure(&format!("what the container is to do was forgotten: {why}"), false))
        }
    }
}

/// Names of downloads that are mounted into containers.
pub(crate) fn downloads(found: &[Found]) -> Vec<String> {
    found.iter().flat_map(|found| found.record.downloads.iter().cloned()).collect()
}

/// Of what the work directory holds, only that stays which is mounted into containers that are there.
pub(crate) fn prepare_work_dir(config: &Config, found: &[Found]) -> Result<(), StartError> {
    let guids: BTreeSet<&str> = found.iter().map(|found| found.record.container.guid.as_str()).collect();
    let dir = &config.work_dir;
    let unusable = |source| StartError::Directory { path: dir.to_path_buf(), source };
    directory::claim(dir, DIRECTORY_MARK)?;
    let kept = ["credentials", "files"];
    keep_only(dir, &kept.into_iter().collect()).map_err(unusable)?;
    kept.iter().try_for_each(|kept| keep_only(&dir.join(kept), &guids)).map_err(unusable)
}
