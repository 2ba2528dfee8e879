//! Destroys containers that nobody has used for their grace time.

use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::Gardener;

/// How late a container may be reaped.
const PERIOD: Duration = Duration::from_millis(500);

pub async fn reap(gardener: Gardener, shutdown: CancellationToken) {
    while shutdown.run_until_cancelled(tokio::time::sleep(PERIOD)).await.is_some() {
        for entry in gardener.all_entries() {
            // Asked of each in its turn: those before it may have taken long to go.
            let Some(container) = entry.begin_reaping(Instant::now()) else { continue };
            tracing::info!(handle = entry.handle, "reaping");
            // Said by the destruction itself; a container that is broken is no longer reaped, but can be destroyed.
            _ = gardener.destroy_begun(entry, Some(container)).await;
        }
    }
}
