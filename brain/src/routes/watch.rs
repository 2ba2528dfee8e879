//! Keeps a routing table true to the BBS: reads everything, follows the events, and reads everything again now and
//! then, or when the stream of events breaks.

use std::sync::{Arc, RwLock};
use std::time::Duration;

use bbs_client::{BbsClient, EventStream};
use bbs_models::{ActualLrp, ActualLrpFilter, DesiredLrpFilter, Event, Presence, RoutingInfo};
use futures_util::StreamExt;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::message::{Change, Registration};
use super::table::{Backend, RoutingTable};

/// Between two readings of everything.
pub const SYNC_INTERVAL: Duration = Duration::from_secs(60);
/// Before the next try when the BBS does not answer.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// A routing table that others read while it is kept true.
#[derive(Clone, Default)]
pub struct Routing(Arc<RwLock<RoutingTable>>);

impl Routing {
    pub fn new(table: RoutingTable) -> Routing {
        Routing(Arc::new(RwLock::new(table)))
    }

    pub fn backends(&self, hostname: &str) -> Vec<Backend> {
        match self.0.read() {
            Ok(table) => table.backends(hostname).to_vec(),
            Err(_) => Vec::new(),
        }
    }

    /// See [`RoutingTable::registrations_after`].
    pub fn registrations_after(&self, process_guid: Option<&str>) -> (Vec<Registration>, Option<String>) {
        match self.0.read() {
            Ok(table) => table.registrations_after(process_guid),
            Err(_) => (Vec::new(), None),
        }
    }

    fn knows_desired(&self, process_guid: &str) -> bool {
        self.0.read().is_ok_and(|table| table.knows_desired(process_guid))
    }

    fn change(&self, change: impl FnOnce(&mut RoutingTable) -> Vec<Change>) -> Vec<Change> {
        match self.0.write() {
            Ok(mut table) => change(&mut table),
            Err(_) => Vec::new(),
        }
    }
}

/// What is watched, and who is told of changes.
pub struct Watch {
    pub bbs: BbsClient,
    pub routing: Routing,
    /// Only instances of this cell; otherwise all.
    pub cell_id: Option<String>,
    pub sync_interval: Duration,
    /// In the order in which they became true. Nothing is dropped: who listens must keep up.
    pub changes: Option<mpsc::Sender<Vec<Change>>>,
}

/// Keeps `routing` true and tells nobody; runs until `shutdown`.
pub async fn run(bbs: BbsClient, routing: Routing, shutdown: CancellationToken) {
    let watch = Watch { bbs, routing, cell_id: None, sync_interval: SYNC_INTERVAL, changes: None };
    watch.run(shutdown).await;
}

impl Watch {
    /// Runs until `shutdown`. While the BBS is away the table stays as it was: old routes are better than none.
    pub async fn run(&self, shutdown: CancellationToken) {
        let watching = async {
            loop {
                if let Err(error) = self.follow().await {
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

    /// Subscribes before it reads, so that nothing falls between; ends when the stream does. What happens during a
    /// reading waits in the stream; what the reading had already said is then old news.
    async fn follow(&self) -> Result<(), bbs_client::Error> {
        let mut events = self.subscribe().await?;
        let mut sync = tokio::time::interval(self.sync_interval);
        sync.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = sync.tick() => self.read_everything().await?,
                event = events.next() => match event.transpose()? {
                    Some(event) => self.take(event).await?,
                    None => return Ok(()),
                },
            }
        }
    }

    async fn subscribe(&self) -> Result<EventStream, bbs_client::Error> {
        match &self.cell_id {
            Some(cell_id) => self.bbs.subscribe_to_instance_events_by_cell_id(cell_id).await,
            None => self.bbs.subscribe_to_instance_events().await,
        }
    }

    async fn read_everything(&self) -> Result<(), bbs_client::Error> {
        let cell_id = self.cell_id.clone().unwrap_or_default();
        let actual = self.bbs.actual_lrps(&ActualLrpFilter { cell_id, ..Default::default() }).await?;
        let desired = self.read_desired(&actual).await?;
        let fresh_domains = self.bbs.domains().await?;
        self.tell(self.routing.change(|table| table.sync(&desired, &actual, &fresh_domains))).await;
        Ok(())
    }

    /// Of one cell, only those that it runs instances of.
    async fn read_desired(&self, actual: &[ActualLrp]) -> Result<Vec<RoutingInfo>, bbs_client::Error> {
        let mut filter = DesiredLrpFilter::default();
        if self.cell_id.is_some() {
            filter.process_guids = actual.iter().map(|lrp| lrp.key.process_guid.clone()).collect();
            filter.process_guids.sort();
            filter.process_guids.dedup();
            // To the BBS an empty filter means all.
            if filter.process_guids.is_empty() {
                return Ok(Vec::new());
            }
        }
        self.bbs.routing_infos(&filter).await
    }

    async fn take(&self, event: Event) -> Result<(), bbs_client::Error> {
        if let Some(process_guid) = runs_on(&event).filter(|guid| !self.routing.knows_desired(guid)) {
            let process_guids = vec![process_guid.to_owned()];
            let filter = DesiredLrpFilter { process_guids, ..Default::default() };
            for info in self.bbs.routing_infos(&filter).await? {
                self.tell(self.routing.change(|table| table.set_desired(&info))).await;
            }
        }
        self.tell(self.routing.change(|table| apply(table, event))).await;
        Ok(())
    }

    async fn tell(&self, told: Vec<Change>) {
        if let Some(changes) = self.changes.as_ref().filter(|_| !told.is_empty()) {
            // Nobody listens any more only when all are being stopped.
            let _ = changes.send(told).await;
        }
    }
}

/// The process of an instance that runs now.
fn runs_on(event: &Event) -> Option<&str> {
    match event {
        Event::ActualLrpInstanceCreated { lrp, .. } | Event::ActualLrpInstanceChanged { after: lrp, .. } => {
            lrp.is_running().then_some(&lrp.key.process_guid)
        }
        _ => None,
    }
}

fn apply(table: &mut RoutingTable, event: Event) -> Vec<Change> {
    match event {
        Event::DesiredLrpCreated { lrp, .. } | Event::DesiredLrpChanged { after: lrp, .. } => {
            table.set_desired(&lrp.routing_info())
        }
        Event::DesiredLrpRemoved { lrp, .. } => {
            table.remove_desired(&lrp.process_guid, &lrp.modification_tag)
        }
        Event::ActualLrpInstanceCreated { lrp, .. } => table.set_actual(&lrp),
        Event::ActualLrpInstanceChanged { before, after, .. } => {
            let mut changes = table.set_actual(&after);
            // An instance that lost its place (crashed, unclaimed) has no guid any more; one that began to evacuate
            // is no longer ordinary.
            let evacuates = after.presence == Presence::Evacuating && before.presence == Presence::Ordinary;
            if evacuates || after.instance_guid() != before.instance_guid() {
                changes.extend(table.remove_actual(&before));
            }
            changes
        }
        Event::ActualLrpInstanceRemoved { lrp, .. } => table.remove_actual(&lrp),
        _ => Vec::new(),
    }
}
