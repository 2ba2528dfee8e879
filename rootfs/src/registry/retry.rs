//! Whether and when a refused request is tried again, and when an answer is given up. Pure: time and chance are handed
//! in.

use std::time::{Duration, SystemTime};

/// How patient a client is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    /// Requests in all, the first included.
    pub tries_max: u32,
    /// From the first request; a wait that would end later is not begun.
    pub total_max: Duration,
    /// The wait after the first refusal; it doubles with each.
    pub first_wait: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Retry { tries_max: 4, total_max: Duration::from_secs(20), first_wait: Duration::from_millis(500) }
    }
}

impl Retry {
    /// How long to wait after `tries` refusals, `elapsed` after the first request began; `None`: give up. `chance` is
    /// in 0..1 and spreads the clients of a registry that comes back. `asked` is what the registry wants us to wait.
    pub fn wait(
        &self,
        tries: u32,
        elapsed: Duration,
        asked: Option<Duration>,
        chance: f64,
    ) -> Option<Duration> {
        if tries >= self.tries_max {
            return None;
        }
        let doubled = self.first_wait.saturating_mul(1 << tries.saturating_sub(1).min(10));
        let spread = doubled.mul_f64(0.5 + chance.clamp(0.0, 1.0));
        let wait = asked.map_or(spread, |asked| asked.max(spread));
        (elapsed.saturating_add(wait) <= self.total_max).then_some(wait)
    }
}

/// What `Retry-After` says, in seconds or as a date.
pub fn retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    match value.parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => httpdate::parse_http_date(value).ok().map(|at| at.duration_since(now).unwrap_or_default()),
    }
}

/// Less than this in one stretch of waiting is next to nothing.
const PACE_BYTES_MIN: usize = 4096;

/// Whether an answer comes at all: a registry may send a byte now and then for ever.
#[derive(Debug)]
pub struct Pace {
    stretch: Duration,
    waited: Duration,
    bytes: usize,
}

impl Pace {
    pub fn new(stretch: Duration) -> Pace {
        Pace { stretch, waited: Duration::ZERO, bytes: 0 }
    }

    /// `bytes` came after `waited`. Only waiting counts, not what we do with what came.
    pub fn is_too_slow(&mut self, waited: Duration, bytes: usize) -> bool {
        self.waited += waited;
        self.bytes += bytes;
        if self.bytes >= PACE_BYTES_MIN {
            (self.waited, self.bytes) = (Duration::ZERO, 0);
        }
        self.waited > self.stretch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait(tries: u32, elapsed_ms: u64, asked_s: Option<u64>, chance: f64) -> Option<u128> {
        Retry::default()
            .wait(tries, Duration::from_millis(elapsed_ms), asked_s.map(Duration::from_secs), chance)
            .map(|wait| wait.as_millis())
    }

    #[test]
    fn waits_double_spread_and_end() {
        assert_eq!(wait(1, 0, None, 0.5), Some(500));
        assert_eq!(wait(2, 0, None, 0.5), Some(1000));
        assert_eq!(wait(3, 0, None, 0.0), Some(1000));
        assert_eq!(wait(3, 0, None, 1.0), Some(3000));
        assert_eq!(wait(4, 0, None, 0.5), None);
    }

    #[test]
    fn a_registry_is_waited_for_as_long_as_it_asks_but_not_for_ever() {
        assert_eq!(wait(1, 0, Some(7), 0.5), Some(7000));
        assert_eq!(wait(1, 0, Some(0), 0.5), Some(500));
        assert_eq!(wait(1, 0, Some(21), 0.5), None);
        assert_eq!(wait(2, 15_000, Some(7), 0.5), None);
    }

    #[test]
    fn a_registry_may_ask_in_seconds_or_by_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_770);
        for (text, seconds) in [
            (" 12 ", Some(12)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(7)),
            ("Sun, 06 Nov 1994 08:49:00 GMT", Some(0)),
            ("soon", None),
            ("-1", None),
        ] {
            assert_eq!(retry_after(text, now), seconds.map(Duration::from_secs), "{text}");
        }
    }

    #[test]
    fn a_trickle_is_given_up_and_a_slow_line_is_not() {
        let mut trickle = Pace::new(Duration::from_secs(30));
        let second = Duration::from_secs(1);
        assert!(!(0..30).any(|_| trickle.is_too_slow(second, 1)));
        assert!(trickle.is_too_slow(second, 1));
        let mut slow = Pace::new(Duration::from_secs(30));
        assert!(!(0..1000).any(|_| slow.is_too_slow(second, 1024)));
    }
}
