//! Who is there, for a process that is not Locket itself: asked every so often.

use std::time::Duration;

use bbs_models::{CellPresence, LockKind, Resource};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::LocketClient;

/// Keeps `cells` true until `shutdown` or until nobody reads it. While Locket is away the last list stands: cells that
/// cannot be asked about are not gone.
pub async fn watch_cells(
    locket: LocketClient,
    interval: Duration,
    cells: watch::Sender<Vec<CellPresence>>,
    shutdown: CancellationToken,
) {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = cells.closed() => return,
            _ = ticks.tick() => {}
        }
        match locket.fetch_all(LockKind::Presence).await {
            Ok(presences) => publish(&cells, &presences),
            Err(error) => tracing::warn!(%error, "failed-to-fetch-cells"),
        }
    }
}

fn publish(cells: &watch::Sender<Vec<CellPresence>>, presences: &[Resource]) {
    let mut found: Vec<CellPresence> = presences.iter().filter_map(CellPresence::of_resource).collect();
    found.sort_by(|a, b| a.cell_id.cmp(&b.cell_id));
    cells.send_if_modified(|known| {
        let changed = *known != found;
        *known = found;
        changed
    });
}
