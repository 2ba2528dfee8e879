//! What a client has sent on one channel and nobody here has taken yet. The library opens a channel's window again before
//! anything has been taken, and reads nothing of a connection while one of its channels has no room. Then even the news that
//! our output may go on is not read, and a program that waits for that never reads what fills the room. So there is much room,
//! counted in bytes; when it is full, messages are still taken, but slowly; and then the channel ends.

use std::{sync::Arc, time::Duration};

use russh::{ChannelMsg, ChannelReadHalf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

/// Held for one channel as fast as it comes.
const HELD_BYTES_MAX: usize = 4 << 20;
/// Held beyond that, each message after a longer pause than the one before.
const OVERDRAFT_BYTES_MAX: usize = 28 << 20;
const OVERDRAFT_PAUSE: Duration = Duration::from_micros(500);
const OVERDRAFT_PAUSES_MAX: u32 = 1000;
/// What a message takes beside its data.
const MESSAGE_BYTES: usize = 128;

pub struct Inbox(mpsc::UnboundedReceiver<(ChannelMsg, Place)>);

/// The room a message takes until it is dropped.
pub type Place = OwnedSemaphorePermit;

impl Inbox {
    pub fn of(from: ChannelReadHalf) -> Inbox {
        let (sender, messages) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            tokio::select! {
                () = fill(from, &sender) => {}
                () = sender.closed() => {}
            }
        });
        Inbox(messages)
    }

    /// The next message and the room it takes; `None` when the channel has ended.
    pub async fn next(&mut self) -> Option<(ChannelMsg, Place)> {
        self.0.recv().await
    }
}

async fn fill(mut from: ChannelReadHalf, to: &mpsc::UnboundedSender<(ChannelMsg, Place)>) {
    let room = Arc::new(Semaphore::new(HELD_BYTES_MAX));
    let overdraft = Arc::new(Semaphore::new(OVERDRAFT_BYTES_MAX));
    let mut overdrawn = 0;
    while let Some(message) = from.wait().await {
        let waiting = room.clone().acquire_many_owned(weight(&message));
        let pause = OVERDRAFT_PAUSE * (overdrawn + 1).min(OVERDRAFT_PAUSES_MAX);
        let place = match tokio::time::timeout(pause, waiting).await {
            Ok(place) => {
                overdrawn = 0;
                place.ok()
            }
            Err(_) => {
                overdrawn += 1;
                overdraft.clone().try_acquire_many_owned(weight(&message)).ok()
            }
        };
        let Some(place) = place else { return };
        if to.send((message, place)).is_err() {
            return;
        }
    }
}

fn weight(message: &ChannelMsg) -> u32 {
    let data = match message {
        ChannelMsg::Data { data } | ChannelMsg::ExtendedData { data, .. } => data.len(),
        _ => 0,
    };
    (data + MESSAGE_BYTES).min(HELD_BYTES_MAX) as u32
}
