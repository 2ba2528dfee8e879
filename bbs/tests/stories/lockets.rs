//! Stories about Lockets that share a database.

use std::time::Duration;

use bbs::Location;
use bbs::locket::{Locket, Refusal};
use bbs_models::{CellCapacity, CellPresence, LockKind, Resource};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::servers::{self, Server};
use crate::world::eventually;

const TTL: Duration = Duration::from_secs(600);
const SHORT: Duration = Duration::from_secs(1);

fn lock_of(key: &str, owner: &str) -> Resource {
    Resource { key: key.into(), owner: owner.into(), value: "v".into(), kind: LockKind::Lock }
}

async fn locket(database: &Location) -> (Locket, DropGuard) {
    let shutdown = CancellationToken::new();
    let (locket, owner) = Locket::open(Some(database.clone()), shutdown.clone()).await.unwrap();
    tokio::spawn(owner);
    (locket, shutdown.drop_guard())
}

#[tokio::test]
async fn lockets_of_one_database_grant_each_key_once() {
    let Some(server) = servers::shared() else { return };
    let database = server.database().await;
    let lockets = tokio::join!(locket(&database), locket(&database), locket(&database));
    let lockets = [lockets.0, lockets.1, lockets.2];
    for round in 0..20 {
        let mut asked = Vec::new();
        for number in 0..12 {
            let (locket, key) = (lockets[number % 3].0.clone(), format!("key-{round}"));
            asked.push(tokio::spawn(
                async move { locket.lock(lock_of(&key, &number.to_string()), TTL).await },
            ));
        }
        let mut granted = 0;
        for asked in asked {
            match asked.await.unwrap() {
                Ok(()) => granted += 1,
                refused => assert_eq!(refused, Err(Refusal::Collision)),
            }
        }
        assert_eq!(granted, 1, "round {round}");
    }
    let all = lockets[1].0.fetch_all(LockKind::Lock).await.unwrap();
    assert_eq!(all.len(), 20);
    let held = all.first().unwrap();
    assert_eq!(lockets[2].0.lock(held.clone(), TTL).await, Ok(()), "renewed at another Locket");
    assert_eq!(lockets[0].0.release(&held.key, "stranger").await, Err(Refusal::Collision));
    assert_eq!(lockets[0].0.release(&held.key, &held.owner).await, Ok(()));
    assert_eq!(lockets[0].0.release(&held.key, &held.owner).await, Ok(()));
    assert_eq!(lockets[1].0.fetch(&held.key).await, Err(Refusal::NotFound));
    assert_eq!(lockets[1].0.lock(lock_of("k", "o"), Duration::ZERO).await, Err(Refusal::InvalidTtl));
    assert_eq!(lockets[1].0.lock(lock_of("k", ""), TTL).await, Err(Refusal::InvalidOwner));
}

#[tokio::test]
async fn a_key_expires_though_the_locket_that_granted_it_is_gone_and_a_renewed_one_does_not() {
    let Some(server) = servers::shared() else { return };
    let database = server.database().await;
    let (first, ends) = locket(&database).await;
    let cell = CellPresence {
        cell_id: "cell-1".into(),
        rep_address: "http://r".into(),
        capacity: CellCapacity { memory_mb: 1, disk_mb: 1, containers: 1 },
        ..CellPresence::default()
    };
    first.lock(cell.to_resource("owner").unwrap(), SHORT).await.unwrap();
    first.lock(lock_of("renewed", "one"), TTL).await.unwrap();
    first.lock(lock_of("left", "one"), SHORT).await.unwrap();
    drop(ends);
    let (second, _ends) = locket(&database).await;
    let cells = second.cells();
    eventually("the key is free", async || second.lock(lock_of("left", "two"), TTL).await.is_ok()).await;
    eventually("the cell is gone", async || cells.borrow().is_empty()).await;
    assert_eq!(second.lock(lock_of("renewed", "two"), TTL).await, Err(Refusal::Collision));
}

#[tokio::test]
async fn a_locket_whose_database_was_away_goes_on_and_keeps_what_was_held() {
    let Some(server) = Server::start(crate::DATABASE) else { return };
    let database = server.database().await;
    let (locket, _ends) = locket(&database).await;
    locket.lock(lock_of("bbs", "one"), TTL).await.unwrap();
    server.kill();
    assert!(matches!(locket.lock(lock_of("bbs", "one"), TTL).await, Err(Refusal::Store(_))));
    server.begin();
    eventually("it goes on", async || locket.lock(lock_of("bbs", "one"), TTL).await.is_ok()).await;
    assert_eq!(locket.lock(lock_of("bbs", "two"), TTL).await, Err(Refusal::Collision));
}

#[tokio::test]
async fn a_locket_whose_table_is_gone_ends_for_nobody_knows_any_more_who_holds_what() {
    let Some(server) = servers::shared() else { return };
    let database = server.database().await;
    let (locket, owner) = Locket::open(Some(database.clone()), CancellationToken::new()).await.unwrap();
    let owner = tokio::spawn(owner);
    locket.lock(lock_of("bbs", "one"), TTL).await.unwrap();
    server.execute(Some(&database), "DROP TABLE locks").await;
    owner.await.unwrap();
    assert!(matches!(locket.lock(lock_of("bbs", "one"), TTL).await, Err(Refusal::Store(_))));
    let (next, _ends) = self::locket(&database).await;
    next.lock(lock_of("bbs", "two"), TTL).await.unwrap();
}
