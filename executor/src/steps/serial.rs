//! One after another; the first that fails ends the row.

use tokio_util::sync::CancellationToken;

use super::{Ready, Result, Stage, Step, StepError};

pub(super) async fn perform(
    steps: &[Step],
    stage: &Stage,
    cancel: &CancellationToken,
    ready: &Ready,
) -> Result {
    let Some((last, before)) = steps.split_last() else { return Ok(()) };
    for (position, step) in before.iter().enumerate() {
        super::perform(step, &stage.child(position), cancel, &Ready::default()).await?;
        if cancel.is_cancelled() {
            return Err(StepError::Cancelled);
        }
    }
    super::perform(last, &stage.child(before.len()), cancel, ready).await
}
