//! Stories about the file: restarts, kills, and files that cannot be used.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::world::{World, key, lrp, on, started, task_definition};
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

async fn refusal(world: &World, database: &std::path::Path) -> String {
    let (listen, _) = Listen::loopback().unwrap();
    let run = bbs::run(world.config(listen, database), CancellationToken::new());
    let ended = tokio::time::timeout(Duration::from_secs(20), run).await.expect("refused in time");
    ended.expect_err("refused").to_string()
}

#[tokio::test]
async fn a_second_bbs_on_the_same_file_is_refused() {
    let world = World::new().await;
    let path = world.database();
    let expected = format!("the database file {} is in use by another process", path.display());
    assert_eq!(refusal(&world, &path).await, expected);
    world.bbs().desire_lrp(&lrp("app", 1)).await.unwrap();
}

#[tokio::test]
async fn a_file_that_is_no_database_is_refused_and_left_as_it_is() {
    let world = World::new().await;
    let path = world.database().with_file_name("list.txt");
    std::fs::write(&path, "milk, eggs, bread\n".repeat(1000)).unwrap();
    assert!(
        refusal(&world, &path).await.starts_with(&format!("the database file {} is corrupt", path.display()))
    );
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "milk, eggs, bread\n".repeat(1000));
}

const DATABASE: &str = "BBS_TEST_DATABASE";

/// Not a test of its own: what the next one runs in a process that it can kill.
#[tokio::test]
async fn serve_for_the_test_that_kills() {
    let Ok(database) = std::env::var(DATABASE) else { return };
    let world = World::new().await;
    let (listen, address) = Listen::loopback().unwrap();
    println!("listening {address}");
    bbs::run(world.config(listen, database.as_ref()), CancellationToken::new()).await.unwrap();
}

/// A BBS in a process of its own, and its URL.
fn child(database: &std::path::Path) -> (Child, String) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "durability::serve_for_the_test_that_kills", "--nocapture"])
        .env(DATABASE, database)
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
    let database = folder.path().join("killed.db");
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
