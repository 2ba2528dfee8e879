//! Commands about Tasks.

use bbs_client::BbsClient;
use bbs_models::{TaskDefinition, TaskFilter, wire};
use clap::Subcommand;
use clap::builder::NonEmptyStringValueParser;

use super::{Failure, line, lines, spec};

#[derive(Subcommand)]
pub enum Command {
    /// Create a Task from JSON, e.g. '{"task_guid":"some-guid"}', or from a file of it, e.g. @/path/to/spec.
    CreateTask {
        #[arg(value_name = "SPEC|@FILE")]
        spec: String,
    },
    /// Display task.
    Task {
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        task_guid: String,
    },
    /// List tasks in BBS.
    Tasks {
        /// Retrieve only tasks for the given domain.
        #[arg(short, long, default_value = "")]
        domain: String,
        /// Retrieve only tasks for the given cell-id.
        #[arg(short, long, default_value = "")]
        cell_id: String,
    },
    /// Cancel task.
    CancelTask {
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        task_guid: String,
    },
    /// Delete a Task that is completed.
    DeleteTask {
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        task_guid: String,
    },
}

pub async fn run(bbs: &BbsClient, command: Command) -> Result<(), Failure> {
    match command {
        Command::CreateTask { spec } => create(bbs, spec::read(&spec)?).await,
        Command::Task { task_guid } => line(&bbs.task_by_guid(&task_guid).await?),
        Command::Tasks { domain, cell_id } => lines(&bbs.tasks(&TaskFilter { domain, cell_id }).await?),
        Command::CancelTask { task_guid } => Ok(bbs.cancel_task(&task_guid).await?),
        Command::DeleteTask { task_guid } => {
            bbs.resolving_task(&task_guid).await?;
            Ok(bbs.delete_task(&task_guid).await?)
        }
    }
}

/// Of the Task's JSON only what is desired counts: its state is the BBS's.
async fn create(bbs: &BbsClient, task: wire::Task) -> Result<(), Failure> {
    let definition: TaskDefinition = spec::parse(task.task_definition.unwrap_or_default())?;
    Ok(bbs.desire_task(&task.task_guid, &task.domain, &definition).await?)
}
