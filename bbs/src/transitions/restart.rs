//! When a crashed instance is started again: at once, later, or never.

use std::time::Duration;

/// So many crashes are answered by a restart at once.
pub const IMMEDIATE_RESTARTS: u32 = 3;
/// From so many crashes on it stays crashed until somebody changes the LRP.
pub const RESTARTS_MAX: u32 = 200;
pub const BACKOFF_MIN: Duration = Duration::from_secs(30);
pub const BACKOFF_MAX: Duration = Duration::from_secs(16 * 60);
/// An instance that ran so long before it crashed starts counting anew.
pub const CRASH_RESET_AFTER: Duration = Duration::from_secs(5 * 60);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restart {
    Now,
    /// This long after the crash.
    After(Duration),
    Never,
}

/// What the `crash_count`-th crash in a row leads to.
pub fn restart(crash_count: u32) -> Restart {
    if crash_count < IMMEDIATE_RESTARTS {
        return Restart::Now;
    }
    if crash_count >= RESTARTS_MAX {
        return Restart::Never;
    }
    // 30 s doubled five times is the longest wait: more doublings need not be computed.
    let doublings = (crash_count - IMMEDIATE_RESTARTS).min(5);
    Restart::After((BACKOFF_MIN * (1 << doublings)).min(BACKOFF_MAX))
}

pub fn is_due(crash_count: u32, crashed_at_ns: i64, now_ns: i64) -> bool {
    match restart(crash_count) {
        Restart::Now => true,
        // A crash in the future was written before the clock was put back.
        Restart::After(wait) => i128::from(now_ns.abs_diff(crashed_at_ns)) >= i128::from(nanoseconds(wait)),
        Restart::Never => false,
    }
}

/// The crash count after one more crash of an instance that entered its state at `since_ns`.
pub fn count_crash(crash_count: u32, was_running: bool, since_ns: i64, now_ns: i64) -> u32 {
    let ran_long = now_ns.saturating_sub(since_ns) > nanoseconds(CRASH_RESET_AFTER);
    if was_running && ran_long { 1 } else { crash_count.saturating_add(1) }
}

pub fn nanoseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_at_once_then_thirty_seconds_doubling_to_sixteen_minutes_then_never() {
        let after = |seconds| Restart::After(Duration::from_secs(seconds));
        for (crash_count, expected) in [
            (0, Restart::Now),
            (1, Restart::Now),
            (2, Restart::Now),
            (3, after(30)),
            (4, after(60)),
            (5, after(120)),
            (6, after(240)),
            (7, after(480)),
            (8, after(960)),
            (9, after(960)),
            (199, after(960)),
            (200, Restart::Never),
            (u32::MAX, Restart::Never),
        ] {
            assert_eq!(restart(crash_count), expected, "after {crash_count} crashes");
        }
    }

    #[test]
    fn a_restart_is_due_when_its_wait_is_over() {
        let second = 1_000_000_000;
        assert!(!is_due(3, 0, 30 * second - 1));
        assert!(is_due(3, 0, 30 * second));
        assert!(!is_due(200, 0, i64::MAX));
    }

    #[test]
    fn five_minutes_of_running_forgive_the_crashes_before() {
        let minute = 60_000_000_000;
        assert_eq!(count_crash(7, true, 0, 5 * minute), 8);
        assert_eq!(count_crash(7, true, 0, 5 * minute + 1), 1);
        assert_eq!(count_crash(7, false, 0, 50 * minute), 8, "a claim is not running");
    }
}
