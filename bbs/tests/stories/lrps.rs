//! Stories about LRPs, over HTTP.

use crate::world::{World, key, lrp, on, started};
use bbs_models::{DesiredLrpUpdate, ErrorKind, Event};
use futures_util::StreamExt;

/// Runs `process_guid/index` on a cell.
async fn run_on(world: &World, process_guid: &str, index: u32, cell_id: &str, instance_guid: &str) {
    let (key, instance) = (key(process_guid, index), on(cell_id, instance_guid));
    world.bbs().claim_actual_lrp(&key, &instance).await.unwrap();
    world.bbs().start_actual_lrp(&key, &instance, &started()).await.unwrap();
}

async fn crash(world: &World, index: u32, cell_id: &str, instance_guid: &str) {
    let instance = on(cell_id, instance_guid);
    world.bbs().crash_actual_lrp(&key("app", index), &instance, "exited with 1").await.unwrap();
}

async fn next_names(stream: &mut bbs_client::EventStream, count: usize) -> Vec<&'static str> {
    let mut names = Vec::new();
    while names.len() < count {
        names.push(stream.next().await.unwrap().unwrap().event_type());
    }
    names
}

#[tokio::test]
async fn a_desired_lrp_is_auctioned_claimed_and_started() {
    let world = World::new().await;
    world.set_cells(&["cell-1"]);
    world.bbs().desire_lrp(&lrp("app", 2)).await.unwrap();
    world.auctioned(&["lrp app/0,1"]).await;
    assert_eq!(world.picture("app").await, "0:UNCLAIMED 1:UNCLAIMED");
    world.bbs().claim_actual_lrp(&key("app", 0), &on("cell-1", "i-0")).await.unwrap();
    assert_eq!(world.picture("app").await, "0:CLAIMED@cell-1 1:UNCLAIMED");
    world.bbs().start_actual_lrp(&key("app", 0), &on("cell-1", "i-0"), &started()).await.unwrap();
    assert_eq!(world.picture("app").await, "0:RUNNING@cell-1 1:UNCLAIMED");
    let lrps = world.lrps("app").await;
    assert_eq!(lrps[0].net_info(), Some(&started().net_info));
    assert_eq!((lrps[0].routable, lrps[0].modification_tag.index), (Some(true), 2));
}

#[tokio::test]
async fn a_crashed_instance_comes_back_at_once_twice_and_then_waits() {
    let world = World::new().await;
    world.set_cells(&["cell-1"]);
    world.bbs().desire_lrp(&lrp("app", 1)).await.unwrap();
    world.auctioned(&["lrp app/0"]).await;
    for attempt in ["i-1", "i-2"] {
        run_on(&world, "app", 0, "cell-1", attempt).await;
        crash(&world, 0, "cell-1", attempt).await;
        world.auctioned(&["lrp app/0"]).await;
        assert_eq!(world.picture("app").await, "0:UNCLAIMED");
    }
    run_on(&world, "app", 0, "cell-1", "i-3").await;
    crash(&world, 0, "cell-1", "i-3").await;
    assert_eq!(world.picture("app").await, "0:CRASHED");
    world.advance(29);
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    assert_eq!(world.picture("app").await, "0:CRASHED", "its wait is 30 s");
    world.advance(1);
    world.becomes("app", "0:UNCLAIMED").await;
    world.auctioned(&["lrp app/0"]).await;
    let lrps = world.lrps("app").await;
    assert_eq!((lrps[0].crash_count, lrps[0].crash_reason.as_str()), (3, "exited with 1"));
}

#[tokio::test]
async fn a_message_of_an_attempt_that_is_over_is_refused() {
    let world = World::new().await;
    world.set_cells(&["cell-1", "cell-2"]);
    world.bbs().desire_lrp(&lrp("app", 1)).await.unwrap();
    run_on(&world, "app", 0, "cell-1", "i-1").await;
    let (key, other) = (key("app", 0), on("cell-2", "i-2"));
    let refused = |error: bbs_client::Error| error.kind().unwrap();
    let bbs = world.bbs();
    assert_eq!(
        refused(bbs.claim_actual_lrp(&key, &other).await.unwrap_err()),
        ErrorKind::ActualLrpCannotBeClaimed
    );
    assert_eq!(
        refused(bbs.start_actual_lrp(&key, &other, &started()).await.unwrap_err()),
        ErrorKind::ActualLrpCannotBeStarted
    );
    assert_eq!(
        refused(bbs.crash_actual_lrp(&key, &other, "x").await.unwrap_err()),
        ErrorKind::ActualLrpCannotBeCrashed
    );
    assert_eq!(
        refused(bbs.fail_actual_lrp(&key, "no room").await.unwrap_err()),
        ErrorKind::ActualLrpCannotBeFailed
    );
    assert!(bbs.remove_actual_lrp(&key, Some(&other)).await.unwrap_err().is_not_found());
    assert_eq!(world.picture("app").await, "0:RUNNING@cell-1");
}

#[tokio::test]
async fn events_come_in_the_order_in_which_things_became_true() {
    let world = World::new().await;
    world.set_cells(&["cell-1"]);
    let mut all = world.bbs().subscribe_to_instance_events().await.unwrap();
    let mut of_cell = world.bbs().subscribe_to_instance_events_by_cell_id("cell-1").await.unwrap();
    world.bbs().traced("trace-7").desire_lrp(&lrp("app", 1)).await.unwrap();
    let first = all.next().await.unwrap().unwrap();
    assert!(matches!(&first, Event::DesiredLrpCreated { trace_id, .. } if trace_id == "trace-7"));
    run_on(&world, "app", 0, "cell-1", "i-1").await;
    crash(&world, 0, "cell-1", "i-1").await;
    world.bbs().remove_desired_lrp("app").await.unwrap();
    let crashed_and_removed = [
        "actual_lrp_instance_created",
        "actual_lrp_instance_changed",
        "actual_lrp_instance_changed",
        "actual_lrp_crashed",
        "actual_lrp_instance_created",
        "actual_lrp_instance_removed",
        "desired_lrp_removed",
        "actual_lrp_instance_removed",
    ];
    assert_eq!(next_names(&mut all, crashed_and_removed.len()).await, crashed_and_removed);
    let of_its_own = [
        "desired_lrp_created",
        "actual_lrp_instance_changed",
        "actual_lrp_instance_changed",
        "actual_lrp_crashed",
        "actual_lrp_instance_removed",
        "desired_lrp_removed",
    ];
    assert_eq!(next_names(&mut of_cell, of_its_own.len()).await, of_its_own);
}

#[tokio::test]
async fn scaling_creates_removes_and_stops() {
    let world = World::new().await;
    world.set_cells(&["cell-1"]);
    world.bbs().desire_lrp(&lrp("app", 1)).await.unwrap();
    world.auctioned(&["lrp app/0"]).await;
    let scale = |instances| DesiredLrpUpdate { instances: Some(instances), ..Default::default() };
    world.bbs().update_desired_lrp("app", &scale(3)).await.unwrap();
    world.auctioned(&["lrp app/1,2"]).await;
    run_on(&world, "app", 1, "cell-1", "i-1").await;
    world.bbs().update_desired_lrp("app", &scale(1)).await.unwrap();
    world.told(&["stop cell-1 i-1"]).await;
    assert_eq!(world.picture("app").await, "0:UNCLAIMED 1:RUNNING@cell-1");
    world.bbs().remove_actual_lrp(&key("app", 1), Some(&on("cell-1", "i-1"))).await.unwrap();
    assert_eq!(world.picture("app").await, "0:UNCLAIMED");
    let desired = world.bbs().desired_lrp_by_process_guid("app").await.unwrap();
    assert_eq!((desired.instances, desired.modification_tag.index), (1, 2));
    world.bbs().remove_desired_lrp("app").await.unwrap();
    assert_eq!(world.picture("app").await, "");
    assert!(world.bbs().remove_desired_lrp("app").await.unwrap_err().is_not_found());
}

#[tokio::test]
async fn an_lrp_is_desired_once() {
    let world = World::new().await;
    world.bbs().desire_lrp(&lrp("app", 1)).await.unwrap();
    let error = world.bbs().desire_lrp(&lrp("app", 1)).await.unwrap_err();
    assert_eq!(error.kind(), Some(ErrorKind::ResourceExists));
    assert_eq!(error.to_string(), "the requested resource already exists");
}

#[tokio::test]
async fn what_nobody_desires_is_stopped_only_while_its_domain_is_fresh() {
    let world = World::new().await;
    world.set_cells(&["cell-1"]);
    // An instance that the BBS did not know: its cell says that it runs.
    let (key, instance) = (key("ghost", 0), on("cell-1", "i-1"));
    world.bbs().start_actual_lrp(&key, &instance, &started()).await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    world.told(&[]).await;
    world.bbs().upsert_domain("tests", None).await.unwrap();
    world.told(&["stop cell-1 i-1"]).await;
}

#[tokio::test]
async fn an_instance_that_waits_too_long_is_auctioned_again_and_keeps_its_placement_error() {
    let world = World::new().await;
    world.bbs().desire_lrp(&lrp("app", 1)).await.unwrap();
    world.auctioned(&["lrp app/0"]).await;
    world.bbs().fail_actual_lrp(&key("app", 0), "insufficient resources: memory").await.unwrap();
    world.advance(31);
    world.auctioned(&["lrp app/0"]).await;
    assert_eq!(world.lrps("app").await[0].placement_error(), "insufficient resources: memory");
}

#[tokio::test]
async fn a_lost_cell_makes_suspects_and_its_return_makes_them_ordinary() {
    let world = World::new().await;
    world.set_cells(&["cell-1", "cell-2"]);
    world.bbs().desire_lrp(&lrp("app", 1)).await.unwrap();
    world.auctioned(&["lrp app/0"]).await;
    run_on(&world, "app", 0, "cell-1", "i-1").await;
    world.set_cells(&["cell-2"]);
    world.becomes("app", "0:UNCLAIMED 0:RUNNING@cell-1/suspect").await;
    world.auctioned(&["lrp app/0"]).await;
    world.set_cells(&["cell-1", "cell-2"]);
    world.becomes("app", "0:RUNNING@cell-1").await;
}

#[tokio::test]
async fn a_suspect_is_relieved_by_its_replacement() {
    let world = World::new().await;
    world.set_cells(&["cell-1", "cell-2"]);
    world.bbs().desire_lrp(&lrp("app", 1)).await.unwrap();
    run_on(&world, "app", 0, "cell-1", "i-1").await;
    world.set_cells(&["cell-2"]);
    world.becomes("app", "0:UNCLAIMED 0:RUNNING@cell-1/suspect").await;
    run_on(&world, "app", 0, "cell-2", "i-2").await;
    assert_eq!(world.picture("app").await, "0:RUNNING@cell-2");
}

#[tokio::test]
async fn an_evacuated_instance_runs_until_its_replacement_does() {
    let world = World::new().await;
    world.set_cells(&["cell-1", "cell-2"]);
    world.bbs().desire_lrp(&lrp("app", 1)).await.unwrap();
    world.auctioned(&["lrp app/0"]).await;
    run_on(&world, "app", 0, "cell-1", "i-1").await;
    let (key, leaving) = (key("app", 0), on("cell-1", "i-1"));
    let bbs = world.bbs();
    assert!(bbs.evacuate_running_actual_lrp(&key, &leaving, &started()).await.unwrap());
    world.auctioned(&["lrp app/0"]).await;
    assert_eq!(world.picture("app").await, "0:UNCLAIMED 0:RUNNING@cell-1/evacuating");
    run_on(&world, "app", 0, "cell-2", "i-2").await;
    assert_eq!(world.picture("app").await, "0:RUNNING@cell-2");
    let kept = bbs.evacuate_running_actual_lrp(&key, &leaving, &started()).await.unwrap();
    assert!(!kept, "it is replaced: the cell may let go");
}

#[tokio::test]
async fn a_retired_instance_is_stopped_where_it_runs_and_removed_where_nobody_has_it() {
    let world = World::new().await;
    world.set_cells(&["cell-1"]);
    world.bbs().desire_lrp(&lrp("app", 2)).await.unwrap();
    run_on(&world, "app", 0, "cell-1", "i-0").await;
    world.bbs().retire_actual_lrp(&key("app", 0)).await.unwrap();
    world.told(&["stop cell-1 i-0"]).await;
    world.bbs().retire_actual_lrp(&key("app", 1)).await.unwrap();
    world.auctioned(&["lrp app/0,1", "lrp app/1"]).await; // Convergence finds the removed one missing.
}

#[tokio::test]
async fn routers_forget_a_retired_instance_while_it_still_answers() {
    let world = World::new().await;
    world.set_cells(&["cell-1"]);
    world.bbs().desire_lrp(&lrp("app", 1)).await.unwrap();
    run_on(&world, "app", 0, "cell-1", "i-0").await;
    let mut events = world.bbs().subscribe_to_instance_events().await.unwrap();
    world.bbs().retire_actual_lrp(&key("app", 0)).await.unwrap();
    let Some(Ok(Event::ActualLrpInstanceRemoved { lrp, .. })) = events.next().await else {
        panic!("it is not told")
    };
    assert_eq!(lrp.instance(), Some(&on("cell-1", "i-0")));
    assert_eq!(world.picture("app").await, "0:RUNNING@cell-1");
    world.bbs().remove_actual_lrp(&key("app", 0), Some(&on("cell-1", "i-0"))).await.unwrap();
    assert_eq!(next_names(&mut events, 1).await, ["actual_lrp_instance_removed"]);
}

#[tokio::test]
async fn a_removed_instance_that_is_still_desired_is_replaced_at_once() {
    let world = World::with_convergence_every(std::time::Duration::from_secs(3600)).await;
    world.set_cells(&["cell-1"]);
    world.bbs().desire_lrp(&lrp("app", 1)).await.unwrap();
    world.auctioned(&["lrp app/0"]).await;
    run_on(&world, "app", 0, "cell-1", "i-0").await;
    world.bbs().remove_actual_lrp(&key("app", 0), Some(&on("cell-1", "i-0"))).await.unwrap();
    world.becomes("app", "0:UNCLAIMED").await;
    world.auctioned(&["lrp app/0"]).await;
}
