use bbs_models::{DownloadAction, EmitProgressAction, TimeoutAction, TryAction};

use super::*;
use crate::Sidecar;

fn settings() -> Settings {
    Settings {
        check_timeout: Duration::from_secs(1),
        healthy_interval: Duration::from_secs(30),
        unhealthy_interval: Duration::from_secs(2),
        post_setup: None,
    }
}

fn action(path: &str) -> Action {
    Action::Run(RunAction { path: path.into(), ..RunAction::default() })
}

fn sourced(path: &str, source: &str) -> Action {
    Action::Run(RunAction { path: path.into(), log_source: source.into(), ..RunAction::default() })
}

fn many(source: &str, actions: Vec<Action>) -> ManyActions {
    ManyActions { actions, log_source: source.into() }
}

/// A step in few words: `serial(run /a@SRC, …)`.
fn describe(step: &Step) -> String {
    let list = |steps: &[Step]| steps.iter().map(describe).collect::<Vec<_>>().join(", ");
    let at = |source: &str| if source.is_empty() { String::new() } else { format!("@{source}") };
    match step {
        Step::Run(run) => {
            let marks = [(run.suppress_exit_status, "!status"), (run.action.suppress_log_output, "!output")];
            let marks: String = marks.iter().filter(|(is, _)| *is).map(|(_, mark)| *mark).collect();
            format!("run {}{}{marks}", run.action.path, at(&run.source))
        }
        Step::Download { action, source } => format!("download {}{}", action.from, at(source)),
        Step::Upload { action, source } => format!("upload {}{}", action.to, at(source)),
        Step::Timeout { step, limit } => format!("timeout {}ms({})", limit.as_millis(), describe(step)),
        Step::Try(step) => format!("try({})", describe(step)),
        Step::EmitProgress { step, source, .. } => format!("progress{}({})", at(source), describe(step)),
        Step::Parallel(steps) => format!("parallel({})", list(steps)),
        Step::Serial(steps) => format!("serial({})", list(steps)),
        Step::Codependent { steps, rule } => format!("{rule:?}({})", list(steps)),
        Step::SetUp(step) => format!("setup({})", describe(step)),
        Step::Capture(step) => format!("capture({})", describe(step)),
        Step::Repeat(repeat) => {
            format!(
                "every {}s until {:?} ({})",
                repeat.interval.as_secs(),
                repeat.until,
                describe(&repeat.step)
            )
        }
        Step::Check(check) => {
            let probe = match &check.probe {
                Probe::Tcp { port, timeout } => format!("tcp {port} in {}ms", timeout.as_millis()),
                Probe::Http { port, path, timeout } => {
                    format!("http {port}{path} in {}ms", timeout.as_millis())
                }
            };
            match &check.phase {
                Phase::Startup { interval, timeout } => {
                    format!("startup {}s/{timeout:?}: {probe}", interval.as_secs())
                }
                Phase::Liveness { interval } => format!("liveness {}s: {probe}", interval.as_secs()),
                Phase::UntilReady { interval } => format!("until-ready {}s: {probe}", interval.as_secs()),
                Phase::Ready { interval } => format!("ready {}s: {probe}", interval.as_secs()),
            }
        }
        Step::Monitor(monitor) => format!(
            "monitor{}({} / {})",
            at(&monitor.source),
            describe(&monitor.startup),
            describe(&monitor.liveness)
        ),
        Step::Readiness(readiness) => format!(
            "readiness{}({} / {})",
            at(&readiness.source),
            describe(&readiness.until_ready),
            describe(&readiness.until_not_ready)
        ),
    }
}

fn check(run_info: RunInfo, wanted: &str) {
    assert_eq!(describe(&recipe(&run_info, &settings()).unwrap().step), wanted);
}

fn app() -> RunInfo {
    RunInfo { action: Some(action("/app")), start_timeout_ms: 60_000, ..RunInfo::default() }
}

#[test]
fn a_container_without_action_is_refused() {
    let error = recipe(&RunInfo::default(), &settings()).unwrap_err();
    assert_eq!(error.to_string(), "container cannot have empty action");
}

#[test]
fn setup_comes_first_and_the_cell_s_hook_after_it() {
    check(app(), "run /app");
    check(RunInfo { setup: Some(action("/setup")), ..app() }, "serial(setup(run /setup), run /app)");
    let hook = RunAction { path: "/hook".into(), suppress_log_output: true, ..RunAction::default() };
    let settings = Settings { post_setup: Some(hook), ..settings() };
    let run_info = RunInfo { setup: Some(action("/setup")), ..app() };
    let step = recipe(&run_info, &settings).unwrap().step;
    assert_eq!(describe(&step), "serial(setup(run /setup), run /hook@LOG!output, run /app)");
}

#[test]
fn sidecars_live_and_die_with_the_action() {
    let sidecar = |path| Sidecar { action: action(path), memory_mb: 1, disk_mb: 1 };
    let run_info = RunInfo { sidecars: vec![sidecar("/one"), sidecar("/two")], ..app() };
    check(run_info.clone(), "CancelOthers(run /app, run /one, run /two)");
    let run_info = RunInfo { monitor: Some(action("/check")), ..run_info };
    let step = describe(&recipe(&run_info, &settings()).unwrap().step);
    assert!(step.starts_with("CancelOthers(run /app, run /one, run /two, monitor("), "{step}");
}

#[test]
fn log_sources_are_inherited_where_they_ever_were() {
    let leaves = || vec![action("/a"), sourced("/b", "B")];
    let table = [
        (Action::Parallel(many("P", leaves())), "parallel(run /a@P, run /b@B)"),
        (Action::Codependent(many("C", leaves())), "Fail(run /a@C, run /b@B)"),
        (Action::Serial(many("S", leaves())), "serial(run /a, run /b@B)"),
        (Action::Try(TryAction { action: Box::new(action("/a")), log_source: "T".into() }), "try(run /a@T)"),
        (
            Action::Timeout(TimeoutAction {
                action: Box::new(Action::Serial(many("S", leaves()))),
                timeout_ms: 1500,
                log_source: "T".into(),
            }),
            "timeout 1500ms(serial(run /a@T, run /b@B))",
        ),
        (
            Action::EmitProgress(EmitProgressAction {
                action: Box::new(action("/a")),
                start_message: String::new(),
                success_message: String::new(),
                failure_message_prefix: String::new(),
                log_source: "E".into(),
            }),
            "progress@E(run /a)",
        ),
        (
            Action::Download(DownloadAction { from: "http://x".into(), ..DownloadAction::default() }),
            "download http://x",
        ),
    ];
    for (action, wanted) in table {
        check(RunInfo { action: Some(action), ..RunInfo::default() }, wanted);
    }
}

#[test]
fn a_monitor_action_is_repeated_and_heard() {
    let quiet = |path: &str| {
        Action::Run(RunAction { path: path.into(), suppress_log_output: true, ..RunAction::default() })
    };
    check(
        RunInfo { monitor: Some(quiet("/check")), ..app() },
        "Continue(run /app, monitor(every 2s until Succeeds { timeout: Some(60s) } (run /check!status) \
         / every 30s until Fails (run /check!status)))",
    );
    let monitor = Action::Parallel(many("", vec![quiet("/a"), quiet("/b")]));
    check(
        RunInfo { monitor: Some(monitor), start_timeout_ms: 0, ..app() },
        "Continue(run /app, monitor(every 2s until Succeeds { timeout: None } \
         (parallel(capture(run /a!status), capture(run /b!status))) \
         / every 30s until Fails (parallel(capture(run /a!status), capture(run /b!status)))))",
    );
}

#[test]
fn declarative_checks_take_the_cell_s_defaults_and_the_place_of_a_monitor() {
    let tcp = CheckSpec::Tcp { port: 8080, connect_timeout_ms: 0, interval_ms: 0 };
    let http =
        CheckSpec::Http { port: 8081, path: "/up".into(), request_timeout_ms: 500, interval_ms: 5_000 };
    let definition = CheckDefinition {
        checks: vec![tcp.clone(), http],
        log_source: String::new(),
        readiness_checks: Vec::new(),
    };
    check(
        RunInfo { monitor: Some(action("/old")), check_definition: Some(definition.clone()), ..app() },
        "Continue(run /app, monitor@HEALTH(parallel(startup 2s/Some(60s): tcp 8080 in 1000ms, \
         startup 2s/Some(60s): http 8081/up in 500ms) / Continue(liveness 30s: tcp 8080 in 1000ms, \
         liveness 5s: http 8081/up in 500ms)))",
    );
    let readiness = CheckDefinition { checks: vec![], log_source: "H".into(), readiness_checks: vec![tcp] };
    let run_info = RunInfo { check_definition: Some(readiness), ..app() };
    assert!(recipe(&run_info, &settings()).unwrap().has_readiness);
    check(
        run_info,
        "CancelOthers(run /app, readiness@H(parallel(until-ready 2s: tcp 8080 in 1000ms) \
         / Fail(ready 30s: tcp 8080 in 1000ms)))",
    );
}
