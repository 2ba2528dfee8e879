//! From what a container is asked to run to the steps that do it. Pure: no I/O, no clock.
//!
//! What is written down of steps goes by their places in the recipe: who changes the shape of what comes out of here
//! changes `depot::FORMAT` too.

use std::time::Duration;

use bbs_models::{Action, Check as CheckSpec, CheckDefinition, ManyActions, RunAction};
use serde::{Deserialize, Serialize};

use crate::checks::{Check, Monitor, Phase, Probe, Readiness, Repeat, Until};
use crate::logs::DEFAULT_SOURCE;
use crate::steps::{Messages, OnExit, Run, Step};
use crate::{Config, RunInfo};

/// Who tells of declarative checks that do not say so themselves.
const HEALTH_SOURCE: &str = "HEALTH";

/// What a cell adds to every recipe.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Settings {
    pub check_timeout: Duration,
    pub healthy_interval: Duration,
    pub unhealthy_interval: Duration,
    pub post_setup: Option<RunAction>,
}

impl Settings {
    pub fn of(config: &Config) -> Self {
        let post_setup = config.post_setup_hook.split_first().map(|(path, args)| RunAction {
            path: path.clone(),
            args: args.to_vec(),
            user: config.post_setup_user.clone(),
            suppress_log_output: true,
            ..RunAction::default()
        });
        Settings {
            check_timeout: config.check_timeout,
            healthy_interval: config.healthy_monitoring_interval,
            unhealthy_interval: config.unhealthy_monitoring_interval,
            post_setup,
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Recipe {
    pub step: Step,
    /// Routable only when a readiness check says so.
    pub has_readiness: bool,
}

/// A container without an action has nothing to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("container cannot have empty action")]
pub(crate) struct NoAction;

pub(crate) fn recipe(run_info: &RunInfo, settings: &Settings) -> Result<Recipe, NoAction> {
    let action = run_info.action.as_ref().ok_or(NoAction)?;
    let mut together = vec![step(action, "", Mode::Ordinary)];
    together.extend(run_info.sidecars.iter().map(|sidecar| step(&sidecar.action, "", Mode::Ordinary)));
    let timeout = (run_info.start_timeout_ms > 0).then(|| Duration::from_millis(run_info.start_timeout_ms));
    let mut has_readiness = false;
    let is_watched = match (&run_info.check_definition, &run_info.monitor) {
        (Some(definition), _) => {
            let readiness = readiness(definition, settings);
            has_readiness = readiness.is_some();
            let monitor = monitor(definition, timeout, settings);
            let has_monitor = monitor.is_some();
            together.extend(monitor.into_iter().chain(readiness));
            has_monitor
        }
        (None, Some(action)) => {
            together.push(legacy_monitor(action, timeout, settings));
            true
        }
        (None, None) => false,
    };
    let rule = when_one_ends_well(run_info, is_watched);
    let long_lived = match together.len() {
        1 => together.remove(0),
        _ => Step::Codependent { steps: together, rule },
    };
    let mut row = Vec::new();
    let set_up = |setup| Step::SetUp(Box::new(step(setup, "", Mode::Ordinary)));
    row.extend(run_info.setup.as_ref().map(set_up));
    row.extend(settings.post_setup.clone().map(|action| run(action, DEFAULT_SOURCE, Mode::Ordinary)));
    row.push(long_lived);
    let step = if row.len() == 1 { row.remove(0) } else { Step::Serial(row) };
    Ok(Recipe { step, has_readiness })
}

/// An action may leave the app to processes in the background and end: whether the container is done for is then for its
/// monitor to say. With sidecars they live and die together, and what nobody watches would never be found out.
fn when_one_ends_well(run_info: &RunInfo, is_watched: bool) -> OnExit {
    match is_watched && run_info.sidecars.is_empty() {
        true => OnExit::Continue,
        false => OnExit::CancelOthers,
    }
}

/// Whom the steps are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Ordinary,
    /// A monitor action: it may always speak, its exit status is not told, and where several run side by side what
    /// each says is its reason.
    Monitor,
}

/// `source` is whom the action speaks for unless it says itself.
fn step(action: &Action, source: &str, mode: Mode) -> Step {
    match action {
        Action::Run(action) => run(action.clone(), source, mode),
        Action::Download(action) => {
            Step::Download { source: or(&action.log_source, source), action: action.clone() }
        }
        Action::Upload(action) => {
            Step::Upload { source: or(&action.log_source, source), action: action.clone() }
        }
        Action::Timeout(action) => Step::Timeout {
            step: Box::new(step(&action.action, &or(&action.log_source, source), mode)),
            limit: Duration::from_millis(u64::try_from(action.timeout_ms).unwrap_or(0)),
        },
        Action::Try(action) => {
            Step::Try(Box::new(step(&action.action, &or(&action.log_source, source), mode)))
        }
        // The child keeps its parent's source: only the messages are from the action's own.
        Action::EmitProgress(action) => Step::EmitProgress {
            step: Box::new(step(&action.action, source, mode)),
            messages: Messages {
                start: action.start_message.clone(),
                success: action.success_message.clone(),
                failure_prefix: action.failure_message_prefix.clone(),
            },
            source: or(&action.log_source, source),
        },
        // So do the children of a serial action.
        Action::Serial(action) => {
            Step::Serial(action.actions.iter().map(|action| step(action, source, mode)).collect())
        }
        Action::Parallel(action) => Step::Parallel(side_by_side(action, source, mode)),
        Action::Codependent(action) => {
            Step::Codependent { steps: side_by_side(action, source, mode), rule: OnExit::Fail }
        }
    }
}

fn run(mut action: RunAction, source: &str, mode: Mode) -> Step {
    let source = or(&action.log_source, source);
    let is_monitor = mode == Mode::Monitor;
    action.suppress_log_output &= !is_monitor;
    Step::Run(Run { action, source, suppress_exit_status: is_monitor })
}

fn side_by_side(many: &ManyActions, source: &str, mode: Mode) -> Vec<Step> {
    let source = or(&many.log_source, source);
    let child = |action| match mode {
        Mode::Ordinary => step(action, &source, mode),
        Mode::Monitor => Step::Capture(Box::new(step(action, &source, mode))),
    };
    many.actions.iter().map(child).collect()
}

fn or(own: &str, inherited: &str) -> String {
    if own.is_empty() { inherited.to_string() } else { own.to_string() }
}

fn legacy_monitor(action: &Action, timeout: Option<Duration>, settings: &Settings) -> Step {
    let step = Box::new(step(action, "", Mode::Monitor));
    let repeat = |interval, until| Box::new(Step::Repeat(Repeat { step: step.clone(), interval, until }));
    Step::Monitor(Monitor {
        startup: repeat(settings.unhealthy_interval, Until::Succeeds { timeout }),
        liveness: repeat(settings.healthy_interval, Until::Fails),
        source: String::new(),
    })
}

fn monitor(definition: &CheckDefinition, timeout: Option<Duration>, settings: &Settings) -> Option<Step> {
    if definition.checks.is_empty() {
        return None;
    }
    let startup = Phase::Startup { interval: settings.unhealthy_interval, timeout };
    let startup = definition.checks.iter().map(|spec| check(spec, settings, |_| startup.clone())).collect();
    let liveness = |interval| Phase::Liveness { interval };
    let liveness = definition.checks.iter().map(|spec| check(spec, settings, liveness)).collect();
    Some(Step::Monitor(Monitor {
        startup: Box::new(Step::Parallel(startup)),
        liveness: Box::new(Step::Codependent { steps: liveness, rule: OnExit::Continue }),
        source: or(&definition.log_source, HEALTH_SOURCE),
    }))
}

fn readiness(definition: &CheckDefinition, settings: &Settings) -> Option<Step> {
    let checks = &definition.readiness_checks;
    if checks.is_empty() {
        return None;
    }
    let until_ready = Phase::UntilReady { interval: settings.unhealthy_interval };
    let until_ready = checks.iter().map(|spec| check(spec, settings, |_| until_ready.clone())).collect();
    let until_not = |interval| Phase::Ready { interval };
    let until_not = checks.iter().map(|spec| check(spec, settings, until_not)).collect();
    Some(Step::Readiness(Readiness {
        until_ready: Box::new(Step::Parallel(until_ready)),
        until_not_ready: Box::new(Step::Codependent { steps: until_not, rule: OnExit::Fail }),
        source: or(&definition.log_source, HEALTH_SOURCE),
    }))
}

/// `phase` is told the interval that the check asks for, or the cell's.
fn check(spec: &CheckSpec, settings: &Settings, phase: impl FnOnce(Duration) -> Phase) -> Step {
    let or_default = |ms: u64, default| if ms == 0 { default } else { Duration::from_millis(ms) };
    let (probe, interval_ms) = match spec {
        CheckSpec::Tcp { port, connect_timeout_ms, interval_ms } => {
            let timeout = or_default(*connect_timeout_ms, settings.check_timeout);
            (Probe::Tcp { port: *port, timeout }, *interval_ms)
        }
        CheckSpec::Http { port, path, request_timeout_ms, interval_ms } => {
            let timeout = or_default(*request_timeout_ms, settings.check_timeout);
            (Probe::Http { port: *port, path: or(path, "/"), timeout }, *interval_ms)
        }
    };
    Step::Check(Check { probe, phase: phase(or_default(interval_ms, settings.healthy_interval)) })
}

#[cfg(test)]
mod tests;
