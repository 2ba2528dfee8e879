//! The thread that looks after a disk: now and then, for what others write, and whenever a claim comes near the brim.

use std::sync::{Arc, Condvar, Mutex, Weak};
use std::time::{Duration, Instant};

use super::{Inner, Ledger, lock};

const INTERVAL: Duration = Duration::from_secs(10);
/// What is promised changes with what others write, and other processes are to know.
const PUBLISH_INTERVAL: Duration = Duration::from_secs(1);
/// Where nothing could be freed, asking again at once would not help.
const PAUSE: Duration = Duration::from_millis(200);

#[derive(Default)]
pub struct Bell {
    rung: Mutex<bool>,
    heard: Condvar,
}

impl Bell {
    pub fn ring(&self) {
        *lock(&self.rung) = true;
        self.heard.notify_all();
    }

    /// Whether it was rung.
    fn wait(&self, most: Duration) -> bool {
        let rung = lock(&self.rung);
        let waited = self.heard.wait_timeout_while(rung, most, |rung| !*rung);
        let (mut rung, _) = waited.unwrap_or_else(|poisoned| poisoned.into_inner());
        std::mem::take(&mut *rung)
    }
}

/// Ends with the last owner of the ledger.
pub fn start(inner: &Arc<Inner>) {
    let (bell, ledger) = (inner.bell.clone(), Arc::downgrade(inner));
    std::thread::spawn(move || work(&bell, &ledger));
}

fn work(bell: &Bell, ledger: &Weak<Inner>) {
    let mut looked = Instant::now();
    loop {
        let rung = bell.wait(PUBLISH_INTERVAL);
        let Some(ledger) = ledger.upgrade().map(Ledger) else { return };
        let mut done = ledger.publish();
        if rung || looked.elapsed() >= INTERVAL {
            looked = Instant::now();
            done = done.and_then(|()| ledger.keep().map(drop));
        }
        if let Err(error) = done {
            tracing::warn!(%error, "cannot look after the disk");
        }
        if rung {
            std::thread::sleep(PAUSE);
        }
    }
}
