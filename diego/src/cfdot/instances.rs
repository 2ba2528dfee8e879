//! Commands about ActualLRPs.

use bbs_client::BbsClient;
use bbs_models::{ActualLrpFilter, ActualLrpKey};
use clap::Subcommand;

use super::usage::{index, process_guid};
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
        #[arg(value_parser = process_guid)]
        process_guid: String,
        /// Retrieve the actual lrp for the given index.
        #[arg(short, long, value_parser = index, allow_hyphen_values = true)]
        index: Option<u32>,
    },
    /// Retire actual LRP by index and process guid.
    RetireActualLrp {
        #[arg(value_parser = process_guid)]
        process_guid: String,
        #[arg(value_parser = index)]
        index: u32,
    },
}

pub async fn run(bbs: &BbsClient, command: Command) -> Result<(), Failure> {
    match command {
        Command::ActualLrps { domain, cell_id, process_guid, index } => {
            let filter = ActualLrpFilter { domain, cell_id, process_guid, index };
            lines(&bbs.raw().actual_lrps(filter).await?)
        }
        Command::ActualLrpGroups { domain, cell_id } => {
            lines(&bbs.raw().actual_lrp_groups(domain, cell_id).await?)
        }
        Command::ActualLrpGroupsForGuid { process_guid, index } => match index {
            None => lines(&bbs.raw().actual_lrp_groups_of(process_guid).await?),
            Some(index) => line(&bbs.raw().actual_lrp_group(&process_guid, index).await?),
        },
        Command::RetireActualLrp { process_guid, index } => {
            let desired = bbs.raw().desired_lrp(process_guid.clone()).await?.unwrap_or_default();
            let key = ActualLrpKey::new(&process_guid, index, &desired.domain);
            Ok(bbs.retire_actual_lrp(&key).await?)
        }
    }
}
