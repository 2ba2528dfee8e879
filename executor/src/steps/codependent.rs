//! All at once; the first that fails ends the others.

use tokio_util::sync::CancellationToken;

use super::gather::gather;
use super::{OnExit, Ready, Result, Stage, Step, StepError};

pub(super) async fn perform(
    steps: &[Step],
    rule: OnExit,
    stage: &Stage,
    cancel: &CancellationToken,
    ready: &Ready,
) -> Result {
    let children = cancel.child_token();
    let mut errors = Vec::new();
    gather(steps, stage, &children, ready, |_, result| {
        match (result, rule) {
            (Ok(()), OnExit::Continue) => return,
            (Ok(()), OnExit::CancelOthers) => {}
            (Ok(()), OnExit::Fail) => errors.push(StepError::CodependentExited),
            (Err(error), _) => errors.push(error),
        }
        children.cancel();
    })
    .await;
    StepError::of(errors)
}
