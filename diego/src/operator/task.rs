//! `diego task IMAGE -- CMD`: runs a command once and waits for its end.

use std::time::Duration;

use anyhow::Context;
use bbs_models::{Task, TaskCompletion, TaskDefinition, TaskOutcome, TaskState};
use clap::Args;
use uuid::Uuid;

use super::Global;
use super::target::Target;
use super::wait::{self, Look};
use super::{Failure, image, logs, output, recipe};

#[derive(Args)]
pub struct Flags {
    /// An image, as for `run`.
    image: String,
    /// The command and its arguments; otherwise what the image says.
    #[arg(last = true)]
    command: Vec<String>,
    /// Print this file of the container when the command has succeeded.
    #[arg(long)]
    result_file: Option<String>,
    #[arg(long, short = 'm', default_value_t = 256)]
    memory: u32,
    #[arg(long, short = 'k', default_value_t = 1024)]
    disk: u32,
    /// Seconds to wait for the end.
    #[arg(long, default_value_t = 900)]
    wait: u64,
    /// `USER:PASSWORD` for the image's registry; needed now and never kept.
    #[arg(long, env = "DIEGO_REGISTRY_CREDENTIALS", hide_env_values = true)]
    credentials: Option<String>,
}

pub async fn run(global: &Global, flags: Flags) -> Result<(), Failure> {
    let target = Target::reach(global).await?;
    let guid = format!("task-{}", Uuid::new_v4().simple());
    let credentials = flags.credentials.as_deref();
    let pinned =
        image::pin(&target, &flags.image, credentials, !flags.command.is_empty(), global.json).await?;
    let mut definition = recipe::image_task(&pinned.image, &pinned.config, &flags.command, &guid);
    definition.memory_mb = flags.memory;
    definition.disk_mb = flags.disk;
    definition.result_file = flags.result_file.clone().unwrap_or_default();
    let limit = Duration::from_secs(flags.wait);
    let outcome = run_to_end(&target, &guid, &definition, limit, global.json).await?;
    if global.json {
        let (failed, text) = match &outcome {
            TaskOutcome::Succeeded { result } => (false, result),
            TaskOutcome::Failed { reason } => (true, reason),
        };
        output::line(&serde_json::json!({ "task_guid": guid, "failed": failed, "result": text }))?;
    }
    match outcome {
        TaskOutcome::Succeeded { result } => {
            if !global.json && !result.is_empty() {
                output::print(result.trim_end_matches('\n'))?;
            }
            Ok(())
        }
        TaskOutcome::Failed { reason } => Err(Failure::Unsuccessful(format!("the task failed: {reason}"))),
    }
}

/// Desires a Task, shows what it prints, and takes its outcome away from the BBS when it is complete.
pub async fn run_to_end(
    target: &Target,
    guid: &str,
    definition: &TaskDefinition,
    limit: Duration,
    quiet: bool,
) -> Result<TaskOutcome, Failure> {
    let events = target.bbs.subscribe_to_task_events().await.context("cannot follow the task")?;
    let desired = target.bbs.desire_task(guid, recipe::DOMAIN, definition).await;
    desired.with_context(|| format!("cannot run task {guid}"))?;
    let shown = (!quiet).then(|| logs::follow_in_background(target, &definition.log_guid, guid));
    let mut rejections = 0;
    let completed = wait::until(events, limit, async || {
        let task = target.bbs.task_by_guid(guid).await.context("cannot look up the task")?;
        if task.rejection_count > rejections {
            rejections = task.rejection_count;
            eprintln!("no cell takes the task yet: {}; it is offered again", task.rejection_reason);
        }
        Ok(completion(task).map_or(Look::Again, Look::Done))
    });
    let completed = completed.await?;
    if let Some(shown) = shown {
        shown.finish().await;
    }
    let Some(completed) = completed else {
        let _ = target.bbs.cancel_task(guid).await;
        return Err(Failure::Unsuccessful(format!("the task did not end within {} s", limit.as_secs())));
    };
    target.bbs.resolving_task(guid).await.context("cannot resolve the task")?;
    target.bbs.delete_task(guid).await.context("cannot delete the task")?;
    Ok(completed.outcome)
}

fn completion(task: Task) -> Option<TaskCompletion> {
    match task.state {
        TaskState::Completed(completion) | TaskState::Resolving(completion) => Some(completion),
        TaskState::Pending | TaskState::Running { .. } => None,
    }
}
