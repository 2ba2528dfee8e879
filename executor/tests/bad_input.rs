//! What goes wrong around an executor, each with its outcome: said in one line to whoever looks, nothing lost, nothing run
//! twice, nothing left.

mod world;

use std::path::PathBuf;
use std::time::Duration;

use executor::logs::Logs;
use executor::*;
use garden_client::Error as GardenError;
use garden_client::memory::{Call, MemoryGarden, Script};
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use world::*;

/// Takes a request and never answers it.
async fn a_server_that_hangs() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/app", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            _ = stream.read(&mut [0; 1024]).await;
            held.push(stream);
        }
    });
    url
}

#[tokio::test(start_paused = true)]
async fn a_url_that_hangs_is_given_up() {
    let mut world = world();
    world.garden.script("/app", Script::runs());
    let url = a_server_that_hangs().await;
    let began = Instant::now();
    world.start("a", RunInfo { setup: Some(download(&url, "")), ..recipe("/app") });
    world.expect(&["Reserved a", "Failed a: Downloading the app failed"]).await;
    let dependency =
        CachedDependency { name: "jdk".into(), from: url.clone(), to: "/jdk".into(), ..Default::default() };
    world.start("b", RunInfo { cached_dependencies: vec![dependency], ..recipe("/app") });
    world.expect(&["Reserved b", "Failed b: failed to download cached artifacts (retryable)"]).await;
    // Four attempts of ten seconds, and pauses between them; twice.
    assert!(began.elapsed() < Duration::from_secs(120), "{:?}", began.elapsed());
    for guid in ["a", "b"] {
        world.executor.delete(guid).await.unwrap();
    }
    world.nothing_is_left().await;
}

#[tokio::test(start_paused = true)]
async fn a_garden_that_is_killed_while_it_creates_fails_the_container_and_it_may_be_tried_elsewhere() {
    let mut world = world();
    world.garden.script("/app", Script::runs());
    let gone = GardenError::Disconnected("garden went away".into());
    world.garden.fail(Call::Create, gone, 1);
    world.start("a", recipe("/app"));
    let why = "Failed a: failed to create container: garden went away (retryable)";
    world.expect(&["Reserved a", why]).await;
    assert!(!world.garden.calls().iter().any(|call| call.starts_with("run")));
    world.executor.delete("a").await.unwrap();
    world.nothing_is_left().await;
}

/// What has no room any more cannot be written: here because something is in the way, which takes no small disk to try.
fn in_the_way(world: &World, path: &str) -> PathBuf {
    let path = world.state.path().join("executor-containers").join(path);
    std::fs::create_dir_all(&path).unwrap();
    path
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_written_down_is_not_begun() {
    let mut world = world();
    world.garden.script("/setup", Script::runs());
    world.garden.script("/app", Script::runs());
    in_the_way(&world, "a/request.json.unfinished");
    world.start("a", recipe("/app"));
    world.expect(&["Reserved a"]).await;
    let failed = world.event().await;
    assert!(failed.starts_with("Failed a: cannot write "), "{failed}");
    assert!(failed.ends_with("request.json: Is a directory (os error 21) (retryable)"), "{failed}");
    assert!(world.garden.handles().is_empty());

    world.start("b", RunInfo { setup: Some(action("/setup")), ..recipe("/app") });
    world.expect(&["Reserved b"]).await;
    while world.garden.running("b").is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    in_the_way(&world, "b/record.json.unfinished");
    world.garden.exit("b", "/setup", 0);
    let failed = world.event().await;
    assert!(failed.starts_with("Failed b: cannot write "), "{failed}");
    assert_eq!(world.garden.seen("b").unwrap().processes.len(), 1, "only what is written down is started");
    for guid in ["a", "b"] {
        world.executor.delete(guid).await.unwrap();
    }
    world.nothing_is_left().await;
}

#[tokio::test(start_paused = true)]
async fn what_runs_goes_on_when_nothing_can_be_written_down_any_more() {
    let mut world = world();
    world.garden.script("/app", Script::runs());
    world.start("a", recipe("/app"));
    world.expect(&["Reserved a", "Running a"]).await;
    in_the_way(&world, "a/record.json.unfinished");
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert_eq!(world.executor.get("a").unwrap().state, State::Running);
    world.garden.exit("a", "/app", 3);
    world.expect(&["Failed a: APP: Exited with status 3"]).await;
    world.executor.delete("a").await.unwrap();
    world.nothing_is_left().await;
}

fn begin(garden: &MemoryGarden, state: PathBuf) -> (Executor, CancellationToken) {
    let executor = executor_on(garden.clone(), state, Logs::default(), |_| {});
    let (ran, shutdown) = (executor.clone(), CancellationToken::new());
    let until = shutdown.clone();
    tokio::spawn(async move { ran.run(until).await });
    (executor, shutdown)
}

fn mute() -> GardenError {
    GardenError::Other("container 'a' is broken and can only be destroyed".into())
}

#[tokio::test(start_paused = true)]
async fn a_container_whose_init_is_slow_to_answer_a_new_garden_is_waited_for() {
    let mut world = world();
    world.garden.script("/app", Script::runs());
    world.start("a", recipe("/app"));
    world.expect(&["Reserved a", "Running a"]).await;
    let World { executor, garden, state, .. } = world;
    leave(executor).await;
    garden.fail(Call::Attach, mute(), 5);
    let (executor, shutdown) = begin(&garden, state.path().to_path_buf());
    let mut events = executor.subscribe();
    while garden.calls().iter().filter(|call| call.starts_with("attach")).count() < 6 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(executor.get("a").unwrap().state, State::Running);
    garden.exit("a", "/app", 4);
    let Some(Heard::Event(event)) = events.next().await else { panic!("no event") };
    assert_eq!(describe(&event), "Failed a: APP: Exited with status 4");
    shutdown.cancel();
}

#[tokio::test(start_paused = true)]
async fn a_container_whose_init_never_answers_is_given_up_and_can_be_stopped_meanwhile() {
    let mut world = world();
    world.garden.script("/app", Script::runs());
    for guid in ["a", "b"] {
        world.start(guid, recipe("/app"));
        world.expect(&[&format!("Reserved {guid}"), &format!("Running {guid}")]).await;
    }
    let World { executor, garden, state, .. } = world;
    leave(executor).await;
    garden.fail(Call::Attach, mute(), usize::MAX);
    let began = Instant::now();
    let (executor, shutdown) = begin(&garden, state.path().to_path_buf());
    let mut events = executor.subscribe();
    executor.delete("b").await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    for wanted in ["Failed b", "Failed a"] {
        let Some(Heard::Event(event)) = events.next().await else { panic!("no event") };
        let told = describe(&event);
        assert!(told.starts_with(wanted) && told.contains("is broken"), "{told}");
    }
    assert!(began.elapsed() >= Duration::from_secs(60));
    assert_eq!(garden.calls().iter().filter(|call| call.starts_with("run a")).count(), 1);
    shutdown.cancel();
}
