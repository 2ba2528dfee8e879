//! Commands about DesiredLRPs.

use bbs_client::BbsClient;
use bbs_models::DesiredLrpFilter;
use clap::Subcommand;

use super::usage::process_guid;
use super::{Failure, line, lines, spec};

#[derive(Subcommand)]
pub enum Command {
    /// Create a desired LRP from JSON, e.g. '{"process_guid":"some-guid"}', or from a file of it, e.g. @/path/to/spec.
    CreateDesiredLrp {
        #[arg(value_name = "SPEC|@FILE")]
        spec: String,
    },
    /// Show the specified desired LRP.
    DesiredLrp {
        #[arg(value_parser = process_guid)]
        process_guid: String,
    },
    /// List desired LRPs.
    DesiredLrps {
        /// Retrieve only desired lrps for the given domain.
        #[arg(short, long, default_value = "")]
        domain: String,
    },
    /// List desired LRP scheduling infos.
    DesiredLrpSchedulingInfos {
        /// Retrieve only scheduling infos for the given domain.
        #[arg(short, long, default_value = "")]
        domain: String,
    },
    /// Update a desired LRP from JSON, e.g. '{"instances":4}', or from a file of it, e.g. @/path/to/spec.
    UpdateDesiredLrp {
        #[arg(value_name = "process-guid")]
        process_guid: String,
        #[arg(value_name = "SPEC|@FILE")]
        spec: String,
    },
    /// Delete a desired LRP.
    DeleteDesiredLrp {
        #[arg(value_parser = process_guid)]
        process_guid: String,
    },
}

pub async fn run(bbs: &BbsClient, command: Command) -> Result<(), Failure> {
    match command {
        Command::CreateDesiredLrp { spec } => Ok(bbs.raw().desire_lrp(spec::read(&spec)?).await?),
        Command::DesiredLrp { process_guid } => line(&bbs.raw().desired_lrp(process_guid).await?),
        Command::DesiredLrps { domain } => lines(&bbs.raw().desired_lrps(of_domain(domain)).await?),
        Command::DesiredLrpSchedulingInfos { domain } => {
            lines(&bbs.raw().scheduling_infos(of_domain(domain)).await?)
        }
        Command::UpdateDesiredLrp { process_guid, spec } => {
            Ok(bbs.raw().update_desired_lrp(process_guid, spec::read(&spec)?).await?)
        }
        Command::DeleteDesiredLrp { process_guid } => Ok(bbs.remove_desired_lrp(&process_guid).await?),
    }
}

fn of_domain(domain: String) -> DesiredLrpFilter {
    DesiredLrpFilter { domain, ..DesiredLrpFilter::default() }
}
