//! Lengths of time as established tools write them: `90s`, `1h30m`, `1.5s`.

use std::time::Duration;

const UNITS: [(&str, f64); 7] =
    [("ns", 1e-9), ("us", 1e-6), ("µs", 1e-6), ("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];

/// Numbers, each with its unit; `0` needs none. Never negative.
pub fn parse(text: &str) -> Result<Duration, String> {
    if text.starts_with('-') {
        return Err("it is negative".into());
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    let mut seconds = 0.0;
    loop {
        let (part, after) = part(rest).ok_or("it must be like 90s or 1h30m")?;
        seconds += part;
        rest = after;
        if rest.is_empty() {
            return Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string());
        }
    }
}

/// The first number and its unit, in seconds, and what follows them.
fn part(text: &str) -> Option<(f64, &str)> {
    let is_number = |character: char| character.is_ascii_digit() || character == '.';
    let (number, rest) = text.split_at(text.find(|character| !is_number(character))?);
    let (unit, after) = rest.split_at(rest.find(is_number).unwrap_or(rest.len()));
    let (_, seconds) = UNITS.iter().find(|(name, _)| *name == unit)?;
    Some((number.parse::<f64>().ok()? * seconds, after))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_numbers_with_units() {
        for (text, expected_ms) in
            [("0", 0), ("0s", 0), ("90s", 90_000), ("1h30m", 5_400_000), ("1.5s", 1_500), ("500ms", 500)]
        {
            assert_eq!(parse(text), Ok(Duration::from_millis(expected_ms)), "{text}");
        }
        assert_eq!(parse("-1s"), Err("it is negative".into()));
        for text in ["", "5", "s", "1x", "1h5", "1..5s"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
