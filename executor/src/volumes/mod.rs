//! Volumes: drivers that mount them are processes of their own, found by files; this asks them to mount what a container
//! wants before it is created, and to unmount it after it was destroyed. What a volume is, where it lies and how it is
//! mounted is theirs.
//!
//! A driver counts its mounts, and is asked once for each container. What is to be mounted is known here, too, over this
//! process's restarts: when a driver is met for the first time in a life, and after calls whose end is not known, what it
//! has mounted beyond that is unmounted. So the drivers of a cell are the cell's alone.

mod driver;
mod spec;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use driver::{Driver, MOUNT_TIMEOUT};
use futures_util::future;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex as Turn;

use crate::VolumeMount;
use crate::depot::Found;
use crate::steps::report;

/// Of one volume, asked for at once: a driver that counts otherwise is not believed more.
const SURPLUS_MAX: u64 = 1000;

/// A volume by its driver, and by the name that the driver knows it by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Volume {
    pub driver: String,
    pub id: String,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("Plugin '{0}' not found in list of known plugins")]
    UnknownDriver(String),
    #[error("cannot mount a volume by driver '{driver}'")]
    Mount { driver: String, source: driver::Error },
    #[error("cannot unmount a volume by driver '{driver}'")]
    Unmount { driver: String, source: driver::Error },
}

impl Error {
    /// What the user of the volume may read.
    pub fn for_users(&self) -> Option<String> {
        match self {
            Error::UnknownDriver(_) => Some(self.to_string()),
            Error::Mount { driver, source } | Error::Unmount { driver, source } => source.for_users(driver),
        }
    }
}

pub(crate) struct Volumes {
    dirs: Vec<PathBuf>,
    drivers: Mutex<BTreeMap<String, Arc<Known>>>,
    /// How many containers hold a volume; who holds the lock has the volume's turn at its driver.
    held: Mutex<BTreeMap<Volume, Arc<Turn<u64>>>>,
}

/// A driver that has answered once. It is kept when it goes: what it has mounted must be unmounted some time.
struct Known {
    driver: Driver,
    /// It answered when it was asked last.
    active: AtomicBool,
    /// It may have mounted what nobody holds.
    doubtful: AtomicBool,
}

impl Volumes {
    /// With what containers of an earlier life hold.
    pub fn new(dirs: Vec<PathBuf>, found: &[Found]) -> Volumes {
        let mut counts = BTreeMap::<Volume, u64>::new();
        for volume in found.iter().flat_map(|found| found.record.held_volumes()) {
            *counts.entry(volume.clone()).or_default() += 1;
        }
        let held = counts.into_iter().map(|(volume, count)| (volume, Arc::new(Turn::new(count)))).collect();
        Volumes { dirs, drivers: Mutex::default(), held: Mutex::new(held) }
    }

    /// Looks for drivers, at once and then again and again.
    pub async fn run(&self, interval: Duration) {
        if self.dirs.is_empty() {
            return;
        }
        let mut ticks = tokio::time::interval(interval);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.discover().await;
        }
    }

    /// Names of the drivers that answer.
    pub fn drivers(&self) -> Vec<String> {
        let active = |known: &Known| known.active.load(Ordering::SeqCst);
        lock(&self.drivers).iter().filter(|(_, known)| active(known)).map(|(name, _)| name.clone()).collect()
    }

    /// The volume that a container's mount means.
    pub fn volume(&self, guid: &str, mount: &VolumeMount) -> Result<Volume, Error> {
        let known = self.active(&mount.driver)?;
        let id = match known.driver.spec.unique_volume_ids {
            true => unique_id(&mount.volume_id, guid),
            false => mount.volume_id.clone(),
        };
        Ok(Volume { driver: mount.driver.clone(), id })
    }

    /// Answers where on the host it is. May be dropped: what came of it is looked after later.
    pub async fn mount(&self, volume: &Volume, opts: &driver::Options) -> Result<PathBuf, Error> {
        let known = self.active(&volume.driver)?;
        let failed = |source| Error::Mount { driver: volume.driver.clone(), source };
        let turn = self.turn(volume);
        let mounting = async {
            let mut count = turn.lock().await;
            let doubt = Doubt(Some(&known));
            let mounted = known.driver.mount(&volume.id, opts).await?;
            *count += 1;
            doubt.none();
            Ok(PathBuf::from(mounted))
        };
        let late = driver::Error::Deadline { call: "/VolumeDriver.Mount", within: MOUNT_TIMEOUT };
        let mounted = tokio::time::timeout(MOUNT_TIMEOUT, mounting).await.unwrap_or(Err(late));
        drop(turn);
        if mounted.is_err() {
            self.sweep();
        }
        mounted.map_err(failed)
    }

    /// Whatever the driver answers, nobody holds it any more.
    pub async fn unmount(&self, volume: &Volume) -> Result<(), Error> {
        let known = lock(&self.drivers).get(&volume.driver).cloned();
        let turn = self.turn(volume);
        let unmounting = async {
            let mut count = turn.lock().await;
            *count = count.saturating_sub(1);
            let known = known.ok_or_else(|| Error::UnknownDriver(volume.driver.clone()))?;
            let doubt = Doubt(Some(&known));
            let failed = |source| Error::Unmount { driver: volume.driver.clone(), source };
            known.driver.unmount(&volume.id).await.map_err(failed)?;
            doubt.none();
            Ok(())
        };
        // Its turn comes: whoever has it, has a deadline.
        let unmounted = unmounting.await;
        drop(turn);
        self.sweep();
        unmounted
    }

    fn active(&self, name: &str) -> Result<Arc<Known>, Error> {
        let known = lock(&self.drivers).get(name).cloned();
        let active = known.filter(|known| known.active.load(Ordering::SeqCst));
        active.ok_or_else(|| Error::UnknownDriver(name.to_owned()))
    }

    fn turn(&self, volume: &Volume) -> Arc<Turn<u64>> {
        lock(&self.held).entry(volume.clone()).or_default().clone()
    }

    /// Forgets volumes that nobody holds or is about to.
    fn sweep(&self) {
        let is_used = |turn: &Arc<Turn<u64>>| {
            Arc::strong_count(turn) > 1 || turn.try_lock().map_or(true, |count| *count > 0)
        };
        lock(&self.held).retain(|_, turn| is_used(turn));
    }

    async fn discover(&self) {
        let dirs = self.dirs.clone();
        let specs = tokio::task::spawn_blocking(move || spec::found(&dirs)).await.unwrap_or_default();
        let asked = future::join_all(specs.into_iter().map(|spec| self.ask(spec))).await;
        let mut answering = BTreeSet::new();
        for known in asked.into_iter().flatten() {
            let name = known.driver.spec.name.clone();
            if !answering.insert(name.clone()) {
                continue;
            }
            if known.doubtful.load(Ordering::SeqCst) {
                self.settle(&known).await;
            }
            if !known.active.swap(true, Ordering::SeqCst) {
                tracing::info!(driver = name, "executor.volumes.driver-found");
            }
            lock(&self.drivers).insert(name, known);
        }
        for (name, known) in lock(&self.drivers).iter().filter(|(name, _)| !answering.contains(*name)) {
            if known.active.swap(false, Ordering::SeqCst) {
                tracing::warn!(driver = name, "executor.volumes.driver-lost");
            }
        }
    }

    /// The driver, if it answers: the one that is known already, if it is there that it was.
    async fn ask(&self, spec: spec::Spec) -> Option<Arc<Known>> {
        let name = spec.name.clone();
        let known = lock(&self.drivers).get(&name).filter(|known| known.driver.spec == spec).cloned();
        let known = match known {
            Some(known) => Ok(known),
            None => Driver::new(spec).map(Known::met_first).map(Arc::new),
        };
        let asked = match known {
            Ok(known) => known.driver.activate().await.map(|()| known),
            Err(error) => Err(error),
        };
        asked
            .inspect_err(|error| {
                tracing::warn!(
                    driver = name,
                    error = report(error),
                    "executor.volumes.driver-does-not-answer"
                );
            })
            .ok()
    }

    /// Unmounts what the driver has mounted and nobody holds.
    async fn settle(&self, known: &Known) {
        let name = &known.driver.spec.name;
        known.doubtful.store(false, Ordering::SeqCst);
        let doubt = Doubt(Some(known));
        let listed = match known.driver.list().await {
            Ok(listed) => listed,
            Err(error) => {
                return tracing::warn!(driver = name, error = report(&error), "executor.volumes.cannot-list");
            }
        };
        let mut settled = true;
        for volume in listed {
            match self.settle_one(known, &volume).await {
                Ok(is_settled) => settled &= is_settled,
                Err(error) => {
                    let (volume, error) = (volume.name, report(&error));
                    tracing::error!(driver = name, volume, error, "executor.volumes.left-mounted");
                    // The driver is not asked for the rest before it is looked for again: it may hang at each.
                    settled = false;
                    break;
                }
            }
        }
        self.sweep();
        if settled {
            doubt.none();
        }
    }

    /// Whether nothing is left to be done.
    async fn settle_one(&self, known: &Known, listed: &driver::Volume) -> Result<bool, driver::Error> {
        let volume = Volume { driver: known.driver.spec.name.clone(), id: listed.name.clone() };
        let turn = self.turn(&volume);
        // Somebody is at it: later.
        let Ok(count) = turn.try_lock() else { return Ok(false) };
        if surplus(listed, *count) == 0 {
            return Ok(true);
        }
        // What the list said was true before it was this one's turn.
        let listed = known.driver.list().await?.into_iter().find(|now| now.name == volume.id);
        let listed = listed.unwrap_or_default();
        for _ in 0..surplus(&listed, *count) {
            tracing::info!(driver = volume.driver, volume = volume.id, "executor.volumes.unmounting-surplus");
            known.driver.unmount(&volume.id).await?;
        }
        Ok(true)
    }
}

impl Known {
    /// In this life: an earlier one may have left something.
    fn met_first(driver: Driver) -> Known {
        Known { driver, active: AtomicBool::new(false), doubtful: AtomicBool::new(true) }
    }
}

/// While a call's end is not known; who does not say that there is no doubt leaves it to be settled.
struct Doubt<'a>(Option<&'a Known>);

impl Doubt<'_> {
    fn none(mut self) {
        self.0 = None;
    }
}

impl Drop for Doubt<'_> {
    fn drop(&mut self) {
        if let Some(known) = self.0 {
            known.doubtful.store(true, Ordering::SeqCst);
        }
    }
}

/// Mounts of a volume that are one too many each. A driver that does not count has at most one.
fn surplus(listed: &driver::Volume, held: u64) -> u64 {
    let is_mounted = listed.mountpoint.as_deref().is_some_and(|at| !at.is_empty());
    let counted = listed.mount_count.and_then(|count| u64::try_from(count).ok()).unwrap_or(0);
    match counted {
        0 => u64::from(is_mounted && held == 0),
        counted => counted.saturating_sub(held).min(SURPLUS_MAX),
    }
}

/// Both of its parts can be told from it, as drivers do.
fn unique_id(volume_id: &str, guid: &str) -> String {
    format!("{}_{}", volume_id.replace('_', "="), guid.replace('_', "="))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_mounted_beyond_what_is_held_is_surplus() {
        let listed = |at: &str, mount_count| driver::Volume {
            name: "v".into(),
            mountpoint: Some(at.into()),
            mount_count,
        };
        let rows = [
            (listed("/v", Some(3)), 1, 2),
            (listed("/v", Some(1)), 1, 0),
            (listed("/v", Some(1)), 2, 0),
            (listed("/v", None), 0, 1),
            (listed("/v", None), 1, 0),
            (listed("", None), 0, 0),
            (listed("/v", Some(-1)), 0, 1),
            (listed("/v", Some(i64::MAX)), 0, SURPLUS_MAX),
        ];
        for (listed, held, expected) in rows {
            assert_eq!(surplus(&listed, held), expected, "{listed:?} {held}");
        }
    }

    #[test]
    fn a_volume_of_its_own_is_named_for_volume_and_container() {
        assert_eq!(unique_id("a_b", "guid-1"), "a=b_guid-1");
    }
}
