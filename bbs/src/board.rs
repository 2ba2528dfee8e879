//! The one owner of the BBS's state. Everybody else reads what is committed, or asks it to change something.
//!
//! ```text
//! write(decide) ─▶ queue ─▶ writer: decide on the newest state, several commands
//!                             └▶ one transaction ─▶ readers see it ─▶ events ─▶ acknowledged
//! ```
//!
//! While one transaction is on its way to the disk, the commands of the next gather: that is the group commit. What
//! is acknowledged is in the file; what is in memory for readers is, too. If a transaction fails, its commands are
//! taken back and answered with an error.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use bbs_models::Error;
use diego_base::clock::Clock;
use tokio::sync::{mpsc, oneshot};

use crate::hub::Hub;
use crate::state::{Change, State};
use crate::store::{self, Durability, Store, Write};
use crate::{events, records};

/// Commands that may wait for the writer; further ones wait to be queued.
pub const COMMANDS_QUEUED_MAX: usize = 4096;
/// Commands of one transaction.
pub const COMMANDS_PER_COMMIT_MAX: usize = 512;

/// A handle; clones share the board.
#[derive(Clone)]
pub struct Board {
    committed: Arc<RwLock<State>>,
    commands: mpsc::Sender<Command>,
    hub: Hub,
    clock: Arc<dyn Clock>,
}

type Command = Box<dyn FnOnce(&mut State, i64) -> Done + Send>;

/// A command that was carried out in the writer's memory and waits for its commit.
struct Done {
    changes: Vec<Change>,
    trace_id: String,
    answer: Box<dyn FnOnce(Result<(), Error>) + Send>,
}

/// The newest state, committed or about to be, in the hands of one command.
pub struct Draft<'a> {
    state: &'a mut State,
    changes: Vec<Change>,
    pub now_ns: i64,
}

impl Draft<'_> {
    pub fn state(&self) -> &State {
        self.state
    }

    pub fn record(&mut self, change: Change) {
        self.state.apply(&change);
        self.changes.push(change);
    }

    /// Records what happened to an index, if something did, and says whether.
    pub fn record_slot(&mut self, change: Option<crate::state::SlotChange>) -> bool {
        let happened = change.is_some();
        change.into_iter().for_each(|change| self.record(Change::ActualLrp(change)));
        happened
    }

    fn take_back(&mut self) {
        for change in self.changes.drain(..).rev() {
            self.state.revert(&change);
        }
    }
}

/// A new epoch of a modification tag, or any other name nobody has.
pub fn new_guid() -> String {
    uuid::Uuid::new_v4().to_string()
}

/// What changes the state and writes it down; runs until every [`Board`] is gone.
pub struct Writer {
    store: Store,
    state: State,
    committed: Arc<RwLock<State>>,
    commands: mpsc::Receiver<Command>,
    hub: Hub,
    clock: Arc<dyn Clock>,
}

impl Board {
    /// Opens the file and remembers all that it holds.
    pub async fn open(
        database: PathBuf,
        durability: Durability,
        clock: Arc<dyn Clock>,
    ) -> Result<(Board, Writer), store::Error> {
        let mut store = Store::open(&database, durability).await?;
        let state = records::state(store.load().await?, &database)?;
        let committed = Arc::new(RwLock::new(state.clone()));
        let (sender, receiver) = mpsc::channel(COMMANDS_QUEUED_MAX);
        let hub = Hub::default();
        let board =
            Board { committed: committed.clone(), commands: sender, hub: hub.clone(), clock: clock.clone() };
        Ok((board, Writer { store, state, committed, commands: receiver, hub, clock }))
    }

    pub fn now_ns(&self) -> i64 {
        self.clock.now_ns()
    }

    pub fn hub(&self) -> &Hub {
        &self.hub
    }

    /// Reads what is committed. Short: the writer waits meanwhile.
    pub fn read<T>(&self, read: impl FnOnce(&State) -> T) -> T {
        read(&self.committed.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Has `decide` change the newest state, all or nothing, and answers once that is committed.
    pub async fn write<T: Send + 'static>(
        &self,
        trace_id: &str,
        decide: impl FnOnce(&mut Draft<'_>) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let trace_id = trace_id.to_string();
        let (answer, answered) = oneshot::channel();
        let command: Command = Box::new(move |state, now_ns| {
            let mut draft = Draft { state, changes: Vec::new(), now_ns };
            let decided = decide(&mut draft);
            if decided.is_err() {
                draft.take_back();
            }
            // Whoever asked may have gone; what was decided stands.
            let answer = move |committed: Result<(), Error>| drop(answer.send(committed.and(decided)));
            Done { changes: draft.changes, trace_id, answer: Box::new(answer) }
        });
        let stopped = || Error::unknown("the BBS is shutting down");
        self.commands.send(command).await.map_err(|_| stopped())?;
        answered.await.map_err(|_| stopped())?
    }
}

impl Writer {
    /// Ends when the last board is dropped, or when the file can no longer be written.
    pub async fn run(mut self) -> Result<(), store::Error> {
        let mut commands = Vec::new();
        while self.commands.recv_many(&mut commands, COMMANDS_PER_COMMIT_MAX).await > 0 {
            let now_ns = self.clock.now_ns();
            let done: Vec<Done> =
                commands.drain(..).map(|command| command(&mut self.state, now_ns)).collect();
            if let Err(error) = self.commit(writes(&done)).await {
                tracing::error!(%error, "cannot commit");
                self.refuse(done, &error);
                if matches!(error, store::Error::Lost { .. }) {
                    return Err(error);
                }
                continue;
            }
            self.show(&done);
            done.into_iter().for_each(|done| (done.answer)(Ok(())));
        }
        self.store.close().await
    }

    async fn commit(&mut self, writes: Vec<Write>) -> Result<(), store::Error> {
        if writes.is_empty() { Ok(()) } else { self.store.commit(writes).await }
    }

    /// Lets readers see what is committed, then tells subscribers.
    fn show(&self, done: &[Done]) {
        {
            let mut committed = self.committed.write().unwrap_or_else(PoisonError::into_inner);
            done.iter().flat_map(|done| &done.changes).for_each(|change| committed.apply(change));
        }
        if !self.hub.is_heard() {
            return;
        }
        for done in done {
            for change in &done.changes {
                self.hub.publish(events::of(change, &done.trace_id));
            }
        }
    }

    fn refuse(&mut self, done: Vec<Done>, error: &store::Error) {
        for change in done.iter().rev().flat_map(|done| done.changes.iter().rev()) {
            self.state.revert(change);
        }
        let refusal = Error::unknown(error.to_string());
        done.into_iter().for_each(|done| (done.answer)(Err(refusal.clone())));
    }
}

fn writes(done: &[Done]) -> Vec<Write> {
    let mut writes = Vec::new();
    done.iter().flat_map(|done| &done.changes).for_each(|change| records::writes(change, &mut writes));
    writes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::picture::{DOMAIN, task};
    use crate::transitions::domain;
    use bbs_models::{ErrorKind, TaskState};
    use diego_base::clock::SystemClock;

    async fn board() -> (tempfile::TempDir, Board, Writer) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bbs.db");
        let (board, writer) =
            Board::open(path, Durability::ProcessKill, Arc::new(SystemClock)).await.unwrap();
        (folder, board, writer)
    }

    async fn put_task(board: &Board) -> Result<(), Error> {
        board
            .write("", |draft| {
                let after = Some(Arc::new(task(TaskState::Pending)));
                draft.record(Change::Task { before: None, after });
                Ok(())
            })
            .await
    }

    async fn put_domain(board: &Board) -> Result<(), Error> {
        let change = |draft: &mut Draft<'_>| {
            draft.record(domain::upsert(DOMAIN.into(), None, 0, draft.now_ns));
            Ok(())
        };
        board.write("", change).await
    }

    #[tokio::test]
    async fn what_could_not_be_written_never_was() {
        let (_folder, board, mut writer) = board().await;
        let refuse = "CREATE TRIGGER full BEFORE INSERT ON tasks BEGIN SELECT RAISE(ABORT, 'full'); END";
        writer.store.execute(refuse).await;
        let writer = tokio::spawn(writer.run());
        let error = put_task(&board).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::UnknownError);
        assert!(board.read(|state| state.task("t").is_none()), "readers never saw it");
        let seen = board.write("", |draft| Ok(draft.state().task("t").is_some())).await;
        assert_eq!(seen, Ok(false), "the writer took it back");
        put_domain(&board).await.expect("the next one is written");
        drop(board);
        writer.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_command_that_is_refused_half_way_changes_nothing() {
        let (_folder, board, writer) = board().await;
        tokio::spawn(writer.run());
        let refused = board
            .write("", |draft| {
                draft.record(domain::upsert(DOMAIN.into(), None, 0, draft.now_ns));
                Err::<(), _>(Error::conflict())
            })
            .await;
        assert_eq!(refused, Err(Error::conflict()));
        assert_eq!(board.read(|state| state.domain(DOMAIN)), None);
    }
}
