//! The store's part in the account of the disk (see [`rootfs_ledger`]): layers ask before they are written, and the
//! unused ones are what the store can give; roots are promised what they may still write.

use std::io;
use std::path::Path;
use std::sync::Arc;

use rootfs_ledger::{Claim, Evict, Evicted, Ledger, Tenant, Usage};

use crate::quota::Areas;
use crate::store::{Error, Inner};
use crate::unpack::Room;

/// Layers are some three times as large unpacked as they are packed; for this much room is made ahead.
const UNPACKED_PART: u64 = 3;

/// What containers write.
pub struct RootsTenant {
    pub areas: Arc<Areas>,
}

impl Tenant for RootsTenant {
    fn name(&self) -> &'static str {
        "roots"
    }

    fn usage(&self) -> io::Result<Usage> {
        let bytes = self.areas.all().map(|area| area.taken()).sum::<io::Result<u64>>()?;
        Ok(Usage { bytes, evictable_bytes: 0 })
    }

    fn promised(&self) -> io::Result<u64> {
        let earlier = self.areas.earlier.iter().map(|area| area.promised()).sum::<io::Result<u64>>()?;
        Ok(self.areas.promised()? + earlier)
    }

    /// Roots are in use as long as they are there.
    fn evict(&self, _: Evict) -> io::Result<Evicted> {
        Ok(Evicted::default())
    }
}

impl Room for Claim {
    fn take(&mut self, bytes: u64) -> Result<(), String> {
        Claim::take(self, bytes).map_err(|error| error.to_string())
    }
}

impl Inner {
    /// Makes room for a layer whose blob has so many bytes, or says that it cannot be had. What it cannot know ahead, how
    /// large the layer is unpacked, is claimed as it is written.
    pub async fn make_room(self: &Arc<Self>, layer: &str, blob_bytes: u64) -> Result<Claim, Error> {
        let (ledger, what) = (self.ledger.clone(), format!("layer {layer}"));
        blocking(move || ledger.claim_expecting(&what, blob_bytes, blob_bytes.saturating_mul(UNPACKED_PART)))
            .await
    }
}

async fn blocking(
    act: impl FnOnce() -> Result<Claim, rootfs_ledger::Error> + Send + 'static,
) -> Result<Claim, Error> {
    let done = tokio::task::spawn_blocking(act).await;
    Ok(done.map_err(|error| Error::Interrupted { reason: error.to_string() })??)
}

/// Of the disk that a directory is on: the one it was given, where that is the same.
pub fn ledger(given: Option<&Ledger>, directory: &Path) -> Result<Ledger, rootfs_ledger::Error> {
    match given {
        Some(ledger) => ledger.of_disk(directory),
        None => Ledger::open(directory),
    }
}
