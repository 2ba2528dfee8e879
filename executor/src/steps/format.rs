//! Sizes and times as platform users are used to read them.

use std::time::Duration;

/// `10s`, `1m0s`, `2h3m4.5s`, `250ms`, `0s`.
pub(crate) fn go_duration(duration: Duration) -> String {
    let ns = duration.as_nanos();
    match ns {
        0 => "0s".to_string(),
        1..1_000 => format!("{ns}ns"),
        1_000..1_000_000 => format!("{}µs", decimal(ns, 1_000)),
        1_000_000..1_000_000_000 => format!("{}ms", decimal(ns, 1_000_000)),
        _ => {
            let (minutes, rest) = (ns / 60_000_000_000, ns % 60_000_000_000);
            let seconds = format!("{}s", decimal(rest, 1_000_000_000));
            match (minutes / 60, minutes % 60) {
                (0, 0) => seconds,
                (0, minutes) => format!("{minutes}m{seconds}"),
                (hours, minutes) => format!("{hours}h{minutes}m{seconds}"),
            }
        }
    }
}

fn decimal(amount: u128, unit: u128) -> String {
    let digits = unit.ilog10() as usize;
    let text = format!("{}.{:0digits$}", amount / unit, amount % unit);
    text.trim_end_matches('0').trim_end_matches('.').to_string()
}

/// `512B`, `1K`, `1.2M`: powers of 1024, one decimal when it is not 0.
pub(crate) fn byte_size(bytes: u64) -> String {
    let units = [("E", 60), ("P", 50), ("T", 40), ("G", 30), ("M", 20), ("K", 10)];
    for (unit, shift) in units {
        if bytes >= 1 << shift {
            let text = format!("{:.1}", bytes as f64 / (1_u64 << shift) as f64);
            return format!("{}{unit}", text.strip_suffix(".0").unwrap_or(&text));
        }
    }
    format!("{bytes}B")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_ever() {
        let table = [
            (0, "0s"),
            (1_500, "1.5µs"),
            (250_000_000, "250ms"),
            (10_000_000_000, "10s"),
            (1_234_000_000, "1.234s"),
            (60_000_000_000, "1m0s"),
            (3_661_500_000_000, "1h1m1.5s"),
            (7_200_000_000_000, "2h0m0s"),
        ];
        for (ns, text) in table {
            assert_eq!(go_duration(Duration::from_nanos(ns)), text);
        }
    }

    #[test]
    fn sizes_read_as_ever() {
        let table = [
            (0, "0B"),
            (512, "512B"),
            (1024, "1K"),
            (1536, "1.5K"),
            (1 << 20, "1M"),
            (5_600_000_000, "5.2G"),
        ];
        for (bytes, text) in table {
            assert_eq!(byte_size(bytes), text);
        }
    }
}
