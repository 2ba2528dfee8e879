//! How long each step took, for the log line of what they led to: where a slow machine is slow.

use std::fmt;
use std::time::{Duration, Instant};

pub struct Pace {
    started: Instant,
    last: Instant,
    steps: Vec<(&'static str, Duration)>,
}

impl Pace {
    pub fn start() -> Self {
        let now = Instant::now();
        Self { started: now, last: now, steps: Vec::new() }
    }

    /// The step that began when the one before was done.
    pub fn done(&mut self, step: &'static str) {
        let now = Instant::now();
        self.steps.push((step, now - self.last));
        self.last = now;
    }

    pub fn total_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl fmt::Display for Pace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (step, took)) in self.steps.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{step} {:.1}", took.as_secs_f64() * 1e3)?;
        }
        Ok(())
    }
}
