//! A check of garden: what it makes, and that nothing of it stays however it ends.

mod world;

use std::time::Duration;

use executor::*;
use garden_client::memory::{Call, MemoryGarden, Script};
use garden_client::{ContainerSpec, Error, Garden, Properties};
use world::*;

fn check() -> GardenCheck {
    GardenCheck {
        rootfs: "/rootfs.tar".into(),
        owner_name: "executor-health-check".into(),
        path: "/check".into(),
        args: vec!["-c".into(), "ls > /tmp/test".into()],
        user: "root".into(),
        env: vec!["A=1".into()],
        dir: "/tmp".into(),
        retry_pause: Duration::from_secs(1),
    }
}

fn tagged() -> Properties {
    Properties::from([("tag:healthcheck-tag".into(), "healthcheck".into())])
}

/// The kinds of calls that were made, without handles.
fn acts(garden: &MemoryGarden) -> Vec<String> {
    garden.calls().iter().filter_map(|call| call.split(' ').next()).map(str::to_owned).collect()
}

#[tokio::test(start_paused = true)]
async fn a_check_makes_a_container_runs_a_process_and_leaves_nothing() {
    let world = world();
    world.garden.script("/check", Script::exits(0));
    world.executor.check_garden(&check()).await.unwrap();
    assert!(world.garden.handles().is_empty());
    let acts = acts(&world.garden);
    assert!(acts.contains(&"create".to_owned()) && acts.contains(&"destroy".to_owned()), "{acts:?}");
}

#[tokio::test(start_paused = true)]
async fn a_check_that_fails_says_what_and_leaves_nothing() {
    let rows = [
        (Some(Call::Create), 3, "cannot create a container to check garden: disk full"),
        (Some(Call::Run), 3, "cannot run a process to check garden: disk full"),
        (Some(Call::Destroy), 3, "cannot destroy a container to check garden: disk full"),
        (None, 0, "Healthcheck exited with 3"),
    ];
    for (call, times, told) in rows {
        let world = world();
        world.garden.script("/check", Script::exits(3));
        if let Some(call) = call {
            world.garden.script("/check", Script::exits(0));
            world.garden.fail(call, Error::Other("disk full".into()), times);
        }
        let error = world.executor.check_garden(&check()).await.unwrap_err();
        assert_eq!(error.to_string(), told);
        world.executor.clear_garden_check(&check()).await.unwrap();
        assert!(world.garden.handles().is_empty(), "{told}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_fails_twice_is_tried_a_third_time() {
    for call in [Call::Create, Call::Run, Call::Destroy] {
        let world = world();
        world.garden.script("/check", Script::exits(0));
        world.garden.fail(call, Error::Other("busy".into()), 2);
        world.executor.check_garden(&check()).await.unwrap();
        assert!(world.garden.handles().is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_check_that_was_cut_short_has_left_goes_first() {
    let world = world();
    let left =
        ContainerSpec { handle: "check-left".into(), properties: tagged(), ..ContainerSpec::default() };
    world.garden.create(left).await.unwrap();
    let other = ContainerSpec { handle: "app".into(), ..ContainerSpec::default() };
    world.garden.create(other).await.unwrap();
    world.garden.script("/check", Script::runs());
    let hung = tokio::time::timeout(Duration::from_secs(60), world.executor.check_garden(&check())).await;
    assert!(hung.is_err());
    let left = world.garden.containers(&tagged()).await.unwrap();
    assert!(left.len() == 1 && left[0] != "check-left", "{left:?}");
    world.executor.clear_garden_check(&check()).await.unwrap();
    assert_eq!(world.garden.handles(), ["app"]);
}
