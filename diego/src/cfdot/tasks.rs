//! Commands about Tasks.

use bbs_client::BbsClient;
use bbs_models::{TaskFilter, wire};
use clap::Subcommand;

use super::usage::{process_guid, task_guid};
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
        #[arg(value_parser = task_guid)]
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
        #[arg(value_parser = task_guid)]
        task_guid: String,
    },
    /// Delete a Task that is completed.
    DeleteTask {
        // In the words of a process guid, as ever.
        #[arg(value_parser = process_guid)]
        task_guid: String,
    },
}

pub async fn run(bbs: &BbsClient, command: Command) -> Result<(), Failure> {
    match command {
        Command::CreateTask { spec } => {
            let mut task = spec::read::<Option<wire::Task>>(&spec)?.unwrap_or_default();
            // In JSON a definition that says nothing is none.
            task.task_definition =
                task.task_definition.filter(|told| *told != wire::TaskDefinition::default());
            Ok(bbs.raw().desire_task(task).await?)
        }
        Command::Task { task_guid } => line(&bbs.raw().task(task_guid).await?),
        Command::Tasks { domain, cell_id } => lines(&bbs.raw().tasks(TaskFilter { domain, cell_id }).await?),
        Command::CancelTask { task_guid } => Ok(bbs.cancel_task(&task_guid).await?),
        Command::DeleteTask { task_guid } => {
            bbs.resolving_task(&task_guid).await?;
            Ok(bbs.delete_task(&task_guid).await?)
        }
    }
}
