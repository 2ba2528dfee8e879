//! All at once; each runs to its own end, whatever becomes of the others.

use tokio_util::sync::CancellationToken;

use super::gather::gather;
use super::{Ready, Result, Stage, Step, StepError};

pub(super) async fn perform(
    steps: &[Step],
    stage: &Stage,
    cancel: &CancellationToken,
    ready: &Ready,
) -> Result {
    let mut results: Vec<Result> = vec![Ok(()); steps.len()];
    gather(steps, stage, cancel, ready, |position, result| results[position] = result).await;
    StepError::of(results.into_iter().filter_map(Result::err).collect())
}
