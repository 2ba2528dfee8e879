//! Who wants to know, is told: events in the order of their commits, to subscribers that keep up.
//!
//! All subscribers share one bounded ring. One that falls behind by more than the ring is cut off, as it can no
//! longer follow; it subscribes anew and reads the state anew. Nobody ever waits for a subscriber.

use std::sync::{Arc, OnceLock};

use bbs_models::Event;
use tokio::sync::broadcast;

use crate::events::Events;

/// Events that a subscriber may be behind before it is cut off.
pub const EVENTS_BEHIND_MAX: usize = 65_536;

/// Which events belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Topic {
    DesiredLrps,
    Instances,
    Groups,
    Tasks,
}

/// Ways to say an event: an older and a newer one.
pub const WORDINGS: usize = 2;

#[derive(Debug)]
pub struct Published {
    pub topic: Topic,
    pub event: Event,
    /// As it travels, by wording: put into words once, by whoever is the first to need it, for all subscribers.
    said: [OnceLock<String>; WORDINGS],
}

impl Published {
    fn new(topic: Topic, event: Event) -> Arc<Published> {
        Arc::new(Published { topic, event, said: Default::default() })
    }

    pub fn said(&self, wording: usize, say: impl FnOnce(&Event) -> String) -> &str {
        self.said[wording].get_or_init(|| say(&self.event))
    }
}

/// Why a subscription ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Ended {
    #[error("the subscriber fell {missed} events behind")]
    TooSlow { missed: u64 },
    #[error("the hub is closed")]
    Closed,
}

#[derive(Debug, Clone)]
pub struct Hub(broadcast::Sender<Arc<Published>>);

impl Default for Hub {
    fn default() -> Hub {
        Hub(broadcast::Sender::new(EVENTS_BEHIND_MAX))
    }
}

impl Hub {
    /// Whether there is anyone to tell; spares the making of events for nobody.
    pub fn is_heard(&self) -> bool {
        self.0.receiver_count() > 0
    }

    pub fn publish(&self, events: Events) {
        let Events { desired_lrps, instances, groups, tasks } = events;
        let topics = [
            (Topic::DesiredLrps, desired_lrps),
            (Topic::Instances, instances),
            (Topic::Groups, groups),
            (Topic::Tasks, tasks),
        ];
        for (topic, events) in topics {
            for event in events {
                // An error says that nobody listens, which is nobody's error.
                let _ = self.0.send(Published::new(topic, event));
            }
        }
    }

    /// From now on, every event of `topics`.
    pub fn subscribe(&self, topics: &'static [Topic]) -> Subscription {
        Subscription { events: self.0.subscribe(), topics }
    }
}

#[derive(Debug)]
pub struct Subscription {
    events: broadcast::Receiver<Arc<Published>>,
    topics: &'static [Topic],
}

impl Subscription {
    pub async fn next(&mut self) -> Result<Arc<Published>, Ended> {
        loop {
            match self.events.recv().await {
                Ok(published) if self.topics.contains(&published.topic) => return Ok(published),
                Ok(_) => {}
                Err(broadcast::error::RecvError::Lagged(missed)) => return Err(Ended::TooSlow { missed }),
                Err(broadcast::error::RecvError::Closed) => return Err(Ended::Closed),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bbs_models::{Action, RunAction, Task, TaskDefinition};

    fn task(number: usize) -> Events {
        let definition = TaskDefinition::new("preloaded:x", Action::Run(RunAction::default()));
        let task = Task::pending(number.to_string(), "d", definition, 0);
        Events { tasks: vec![Event::TaskCreated(Box::new(task))], ..Events::default() }
    }

    #[tokio::test]
    async fn events_come_in_order_and_only_those_asked_for() {
        let hub = Hub::default();
        let mut tasks = hub.subscribe(&[Topic::Tasks]);
        let mut lrps = hub.subscribe(&[Topic::Instances]);
        for number in 0..100 {
            hub.publish(task(number));
        }
        for number in 0..100 {
            assert_eq!(tasks.next().await.unwrap().event.key(), number.to_string());
        }
        drop(hub);
        assert_eq!(lrps.next().await.unwrap_err(), Ended::Closed);
    }

    #[tokio::test]
    async fn an_event_is_put_into_words_once_for_each_wording() {
        let hub = Hub::default();
        let (mut first, mut second) = (hub.subscribe(&[Topic::Tasks]), hub.subscribe(&[Topic::Tasks]));
        hub.publish(task(7));
        let (first, second) = (first.next().await.unwrap(), second.next().await.unwrap());
        assert_eq!(first.said(0, |event| format!("old {}", event.key())), "old 7");
        assert_eq!(second.said(0, |_| "again".into()), "old 7");
        assert_eq!(second.said(1, |event| format!("new {}", event.key())), "new 7");
    }

    #[tokio::test]
    async fn a_subscriber_that_falls_behind_is_cut_off() {
        let hub = Hub::default();
        let mut slow = hub.subscribe(&[Topic::Tasks]);
        for number in 0..EVENTS_BEHIND_MAX + 1 {
            hub.publish(task(number));
        }
        assert!(matches!(slow.next().await, Err(Ended::TooSlow { .. })));
    }
}
