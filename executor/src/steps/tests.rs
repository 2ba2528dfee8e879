use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bbs_models::{EnvironmentVariable, ResourceLimits, RunAction, UploadAction};
use garden_client::memory::{Call, MemoryGarden, Script};
use garden_client::{ContainerSpec, Error, Garden};

use super::*;
use crate::logs::{Logs, Out};
use crate::{CellResources, Config, Executor, LogConfig};

/// A container `c` whose steps can be run.
struct Scene {
    garden: MemoryGarden,
    stage: Stage,
    logs: Logs,
    _state: tempfile::TempDir,
}

impl Scene {
    async fn new() -> Self {
        let state = tempfile::tempdir().unwrap();
        let http = diego_base::http::client(&Default::default()).unwrap();
        let config = Config::new("cell", CellResources::default(), state.path().to_path_buf(), http);
        let (garden, logs) = (MemoryGarden::new(), Logs::default());
        garden.create(ContainerSpec { handle: "c".into(), ..Default::default() }).await.unwrap();
        let executor = Executor::new(config, Arc::new(garden.clone()), logs.clone()).unwrap();
        let shared = executor.0.clone();
        let log_config =
            LogConfig { guid: "app".into(), index: 0, source_name: "SRC".into(), tags: BTreeMap::new() };
        let stage = Stage {
            guid: "c".into(),
            logs: crate::logs::LogStream::new(
                &logs,
                &log_config,
                "c",
                (-1, 0),
                shared.config.clock.clone(),
                Arc::new(()),
            ),
            shared,
            environment: Arc::new(vec!["CF_INSTANCE_IP=1.2.3.4".into()]),
            internal_ip: Some([127, 0, 0, 1].into()),
            vantage: Arc::default(),
            readiness: mpsc::channel(1).0,
            capture: None,
            begun: None,
            place: Place::default(),
        };
        Scene { garden, stage, logs, _state: state }
    }

    async fn perform(&self, step: &Step) -> String {
        self.perform_until(step, &CancellationToken::new()).await
    }

    async fn perform_until(&self, step: &Step, cancel: &CancellationToken) -> String {
        match perform(step, &self.stage, cancel, &Ready::default()).await {
            Ok(()) => "ok".to_string(),
            Err(error) => error.to_string(),
        }
    }

    /// Cancels a step once `seconds` have passed.
    async fn perform_for(&self, step: &Step, seconds: u64) -> String {
        let cancel = CancellationToken::new();
        let later = async {
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            cancel.cancel();
        };
        tokio::join!(self.perform_until(step, &cancel), later).0
    }

    /// `SRC out: text`, a line each.
    fn said(&self) -> Vec<String> {
        let name = |out| if out == Out::Out { "out" } else { "err" };
        let lines = self.logs.recent("app", usize::MAX);
        lines.iter().map(|line| format!("{} {}: {}", line.source, name(line.stream), line.text())).collect()
    }
}

fn run(path: &str) -> Step {
    let action = RunAction { path: path.into(), ..RunAction::default() };
    Step::Run(Run { action, source: String::new(), suppress_exit_status: false })
}

fn timeout(step: Step, seconds: u64) -> Step {
    Step::Timeout { step: Box::new(step), limit: Duration::from_secs(seconds) }
}

fn progress(step: Step) -> Step {
    let messages =
        Messages { start: "Starting".into(), success: "Succeeded".into(), failure_prefix: "Failed".into() };
    Step::EmitProgress { step: Box::new(step), messages, source: "CELL".into() }
}

fn codependent(steps: Vec<Step>, rule: OnExit) -> Step {
    Step::Codependent { steps, rule }
}

async fn check(step: Step, result: &str, said: &[&str]) {
    let scene = Scene::new().await;
    scene.garden.script("/ok", Script::exits(0).out("fine\nand well"));
    scene.garden.script("/bad", Script::exits(7).err("oh dear\n"));
    scene.garden.script("/quiet", Script::exits(0));
    scene.garden.script("/server", Script::runs());
    scene.garden.script("/slow", Script::exits_after(Duration::from_secs(3), 0));
    assert_eq!(scene.perform(&step).await, result, "{step:?}");
    assert_eq!(scene.said(), said, "{step:?}");
    assert!(scene.garden.running("c").is_empty(), "{step:?} leaves a process");
}

#[tokio::test(start_paused = true)]
async fn a_run_step_tells_what_its_process_said_and_how_it_ended() {
    check(run("/ok"), "ok", &["SRC out: fine", "SRC out: and well", "SRC out: Exit status 0"]).await;
    let said = ["SRC err: oh dear", "SRC out: Exit status 7"];
    check(run("/bad"), "SRC: Exited with status 7", &said).await;
    let said = ["SRC out: failed-creating-process: /gone: not found"];
    check(run("/gone"), "/gone: not found", &said).await;
}

#[tokio::test(start_paused = true)]
async fn combinators_make_of_their_children_what_they_promise() {
    let (ok, bad) = (["SRC out: Exit status 0"], ["SRC err: oh dear", "SRC out: Exit status 7"]);
    let reason = "SRC: Exited with status 7";
    check(Step::Try(Box::new(run("/bad"))), "ok", &bad).await;
    check(Step::Serial(vec![run("/quiet"), run("/bad"), run("/quiet")]), reason, &[&ok[..], &bad].concat())
        .await;
    check(Step::Serial(Vec::new()), "ok", &[]).await;
    let parallel = Step::Parallel(vec![run("/bad"), run("/slow")]);
    check(parallel, reason, &[&bad[..], &ok].concat()).await;
    let stopped = "SRC out: Exit status 143";
    let steps = || vec![run("/server"), run("/bad")];
    check(codependent(steps(), OnExit::Fail), reason, &[&bad[..], &[stopped]].concat()).await;
    let steps = || vec![run("/server"), run("/quiet")];
    check(codependent(steps(), OnExit::Fail), "Codependent step exited", &[ok[0], stopped]).await;
    check(codependent(steps(), OnExit::CancelOthers), "", &[ok[0], stopped]).await;
    let steps = vec![run("/slow"), run("/quiet")];
    check(codependent(steps, OnExit::Continue), "ok", &[ok[0], ok[0]]).await;
}

#[tokio::test(start_paused = true)]
async fn a_timeout_ends_what_it_wraps_and_says_so() {
    let said = ["SRC out: Exit status 143"];
    check(timeout(run("/server"), 90), "exceeded 1m30s timeout", &said).await;
    check(timeout(run("/slow"), 5), "ok", &["SRC out: Exit status 0"]).await;
    let said = ["SRC err: oh dear", "SRC out: Exit status 7"];
    check(timeout(run("/bad"), 5), "SRC: Exited with status 7", &said).await;
    let nested = timeout(timeout(run("/server"), 60), 1);
    check(nested, "exceeded 1s timeout", &["SRC out: Exit status 143"]).await;
}

#[tokio::test(start_paused = true)]
async fn progress_is_told_before_and_after() {
    let said = ["CELL out: Starting", "SRC out: Exit status 0", "CELL out: Succeeded"];
    check(progress(run("/quiet")), "ok", &said).await;
    let said = [
        "CELL out: Starting",
        "SRC err: oh dear",
        "SRC out: Exit status 7",
        "CELL err: Failed: SRC: Exited with status 7",
    ];
    check(progress(run("/bad")), "SRC: Exited with status 7", &said).await;
    // Not everything that went wrong is for the application's eyes.
    let said =
        ["CELL out: Starting", "SRC out: failed-creating-process: /gone: not found", "CELL err: Failed"];
    check(progress(run("/gone")), "/gone: not found", &said).await;
}

#[tokio::test(start_paused = true)]
async fn a_captured_step_fails_with_what_it_said() {
    check(Step::Capture(Box::new(run("/ok"))), "ok", &[]).await;
    let scene = Scene::new().await;
    scene.garden.script("/bad", Script::exits(7).out("port 8080\n").err("is not open\n"));
    scene.garden.script("/mute", Script::exits(7));
    let capture = |path: &str| {
        let action = RunAction { path: path.into(), ..RunAction::default() };
        let run = Run { action, source: String::new(), suppress_exit_status: true };
        Step::Capture(Box::new(Step::Run(run)))
    };
    assert_eq!(scene.perform(&capture("/bad")).await, "port 8080\nis not open");
    assert_eq!(scene.perform(&capture("/mute")).await, "Failed to invoke process: ");
    assert!(scene.said().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_process_told_to_stop_is_asked_then_killed_then_given_up() {
    let scene = Scene::new().await;
    scene.garden.script("/polite", Script::runs().on_terminate(0));
    scene.garden.script("/rude", Script::runs().ignores_terminate());
    scene.garden.script("/undead", Script::runs().ignores_everything());
    let table = [
        ("/polite", 5, "cancelled", Some("SRC out: Exit status 0")),
        (
            "/rude",
            15,
            "exceeded graceful shutdown interval",
            Some("SRC out: Exit status 137 (exceeded 10s graceful shutdown interval)"),
        ),
        ("/undead", 16, "process did not exit", None),
    ];
    for (path, seconds, result, said) in table {
        let started = tokio::time::Instant::now();
        assert_eq!(scene.perform_for(&run(path), 5).await, result);
        assert_eq!(started.elapsed().as_secs(), seconds, "{path}");
        if let Some(said) = said {
            assert_eq!(scene.said().last().unwrap(), said);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_step_starts_nothing() {
    let scene = Scene::new().await;
    scene.garden.script("/ok", Script::exits(0));
    let cancelled = CancellationToken::new();
    cancelled.cancel();
    assert_eq!(scene.perform_until(&run("/ok"), &cancelled).await, "cancelled");
    let row = Step::Serial(vec![Step::Try(Box::new(run("/ok"))), run("/ok")]);
    assert_eq!(scene.perform_until(&row, &cancelled).await, "cancelled");
    assert!(scene.garden.seen("c").unwrap().processes.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_process_that_starts_while_it_is_cancelled_is_ended() {
    let scene = Scene::new().await;
    scene.garden.script("/server", Script::runs());
    scene.garden.hold(Call::Run);
    let garden = scene.garden.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(3)).await;
        garden.release(Call::Run);
    });
    assert_eq!(scene.perform_for(&run("/server"), 1).await, "cancelled");
    assert!(scene.garden.running("c").is_empty());
    assert_eq!(scene.garden.seen("c").unwrap().processes.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn running_out_of_memory_is_told() {
    let scene = Scene::new().await;
    scene.garden.script("/hog", Script::exits(137));
    scene.garden.add_event("c", "Out of memory");
    assert_eq!(scene.perform(&run("/hog")).await, "SRC: Exited with status 137 (out of memory): SIGKILL");
    assert_eq!(scene.said(), ["SRC out: Exit status 137 (out of memory)"]);
}

#[tokio::test]
async fn a_process_gets_its_environment_limits_and_user() {
    let scene = Scene::new().await;
    scene.garden.script("/ok", Script::exits(0).out("not heard"));
    let action = RunAction {
        path: "/ok".into(),
        args: vec!["-v".into()],
        dir: "/home".into(),
        env: vec![EnvironmentVariable { name: "A".into(), value: "1".into() }],
        resource_limits: Some(ResourceLimits { nofile: Some(99), nproc: Some(7) }),
        user: "vcap".into(),
        suppress_log_output: true,
        ..RunAction::default()
    };
    let step = Step::Run(Run { action, source: "X".into(), suppress_exit_status: false });
    assert_eq!(scene.perform(&step).await, "ok");
    let process = scene.garden.seen("c").unwrap().processes.remove(0);
    assert_eq!(process.env, ["A=1", "CF_INSTANCE_IP=1.2.3.4"]);
    assert_eq!((process.user.as_str(), process.dir.as_str()), ("vcap", "/home"));
    assert_eq!(process.rlimits.nofile, Some(99));
    assert!(scene.said().is_empty());
}

#[tokio::test]
async fn an_upload_that_cannot_be_made_says_what_failed_and_nothing_of_its_url() {
    let upload = |from: &str, to: &str| {
        let action = UploadAction {
            artifact: "droplet".into(),
            from: from.into(),
            to: to.into(),
            ..UploadAction::default()
        };
        Step::Upload { action, source: String::new() }
    };
    let scene = Scene::new().await;
    scene.garden.put_file("c", "/tmp/droplet", b"hello");
    let gone = scene.perform(&upload("/tmp/nothing", "http://127.0.0.1:1/")).await;
    assert_eq!(gone, "Failed to establish stream from container for droplet");
    let refused = scene.perform(&upload("/tmp/droplet", "http://127.0.0.1:1/?secret=1")).await;
    assert!(!refused.contains("secret"), "{refused}");
    assert!(scene.perform(&upload("/tmp/droplet", "no url")).await.starts_with("parse upload URL"));
    let said = [
        "SRC out: Uploading droplet...",
        "SRC err: Failed to establish stream from container for droplet",
        "SRC out: Uploading droplet...",
        "SRC err: Failed to upload payload for droplet",
        "SRC out: Uploading droplet...",
        "SRC err: Failed to parse URL for droplet",
    ];
    assert_eq!(scene.said(), said);
}

#[tokio::test]
async fn garden_failing_to_wait_is_the_reason() {
    let scene = Scene::new().await;
    scene.garden.script("/ok", Script::exits(0));
    scene.garden.fail(Call::Run, Error::Other("no more processes".into()), 1);
    assert_eq!(scene.perform(&run("/ok")).await, "no more processes");
}

#[tokio::test]
async fn actions_nested_as_deep_as_the_wire_allows_are_carried_out() {
    const DEPTH: usize = 128;
    let mut step = run("/ok");
    for level in 0..DEPTH {
        step = match level % 4 {
            0 => Step::Serial(vec![step]),
            1 => timeout(step, 60),
            2 => codependent(vec![step], OnExit::CancelOthers),
            _ => progress(step),
        };
    }
    let scene = Scene::new().await;
    scene.garden.script("/ok", Script::exits(0));
    assert_eq!(scene.perform(&step).await, "ok");
}
