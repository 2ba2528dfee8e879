//! Destroys containers that nobody has used for their grace time.

use std::time::{Duration, Instant};

use garden_client::Garden;
use tokio_util::sync::CancellationToken;

use super::Gardener;

/// How late a container may be reaped.
const PERIOD: Duration = Duration::from_millis(500);

pub async fn reap(gardener: Gardener, shutdown: CancellationToken) {
    while shutdown.run_until_cancelled(tokio::time::sleep(PERIOD)).await.is_some() {
        let now = Instant::now();
        let entries = gardener.all_entries().into_iter();
        for entry in entries.filter(|entry| entry.is_forgotten(now)) {
            tracing::info!(handle = entry.handle, "reaping");
            // Said by the destruction itself; a container that is broken is no longer reaped, but can be destroyed.
            _ = gardener.destroy(&entry.handle).await;
        }
    }
}
