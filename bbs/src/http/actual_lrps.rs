//! Routes about instances: lists, their life at a cell, and evacuation.

use axum::Router;
use axum::extract::State;
use axum::response::Response;
use axum::routing::post;
use bbs_models::{ActualLrpFilter, Error, RunningInstance, wire};

use super::{Call, Served, acknowledge, refused, reply, respond, views};
use crate::transitions::actual_lrp::Report;

pub fn routes() -> Router<Served> {
    Router::new()
        .route("/v1/actual_lrps/list", post(list))
        .route("/v1/actual_lrps/list_by_process_guids", post(list_by_process_guids))
        .route("/v1/actual_lrp_groups/list", post(groups))
        .route("/v1/actual_lrp_groups/list_by_process_guid", post(groups_by_process_guid))
        .route("/v1/actual_lrp_groups/get_by_process_guid_and_index", post(group_of_index))
        .route("/v1/actual_lrps/claim", post(claim))
        .route("/v1/actual_lrps/start", post(start_r0))
        .route("/v1/actual_lrps/start.r1", post(start))
        .route("/v1/actual_lrps/crash", post(crash))
        .route("/v1/actual_lrps/fail", post(fail))
        .route("/v1/actual_lrps/remove", post(remove))
        .route("/v1/actual_lrps/retire", post(retire))
        .route("/v1/actual_lrps/remove_evacuating", post(remove_evacuating))
        .route("/v1/actual_lrps/evacuate_claimed", post(evacuate_claimed))
        .route("/v1/actual_lrps/evacuate_crashed", post(evacuate_crashed))
        .route("/v1/actual_lrps/evacuate_stopped", post(evacuate_stopped))
        .route("/v1/actual_lrps/evacuate_running", post(evacuate_running_r0))
        .route("/v1/actual_lrps/evacuate_running.r1", post(evacuate_running))
}

async fn list(State(served): State<Served>, call: Call) -> Response {
    reply(call, wire::ActualLrpsRequest::parse, |filter, _| async move {
        let lrps = served.controllers.board.read(|state| state.actual_lrps(&filter));
        let actual_lrps = lrps.iter().map(|lrp| views::actual_lrp(lrp)).collect();
        Ok(wire::ActualLrpsResponse { error: None, actual_lrps })
    })
    .await
}

async fn list_by_process_guids(State(served): State<Served>, call: Call) -> Response {
    reply(call, wire::ActualLrpsByProcessGuidsRequest::parse, |guids, _| async move {
        let lrps = served.controllers.board.read(|state| state.actual_lrps_of(&guids));
        let actual_lrps = lrps.iter().map(|lrp| views::actual_lrp(lrp)).collect();
        Ok(wire::ActualLrpsResponse { error: None, actual_lrps })
    })
    .await
}

fn groups_where(served: &Served, filter: &ActualLrpFilter) -> Vec<wire::ActualLrpGroup> {
    let groups = served.controllers.board.read(|state| state.groups(filter));
    groups.into_iter().map(views::group).collect()
}

async fn groups(State(served): State<Served>, call: Call) -> Response {
    let parse = |request: wire::ActualLrpGroupsRequest| {
        let wire::ActualLrpGroupsRequest { domain, cell_id } = request;
        Ok(ActualLrpFilter { domain, cell_id, ..ActualLrpFilter::default() })
    };
    reply(call, parse, |filter, _| async move {
        let actual_lrp_groups = groups_where(&served, &filter);
        Ok(wire::ActualLrpGroupsResponse { error: None, actual_lrp_groups })
    })
    .await
}

async fn groups_by_process_guid(State(served): State<Served>, call: Call) -> Response {
    reply(call, wire::ProcessGuidRequest::parse, |process_guid, _| async move {
        let filter = ActualLrpFilter { process_guid, ..ActualLrpFilter::default() };
        let actual_lrp_groups = groups_where(&served, &filter);
        Ok(wire::ActualLrpGroupsResponse { error: None, actual_lrp_groups })
    })
    .await
}

async fn group_of_index(State(served): State<Served>, call: Call) -> Response {
    let parse = wire::ActualLrpGroupByProcessGuidAndIndexRequest::parse;
    reply(call, parse, |(process_guid, index), _| async move {
        let filter = ActualLrpFilter { process_guid, index: Some(index), ..ActualLrpFilter::default() };
        let group = groups_where(&served, &filter).pop().ok_or_else(Error::not_found)?;
        Ok(wire::ActualLrpGroupResponse { error: None, actual_lrp_group: Some(group) })
    })
    .await
}

async fn claim(State(Served { controllers, .. }): State<Served>, call: Call) -> Response {
    let parse = wire::IndexedInstanceRequest::parse_claim;
    acknowledge(call, parse, |(process_guid, index, instance), trace_id| async move {
        controllers.claim(&trace_id, process_guid, index, instance).await
    })
    .await
}

/// A cell that does not say so is routable: readiness came later than cells did.
fn report(running: RunningInstance) -> Report {
    Report {
        key: running.key,
        instance: running.instance,
        net_info: running.net_info,
        internal_routes: running.internal_routes,
        metric_tags: running.metric_tags,
        routable: running.routable.unwrap_or(true),
        availability_zone: running.availability_zone,
    }
}

/// Yesterday's cells say nothing of internal routes and metric tags.
fn report_r0(running: RunningInstance) -> Report {
    Report { internal_routes: Vec::new(), metric_tags: Default::default(), ..report(running) }
}

async fn start(State(Served { controllers, .. }): State<Served>, call: Call) -> Response {
    acknowledge(call, wire::StartActualLrpRequest::parse, |running, trace_id| async move {
        controllers.start(&trace_id, report(running)).await
    })
    .await
}

async fn start_r0(State(Served { controllers, .. }): State<Served>, call: Call) -> Response {
    acknowledge(call, wire::StartActualLrpRequest::parse, |running, trace_id| async move {
        controllers.start(&trace_id, report_r0(running)).await
    })
    .await
}

async fn crash(State(Served { controllers, .. }): State<Served>, call: Call) -> Response {
    let parse = wire::CrashActualLrpRequest::parse_crash;
    acknowledge(call, parse, |(key, instance, reason), trace_id| async move {
        controllers.crash(&trace_id, key, instance, reason).await
    })
    .await
}

async fn fail(State(Served { controllers, .. }): State<Served>, call: Call) -> Response {
    acknowledge(call, wire::FailActualLrpRequest::parse, |(key, reason), trace_id| async move {
        controllers.fail(&trace_id, key, reason).await
    })
    .await
}

async fn remove(State(Served { controllers, .. }): State<Served>, call: Call) -> Response {
    let parse = wire::IndexedInstanceRequest::parse_remove;
    acknowledge(call, parse, |(process_guid, index, instance), trace_id| async move {
        controllers.remove(&trace_id, process_guid, index, instance).await
    })
    .await
}

async fn retire(State(Served { controllers, .. }): State<Served>, call: Call) -> Response {
    acknowledge(call, wire::RetireActualLrpRequest::parse, |key, trace_id| async move {
        controllers.retire(&trace_id, &key).await
    })
    .await
}

async fn remove_evacuating(State(Served { controllers, .. }): State<Served>, call: Call) -> Response {
    acknowledge(call, wire::InstanceRequest::parse, |(key, instance), trace_id| async move {
        controllers.remove_evacuating(&trace_id, key, instance).await
    })
    .await
}

/// Whether the container is kept if the cell cannot be told properly.
fn evacuated(call: &Call, kept: Result<bool, Error>, when_refused: bool) -> Response {
    respond(&match kept {
        Ok(keep_container) => wire::EvacuationResponse { error: None, keep_container },
        Err(error) => {
            refused(call, &error);
            wire::EvacuationResponse { error: Some(error.into()), keep_container: when_refused }
        }
    })
}

async fn evacuate_claimed(State(Served { controllers, .. }): State<Served>, call: Call) -> Response {
    let (key, instance) = match call.parse(wire::InstanceRequest::parse) {
        Ok(parsed) => parsed,
        Err(error) => return evacuated(&call, Err(error), true),
    };
    let kept = controllers.evacuate_claimed(&call.trace_id, key, instance).await;
    evacuated(&call, kept, false)
}

async fn evacuate_crashed(State(Served { controllers, .. }): State<Served>, call: Call) -> Response {
    let (key, instance, reason) = match call.parse(wire::CrashActualLrpRequest::parse_evacuate) {
        Ok(parsed) => parsed,
        Err(error) => return evacuated(&call, Err(error), false),
    };
    let kept = controllers.evacuate_crashed(&call.trace_id, key, instance, reason).await;
    evacuated(&call, kept, false)
}

async fn evacuate_stopped(State(Served { controllers, .. }): State<Served>, call: Call) -> Response {
    let (key, instance) = match call.parse(wire::InstanceRequest::parse) {
        Ok(parsed) => parsed,
        Err(error) => return evacuated(&call, Err(error), false),
    };
    let kept = controllers.evacuate_stopped(&call.trace_id, key, instance).await;
    evacuated(&call, kept, false)
}

async fn evacuate_running(served: State<Served>, call: Call) -> Response {
    evacuate_running_as(served, call, report).await
}

async fn evacuate_running_r0(served: State<Served>, call: Call) -> Response {
    evacuate_running_as(served, call, report_r0).await
}

async fn evacuate_running_as(
    State(Served { controllers, .. }): State<Served>,
    call: Call,
    report: fn(RunningInstance) -> Report,
) -> Response {
    let running = match call.parse(wire::EvacuateRunningActualLrpRequest::parse) {
        Ok(running) => running,
        Err(error) => return evacuated(&call, Err(error), true),
    };
    let kept = controllers.evacuate_running(&call.trace_id, report(running)).await;
    evacuated(&call, kept, true)
}
