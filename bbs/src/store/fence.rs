//! A database that others can reach, too: who may write there, and what became of a commit that nobody answered.
//!
//! One row, `writer`, says who that is. Every connection that is to write raises the row's epoch, and every commit
//! changes the row only where it still has that epoch, in the same transaction as all else:
//!
//! ```text
//! start:   owner = me, epoch + 1          another BBS's commits find their epoch gone: it is fenced, and ends
//! commit:  commits = N where epoch = mine, and the rows
//! no answer: connect anew, epoch + 1 where owner = me; what the old connection still had under way can write no more
//!            commits = N?  ─yes▶ it was committed      ─no▶ it was not and never will be: the same rows once more
//! ```

use std::time::Duration;

use async_trait::async_trait;
use tokio::time::timeout;

use super::batch::Batch;
use super::{Contents, Error, Rows, Write, schema};

/// A server that takes longer to let us in is taken to be away.
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);
/// A commit without an answer for so long is looked into by another connection.
const COMMIT_PATIENCE: Duration = Duration::from_secs(10);
/// A migration may have to wait for that of another BBS, and rewrites tables.
const MIGRATION_PATIENCE: Duration = Duration::from_secs(10 * 60);
const LOAD_PATIENCE: Duration = Duration::from_secs(5 * 60);
const CLOSE_PATIENCE: Duration = Duration::from_secs(1);
/// A commit that ends its connection so often is given up: the database comes back, but does not survive it.
const ATTEMPTS_MAX: u32 = 5;

/// What the row of `writer` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    pub owner: String,
    pub epoch: i64,
    /// The number of the last commit.
    pub commits: i64,
}

/// What an error says about the commit that it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It was not carried out, and would not be another time.
    Final,
    /// Nothing, or nothing that would hold a moment later.
    Unclear,
}

/// One connection to a server, in its own words.
pub trait Session: Sized + Send + 'static {
    type Server: Send + Sync + 'static;

    fn connect(server: &Self::Server) -> impl Future<Output = Result<Self, sqlx::Error>> + Send;
    /// Takes the steps that are missing, alone, and says which version the schema has then.
    fn migrate(&mut self) -> impl Future<Output = Result<i64, sqlx::Error>> + Send;
    fn holder(&mut self) -> impl Future<Output = Result<Option<Held>, sqlx::Error>> + Send;
    /// Makes `owner` the one who may write, if the epoch is still `from`; `None`: if nobody ever was.
    fn raise(
        &mut self,
        owner: &str,
        from: Option<i64>,
    ) -> impl Future<Output = Result<bool, sqlx::Error>> + Send;
    /// All of `batch` and its number, or nothing: `false` if the epoch is gone.
    fn commit(
        &mut self,
        epoch: i64,
        number: i64,
        batch: &Batch,
    ) -> impl Future<Output = Result<bool, sqlx::Error>> + Send;
    fn load(&mut self) -> impl Future<Output = Result<Contents, sqlx::Error>> + Send;
    fn refusal(error: &sqlx::Error) -> Refusal;
    /// What an operator should know beside what the error says.
    fn advice(_error: &sqlx::Error) -> Option<&'static str> {
        None
    }
    fn close(self) -> impl Future<Output = Result<(), sqlx::Error>> + Send;
}

struct Pending {
    number: i64,
    batch: Batch,
    attempts: u32,
}

/// A server's database of which we are the writer, as far as we know.
pub struct Fenced<S: Session> {
    server: S::Server,
    /// As errors name it.
    at: String,
    /// Nobody else's name, and none that we had before.
    owner: String,
    session: Option<S>,
    epoch: i64,
    /// Of the newest commit, and of the newest that was carried out.
    number: i64,
    committed: i64,
    /// The commit of which nothing is known.
    pending: Option<Pending>,
}

impl<S: Session> Fenced<S> {
    /// Comes in, brings the schema up to date, and takes the right to write from whoever had it.
    pub async fn open(server: S::Server, at: String, owner: String) -> Result<Self, Error> {
        let failed = |act| failure::<S>(&at, act);
        let mut session =
            within(CONNECT_PATIENCE, S::connect(&server)).await.map_err(failed("connect to"))?;
        let found = within(MIGRATION_PATIENCE, session.migrate())
            .await
            .map_err(failed("bring the schema up to date of"))?;
        if found > schema::VERSION {
            return Err(Error::NewerSchema { at, found, known: schema::VERSION });
        }
        let held = within(CONNECT_PATIENCE, take_over(&mut session, &owner))
            .await
            .map_err(failed("become the writer of"))?;
        let Held { epoch, commits, .. } = held;
        Ok(Fenced {
            server,
            at,
            owner,
            session: Some(session),
            epoch,
            number: commits,
            committed: commits,
            pending: None,
        })
    }

    async fn apply(&mut self) -> Result<(), Error> {
        let unanswered = || Error::Unanswered { at: self.at.clone() };
        let Some(pending) = &mut self.pending else { return Ok(()) };
        let Some(mut session) = self.session.take() else { return Err(unanswered()) };
        pending.attempts += 1;
        let committed =
            within(COMMIT_PATIENCE, session.commit(self.epoch, pending.number, &pending.batch)).await;
        match committed {
            Ok(true) => {
                self.session = Some(session);
                self.committed = pending.number;
                self.pending = None;
                Ok(())
            }
            // Another's epoch, or one of our own that came late: who the owner is will tell.
            Ok(false) => Err(unanswered()),
            // The connection may be amid a transaction: it is not used again, and its end is the transaction's.
            Err(error) if S::refusal(&error) == Refusal::Final => {
                self.pending = None;
                Err(failure::<S>(&self.at, "write")(error))
            }
            Err(error) => {
                tracing::warn!(%error, "a commit was not answered by {}", self.at);
                Err(unanswered())
            }
        }
    }

    /// What the number of the last commit tells.
    fn settle(&mut self, commits: i64) -> Result<(), Error> {
        let at = self.at.clone();
        match &self.pending {
            Some(pending) if pending.number == commits => {
                self.committed = commits;
                self.pending = None;
                Ok(())
            }
            _ if commits != self.committed => Err(Error::WentBack { at }),
            Some(pending) if pending.attempts >= ATTEMPTS_MAX => {
                self.pending = None;
                Err(Error::GivenUp { at, attempts: ATTEMPTS_MAX })
            }
            _ => Ok(()),
        }
    }

    /// A new connection, with a new epoch if the owner is still who we are.
    async fn retake(&mut self) -> Result<(S, Held), Error> {
        self.session = None;
        let failed = |error: sqlx::Error| {
            tracing::debug!(%error, "{} is away", self.at);
            Error::Unanswered { at: self.at.clone() }
        };
        let mut session = within(CONNECT_PATIENCE, S::connect(&self.server)).await.map_err(failed)?;
        let held = within(COMMIT_PATIENCE, async {
            let before = session.holder().await?.ok_or(sqlx::Error::RowNotFound)?;
            if before.owner == self.owner && !session.raise(&self.owner, Some(before.epoch)).await? {
                // Somebody was faster: looked at once more.
                return Err(sqlx::Error::RowNotFound);
            }
            session.holder().await?.ok_or(sqlx::Error::RowNotFound)
        });
        let held = held.await.map_err(failed)?;
        Ok((session, held))
    }
}

#[async_trait]
impl<S: Session> Rows for Fenced<S> {
    fn at(&self) -> String {
        self.at.clone()
    }

    fn may_be_away(&self) -> bool {
        true
    }

    async fn load(&mut self) -> Result<Contents, Error> {
        let session = self.session.as_mut().ok_or(Error::Unanswered { at: self.at.clone() })?;
        within(LOAD_PATIENCE, session.load()).await.map_err(failure::<S>(&self.at, "read"))
    }

    async fn commit(&mut self, writes: Vec<Write>) -> Result<(), Error> {
        self.number += 1;
        self.pending = Some(Pending { number: self.number, batch: Batch::of(writes), attempts: 0 });
        self.apply().await
    }

    async fn check(&mut self) -> Result<(), Error> {
        let unanswered = || Error::Unanswered { at: self.at.clone() };
        let Some(mut session) = self.session.take() else { return Err(unanswered()) };
        match within(COMMIT_PATIENCE, session.holder()).await {
            Ok(Some(held)) if held.epoch == self.epoch => {
                self.session = Some(session);
                Ok(())
            }
            _ => Err(unanswered()),
        }
    }

    async fn resume(&mut self) -> Result<(), Error> {
        let (session, held) = self.retake().await?;
        if held.owner != self.owner {
            return Err(Error::Fenced { at: self.at.clone(), owner: held.owner });
        }
        self.epoch = held.epoch;
        self.settle(held.commits)?;
        self.session = Some(session);
        self.apply().await
    }

    async fn close(self: Box<Self>) -> Result<(), Error> {
        let Some(session) = self.session else { return Ok(()) };
        // Nothing is under way: a server that does not say goodbye loses nothing of ours.
        let _ = timeout(CLOSE_PATIENCE, session.close()).await;
        Ok(())
    }
}

/// Tried again when another start was faster: the last one to start is the writer.
async fn take_over<S: Session>(session: &mut S, owner: &str) -> Result<Held, sqlx::Error> {
    loop {
        let before = session.holder().await?;
        if session.raise(owner, before.map(|held| held.epoch)).await? {
            let held = session.holder().await?.ok_or(sqlx::Error::RowNotFound)?;
            if held.owner == owner {
                return Ok(held);
            }
        }
    }
}

async fn within<T>(
    patience: Duration,
    work: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, sqlx::Error> {
    let late = || {
        let text = format!("no answer within {} s", patience.as_secs());
        sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, text))
    };
    timeout(patience, work).await.unwrap_or_else(|_| Err(late()))
}

fn failure<S: Session>(at: &str, act: &'static str) -> impl Fn(sqlx::Error) -> Error {
    let at = at.to_string();
    move |source| {
        let advice = S::advice(&source).map(|advice| format!(" ({advice})")).unwrap_or_default();
        Error::Server { act, at: at.clone(), why: format!("{source}{advice}") }
    }
}
