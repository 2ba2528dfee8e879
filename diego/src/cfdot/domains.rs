//! Commands about domains and their freshness.

use std::time::Duration;

use bbs_client::BbsClient;
use clap::Subcommand;
use clap::builder::NonEmptyStringValueParser;

use super::{Failure, lines};

#[derive(Subcommand)]
pub enum Command {
    /// List fresh domains.
    Domains,
    /// Mark a domain as fresh for the ttl; 0 or none means keep fresh permanently.
    SetDomain {
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        domain: String,
        /// How long, as 90s, 1h30m or 500ms.
        #[arg(short, long, default_value = "0", value_parser = duration, allow_hyphen_values = true)]
        ttl: Duration,
    },
}

pub async fn run(bbs: &BbsClient, command: Command) -> Result<(), Failure> {
    match command {
        Command::Domains => lines(&bbs.domains().await?),
        Command::SetDomain { domain, ttl } => {
            let ttl = (!ttl.is_zero()).then_some(ttl);
            Ok(bbs.upsert_domain(&domain, ttl).await?)
        }
    }
}

const UNITS: [(&str, f64); 7] =
    [("ns", 1e-9), ("us", 1e-6), ("µs", 1e-6), ("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];

/// `1h30m`: numbers, each with its unit; `0` needs none.
fn duration(text: &str) -> Result<Duration, String> {
    if text.starts_with('-') {
        return Err("ttl is negative".into());
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
    fn a_ttl_is_numbers_with_units() {
        for (text, expected_ms) in
            [("0", 0), ("0s", 0), ("90s", 90_000), ("1h30m", 5_400_000), ("1.5s", 1_500), ("500ms", 500)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(expected_ms)), "{text}");
        }
        assert_eq!(duration("-1s"), Err("ttl is negative".into()));
        for text in ["", "5", "s", "1x", "1h5", "1..5s"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
