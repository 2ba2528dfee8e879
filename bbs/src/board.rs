//! The one owner of the BBS's state. Everybody else reads what is committed, or asks it to change something.
//!
//! ```text
//! write(decide) ─▶ queue ─▶ writer: decide on the newest state, several commands
//!                             └▶ one transaction ─▶ readers see it ─▶ events ─▶ acknowledged
//! ```
//!
//! While one transaction is on its way to the disk, the commands of the next gather: that is the group commit. What
//! is acknowledged is in the database; what is in memory for readers is, too. If a transaction fails, its commands are
//! taken back and answered with an error. If nobody can say whether it failed, the writer asks until somebody can; who
//! waits is told so in time, and readers read on.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bbs_models::Error;
use diego_base::clock::Clock;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout};

use crate::hub::Hub;
use crate::records::Outdated;
use crate::state::{Change, State};
use crate::store::{self, Rows, Write};
use crate::{events, records};

/// Commands that may wait for the writer; further ones wait to be queued.
pub const COMMANDS_QUEUED_MAX: usize = 4096;
/// Commands of one transaction.
pub const COMMANDS_PER_COMMIT_MAX: usize = 512;

/// Whoever asked is answered within so long, whatever the database does: before its own patience, usually 10 s, ends.
pub const WRITE_PATIENCE: Duration = Duration::from_secs(8);
/// A writer with nothing to do looks so often whether it still is the writer.
const CHECK_EVERY: Duration = Duration::from_secs(5);
/// Between two questions to a database that is away.
const RESUME_EVERY: Duration = Duration::from_millis(500);

/// Records that are sealed anew come in commits of their own, between those of commands and with a pause for them.
const REWRITES_PER_COMMIT_MAX: usize = 256;
const REWRITE_EVERY: Duration = Duration::from_millis(10);

/// A handle; clones share the board.
#[derive(Clone)]
pub struct Board {
    committed: Arc<RwLock<State>>,
    commands: mpsc::Sender<Command>,
    hub: Hub,
    clock: Arc<dyn Clock>,
    /// A file answers or fails; a server may do neither.
    may_be_away: bool,
}

type Command = Box<dyn FnOnce(&mut State, i64) -> Done + Send>;

/// A command that was carried out in the writer's memory and waits for its commit.
struct Done {
    changes: Vec<Change>,
    refused: bool,
    trace_id: String,
    answer: Box<dyn FnOnce(Result<(), Error>) + Send>,
}

impl Done {
    fn nothing() -> Done {
        Done { changes: Vec::new(), refused: false, trace_id: String::new(), answer: Box::new(|_| {}) }
    }
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
    diego_base::names::guid()
}

/// What changes the state and writes it down; runs until every [`Board`] is gone.
pub struct Writer {
    store: Box<dyn Rows>,
    state: State,
    committed: Arc<RwLock<State>>,
    commands: mpsc::Receiver<Command>,
    hub: Hub,
    clock: Arc<dyn Clock>,
    /// Rows to be written anew when there is time.
    outdated: Vec<Outdated>,
}

impl Board {
    /// Remembers all that the rows say.
    pub async fn on(
        mut store: Box<dyn Rows>,
        clock: Arc<dyn Clock>,
    ) -> Result<(Board, Writer), store::Error> {
        let contents = store.load().await?;
        let (state, outdated) = records::state(contents, &store.at())?;
        let committed = Arc::new(RwLock::new(state.clone()));
        let (sender, receiver) = mpsc::channel(COMMANDS_QUEUED_MAX);
        let hub = Hub::default();
        let board = Board {
            committed: committed.clone(),
            commands: sender,
            hub: hub.clone(),
            clock: clock.clone(),
            may_be_away: store.may_be_away(),
        };
        Ok((board, Writer { store, state, committed, commands: receiver, hub, clock, outdated }))
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

    /// Has `decide` change the newest state, all or nothing, and answers once that is committed. After
    /// [`WRITE_PATIENCE`] it answers that it does not know; what was not decided by then never will be.
    pub async fn write<T: Send + 'static>(
        &self,
        trace_id: &str,
        decide: impl FnOnce(&mut Draft<'_>) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let trace_id = trace_id.to_string();
        let (answer, answered) = oneshot::channel();
        let command: Command = Box::new(move |state, now_ns| {
            if answer.is_closed() {
                return Done::nothing();
            }
            let mut draft = Draft { state, changes: Vec::new(), now_ns };
            let decided = decide(&mut draft).and_then(|decided| {
                let fits = draft.changes.iter().all(records::fits);
                if fits { Ok(decided) } else { Err(Error::bad_request()) }
            });
            let refused = decided.is_err();
            if refused {
                draft.take_back();
            }
            // Whoever asked may have gone; what was decided stands.
            let answer = move |committed: Result<(), Error>| drop(answer.send(committed.and(decided)));
            Done { changes: draft.changes, refused, trace_id, answer: Box::new(answer) }
        });
        let stopped = || Error::unknown("the BBS is shutting down");
        let answered = async {
            self.commands.send(command).await.map_err(|_| stopped())?;
            answered.await.map_err(|_| stopped())?
        };
        if !self.may_be_away {
            return answered.await;
        }
        let late = || Error::unknown("the database does not answer: whether this was done is not known");
        timeout(WRITE_PATIENCE, answered).await.unwrap_or_else(|_| Err(late()))
    }
}

impl Writer {
    /// Ends when the last board is dropped, or when nothing more can be written.
    pub async fn run(mut self) -> Result<(), store::Error> {
        let (mut commands, mut rewritten) = (Vec::new(), Instant::now());
        if !self.outdated.is_empty() {
            tracing::info!(records = self.outdated.len(), "encryption-started");
        }
        loop {
            match self.receive(&mut commands).await {
                Some(0) => return self.store.close().await,
                Some(_) => {
                    self.carry_out(&mut commands).await?;
                    // Also when there is always something to do.
                    if !self.outdated.is_empty() && rewritten.elapsed() >= REWRITE_EVERY {
                        self.rewrite().await?;
                        rewritten = Instant::now();
                    }
                }
                None => self.be_idle().await?,
            }
        }
    }

    /// How many commands there were; none in time is `None`.
    async fn receive(&mut self, commands: &mut Vec<Command>) -> Option<usize> {
        let received = self.commands.recv_many(commands, COMMANDS_PER_COMMIT_MAX);
        match (self.outdated.is_empty(), self.store.may_be_away()) {
            (true, false) => Some(received.await),
            (true, true) => timeout(CHECK_EVERY, received).await.ok(),
            (false, _) => timeout(REWRITE_EVERY, received).await.ok(),
        }
    }

    async fn be_idle(&mut self) -> Result<(), store::Error> {
        if self.outdated.is_empty() {
            let checked = self.store.check().await;
            return self.settle(checked).await;
        }
        self.rewrite().await
    }

    /// Some of the rows that are sealed with a key of before, as they are now.
    async fn rewrite(&mut self) -> Result<(), store::Error> {
        let rest = self.outdated.len().saturating_sub(REWRITES_PER_COMMIT_MAX);
        let rows = self.outdated.split_off(rest);
        let writes = rows.iter().filter_map(|row| records::rewrite(&self.state, row)).collect();
        let committed = self.commit(writes).await;
        if let Err(error) = self.settle(committed).await {
            tracing::error!(%error, "encryption-failed");
            // What is left is found again at the next start.
            self.outdated.clear();
            return if error.is_the_end() { Err(error) } else { Ok(()) };
        }
        if self.outdated.is_empty() {
            tracing::info!("encryption-finished");
        }
        Ok(())
    }

    /// Fails only if that was the end.
    async fn carry_out(&mut self, commands: &mut Vec<Command>) -> Result<(), store::Error> {
        let now_ns = self.clock.now_ns();
        let done: Vec<Done> = commands.drain(..).map(|command| command(&mut self.state, now_ns)).collect();
        let committed = match writes(&done) {
            // What is refused is refused for what is known here, which a successor may have changed.
            none if none.is_empty() && done.iter().any(|done| done.refused) => self.store.check().await,
            writes => self.commit(writes).await,
        };
        if let Err(error) = self.settle(committed).await {
            tracing::error!(%error, "cannot commit");
            self.refuse(done, &error);
            return if error.is_the_end() { Err(error) } else { Ok(()) };
        }
        self.show(&done);
        done.into_iter().for_each(|done| (done.answer)(Ok(())));
        Ok(())
    }

    async fn commit(&mut self, writes: Vec<Write>) -> Result<(), store::Error> {
        if writes.is_empty() { Ok(()) } else { self.store.commit(writes).await }
    }

    /// Asks until it is known what became of the commit, or until nobody is left who could want to know.
    async fn settle(&mut self, mut committed: Result<(), store::Error>) -> Result<(), store::Error> {
        let mut away = false;
        while let Err(store::Error::Unanswered { at }) = &committed {
            if self.commands.is_closed() && self.commands.is_empty() {
                return Err(store::Error::Lost { at: at.clone() });
            }
            if away {
                sleep(RESUME_EVERY).await;
            }
            committed = self.store.resume().await;
            if let (false, Err(error)) = (away, &committed) {
                tracing::error!(%error, "database-away");
                away = true;
            }
        }
        if away && committed.is_ok() {
            tracing::info!("database-back");
        }
        committed
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

    /// After `statement`.
    async fn board(statement: &'static str) -> (tempfile::TempDir, Board, Writer) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bbs.db");
        let mut store = store::File::open(&path, store::Durability::ProcessKill).await.unwrap();
        store.execute(statement).await;
        let (board, writer) = Board::on(Box::new(store), Arc::new(SystemClock)).await.unwrap();
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
        let refuse = "CREATE TRIGGER full BEFORE INSERT ON tasks BEGIN SELECT RAISE(ABORT, 'full'); END";
        let (_folder, board, writer) = board(refuse).await;
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
        let (_folder, board, writer) = board("").await;
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
