//! The thread that looks after a disk: now and then, for what others write, and whenever a claim comes near the brim.

use std::sync::{Arc, Condvar, Mutex, Weak};
use std::time::Duration;

use super::{Inner, Ledger, lock};

const INTERVAL: Duration = Duration::from_secs(10);
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

    fn wait(&self, most: Duration) {
        let rung = lock(&self.rung);
        let waited = self.heard.wait_timeout_while(rung, most, |rung| !*rung);
        let (mut rung, _) = waited.unwrap_or_else(|poisoned| poisoned.into_inner());
        *rung = false;
    }
}

/// Ends with the last owner of the ledger.
pub fn start(inner: &Arc<Inner>) {
    let (bell, ledger) = (inner.bell.clone(), Arc::downgrade(inner));
    std::thread::spawn(move || work(&bell, &ledger));
}

fn work(bell: &Bell, ledger: &Weak<Inner>) {
    loop {
        bell.wait(INTERVAL);
        let Some(inner) = ledger.upgrade() else { return };
        if let Err(error) = Ledger(inner).keep() {
            tracing::warn!(%error, "cannot look after the disk");
        }
        std::thread::sleep(PAUSE);
    }
}
