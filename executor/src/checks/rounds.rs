//! Rounds: one thread goes from network to network and sees whether those who listened still do.
//!
//! Nearly every check finds what the one before has found, and that is all it does here: a connection that is there at once, and
//! closed. Only what is otherwise comes back to whoever has the container, as a [`Doubt`].

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::namespace::{self, Attempt, Away, Namespace};

/// Visits that are due within so long are made in one go, so that the thread wakes up at most so often.
const SLOT_MS: u64 = 20;

/// Why a visit is not repeated.
pub(super) enum Doubt {
    /// Nobody listens.
    Failed(io::Error),
    /// It may yet come about.
    UnderWay(OwnedFd),
    /// The cell could not even try.
    NotMade,
}

pub(crate) struct Rounds(Arc<Board>);

struct Board {
    beginning: Instant,
    visits: Mutex<Visits>,
    changed: Condvar,
}

#[derive(Default)]
struct Visits {
    /// By when they are due, in slots from the beginning, and in the order they came.
    due: BTreeMap<(u64, u64), Weak<Visit>>,
    next: u64,
    ended: bool,
}

/// Repeated as long as whoever asked for it holds it.
struct Visit {
    namespace: Arc<Namespace>,
    to: SocketAddr,
    interval: Duration,
    tell: Mutex<Option<oneshot::Sender<Doubt>>>,
}

impl Visit {
    fn tell(&self, doubt: Doubt) {
        let tell = self.tell.lock().unwrap_or_else(PoisonError::into_inner).take();
        // Who asked may have left.
        tell.map(|tell| tell.send(doubt));
    }
}

impl Rounds {
    pub fn start() -> Result<Rounds, namespace::Error> {
        let (beginning, visits, changed) = (Instant::now(), Mutex::default(), Condvar::new());
        let board = Arc::new(Board { beginning, visits, changed });
        let away = Away::from_here()?;
        let go = {
            let board = board.clone();
            move || {
                let _ended = Ended(&board);
                board.go_round(away);
            }
        };
        std::thread::Builder::new().name("rounds".into()).spawn(go).map_err(namespace::Error::Start)?;
        Ok(Rounds(board))
    }

    /// Until a connection is not there at once. May be dropped: it is not visited any more then.
    pub(super) async fn until_in_doubt(
        &self,
        namespace: &Arc<Namespace>,
        to: SocketAddr,
        first: Duration,
        interval: Duration,
    ) -> Doubt {
        let (tell, told) = oneshot::channel();
        let (namespace, tell) = (namespace.clone(), Mutex::new(Some(tell)));
        let visit = Arc::new(Visit { namespace, to, interval, tell });
        if !self.0.note(first, &visit) {
            tokio::time::sleep(first).await;
            return Doubt::NotMade;
        }
        told.await.unwrap_or(Doubt::NotMade)
    }
}

/// However a round ends, nobody waits for the next.
struct Ended<'a>(&'a Board);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}

impl Drop for Rounds {
    fn drop(&mut self) {
        self.0.lock().ended = true;
        self.0.changed.notify_one();
    }
}

impl Board {
    fn lock(&self) -> MutexGuard<'_, Visits> {
        self.visits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `false`: nobody goes round any more.
    fn note(&self, pause: Duration, visit: &Arc<Visit>) -> bool {
        let slot = self.slots(pause) + 1;
        let mut visits = self.lock();
        visits.next += 1;
        let key = (slot, visits.next);
        visits.due.insert(key, Arc::downgrade(visit));
        let is_next = visits.due.first_key_value().is_some_and(|(first, _)| *first == key);
        if is_next {
            self.changed.notify_one();
        }
        !visits.ended
    }

    /// From the beginning until then.
    fn slots(&self, from_now: Duration) -> u64 {
        (self.beginning.elapsed().saturating_add(from_now).as_secs_f64() * 1000.0) as u64 / SLOT_MS
    }

    fn go_round(&self, away: Away) {
        while let Some(due) = self.until_due() {
            for visit in due.iter().filter_map(Weak::upgrade) {
                match away.attempt(&visit.namespace, visit.to) {
                    Ok(Attempt::Connected) => _ = self.note(visit.interval, &visit),
                    Ok(Attempt::Failed(error)) => visit.tell(Doubt::Failed(error)),
                    Ok(Attempt::UnderWay(socket)) => visit.tell(Doubt::UnderWay(socket)),
                    Err(_) => visit.tell(Doubt::NotMade),
                }
            }
            if let Err(error) = away.come_back() {
                // Nothing seen from here on would be where it is thought to be.
                tracing::error!(%error, "executor.cannot-come-back-from-a-container");
                return;
            }
        }
    }

    /// `None` when it is over.
    fn until_due(&self) -> Option<Vec<Weak<Visit>>> {
        let mut visits = self.lock();
        loop {
            if visits.ended {
                return None;
            }
            let later = visits.due.split_off(&(self.slots(Duration::ZERO) + 1, 0));
            let due = std::mem::replace(&mut visits.due, later);
            if !due.is_empty() {
                return Some(due.into_values().collect());
            }
            let next =
                visits.due.first_key_value().map(|((slot, _), _)| Duration::from_millis(slot * SLOT_MS));
            let pause = next.map_or(Duration::MAX, |next| next.saturating_sub(self.beginning.elapsed()));
            visits = self.changed.wait_timeout(visits, pause).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Whoever waits looks for himself.
    fn end(&self) {
        let mut visits = self.lock();
        visits.ended = true;
        for visit in std::mem::take(&mut visits.due).into_values().filter_map(|visit| visit.upgrade()) {
            visit.tell(Doubt::NotMade);
        }
    }
}
