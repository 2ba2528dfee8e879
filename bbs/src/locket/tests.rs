//! Locket as its clients see it: over gRPC where the wire matters, in process where time does.

use bbs_client::{ClientConfig, Hold, LocketClient, LocketError};
use bbs_models::{CellCapacity, CellPresence};
use diego_base::serve::Listen;
use tokio_util::sync::DropGuard;

use std::path::PathBuf;
use std::sync::Mutex;

use super::*;

fn lock_of(key: &str, owner: &str) -> Resource {
    Resource { key: key.into(), owner: owner.into(), value: "anything".into(), kind: LockKind::Lock }
}

fn cell(id: &str) -> CellPresence {
    let capacity = CellCapacity { memory_mb: 1024, disk_mb: 2048, containers: 10 };
    CellPresence { cell_id: id.into(), rep_address: "http://r".into(), capacity, ..CellPresence::default() }
}

async fn in_memory() -> (Locket, DropGuard) {
    opened(None).await
}

async fn opened(database: Option<PathBuf>) -> (Locket, DropGuard) {
    let shutdown = CancellationToken::new();
    let (locket, owner) = Locket::open(database, shutdown.clone()).await.unwrap();
    tokio::spawn(owner);
    (locket, shutdown.drop_guard())
}

async fn served() -> (LocketClient, Locket, [DropGuard; 2]) {
    let (locket, owner) = in_memory().await;
    serve(locket, owner)
}

fn serve(locket: Locket, owner: DropGuard) -> (LocketClient, Locket, [DropGuard; 2]) {
    let (listen, address) = Listen::loopback().unwrap();
    let shutdown = CancellationToken::new();
    tokio::spawn(run(Config { listen, tls: None }, locket.clone(), shutdown.clone()));
    let client = LocketClient::new(&address.to_string(), &ClientConfig::default()).unwrap();
    (client, locket, [owner, shutdown.drop_guard()])
}

const TTL: Duration = Duration::from_secs(15);

#[tokio::test]
async fn clients_lock_fetch_and_release() {
    let (client, _, _guards) = served().await;
    client.lock(&lock_of("bbs", "one"), TTL).await.unwrap();
    client.lock(&lock_of("bbs", "one"), TTL).await.unwrap();
    let refused = client.lock(&lock_of("bbs", "two"), TTL).await.unwrap_err();
    assert!(refused.is_collision(), "{refused:?}");
    assert_eq!(client.fetch("bbs").await.unwrap(), lock_of("bbs", "one"));
    assert_eq!(client.fetch_all(LockKind::Lock).await.unwrap(), [lock_of("bbs", "one")]);
    assert_eq!(client.fetch_all(LockKind::Presence).await.unwrap(), []);
    assert!(client.release(&lock_of("bbs", "two")).await.unwrap_err().is_collision());
    client.release(&lock_of("bbs", "one")).await.unwrap();
    client.release(&lock_of("bbs", "one")).await.unwrap();
    assert!(matches!(client.fetch("bbs").await, Err(LocketError::NotFound { .. })));
    client.lock(&lock_of("bbs", "two"), TTL).await.unwrap();
}

#[tokio::test]
async fn refusals_have_the_codes_that_clients_know() {
    for (refusal, code, text) in [
        (Refusal::Collision, tonic::Code::AlreadyExists, "lock-collision"),
        (Refusal::InvalidTtl, tonic::Code::InvalidArgument, "invalid-ttl"),
        (Refusal::InvalidOwner, tonic::Code::InvalidArgument, "invalid-owner"),
        (Refusal::InvalidType, tonic::Code::NotFound, "invalid-type"),
        (Refusal::NotFound, tonic::Code::NotFound, "resource-not-found"),
    ] {
        let status = tonic::Status::from(refusal);
        assert_eq!((status.code(), status.message()), (code, text));
    }
    let (client, _, _guards) = served().await;
    let refused = client.lock(&lock_of("bbs", ""), TTL).await.unwrap_err();
    assert!(refused.to_string().ends_with("lock bbs: invalid-owner"), "{refused}");
}

/// All that a Locket tells of itself, in words.
#[derive(Default)]
struct Told(Mutex<Vec<String>>);

impl Told {
    fn say(&self, what: String) {
        self.0.lock().unwrap().push(what);
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl Witness for Told {
    fn began(&self, call: Call) {
        self.say(format!("{call:?} began"));
    }

    fn ended(&self, call: Call, _: Duration, how: Ended) {
        self.say(format!("{call:?} ended {how:?}"));
    }

    fn asked_database(&self, _: Duration, answered: bool) {
        self.say(format!("database {answered}"));
    }

    fn holds(&self, kind: LockKind, keys: usize) {
        self.say(format!("{keys} {kind:?}"));
    }

    fn expired(&self, kind: LockKind) {
        self.say(format!("{kind:?} expired"));
    }
}

#[tokio::test]
async fn every_call_is_witnessed_to_its_end() {
    let directory = tempfile::tempdir().unwrap();
    let (told, shutdown) = (Arc::new(Told::default()), CancellationToken::new());
    let file = Some(directory.path().join("locks"));
    let (locket, owner) = Locket::open_watched(file, told.clone(), shutdown.clone()).await.unwrap();
    tokio::spawn(owner);
    let (client, locket, _guards) = serve(locket, shutdown.drop_guard());
    assert_eq!(told.take(), ["database true", "database true", "0 Lock", "0 Presence"]);
    client.lock(&lock_of("bbs", "one"), TTL).await.unwrap();
    assert_eq!(told.take(), ["Lock began", "database true", "1 Lock", "Lock ended Well"]);
    client.lock(&lock_of("bbs", "two"), TTL).await.unwrap_err();
    assert_eq!(told.take(), ["Lock began", "Lock ended Well"]);
    client.lock(&lock_of("bbs", ""), TTL).await.unwrap_err();
    assert_eq!(told.take(), ["Lock began", "Lock ended Badly"]);
    client.fetch_all(LockKind::Lock).await.unwrap();
    assert_eq!(told.take(), ["FetchAll began", "FetchAll ended Well"]);
    client.release(&lock_of("bbs", "one")).await.unwrap();
    assert_eq!(told.take(), ["Release began", "database true", "0 Lock", "Release ended Well"]);
    drop(witness::UnderWay::begin(Call::Fetch, locket.witness.clone()));
    assert_eq!(told.take(), ["Fetch began", "Fetch ended GivenUp"]);
}

#[tokio::test(start_paused = true)]
async fn an_expiry_is_witnessed() {
    let (told, shutdown) = (Arc::new(Told::default()), CancellationToken::new());
    let (locket, owner) =
        Locket::open_watched(None::<PathBuf>, told.clone(), shutdown.clone()).await.unwrap();
    tokio::spawn(owner);
    let mut changes = locket.subscribe();
    locket.lock(Resource { kind: LockKind::Presence, ..lock_of("cell", "one") }, TTL).await.unwrap();
    told.take();
    assert!(matches!(changes.recv().await, Ok(Change::Acquired(_))));
    assert!(matches!(changes.recv().await, Ok(Change::Expired(_))));
    assert_eq!(told.take(), ["Presence expired", "0 Presence"]);
}

#[tokio::test(start_paused = true)]
async fn a_key_that_is_not_renewed_expires() {
    let (locket, _guard) = in_memory().await;
    let mut changes = locket.subscribe();
    locket.lock(lock_of("bbs", "one"), TTL).await.unwrap();
    tokio::time::sleep(TTL / 2).await;
    locket.lock(lock_of("bbs", "one"), TTL).await.unwrap();
    tokio::time::sleep(TTL - Duration::from_secs(1)).await;
    assert_eq!(locket.lock(lock_of("bbs", "two"), TTL).await, Err(Refusal::Collision));
    tokio::time::sleep(Duration::from_secs(2)).await;
    locket.lock(lock_of("bbs", "two"), TTL).await.unwrap();
    assert_eq!(changes.recv().await.unwrap(), Change::Acquired(lock_of("bbs", "one")));
    assert_eq!(changes.recv().await.unwrap(), Change::Expired(lock_of("bbs", "one")));
    assert_eq!(changes.recv().await.unwrap(), Change::Acquired(lock_of("bbs", "two")));
}

#[tokio::test(start_paused = true)]
async fn the_cells_are_those_whose_presence_is_kept() {
    let (locket, _guard) = in_memory().await;
    let mut cells = locket.cells();
    let ids = |cells: &watch::Receiver<Vec<CellPresence>>| {
        cells.borrow().iter().map(|cell| cell.cell_id.clone()).collect::<Vec<_>>()
    };
    for (id, seconds) in [("b", 20), ("a", 10)] {
        let resource = cell(id).to_resource("owner").unwrap();
        locket.lock(resource, Duration::from_secs(seconds)).await.unwrap();
    }
    let stranger = Resource { kind: LockKind::Presence, ..lock_of("not-a-cell", "x") };
    locket.lock(stranger, TTL).await.unwrap();
    assert_eq!(ids(&cells), ["a", "b"]);
    cells.mark_unchanged();
    cells.changed().await.unwrap();
    assert_eq!(ids(&cells), ["b"]);
}

#[tokio::test]
async fn a_lock_outlives_the_locket_that_granted_it() {
    let folder = std::env::temp_dir().join(format!("locket-test-{}", uuid::Uuid::new_v4()));
    let file = folder.join("locket.db");
    for (owner, granted) in [("one", true), ("two", false), ("one", true)] {
        let shutdown = CancellationToken::new();
        let (locket, task) = Locket::open(Some(file.clone()), shutdown.clone()).await.unwrap();
        let task = tokio::spawn(task);
        assert_eq!(locket.lock(lock_of("bbs", owner), TTL).await.is_ok(), granted, "{owner}");
        shutdown.cancel();
        task.await.unwrap();
        assert!(matches!(locket.fetch("bbs").await, Err(Refusal::Store(_))));
    }
    std::fs::remove_dir_all(folder).unwrap();
}

#[tokio::test]
async fn a_holder_is_told_when_its_lock_is_taken_and_gives_it_back_at_its_end() {
    let (client, locket, _guards) = served().await;
    let hold = |owner: &str| Hold {
        resource: lock_of("bbs", owner),
        ttl: Duration::from_secs(5),
        renewal: Duration::from_millis(50),
    };
    let (held, mut is_held) = watch::channel(false);
    let shutdown = CancellationToken::new();
    let keeping = tokio::spawn(hold("one").keep(client.clone(), held, shutdown.clone()));
    is_held.wait_for(|held| *held).await.unwrap();
    // As if it had expired and another had been faster.
    locket.release("bbs", "one").await.unwrap();
    locket.lock(lock_of("bbs", "two"), TTL).await.unwrap();
    let lost = keeping.await.unwrap().unwrap_err();
    assert!(lost.is_collision());
    assert!(!*is_held.borrow());

    locket.release("bbs", "two").await.unwrap();
    let (held, mut is_held) = watch::channel(false);
    let keeping = tokio::spawn(hold("three").keep(client, held, shutdown.clone()));
    is_held.wait_for(|held| *held).await.unwrap();
    shutdown.cancel();
    keeping.await.unwrap().unwrap();
    assert_eq!(locket.fetch("bbs").await, Err(Refusal::NotFound));
}
