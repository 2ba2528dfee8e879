//! Commands about domains and their freshness.

use std::time::Duration;

use bbs_client::BbsClient;
use clap::Subcommand;

use super::{Failure, lines};

#[derive(Subcommand)]
pub enum Command {
    /// List fresh domains.
    Domains,
    /// Mark a domain as fresh for the ttl; 0 or none means keep fresh permanently.
    SetDomain {
        #[arg(value_parser = domain)]
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

fn domain(name: &str) -> Result<String, &'static str> {
    if name.is_empty() { Err("No domain given") } else { Ok(name.to_owned()) }
}

fn duration(text: &str) -> Result<Duration, String> {
    let told = crate::duration::parse(text.strip_prefix('-').unwrap_or(text));
    match told {
        Err(_) => Err(format!("time: invalid duration {text:?}")),
        Ok(ttl) if text.starts_with('-') && !ttl.is_zero() => Err("ttl is negative".into()),
        Ok(ttl) => Ok(ttl),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ttl_is_not_negative() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("-1s"), Err("ttl is negative".into()));
        assert_eq!(duration("-0s"), Ok(Duration::ZERO));
        assert_eq!(duration("soon"), Err("time: invalid duration \"soon\"".into()));
    }
}
