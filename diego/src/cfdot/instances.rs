//! Commands about ActualLRPs.

use bbs_client::BbsClient;
use bbs_models::{ActualLrpFilter, ActualLrpKey};
use clap::Subcommand;
use clap::builder::NonEmptyStringValueParser;

use super::{Failure, line, lines};

#[derive(Subcommand)]
pub enum Command {
    /// List actual LRPs.
    ActualLrps {
        /// Retrieve only actual lrps for the given domain.
        #[arg(short, long, default_value = "")]
        domain: String,
        /// Retrieve only actual lrps for the given cell id.
        #[arg(short, long, default_value = "")]
        cell_id: String,
        /// Retrieve only actual lrps for the given process guid.
        #[arg(short, long, default_value = "")]
        process_guid: String,
        /// Retrieve only actual lrps for the given index.
        #[arg(short, long)]
        index: Option<u32>,
    },
    /// Deprecated, use actual-lrps: list actual LRP groups.
    ActualLrpGroups {
        /// Retrieve only actual lrps for the given domain.
        #[arg(short, long, default_value = "")]
        domain: String,
        /// Retrieve only actual lrps for the given cell id.
        #[arg(short, long, default_value = "")]
        cell_id: String,
    },
    /// Deprecated, use actual-lrps --process-guid: list actual LRP groups of a process guid.
    ActualLrpGroupsForGuid {
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        process_guid: String,
        /// Retrieve the actual lrp for the given index.
        #[arg(short, long)]
        index: Option<u32>,
    },
    /// Retire actual LRP by index and process guid.
    RetireActualLrp {
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        process_guid: String,
        index: u32,
    },
}

pub async fn run(bbs: &BbsClient, command: Command) -> Result<(), Failure> {
    match command {
        Command::ActualLrps { domain, cell_id, process_guid, index } => {
            lines(&bbs.actual_lrps(&ActualLrpFilter { domain, cell_id, process_guid, index }).await?)
        }
        Command::ActualLrpGroups { domain, cell_id } => {
            lines(&bbs.actual_lrp_groups(&domain, &cell_id).await?)
        }
        Command::ActualLrpGroupsForGuid { process_guid, index: None } => {
            lines(&bbs.actual_lrp_groups_of(&process_guid).await?)
        }
        Command::ActualLrpGroupsForGuid { process_guid, index: Some(index) } => {
            line(&bbs.actual_lrp_group(&process_guid, index).await?)
        }
        Command::RetireActualLrp { process_guid, index } => {
            let desired = bbs.desired_lrp_by_process_guid(&process_guid).await?;
            let key = ActualLrpKey::new(&process_guid, index, &desired.domain);
            Ok(bbs.retire_actual_lrp(&key).await?)
        }
    }
}
