//! Runs a process in the container and waits for it; told to stop, asks it to, and kills it when it does not.

use std::pin::pin;
use std::time::Duration;

use bbs_models::RunAction;
use garden_client::{Process, ProcessIo, ProcessSpec, ResourceLimits, Signal};
use tokio_util::sync::CancellationToken;

use super::{Ready, Result, Stage, StepError, Voice, go_duration};

/// How long a killed process may take to be gone.
const EXIT_TIMEOUT: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Run {
    pub action: RunAction,
    pub source: String,
    /// Of monitor actions: their exit status is nobody's concern.
    pub suppress_exit_status: bool,
}

/// How a process ended.
enum Ending {
    Exited { status: i32, stop: Stop },
    Lost(garden_client::Error),
    DidNotExit,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stop {
    NotAsked,
    Asked,
    Killed,
}

pub(super) async fn perform(run: &Run, stage: &Stage, cancel: &CancellationToken, ready: &Ready) -> Result {
    if cancel.is_cancelled() {
        return Err(StepError::Cancelled);
    }
    let voice = stage.voice(&run.source);
    let process = start(run, stage, &voice, cancel).await?;
    ready.set();
    match wait(process.as_ref(), stage, cancel).await {
        Ending::Exited { status, stop } => report(run, stage, &voice, status, stop).await,
        Ending::Lost(error) => {
            tracing::error!(guid = stage.guid, %error, "executor.run-step.running-error");
            Err(StepError::Plain(error.to_string()))
        }
        Ending::DidNotExit => {
            tracing::error!(guid = stage.guid, timeout = ?EXIT_TIMEOUT, "executor.run-step.process-did-not-exit");
            Err(StepError::ExitTimeout)
        }
    }
}

async fn start(
    run: &Run,
    stage: &Stage,
    voice: &Voice,
    cancel: &CancellationToken,
) -> std::result::Result<Box<dyn Process>, StepError> {
    let mut starting = pin!(stage.shared.garden.run(&stage.guid, spec(run, stage), io(run, voice)));
    let started = tokio::select! {
        biased;
        started = &mut starting => started,
        () = cancel.cancelled() => {
            // It may start yet, and then must be ended as any other; if not, the container's end is its end.
            match tokio::time::timeout(stage.shared.config.graceful_shutdown_interval, starting).await {
                Ok(Ok(process)) => Ok(process),
                Ok(Err(_)) | Err(_) => return Err(StepError::Cancelled),
            }
        }
    };
    started.map_err(|error| {
        tracing::error!(guid = stage.guid, %error, "executor.run-step.failed-creating-process");
        if !run.action.suppress_log_output {
            voice.say(&format!("failed-creating-process: {error}"));
        }
        StepError::Plain(error.to_string())
    })
}

fn spec(run: &Run, stage: &Stage) -> ProcessSpec {
    let action = &run.action;
    let mut env: Vec<String> = action.env.iter().map(|var| format!("{}={}", var.name, var.value)).collect();
    env.extend(stage.environment.iter().cloned());
    ProcessSpec {
        path: action.path.clone(),
        args: action.args.clone(),
        dir: action.dir.clone(),
        env,
        user: action.user.clone(),
        rlimits: ResourceLimits { nofile: action.nofile, ..ResourceLimits::default() },
        ..ProcessSpec::default()
    }
}

fn io(run: &Run, voice: &Voice) -> ProcessIo {
    if run.action.suppress_log_output {
        return ProcessIo::default();
    }
    ProcessIo {
        stdin: None,
        stdout: Some(Box::new(voice.out.clone())),
        stderr: Some(Box::new(voice.err.clone())),
    }
}

async fn wait(process: &dyn Process, stage: &Stage, cancel: &CancellationToken) -> Ending {
    let mut exit = pin!(process.wait());
    let ended = |result: garden_client::Result<i32>, stop| match result {
        Ok(status) => Ending::Exited { status, stop },
        Err(error) => Ending::Lost(error),
    };
    tokio::select! {
        biased;
        result = &mut exit => return ended(result, Stop::NotAsked),
        () = cancel.cancelled() => {}
    }
    signal(process, Signal::Terminate, stage).await;
    if let Ok(result) = tokio::time::timeout(stage.shared.config.graceful_shutdown_interval, &mut exit).await
    {
        return ended(result, Stop::Asked);
    }
    signal(process, Signal::Kill, stage).await;
    match tokio::time::timeout(EXIT_TIMEOUT, exit).await {
        Ok(result) => ended(result, Stop::Killed),
        Err(_) => Ending::DidNotExit,
    }
}

/// A signal that cannot be sent is waited for like one that has no effect: the next is stronger.
async fn signal(process: &dyn Process, signal: Signal, stage: &Stage) {
    let sent = tokio::time::timeout(EXIT_TIMEOUT, process.signal(signal)).await;
    if !matches!(sent, Ok(Ok(()))) {
        tracing::warn!(
            guid = stage.guid,
            process = process.id(),
            ?signal,
            ?sent,
            "executor.run-step.signalling-failed"
        );
    }
}

async fn report(run: &Run, stage: &Stage, voice: &Voice, status: i32, stop: Stop) -> Result {
    let (mut said, mut reason) = if run.suppress_exit_status {
        (String::new(), String::new())
    } else {
        (format!("Exit status {status}"), format!("{}: Exited with status {status}", voice.source))
    };
    if stop == Stop::Killed {
        let interval = go_duration(stage.shared.config.graceful_shutdown_interval);
        said = format!("{said} (exceeded {interval} graceful shutdown interval)");
    }
    if status != 0 && out_of_memory(stage).await {
        said.push_str(" (out of memory)");
        reason.push_str(" (out of memory)");
    }
    if !run.action.suppress_log_output {
        voice.say(&said);
    }
    match stop {
        Stop::Killed => Err(StepError::ExceededGracefulShutdownInterval),
        Stop::Asked => Err(StepError::Cancelled),
        Stop::NotAsked if status != 0 => Err(StepError::Emittable(reason)),
        Stop::NotAsked => Ok(()),
    }
}

async fn out_of_memory(stage: &Stage) -> bool {
    match stage.shared.garden.info(&stage.guid).await {
        Ok(info) => info
            .events
            .iter()
            .any(|event| event.eq_ignore_ascii_case("out of memory") || event.eq_ignore_ascii_case("oom")),
        Err(error) => {
            tracing::error!(guid = stage.guid, %error, "executor.run-step.failed-to-get-info");
            false
        }
    }
}
