//! Waiting for the BBS to say that something has become true, without asking in a loop: look, then sleep until the
//! next event says that it is worth looking again.

use std::time::Duration;

use anyhow::Context;
use bbs_client::EventStream;
use bbs_models::{ActualLrp, ActualLrpState, Presence};
use futures_util::StreamExt;
use tokio::time::Instant;

use super::Failure;
use super::target::Target;

/// After so long without an event, look all the same.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// What to look at next.
pub enum Look<T> {
    Done(T),
    Again,
}

/// Looks until `look` is done or `limit` has passed (`None`).
pub async fn until<T>(
    mut events: EventStream,
    limit: Duration,
    mut look: impl AsyncFnMut() -> Result<Look<T>, Failure>,
) -> Result<Option<T>, Failure> {
    let deadline = Instant::now() + limit;
    loop {
        if let Look::Done(found) = look().await? {
            return Ok(Some(found));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        let pause = LOOK_AGAIN.min(deadline - Instant::now());
        // A stream that ended or failed only makes us look by the clock.
        if !matches!(tokio::time::timeout(pause, events.next()).await, Err(_) | Ok(Some(Ok(_)))) {
            tokio::time::sleep(pause.min(Duration::from_millis(200))).await;
        }
    }
}

/// How the instances of an app are, each index once.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Standing {
    pub running: u32,
    /// Index and reason of those that crash.
    pub crashed: Vec<(u32, String)>,
    /// Index and reason of those that no cell takes.
    pub unplaced: Vec<(u32, String)>,
}

impl Standing {
    /// For people who wait for `wanted` of them.
    pub fn line(&self, wanted: u32) -> String {
        let running = format!("{} of {wanted} instances running", self.running);
        match self.unplaced.first() {
            Some((index, reason)) => format!("{running}; no cell takes instance {index} yet: {reason}"),
            None => running,
        }
    }
}

pub fn standing(instances: &[ActualLrp]) -> Standing {
    let mut standing = Standing::default();
    for lrp in instances.iter().filter(|lrp| lrp.presence == Presence::Ordinary) {
        match &lrp.state {
            ActualLrpState::Running { .. } => standing.running += 1,
            ActualLrpState::Crashed => standing.crashed.push((lrp.key.index, lrp.crash_reason.clone())),
            _ if lrp.crash_count > 0 => standing.crashed.push((lrp.key.index, lrp.crash_reason.clone())),
            ActualLrpState::Unclaimed { placement_error } if !placement_error.is_empty() => {
                standing.unplaced.push((lrp.key.index, placement_error.clone()));
            }
            _ => {}
        }
    }
    standing
}

/// Waits until `wanted` instances run. `progress` is told each time that something of how they are changes.
pub async fn until_running(
    target: &Target,
    name: &str,
    wanted: u32,
    limit: Duration,
    mut progress: impl FnMut(&Standing),
) -> Result<(), Failure> {
    let events = target.bbs.subscribe_to_instance_events().await.context("cannot follow the instances")?;
    let mut seen = None;
    let outcome = until(events, limit, async || {
        let instances = target.instances(name).await?;
        let now = standing(&instances);
        if seen.as_ref() != Some(&now) {
            progress(&now);
        }
        let now = seen.insert(now);
        if now.running >= wanted {
            return Ok(Look::Done(()));
        }
        if let Some((index, reason)) = now.crashed.first() {
            return Err(Failure::Unsuccessful(format!(
                "instance {index} of {name} crashed: {reason}; see: diego logs {name}"
            )));
        }
        Ok(Look::Again)
    })
    .await?;
    let seen = seen.unwrap_or_default();
    match (outcome, seen.unplaced.first()) {
        (Some(()), _) => Ok(()),
        (None, Some((index, reason))) => Err(Failure::Unsuccessful(format!(
            "no cell takes instance {index} of {name}: {reason}; see: diego cells"
        ))),
        (None, None) => Err(Failure::Unsuccessful(format!(
            "only {} of {wanted} instances of {name} run after {} s; see: diego logs {name}",
            seen.running,
            limit.as_secs()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_is_told_why() {
        let unplaced = vec![(1, "insufficient resources: disk".to_owned()), (2, "x".into())];
        for (standing, line) in [
            (Standing { running: 2, ..Standing::default() }, "2 of 3 instances running"),
            (
                Standing { running: 1, unplaced, ..Standing::default() },
                "1 of 3 instances running; no cell takes instance 1 yet: insufficient resources: disk",
            ),
        ] {
            assert_eq!(standing.line(3), line);
        }
    }
}
