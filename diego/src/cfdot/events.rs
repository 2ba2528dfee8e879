//! Commands that follow the BBS, until its stream ends.

use bbs_client::{BbsClient, EventStream};
use bbs_models::Event;
use clap::Subcommand;
use futures_util::{Stream, StreamExt, stream};
use serde::Serialize;

use super::{Failure, line};

/// Told each time, for scripts read the deprecated events by default.
const GROUPS_WARNING: &str = "Event types \"actual_lrp_created\", \"actual_lrp_changed\" and \"actual_lrp_removed\" are \
                              deprecated. Use \"--exclude-actual-lrp-groups\" flag to exclude them.";

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

#[derive(Serialize)]
struct Shown<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    data: &'a Event,
}

pub async fn run(bbs: &BbsClient, command: Command) -> Result<(), Failure> {
    match command {
        Command::TaskEvents => show(bbs.subscribe_to_task_events().await?).await,
        Command::LrpEvents { cell_id, exclude_actual_lrp_groups: true } => {
            show(bbs.subscribe_to_instance_events_by_cell_id(&cell_id).await?).await
        }
        Command::LrpEvents { cell_id, exclude_actual_lrp_groups: false } => {
            eprintln!("{GROUPS_WARNING}");
            let groups = groups_only(bbs.subscribe_to_group_events_by_cell_id(&cell_id).await?);
            let instances = bbs.subscribe_to_instance_events_by_cell_id(&cell_id).await?;
            show(stream::select(groups, instances)).await
        }
    }
}

/// The group stream tells of DesiredLRPs too; those come with the instances'.
fn groups_only(events: EventStream) -> impl Stream<Item = Result<Event, bbs_client::Error>> + Unpin {
    events.filter(|event| {
        let other = matches!(
            event,
            Ok(Event::DesiredLrpCreated { .. }
                | Event::DesiredLrpChanged { .. }
                | Event::DesiredLrpRemoved { .. })
                | Ok(Event::ActualLrpCrashed(_))
        );
        std::future::ready(!other)
    })
}

/// Until the BBS ends the stream; a stream that is cut is a failure.
async fn show(
    mut events: impl Stream<Item = Result<Event, bbs_client::Error>> + Unpin,
) -> Result<(), Failure> {
    while let Some(event) = events.next().await {
        let event = event?;
        line(&Shown { kind: event.event_type(), data: &event })?;
    }
    Ok(())
}
