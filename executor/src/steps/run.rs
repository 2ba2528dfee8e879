//! Runs a process in the container and waits for it; told to stop, asks it to, and kills it when it does not.
//!
//! Which process it is, is written down before it is started, so that no life of the executor starts it a second time: a
//! later one attaches to it, and so does this one when garden comes back after it went away.

use std::pin::pin;
use std::time::Duration;

use bbs_models::RunAction;
use garden_client::{Process, ProcessIo, ProcessSpec, ResourceLimits, Signal};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Ready, Result, Stage, StepError, Voice, byte_size, go_duration};
use crate::containers::store::MISSING;
use crate::depot::Mark;
use crate::garden::patiently;

/// How long a killed process may take to be gone.
const EXIT_TIMEOUT: Duration = Duration::from_secs(1);
/// How long what runs in a container is not given up while its pid 1 does not answer.
const INIT_ANSWERS: Duration = Duration::from_secs(60);
const ATTACH_PAUSE: Duration = Duration::from_secs(1);
/// The state of a container whose pid 1 lives.
const ACTIVE: &str = "active";
/// By which a later life knows the processes that it need not attach to.
pub(crate) const UNRECORDED: &str = "check-";

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
    Lost { id: String, error: garden_client::Error },
    DidNotExit,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stop {
    NotAsked,
    Asked,
    Killed,
}

pub(super) async fn perform(run: &Run, stage: &Stage, cancel: &CancellationToken, ready: &Ready) -> Result {
    let earlier = match stage.place.earlier() {
        Some(Mark::Ended(result)) => {
            if result.is_ok() {
                ready.set();
            }
            return result.clone();
        }
        Some(Mark::Process { id }) => Some(id.as_str()),
        _ => None,
    };
    // One that runs already is ended as any other.
    if earlier.is_none() && cancel.is_cancelled() {
        return Err(StepError::Cancelled);
    }
    let result = follow(run, stage, cancel, ready, earlier).await;
    stage.place.note_after(Mark::Ended(result.clone())).await;
    result
}

async fn follow(
    run: &Run,
    stage: &Stage,
    cancel: &CancellationToken,
    ready: &Ready,
    earlier: Option<&str>,
) -> Result {
    let voice = stage.voice(&run.source);
    let process = match earlier {
        Some(id) => attach(run, stage, &voice, cancel, id).await.map_err(|error| lost(stage, id, &error))?,
        None => start(run, stage, &voice, cancel).await?,
    };
    ready.set();
    match wait(process, run, stage, &voice, cancel).await {
        Ending::Exited { status, stop } => report(run, stage, &voice, status, stop).await,
        Ending::Lost { id, error } => Err(lost(stage, &id, &error)),
        Ending::DidNotExit => {
            tracing::error!(guid = stage.guid, timeout = ?EXIT_TIMEOUT, "executor.run-step.process-did-not-exit");
            Err(StepError::ExitTimeout)
        }
    }
}

/// It may have been started or not, and may have ended in any way: it is not started again.
fn lost(stage: &Stage, id: &str, error: &garden_client::Error) -> StepError {
    tracing::error!(guid = stage.guid, process = id, %error, "executor.run-step.running-error");
    StepError::Plain(match error {
        garden_client::Error::ProcessNotFound { .. } => {
            "the process was lost when the cell's agent was started again".to_string()
        }
        garden_client::Error::ContainerNotFound { .. } => MISSING.to_string(),
        error => error.to_string(),
    })
}

/// A container whose pid 1 is slow to answer the garden that has just come back, as on a machine that has much to do, is
/// broken until it does.
async fn attach(
    run: &Run,
    stage: &Stage,
    voice: &Voice,
    cancel: &CancellationToken,
    id: &str,
) -> garden_client::Result<Box<dyn Process>> {
    let gives_up = Instant::now() + INIT_ANSWERS;
    loop {
        let attached = patiently(|| attach_once(run, stage, voice, id)).await;
        let Err(garden_client::Error::Other(why)) = &attached else { return attached };
        if Instant::now() > gives_up || cancel.is_cancelled() || !is_active(stage).await {
            return attached;
        }
        tracing::warn!(guid = stage.guid, process = id, why, "executor.run-step.attaching-again");
        cancel.run_until_cancelled(tokio::time::sleep(ATTACH_PAUSE)).await;
    }
}

async fn attach_once(
    run: &Run,
    stage: &Stage,
    voice: &Voice,
    id: &str,
) -> garden_client::Result<Box<dyn Process>> {
    let mut io = io(run, voice);
    // Somebody must take its output, or it waits for whoever comes.
    io.stdout.get_or_insert_with(|| Box::new(tokio::io::sink()));
    io.stderr.get_or_insert_with(|| Box::new(tokio::io::sink()));
    stage.shared.garden.attach(&stage.guid, id, io).await
}

async fn is_active(stage: &Stage) -> bool {
    let info = stage.shared.garden.info(&stage.guid).await;
    info.is_ok_and(|info| info.state == ACTIVE)
}

async fn start(
    run: &Run,
    stage: &Stage,
    voice: &Voice,
    cancel: &CancellationToken,
) -> std::result::Result<Box<dyn Process>, StepError> {
    let id = uuid::Uuid::new_v4().to_string();
    let id = if stage.place.is_recorded() { id } else { format!("{UNRECORDED}{id}") };
    stage.place.note(Mark::Process { id: id.clone() }).await?;
    let mut starting = pin!(async {
        match stage.shared.garden.run(&stage.guid, spec(run, stage, &id), io(run, voice)).await {
            Err(garden_client::Error::Disconnected(_)) => attach(run, stage, voice, cancel, &id).await,
            started => started,
        }
    });
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

fn spec(run: &Run, stage: &Stage, id: &str) -> ProcessSpec {
    let action = &run.action;
    let mut env: Vec<String> = action.env.iter().map(|var| format!("{}={}", var.name, var.value)).collect();
    env.extend(stage.environment.iter().cloned());
    ProcessSpec {
        id: id.to_string(),
        path: action.path.clone(),
        args: action.args.clone(),
        dir: action.dir.clone(),
        env,
        user: action.user.clone(),
        rlimits: ResourceLimits {
            nofile: action.resource_limits.and_then(|limits| limits.nofile),
            ..ResourceLimits::default()
        },
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

async fn wait(
    mut process: Box<dyn Process>,
    run: &Run,
    stage: &Stage,
    voice: &Voice,
    cancel: &CancellationToken,
) -> Ending {
    let id = process.id().to_string();
    let ended = |result: garden_client::Result<i32>, stop| match result {
        Ok(status) => Ending::Exited { status, stop },
        Err(error) => Ending::Lost { id: id.clone(), error },
    };
    loop {
        let result = tokio::select! {
            biased;
            result = process.wait() => result,
            () = cancel.cancelled() => break,
        };
        if !matches!(result, Err(garden_client::Error::Disconnected(_))) {
            return ended(result, Stop::NotAsked);
        }
        tracing::warn!(guid = stage.guid, process = id, "executor.run-step.garden-is-away");
        match cancel.run_until_cancelled(attach(run, stage, voice, cancel, &id)).await {
            Some(Ok(attached)) => process = attached,
            Some(Err(error)) => return ended(Err(error), Stop::NotAsked),
            None => break,
        }
    }
    let mut exit = pin!(process.wait());
    signal(process.as_ref(), Signal::Terminate, stage).await;
    if let Ok(result) = tokio::time::timeout(stage.shared.config.graceful_shutdown_interval, &mut exit).await
    {
        return ended(result, Stop::Asked);
    }
    signal(process.as_ref(), Signal::Kill, stage).await;
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
    let mut memory = None;
    if status != 0 && out_of_memory(stage).await {
        said.push_str(" (out of memory)");
        reason.push_str(" (out of memory)");
        memory = Some(memory_of(stage).await);
    }
    if !run.suppress_exit_status {
        reason.push_str(&cause(status, memory));
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

/// What a container has used of its memory. Bytes; 0 is not known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Memory {
    peak: u64,
    limit: u64,
}

/// What an exit status does not say by itself, for behind what is known of old: clients look for that.
fn cause(status: i32, memory: Option<Memory>) -> String {
    let signal = signal_name(status).map(str::to_string);
    let memory = memory.and_then(|memory| match memory {
        Memory { peak: 0, limit: 0 } => None,
        Memory { peak: 0, limit } => Some(format!("memory limit {}", byte_size(limit))),
        Memory { peak, limit: 0 } => Some(format!("memory peak {}", byte_size(peak))),
        Memory { peak, limit } => {
            Some(format!("memory peak {} of a limit of {}", byte_size(peak), byte_size(limit)))
        }
    });
    let told: Vec<_> = signal.into_iter().chain(memory).collect();
    if told.is_empty() { String::new() } else { format!(": {}", told.join(", ")) }
}

/// Of the signal that such a status is for, by the convention of shells and container runtimes.
fn signal_name(status: i32) -> Option<&'static str> {
    Some(match status - 128 {
        1 => "SIGHUP",
        2 => "SIGINT",
        3 => "SIGQUIT",
        4 => "SIGILL",
        5 => "SIGTRAP",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        9 => "SIGKILL",
        11 => "SIGSEGV",
        13 => "SIGPIPE",
        14 => "SIGALRM",
        15 => "SIGTERM",
        24 => "SIGXCPU",
        25 => "SIGXFSZ",
        31 => "SIGSYS",
        _ => return None,
    })
}

async fn memory_of(stage: &Stage) -> Memory {
    let limit = stage.shared.store.get(&stage.guid).map_or(0, |container| container.memory_limit_bytes);
    match stage.shared.garden.metrics(&stage.guid).await {
        Ok(metrics) => Memory { peak: metrics.memory.peak, limit },
        Err(error) => {
            tracing::warn!(guid = stage.guid, %error, "executor.run-step.failed-to-get-metrics");
            Memory { peak: 0, limit }
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_status_does_not_say_is_said_behind_it() {
        let memory = |peak, limit| Some(Memory { peak, limit });
        let table = [
            (0, None, ""),
            (1, None, ""),
            (128, None, ""),
            (255, None, ""),
            (139, None, ": SIGSEGV"),
            (137, memory(64 << 20, 64 << 20), ": SIGKILL, memory peak 64M of a limit of 64M"),
            (1, memory(63 << 20, 64 << 20), ": memory peak 63M of a limit of 64M"),
            (137, memory(0, 64 << 20), ": SIGKILL, memory limit 64M"),
            (137, memory(5 << 20, 0), ": SIGKILL, memory peak 5M"),
            (137, memory(0, 0), ": SIGKILL"),
        ];
        for (status, memory, expected) in table {
            assert_eq!(cause(status, memory), expected, "{status} {memory:?}");
        }
    }
}
