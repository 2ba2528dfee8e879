//! A garden that has gone away, killed or exchanged for a newer one, comes back and brings its containers along: what
//! asks it waits for that.

use std::time::Duration;

use garden_client::{Error, Result};
use tokio::time::Instant;

use crate::steps::go_duration;

/// How long it is waited for before what runs in it is given up. Until then it runs on, and is reached.
pub const GARDEN_RETURNS: Duration = Duration::from_secs(600);
/// Between two attempts; the first comes at once, each later one after twice the pause.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Asks again until garden is there to answer. Only for what may be asked twice.
pub(crate) async fn patiently<T, F: Future<Output = Result<T>>>(mut ask: impl FnMut() -> F) -> Result<T> {
    let gives_up = Instant::now() + GARDEN_RETURNS;
    let mut pause = PAUSE_MIN;
    loop {
        match ask().await {
            Err(Error::Disconnected(why)) if Instant::now() < gives_up => {
                tracing::debug!(why, "executor.waiting-for-garden");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
            Err(Error::Disconnected(why)) => {
                let waited = go_duration(GARDEN_RETURNS);
                return Err(Error::Other(format!("garden did not come back within {waited}: {why}")));
            }
            answer => return answer,
        }
    }
}
