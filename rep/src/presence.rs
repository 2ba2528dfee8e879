//! The cell's presence: made known when the rep starts, kept while it runs, taken back when the cell has been emptied. A
//! rep that leaves its containers to the next one leaves its presence too: until its time is up nobody misses the cell.

use std::time::Duration;

use async_trait::async_trait;
use bbs_client::{Hold, LocketClient};
use bbs_models::{
    CellCapacity, CellPresence, LOCK_RENEWAL_SECONDS, LOCK_TTL_SECONDS, LockKind, Resource, RootfsProvider,
};
use executor::CellResources;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::auction_cell::{Identity, resources};

/// Where presences are known: Locket, or, where everything is one process, the list that the BBS reads.
#[async_trait]
pub trait Presences: Send + Sync {
    /// Makes `presence` known, and sees to it that it stays so, until told to stop; then takes it back.
    async fn keep(&self, presence: CellPresence, stop: CancellationToken);
}

#[async_trait]
impl Presences for watch::Sender<Vec<CellPresence>> {
    async fn keep(&self, presence: CellPresence, stop: CancellationToken) {
        let cell_id = presence.cell_id.clone();
        self.send_modify(|present| {
            present.retain(|other| other.cell_id != cell_id);
            present.push(presence);
        });
        stop.cancelled().await;
        self.send_modify(|present| present.retain(|other| other.cell_id != cell_id));
    }
}

/// In Locket, which knows who holds a presence: the next rep of a cell is the same holder, and need not wait until the
/// time of the one before is up.
pub struct LocketPresences {
    pub locket: LocketClient,
    pub owner: String,
    pub times: PresenceTimes,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PresenceTimes {
    /// So long a cell that is not heard of is taken to be there; in whole seconds.
    pub ttl: Duration,
    /// Between two renewals, and how long one may take.
    pub renewal: Duration,
}

impl Default for PresenceTimes {
    fn default() -> Self {
        PresenceTimes {
            ttl: Duration::from_secs(LOCK_TTL_SECONDS),
            renewal: Duration::from_secs(LOCK_RENEWAL_SECONDS),
        }
    }
}

#[async_trait]
impl Presences for LocketPresences {
    async fn keep(&self, presence: CellPresence, stop: CancellationToken) {
        let value = match serde_json::to_string(&presence) {
            Ok(value) => value,
            Err(error) => return tracing::error!(%error, "cannot write the presence"),
        };
        let owner = self.owner.clone();
        let resource = Resource { key: presence.cell_id, owner, value, kind: LockKind::Presence };
        // A presence is taken anew whenever it is lost: whether it is held just now is nobody's business here.
        let (held, _) = watch::channel(false);
        let PresenceTimes { ttl, renewal } = self.times;
        if let Err(error) = (Hold { resource, ttl, renewal }).keep(self.locket.clone(), held, stop).await {
            tracing::error!(%error, "the presence was given up");
        }
    }
}

/// What a cell says of itself. Looks into the root filesystems for their versions.
pub fn of(identity: &Identity, rep_address: &str, total: CellResources) -> CellPresence {
    let total = resources(total);
    let is_extra = |name: &str| identity.extra_stacks.contains(name);
    let preloaded = identity.stacks.with_versions(|name| !is_extra(name));
    let extra = identity.stacks.with_versions(is_extra);
    CellPresence {
        cell_id: identity.cell_id.clone(),
        rep_address: rep_address.into(),
        zone: identity.zone.clone(),
        capacity: CellCapacity {
            memory_mb: total.memory_mb,
            disk_mb: total.disk_mb,
            containers: total.containers,
        },
        rootfs_providers: RootfsProvider::list(&preloaded, &extra, &identity.rootfs_schemes),
        placement_tags: identity.placement_tags.clone(),
        optional_placement_tags: identity.optional_placement_tags.clone(),
        rep_url: identity.rep_url.clone(),
        annotations: identity.annotations.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Stacks;

    #[test]
    fn a_presence_is_written_as_bbs_readers_expect() {
        let identity = Identity {
            cell_id: "cell-1".into(),
            rep_url: "https://cell-1:1801".into(),
            zone: "z1".into(),
            stacks: Stacks(
                [("linux".into(), "/linux.tar".into()), ("found".into(), "/found.tar".into())].into(),
            ),
            extra_stacks: ["found".into()].into(),
            annotations: [("rack".into(), "r7".into())].into(),
            rootfs_schemes: vec!["docker".into()],
            optional_placement_tags: vec!["x".into()],
            ..Identity::default()
        };
        let total = CellResources { memory_mb: 1024, disk_mb: 2048, containers: 250 };
        let json = serde_json::to_string(&of(&identity, "http://10.0.0.1:1800", total)).unwrap();
        assert_eq!(
            json,
            concat!(
                r#"{"cell_id":"cell-1","rep_address":"http://10.0.0.1:1800","zone":"z1","#,
                r#""capacity":{"memory_mb":1024,"disk_mb":2048,"containers":250},"#,
                r#""rootfs_provider_list":[{"name":"preloaded","properties":["linux"]},"#,
                r#"{"name":"preloaded+layer","properties":["linux"]},{"name":"extra","properties":["found"]},{"name":"docker"}],"#,
                r#""optional_placement_tags":["x"],"rep_url":"https://cell-1:1801","annotations":{"rack":"r7"}}"#,
            )
        );
    }

    #[tokio::test]
    async fn a_presence_in_process_is_there_until_it_is_told_to_stop() {
        let (present, known) = watch::channel(Vec::new());
        let stop = CancellationToken::new();
        let presence = CellPresence { cell_id: "a".into(), ..CellPresence::default() };
        let keeping = tokio::spawn({
            let stop = stop.clone();
            async move { present.keep(presence, stop).await }
        });
        let mut reader = known.clone();
        reader.wait_for(|present| present.len() == 1).await.unwrap();
        stop.cancel();
        keeping.await.unwrap();
        assert!(known.borrow().is_empty());
    }
}
