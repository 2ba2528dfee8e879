//! Removes trees behind everybody's back, one at a time: a container that wrote a million files is gone at once for
//! who destroys it. What is not removed when the process ends lies in `tmp`, which the next start empties.

use std::path::PathBuf;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};

use crate::tree;

/// Trees waiting; whoever brings one more removes it himself.
const WAITING_MAX: usize = 1024;

enum Order {
    Remove(PathBuf),
    Answer(SyncSender<()>),
}

#[derive(Debug)]
pub struct Remover {
    orders: SyncSender<Order>,
}

impl Remover {
    /// Its thread ends when this is dropped and everything is removed.
    pub fn start() -> Remover {
        let (orders, received) = sync_channel(WAITING_MAX);
        std::thread::spawn(move || {
            for order in received {
                match order {
                    Order::Remove(path) => remove(&path),
                    // Whoever asked may have gone.
                    Order::Answer(done) => drop(done.send(())),
                }
            }
        });
        Remover { orders }
    }

    pub fn remove(&self, path: PathBuf) {
        let sent = self.orders.try_send(Order::Remove(path));
        if let Err(
            TrySendError::Full(Order::Remove(path)) | TrySendError::Disconnected(Order::Remove(path)),
        ) = sent
        {
            remove(&path);
        }
    }

    /// Waits until everything brought so far is removed.
    pub fn settle(&self) {
        let (sender, done) = sync_channel(1);
        if self.orders.send(Order::Answer(sender)).is_ok() {
            let _ = done.recv();
        }
    }
}

fn remove(path: &std::path::Path) {
    if let Err(error) = tree::remove(path) {
        tracing::warn!(path = %path.display(), %error, "cannot remove a tree; the next start tries again");
    }
}
