//! Tells subscribers what became true. A subscriber that does not keep up is told how much it missed.

use tokio::sync::broadcast;

use crate::Event;

/// Events a subscriber may be behind before it has missed some.
pub const EVENTS_BEHIND_MAX: usize = 1024;

/// Where events are told.
#[derive(Clone)]
pub struct Hub(broadcast::Sender<Event>);

impl Default for Hub {
    fn default() -> Self {
        Hub(broadcast::channel(EVENTS_BEHIND_MAX).0)
    }
}

impl Hub {
    pub fn emit(&self, event: Event) {
        // Nobody listening is no failure: state can be read at any time.
        let _ = self.0.send(event);
    }

    pub fn subscribe(&self) -> Events {
        Events(self.0.subscribe())
    }
}

/// One subscriber's stream, beginning with what happens after it subscribed.
pub struct Events(broadcast::Receiver<Event>);

/// What a subscriber hears: nearly always an event, so that boxing it would only cost.
#[allow(clippy::large_enum_variant)]
#[derive(Debug, Clone)]
pub enum Heard {
    Event(Event),
    /// So many events were lost to a subscriber too slow for them: read the state anew.
    Missed(u64),
}

impl Events {
    /// `None` once the executor is gone.
    pub async fn next(&mut self) -> Option<Heard> {
        match self.0.recv().await {
            Ok(event) => Some(Heard::Event(event)),
            Err(broadcast::error::RecvError::Lagged(missed)) => Some(Heard::Missed(missed)),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}
