use bbs_models::{Action, Check, CheckDefinition, File, ManyActions, RunAction, TimeoutAction};

use super::*;
use crate::{Config, EgressRule, LogConfig, PortMapping, Resource, RunResult, Sidecar, State, Tags};

fn run(path: &str) -> Action {
    Action::Run(RunAction { path: path.into(), user: "vcap".into(), ..RunAction::default() })
}

/// Something of each kind.
fn run_info() -> RunInfo {
    let (actions, log_source) = (vec![run("/a"), run("/b")], "SRC".to_string());
    let timeout = TimeoutAction {
        action: Box::new(Action::Codependent(ManyActions { actions, log_source })),
        timeout_ms: 1000,
        log_source: String::new(),
    };
    let check = Check::Http { port: 8080, path: "/h".into(), request_timeout_ms: 5, interval_ms: 7 };
    RunInfo {
        rootfs: "preloaded:stack".into(),
        action: Some(Action::Timeout(timeout)),
        check_definition: Some(CheckDefinition { checks: vec![check], ..CheckDefinition::default() }),
        ports: vec![PortMapping { container_port: 8080, ..PortMapping::default() }],
        log_config: LogConfig { guid: "app".into(), index: 3, ..LogConfig::default() },
        egress_rules: vec![EgressRule { icmp: Some((1, 2)), ..EgressRule::default() }],
        sidecars: vec![Sidecar { action: run("/side"), memory_mb: 1, disk_mb: 2 }],
        volume_mounted_files: vec![File { path: "a/b".into(), content: "secret".into() }],
        log_rate_limit_bytes_per_second: -1,
        ..RunInfo::default()
    }
}

fn settings() -> Settings {
    let http = diego_base::http::client(&Default::default()).unwrap();
    let mut config = Config::new("cell", Default::default(), "/nowhere".into(), http);
    config.post_setup_hook = vec!["/hook".into(), "arg".into()];
    Settings::of(&config)
}

fn container(guid: &str) -> Container {
    let tags = Tags::from([("lifecycle".into(), "task".into())]);
    Container::reserved(guid, Resource { memory_mb: 1, disk_mb: 2, max_pids: 3 }, tags, 4)
}

#[tokio::test]
async fn what_is_noted_is_found_by_the_next_life_until_it_is_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let depot = Depot::open(dir.path()).unwrap();
    let request = Request::new(Arc::new(run_info()), settings());
    let journal = depot.journal(Record::new(container("a/b")));
    assert!(depot.found().unwrap().is_empty(), "nothing is there before its first note");
    journal.begin(request.clone()).await.unwrap();
    let place = Place::of(&journal).child(1).child(2);
    place.note(Mark::Process { id: "p".into() }).await.unwrap();
    let result = RunResult { failed: true, failure_reason: "why".into(), retryable: true, stopped: false };
    journal.note(move |record| record.container.state = State::Completed(result)).await.unwrap();
    drop((depot, journal, place));

    let depot = Depot::open(dir.path()).unwrap();
    let found = depot.found().unwrap().pop().unwrap();
    assert_eq!(format!("{:?}", found.request.as_ref().unwrap()), format!("{request:?}"));
    let State::Completed(result) = &found.record.container.state else { panic!("{found:?}") };
    assert_eq!(result.failure_reason, "why");
    assert_eq!(found.record.container.tags["lifecycle"], "task");
    let journal = depot.journal(found.record);
    let place = Place::of(&journal).child(1).child(2);
    assert_eq!(place.earlier(), Some(&Mark::Process { id: "p".into() }));
    assert_eq!(place.child(0).earlier(), None);
    journal.forget().await.unwrap();
    journal.forget().await.unwrap();
    assert!(depot.found().unwrap().is_empty());
    let left = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(left.filter(|name| !name.as_encoded_bytes().starts_with(b".")).count(), 0);
}

#[tokio::test]
async fn what_cannot_be_understood_is_forgotten_and_what_it_was_to_do_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let depot = Depot::open(dir.path()).unwrap();
    for guid in ["cut", "of-another-format", "without-request", "elsewhere"] {
        let journal = depot.journal(Record::new(container(guid)));
        journal.begin(Request::new(Arc::new(run_info()), settings())).await.unwrap();
    }
    let path = |guid: &str, name: &str| dir.path().join(guid).join(name);
    let half = fs::read(path("cut", RECORD)).unwrap();
    fs::write(path("cut", RECORD), &half[..half.len() / 2]).unwrap();
    let other = fs::read_to_string(path("of-another-format", RECORD)).unwrap();
    fs::write(path("of-another-format", RECORD), other.replacen("\"format\":1", "\"format\":99", 1)).unwrap();
    fs::remove_file(path("without-request", REQUEST)).unwrap();
    fs::rename(dir.path().join("elsewhere"), dir.path().join("somebody-else")).unwrap();
    let found = depot.found().unwrap();
    let guids: Vec<_> = found.iter().map(|found| found.record.container.guid.as_str()).collect();
    assert_eq!(guids, ["without-request"]);
    assert!(found[0].request.as_ref().unwrap_err().starts_with("cannot read it"));
    assert!(!dir.path().join("cut").exists());
}

#[test]
fn a_depot_has_one_executor() {
    let dir = tempfile::tempdir().unwrap();
    let depot = Depot::open(dir.path()).unwrap();
    assert!(matches!(Depot::open(dir.path()), Err(StartError::InUse(_))));
    drop(depot);
    assert!(Depot::open(dir.path()).is_ok());
}

#[tokio::test]
async fn steps_without_a_place_are_not_written_down() {
    let place = Place::default().child(3);
    place.note(Mark::Passed).await.unwrap();
    assert!(!place.is_recorded() && place.earlier().is_none());
}

#[tokio::test]
async fn a_note_that_nobody_polls_holds_up_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let depot = Depot::open(dir.path()).unwrap();
    let journal = depot.journal(Record::new(container("c")));
    journal.begin(Request::new(Arc::new(run_info()), settings())).await.unwrap();
    let (go_on, until_told) = std::sync::mpsc::channel::<()>();
    let first = tokio::spawn({
        let journal = journal.clone();
        async move { journal.note(move |_| until_told.recv().unwrap()).await }
    });
    tokio::task::yield_now().await;
    // A container's work, which waits while its owner obeys a command.
    let mut second = std::pin::pin!(journal.note(|record| record.container.routable = true));
    assert!(futures_util::poll!(&mut second).is_pending());
    let mut third = std::pin::pin!(journal.note(|record| record.stopping = true));
    assert!(futures_util::poll!(&mut third).is_pending());
    go_on.send(()).unwrap();
    first.await.unwrap().unwrap();
    tokio::time::timeout(std::time::Duration::from_secs(60), third)
        .await
        .expect("it waits for the second")
        .unwrap();
    second.await.unwrap();
    let record = depot.found().unwrap().pop().unwrap().record;
    assert!(record.container.routable && record.stopping);
}
