//! `diego scale`, `stop` and `delete`: changes to how much of an app is desired.

use std::time::Duration;

use anyhow::Context;
use bbs_models::DesiredLrpUpdate;
use clap::Args;

use super::Global;
use super::target::Target;
use super::wait::{self, Look};
use super::{Failure, output};

/// A stop takes as long as an instance's grace time, and a little.
const STOP_TIME: Duration = Duration::from_secs(60);

#[derive(Args)]
pub struct Flags {
    name: String,
    instances: u32,
    /// Seconds to wait until it is so; 0 does not wait.
    #[arg(long, default_value_t = 120)]
    wait: u64,
}

#[derive(Args)]
pub struct Name {
    name: String,
}

pub async fn scale(global: &Global, flags: Flags) -> Result<(), Failure> {
    let target = Target::reach(global).await?;
    target.app(&flags.name).await?;
    desire_instances(&target, &flags.name, flags.instances).await?;
    if flags.wait > 0 {
        let limit = Duration::from_secs(flags.wait);
        wait::until_running(&target, &flags.name, flags.instances, limit, |_| {}).await?;
        until_at_most(&target, &flags.name, flags.instances, limit).await?;
    }
    say(global, &flags.name, &format!("{} instances", flags.instances))
}

pub async fn stop(global: &Global, Name { name }: Name) -> Result<(), Failure> {
    let target = Target::reach(global).await?;
    target.app(&name).await?;
    desire_instances(&target, &name, 0).await?;
    until_at_most(&target, &name, 0, STOP_TIME).await?;
    say(global, &name, "stopped")
}

pub async fn delete(global: &Global, Name { name }: Name) -> Result<(), Failure> {
    let target = Target::reach(global).await?;
    target.app(&name).await?;
    target.bbs.remove_desired_lrp(&name).await.with_context(|| format!("cannot delete {name}"))?;
    until_at_most(&target, &name, 0, STOP_TIME).await?;
    say(global, &name, "deleted")
}

async fn desire_instances(target: &Target, name: &str, instances: u32) -> Result<(), Failure> {
    let update = DesiredLrpUpdate { instances: Some(instances), ..Default::default() };
    target.bbs.update_desired_lrp(name, &update).await.with_context(|| format!("cannot scale {name}"))?;
    Ok(())
}

async fn until_at_most(target: &Target, name: &str, instances: u32, limit: Duration) -> Result<(), Failure> {
    let events = target.bbs.subscribe_to_instance_events().await.context("cannot follow the instances")?;
    let outcome = wait::until(events, limit, async || {
        let left = target.instances(name).await?.len();
        Ok(if left <= instances as usize { Look::Done(()) } else { Look::Again })
    });
    outcome.await?.ok_or_else(|| {
        Failure::Unsuccessful(format!("instances of {name} are still stopping; see: diego ps {name}"))
    })
}

fn say(global: &Global, name: &str, what: &str) -> Result<(), Failure> {
    if global.json {
        output::line(&serde_json::json!({ "name": name, "result": what }))?;
    } else {
        output::print(&format!("{name}: {what}"))?;
    }
    Ok(())
}
