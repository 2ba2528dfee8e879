//! How often everything is told: as often as the one who asks for it most often asks, and not by all emitters at the
//! same moment. Pure.

use std::time::Duration;

use serde::Deserialize;

use crate::routes::message::Audience;

/// What a router says when it starts, and when it is greeted.
#[derive(Debug, Deserialize)]
pub struct Greeting {
    #[serde(rename = "minimumRegisterIntervalInSeconds", default)]
    pub minimum_register_interval_s: u64,
    #[serde(rename = "pruneThresholdInSeconds", default)]
    pub prune_threshold_s: u64,
}

#[derive(Debug)]
pub struct Pace {
    default: Duration,
    asked: Vec<(Audience, Duration)>,
}

impl Pace {
    pub fn new(default: Duration) -> Pace {
        Pace { default, asked: Vec::new() }
    }

    /// An audience that forgets sooner than it asks to be told is told twice before it forgets.
    pub fn ask(&mut self, audience: Audience, greeting: &Greeting) {
        if greeting.minimum_register_interval_s == 0 {
            return;
        }
        let mut interval = Duration::from_secs(greeting.minimum_register_interval_s);
        if greeting.prune_threshold_s > 0 {
            interval = interval.min(Duration::from_secs(greeting.prune_threshold_s) / 2);
        }
        self.asked.retain(|(known, _)| *known != audience);
        self.asked.push((audience, interval));
    }

    pub fn heard(&self, audience: Audience) -> bool {
        self.asked.iter().any(|(known, _)| *known == audience)
    }

    pub fn interval(&self) -> Duration {
        self.asked.iter().map(|(_, interval)| *interval).min().unwrap_or(self.default)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_for_it_most_often_is_obeyed() {
        let greeting = |minimum_register_interval_s, prune_threshold_s| Greeting {
            minimum_register_interval_s,
            prune_threshold_s,
        };
        let mut pace = Pace::new(Duration::from_secs(20));
        for (audience, asked, seconds) in [
            (Audience::Router, greeting(0, 0), 20),
            (Audience::Router, greeting(30, 120), 30),
            (Audience::ServiceDiscovery, greeting(40, 120), 30),
            (Audience::Router, greeting(60, 120), 40),
            (Audience::Router, greeting(60, 10), 5),
        ] {
            pace.ask(audience, &asked);
            assert_eq!(pace.interval(), Duration::from_secs(seconds), "{asked:?}");
        }
    }
}
