//! What is said over one connection to NATS: everything first, then each change, and everything again at the pace that
//! routers ask for.

use std::time::Duration;

use rand::Rng;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::Config;
use super::frames::Message;
use super::nats::{Connection, Error, PING_INTERVAL};
use super::pace::{Greeting, Pace};
use super::unregistrations::Unregistrations;
use crate::routes::message::{Audience, Change, Registration};
use crate::routes::table::PAGE_REGISTRATIONS;
use crate::routes::watch::Routing;

/// Between two greetings of somebody who has not answered.
const GREET_INTERVAL: Duration = Duration::from_secs(1);
/// After so many greetings nobody is there; whoever comes says so by himself.
const GREETINGS_MAX: u32 = 30;

/// What outlives a connection.
pub struct Emitter {
    routing: Routing,
    audiences: Vec<Audience>,
    pace: Pace,
    jitter_factor: f64,
    unregistrations: Unregistrations,
    unregistration_interval: Duration,
    inbox: String,
    /// Where the telling of everything has come to, while it goes on.
    page: Page,
    next_emission: Instant,
}

enum Page {
    Done,
    After(Option<String>),
}

impl Emitter {
    pub fn new(config: &Config, routing: Routing) -> Emitter {
        let mut audiences = vec![Audience::Router];
        audiences.extend(config.internal_routes.then_some(Audience::ServiceDiscovery));
        Emitter {
            routing,
            audiences,
            pace: Pace::new(config.emit_interval),
            jitter_factor: config.jitter_factor.clamp(0.0, 1.0),
            unregistrations: Unregistrations::new(config.unregistration_send_count),
            // An interval of nothing would be said without end.
            unregistration_interval: config.unregistration_interval.max(Duration::from_millis(10)),
            inbox: format!("_INBOX.{:032x}", rand::random::<u128>()),
            page: Page::Done,
            next_emission: Instant::now(),
        }
    }

    /// While nobody can be told. Ends when nobody makes changes any more.
    pub async fn note_only(&mut self, changes: &mut mpsc::Receiver<Vec<Change>>) {
        while let Some(told) = changes.recv().await {
            told.iter().for_each(|change| self.unregistrations.note(change));
        }
    }

    /// Until the connection is lost, or nobody makes changes any more.
    pub async fn emit(
        &mut self,
        mut connection: Connection,
        changes: &mut mpsc::Receiver<Vec<Change>>,
    ) -> Result<(), Error> {
        self.begin(&mut connection);
        let mut ping = ticks(PING_INTERVAL);
        let mut greet = ticks(GREET_INTERVAL);
        let mut unregister = ticks(self.unregistration_interval);
        let mut greetings = 0;
        loop {
            connection.flush().await?;
            tokio::select! {
                message = connection.next() => self.hear(message?),
                told = changes.recv() => match told {
                    Some(told) => self.tell(&mut connection, told).await?,
                    None => return Ok(()),
                },
                () = std::future::ready(()), if matches!(self.page, Page::After(_)) => {
                    self.tell_page(&mut connection);
                }
                () = sleep_until(self.next_emission) => self.begin_page(Duration::ZERO),
                _ = ping.tick() => connection.ping()?,
                _ = unregister.tick() => self.repeat_unregistrations(&mut connection),
                _ = greet.tick(), if greetings < GREETINGS_MAX => {
                    greetings += 1;
                    self.greet(&mut connection);
                }
            }
        }
    }

    fn begin(&mut self, connection: &mut Connection) {
        for audience in &self.audiences {
            connection.subscribe(&format!("{}.start", name(*audience)));
            connection.subscribe(&self.inbox_of(*audience));
        }
        self.page = Page::Done;
        self.begin_page(Duration::ZERO);
    }

    /// After `pause`, and then at the pace.
    fn begin_page(&mut self, pause: Duration) {
        if pause.is_zero() {
            // One that still goes on is not begun anew: it would never end.
            if matches!(self.page, Page::Done) {
                self.page = Page::After(None);
            }
            self.next_emission = Instant::now() + self.pace.interval();
        } else {
            self.next_emission = self.next_emission.min(Instant::now() + pause);
        }
    }

    fn tell_page(&mut self, connection: &mut Connection) {
        let Page::After(from) = std::mem::replace(&mut self.page, Page::Done) else { return };
        let (registrations, next) = self.routing.registrations_after(from.as_deref());
        for registration in registrations {
            self.publish(connection, "register", &registration);
        }
        if next.is_some() {
            self.page = Page::After(next);
        }
    }

    /// All are noted first: if the connection is lost in between, what was to be taken back still is, over the next.
    async fn tell(&mut self, connection: &mut Connection, changes: Vec<Change>) -> Result<(), Error> {
        changes.iter().for_each(|change| self.unregistrations.note(change));
        for some in changes.chunks(PAGE_REGISTRATIONS) {
            for change in some {
                match change {
                    Change::Register(registration) => self.publish(connection, "register", registration),
                    Change::Unregister(registration) => self.publish(connection, "unregister", registration),
                }
            }
            connection.flush().await?;
        }
        Ok(())
    }

    fn repeat_unregistrations(&mut self, connection: &mut Connection) {
        for gone in self.unregistrations.take_due() {
            self.publish(connection, "unregister", &gone);
        }
    }

    /// One that cannot be sent must not keep others from being sent.
    fn publish(&self, connection: &mut Connection, act: &str, registration: &Registration) {
        if !self.audiences.contains(&registration.audience) {
            return;
        }
        let subject = format!("{}.{act}", name(registration.audience));
        let sent = match serde_json::to_vec(registration) {
            Ok(payload) => connection.publish(&subject, None, &payload).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = sent {
            tracing::warn!(subject, uris = ?registration.uris, error, "cannot tell of a route");
        }
    }

    fn greet(&self, connection: &mut Connection) {
        for audience in self.audiences.iter().filter(|audience| !self.pace.heard(**audience)) {
            let subject = format!("{}.greet", name(*audience));
            if let Err(error) = connection.publish(&subject, Some(&self.inbox_of(*audience)), b"") {
                tracing::warn!(subject, %error, "cannot greet");
            }
        }
    }

    fn inbox_of(&self, audience: Audience) -> String {
        format!("{}.{}", self.inbox, name(audience))
    }

    /// An answer to our greeting sets the pace. Who has just started knows nothing: everything is told soon, by each
    /// emitter at another moment.
    fn hear(&mut self, message: Option<Message>) {
        let Some(Message { subject, payload }) = message else { return };
        let about = |audience: &&Audience| {
            subject == format!("{}.start", name(**audience)) || subject == self.inbox_of(**audience)
        };
        let Some(audience) = self.audiences.iter().find(about).copied() else { return };
        let greeting: Greeting = match serde_json::from_slice(&payload) {
            Ok(greeting) => greeting,
            Err(error) => return tracing::warn!(subject, %error, "cannot read a greeting"),
        };
        self.pace.ask(audience, &greeting);
        let interval = self.pace.interval();
        tracing::info!(subject, interval_s = interval.as_secs_f64(), "heard a greeting");
        if subject == self.inbox_of(audience) {
            self.next_emission = self.next_emission.min(Instant::now() + interval);
        } else {
            let jitter = interval.mul_f64(self.jitter_factor * rand::rng().random::<f64>());
            self.begin_page(jitter.max(Duration::from_millis(1)));
        }
    }
}

fn name(audience: Audience) -> &'static str {
    match audience {
        Audience::Router => "router",
        Audience::ServiceDiscovery => "service-discovery",
    }
}

fn ticks(period: Duration) -> tokio::time::Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}
