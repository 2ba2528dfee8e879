//! What tells a stream that is slow from one that hangs: whether anything has moved of late.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use garden_client::Reader;
use tokio::io::{AsyncRead, ReadBuf};

/// Of everything that is read through [`Progress::watch`].
#[derive(Clone, Default)]
pub struct Progress(Arc<AtomicU64>);

impl Progress {
    pub fn watch(&self, reader: Reader) -> Reader {
        Box::new(Watched { reader, progress: self.clone() })
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

struct Watched {
    reader: Reader,
    progress: Progress,
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.reader).poll_read(context, buffer);
        if polled.is_ready() {
            self.progress.0.fetch_add(1, Ordering::Relaxed);
        }
        polled
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn what_moves_may_take_its_time_and_what_does_not_is_ended() {
        let progress = Progress::default();
        let (mut ours, theirs) = tokio::io::duplex(64);
        let mut reader = progress.watch(Box::new(theirs));
        let slow = tokio::spawn(async move {
            for _ in 0..10 {
                tokio::time::sleep(Duration::from_millis(30)).await;
                ours.write_all(b"x").await.unwrap();
            }
            std::future::pending::<()>().await;
            drop(ours);
        });
        let mut bytes = [0; 10];
        let read = progress.or_stall(Duration::from_millis(150), reader.read_exact(&mut bytes)).await;
        assert!(read.unwrap().is_ok());
        assert!(progress.or_stall(Duration::from_millis(150), reader.read_u8()).await.is_none());
        slow.abort();
    }
}
