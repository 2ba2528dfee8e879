//! Ends a step that takes too long, counted from when it began, in whichever life of the executor that was.

use std::pin::pin;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::{Ready, Result, Stage, Step, StepError, go_duration};
use crate::depot::{Mark, since_boot_ms};

pub(super) async fn perform(
    step: &Step,
    limit: Duration,
    stage: &Stage,
    cancel: &CancellationToken,
    ready: &Ready,
) -> Result {
    let left = match stage.place.earlier() {
        Some(Mark::Begun { at_ms }) => {
            limit.saturating_sub(Duration::from_millis(since_boot_ms().saturating_sub(*at_ms)))
        }
        _ => {
            stage.place.note(Mark::begun_now()).await?;
            limit
        }
    };
    let child = cancel.child_token();
    let inner = stage.child(0);
    let mut running = pin!(super::perform(step, &inner, &child, ready));
    tokio::select! {
        biased;
        result = &mut running => return result,
        () = tokio::time::sleep(left) => {}
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
