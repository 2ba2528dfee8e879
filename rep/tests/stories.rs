//! From desiring to running and back, with everything real but the containers.

mod world;

use std::time::Duration;

use bbs_models::{ActualLrp, Event, Presence, TaskOutcome};
use futures_util::{StreamExt, TryStreamExt};
use garden_client::memory::{Call, MemoryGarden};
use world::{Cell, World};

fn guid(lrp: &ActualLrp) -> &str {
    lrp.instance_guid().expect("an instance")
}

#[tokio::test(flavor = "multi_thread")]
async fn desired_instances_run_and_tell_where_they_are() {
    let world = World::new().await;
    let cell = world.cell("cell-1");
    world.desire("app", 2, |_| {}).await;
    for lrp in world.until_running(2).await {
        let net_info = lrp.net_info().unwrap();
        assert_eq!(lrp.cell_id(), Some("cell-1"));
        assert_eq!(net_info.ports[0].container_port, 8080);
        assert!(net_info.ports[0].host_port >= 61001);
        assert!(!net_info.address.is_empty());
        assert_eq!(lrp.availability_zone, "z1");
        let seen = cell.garden.seen(guid(&lrp)).unwrap();
        assert_eq!(seen.spec.image.uri, "/linux.tar");
        let env = &seen.spec.env;
        assert!(env.contains(&format!("INSTANCE_INDEX={}", lrp.key.index)), "{env:?}");
    }
    let state = cell.rep.state(rep_client::STATE_TIMEOUT).await.unwrap();
    assert_eq!(state.lrps.len(), 2);
    assert_eq!(state.lrps[0].state, "RUNNING");
    assert_eq!(state.lrps[0].rootfs, "preloaded:linux");
    assert_eq!(state.available_resources.memory_mb, 1024 - 2 * 64);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cell_offers_what_its_disk_has_at_the_moment() {
    const MIB: u64 = 1 << 20;
    let world = World::new().await;
    let garden = MemoryGarden::new();
    garden.set_disk_bytes(2048 * MIB);
    let cell = world.cell_with("cell-1", garden, |config| {
        config.disk_follows_garden = true;
        config.reap_interval = Duration::from_millis(20);
    });
    let offers = async |total, available| {
        let state = || async {
            let state = cell.rep.state(rep_client::STATE_TIMEOUT).await.ok()?;
            let disk = (state.total_resources.disk_mb, state.available_resources.disk_mb);
            (disk == (total, available)).then_some(())
        };
        world.until(&format!("it offers {available} of {total} MiB"), state).await;
    };
    offers(2048, 2048).await;
    world.desire("app", 1, |_| {}).await;
    world.until_running(1).await;
    offers(2048, 2048 - 128).await;
    // Somebody fills the disk: what runs goes on, and nothing is added.
    cell.garden.set_disk_bytes(100 * MIB);
    offers(100, 0).await;
    world.desire("more", 1, |_| {}).await;
    let refused = |lrps: &[ActualLrp]| lrps.iter().any(|lrp| lrp.placement_error().contains("disk"));
    let lrps = world.until_lrps("no place is found", refused).await;
    assert_eq!(lrps.iter().filter(|lrp| lrp.is_running()).count(), 1);
    cell.garden.set_disk_bytes(2048 * MIB);
    offers(2048, 2048 - 128).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crashed_instance_comes_back() {
    let world = World::new().await;
    let cell = world.cell("cell-1");
    world.desire("app", 1, |_| {}).await;
    let first = guid(&world.until_running(1).await[0]).to_owned();
    cell.garden.exit(&first, "/app", 7);
    let again = |lrps: &[ActualLrp]| lrps[0].is_running() && guid(&lrps[0]) != first;
    let lrp = world.until_lrps("it runs again", again).await.remove(0);
    assert_eq!(lrp.crash_count, 1);
    assert!(lrp.crash_reason.contains("status 7"), "{}", lrp.crash_reason);
    assert_eq!(cell.garden.handles(), [guid(&lrp)], "nothing is left of the first");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_desired_any_more_is_stopped() {
    let world = World::new().await;
    let cell = world.cell("cell-1");
    world.desire("app", 2, |_| {}).await;
    world.until_running(2).await;
    world.bbs.remove_desired_lrp("app").await.unwrap();
    world.until_lrps("they are gone", |lrps| lrps.is_empty()).await;
    world
        .until("their containers are gone", || async { cell.garden.handles().is_empty().then_some(()) })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_no_cell_can_take_says_why() {
    let world = World::new().await;
    let _cell = world.cell("cell-1");
    world.desire("app", 1, |_| {}).await;
    world.until_running(1).await;
    let refused = async |process_guid: &str, memory_mb: u32, rootfs: &str, expected: &str| {
        world
            .desire(process_guid, 1, |lrp| {
                lrp.memory_mb = memory_mb;
                lrp.rootfs = rootfs.into();
            })
            .await;
        let told = |lrps: &[ActualLrp]| lrps.iter().any(|lrp| lrp.placement_error() == expected);
        world.until_lrps(expected, told).await;
    };
    refused("large", 5000, "preloaded:linux", "insufficient resources: memory").await;
    refused("windows", 1, "preloaded:windows", "found no compatible cell for required rootfs").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_ends_with_the_content_of_its_result_file() {
    let world = World::new().await;
    let cell = world.cell("cell-1");
    world.desire_task("task", "/app", |definition| definition.result_file = "/result".into()).await;
    let started = || async { (!cell.garden.running("task").is_empty()).then_some(()) };
    world.until("the Task runs", started).await;
    cell.garden.put_file("task", "/result", b"42");
    cell.garden.exit("task", "/app", 0);
    let task = world.until_task("task", |task| task.outcome().is_some()).await;
    assert_eq!(task.outcome(), Some(&TaskOutcome::Succeeded { result: "42".into() }));
    world.until("its container is gone", || async { cell.garden.handles().is_empty().then_some(()) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_fails_says_why() {
    let world = World::new().await;
    let _cell = world.cell("cell-1");
    let failed = async |guid: &str, path: &str, result_file: &str| {
        world.desire_task(guid, path, |definition| definition.result_file = result_file.into()).await;
        let task = world.until_task(guid, |task| task.outcome().is_some()).await;
        match task.outcome() {
            Some(TaskOutcome::Failed { reason }) => reason.clone(),
            other => panic!("{other:?}"),
        }
    };
    let reason = failed("status", "/fails", "").await;
    assert!(reason.contains("status 3"), "{reason}");
    let reason = failed("no-command", "/missing", "").await;
    assert!(!reason.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_task_leaves_no_container() {
    let world = World::new().await;
    let cell = world.cell("cell-1");
    world.desire_task("task", "/app", |_| {}).await;
    world.until("the Task runs", || async { (!cell.garden.running("task").is_empty()).then_some(()) }).await;
    world.bbs.cancel_task("task").await.unwrap();
    world.until("its container is gone", || async { cell.garden.handles().is_empty().then_some(()) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_asked_for_under_a_trace_id_is_told_under_it() {
    let mut world = World::new().await;
    let cell = world.cell("cell-1");
    let mut events = world.bbs.subscribe_to_instance_events().await.unwrap();
    world.bbs = world.bbs.traced("wish");
    world.desire("app", 1, |_| {}).await;
    // The first event of which it is true, and under which id it came.
    let mut heard = async |wished: fn(&Event) -> bool| loop {
        let event = tokio::time::timeout(Duration::from_secs(30), events.next()).await;
        let event = event.unwrap().unwrap().unwrap();
        if wished(&event) {
            return event;
        }
    };
    let is_running =
        |event: &Event| matches!(event, Event::ActualLrpInstanceChanged { after, .. } if after.is_running());
    let is_claimed = |event: &Event| matches!(event, Event::ActualLrpInstanceChanged { after, .. } if after.cell_id().is_some());
    let Event::ActualLrpInstanceChanged { trace_id, .. } = heard(is_claimed).await else { unreachable!() };
    assert_eq!(trace_id, "wish", "claimed");
    let Event::ActualLrpInstanceChanged { trace_id, after, .. } = heard(is_running).await else {
        unreachable!()
    };
    assert_eq!(trace_id, "wish", "running");
    cell.rep.traced("of another").stop_lrp_instance("app", guid(&after)).await.unwrap();
    let is_removed = |event: &Event| matches!(event, Event::ActualLrpInstanceRemoved { .. });
    let Event::ActualLrpInstanceRemoved { trace_id, .. } = heard(is_removed).await else { unreachable!() };
    assert_eq!(trace_id, "of another", "stopped");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_evacuated_cell_goes_when_its_instances_run_elsewhere() {
    let world = World::new().await;
    let leaving = world.cell("cell-1");
    world.desire("app", 2, |_| {}).await;
    world.until_running(2).await;
    let staying = world.cell("cell-2");
    staying.garden.hold(garden_client::memory::Call::Create);
    leaving.admin.ping().await.unwrap();
    leaving.admin.evacuate().await.unwrap();
    let both =
        |lrps: &[ActualLrp]| lrps.iter().filter(|lrp| lrp.presence == Presence::Evacuating).count() == 2;
    for lrp in world.until_lrps("the old instances are evacuating", both).await {
        if lrp.presence != Presence::Evacuating {
            continue;
        }
        let line = format!("Cell cell-1 requesting replacement for instance {}", guid(&lrp));
        let said = leaving
            .rep
            .logs("app", 100, false)
            .await
            .unwrap()
            .map_ok(|piece| piece.to_vec())
            .try_concat()
            .await
            .unwrap();
        let said = String::from_utf8_lossy(&said);
        assert_eq!(said.matches(&line).count(), 1, "{line} in {said}");
    }
    assert_eq!(leaving.garden.handles().len(), 2, "they serve until they are replaced");
    staying.garden.release(garden_client::memory::Call::Create);
    leaving.runs.await.unwrap().unwrap();
    let moved =
        |lrps: &[ActualLrp]| lrps.len() == 2 && lrps.iter().all(|lrp| lrp.cell_id() == Some("cell-2"));
    world.until_lrps("both instances have moved", moved).await;
    assert!(leaving.garden.handles().is_empty());
    assert_eq!(staying.garden.handles().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_outlive_a_rep_that_is_stopped_or_killed() {
    let world = World::new().await;
    let mut cell = world.cell("cell-1");
    world.desire("app", 2, |_| {}).await;
    let before = world.until_running(2).await;
    for (times, killed) in [(1, false), (2, true), (3, true)] {
        let garden = cell.garden.clone();
        if killed {
            cell.kill();
        } else {
            cell.stop().await;
        }
        cell = world.cell_in("cell-1", garden);
        world
            .until("it listens to them again", || async {
                (calls(&cell, "attach ") == 2 * times).then_some(())
            })
            .await;
        assert_eq!(cell.rep.state(rep_client::STATE_TIMEOUT).await.unwrap().lrps.len(), 2);
        assert_eq!(world.lrps().await, before, "to the nanosecond");
        for lrp in &before {
            assert_eq!(cell.garden.running(guid(lrp)), ["/app"]);
        }
    }
    assert_eq!(calls(&cell, "run "), 2, "each was started once");
    cell.garden.exit(guid(&before[0]), "/app", 9);
    let crashed = |lrps: &[ActualLrp]| lrps[0].crash_reason.contains("status 9") && lrps[0].is_running();
    world.until_lrps("a crash is noticed, and it runs again", crashed).await;
    world.bbs.remove_desired_lrp("app").await.unwrap();
    world.until_lrps("all have been stopped", <[ActualLrp]>::is_empty).await;
    world.until("nothing is left", || async { cell.garden.handles().is_empty().then_some(()) }).await;
}

/// How often garden was asked for something.
fn calls(cell: &Cell, what: &str) -> usize {
    cell.garden.calls().iter().filter(|call| call.starts_with(what)).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_runs_once_however_often_its_rep_is_killed() {
    let world = World::new().await;
    let mut cell = world.cell("cell-1");
    world.desire_task("once", "/app", |definition| definition.result_file = "/result".into()).await;
    world
        .until("its process runs", || async { (cell.garden.running("once") == ["/app"]).then_some(()) })
        .await;
    cell = world.cell_in("cell-1", cell.kill());
    let garden = cell.kill();
    garden.put_file("once", "/result", b"42");
    garden.exit("once", "/app", 0);
    cell = world.cell_in("cell-1", garden);
    let task = world.until_task("once", |task| task.outcome().is_some()).await;
    assert_eq!(task.outcome(), Some(&TaskOutcome::Succeeded { result: "42".into() }));
    assert_eq!(calls(&cell, "run "), 1);
    world.until("nothing is left", || async { cell.garden.handles().is_empty().then_some(()) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_half_created_when_the_rep_was_killed_is_placed_again() {
    let world = World::new().await;
    let cell = world.cell("cell-1");
    cell.garden.hold(Call::Create);
    world.desire("app", 1, |_| {}).await;
    world.until("garden was asked", || async { (calls(&cell, "create ") == 1).then_some(()) }).await;
    let garden = cell.kill();
    garden.release(Call::Create);
    let cell = world.cell_in("cell-1", garden);
    let lrp = world.until_running(1).await.remove(0);
    let only = || async { (cell.garden.handles() == [guid(&lrp)]).then_some(()) };
    world.until("one container is there", only).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_while_the_bbs_is_away_is_not_forgotten() {
    let mut world = World::new().await;
    let cell = world.cell("cell-1");
    world.desire("app", 1, |_| {}).await;
    let first = guid(&world.until_running(1).await[0]).to_owned();
    world.stop_bbs().await;
    cell.garden.exit(&first, "/app", 7);
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    world.start_bbs_again();
    let crashed = |lrps: &[ActualLrp]| lrps.len() == 1 && lrps[0].crash_count == 1 && lrps[0].is_running();
    let lrp = world.until_lrps("it crashed and runs again", crashed).await.remove(0);
    assert!(lrp.crash_reason.contains("status 7"), "{}", lrp.crash_reason);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_instance_says_can_be_read_and_followed() {
    let world = World::new().await;
    let cell = world.cell("cell-1");
    world.desire("app", 1, |_| {}).await;
    let instance_guid = guid(&world.until_running(1).await[0]).to_owned();
    let mut lines = Box::pin(cell.rep.logs("app", 100, true).await.unwrap());
    let mut read = String::new();
    while !read.contains("hello") {
        read.push_str(&String::from_utf8_lossy(&lines.next().await.unwrap().unwrap()));
    }
    let line = read.lines().find(|line| line.contains("hello")).unwrap();
    let line: rep_client::LogLine = serde_json::from_str(line).unwrap();
    assert_eq!(
        (line.log_guid.as_str(), line.stream.as_str(), line.source_name.as_str()),
        ("app", "out", "APP")
    );
    assert_eq!(line.instance_guid, instance_guid);
    cell.garden.exit(&instance_guid, "/app", 1);
    let mut followed = read.clone();
    while followed.matches("hello").count() < 2 {
        followed.push_str(&String::from_utf8_lossy(&lines.next().await.unwrap().unwrap()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn work_that_the_bbs_does_not_know_of_keeps_its_place_until_that_expires() {
    let world = World::new().await;
    let cell = world.cell_with("cell-1", MemoryGarden::new(), |config| {
        config.reserved_expiration = Duration::from_secs(2);
        config.reap_interval = Duration::from_millis(50);
    });
    let state = async || cell.rep.state(rep_client::STATE_TIMEOUT).await.ok();
    world.until("the rep answers", &state).await;
    world.until("the BBS answers", || async { world.bbs.ping().await.ok() }).await;
    let unknown = rep_client::Lrp {
        process_guid: "unknown".into(),
        domain: "d".into(),
        rootfs: "preloaded:linux".into(),
        ..Default::default()
    };
    let work = rep_client::Work { lrps: vec![unknown], ..Default::default() };
    assert!(cell.rep.perform(&work).await.unwrap().is_empty());
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(state().await.unwrap().lrps.len(), 1, "the BBS may be about to hear of it");
    let free = || async { state().await.filter(|state| state.lrps.is_empty()) };
    world.until("its place is free again", free).await;
    assert_eq!(calls(&cell, "create "), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cell_refuses_work_that_is_not_its_own() {
    let world = World::new().await;
    let cell = world.cell("cell-1");
    let work = rep_client::Work { cell_id: "cell-2".into(), ..Default::default() };
    world.until("the rep answers", || async { cell.rep.state(rep_client::STATE_TIMEOUT).await.ok() }).await;
    let error = cell.rep.perform(&work).await.unwrap_err();
    assert_eq!(error.status().map(|status| status.as_u16()), Some(500));
    let lrp = rep_client::Lrp {
        process_guid: "a".into(),
        domain: "d".into(),
        rootfs: "preloaded:nt".into(),
        ..Default::default()
    };
    let large =
        rep_client::Lrp { rootfs: "preloaded:linux".into(), memory_mb: 9999, index: 1, ..lrp.clone() };
    let work = rep_client::Work { lrps: vec![lrp, large], ..Default::default() };
    assert_eq!(cell.rep.perform(&work).await.unwrap().lrps.len(), 2);
    cell.stop().await;
}
