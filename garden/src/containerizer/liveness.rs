//! What tells a stream that is slow from one that hangs: whether anything has moved of late.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Of everything that tells of its steps.
#[derive(Clone, Default)]
pub struct Progress(Arc<AtomicU64>);

impl Progress {
    /// Something has moved.
    pub fn step(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// What comes of `act`; `None`: nothing has moved for `patience`, at most twice that long.
    pub async fn or_stall<T>(&self, patience: Duration, act: impl Future<Output = T>) -> Option<T> {
        let stalled = async {
            let mut seen = self.0.load(Ordering::Relaxed);
            loop {
                tokio::time::sleep(patience).await;
                let now = self.0.load(Ordering::Relaxed);
                if std::mem::replace(&mut seen, now) == now {
                    return;
                }
            }
        };
        tokio::select! {
            done = act => Some(done),
            () = stalled => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_moves_may_take_its_time_and_what_does_not_is_ended() {
        let progress = Progress::default();
        let slow = async {
            for _ in 0..10 {
                tokio::time::sleep(Duration::from_millis(30)).await;
                progress.step();
            }
        };
        assert!(progress.or_stall(Duration::from_millis(150), slow).await.is_some());
        let silent = std::future::pending::<()>();
        assert!(progress.or_stall(Duration::from_millis(150), silent).await.is_none());
    }
}
