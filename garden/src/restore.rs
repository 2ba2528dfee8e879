//! What an earlier garden on the same directory has left: found in the depot, and taken away.
//!
//! The one place where a start meets records. A container that could be taken over instead would be decided here, by
//! its record, before anything is taken away.

use std::time::Duration;

use futures_util::StreamExt;
use garden_client::Garden;

use crate::depot::Record;
use crate::gardener::{Gardener, StartError};

const AT_ONCE: usize = 8;
const TRIES: usize = 5;
const PAUSE: Duration = Duration::from_secs(1);

/// Ends every container of the depot with all it had. What cannot be taken away stays known as broken, so that it can
/// be destroyed later; the rest of garden starts without it.
pub async fn take_away_leftovers(gardener: &Gardener) -> Result<(), StartError> {
    let records = gardener.leftover_records().await?;
    let taking = records.into_iter().map(|record| take_away(gardener, record));
    futures_util::stream::iter(taking).buffer_unordered(AT_ONCE).collect::<()>().await;
    gardener.sweep().await
}

async fn take_away(gardener: &Gardener, record: Record) {
    let handle = record.handle.clone();
    tracing::info!(handle, "taking away a container of an earlier garden");
    gardener.enter_leftover(record);
    for tried in 1..=TRIES {
        match gardener.destroy(&handle).await {
            Ok(()) => return,
            Err(error) => tracing::error!(handle, tried, %error, "cannot take it away"),
        }
        tokio::time::sleep(PAUSE).await;
    }
}
