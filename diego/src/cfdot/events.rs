//! Commands that follow the BBS, until its stream ends.

use bbs_client::{BbsClient, EventStream, RawEvent};
use clap::Subcommand;
use futures_util::{Stream, StreamExt, stream};

use super::{Failure, line};

/// Told each time, for scripts read the deprecated events by default.
const GROUPS_WARNING: &str = "Event types \"actual_lrp_created\", \"actual_lrp_changed\" and \"actual_lrp_removed\" are \
                              deprecated. Use \"--exclude-actual-lrp-groups\" flag to exclude them.";

const GROUPS: [&str; 3] = ["actual_lrp_created", "actual_lrp_changed", "actual_lrp_removed"];

#[derive(Subcommand)]
pub enum Command {
    /// Subscribe to BBS LRP events.
    LrpEvents {
        /// Retrieve only events for the given cell id.
        #[arg(short, long, default_value = "")]
        cell_id: String,
        /// Exclude actual lrp group events.
        #[arg(short = 'x', long)]
        exclude_actual_lrp_groups: bool,
    },
    /// Subscribe to BBS Task events.
    TaskEvents,
}

pub async fn run(bbs: &BbsClient, command: Command) -> Result<(), Failure> {
    let bbs = bbs.raw();
    match command {
        Command::TaskEvents => show(begun(bbs.task_events().await)?).await,
        Command::LrpEvents { cell_id, exclude_actual_lrp_groups: true } => {
            show(begun(bbs.instance_events(&cell_id).await)?).await
        }
        Command::LrpEvents { cell_id, exclude_actual_lrp_groups: false } => {
            eprintln!("{GROUPS_WARNING}");
            let groups = groups_only(begun(bbs.group_events(&cell_id).await)?);
            let instances = begun(bbs.instance_events(&cell_id).await)?;
            show(stream::select(groups, instances)).await
        }
    }
}

fn begun<T>(stream: Result<T, bbs_client::Error>) -> Result<T, Failure> {
    stream.map_err(Failure::of_stream)
}

/// The group stream tells of DesiredLRPs and crashes too; those come with the instances'.
fn groups_only(
    events: EventStream<RawEvent>,
) -> impl Stream<Item = Result<RawEvent, bbs_client::Error>> + Unpin {
    events.filter(|event| {
        let is_of_groups = |event: &RawEvent| GROUPS.contains(&event.kind.as_str());
        std::future::ready(event.as_ref().map_or(true, is_of_groups))
    })
}

/// Until the BBS ends the stream; a stream that is cut is a failure.
async fn show(
    mut events: impl Stream<Item = Result<RawEvent, bbs_client::Error>> + Unpin,
) -> Result<(), Failure> {
    while let Some(event) = events.next().await {
        line(&event?)?;
    }
    Ok(())
}
