//! Connections that have answered and wait for the next call.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;

use super::{Body, Connection};

pub type Sender = hyper::client::conn::http1::SendRequest<Body>;

/// Of one client.
const IDLE_CONNECTIONS_MAX: usize = 32;
/// Shorter than a garden keeps a connection that asks nothing.
const IDLE_TIME: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub struct Pool(Mutex<Vec<(Instant, Sender)>>);

impl Pool {
    fn idle(&self) -> MutexGuard<'_, Vec<(Instant, Sender)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The one that was used last; those that nobody has needed for long are closed.
    pub fn take(&self) -> Option<Sender> {
        let mut idle = self.idle();
        idle.retain(|(since, sender)| since.elapsed() < IDLE_TIME && !sender.is_closed());
        idle.pop().map(|(_, sender)| sender)
    }

    pub fn put(&self, sender: Sender) {
        let mut idle = self.idle();
        if idle.len() < IDLE_CONNECTIONS_MAX && !sender.is_closed() {
            idle.push((Instant::now(), sender));
        }
    }
}

/// A connection for requests. It ends when the sender and the last answer have been dropped.
pub async fn handshake(connection: Box<dyn Connection>) -> hyper::Result<Sender> {
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(connection)).await?;
    tokio::spawn(connection);
    Ok(sender)
}
