//! How much a container may say: bytes and lines per second, a second's worth at once, and after an overrun a second
//! of silence that begins with one line saying why.

use std::time::Duration;

use tokio::time::Instant;

/// After an overrun nothing is passed on for so long.
const SILENCE: Duration = Duration::from_secs(1);

pub(crate) struct Limiter {
    bytes: Option<Bucket>,
    lines: Option<Bucket>,
    bytes_per_second: i64,
    silent_until: Option<Instant>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Pass,
    /// Dropped without a word: within a silence, or because nothing at all may be said.
    Drop,
    /// Dropped, and to be replaced by this line.
    Notice(String),
}

impl Limiter {
    /// `bytes_per_second`: -1 is unlimited, 0 forbids all; `lines_per_second`: 0 is unlimited.
    pub fn new(bytes_per_second: i64, lines_per_second: u32, now: Instant) -> Self {
        Limiter {
            bytes: u64::try_from(bytes_per_second).ok().map(|rate| Bucket::new(rate as f64, now)),
            lines: (lines_per_second > 0).then(|| Bucket::new(f64::from(lines_per_second), now)),
            bytes_per_second,
            silent_until: None,
        }
    }

    pub fn judge(&mut self, bytes: usize, now: Instant) -> Verdict {
        if self.bytes_per_second == 0 || self.silent_until.is_some_and(|until| now < until) {
            return Verdict::Drop;
        }
        if let Some(bucket) = &mut self.bytes
            && !bucket.take(bytes as f64, now)
        {
            self.silent_until = Some(now + SILENCE);
            return Verdict::Notice(format!(
                "app instance exceeded log rate limit ({} bytes/sec)",
                self.bytes_per_second
            ));
        }
        if let Some(bucket) = &mut self.lines
            && !bucket.take(1.0, now)
        {
            self.silent_until = Some(now + SILENCE);
            return Verdict::Notice(format!(
                "app instance exceeded log rate limit ({} log-lines/sec) set by platform operator",
                bucket.per_second
            ));
        }
        Verdict::Pass
    }
}

/// Refilled steadily, never fuller than one second's worth.
struct Bucket {
    per_second: f64,
    level: f64,
    at: Instant,
}

impl Bucket {
    fn new(per_second: f64, now: Instant) -> Self {
        Bucket { per_second, level: per_second, at: now }
    }

    fn take(&mut self, amount: f64, now: Instant) -> bool {
        let elapsed = now.saturating_duration_since(self.at).as_secs_f64();
        self.level = (self.level + elapsed * self.per_second).min(self.per_second);
        self.at = now;
        let enough = self.level >= amount;
        if enough {
            self.level -= amount;
        }
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_overrun_is_told_once_and_silences_for_a_second() {
        let start = Instant::now();
        let mut limiter = Limiter::new(10, 0, start);
        assert_eq!(limiter.judge(6, start), Verdict::Pass);
        let notice = "app instance exceeded log rate limit (10 bytes/sec)".to_string();
        assert_eq!(limiter.judge(6, start), Verdict::Notice(notice));
        assert_eq!(limiter.judge(1, start), Verdict::Drop);
        assert_eq!(limiter.judge(1, start + Duration::from_millis(999)), Verdict::Drop);
        assert_eq!(limiter.judge(10, start + Duration::from_secs(1)), Verdict::Pass);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_allowed_comes_back_steadily_and_no_more_than_a_second_of_it() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut limiter = Limiter::new(10, 0, start);
        assert_eq!(limiter.judge(10, start), Verdict::Pass, "a second's worth at once");
        assert_eq!(limiter.judge(5, at(500)), Verdict::Pass);
        assert!(matches!(limiter.judge(6, at(1000)), Verdict::Notice(_)), "there are 5");
        assert_eq!(limiter.judge(10, at(60_000)), Verdict::Pass);
        assert!(
            matches!(limiter.judge(1, at(60_000)), Verdict::Notice(_)),
            "a minute's silence is a second's"
        );
        assert!(matches!(limiter.judge(11, at(90_000)), Verdict::Notice(_)), "never so much at once");
    }

    #[tokio::test(start_paused = true)]
    async fn zero_forbids_and_minus_one_allows_all() {
        let now = Instant::now();
        assert_eq!(Limiter::new(0, 0, now).judge(1, now), Verdict::Drop);
        assert_eq!(Limiter::new(-1, 0, now).judge(1 << 40, now), Verdict::Pass);
    }

    #[tokio::test(start_paused = true)]
    async fn lines_are_counted_apart() {
        let now = Instant::now();
        let mut limiter = Limiter::new(-1, 2, now);
        assert_eq!(limiter.judge(1, now), Verdict::Pass);
        assert_eq!(limiter.judge(1, now), Verdict::Pass);
        let notice =
            "app instance exceeded log rate limit (2 log-lines/sec) set by platform operator".to_string();
        assert_eq!(limiter.judge(1, now), Verdict::Notice(notice));
    }
}
