//! Commands about Locket's locks and presences.

use std::time::Duration;

use bbs_client::{LocketClient, LocketError};
use bbs_models::{LockKind, Resource, wire};
use clap::{Args, Subcommand};
use serde::Serialize;
use tokio::time::{Instant, sleep};

use super::{Failure, lines};

/// A Locket that cannot be reached is waited for.
const PATIENCE: Duration = Duration::from_secs(10);
const RETRY_PAUSE: Duration = Duration::from_millis(250);

#[derive(Subcommand)]
pub enum Command {
    /// List locks from Locket.
    Locks,
    /// List presences registered in Locket.
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
    #[arg(short, long, default_value = "", hide_default_value = true)]
    key: String,
    /// The lock owner.
    #[arg(short, long, default_value = "", hide_default_value = true)]
    owner: String,
}

#[derive(Args)]
pub struct Claim {
    #[command(flatten)]
    held: Held,
    /// The value associated with the key.
    #[arg(short, long, default_value = "", hide_default_value = true)]
    value: String,
    /// The TTL in seconds.
    #[arg(short, long, default_value = "0", hide_default_value = true, allow_hyphen_values = true)]
    ttl: i64,
}

impl Claim {
    async fn make(self, locket: &LocketClient, kind: LockKind) -> Result<(), Failure> {
        let resource = Resource { value: self.value, ..self.held.resource(kind)? };
        let ttl = u64::try_from(self.ttl).ok().filter(|ttl| *ttl > 0).map(Duration::from_secs);
        let ttl = ttl.ok_or_else(|| usage("ttl should be an integer greater than zero"))?;
        patiently(|| locket.lock(&resource, ttl)).await
    }
}

impl Held {
    fn resource(self, kind: LockKind) -> Result<Resource, Failure> {
        if self.key.is_empty() {
            return Err(usage("key cannot be empty"));
        }
        if self.owner.is_empty() {
            return Err(usage("owner cannot be empty"));
        }
        Ok(Resource { key: self.key, owner: self.owner, value: String::new(), kind })
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
        Command::ReleaseLock { held } => {
            let resource = held.resource(LockKind::Lock)?;
            patiently(|| locket.release(&resource)).await
        }
    }
}

async fn list(locket: &LocketClient, kind: LockKind) -> Result<(), Failure> {
    let found = patiently(|| locket.fetch_all(kind)).await?;
    let mut shown: Vec<Shown> = found.into_iter().map(Shown::from).collect();
    shown.sort_by(|a, b| a.key.cmp(&b.key));
    lines(&shown)
}

fn usage(why: &str) -> Failure {
    Failure::Usage(why.into())
}

/// Each call may be made again: the same owner asks for the same.
async fn patiently<T, F>(call: impl Fn() -> F) -> Result<T, Failure>
where
    F: Future<Output = Result<T, LocketError>>,
{
    let begun = Instant::now();
    loop {
        match call().await {
            Err(LocketError::Unreachable { .. }) if begun.elapsed() < PATIENCE => sleep(RETRY_PAUSE).await,
            answer => return Ok(answer?),
        }
    }
}
