//! Work that only the holder of a lock may do: begun when the lock is held, told to stop when it is lost.

use std::future::Future;
use std::time::Duration;

use bbs_models::{LOCK_RENEWAL_SECONDS, LOCK_TTL_SECONDS, LockKind, Resource};
use diego_base::names;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Hold, LocketClient, LocketError};

/// A lock that one of several processes holds: the one that works.
#[derive(Debug, Clone)]
pub struct Lock {
    pub locket: LocketClient,
    /// As whom it is held; otherwise as nobody before.
    pub owner: Option<String>,
    pub ttl: Duration,
    /// Between two attempts to get it, and two renewals unless half of the time to live is up before.
    pub renewal: Duration,
    /// Says at each moment whether the lock is ours.
    pub held: watch::Sender<bool>,
}

impl Lock {
    /// Held for as long as locks usually are.
    pub fn new(locket: LocketClient, owner: Option<String>) -> Self {
        Self {
            locket,
            owner,
            ttl: Duration::from_secs(LOCK_TTL_SECONDS),
            renewal: Duration::from_secs(LOCK_RENEWAL_SECONDS),
            held: watch::Sender::new(false),
        }
    }

    /// Begins `work` when `key` is held, and gives it back after the work has ended. The work is told to stop at
    /// `shutdown`, and when the lock is lost, which is an error. `None`: it was time to stop before it could begin.
    pub async fn while_held<F: Future>(
        self,
        key: &str,
        shutdown: &CancellationToken,
        work: impl FnOnce(CancellationToken) -> F,
    ) -> Result<Option<F::Output>, LocketError> {
        let (stop, release) = (shutdown.child_token(), CancellationToken::new());
        let mut is_held = self.held.subscribe();
        let keeping = async {
            let kept = self.hold(key).keep(self.locket.clone(), self.held.clone(), release.clone()).await;
            stop.cancel();
            kept
        };
        let working = async {
            let begun = tokio::select! {
                held = is_held.wait_for(|held| *held) => held.is_ok(),
                () = stop.cancelled() => false,
            };
            let done = if begun { Some(work(stop.clone()).await) } else { None };
            release.cancel();
            done
        };
        let (kept, done) = tokio::join!(keeping, working);
        kept.map(|()| done)
    }

    fn hold(&self, key: &str) -> Hold {
        let owner = self.owner.clone().unwrap_or_else(names::guid);
        let resource = Resource { key: key.into(), owner, value: String::new(), kind: LockKind::Lock };
        Hold { resource, ttl: self.ttl, renewal: self.renewal.min(self.ttl / 2) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_lock_is_renewed_before_it_expires_however_rarely_that_is_asked_for() {
        let locket = LocketClient::new("127.0.0.1:1", &Default::default()).unwrap();
        for (ttl_ms, asked_ms, renewal_ms) in
            [(15_000, 5_000, 5_000), (1_000, 5_000, 500), (5_000, 5_000, 2_500)]
        {
            let [ttl, asked, renewal] = [ttl_ms, asked_ms, renewal_ms].map(Duration::from_millis);
            let lock = Lock { ttl, renewal: asked, ..Lock::new(locket.clone(), None) };
            assert_eq!(lock.hold("bbs").renewal, renewal, "{ttl_ms} {asked_ms}");
        }
    }
}
