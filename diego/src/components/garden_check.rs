//! Flags of a rep: the container that it makes now and then to see whether garden can.

use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use executor::GardenCheck;
use rep::Stacks;
use rep::health::Check;

use crate::duration::parse;

#[derive(Args)]
#[command(next_help_heading = "Check of garden")]
pub struct CheckFlags {
    /// Run in a container made for this; without it, garden is only asked whether it answers.
    #[arg(long)]
    garden_healthcheck_process_path: Option<String>,
    /// May be given many times.
    #[arg(long = "garden-healthcheck-process-arg", value_name = "WORD", allow_hyphen_values = true)]
    garden_healthcheck_process_args: Vec<String>,
    #[arg(long, default_value = "root")]
    garden_healthcheck_process_user: String,
    /// As NAME=VALUE. May be given many times.
    #[arg(long = "garden-healthcheck-process-env", value_name = "NAME=VALUE")]
    garden_healthcheck_process_env: Vec<String>,
    #[arg(long, default_value = "")]
    garden_healthcheck_process_dir: String,
    /// Of the container, where garden runs; otherwise the first stack.
    #[arg(long)]
    garden_healthcheck_rootfs: Option<String>,
    /// Without --garden-healthcheck-rootfs: the stack of this name.
    #[arg(long)]
    garden_healthcheck_stack: Option<String>,
    #[arg(long, default_value = "10m", value_parser = parse)]
    garden_healthcheck_interval: Duration,
    #[arg(long, default_value = "10m", value_parser = parse)]
    garden_healthcheck_timeout: Duration,
    /// Between two attempts at the same.
    #[arg(long, default_value = "1s", value_parser = parse)]
    garden_healthcheck_command_retry_pause: Duration,
    /// By this name its containers are known; not --container-owner-name.
    #[arg(long, default_value = "executor-health-check")]
    healthcheck_container_owner_name: String,
}

impl CheckFlags {
    pub fn is_told(&self) -> bool {
        self.garden_healthcheck_process_path.as_ref().is_some_and(|path| !path.is_empty())
    }

    /// `first`: the path of the first stack, if the cell has any.
    pub fn check(&self, stacks: &Stacks, first: Option<&str>) -> Result<Option<Check>> {
        let rootfs = match (&self.garden_healthcheck_rootfs, &self.garden_healthcheck_stack) {
            (Some(path), _) => path,
            (None, Some(name)) => stacks.0.get(name).with_context(|| {
                format!("failed-to-find-matching-sidecar-rootfs: no stack of this cell is named {name}")
            })?,
            (None, None) => first.unwrap_or_default(),
        };
        let path = self.garden_healthcheck_process_path.clone().filter(|path| !path.is_empty());
        Ok(path.map(|path| self.of(path, rootfs)))
    }

    fn of(&self, path: String, rootfs: &str) -> Check {
        let garden = GardenCheck {
            rootfs: rootfs.to_owned(),
            owner_name: self.healthcheck_container_owner_name.clone(),
            path,
            args: self.garden_healthcheck_process_args.clone(),
            user: self.garden_healthcheck_process_user.clone(),
            env: self.garden_healthcheck_process_env.clone(),
            dir: self.garden_healthcheck_process_dir.clone(),
            retry_pause: self.garden_healthcheck_command_retry_pause,
        };
        let (interval, timeout) = (self.garden_healthcheck_interval, self.garden_healthcheck_timeout);
        Check { garden, interval, timeout }
    }
}
