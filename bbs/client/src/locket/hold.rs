//! Keeping a key: taking it, renewing it, saying when it is lost, giving it back.
//!
//! ```text
//! waiting ──locked──▶ held ──renewal failed──▶ lost: a lock's holder must stop, a presence is taken anew
//! ```

use std::time::Duration;

use bbs_models::{LOCK_RENEWAL_SECONDS, LOCK_TTL_SECONDS, LockKind, Resource};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::{LocketClient, LocketError};

/// By this name the component's log tells of its lock; tools wait for `bbs.locket-lock.started`.
const SESSION: &str = "locket-lock";

/// What to hold, and how.
#[derive(Debug, Clone)]
pub struct Hold {
    pub resource: Resource,
    pub ttl: Duration,
    /// Also how long one renewal may take: a later answer would be about an older state of things.
    pub renewal: Duration,
}

impl Hold {
    pub fn new(resource: Resource) -> Self {
        Self {
            resource,
            ttl: Duration::from_secs(LOCK_TTL_SECONDS),
            renewal: Duration::from_secs(LOCK_RENEWAL_SECONDS),
        }
    }

    /// Runs until `shutdown`, then releases. `held` says at each moment whether the key is ours.
    ///
    /// A lost presence is taken again as soon as it can be. A lost lock ends this with the reason: its holder must
    /// not do any more what the lock allows.
    pub async fn keep(
        self,
        locket: LocketClient,
        held: watch::Sender<bool>,
        shutdown: CancellationToken,
    ) -> Result<(), LocketError> {
        tracing::info!(target: SESSION, key = self.resource.key, owner = self.resource.owner, "started");
        let mut ticks = interval_at(Instant::now(), self.renewal);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut refused = false;
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                _ = ticks.tick() => {}
            }
            let renewed = tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                renewed = self.renew(&locket) => renewed,
            };
            let told = std::mem::replace(&mut refused, renewed.is_err());
            self.settle(renewed, told, &held)?;
        }
        held.send_replace(false);
        self.give_back(&locket).await;
        Ok(())
    }

    async fn renew(&self, locket: &LocketClient) -> Result<(), LocketError> {
        match timeout(self.renewal, locket.lock(&self.resource, self.ttl)).await {
            Ok(result) => result,
            Err(_) => {
                let status = Status::deadline_exceeded("no answer in time");
                Err(LocketError::of("lock", &self.resource.key, status))
            }
        }
    }

    fn settle(
        &self,
        renewed: Result<(), LocketError>,
        told: bool,
        held: &watch::Sender<bool>,
    ) -> Result<(), LocketError> {
        let (key, owner) = (&self.resource.key, &self.resource.owner);
        let was_held = held.send_replace(renewed.is_ok());
        match renewed {
            Ok(()) if was_held => Ok(()),
            Ok(()) => {
                tracing::info!(target: SESSION, key, owner, "acquired-lock");
                Ok(())
            }
            Err(error) if was_held => {
                tracing::error!(target: SESSION, key, owner, %error, "lost-lock");
                match self.resource.kind {
                    LockKind::Lock => Err(error),
                    LockKind::Presence => Ok(()),
                }
            }
            Err(error) if error.is_collision() && told => {
                tracing::debug!(target: SESSION, key, owner, "waiting for another owner to give the lock up");
                Ok(())
            }
            Err(error) => {
                tracing::error!(target: SESSION, key, owner, %error, "failed-to-acquire-lock");
                Ok(())
            }
        }
    }

    /// Also when it was not held for all we know: a renewal whose answer we did not wait for may have taken it.
    async fn give_back(&self, locket: &LocketClient) {
        let (key, owner) = (&self.resource.key, &self.resource.owner);
        match timeout(self.renewal, locket.release(&self.resource)).await {
            Ok(Ok(())) => tracing::info!(target: SESSION, key, owner, "released-lock"),
            Ok(Err(error)) if error.is_collision() => {}
            Ok(Err(error)) => tracing::warn!(target: SESSION, key, owner, %error, "failed-to-release-lock"),
            Err(_) => {
                tracing::warn!(target: SESSION, key, owner, "failed-to-release-lock: no answer in time")
            }
        }
    }
}
