//! One flight for all who want the same: whoever asks while it is under way waits for it and gets its answer, good or
//! bad. It is flown by those who wait; when nobody waits any more it is dropped, and with it what it had begun.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Mutex;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared, WeakShared};
use tokio::sync::broadcast;

/// Reports that may wait for a slow listener; older ones are then lost, as newer ones say more.
const REPORTS_WAITING_MAX: usize = 256;

type Flying<V> = Shared<BoxFuture<'static, V>>;

pub struct Flights<K, V, P> {
    flying: Mutex<HashMap<K, Flight<V, P>>>,
}

struct Flight<V, P> {
    future: WeakShared<BoxFuture<'static, V>>,
    reports: broadcast::Sender<P>,
}

/// Where a flight says how far it is; heard by everybody who waits for it.
#[derive(Debug)]
pub struct Reports<P>(broadcast::Sender<P>);

impl<P> Clone for Reports<P> {
    fn clone(&self) -> Self {
        Reports(self.0.clone())
    }
}

impl<P: Clone> Reports<P> {
    pub fn send(&self, report: P) {
        // Nobody listening is nothing to worry about.
        let _ = self.0.send(report);
    }
}

impl<K, V, P> Default for Flights<K, V, P> {
    fn default() -> Self {
        Flights { flying: Mutex::new(HashMap::new()) }
    }
}

impl<K: Eq + Hash, V: Clone + Send + Sync + 'static, P: Clone + Send + 'static> Flights<K, V, P> {
    /// Joins the flight for `key`, or begins it.
    pub async fn join<F>(
        &self,
        key: K,
        begin: impl FnOnce(Reports<P>) -> F,
        listener: &(dyn Fn(P) + Send + Sync),
    ) -> V
    where
        F: Future<Output = V> + Send + 'static,
    {
        let (mut flight, mut reports) = self.board(key, begin);
        loop {
            tokio::select! {
                biased;
                report = reports.recv() => match report {
                    Ok(report) => listener(report),
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    // The flight dropped its end: only its answer is left to come.
                    Err(broadcast::error::RecvError::Closed) => return flight.await,
                },
                answer = &mut flight => {
                    while let Ok(report) = reports.try_recv() {
                        listener(report);
                    }
                    return answer;
                }
            }
        }
    }

    fn board<F>(&self, key: K, begin: impl FnOnce(Reports<P>) -> F) -> (Flying<V>, broadcast::Receiver<P>)
    where
        F: Future<Output = V> + Send + 'static,
    {
        let mut flying = self.flying.lock().unwrap_or_else(|e| e.into_inner());
        flying.retain(|_, flight| flight.future.upgrade().is_some_and(|future| future.peek().is_none()));
        if let Some(flight) = flying.get(&key)
            && let Some(future) = flight.future.upgrade()
        {
            return (future, flight.reports.subscribe());
        }
        let (sender, receiver) = broadcast::channel(REPORTS_WAITING_MAX);
        let future = begin(Reports(sender.clone())).boxed().shared();
        if let Some(weak) = future.downgrade() {
            flying.insert(key, Flight { future: weak, reports: sender });
        }
        (future, receiver)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn many_at_once_are_one_flight_and_the_next_is_another() {
        let flights: Flights<&str, u32, u32> = Flights::default();
        let begun = Arc::new(AtomicU32::new(0));
        let heard = AtomicU32::new(0);
        let fly = |reports: Reports<u32>| {
            let begun = begun.clone();
            async move {
                let number = begun.fetch_add(1, Ordering::SeqCst) + 1;
                tokio::time::sleep(Duration::from_secs(1)).await;
                reports.send(number);
                number
            }
        };
        let listener = |_| {
            heard.fetch_add(1, Ordering::SeqCst);
        };
        let all = (0..20).map(|_| flights.join("image", fly, &listener));
        let answers = futures_util::future::join_all(all).await;
        assert_eq!(answers, vec![1; 20]);
        assert_eq!(heard.load(Ordering::SeqCst), 20);
        assert_eq!(flights.join("image", fly, &|_| {}).await, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_flight_goes_on_when_who_began_it_leaves() {
        let flights: Arc<Flights<&str, u32, ()>> = Arc::default();
        let slow = |_| async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            7
        };
        let second = flights.clone();
        let first = tokio::time::timeout(Duration::from_secs(1), flights.join("image", slow, &|_| {}));
        let joined = tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(500)).await;
            let began = tokio::time::Instant::now();
            (second.join("image", slow, &|_| {}).await, began.elapsed())
        });
        assert!(first.await.is_err());
        let (answer, waited) = joined.await.unwrap();
        assert_eq!((answer, waited.as_millis()), (7, 1500));
    }
}
