//! Whether and when a refused request is tried again. Pure: time and chance are handed in.

use std::time::Duration;

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

/// The seconds form of `Retry-After`. The date form is taken as absent: our own waits are short anyway.
pub fn retry_after(value: &str) -> Option<Duration> {
    value.trim().parse().ok().map(Duration::from_secs)
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
        assert_eq!(retry_after(" 12 "), Some(Duration::from_secs(12)));
        assert_eq!(retry_after("Wed, 21 Oct 2026 07:28:00 GMT"), None);
    }
}
