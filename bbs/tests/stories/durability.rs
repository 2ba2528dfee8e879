//! Stories about what outlives a BBS.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::servers;
use crate::world::{World, key, lrp, on, started, task_definition};
use bbs::Location;
use bbs_client::BbsClient;
use diego_base::serve::Listen;
use tokio_util::sync::CancellationToken;

#[tokio::test]
async fn a_restarted_bbs_knows_all_that_it_knew() {
    let mut world = World::new().await;
    world.set_cells(&["cell-1"]);
    world.bbs().upsert_domain("tests", None).await.unwrap();
    world.bbs().desire_lrp(&lrp("app", 2)).await.unwrap();
    world.bbs().claim_actual_lrp(&key("app", 0), &on("cell-1", "i-0")).await.unwrap();
    world.bbs().start_actual_lrp(&key("app", 0), &on("cell-1", "i-0"), &started()).await.unwrap();
    world.bbs().desire_task("t", "tests", &task_definition()).await.unwrap();
    let desired = world.bbs().desired_lrp_by_process_guid("app").await.unwrap();
    let (lrps, task) = (world.lrps("app").await, world.bbs().task_by_guid("t").await.unwrap());
    world.stop().await;
    world.start().await;
    assert_eq!(world.lrps("app").await, lrps);
    assert_eq!(world.bbs().desired_lrp_by_process_guid("app").await.unwrap(), desired);
    assert_eq!(world.bbs().task_by_guid("t").await.unwrap(), task);
    assert_eq!(world.bbs().domains().await.unwrap(), ["tests"]);
}

/// What a BBS with these keys says when it starts; it is stopped if it starts.
async fn start_with(world: &mut World, keys: &[&'static str]) -> Result<(), String> {
    world.keys = keys.to_vec();
    let (listen, address) = Listen::loopback().unwrap();
    let shutdown = CancellationToken::new();
    let ended = tokio::spawn(bbs::run(world.config(listen, world.database()), shutdown.clone()));
    let client = BbsClient::new(&format!("http://{address}"), &Default::default()).unwrap();
    crate::world::eventually("it answers or ends", async || {
        ended.is_finished() || client.ping().await.is_ok()
    })
    .await;
    shutdown.cancel();
    ended.await.unwrap().map_err(|error| error.to_string())
}

#[tokio::test]
async fn a_key_can_be_taken_out_of_use_once_all_is_sealed_with_its_successor() {
    let mut world = World::new().await;
    world.bbs().desire_lrp(&lrp("before-keys", 2)).await.unwrap();
    world.stop().await;
    world.keys = vec!["old"];
    world.start().await;
    world.bbs().desire_lrp(&lrp("app", 2)).await.unwrap();
    world.bbs().desire_task("t", "tests", &task_definition()).await.unwrap();
    world.stop().await;
    for keys in [&[][..], &["new"]] {
        let refused = start_with(&mut world, keys).await.unwrap_err();
        assert!(
            refused.contains("is sealed with the key \"old\", which is not among the known keys"),
            "{refused}"
        );
    }
    world.keys = vec!["new", "old"];
    world.start().await;
    let mut tries = 0;
    loop {
        world.stop().await;
        let Err(refused) = start_with(&mut world, &["new"]).await else { break };
        // Not done yet: it goes on where it was.
        assert!(refused.contains("\"old\"") && tries < 100, "{refused}");
        tries += 1;
        world.keys = vec!["new", "old"];
        world.start().await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    world.keys = vec!["new"];
    world.start().await;
    for guid in ["before-keys", "app"] {
        assert!(world.bbs().desired_lrp_by_process_guid(guid).await.is_ok());
        assert_eq!(world.lrps(guid).await.len(), 2);
    }
    assert!(world.bbs().task_by_guid("t").await.is_ok());
}

const DATABASE: &str = "BBS_TEST_DATABASE";

/// Not a test of its own: what the next one runs in a process that it can kill.
#[tokio::test]
async fn serve_for_the_test_that_kills() {
    let Ok(database) = std::env::var(DATABASE) else { return };
    let world = World::idle(Duration::from_millis(50), database.parse().unwrap());
    let (listen, address) = Listen::loopback().unwrap();
    println!("listening {address}");
    bbs::run(world.config(listen, world.database()), CancellationToken::new()).await.unwrap();
}

/// A BBS in a process of its own, and its URL.
fn child(database: &Location) -> (Child, String) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "durability::serve_for_the_test_that_kills", "--nocapture"])
        .env(DATABASE, database.to_secret_url())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let address = lines
        .map_while(Result::ok)
        .find_map(|line| line.split_once("listening ").map(|(_, address)| address.to_string()));
    (child, format!("http://{}", address.expect("an address")))
}

#[tokio::test]
async fn a_kill_loses_nothing_that_was_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let database = match servers::shared() {
        Some(server) => server.database().await,
        None => folder.path().join("killed.db").into(),
    };
    let mut acknowledged: Vec<String> = Vec::new();
    for round in 0..3 {
        let (mut process, url) = child(&database);
        let client = BbsClient::new(&url, &Default::default()).unwrap();
        crate::world::eventually("the child answers", async || client.ping().await.is_ok()).await;
        for guid in &acknowledged {
            assert!(client.desired_lrp_by_process_guid(guid).await.is_ok(), "{guid} is lost");
        }
        let (told, mut guids) = tokio::sync::mpsc::unbounded_channel();
        let clients: Vec<_> = (0..8)
            .map(|number| tokio::spawn(desire_until_killed(client.clone(), round, number, told.clone())))
            .collect();
        drop(told);
        for _ in 0..50 {
            acknowledged.push(guids.recv().await.expect("an acknowledgement"));
        }
        process.kill().unwrap();
        process.wait().unwrap();
        for client in clients {
            client.abort();
        }
        while let Ok(guid) = guids.try_recv() {
            acknowledged.push(guid);
        }
    }
    let (mut process, url) = child(&database);
    let client = BbsClient::new(&url, &Default::default()).unwrap();
    crate::world::eventually("the child answers", async || client.ping().await.is_ok()).await;
    for guid in &acknowledged {
        let lrp = client.desired_lrp_by_process_guid(guid).await;
        assert!(lrp.is_ok(), "{guid} was acknowledged and is lost");
        let instances = client.actual_lrps_by_process_guids(std::slice::from_ref(guid)).await.unwrap();
        assert_eq!(instances.len(), 3, "{guid} was saved together with its instances");
    }
    process.kill().unwrap();
    process.wait().unwrap();
}

async fn desire_until_killed(
    client: BbsClient,
    round: u32,
    number: u32,
    told: tokio::sync::mpsc::UnboundedSender<String>,
) {
    for count in 0.. {
        let guid = format!("app-{round}-{number}-{count}");
        if client.desire_lrp(&lrp(&guid, 3)).await.is_err() || told.send(guid).is_err() {
            return;
        }
    }
}
