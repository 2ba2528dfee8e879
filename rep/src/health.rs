//! Watches over garden: whether it answers, and, where a check is configured, whether a container can be made in it, a
//! process run, and all of it be destroyed. A cell whose garden fails is left out of auctions until it does not; what runs
//! on it is left alone.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use executor::{Executor, GardenCheck};
use tokio_util::sync::CancellationToken;

use crate::{Occurrence, Witness};

const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// So many pings in a row must fail before the cell is called unhealthy.
const FAILURES_TOLERATED: u32 = 2;
/// A garden whose check has failed is checked again after this long at the latest.
const RECHECK_INTERVAL_MAX: Duration = Duration::from_secs(60);
/// For the containers of a check that is cut short.
const CLEAR_TIMEOUT: Duration = Duration::from_secs(5);

/// A container is made this often.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    pub garden: GardenCheck,
    pub interval: Duration,
    /// A check that takes longer has failed.
    pub timeout: Duration,
}

pub async fn watch(
    executor: &Executor,
    check: Option<&Check>,
    witness: &dyn Witness,
    shutdown: &CancellationToken,
) {
    let found = Mutex::new(Found::default());
    let tell = |change: &dyn Fn(&mut Found)| {
        let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut found);
        if found.unhealthy == executor.healthy() {
            tracing::warn!(healthy = !found.unhealthy, "the health of this cell's garden has changed");
            executor.set_healthy(!found.unhealthy);
        }
        witness.saw(Occurrence::GardenChecked { cell_is_well: executor.healthy() });
    };
    let pinging = async {
        loop {
            let answered = ping(executor).await;
            tell(&|found| found.pinged(&answered));
            tokio::time::sleep(PING_INTERVAL).await;
        }
    };
    let checking = async {
        let Some(check) = check else { return };
        loop {
            let passed = perform(executor, check).await;
            tell(&|found| found.checked(&passed));
            let recheck = check.interval.min(RECHECK_INTERVAL_MAX);
            tokio::time::sleep(if passed.is_ok() { check.interval } else { recheck }).await;
        }
    };
    shutdown.run_until_cancelled(async { tokio::join!(pinging, checking) }).await;
    if let Some(check) = check {
        clear(executor, check).await;
    }
}

/// What is known of garden.
#[derive(Debug, Default)]
struct Found {
    pings_failed: u32,
    check_failed: bool,
    unhealthy: bool,
}

impl Found {
    fn pinged(&mut self, answered: &Result<(), String>) {
        self.pings_failed = match answered {
            Ok(()) => 0,
            Err(reason) => {
                let failures = self.pings_failed + 1;
                tracing::error!(reason, failures, "failed-garden-health-check");
                failures
            }
        };
        self.judge();
    }

    fn checked(&mut self, passed: &Result<(), String>) {
        self.check_failed = passed.is_err();
        match passed {
            Ok(()) => tracing::debug!("passed-health-check"),
            Err(reason) => tracing::error!(reason, "failed-health-check"),
        }
        self.judge();
    }

    /// Between too many failed pings and one that is answered it stays what it was.
    fn judge(&mut self) {
        self.unhealthy = match self.pings_failed {
            0 => self.check_failed,
            1..=FAILURES_TOLERATED => self.check_failed || self.unhealthy,
            _ => true,
        };
    }
}

async fn ping(executor: &Executor) -> Result<(), String> {
    match tokio::time::timeout(PING_TIMEOUT, executor.ping()).await {
        Ok(answer) => answer.map_err(|error| error.to_string()),
        Err(_) => Err(format!("garden did not answer within {PING_TIMEOUT:?}")),
    }
}

async fn perform(executor: &Executor, check: &Check) -> Result<(), String> {
    match tokio::time::timeout(check.timeout, executor.check_garden(&check.garden)).await {
        Ok(passed) => passed.map_err(|error| error.to_string()),
        Err(_) => {
            clear(executor, check).await;
            Err("garden healthcheck timed out".to_owned())
        }
    }
}

async fn clear(executor: &Executor, check: &Check) {
    let clearing = executor.clear_garden_check(&check.garden);
    match tokio::time::timeout(CLEAR_TIMEOUT, clearing).await {
        Ok(Ok(())) => {}
        // The next check clears first.
        Ok(Err(error)) => tracing::warn!(%error, "a container of a check of garden is left"),
        Err(_) => tracing::warn!("a container of a check of garden is left: it was not destroyed in time"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_is_unhealthy_after_three_pings_or_one_check_and_healthy_after_one_of_each() {
        let table: [(&[&str], bool); 8] = [
            (&[], false),
            (&["no answer", "no answer"], false),
            (&["no answer", "no answer", "no answer"], true),
            (&["no answer", "no answer", "no answer", "answer"], false),
            (&["failed"], true),
            (&["failed", "answer"], true),
            (&["failed", "passed"], false),
            (&["failed", "no answer", "passed", "no answer"], true),
        ];
        for (told, unhealthy) in table {
            let mut found = Found::default();
            for told in told {
                match *told {
                    "answer" => found.pinged(&Ok(())),
                    "no answer" => found.pinged(&Err("gone".into())),
                    "passed" => found.checked(&Ok(())),
                    _ => found.checked(&Err("disk full".into())),
                }
            }
            assert_eq!(found.unhealthy, unhealthy, "{told:?}");
        }
    }
}
