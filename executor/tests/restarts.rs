//! An executor ends and another takes its place: on a garden in memory, whose containers and processes go on meanwhile.

mod world;

use std::path::PathBuf;
use std::time::Duration;

use bbs_models::{Action, Check, CheckDefinition, File, ManyActions};
use executor::logs::Logs;
use executor::*;
use garden_client::Garden;
use garden_client::memory::{Call, MemoryGarden, Script};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use world::*;

/// What stays while executors come and go.
struct Cell {
    garden: MemoryGarden,
    logs: Logs,
    state: tempfile::TempDir,
    identity: InstanceIdentity,
}

/// One executor's time.
struct Life {
    executor: Executor,
    events: Events,
    shutdown: CancellationToken,
    running: JoinHandle<()>,
}

impl Cell {
    fn new() -> Cell {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let identity = InstanceIdentity {
            ca_certificate_pem: params.self_signed(&key).unwrap().pem(),
            ca_private_key_pem: key.serialize_pem(),
            validity: Duration::from_secs(86_400),
        };
        let (garden, logs) = (MemoryGarden::new(), Logs::default());
        Cell { garden, logs, state: tempfile::tempdir().unwrap(), identity }
    }

    fn begin(&self) -> Life {
        let state = self.state.path().to_path_buf();
        let executor = executor_on(self.garden.clone(), state, self.logs.clone(), |config| {
            config.instance_identity = Some(self.identity.clone());
        });
        let (events, shutdown) = (executor.subscribe(), CancellationToken::new());
        let (ran, stop) = (executor.clone(), shutdown.clone());
        let running = tokio::spawn(async move { ran.run(stop).await });
        Life { executor, events, shutdown, running }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.state.path().join(path)
    }

    fn records(&self) -> usize {
        let entries = std::fs::read_dir(self.path("executor-containers")).unwrap();
        entries
            .filter(|entry| !entry.as_ref().unwrap().file_name().to_string_lossy().starts_with('.'))
            .count()
    }

    fn calls(&self, kind: &str) -> Vec<String> {
        self.garden.calls().into_iter().filter(|call| call.starts_with(kind)).collect()
    }

    fn said(&self, text: &str) -> usize {
        self.logs.recent("app", usize::MAX).iter().filter(|line| line.text() == text).count()
    }

    /// Until garden has been asked so many times.
    async fn until_called(&self, kind: &str, times: usize) {
        let asking = async {
            while self.calls(kind).len() < times {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, asking).await.expect("garden is asked");
    }
}

impl Life {
    fn start(&self, guid: &str, run_info: RunInfo) {
        let resource = Resource { memory_mb: 100, disk_mb: 200, max_pids: 0 };
        let tags = Tags::from([("lifecycle".to_string(), "lrp".to_string())]);
        let request = AllocationRequest { guid: guid.into(), resource, tags };
        assert!(self.executor.allocate(vec![request]).is_empty());
        let request = RunRequest { guid: guid.into(), run_info, tags: Tags::new() };
        self.executor.run_container(request).unwrap();
    }

    async fn expect(&mut self, events: &[&str]) {
        for wanted in events {
            let heard = tokio::time::timeout(PATIENCE, self.events.next()).await.expect("an event comes");
            match heard.unwrap() {
                Heard::Event(event) => assert_eq!(describe(&event), *wanted),
                Heard::Missed(missed) => panic!("missed {missed}"),
            }
        }
    }

    /// It ends as one that is killed, at least as far as its containers can tell.
    async fn end(self) {
        let Life { executor, shutdown, running, .. } = self;
        shutdown.cancel();
        running.await.unwrap();
        drop(executor);
    }

    async fn leaves_nothing(self, cell: &Cell) {
        assert!(cell.garden.handles().is_empty(), "{:?}", cell.garden.handles());
        assert!(self.executor.list().is_empty());
        assert_eq!(self.executor.remaining_resources(), TOTAL);
        assert_eq!(cell.records(), 0);
        for dir in ["executor-work/credentials", "executor-work/files"] {
            assert_eq!(std::fs::read_dir(cell.path(dir)).unwrap().count(), 0, "{dir}");
        }
        self.end().await;
    }
}

fn many(paths: &[&str]) -> ManyActions {
    ManyActions { actions: paths.iter().map(|path| action(path)).collect(), log_source: String::new() }
}

#[tokio::test(start_paused = true)]
async fn a_running_container_outlives_its_executor() {
    let cell = Cell::new();
    cell.garden.script("/app", Script::runs().out("hello\n"));
    let mut first = cell.begin();
    let recipe = RunInfo {
        ports: vec![PortMapping { container_port: 8080, ..PortMapping::default() }],
        volume_mounted_files: vec![File { path: "db/password".into(), content: "secret".into() }],
        ..recipe("/app")
    };
    first.start("a", recipe);
    first.expect(&["Reserved a", "Running a"]).await;
    let before = first.executor.get("a").unwrap();
    first.end().await;
    assert_eq!(cell.garden.running("a"), ["/app"]);

    let mut second = cell.begin();
    let after = second.executor.get("a").unwrap();
    assert_eq!(after.state, State::Running, "from the first moment on");
    assert_eq!((after.ports, after.tags, after.internal_ip), (before.ports, before.tags, before.internal_ip));
    assert_eq!(after.run_info.unwrap().volume_mounted_files.len(), 1);
    assert_eq!(second.executor.remaining_resources().memory_mb, 900);
    assert!(cell.path("executor-work/files/a/db/password").exists(), "what is mounted stays");
    cell.until_called("attach a", 1).await;
    assert!(cell.garden.say("a", "/app", "still here\n").await);
    assert_eq!(cell.said("still here"), 1);
    assert!(cell.path("executor-work/credentials/a/instance.crt").exists());
    cell.garden.exit("a", "/app", 3);
    second.expect(&["Failed a: APP: Exited with status 3"]).await;
    assert_eq!(cell.calls("run a").len(), 1);
    second.executor.delete("a").await.unwrap();
    second.leaves_nothing(&cell).await;
}

#[tokio::test(start_paused = true)]
async fn what_ended_while_nobody_watched_is_told_by_the_next_life() {
    let cell = Cell::new();
    cell.garden.script("/app", Script::runs());
    let mut first = cell.begin();
    for guid in ["well", "badly"] {
        first.start(guid, recipe("/app"));
    }
    for _ in 0..4 {
        first.events.next().await.unwrap();
    }
    first.end().await;
    cell.garden.exit("well", "/app", 0);
    cell.garden.exit("badly", "/app", 4);
    let second = cell.begin();
    let completed = async |guid: &str| loop {
        if let State::Completed(result) = second.executor.get(guid).unwrap().state {
            return result;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    assert!(!completed("well").await.failed);
    assert_eq!(completed("badly").await.failure_reason, "APP: Exited with status 4");
    for guid in ["well", "badly"] {
        second.executor.delete(guid).await.unwrap();
    }
    second.leaves_nothing(&cell).await;
}

#[tokio::test(start_paused = true)]
async fn a_recipe_goes_on_where_it_was() {
    let cell = Cell::new();
    for path in ["/first", "/second", "/app"] {
        cell.garden.script(path, Script::runs());
    }
    let mut first = cell.begin();
    let setup = Some(Action::Serial(many(&["/first", "/second"])));
    first.start("a", RunInfo { setup, ..recipe("/app") });
    cell.until_called("run a /first", 1).await;
    cell.garden.exit("a", "/first", 0);
    cell.until_called("run a /second", 1).await;
    first.expect(&["Reserved a"]).await;
    first.end().await;
    let mut second = cell.begin();
    assert_eq!(second.executor.get("a").unwrap().state, State::Created);
    cell.garden.exit("a", "/second", 0);
    second.expect(&["Running a"]).await;
    assert_eq!(cell.calls("run a"), ["run a /first", "run a /second", "run a /app"], "each once");
    second.end().await;
    let second = cell.begin();
    second.executor.delete("a").await.unwrap();
    second.leaves_nothing(&cell).await;
}

#[tokio::test(start_paused = true)]
async fn a_recipe_of_the_deepest_kind_goes_on_too() {
    let cell = Cell::new();
    for path in ["/app", "/side"] {
        cell.garden.script(path, Script::runs());
    }
    let deepest = |path: &str| {
        let within =
            |inner, _| Action::Serial(ManyActions { actions: vec![inner], log_source: String::new() });
        (1..bbs_models::ACTIONS_NESTED_MAX).fold(action(path), within)
    };
    let mut first = cell.begin();
    let sidecars = vec![Sidecar { action: deepest("/side"), memory_mb: 0, disk_mb: 0 }];
    first.start("a", RunInfo { action: Some(deepest("/app")), sidecars, ..recipe("") });
    first.expect(&["Reserved a", "Running a"]).await;
    first.end().await;
    let mut second = cell.begin();
    cell.until_called("attach a", 2).await;
    cell.garden.exit("a", "/app", 3);
    second.expect(&["Failed a: APP: Exited with status 3"]).await;
    assert_eq!(cell.calls("run a").len(), 2);
    second.executor.delete("a").await.unwrap();
    second.leaves_nothing(&cell).await;
}

#[tokio::test(start_paused = true)]
async fn a_process_that_may_have_been_started_is_not_started_again() {
    let cell = Cell::new();
    cell.garden.script("/app", Script::runs());
    let mut first = cell.begin();
    cell.garden.hold(Call::Run);
    first.start("a", recipe("/app"));
    first.expect(&["Reserved a"]).await;
    cell.until_called("run a", 1).await;
    first.end().await;
    cell.garden.release(Call::Run);
    let mut second = cell.begin();
    second.expect(&["Failed a: the process was lost when the cell's agent was started again"]).await;
    assert_eq!(cell.calls("run a").len(), 1);
    second.executor.delete("a").await.unwrap();
    second.leaves_nothing(&cell).await;
}

#[tokio::test(start_paused = true)]
async fn a_reservation_is_kept_by_the_next_life() {
    let cell = Cell::new();
    cell.garden.script("/app", Script::runs());
    let first = cell.begin();
    let resource = Resource { memory_mb: 100, disk_mb: 200, max_pids: 7 };
    let tags = Tags::from([("lifecycle".to_string(), "task".to_string())]);
    let request = |guid: &str| AllocationRequest { guid: guid.into(), resource, tags: tags.clone() };
    assert!(first.executor.allocate(["run", "expired"].map(request).into()).is_empty());
    first.end().await;
    let mut second = cell.begin();
    let kept = second.executor.get("run").unwrap();
    assert_eq!((kept.state, kept.resource, &kept.tags), (State::Reserved, resource, &tags));
    assert_eq!(second.executor.remaining_resources().memory_mb, 800);
    assert_eq!(second.executor.allocate(vec![request("run")])[0].reason, "container guid not available");
    let run = RunRequest { guid: "run".into(), run_info: recipe("/app"), tags: Tags::new() };
    second.executor.run_container(run).unwrap();
    second.expect(&["Running run", "Failed expired: expired container"]).await;
    second.end().await;
    let second = cell.begin();
    assert_eq!(second.executor.list().len(), 1, "nobody waits for it any more");
    second.executor.delete("run").await.unwrap();
    second.leaves_nothing(&cell).await;
}

#[tokio::test(start_paused = true)]
async fn of_reservations_that_came_to_nothing_nothing_is_written_down() {
    let cell = Cell::new();
    let first = cell.begin();
    let resource = Resource { memory_mb: 500, disk_mb: 1, max_pids: 0 };
    let request = |guid: &str| AllocationRequest { guid: guid.into(), resource, tags: Tags::new() };
    let refused = first.executor.allocate(["a", "b", "c", "", "a"].map(request).into());
    assert_eq!(refused.len(), 3);
    assert_eq!(cell.records(), 2);
    first.executor.stop("a").await.unwrap();
    assert_eq!(cell.records(), 1);
    for guid in ["a", "b"] {
        first.executor.delete(guid).await.unwrap();
    }
    first.leaves_nothing(&cell).await;
}

#[tokio::test(start_paused = true)]
async fn what_was_not_created_yet_may_be_tried_elsewhere() {
    let cell = Cell::new();
    let mut first = cell.begin();
    cell.garden.hold(Call::Create);
    first.start("a", recipe("/app"));
    first.expect(&["Reserved a"]).await;
    cell.until_called("create a", 1).await;
    first.end().await;
    cell.garden.release(Call::Create);
    let mut second = cell.begin();
    let reason = "the cell's agent was started again before the container was created";
    second.expect(&[&format!("Failed a: {reason} (retryable)")]).await;
    second.executor.delete("a").await.unwrap();
    second.leaves_nothing(&cell).await;
}

#[tokio::test(start_paused = true)]
async fn what_completed_stays_so_until_it_is_deleted() {
    let cell = Cell::new();
    cell.garden.script("/app", Script::exits(0));
    let mut first = cell.begin();
    first.start("a", recipe("/app"));
    first.expect(&["Reserved a", "Running a", "Completed a: "]).await;
    cell.garden.put_file("a", "/result", b"42");
    first.end().await;
    let second = cell.begin();
    let State::Completed(result) = second.executor.get("a").unwrap().state else { panic!() };
    assert!(!result.failed);
    assert!(second.executor.files("a", "/result").await.is_ok());
    assert_eq!(cell.calls("run a").len(), 1);
    second.executor.delete("a").await.unwrap();
    second.leaves_nothing(&cell).await;
}

#[tokio::test(start_paused = true)]
async fn a_container_that_was_lost_between_two_lives_is_missing() {
    let cell = Cell::new();
    cell.garden.script("/app", Script::runs());
    let mut first = cell.begin();
    first.start("a", recipe("/app"));
    first.expect(&["Reserved a", "Running a"]).await;
    first.end().await;
    cell.garden.lose("a");
    let mut second = cell.begin();
    second.expect(&["Failed a: missing garden container"]).await;
    second.executor.delete("a").await.unwrap();
    second.leaves_nothing(&cell).await;
}

#[tokio::test(start_paused = true)]
async fn sidecars_and_checks_go_on() {
    let cell = Cell::new();
    for path in ["/app", "/side"] {
        cell.garden.script(path, Script::runs());
    }
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let check = Check::Tcp { port, connect_timeout_ms: 0, interval_ms: 1000 };
    let checks =
        CheckDefinition { checks: vec![check.clone()], readiness_checks: vec![check], ..Default::default() };
    let recipe = RunInfo {
        sidecars: vec![Sidecar { action: action("/side"), memory_mb: 0, disk_mb: 0 }],
        check_definition: Some(checks),
        start_timeout_ms: 60_000,
        ..recipe("/app")
    };
    let mut first = cell.begin();
    first.start("a", recipe);
    first.expect(&["Reserved a", "Running a (not routable)", "Routable a true"]).await;
    first.end().await;
    let mut second = cell.begin();
    assert!(second.executor.get("a").unwrap().routable);
    cell.until_called("attach a", 2).await;
    assert_eq!(cell.said("Starting health monitoring of container"), 1);
    drop(listener);
    let heard = tokio::time::timeout(PATIENCE, async {
        loop {
            match second.events.next().await.unwrap() {
                Heard::Event(Event::Completed(container)) => return container,
                _ => continue,
            }
        }
    });
    let State::Completed(result) = heard.await.unwrap().state else { panic!() };
    let why = "Instance became unhealthy: Liveness check unsuccessful";
    assert!(result.failure_reason.starts_with(why), "{result:?}");
    assert_eq!(cell.calls("run a").len(), 2);
    second.executor.delete("a").await.unwrap();
    second.leaves_nothing(&cell).await;
}

#[tokio::test(start_paused = true)]
async fn a_stop_under_way_is_finished_by_the_next_life() {
    let cell = Cell::new();
    cell.garden.script("/app", Script::runs().ignores_terminate());
    let mut first = cell.begin();
    first.start("a", recipe("/app"));
    first.expect(&["Reserved a", "Running a"]).await;
    first.executor.stop("a").await.unwrap();
    cell.until_called("signal a", 1).await;
    first.end().await;
    let mut second = cell.begin();
    second.expect(&["Failed a: exceeded graceful shutdown interval (stopped)"]).await;
    let signals = ["signal a /app Terminate", "signal a /app Terminate", "signal a /app Kill"];
    assert_eq!(cell.calls("signal a"), signals);
    second.executor.delete("a").await.unwrap();
    second.leaves_nothing(&cell).await;
}

#[tokio::test(start_paused = true)]
async fn an_update_is_remembered() {
    let cell = Cell::new();
    cell.garden.script("/app", Script::runs());
    let mut first = cell.begin();
    first.start("a", recipe("/app"));
    first.expect(&["Reserved a", "Running a"]).await;
    let tags = std::collections::BTreeMap::from([("app".to_string(), "x".to_string())]);
    let (internal_routes, metric_tags) = (Some(vec!["a.internal".to_string()]), Some(tags.clone()));
    first.executor.update(UpdateRequest { guid: "a".into(), internal_routes, metric_tags }).await.unwrap();
    first.end().await;
    let second = cell.begin();
    let run_info = second.executor.get("a").unwrap().run_info.unwrap();
    assert_eq!(
        (&run_info.internal_routes[..], &run_info.metric_tags),
        (&["a.internal".to_string()][..], &tags)
    );
    second.executor.delete("a").await.unwrap();
    second.leaves_nothing(&cell).await;
}

#[tokio::test(start_paused = true)]
async fn a_garden_that_comes_back_is_attached_to_again() {
    let cell = Cell::new();
    cell.garden.script("/app", Script::runs());
    let mut life = cell.begin();
    life.start("a", recipe("/app"));
    life.expect(&["Reserved a", "Running a"]).await;
    for time in 1..=3 {
        cell.garden.go_away();
        tokio::time::sleep(Duration::from_secs(100)).await;
        assert_eq!(life.executor.get("a").unwrap().state, State::Running);
        cell.garden.come_back();
        cell.until_called("attach a", time).await;
        assert!(cell.garden.say("a", "/app", "back\n").await);
        assert_eq!(cell.said("back"), time);
    }
    cell.garden.go_away();
    cell.garden.exit("a", "/app", 5);
    cell.garden.come_back();
    life.expect(&["Failed a: APP: Exited with status 5"]).await;
    life.executor.delete("a").await.unwrap();
    life.leaves_nothing(&cell).await;
}

#[tokio::test(start_paused = true)]
async fn a_garden_that_stays_away_is_given_up() {
    let cell = Cell::new();
    cell.garden.script("/app", Script::runs());
    let mut life = cell.begin();
    life.start("a", recipe("/app"));
    life.expect(&["Reserved a", "Running a"]).await;
    let started = tokio::time::Instant::now();
    cell.garden.go_away();
    let heard = tokio::time::timeout(Duration::from_secs(700), life.events.next()).await.unwrap();
    let Some(Heard::Event(event)) = heard else { panic!("{heard:?}") };
    let why = "garden did not come back within 10m0s: the garden in memory has gone away";
    assert_eq!(describe(&event), format!("Failed a: {why}"));
    assert!(started.elapsed().as_secs() >= 600);
    assert!(life.executor.delete("a").await.is_err(), "it is still there for all we know");
    cell.garden.come_back();
    life.executor.delete("a").await.unwrap();
    life.leaves_nothing(&cell).await;
}

#[tokio::test(start_paused = true)]
async fn what_is_nobodys_is_taken_away() {
    let cell = Cell::new();
    cell.begin().end().await;
    for dir in
        ["executor-work/credentials/gone", "executor-work/files/gone", "executor-containers/unreadable"]
    {
        std::fs::create_dir_all(cell.path(dir)).unwrap();
    }
    std::fs::write(cell.path("executor-work/upload"), "half").unwrap();
    let owned = [("executor:owner".to_string(), "executor".to_string())].into();
    let spec = garden_client::ContainerSpec { handle: "x".into(), properties: owned, ..Default::default() };
    cell.garden.create(spec).await.unwrap();
    let life = cell.begin();
    cell.until_called("destroy x", 1).await;
    assert!(!cell.path("executor-work/upload").exists());
    life.leaves_nothing(&cell).await;
}

#[tokio::test]
async fn a_directory_that_others_use_is_never_taken_for_the_executors() {
    let take: [fn(&mut Config, PathBuf); 3] = [
        |config, path| config.work_dir = path,
        |config, path| config.cache_dir = path,
        |config, path| config.depot_dir = path,
    ];
    for take in take {
        let (others, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::create_dir(others.path().join("letters")).unwrap();
        let http = diego_base::http::client(&diego_base::http::ClientConfig::default()).unwrap();
        let mut config = Config::new("cell-1", TOTAL, state.path().to_path_buf(), http);
        take(&mut config, others.path().to_path_buf());
        let started = Executor::new(config, std::sync::Arc::new(MemoryGarden::new()), Logs::default());
        let refused = started.err().expect("it is others'").to_string();
        assert!(refused.contains("who keep 'letters' there"), "{refused}");
        assert_eq!(std::fs::read_dir(others.path()).unwrap().count(), 1);
    }
}
