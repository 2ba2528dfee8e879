//! Health monitoring: startup until healthy, then liveness until not. And readiness, which only reports.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

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
    app.say("Starting health monitoring of container\n");
    let started = Instant::now();
    if let Err(error) = perform(&monitor.startup, stage, cancel, &Ready::default()).await {
        if cancel.is_cancelled() {
            return Err(StepError::Cancelled);
        }
        let after = go_duration(rounded(started.elapsed()));
        health.complain(&format!("{error}\n"));
        app.complain(&format!("Failed after {after}: startup health check never passed.\n"));
        return Err(StepError::Emittable(format!("Instance never healthy after {after}: {error}")));
    }
    if cancel.is_cancelled() {
        return Err(StepError::Cancelled);
    }
    app.say("Container became healthy\n");
    ready.set();
    let result = perform(&monitor.liveness, stage, cancel, &Ready::default()).await;
    if cancel.is_cancelled() {
        return Err(StepError::Cancelled);
    }
    let error = result.err().map(|error| error.to_string()).unwrap_or_default();
    health.complain(&format!("{error}\n"));
    app.complain("Container became unhealthy\n");
    Err(StepError::Emittable(format!("Instance became unhealthy: {error}")))
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
    voice.say("Starting readiness health monitoring of container\n");
    ready.set();
    loop {
        if let Err(error) = perform(&readiness.until_ready, stage, cancel, &Ready::default()).await {
            if cancel.is_cancelled() {
                return Err(StepError::Cancelled);
            }
            voice.say("Failed to run the readiness check\n");
            return Err(error);
        }
        tell(true, stage, cancel).await?;
        voice.say(
            "Container passed the readiness health check. Container marked ready and added to route pool.\n",
        );
        let result = perform(&readiness.until_not_ready, stage, cancel, &Ready::default()).await;
        if cancel.is_cancelled() {
            return Err(StepError::Cancelled);
        }
        if result.is_err() {
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
