//! Networks of containers kept as they are recorded, whatever others do to the kernel's: a reload of some other firewall
//! may flush all tables, ours too. Looked at when the kernel tells that somebody else has changed our table, and now and then.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use garden_sys::nftables::others::{Changes, Heard};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio_util::sync::CancellationToken;

use super::entry::Entry;
use super::{Gardener, chain};
use crate::containerizer::watched::watched;
use crate::networker;

/// For what is done beside the firewall, to links, which we do not listen to.
const INTERVAL: Duration = Duration::from_secs(60);
/// Whoever deletes many tables is followed once.
const PAUSE: Duration = Duration::from_millis(20);

/// Until `shutdown`.
pub async fn keep_networks(gardener: Gardener, changes: Changes, shutdown: CancellationToken) {
    let readable = changes.as_fd().try_clone_to_owned().and_then(|fd| watched(fd, Interest::READABLE));
    let readable = match readable {
        Ok(readable) => readable,
        Err(error) => return tracing::error!(%error, "cannot listen to changes of the firewall"),
    };
    loop {
        let heard = tokio::time::timeout(INTERVAL, heard(&changes, &readable));
        let Some(heard) = shutdown.run_until_cancelled(heard).await else { return };
        let gardener = gardener.clone();
        let looking = tokio::task::spawn_blocking(move || match heard {
            Ok(Heard::OthersChanged) => gardener.pass_others(),
            _ => gardener.repair_networks().map(drop),
        });
        if let Ok(Err(error)) = looking.await {
            tracing::error!(error = chain(&error), "cannot look after the firewall");
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Returns when something was heard, or when nothing can be.
async fn heard(changes: &Changes, readable: &AsyncFd<OwnedFd>) -> Heard {
    loop {
        let Ok(mut ready) = readable.readable().await else { return Heard::Nothing };
        ready.clear_ready();
        match changes.heard() {
            Ok(Heard::Nothing) => {}
            Ok(heard) => return heard,
            Err(error) => {
                tracing::error!(error = chain(&error), "cannot hear changes of the firewall");
                return Heard::Nothing;
            }
        }
    }
}

impl Gardener {
    /// What had drifted, in words. Blocks.
    pub(super) fn repair_networks(&self) -> networker::Result<Vec<String>> {
        // The fence first, and whatever becomes of the rest.
        let repaired = self.repair_fence();
        self.0.networker.forward_packets()?;
        self.pass_others()?;
        repaired
    }

    fn repair_fence(&self) -> networker::Result<Vec<String>> {
        let networker = &self.0.networker;
        let Some(seen) = networker.look()? else {
            if !self.make_firewall_again()? {
                return Ok(Vec::new());
            }
            let drifted = "the firewall's table was not as it was made".to_owned();
            tracing::warn!(drifted, "made the firewall again");
            return Ok(vec![drifted]);
        };
        let is_whole = |entry: &Arc<Entry>| {
            let held = entry.hold_connection();
            held.is_none_or(|held| networker.lacks(&seen, held.handle, &held.connection).is_empty())
        };
        let suspects = self.all_entries().into_iter().filter(|entry| !is_whole(entry));
        let repaired =
            suspects.map(|entry| self.repair_network(&entry)).collect::<networker::Result<Vec<_>>>()?;
        Ok(repaired.into_iter().flatten().collect())
    }

    fn pass_others(&self) -> networker::Result<()> {
        for told in self.0.networker.pass_others()? {
            tracing::info!(chain = told, "told another firewall that our table judges containers' packets");
        }
        Ok(())
    }

    /// Looked at again: it may have come, or gone, since.
    fn repair_network(&self, entry: &Entry) -> networker::Result<Option<String>> {
        let networker = &self.0.networker;
        let Some(held) = entry.hold_connection() else { return Ok(None) };
        let Some(seen) = networker.look()? else { return Ok(None) };
        let lacks = networker.lacks(&seen, held.handle, &held.connection);
        if lacks.is_empty() {
            return Ok(None);
        }
        networker.repair(held.handle, &held.connection)?;
        let drifted = format!("container '{}' had no {}", held.handle, lacks.join(", no "));
        tracing::warn!(handle = held.handle, drifted, "the network of a container had drifted: repaired it");
        Ok(Some(drifted))
    }

    /// Nobody's network goes meanwhile: nobody would take away what it gets.
    fn make_firewall_again(&self) -> networker::Result<bool> {
        let entries = self.all_entries();
        let held: Vec<_> = entries.iter().filter_map(|entry| entry.hold_connection()).collect();
        let kept: Vec<_> = held.iter().map(|held| (held.handle, &held.connection)).collect();
        self.0.networker.make_firewall_again(&kept)
    }
}
