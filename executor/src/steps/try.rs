//! Makes nothing of a step's failure.

use tokio_util::sync::CancellationToken;

use super::{Ready, Result, Stage, Step};

pub(super) async fn perform(step: &Step, stage: &Stage, cancel: &CancellationToken, ready: &Ready) -> Result {
    if let Err(error) = super::perform(step, &stage.child(0), cancel, ready).await {
        tracing::info!(guid = stage.guid, %error, "executor.try-step.failed");
    }
    Ok(())
}
