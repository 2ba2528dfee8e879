//! Locket or the BBS is away for longer than anybody waits for it: what runs goes on, nothing is lost and nothing is run
//! twice, and afterwards all is as it was.

mod world;

use std::time::Duration;

use bbs_client::{BbsClient, ClientConfig};
use bbs_models::{ActualLrp, ModificationTag, Presence, TaskOutcome};
use garden_client::memory::MemoryGarden;
use world::gate::{Gate, Passes};
use world::{Cell, TTL, Ways, World};

/// Longer than any presence lasts.
const FOR_LONG: Duration = Duration::from_secs(3);

/// How often garden was asked for something.
fn calls(cell: &Cell, what: &str) -> usize {
    cell.garden.calls().iter().filter(|call| call.starts_with(what)).count()
}

/// But for how often they were changed on the way.
fn as_they_are(lrps: &[ActualLrp]) -> Vec<ActualLrp> {
    let still = |lrp: &ActualLrp| ActualLrp { modification_tag: ModificationTag::default(), ..lrp.clone() };
    lrps.iter().map(still).collect()
}

async fn of_app(world: &World) -> Vec<ActualLrp> {
    let mut lrps = world.lrps().await;
    lrps.retain(|lrp| lrp.key.process_guid == "app");
    lrps
}

async fn is_well(cell: &Cell) {
    // An unhealthy cell answers with an error.
    cell.rep.state(rep_client::STATE_TIMEOUT).await.unwrap();
    cell.admin.ping().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn while_locket_is_away_everything_goes_on_and_afterwards_all_is_as_it_was() {
    for remembers in [true, false] {
        let mut world = World::with_locket().await;
        let cell = world.cell("cell-1");
        world.until_known("cell-1").await;
        world.desire("app", 2, |_| {}).await;
        let before = world.until_running(2).await;
        world.stop_locket().await;
        tokio::time::sleep(FOR_LONG).await;
        is_well(&cell).await;
        world.desire_task("ends", "/fails", |_| {}).await;
        let task = world.until_task("ends", |task| task.outcome().is_some()).await;
        assert!(
            matches!(task.outcome(), Some(TaskOutcome::Failed { reason }) if reason.contains("status 3"))
        );
        world.desire("more", 1, |_| {}).await;
        world.until_running(3).await;
        assert_eq!(of_app(&world).await, before, "to the nanosecond");
        world.start_locket_again(remembers).await;
        tokio::time::sleep(TTL * 2).await;
        let undisturbed = |lrps: &[ActualLrp]| {
            lrps.len() == 3 && lrps.iter().all(|lrp| lrp.is_running() && lrp.presence == Presence::Ordinary)
        };
        world.until_lrps("all are ordinary", undisturbed).await;
        assert_eq!(as_they_are(&of_app(&world).await), as_they_are(&before), "remembers: {remembers}");
        assert_eq!(calls(&cell, "run "), 4, "each process once");
        cell.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cell_that_locket_does_not_hear_of_keeps_what_runs_and_gets_it_back() {
    let world = World::with_locket().await;
    let gate = Gate::to(world.locket_address()).await;
    let ways = world.ways("cell-1", Some(gate.address));
    let cell = world.cell_by("cell-1", MemoryGarden::new(), ways, |_| {});
    world.until_known("cell-1").await;
    world.desire("app", 2, |_| {}).await;
    let before = world.until_running(2).await;
    world.desire_task("task", "/app", |_| {}).await;
    world.until("the Task runs", || async { (cell.garden.running("task") == ["/app"]).then_some(()) }).await;
    gate.lets(Passes::Nothing);
    let both = |lrps: &[ActualLrp]| lrps.iter().filter(|lrp| lrp.presence == Presence::Suspect).count() == 2;
    world.until_lrps("the instances are suspects", both).await;
    let task = world.until_task("task", |task| task.outcome().is_some()).await;
    let gone = "cell disappeared before completion".to_owned();
    assert_eq!(task.outcome(), Some(&TaskOutcome::Failed { reason: gone }));
    world.until("its container goes", || async { (cell.garden.handles().len() == 2).then_some(()) }).await;
    tokio::time::sleep(TTL * 2).await;
    is_well(&cell).await;
    for lrp in &before {
        assert_eq!(cell.garden.running(lrp.instance_guid().unwrap()), ["/app"], "it runs on");
    }
    gate.lets(Passes::All);
    let back =
        |lrps: &[ActualLrp]| lrps.len() == 2 && lrps.iter().all(|lrp| lrp.presence == Presence::Ordinary);
    let after = world.until_lrps("they are what they were", back).await;
    assert_eq!(as_they_are(&after), as_they_are(&before));
    assert_eq!(calls(&cell, "run "), 3, "each process once");
    cell.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_been_replaced_when_its_cell_is_heard_of_again_runs_once() {
    let world = World::with_locket().await;
    let gate = Gate::to(world.locket_address()).await;
    let ways = world.ways("cell-1", Some(gate.address));
    let lost = world.cell_by("cell-1", MemoryGarden::new(), ways, |_| {});
    world.until_known("cell-1").await;
    world.desire("app", 2, |_| {}).await;
    world.until_running(2).await;
    let other = world.cell("cell-2");
    world.until_known("cell-2").await;
    gate.lets(Passes::Nothing);
    let moved = |lrps: &[ActualLrp]| {
        lrps.len() == 2 && lrps.iter().all(|lrp| lrp.is_running() && lrp.cell_id() == Some("cell-2"))
    };
    let after = world.until_lrps("both run on the other cell", moved).await;
    world.until("the first cell is empty", || async { lost.garden.handles().is_empty().then_some(()) }).await;
    gate.lets(Passes::All);
    world.until_known("cell-1").await;
    tokio::time::sleep(TTL * 2).await;
    assert_eq!(as_they_are(&world.lrps().await), as_they_are(&after));
    assert_eq!((lost.garden.handles().len(), other.garden.handles().len()), (0, 2));
    assert_eq!((calls(&lost, "run "), calls(&other, "run ")), (2, 2));
    lost.stop().await;
    other.stop().await;
}

/// A cell that reaches the BBS through a gate, and waits a second for it.
async fn behind_a_gate(world: &World) -> (Gate, Cell) {
    let gate = Gate::to(world.bbs_address()).await;
    let config = ClientConfig { timeout: Some(Duration::from_secs(1)), ..ClientConfig::default() };
    let bbs = BbsClient::new(&format!("http://{}", gate.address), &config).unwrap();
    let ways = Ways { bbs, ..world.ways("cell-1", None) };
    let cell = world.cell_by("cell-1", MemoryGarden::new(), ways, |_| {});
    (gate, cell)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_accepted_and_what_ends_while_the_bbs_cannot_be_reached_is_told_when_it_can() {
    let world = World::new().await;
    let (gate, cell) = behind_a_gate(&world).await;
    world.desire("app", 2, |_| {}).await;
    let before = world.until_running(2).await;
    world.desire_task("ends", "/app", |definition| definition.result_file = "/result".into()).await;
    world.until("it runs", || async { (cell.garden.running("ends") == ["/app"]).then_some(()) }).await;
    gate.lets(Passes::Nothing);
    cell.garden.put_file("ends", "/result", b"42");
    cell.garden.exit("ends", "/app", 0);
    cell.garden.exit(before[0].instance_guid().unwrap(), "/app", 7);
    // The auctioneer reaches the cell, and the cell takes it.
    world.desire("more", 1, |_| {}).await;
    world.desire_task("later", "/fails", |_| {}).await;
    let accepted = || async {
        let state = cell.rep.state(rep_client::STATE_TIMEOUT).await.ok()?;
        (state.lrps.len() == 3 && state.tasks.len() == 2).then_some(())
    };
    world.until("the work is accepted", accepted).await;
    tokio::time::sleep(FOR_LONG).await;
    is_well(&cell).await;
    assert_eq!(calls(&cell, "run "), 3, "nothing is begun of which the BBS does not know");
    assert_eq!(of_app(&world).await, before, "nobody was told of anything");
    gate.lets(Passes::All);
    let ended = world.until_task("ends", |task| task.outcome().is_some()).await;
    assert_eq!(ended.outcome(), Some(&TaskOutcome::Succeeded { result: "42".into() }));
    let later = world.until_task("later", |task| task.outcome().is_some()).await;
    assert!(matches!(later.outcome(), Some(TaskOutcome::Failed { reason }) if reason.contains("status 3")));
    let again = |lrps: &[ActualLrp]| {
        let crashed = lrps.iter().filter(|lrp| lrp.crash_count == 1).count();
        lrps.len() == 3 && lrps.iter().all(ActualLrp::is_running) && crashed == 1
    };
    world.until_lrps("the crash is told, and all run", again).await;
    assert_eq!(calls(&cell, "run "), 6, "each once, and once more what crashed");
    assert!(of_app(&world).await.contains(&before[1]), "to the nanosecond");
    cell.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_of_the_bbs_that_is_lost_makes_nothing_run_twice() {
    let world = World::new().await;
    let (gate, cell) = behind_a_gate(&world).await;
    world.until("the cell is there", || async { cell.rep.state(rep_client::STATE_TIMEOUT).await.ok() }).await;
    gate.lets(Passes::Requests);
    world.desire("app", 1, |_| {}).await;
    world.desire_task("once", "/app", |_| {}).await;
    world.until_lrps("the claim is heard", |lrps| lrps.iter().any(|lrp| lrp.cell_id().is_some())).await;
    world.until_task("once", |task| task.cell_id() == Some("cell-1")).await;
    assert_eq!(calls(&cell, "create "), 0);
    gate.lets(Passes::All);
    world.until_running(1).await;
    world.until("the Task runs", || async { (cell.garden.running("once") == ["/app"]).then_some(()) }).await;
    gate.lets(Passes::Requests);
    cell.garden.exit("once", "/app", 0);
    let task = world.until_task("once", |task| task.outcome().is_some()).await;
    gate.lets(Passes::All);
    world.until("its container goes", || async { (cell.garden.handles().len() == 1).then_some(()) }).await;
    assert_eq!(world.bbs.task_by_guid("once").await.unwrap(), task, "it ended once");
    assert_eq!(calls(&cell, "run "), 2, "each process once");
    cell.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bbs_that_is_slow_delays_and_spoils_nothing() {
    let world = World::new().await;
    let (gate, cell) = behind_a_gate(&world).await;
    gate.lets(Passes::Slowly(Duration::from_millis(400)));
    world.desire("app", 5, |_| {}).await;
    world.desire_task("task", "/fails", |_| {}).await;
    world.until_running(5).await;
    world.until_task("task", |task| task.outcome().is_some()).await;
    // Now it does not answer in time at all; what it was told has happened all the same.
    gate.lets(Passes::Slowly(Duration::from_secs(2)));
    world.bbs.remove_desired_lrp("app").await.unwrap();
    world.until_lrps("it has heard that they are stopped", <[ActualLrp]>::is_empty).await;
    assert!(cell.garden.handles().len() >= 5, "they stay until that is sure");
    gate.lets(Passes::All);
    world.until("nothing is left", || async { cell.garden.handles().is_empty().then_some(()) }).await;
    assert_eq!(calls(&cell, "run "), 6, "each process once");
    cell.stop().await;
}
