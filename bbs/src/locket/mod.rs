//! Locket: locks with a time to live, and presences, which are locks whose value tells who is there.
//!
//! One task owns the table; calls are commands to it and are granted in the order they come. A granted change is in
//! the database before it is acknowledged. It knows no cell but by the JSON of its presence, and contacts nobody.

mod service;
mod shared;
mod store;
mod table;
mod witness;

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bbs_models::{CellPresence, LockKind, Resource};
use diego_base::serve::{Listen, Listener, serve};
use diego_base::tls::ServerTls;
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::store::Location;
pub use store::StoreError;
pub use table::{KEY_BYTES_MAX, LOCKS_MAX, OWNER_BYTES_MAX, Refusal, TTL_MAX, VALUE_BYTES_MAX};
pub use witness::{Call, Ended, Nobody, Witness};

use shared::Shared;
use store::LockStore;
use table::{Granted, Held, Table};

/// Calls that wait for the table's owner; further callers wait to ask.
const COMMANDS_QUEUED_MAX: usize = 1024;
/// Changes a slow subscriber may be behind before it loses the oldest.
pub const CHANGES_BEHIND_MAX: usize = 1024;
/// An expiry that could not be written is tried again after so long; until then the key stays held.
const EXPIRY_RETRY: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("nobody keeps the locks any more")]
    Lost,
    #[error(transparent)]
    Listen(#[from] diego_base::serve::Error),
}

/// What became of a key. Renewals that change nothing are not told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    Acquired(Resource),
    /// The same owner, another value or time to live.
    Changed(Resource),
    Released(Resource),
    Expired(Resource),
}

pub struct Config {
    pub listen: Listen,
    pub tls: Option<ServerTls>,
}

/// Serves gRPC until `shutdown`. The locks stay, for [`Locket`] outlives its server.
pub async fn run(config: Config, locket: Locket, shutdown: CancellationToken) -> Result<(), Error> {
    let listener = Listener::bind(config.listen).await?;
    tracing::info!("locket.started");
    serve(listener, service::router(locket), config.tls, shutdown).await;
    tracing::info!("locket.exited");
    Ok(())
}

enum Command {
    Lock {
        resource: Resource,
        ttl: Duration,
        uuid: Option<String>,
        granted: oneshot::Sender<Result<(), Refusal>>,
    },
    Release {
        key: String,
        owner: String,
        released: oneshot::Sender<Result<(), Refusal>>,
    },
    Fetch {
        key: String,
        found: oneshot::Sender<Result<Resource, Refusal>>,
    },
    FetchAll {
        kind: LockKind,
        found: oneshot::Sender<Result<Vec<Resource>, Refusal>>,
    },
}

/// A handle to the table; clones are handles to the same.
#[derive(Clone)]
pub struct Locket {
    commands: mpsc::Sender<Command>,
    changes: broadcast::Sender<Change>,
    cells: watch::Receiver<Vec<CellPresence>>,
    witness: Arc<dyn Witness>,
}

impl Locket {
    /// With a database, a file or one that several Lockets share, or in memory only. The future is the table's owner: it
    /// must run for calls to be answered, and ends after `shutdown` or when every handle is gone.
    pub async fn open(
        database: Option<impl Into<Location>>,
        shutdown: CancellationToken,
    ) -> Result<(Locket, Pin<Box<dyn Future<Output = ()> + Send>>), Error> {
        Locket::open_watched(database, Arc::new(Nobody), shutdown).await
    }

    /// The same, measured.
    pub async fn open_watched(
        database: Option<impl Into<Location>>,
        witness: Arc<dyn Witness>,
        shutdown: CancellationToken,
    ) -> Result<(Locket, Pin<Box<dyn Future<Output = ()> + Send>>), Error> {
        let (commands, queue) = mpsc::channel(COMMANDS_QUEUED_MAX);
        let (changes, _) = broadcast::channel(CHANGES_BEHIND_MAX);
        let (cells, known_cells) = watch::channel(Vec::new());
        let locket =
            Locket { commands, changes: changes.clone(), cells: known_cells, witness: witness.clone() };
        let mut store = match database.map(Into::into) {
            None => LockStore::Memory,
            Some(Location::Sqlite(path)) => LockStore::open(&path, witness.clone()).await?,
            Some(location) => {
                let shared = Shared::open(location, queue, changes, cells, witness).await?;
                return Ok((locket, Box::pin(shared.run(shutdown))));
            }
        };
        let table = Table::restored(store.load().await?, now());
        cells.send_replace(present_cells(&table));
        let owner = Owner { table, store, queue, changes, cells, witness };
        owner.tell(LockKind::Lock);
        owner.tell(LockKind::Presence);
        Ok((locket, Box::pin(owner.run(shutdown))))
    }

    /// Takes a key, or renews it for its owner.
    pub async fn lock(&self, resource: Resource, ttl: Duration) -> Result<(), Refusal> {
        self.lock_as(resource, ttl, None).await
    }

    /// The same; what is logged of it says by which of its owner's requests.
    pub async fn lock_as(
        &self,
        resource: Resource,
        ttl: Duration,
        uuid: Option<String>,
    ) -> Result<(), Refusal> {
        let (granted, answer) = oneshot::channel();
        self.ask(Command::Lock { resource, ttl, uuid, granted }, answer).await?
    }

    /// Gives a key up; nothing happens if nobody holds it.
    pub async fn release(&self, key: &str, owner: &str) -> Result<(), Refusal> {
        let (released, answer) = oneshot::channel();
        self.ask(Command::Release { key: key.into(), owner: owner.into(), released }, answer).await?
    }

    pub async fn fetch(&self, key: &str) -> Result<Resource, Refusal> {
        let (found, answer) = oneshot::channel();
        self.ask(Command::Fetch { key: key.into(), found }, answer).await?
    }

    pub async fn fetch_all(&self, kind: LockKind) -> Result<Vec<Resource>, Refusal> {
        let (found, answer) = oneshot::channel();
        self.ask(Command::FetchAll { kind, found }, answer).await?
    }

    /// What becomes of keys from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<Change> {
        self.changes.subscribe()
    }

    /// The cells whose presence is kept, always as of now.
    pub fn cells(&self) -> watch::Receiver<Vec<CellPresence>> {
        self.cells.clone()
    }

    async fn ask<T>(&self, command: Command, answer: oneshot::Receiver<T>) -> Result<T, Refusal> {
        let gone = || Refusal::Store("Locket is shutting down".to_string());
        self.commands.send(command).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())
    }
}

/// tokio's clock, so that tests can move it.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

fn present_cells(table: &Table) -> Vec<CellPresence> {
    table.fetch_all(LockKind::Presence).iter().filter_map(CellPresence::of_resource).collect()
}

struct Owner {
    table: Table,
    store: LockStore,
    queue: mpsc::Receiver<Command>,
    changes: broadcast::Sender<Change>,
    cells: watch::Sender<Vec<CellPresence>>,
    witness: Arc<dyn Witness>,
}

impl Owner {
    async fn run(mut self, shutdown: CancellationToken) {
        let mut not_before = now();
        loop {
            let expiry = self.table.next_expiry().map(|at| at.max(not_before));
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                // Before expiries: a renewal that has arrived in time counts, however long it waited for us.
                command = self.queue.recv() => match command {
                    Some(command) => self.carry_out(command).await,
                    None => break,
                },
                () = sleep_until(expiry) => if !self.expire().await {
                    not_before = now() + EXPIRY_RETRY;
                },
            }
        }
        if let Err(error) = self.store.close().await {
            tracing::error!(%error, "failed-closing-lock-database");
        }
    }

    /// A caller that has gone away meanwhile is not told; what it asked for holds all the same.
    async fn carry_out(&mut self, command: Command) {
        match command {
            Command::Lock { resource, ttl, uuid, granted } => {
                let _ = granted.send(self.lock(resource, ttl, uuid).await);
            }
            Command::Release { key, owner, released } => {
                let _ = released.send(self.release(&key, &owner).await);
            }
            Command::Fetch { key, found } => {
                let _ = found.send(self.table.fetch(&key));
            }
            Command::FetchAll { kind, found } => {
                let _ = found.send(Ok(self.table.fetch_all(kind)));
            }
        }
    }

    async fn lock(&mut self, resource: Resource, ttl: Duration, uuid: Option<String>) -> Result<(), Refusal> {
        let granted = self.table.check_lock(&resource, ttl)?;
        if granted != Granted::Renewed {
            self.store.put(&resource, ttl.min(TTL_MAX)).await.map_err(refused)?;
        }
        self.table.put(Held { resource: resource.clone(), ttl }, now());
        match granted {
            Granted::Renewed => {}
            Granted::Changed => self.publish(Change::Changed(resource)),
            Granted::Acquired => {
                let Resource { key, owner, .. } = &resource;
                tracing::info!(key, owner, "request-uuid" = uuid, "acquired-lock");
                self.publish(Change::Acquired(resource));
            }
        }
        Ok(())
    }

    async fn release(&mut self, key: &str, owner: &str) -> Result<(), Refusal> {
        if !self.table.check_release(key, owner)? {
            return Ok(());
        }
        self.store.drop_key(key).await.map_err(refused)?;
        if let Some(resource) = self.table.take(key) {
            tracing::info!(key, owner, "released-lock");
            self.publish(Change::Released(resource));
        }
        Ok(())
    }

    /// `false` if a key could not be dropped from the database, where it would come back to life.
    async fn expire(&mut self) -> bool {
        for key in self.table.expired(now()) {
            if let Err(error) = self.store.drop_key(&key).await {
                tracing::error!(key, %error, "failed-to-expire-lock");
                return false;
            }
            if let Some(resource) = self.table.take(&key) {
                tracing::info!(key, owner = resource.owner, "lock-expired");
                self.witness.expired(resource.kind);
                self.publish(Change::Expired(resource));
            }
        }
        true
    }

    fn tell(&self, kind: LockKind) {
        self.witness.holds(kind, self.table.count(kind));
    }

    fn publish(&self, change: Change) {
        let (Change::Acquired(resource)
        | Change::Changed(resource)
        | Change::Released(resource)
        | Change::Expired(resource)) = &change;
        self.tell(resource.kind);
        if resource.kind == LockKind::Presence {
            self.cells.send_replace(present_cells(&self.table));
        }
        // No subscriber is no error.
        let _ = self.changes.send(change);
    }
}

fn refused(error: StoreError) -> Refusal {
    tracing::error!(%error, "failed-to-write-lock");
    Refusal::Store(error.to_string())
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
