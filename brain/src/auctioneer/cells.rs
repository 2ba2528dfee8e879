//! The cells that take part in an auction: those that tell their state in time, are healthy and are not evacuating.

use std::time::{Duration, Instant};

use auction::{Resources, Rootfses};
use bbs_models::CellPresence;
use diego_base::http::Way;
use futures_util::{StreamExt, stream};
use rep_client::{CellState, RepClient, RootfsProvider};

/// Cells that are asked at the same time.
const ASKED_AT_ONCE_MAX: usize = 1000;

pub struct Participant {
    pub client: RepClient,
    pub cell: auction::Cell,
}

pub async fn fetch(
    presences: Vec<CellPresence>,
    http: &Way,
    timeout: Duration,
    trace_id: &str,
) -> Vec<Participant> {
    let began = Instant::now();
    let asked = presences.len();
    let participants: Vec<Participant> = stream::iter(presences)
        .map(|presence| {
            let client = RepClient::new(http.clone(), url(&presence)).traced(trace_id);
            ask(client, presence.cell_id, timeout)
        })
        .buffer_unordered(ASKED_AT_ONCE_MAX)
        .filter_map(std::future::ready)
        .collect()
        .await;
    let duration_ns = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
    tracing::info!(metric = "AuctioneerFetchStatesDuration", duration_ns, "fetched cell states");
    if participants.len() < asked {
        tracing::warn!(asked, participants = participants.len(), "an auction without some of the cells");
    }
    participants
}

async fn ask(client: RepClient, cell_id: String, timeout: Duration) -> Option<Participant> {
    let state = client.state(timeout).await;
    participant(&cell_id, client, state)
}

fn url(presence: &CellPresence) -> &str {
    if presence.rep_url.is_empty() { &presence.rep_address } else { &presence.rep_url }
}

fn participant(
    cell_id: &str,
    client: RepClient,
    state: rep_client::Result<CellState>,
) -> Option<Participant> {
    match state {
        Err(error) => {
            tracing::error!(metric = "AuctioneerFailedCellStateRequests", cell_id, %error, "failed-to-get-state");
            None
        }
        Ok(state) if state.evacuating => {
            tracing::info!(cell_id, "ignored-evacuating-cell");
            None
        }
        Ok(state) if !state.cell_id.is_empty() && state.cell_id != cell_id => {
            tracing::error!(cell_id, state_cell_id = state.cell_id, "cell-id-mismatch");
            None
        }
        Ok(state) => Some(Participant { client, cell: cell(cell_id, state) }),
    }
}

fn cell(id: &str, state: CellState) -> auction::Cell {
    auction::Cell {
        id: id.into(),
        zone: state.zone,
        index: state.cell_index,
        rootfses: Rootfses(state.rootfs_providers.0.into_iter().filter_map(rootfses).collect()),
        volume_drivers: state.volume_drivers,
        placement_tags: state.placement_tags,
        optional_placement_tags: state.optional_placement_tags,
        available: resources(state.available_resources),
        total: resources(state.total_resources),
        lrps: state.lrps.into_iter().map(|lrp| lrp.process_guid).collect(),
        tasks: state.tasks.len(),
        starting_containers: state.starting_container_count,
        proxy_memory_mb: state.proxy_memory_allocation_mb,
    }
}

fn rootfses(
    (scheme, provider): (String, RootfsProvider),
) -> Option<(String, Option<std::collections::BTreeSet<String>>)> {
    match provider {
        RootfsProvider::Arbitrary => Some((scheme, None)),
        RootfsProvider::FixedSet(names) => Some((scheme, Some(names))),
        RootfsProvider::Unknown => None,
    }
}

fn resources(resources: rep_client::Resources) -> Resources {
    Resources { memory_mb: resources.memory_mb, disk_mb: resources.disk_mb, containers: resources.containers }
}
