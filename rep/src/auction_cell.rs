//! The cell as the auctioneer sees it: what it has and runs, and the door through which work comes in.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use executor::{AllocationRequest, CellResources, Container, State};
use rep_client::{CellState, Lrp, Resources, RootfsProviders, Task, TaskState, Work};

use crate::containers::SharedContainers;
use crate::evacuation::Evacuation;
use crate::stacks::Stacks;
use crate::tags::{self, Lifecycle, PLACEMENT_TAGS_TAG, VOLUME_DRIVERS_TAG};
use crate::trace::{TraceId, Traces};

/// An instance guid fits where a host name of its container is made of it.
const INSTANCE_GUID_CHARS: usize = 28;

/// Who the cell is; the same in its state and in its presence.
#[derive(Debug, Clone, Default)]
pub struct Identity {
    pub cell_id: String,
    pub cell_index: i32,
    pub rep_url: String,
    pub zone: String,
    pub stacks: Stacks,
    /// Those of them that were found rather than told; a presence lists them apart.
    pub extra_stacks: BTreeSet<String>,
    /// URL schemes of which it runs any image.
    pub rootfs_schemes: Vec<String>,
    pub placement_tags: Vec<String>,
    pub optional_placement_tags: Vec<String>,
    /// Taken by each LRP instance on top of its own memory; 0 without a proxy.
    pub proxy_memory_mb: i32,
    /// Passed on in the presence.
    pub annotations: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("workload cell ID does not match this cell: work for {given} was sent to {own}")]
    CellIdMismatch { given: String, own: String },
}

pub struct AuctionCell {
    identity: Identity,
    providers: RootfsProviders,
    executor: SharedContainers,
    evacuation: Evacuation,
    traces: Traces,
}

impl AuctionCell {
    pub fn new(
        identity: Identity,
        executor: SharedContainers,
        evacuation: Evacuation,
        traces: Traces,
    ) -> Self {
        let stacks = identity.stacks.0.keys().map(String::as_str);
        let providers = RootfsProviders::new(stacks, &identity.rootfs_schemes);
        AuctionCell { identity, providers, executor, evacuation, traces }
    }

    pub fn healthy(&self) -> bool {
        self.executor.healthy()
    }

    pub fn state(&self) -> CellState {
        let identity = &self.identity;
        let containers = self.executor.list();
        let mut state = CellState {
            rep_url: identity.rep_url.clone(),
            cell_id: identity.cell_id.clone(),
            cell_index: identity.cell_index,
            rootfs_providers: self.providers.clone(),
            available_resources: resources(self.executor.remaining_resources()),
            total_resources: resources(self.executor.total_resources()),
            zone: identity.zone.clone(),
            evacuating: self.evacuation.has_begun(),
            volume_drivers: self.executor.volume_drivers(),
            placement_tags: identity.placement_tags.clone(),
            optional_placement_tags: identity.optional_placement_tags.clone(),
            proxy_memory_allocation_mb: identity.proxy_memory_mb,
            ..CellState::default()
        };
        for container in &containers {
            state.starting_container_count += i32::from(is_starting(container));
            match tags::read(&container.tags, &identity.cell_id) {
                Ok(Lifecycle::Lrp(_)) => state.lrps.push(lrp_of(container, &identity.stacks)),
                Ok(Lifecycle::Task { domain }) => {
                    state.tasks.push(task_of(container, domain, &identity.stacks));
                }
                Err(error) => {
                    tracing::error!(guid = container.guid, %error, "cannot tell what a container is")
                }
            }
        }
        state
    }

    /// Reserves what it can; answers the rest.
    pub fn perform(&self, mut work: Work, trace: &TraceId) -> Result<Work, Error> {
        let own = &self.identity.cell_id;
        if !work.cell_id.is_empty() && work.cell_id != *own {
            return Err(Error::CellIdMismatch { given: work.cell_id, own: own.clone() });
        }
        if self.evacuation.has_begun() {
            return Ok(work);
        }
        work.lrps.sort_by_key(|lrp| std::cmp::Reverse(lrp.memory_mb));
        let lrps = self.allocate(work.lrps, trace, |cell, lrp| cell.lrp_request(lrp));
        let tasks = self.allocate(work.tasks, trace, |cell, task| cell.task_request(task));
        Ok(Work { lrps, tasks, cell_id: String::new() })
    }

    /// The pieces of work that could not be turned into a request, or whose request was refused.
    fn allocate<T>(
        &self,
        work: Vec<T>,
        trace: &TraceId,
        request: impl Fn(&Self, &T) -> Result<AllocationRequest, String>,
    ) -> Vec<T> {
        let mut refused = Vec::new();
        let mut requests = Vec::with_capacity(work.len());
        let mut by_guid = HashMap::with_capacity(work.len());
        for piece in work {
            match request(self, &piece) {
                Ok(request) => {
                    // Before anybody hears of it.
                    self.traces.note(&request.guid, trace);
                    by_guid.insert(request.guid.clone(), piece);
                    requests.push(request);
                }
                Err(reason) => {
                    tracing::info!(reason, "refused a piece of work");
                    refused.push(piece);
                }
            }
        }
        for failure in self.executor.allocate(requests) {
            tracing::info!(guid = failure.guid, reason = failure.reason, "container-allocation-failure");
            self.traces.forget(&failure.guid);
            refused.extend(by_guid.remove(&failure.guid));
        }
        refused
    }

    fn lrp_request(&self, lrp: &Lrp) -> Result<AllocationRequest, String> {
        self.identity.stacks.resolve(&lrp.rootfs).map_err(|error| error.to_string())?;
        let proxy_mb = if lrp.memory_mb > 0 { self.identity.proxy_memory_mb } else { 0 };
        let instance_guid = instance_guid();
        Ok(AllocationRequest {
            resource: resource(lrp.memory_mb.saturating_add(proxy_mb), lrp.disk_mb, lrp.max_pids),
            tags: tags::of_lrp(lrp, &instance_guid),
            guid: instance_guid,
        })
    }

    fn task_request(&self, task: &Task) -> Result<AllocationRequest, String> {
        self.identity.stacks.resolve(&task.rootfs).map_err(|error| error.to_string())?;
        Ok(AllocationRequest {
            guid: task.task_guid.clone(),
            resource: resource(task.memory_mb, task.disk_mb, task.max_pids),
            tags: tags::of_task(task),
        })
    }
}

fn instance_guid() -> String {
    let mut guid = diego_base::names::guid();
    guid.truncate(INSTANCE_GUID_CHARS);
    guid
}

fn resource(memory_mb: i32, disk_mb: i32, max_pids: i32) -> executor::Resource {
    let unsigned = |value: i32| u64::try_from(value).unwrap_or(0);
    executor::Resource {
        memory_mb: unsigned(memory_mb),
        disk_mb: unsigned(disk_mb),
        max_pids: unsigned(max_pids),
    }
}

fn signed(value: u64) -> i32 {
    i32::try_from(value).unwrap_or(i32::MAX)
}

pub(crate) fn resources(resources: CellResources) -> Resources {
    Resources {
        memory_mb: signed(resources.memory_mb),
        disk_mb: signed(resources.disk_mb),
        containers: signed(resources.containers),
    }
}

fn is_starting(container: &Container) -> bool {
    matches!(container.state, State::Reserved | State::Initializing | State::Created)
}

fn lrp_of(container: &Container, stacks: &Stacks) -> Lrp {
    let tag = |name: &str| container.tags.get(name).cloned().unwrap_or_default();
    let state = match &container.state {
        State::Running => "RUNNING",
        State::Completed(result) if result.failed => "CRASHED",
        State::Completed(_) => "SHUTDOWN",
        State::Reserved | State::Initializing | State::Created => "CLAIMED",
    };
    Lrp {
        instance_guid: tag(tags::INSTANCE_GUID_TAG),
        process_guid: tag(tags::PROCESS_GUID_TAG),
        index: tag(tags::PROCESS_INDEX_TAG).parse().unwrap_or_default(),
        domain: tag(tags::DOMAIN_TAG),
        placement_tags: tags::list(&container.tags, PLACEMENT_TAGS_TAG),
        volume_drivers: tags::list(&container.tags, VOLUME_DRIVERS_TAG),
        rootfs: rootfs(container, stacks),
        memory_mb: signed(container.resource.memory_mb),
        disk_mb: signed(container.resource.disk_mb),
        max_pids: signed(container.resource.max_pids),
        state: state.into(),
    }
}

fn task_of(container: &Container, domain: String, stacks: &Stacks) -> Task {
    let (state, failed) = match &container.state {
        State::Completed(result) => (TaskState::Completed, result.failed),
        _ => (TaskState::Running, false),
    };
    Task {
        task_guid: container.guid.clone(),
        domain,
        placement_tags: tags::list(&container.tags, PLACEMENT_TAGS_TAG),
        volume_drivers: tags::list(&container.tags, VOLUME_DRIVERS_TAG),
        rootfs: rootfs(container, stacks),
        memory_mb: signed(container.resource.memory_mb),
        disk_mb: signed(container.resource.disk_mb),
        max_pids: signed(container.resource.max_pids),
        state,
        failed,
    }
}

/// Unknown while the container is reserved.
fn rootfs(container: &Container, stacks: &Stacks) -> String {
    container.run_info.as_ref().map(|info| stacks.unresolve(&info.rootfs)).unwrap_or_default()
}
