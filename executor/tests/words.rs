//! What a container's owner and its user are told by each action, word for word as the original executor says it: people
//! search for these lines, and platforms match on them. One row a behaviour: what is to be done, what is seen of it.

mod world;

use std::time::Duration;

use axum::routing::{get, post};
use bbs_models::{
    Action, DownloadAction, EmitProgressAction, ManyActions, RunAction, TimeoutAction, TryAction,
    UploadAction,
};
use executor::logs::Out;
use executor::*;
use garden_client::memory::Script;
use world::*;

/// A row: what is asked, how it ended, and `SOURCE out: line` of each line about it.
struct Row {
    run_info: RunInfo,
    end: &'static str,
    said: Vec<&'static str>,
}

fn row(action: Action, end: &'static str, said: &[&'static str]) -> Row {
    Row { run_info: RunInfo { action: Some(action), ..recipe("") }, end, said: said.to_vec() }
}

fn run(path: &str) -> Action {
    Action::Run(RunAction { path: path.into(), user: "vcap".into(), ..RunAction::default() })
}

fn from(source: &str, path: &str) -> Action {
    Action::Run(RunAction { path: path.into(), log_source: source.into(), ..RunAction::default() })
}

fn many(actions: Vec<Action>) -> ManyActions {
    ManyActions { actions, log_source: String::new() }
}

fn timeout(action: Action, timeout_ms: i64) -> Action {
    Action::Timeout(TimeoutAction { action: Box::new(action), timeout_ms, log_source: String::new() })
}

fn progress(source: &str, action: Action) -> Action {
    Action::EmitProgress(EmitProgressAction {
        action: Box::new(action),
        start_message: "Staging...".into(),
        success_message: "Staging complete".into(),
        failure_message_prefix: "Staging failed".into(),
        log_source: source.into(),
    })
}

fn fetch(artifact: &str, from: &str) -> Action {
    let (artifact, from, to) = (artifact.into(), from.into(), "/home/vcap".into());
    Action::Download(DownloadAction { artifact, from, to, user: "vcap".into(), ..DownloadAction::default() })
}

fn send(artifact: &str, from: &str, to: &str) -> Action {
    let (artifact, from, to) = (artifact.into(), from.into(), to.into());
    Action::Upload(UploadAction { artifact, from, to, user: "vcap".into(), ..UploadAction::default() })
}

/// 1,536 bytes of a tar with one file.
fn droplet() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(512);
    tar.append_data(&mut header, "app", &[7; 512][..]).unwrap();
    let mut tar = tar.into_inner().unwrap();
    tar.truncate(1536);
    tar
}

/// What stays the same of a URL whose port nobody knows before.
async fn server() -> String {
    let routes = axum::Router::new()
        .route("/droplet", get(|| async { droplet() }))
        .route("/text", get(|| async { "no archive at all" }))
        .route("/upload", post(|| async {}))
        .route("/full", post(|| async { axum::http::StatusCode::INSUFFICIENT_STORAGE }));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, routes).await });
    url
}

fn scripts(world: &World) {
    let after = |ms, status| Script::exits_after(Duration::from_millis(ms), status);
    world.garden.script("/ok", Script::exits(0).out("fine\n"));
    world.garden.script("/bad", Script::exits(7).err("oh dear\n"));
    world.garden.script("/late", after(100, 0));
    world.garden.script("/later", after(200, 8));
    world.garden.script("/server", Script::runs());
    world.garden.script("/setup", Script::runs());
}

/// Of one container of its own.
async fn check(mut row: Row) {
    let told = format!("{:?}", row.run_info.action);
    let mut world = world();
    scripts(&world);
    // Nobody hears it; it waits until there is a file in the container.
    let setup = RunAction { path: "/setup".into(), suppress_log_output: true, ..RunAction::default() };
    row.run_info.setup = Some(Action::Run(setup));
    world.start("a", row.run_info);
    world.expect(&["Reserved a"]).await;
    while !world.garden.running("a").contains(&"/setup".to_string()) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    world.garden.put_file("a", "/tmp/result", b"the result");
    world.garden.exit("a", "/setup", 0);
    let mut end = world.event().await;
    if end == "Running a" {
        end = world.event().await;
    }
    assert_eq!(end, row.end, "{told}");
    let name = |out| if out == Out::Out { "out" } else { "err" };
    let lines = world.executor.logs().recent("app", usize::MAX);
    let said: Vec<String> =
        lines.iter().map(|line| format!("{} {}: {}", line.source, name(line.stream), line.text())).collect();
    let (own, rest) = said.split_at(2);
    assert_eq!(own[0], "APP out: Cell cell-1 creating container for instance a");
    assert_eq!(own[1], "APP out: Cell cell-1 successfully created container for instance a");
    assert_eq!(rest, row.said, "{told}");
    assert!(world.garden.running("a").is_empty(), "{told} leaves a process");
}

const COMPLETED: &str = "Completed a: ";
const BAD: &str = "Failed a: APP: Exited with status 7";
const FINE: [&str; 2] = ["APP out: fine", "APP out: Exit status 0"];
const OH_DEAR: [&str; 2] = ["APP err: oh dear", "APP out: Exit status 7"];
const ENDED: &str = "APP out: Exit status 143";

#[tokio::test]
async fn run_and_its_combinators_speak_as_ever() {
    let quiet = RunAction { path: "/bad".into(), suppress_log_output: true, ..RunAction::default() };
    let gone = "APP out: failed-creating-process: /gone: not found";
    let rows = vec![
        row(run("/ok"), COMPLETED, &FINE),
        row(run("/bad"), BAD, &OH_DEAR),
        row(run("/gone"), "Failed a: /gone: not found", &[gone]),
        row(run(""), "Failed a: : not found", &["APP out: failed-creating-process: : not found"]),
        row(Action::Run(quiet), BAD, &[]),
        row(
            from("TASK", "/bad"),
            "Failed a: TASK: Exited with status 7",
            &["TASK err: oh dear", "TASK out: Exit status 7"],
        ),
        row(Action::Serial(many(vec![run("/bad"), run("/ok")])), BAD, &OH_DEAR),
        row(Action::Serial(many(vec![])), COMPLETED, &[]),
        row(
            Action::Try(TryAction { action: Box::new(run("/bad")), log_source: String::new() }),
            COMPLETED,
            &OH_DEAR,
        ),
        row(
            Action::Parallel(many(vec![run("/later"), run("/bad")])),
            "Failed a: APP: Exited with status 8; APP: Exited with status 7",
            &[OH_DEAR[0], OH_DEAR[1], "APP out: Exit status 8"],
        ),
        row(
            Action::Codependent(many(vec![run("/server"), run("/bad")])),
            BAD,
            &[OH_DEAR[0], OH_DEAR[1], ENDED],
        ),
        row(
            Action::Codependent(many(vec![run("/late"), run("/server")])),
            "Failed a: Codependent step exited",
            &["APP out: Exit status 0", ENDED],
        ),
    ];
    for row in rows {
        check(row).await;
    }
}

#[tokio::test]
async fn time_limits_and_progress_speak_as_ever() {
    let failed = "CELL err: Staging failed: exceeded 50ms timeout";
    let rows = vec![
        row(timeout(run("/server"), 50), "Failed a: exceeded 50ms timeout", &[ENDED]),
        row(timeout(run("/server"), 0), "Failed a: exceeded 0s timeout", &[ENDED]),
        row(timeout(run("/bad"), 60_000), BAD, &OH_DEAR),
        row(timeout(timeout(run("/server"), 60_000), 90), "Failed a: exceeded 90ms timeout", &[ENDED]),
        row(
            progress("CELL", run("/ok")),
            COMPLETED,
            &["CELL out: Staging...", FINE[0], FINE[1], "CELL out: Staging complete"],
        ),
        row(
            progress("CELL", timeout(run("/server"), 50)),
            "Failed a: exceeded 50ms timeout",
            &["CELL out: Staging...", ENDED, failed],
        ),
        // What is no business of the user's is not said behind the prefix.
        row(
            progress("", run("/gone")),
            "Failed a: /gone: not found",
            &[
                "APP out: Staging...",
                "APP out: failed-creating-process: /gone: not found",
                "APP err: Staging failed",
            ],
        ),
        row(
            progress("", Action::Parallel(many(vec![run("/bad")]))),
            BAD,
            &["APP out: Staging...", OH_DEAR[0], OH_DEAR[1], "APP err: Staging failed"],
        ),
    ];
    for row in rows {
        check(row).await;
    }
}

#[tokio::test]
async fn transfers_speak_as_ever() {
    let at = server().await;
    let at = |path: &str| format!("{at}{path}");
    let rows = vec![
        row(
            fetch("droplet", &at("/droplet")),
            COMPLETED,
            &["APP out: Downloading droplet...", "APP out: Downloaded droplet (1.5K)"],
        ),
        row(fetch("", &at("/droplet")), COMPLETED, &[]),
        row(
            fetch("droplet", &at("/nowhere")),
            "Failed a: Downloading droplet failed",
            &["APP out: Downloading droplet...", "APP err: Downloading droplet failed"],
        ),
        row(fetch("", "no url"), "Failed a: Downloading failed", &["APP err: Downloading failed"]),
        row(
            send("result", "/tmp/result", &at("/upload")),
            COMPLETED,
            &["APP out: Uploading result...", "APP out: Uploaded result (10B)"],
        ),
        row(send("", "/tmp/result", &at("/upload")), COMPLETED, &[]),
        row(
            send("result", "/tmp/result", &at("/full")),
            "Failed a: Upload failed: Status code 507",
            &["APP out: Uploading result...", "APP err: Failed to upload payload for result"],
        ),
        row(
            send("result", "/tmp/nothing", &at("/upload")),
            "Failed a: Failed to establish stream from container for result",
            &[
                "APP out: Uploading result...",
                "APP err: Failed to establish stream from container for result",
            ],
        ),
        row(
            send("", "/tmp/nothing", &at("/upload")),
            "Failed a: Failed to establish stream from container",
            &[],
        ),
        row(
            progress("CELL", send("result", "/tmp/result", &at("/full"))),
            "Failed a: Upload failed: Status code 507",
            &[
                "CELL out: Staging...",
                "APP out: Uploading result...",
                "APP err: Failed to upload payload for result",
                "CELL err: Staging failed",
            ],
        ),
    ];
    for row in rows {
        check(row).await;
    }
}

#[tokio::test]
async fn setup_and_the_cell_s_hook_speak_as_ever() {
    let mut world = world();
    scripts(&world);
    world.start("a", RunInfo { setup: Some(run("/bad")), ..recipe("/ok") });
    world.expect(&["Reserved a", BAD]).await;
    assert_eq!(world.garden.seen("a").unwrap().processes.len(), 1);
    let mut world = world_with(|config| config.post_setup_hook = vec!["/bad".into(), "-x".into()]);
    scripts(&world);
    world.start("a", recipe("/ok"));
    world.expect(&["Reserved a", "Failed a: LOG: Exited with status 7"]).await;
    assert_eq!(world.said().len(), 2, "it is not heard: {:?}", world.said());
    let hook = world.garden.seen("a").unwrap().processes.remove(0);
    assert_eq!((hook.path.as_str(), hook.args, hook.user.as_str()), ("/bad", vec!["-x".to_string()], "root"));
}
