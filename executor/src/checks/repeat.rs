//! A monitor action, again and again: until it succeeds, then for as long as it does.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::steps::{Ready, Result, Stage, Step, StepError, perform};

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Repeat {
    pub step: Box<Step>,
    pub interval: Duration,
    pub until: Until,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Until {
    /// Fails with the last error when so much time has passed.
    Succeeds {
        timeout: Option<Duration>,
    },
    Fails,
}

pub(crate) async fn repeat(
    repeat: &Repeat,
    stage: &Stage,
    cancel: &CancellationToken,
    ready: &Ready,
) -> Result {
    ready.set();
    let started = Instant::now();
    loop {
        let pause = cancel.run_until_cancelled(tokio::time::sleep(repeat.interval)).await;
        pause.ok_or(StepError::Cancelled)?;
        let result = once(&repeat.step, stage, cancel).await;
        if cancel.is_cancelled() {
            return result.and(Err(StepError::Cancelled));
        }
        match (result, &repeat.until) {
            (Ok(()), Until::Succeeds { .. }) => return Ok(()),
            (Ok(()), Until::Fails) => {}
            (Err(error), Until::Fails) => return Err(error),
            (Err(error), Until::Succeeds { timeout }) => {
                if timeout.is_some_and(|timeout| started.elapsed() > timeout) {
                    return Err(error);
                }
            }
        }
    }
}

async fn once(step: &Step, stage: &Stage, cancel: &CancellationToken) -> Result {
    let permit = cancel.run_until_cancelled(stage.shared.checks.acquire()).await;
    let _permit = permit.and_then(|permit| permit.ok()).ok_or(StepError::Cancelled)?;
    perform(step, stage, cancel, &Ready::default()).await
}
