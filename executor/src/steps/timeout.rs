//! Ends a step that takes too long.

use std::pin::pin;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::{Ready, Result, Stage, Step, StepError, go_duration};

pub(super) async fn perform(
    step: &Step,
    limit: Duration,
    stage: &Stage,
    cancel: &CancellationToken,
    ready: &Ready,
) -> Result {
    let child = cancel.child_token();
    let mut running = pin!(super::perform(step, stage, &child, ready));
    tokio::select! {
        biased;
        result = &mut running => return result,
        () = tokio::time::sleep(limit) => {}
    }
    child.cancel();
    let result = running.await;
    let mut message = format!("exceeded {} timeout", go_duration(limit));
    if let Err(error) = &result
        && let Some(told) = error.emittable()
    {
        message = format!("{message}; {told}");
    }
    Err(StepError::Emittable(message))
}
