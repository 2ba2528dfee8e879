//! Keeps the store and garden in step: reservations expire, containers garden knows and we do not are destroyed,
//! containers we know and garden does not are completed. At the end, leaves everything to a later life, or nothing.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use garden_client::Properties;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::life::Command;
use super::reservation;
use crate::{Shared, State};

/// Between two attempts to destroy, at the start and at the end.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// Attempts to destroy a container at the end before it is left to the next life.
const LAST_ATTEMPTS: u32 = 3;

pub(crate) async fn run(shared: &Arc<Shared>, shutdown: CancellationToken) {
    let interval = shared.config.reap_interval.min(shared.config.reserved_expiration / 2);
    let mut ticks = tokio::time::interval(interval.max(Duration::from_millis(10)));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let discovering = CancellationToken::new();
    let (drivers, until) = (shared.clone(), discovering.clone());
    shared.owners.spawn(async move {
        let interval = drivers.config.volume_discovery_interval;
        until.run_until_cancelled(drivers.volumes.run(interval)).await;
    });
    let discovering = discovering.drop_guard();
    shared.waiting.go_on(shared);
    // The first tick is at once: what an earlier life left without a record is destroyed before anything else.
    while shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
        expire(shared);
        if shared.config.disk_follows_garden {
            shutdown.run_until_cancelled(measure_disk(shared)).await;
        }
        if shutdown.run_until_cancelled(reap(shared)).await.is_none() {
            break;
        }
    }
    drop(discovering);
    match shared.empties.load(Ordering::SeqCst) {
        true => close(shared).await,
        false => leave(shared).await,
    }
}

fn expire(shared: &Shared) {
    for guid in shared.store.expire(shared.config.reserved_expiration) {
        tracing::info!(guid, "executor.container-expired");
        reservation::forget(shared, &guid);
    }
}

async fn measure_disk(shared: &Shared) {
    match shared.garden.capacity().await {
        Ok(capacity) => {
            let kept = shared.config.disk_kept_mb;
            shared.store.set_disk_mb((capacity.disk_in_bytes >> 20).saturating_sub(kept));
        }
        Err(error) => tracing::warn!(%error, "executor.container-reaper.failed-to-fetch-capacity"),
    }
}

async fn reap(shared: &Shared) {
    // Listed before garden is asked, so that one created in between is not taken for missing.
    let created = |container: &crate::Container| matches!(container.state, State::Created | State::Running);
    let known: Vec<_> = shared.store.list().into_iter().filter(created).map(|c| c.guid).collect();
    let handles = match shared.garden.containers(&owned(shared)).await {
        Ok(handles) => handles,
        Err(error) => {
            tracing::error!(%error, "executor.container-reaper.failed-to-fetch-containers");
            return;
        }
    };
    for handle in handles.iter().filter(|handle| !shared.store.contains(handle)) {
        match shared.garden.destroy(handle).await {
            Ok(()) => tracing::info!(handle, "executor.container-reaper.destroyed-extra-container"),
            Err(error) => {
                tracing::error!(handle, %error, "executor.container-reaper.failed-to-destroy-container")
            }
        }
    }
    for guid in known.iter().filter(|guid| !handles.contains(guid)) {
        if let Ok(Some(owner)) = shared.store.owner(guid) {
            tracing::info!(guid, "executor.container-reaper.missing-container");
            // An owner that is gone has nothing left to miss.
            let _ = owner.send(Command::Missing).await;
        }
    }
}

fn owned(shared: &Shared) -> Properties {
    Properties::from([(super::OWNER_PROPERTY.to_string(), shared.config.owner_name.clone())])
}

/// Lets go of every container as it is. What was under way is cut short, as if this process were killed.
async fn leave(shared: &Shared) {
    shared.closing.cancel();
    shared.cache.leave();
    shared.leaving.cancel();
    shared.owners.close();
    shared.owners.wait().await;
    tracing::info!(containers = shared.store.list().len(), "executor.containers-left-running");
}

/// Stops and destroys every container.
async fn close(shared: &Shared) {
    shared.closing.cancel();
    for container in shared.store.list() {
        reservation::stop(shared, &container.guid);
    }
    for attempt in 1..=LAST_ATTEMPTS {
        let mut replies = Vec::new();
        for owner in shared.store.owners() {
            let (reply, answer) = oneshot::channel();
            if owner.send(Command::Delete(reply)).await.is_ok() {
                replies.push(answer);
            }
        }
        let mut failed = 0;
        for answer in replies {
            failed += usize::from(!matches!(answer.await, Ok(Ok(()))));
        }
        if failed == 0 {
            return;
        }
        tracing::error!(attempt, failed, "executor.shutdown.containers-left");
        if attempt < LAST_ATTEMPTS {
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }
}
