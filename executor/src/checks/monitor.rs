//! Health monitoring: startup until healthy, then liveness until not. And readiness, which only reports.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Check, Phase, Repeat, Until};
use crate::depot::{Mark, since_boot_ms};
use crate::steps::{Ready, Result, Stage, Step, StepError, go_duration, perform};

/// Ready once healthy; ends, with an error, when the container is found unhealthy or was never healthy in time.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Monitor {
    pub startup: Box<Step>,
    pub liveness: Box<Step>,
    /// Who tells what a failed check found.
    pub source: String,
}

/// Ready at once; ends only when cancelled.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Readiness {
    pub until_ready: Box<Step>,
    pub until_not_ready: Box<Step>,
    pub source: String,
}

pub(crate) async fn monitor(
    monitor: &Monitor,
    stage: &Stage,
    cancel: &CancellationToken,
    ready: &Ready,
) -> Result {
    let (app, health) = (stage.voice(""), stage.voice(&monitor.source));
    if stage.place.earlier() != Some(&Mark::Passed) {
        start_up(monitor, stage, cancel).await?;
    }
    let checking = stage.unrecorded();
    ready.set();
    let result = perform(&monitor.liveness, &checking, cancel, &Ready::default()).await;
    if cancel.is_cancelled() {
        return Err(StepError::Cancelled);
    }
    let error = result.err().map(|error| error.to_string()).unwrap_or_default();
    health.complain(&format!("{error}\n"));
    app.complain("Container became unhealthy\n");
    Err(StepError::Emittable(format!("Instance became unhealthy: {error}")))
}

/// Until it is found healthy, within the time that began when this began, in whichever life of the executor that was.
async fn start_up(monitor: &Monitor, stage: &Stage, cancel: &CancellationToken) -> Result {
    let (app, health) = (stage.voice(""), stage.voice(&monitor.source));
    let spent = match stage.place.earlier() {
        Some(Mark::Begun { at_ms }) => Duration::from_millis(since_boot_ms().saturating_sub(*at_ms)),
        _ => {
            app.say("Starting health monitoring of container\n");
            stage.place.note_after(Mark::begun_now()).await;
            Duration::ZERO
        }
    };
    let started = Instant::now();
    let startup = hastened(&monitor.startup, spent);
    let result = perform(&startup, &stage.unrecorded(), cancel, &Ready::default()).await;
    if cancel.is_cancelled() {
        return Err(StepError::Cancelled);
    }
    if let Err(error) = result {
        let after = go_duration(rounded(spent + started.elapsed()));
        health.complain(&format!("{error}\n"));
        app.complain(&format!("Failed after {after}: startup health check never passed.\n"));
        return Err(StepError::Emittable(format!("Instance never healthy after {after}: {error}")));
    }
    stage.place.note_after(Mark::Passed).await;
    app.say("Container became healthy\n");
    Ok(())
}

/// Startup checks whose time has been spent in part.
fn hastened(step: &Step, spent: Duration) -> Step {
    let less = |timeout: Option<Duration>| timeout.map(|timeout| timeout.saturating_sub(spent));
    let mut step = step.clone();
    match &mut step {
        Step::Parallel(steps) => {
            *steps = steps.iter().map(|step| hastened(step, spent)).collect();
        }
        Step::Check(Check { phase: Phase::Startup { timeout, .. }, .. }) => *timeout = less(*timeout),
        Step::Repeat(Repeat { until: Until::Succeeds { timeout }, .. }) => *timeout = less(*timeout),
        _ => {}
    }
    step
}

fn rounded(duration: Duration) -> Duration {
    Duration::from_millis((duration.as_secs_f64() * 1000.0).round() as u64)
}

pub(crate) async fn readiness(
    readiness: &Readiness,
    stage: &Stage,
    cancel: &CancellationToken,
    ready: &Ready,
) -> Result {
    let voice = stage.voice(&readiness.source);
    let checking = stage.unrecorded();
    let mut is_ready = stage.place.earlier() == Some(&Mark::Passed);
    ready.set();
    if stage.place.earlier().is_none() {
        voice.say("Starting readiness health monitoring of container\n");
        stage.place.note_after(Mark::begun_now()).await;
    } else {
        tell(is_ready, stage, cancel).await?;
    }
    loop {
        if !is_ready {
            let result = perform(&readiness.until_ready, &checking, cancel, &Ready::default()).await;
            if cancel.is_cancelled() {
                return Err(StepError::Cancelled);
            }
            result.inspect_err(|_| voice.say("Failed to run the readiness check\n"))?;
            stage.place.note_after(Mark::Passed).await;
            tell(true, stage, cancel).await?;
            voice.say(
                "Container passed the readiness health check. Container marked ready and added to route pool.\n",
            );
        }
        let result = perform(&readiness.until_not_ready, &checking, cancel, &Ready::default()).await;
        if cancel.is_cancelled() {
            return Err(StepError::Cancelled);
        }
        is_ready = result.is_ok();
        if !is_ready {
            stage.place.note_after(Mark::begun_now()).await;
            tell(false, stage, cancel).await?;
            voice.say(
                "Container failed the readiness health check. Container marked not ready and removed from route pool.\n",
            );
        }
    }
}

async fn tell(ready: bool, stage: &Stage, cancel: &CancellationToken) -> Result {
    match cancel.run_until_cancelled(stage.readiness.send(ready)).await {
        Some(Ok(())) => Ok(()),
        Some(Err(_)) | None => Err(StepError::Cancelled),
    }
}
