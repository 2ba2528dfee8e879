//! Keeps a routing table true to the BBS: reads everything, follows the events, and reads everything again now and
//! then, or when the stream of events breaks.

use std::collections::BTreeSet;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use bbs_client::{BbsClient, EventStream};
use bbs_models::{ActualLrp, Event, RoutingInfo};
use futures_util::StreamExt;
use tokio_util::sync::CancellationToken;

use super::table::{Backend, RoutingTable};

/// Between two readings of everything.
const SYNC_INTERVAL: Duration = Duration::from_secs(60);
/// Before the next try when the BBS does not answer.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// A routing table that others read while it is kept true.
#[derive(Clone, Default)]
pub struct Routing(Arc<RwLock<RoutingTable>>);

impl Routing {
    pub fn backends(&self, hostname: &str) -> Vec<Backend> {
        match self.0.read() {
            Ok(table) => table.backends(hostname).to_vec(),
            Err(_) => Vec::new(),
        }
    }

    fn change(&self, change: impl FnOnce(&mut RoutingTable)) {
        if let Ok(mut table) = self.0.write() {
            change(&mut table);
        }
    }
}

/// Runs until `shutdown`. While the BBS is away the table stays as it was: old routes are better than none.
pub async fn run(bbs: BbsClient, routing: Routing, shutdown: CancellationToken) {
    let watching = async {
        loop {
            if let Err(error) = follow(&bbs, &routing).await {
                tracing::warn!(%error, "cannot follow the BBS; keeping the routes that are known");
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    };
    tokio::select! {
        () = watching => {}
        () = shutdown.cancelled() => {}
    }
}

/// Subscribes before it reads, so that nothing falls between; ends when the stream does.
async fn follow(bbs: &BbsClient, routing: &Routing) -> Result<(), bbs_client::Error> {
    let mut events = bbs.subscribe_to_instance_events().await?;
    let mut sync = tokio::time::interval(SYNC_INTERVAL);
    loop {
        tokio::select! {
            _ = sync.tick() => read_everything(bbs, routing).await?,
            event = next(&mut events) => match event? {
                Some(event) => routing.change(|table| apply(table, event)),
                None => return Ok(()),
            },
        }
    }
}

async fn next(events: &mut EventStream) -> Result<Option<Event>, bbs_client::Error> {
    events.next().await.transpose()
}

async fn read_everything(bbs: &BbsClient, routing: &Routing) -> Result<(), bbs_client::Error> {
    let desired = bbs.routing_infos(&Default::default()).await?;
    let actual = bbs.actual_lrps(&Default::default()).await?;
    routing.change(|table| sync(table, &desired, &actual));
    Ok(())
}

fn sync(table: &mut RoutingTable, desired: &[RoutingInfo], actual: &[ActualLrp]) {
    for info in desired {
        table.set_desired(&info.key.process_guid, &info.routes, &info.modification_tag);
    }
    for lrp in actual {
        table.set_actual(lrp);
    }
    let desired: BTreeSet<_> = desired.iter().map(|info| info.key.process_guid.as_str()).collect();
    let actual: BTreeSet<_> = actual.iter().filter_map(ActualLrp::instance_guid).collect();
    table.retain(|process_guid| desired.contains(process_guid), |guid| actual.contains(guid));
}

fn apply(table: &mut RoutingTable, event: Event) {
    match event {
        Event::DesiredLrpCreated { lrp, .. } | Event::DesiredLrpChanged { after: lrp, .. } => {
            table.set_desired(&lrp.process_guid, &lrp.routes, &lrp.modification_tag);
        }
        Event::DesiredLrpRemoved { lrp, .. } => table.remove_desired(&lrp.process_guid),
        Event::ActualLrpInstanceCreated { lrp, .. } => table.set_actual(&lrp),
        Event::ActualLrpInstanceChanged { before, after, .. } => {
            // An instance that lost its place (crashed, unclaimed) has no guid any more.
            if after.instance_guid() != before.instance_guid() {
                table.remove_actual(&before);
            }
            table.set_actual(&after);
        }
        Event::ActualLrpInstanceRemoved { lrp, .. } => table.remove_actual(&lrp),
        _ => {}
    }
}
