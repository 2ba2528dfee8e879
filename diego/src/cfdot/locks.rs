//! Commands about Locket's locks and presences.

use std::time::Duration;

use bbs_client::LocketClient;
use bbs_models::{LockKind, Resource, wire};
use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Subcommand};
use serde::Serialize;

use super::{Failure, lines};

#[derive(Subcommand)]
pub enum Command {
    /// List Locket locks.
    Locks,
    /// List Locket presences.
    Presences,
    /// Claim Locket lock.
    ClaimLock(Claim),
    /// Claim Locket presence.
    ClaimPresence(Claim),
    /// Release Locket lock.
    ReleaseLock {
        #[command(flatten)]
        held: Held,
    },
}

#[derive(Args)]
pub struct Held {
    /// The key of the lock.
    #[arg(short, long, value_parser = NonEmptyStringValueParser::new())]
    key: String,
    /// The lock owner.
    #[arg(short, long, value_parser = NonEmptyStringValueParser::new())]
    owner: String,
}

#[derive(Args)]
pub struct Claim {
    #[command(flatten)]
    held: Held,
    /// The value associated with the key.
    #[arg(short, long, default_value = "")]
    value: String,
    /// The TTL in seconds.
    #[arg(short, long, value_parser = clap::value_parser!(u64).range(1..))]
    ttl: u64,
}

impl Claim {
    async fn make(self, locket: &LocketClient, kind: LockKind) -> Result<(), Failure> {
        let resource = Resource { value: self.value, ..self.held.resource(kind) };
        Ok(locket.lock(&resource, Duration::from_secs(self.ttl)).await?)
    }
}

impl Held {
    fn resource(self, kind: LockKind) -> Resource {
        Resource { key: self.key, owner: self.owner, value: String::new(), kind }
    }
}

/// A resource in JSON.
#[derive(Serialize)]
struct Shown {
    key: String,
    owner: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    value: String,
    #[serde(rename = "type")]
    kind: &'static str,
    type_code: i32,
}

impl From<Resource> for Shown {
    fn from(resource: Resource) -> Shown {
        Shown {
            key: resource.key,
            owner: resource.owner,
            value: resource.value,
            kind: resource.kind.name(),
            type_code: wire::type_code(resource.kind),
        }
    }
}

pub async fn run(locket: &LocketClient, command: Command) -> Result<(), Failure> {
    match command {
        Command::Locks => list(locket, LockKind::Lock).await,
        Command::Presences => list(locket, LockKind::Presence).await,
        Command::ClaimLock(claim) => claim.make(locket, LockKind::Lock).await,
        Command::ClaimPresence(claim) => claim.make(locket, LockKind::Presence).await,
        Command::ReleaseLock { held } => Ok(locket.release(&held.resource(LockKind::Lock)).await?),
    }
}

async fn list(locket: &LocketClient, kind: LockKind) -> Result<(), Failure> {
    let mut shown: Vec<Shown> = locket.fetch_all(kind).await?.into_iter().map(Shown::from).collect();
    shown.sort_by(|a, b| a.key.cmp(&b.key));
    lines(&shown)
}
