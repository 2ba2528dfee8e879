//! Stories about servers that go away, and about BBSes that believe they are the one.

use std::time::Duration;

use bbs_client::BbsClient;
use diego_base::serve::Listen;
use tokio_util::sync::CancellationToken;

use crate::servers::{self, Server};
use crate::world::{World, eventually, key, lrp, on};

/// A BBS beside that of `world`, on the same database, as if it had got the lock.
async fn rival(world: &World) -> (BbsClient, CancellationToken) {
    let (listen, address) = Listen::loopback().unwrap();
    let shutdown = CancellationToken::new();
    tokio::spawn(bbs::run(world.config(listen, world.database()), shutdown.clone()));
    let client = BbsClient::new(&format!("http://{address}"), &Default::default()).unwrap();
    eventually("the rival answers", async || client.ping().await.is_ok()).await;
    (client, shutdown)
}

#[tokio::test]
async fn a_bbs_whose_place_another_took_writes_nothing_and_ends() {
    if servers::shared().is_none() {
        return;
    }
    let mut world = World::new().await;
    world.bbs().desire_lrp(&lrp("before", 1)).await.unwrap();
    let (rival, shutdown) = rival(&world).await;
    assert!(rival.desired_lrp_by_process_guid("before").await.is_ok());
    rival.desire_lrp(&lrp("rival", 1)).await.unwrap();
    let refused = world.bbs().desire_lrp(&lrp("too-late", 1)).await.unwrap_err().to_string();
    assert!(refused.contains("is written by another BBS now"), "{refused}");
    let ended = world.ended().await.unwrap_err().to_string();
    assert!(ended.contains("this one may write no more"), "{ended}");
    let claimed = rival.claim_actual_lrp(&key("rival", 0), &on("cell-1", "i")).await;
    assert!(claimed.is_ok(), "the one that is left goes on: {claimed:?}");
    shutdown.cancel();
    world.start().await;
    assert!(world.bbs().desired_lrp_by_process_guid("rival").await.is_ok());
    assert!(world.bbs().desired_lrp_by_process_guid("too-late").await.is_err());
}

#[tokio::test]
async fn a_bbs_with_nothing_to_write_notices_that_its_place_is_taken() {
    if servers::shared().is_none() {
        return;
    }
    let mut world = World::with_convergence_every(Duration::from_secs(3600)).await;
    let (_rival, _shutdown) = rival(&world).await;
    assert!(world.ended().await.unwrap_err().to_string().contains("this one may write no more"));
}

/// Sixteen clients, all of whose acknowledged writes are there in the end.
async fn write_while(world: &World, disturb: impl AsyncFnOnce()) -> (Vec<String>, usize) {
    let stop = CancellationToken::new();
    let writers: Vec<_> = (0..16)
        .map(|number| {
            let (client, stop) = (world.bbs().clone(), stop.clone());
            tokio::spawn(async move {
                let (mut acknowledged, mut refused) = (Vec::new(), 0);
                for count in 0.. {
                    if stop.is_cancelled() {
                        break;
                    }
                    let guid = format!("app-{number}-{count}");
                    match client.desire_lrp(&lrp(&guid, 2)).await {
                        Ok(()) => acknowledged.push(guid),
                        Err(_) => refused += 1,
                    }
                }
                (acknowledged, refused)
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(300)).await;
    disturb().await;
    eventually("writes are taken again", async || {
        let guid = format!("after-{}", uuid::Uuid::new_v4());
        world.bbs().desire_lrp(&lrp(&guid, 1)).await.is_ok()
    })
    .await;
    stop.cancel();
    let (mut acknowledged, mut refused) = (Vec::new(), 0);
    for writer in writers {
        let (mut guids, errors) = writer.await.unwrap();
        acknowledged.append(&mut guids);
        refused += errors;
    }
    (acknowledged, refused)
}

async fn all_there(world: &World, guids: &[String]) {
    let lrps = world.bbs().desired_lrps(&Default::default()).await.unwrap();
    let known: std::collections::HashSet<&str> = lrps.iter().map(|lrp| lrp.process_guid.as_str()).collect();
    let lost: Vec<_> = guids.iter().filter(|guid| !known.contains(guid.as_str())).collect();
    assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
}

#[tokio::test]
async fn a_database_that_is_killed_amid_writes_loses_nothing_and_goes_on() {
    let Some(server) = Server::start(crate::DATABASE) else { return };
    let mut world = World::on(server.database().await).await;
    let (acknowledged, _) = write_while(&world, async || {
        server.kill();
        let read = world.bbs().desired_lrps(&Default::default()).await;
        assert!(read.is_ok(), "reads go on without it: {read:?}");
        server.begin();
    })
    .await;
    assert!(acknowledged.len() > 16, "{}", acknowledged.len());
    all_there(&world, &acknowledged).await;
    let before = world.bbs().desired_lrps(&Default::default()).await.unwrap().len();
    world.stop().await;
    world.start().await;
    all_there(&world, &acknowledged).await;
    let after = world.bbs().desired_lrps(&Default::default()).await.unwrap().len();
    assert_eq!(after, before, "memory had what the database has");
}

#[tokio::test]
async fn a_database_that_stalls_is_told_of_in_time_and_waited_for() {
    let Some(server) = Server::start(crate::DATABASE) else { return };
    let mut world = World::on(server.database().await).await;
    world.bbs().desire_lrp(&lrp("before", 1)).await.unwrap();
    let (acknowledged, refused) = write_while(&world, async || {
        server.signal("STOP");
        let asked = std::time::Instant::now();
        let refused = world.bbs().desire_lrp(&lrp("stalled", 1)).await.unwrap_err().to_string();
        assert!(refused.contains("does not answer"), "{refused}");
        assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
        assert!(world.bbs().desired_lrp_by_process_guid("before").await.is_ok(), "reads go on");
        server.signal("CONT");
    })
    .await;
    assert!(refused > 0);
    all_there(&world, &acknowledged).await;
    let before = world.bbs().desired_lrps(&Default::default()).await.unwrap().len();
    world.stop().await;
    world.start().await;
    let after = world.bbs().desired_lrps(&Default::default()).await.unwrap().len();
    assert_eq!(after, before, "memory had what the database has");
}

#[tokio::test]
async fn a_connection_that_an_administrator_ends_is_made_anew() {
    let Some(server) = Server::start(crate::DATABASE) else { return };
    let mut world = World::on(server.database().await).await;
    for round in 0..3 {
        server.end_connections(world.database()).await;
        world.bbs().desire_lrp(&lrp(&format!("app-{round}"), 1)).await.unwrap();
    }
    world.stop().await;
}

#[tokio::test]
async fn a_bbs_stops_though_its_database_is_away() {
    let Some(server) = Server::start(crate::DATABASE) else { return };
    let mut world = World::on(server.database().await).await;
    server.kill();
    assert!(world.bbs().desire_lrp(&lrp("app", 1)).await.is_err());
    let ended = world.stopped().await;
    assert!(ended.is_err(), "it says that something may not be written: {ended:?}");
}

#[tokio::test]
async fn a_newer_schema_is_refused() {
    let Some(server) = servers::shared() else { return };
    let mut world = World::new().await;
    world.stop().await;
    server.execute(Some(world.database()), "INSERT INTO schema_version (version) VALUES (99)").await;
    let (listen, _) = Listen::loopback().unwrap();
    let refused =
        bbs::run(world.config(listen, world.database()), CancellationToken::new()).await.unwrap_err();
    assert!(refused.to_string().contains("has schema version 99, newer than version"), "{refused}");
}

#[tokio::test]
async fn two_that_start_together_make_one_schema_and_one_of_them_stays() {
    let Some(server) = servers::shared() else { return };
    let world = World::idle(Duration::from_millis(50), server.database().await);
    let database = world.database().clone();
    let start = || {
        let (listen, address) = Listen::loopback().unwrap();
        let ended = tokio::spawn(bbs::run(world.config(listen, &database), CancellationToken::new()));
        (BbsClient::new(&format!("http://{address}"), &Default::default()).unwrap(), ended)
    };
    let both = [start(), start()];
    eventually("one has ended and the other serves", async || {
        let ended = both.iter().filter(|(_, ended)| ended.is_finished()).count();
        let mut serving = 0;
        for (client, _) in &both {
            serving += usize::from(client.upsert_domain("d", None).await.is_ok());
        }
        (ended, serving) == (1, 1)
    })
    .await;
}

#[tokio::test]
async fn keys_are_the_same_only_if_they_are_written_the_same() {
    if servers::shared().is_none() {
        return;
    }
    let mut world = World::new().await;
    let names = ["d", "D", "d ", "é", "e\u{301}", "d'; DROP TABLE domains; --", "\\"];
    for name in names {
        world.bbs().upsert_domain(name, None).await.unwrap();
    }
    world.bbs().desire_lrp(&lrp("app", 1)).await.unwrap();
    world.bbs().desire_lrp(&lrp("APP", 1)).await.unwrap();
    world.stop().await;
    world.start().await;
    let domains = world.bbs().domains().await.unwrap();
    assert_eq!(domains.iter().map(String::as_str).collect::<std::collections::HashSet<_>>(), names.into());
    assert_eq!(world.bbs().desired_lrps(&Default::default()).await.unwrap().len(), 2);
}

#[tokio::test]
async fn a_record_larger_than_64_kib_is_kept_whole() {
    if servers::shared().is_none() {
        return;
    }
    let mut world = World::new().await;
    let mut large = lrp("app", 1);
    large.annotation = "a".repeat(9_000);
    let variable = |number| bbs_models::EnvironmentVariable {
        name: format!("V{number}"),
        value: "0123456789abcdef".repeat(64),
    };
    large.environment_variables = (0..2000).map(variable).collect();
    world.bbs().desire_lrp(&large).await.unwrap();
    world.stop().await;
    world.start().await;
    let kept = world.bbs().desired_lrp_by_process_guid("app").await.unwrap();
    assert_eq!(kept.environment_variables, large.environment_variables);
}
