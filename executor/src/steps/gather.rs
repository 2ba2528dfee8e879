//! Runs several steps at once and hands over their results as they come.

use std::pin::pin;

use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio_util::sync::CancellationToken;

use super::{Ready, Result, Stage, Step, perform};

/// Runs all steps to their end; `ready` is set when all of them are. `ended` sees each result with its step's
/// position and may cancel what still runs.
pub(super) async fn gather(
    steps: &[Step],
    stage: &Stage,
    cancel: &CancellationToken,
    ready: &Ready,
    mut ended: impl FnMut(usize, Result),
) {
    let readies: Vec<Ready> = steps.iter().map(|_| Ready::default()).collect();
    let perform_one = async |position: usize, step, ready| {
        (position, perform(step, &stage.child(position), cancel, ready).await)
    };
    let parts = steps.iter().zip(&readies).enumerate();
    let mut running: FuturesUnordered<_> =
        parts.map(|(position, (step, ready))| perform_one(position, step, ready)).collect();
    let mut all_ready = pin!(async {
        for ready in &readies {
            ready.wait().await;
        }
    });
    let mut told = false;
    loop {
        tokio::select! {
            biased;
            () = &mut all_ready, if !told => {
                told = true;
                ready.set();
            }
            next = running.next() => match next {
                Some((position, result)) => ended(position, result),
                None => return,
            },
        }
    }
}
