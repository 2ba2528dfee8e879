//! Watches whether garden answers. A cell whose garden does not is left out of auctions until it does again; what runs
//! on it is left alone.

use std::time::Duration;

use executor::Executor;
use tokio_util::sync::CancellationToken;

use crate::{Occurrence, Witness};

const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// So many pings in a row must fail before the cell is called unhealthy.
const FAILURES_TOLERATED: u32 = 2;

pub async fn watch(executor: &Executor, witness: &dyn Witness, shutdown: &CancellationToken) {
    let mut failures = 0;
    loop {
        failures = match ping(executor).await {
            Ok(()) => 0,
            Err(reason) => {
                tracing::error!(reason, failures = failures + 1, "failed-garden-health-check");
                failures + 1
            }
        };
        let healthy = failures <= FAILURES_TOLERATED;
        if healthy != executor.healthy() && (healthy == (failures == 0)) {
            tracing::warn!(healthy, "the health of this cell's garden has changed");
            executor.set_healthy(healthy);
        }
        witness.saw(Occurrence::GardenChecked { cell_is_well: executor.healthy() });
        tokio::select! {
            () = tokio::time::sleep(PING_INTERVAL) => {}
            () = shutdown.cancelled() => return,
        }
    }
}

async fn ping(executor: &Executor) -> Result<(), String> {
    match tokio::time::timeout(PING_TIMEOUT, executor.ping()).await {
        Ok(answer) => answer.map_err(|error| error.to_string()),
        Err(_) => Err(format!("garden did not answer within {PING_TIMEOUT:?}")),
    }
}
