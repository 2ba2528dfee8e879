//! An executor on a garden in memory, and what stories need to say about them.

#![allow(dead_code)]

pub mod certificates;
pub mod network;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bbs_models::{Action, DownloadAction, RunAction};
use diego_base::clock::Clock;
use executor::logs::Logs;
use executor::*;
use garden_client::memory::MemoryGarden;

pub const TOTAL: CellResources = CellResources { memory_mb: 1000, disk_mb: 2000, containers: 10 };
/// No story takes so long.
pub const PATIENCE: Duration = Duration::from_secs(120);

pub struct World {
    pub executor: Executor,
    pub garden: MemoryGarden,
    pub events: Events,
    pub state: tempfile::TempDir,
}

pub fn world() -> World {
    world_with(|_| {})
}

pub fn world_with(change: impl FnOnce(&mut Config)) -> World {
    let state = tempfile::tempdir().unwrap();
    let (executor, garden) = executor_in(state.path().to_path_buf(), change);
    World { events: executor.subscribe(), executor, garden, state }
}

pub fn executor_in(state: PathBuf, change: impl FnOnce(&mut Config)) -> (Executor, MemoryGarden) {
    let garden = MemoryGarden::new();
    (executor_on(garden.clone(), state, Logs::default(), change), garden)
}

/// An executor on a garden that may have a past.
pub fn executor_on(
    garden: MemoryGarden,
    state: PathBuf,
    logs: Logs,
    change: impl FnOnce(&mut Config),
) -> Executor {
    let http = diego_base::http::ClientConfig { timeout: None, ..Default::default() };
    let mut config = Config::new("cell-1", TOTAL, state, diego_base::http::client(&http).unwrap());
    change(&mut config);
    Executor::new(config, Arc::new(garden), logs).unwrap()
}

/// Ends an executor that leaves its containers as they are.
pub async fn leave(executor: Executor) {
    let stop = tokio_util::sync::CancellationToken::new();
    stop.cancel();
    executor.run(stop).await;
}

/// The one that goes with the time of a paused test.
pub struct PausedClock(tokio::time::Instant);

impl PausedClock {
    pub fn start() -> PausedClock {
        PausedClock(tokio::time::Instant::now())
    }
}

impl Clock for PausedClock {
    fn now_ns(&self) -> i64 {
        i64::try_from(self.0.elapsed().as_nanos()).unwrap()
    }
}

impl World {
    pub fn allocate(&self, guid: &str) -> Vec<AllocationFailure> {
        let resource = Resource { memory_mb: 100, disk_mb: 200, max_pids: 0 };
        self.executor.allocate(vec![AllocationRequest { guid: guid.into(), resource, tags: Tags::new() }])
    }

    pub fn start(&self, guid: &str, run_info: RunInfo) {
        assert!(self.allocate(guid).is_empty());
        self.run(guid, run_info);
    }

    pub fn run(&self, guid: &str, run_info: RunInfo) {
        let request = RunRequest { guid: guid.into(), run_info, tags: Tags::new() };
        self.executor.run_container(request).unwrap();
    }

    /// `Running a`, `Completed a: its reason`, with `(stopped)` and `(retryable)` where it is.
    pub async fn event(&mut self) -> String {
        let heard = tokio::time::timeout(PATIENCE, self.events.next()).await.expect("an event comes");
        match heard.unwrap() {
            Heard::Missed(missed) => format!("missed {missed}"),
            Heard::Event(event) => describe(&event),
        }
    }

    pub async fn expect(&mut self, events: &[&str]) {
        for wanted in events {
            assert_eq!(self.event().await, *wanted);
        }
    }

    pub async fn nothing_is_left(&self) {
        assert!(self.garden.handles().is_empty(), "{:?}", self.garden.handles());
        assert!(self.executor.list().is_empty());
        assert_eq!(self.executor.remaining_resources(), TOTAL);
        for dir in ["executor-work/credentials", "executor-work/files"] {
            let entries = std::fs::read_dir(self.state.path().join(dir)).map(|entries| entries.count());
            assert_eq!(entries.unwrap_or(0), 0, "{dir}");
        }
    }

    /// `SRC: text` of the log guid `app`.
    pub fn said(&self) -> Vec<String> {
        let lines = self.executor.logs().recent("app", usize::MAX);
        lines.iter().map(|line| format!("{}: {}", line.source, line.text())).collect()
    }
}

pub fn describe(event: &Event) -> String {
    let container = event.container();
    let guid = &container.guid;
    match (event, &container.state) {
        (Event::Reserved(_), _) => format!("Reserved {guid}"),
        (Event::Running(_), _) if !container.routable => format!("Running {guid} (not routable)"),
        (Event::Running(_), _) => format!("Running {guid}"),
        (Event::RoutableChanged(_), _) => format!("Routable {guid} {}", container.routable),
        (Event::Completed(_), State::Completed(result)) => {
            let marks = [(result.stopped, " (stopped)"), (result.retryable, " (retryable)")];
            let marks: String = marks.iter().filter(|(is, _)| *is).map(|(_, mark)| *mark).collect();
            let word = if result.failed { "Failed" } else { "Completed" };
            format!("{word} {guid}: {}{marks}", result.failure_reason)
        }
        (Event::Completed(_), state) => format!("completed event of a container that is {state:?}"),
    }
}

pub fn action(path: &str) -> Action {
    Action::Run(RunAction { path: path.into(), user: "vcap".into(), ..RunAction::default() })
}

pub fn download(url: &str, cache_key: &str) -> Action {
    Action::Download(DownloadAction {
        artifact: "the app".into(),
        from: url.into(),
        to: "/home/vcap".into(),
        cache_key: cache_key.into(),
        user: "vcap".into(),
        ..DownloadAction::default()
    })
}

pub fn recipe(path: &str) -> RunInfo {
    RunInfo {
        rootfs: "preloaded:stack".into(),
        action: Some(action(path)),
        log_config: LogConfig { guid: "app".into(), source_name: "APP".into(), ..LogConfig::default() },
        log_rate_limit_bytes_per_second: -1,
        ..RunInfo::default()
    }
}
