//! What a channel's one side has sent and its other side has not taken yet. The library opens a channel's window again before
//! anything has been taken, and reads nothing of a connection while one of its channels has no room. Then even the news that
//! the other direction may go on is not read, and a program that waits for that never reads what fills the room. So there is
//! much room, counted in bytes; when it is full, messages are still taken, but slowly; and a channel that stands still for
//! too long is given up.

use std::{sync::Arc, time::Duration};

use russh::{ChannelMsg, ChannelReadHalf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

/// Held for one channel as fast as it comes.
const HELD_BYTES_MAX: usize = 16 << 20;
/// Held beyond that, each message after a longer pause than the one before.
const OVERDRAFT_BYTES_MAX: usize = 112 << 20;
const OVERDRAFT_PAUSE: Duration = Duration::from_micros(500);
const OVERDRAFT_PAUSES_MAX: u32 = 1000;
/// What a message takes beside its data.
const MESSAGE_BYTES: usize = 128;

pub struct Inbox {
    messages: mpsc::UnboundedReceiver<(ChannelMsg, OwnedSemaphorePermit)>,
    /// Ends a channel that nobody reads, so that the others of its connection go on.
    pub stalled: CancellationToken,
}

impl Inbox {
    /// `in_the_way` is asked when there is no room and nothing has been taken for `patience`.
    pub fn of(
        from: ChannelReadHalf,
        patience: Duration,
        in_the_way: impl Fn() -> bool + Send + 'static,
    ) -> Inbox {
        let (sender, messages) = mpsc::unbounded_channel();
        let stalled = CancellationToken::new();
        let inbox = Inbox { messages, stalled: stalled.clone() };
        tokio::spawn(async move {
            tokio::select! {
                () = fill(from, &sender, &stalled, patience, in_the_way) => {}
                () = sender.closed() => {}
            }
        });
        inbox
    }

    /// The next message; `None` when the channel has ended.
    pub async fn next(&mut self) -> Option<ChannelMsg> {
        self.messages.recv().await.map(|(message, _place)| message)
    }
}

/// Until the channel ends or is given up.
async fn fill(
    mut from: ChannelReadHalf,
    to: &mpsc::UnboundedSender<(ChannelMsg, OwnedSemaphorePermit)>,
    stalled: &CancellationToken,
    patience: Duration,
    in_the_way: impl Fn() -> bool,
) {
    let room = Arc::new(Semaphore::new(HELD_BYTES_MAX));
    let overdraft = Arc::new(Semaphore::new(OVERDRAFT_BYTES_MAX));
    let (mut waited, mut overdrawn) = (Duration::ZERO, 0);
    while let Some(message) = from.wait().await {
        let waiting = room.clone().acquire_many_owned(weight(&message));
        let pause = OVERDRAFT_PAUSE * (overdrawn + 1).min(OVERDRAFT_PAUSES_MAX);
        let place = match tokio::time::timeout(pause, waiting).await {
            Ok(place) => {
                (waited, overdrawn) = (Duration::ZERO, 0);
                place.ok()
            }
            Err(_) => {
                (waited, overdrawn) = (waited + pause, overdrawn + 1);
                let place = overdraft.clone().try_acquire_many_owned(weight(&message)).ok();
                place.filter(|_| waited < patience || !in_the_way())
            }
        };
        let Some(place) = place else {
            return stalled.cancel();
        };
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
