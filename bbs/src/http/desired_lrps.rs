//! Routes about what is desired.

use axum::Router;
use axum::extract::State;
use axum::response::Response;
use axum::routing::post;
use bbs_models::{Error, wire};

use super::views::{self, Revision};
use super::{Call, Served, acknowledge, reply};

pub fn routes() -> Router<Served> {
    Router::new()
        .route("/v1/desired_lrps/list.r3", post(|served, call| list(served, call, Revision::Current)))
        .route("/v1/desired_lrps/list.r2", post(|served, call| list(served, call, Revision::Old)))
        .route(
            "/v1/desired_lrps/get_by_process_guid.r3",
            post(|served, call| get(served, call, Revision::Current)),
        )
        .route(
            "/v1/desired_lrps/get_by_process_guid.r2",
            post(|served, call| get(served, call, Revision::Old)),
        )
        .route("/v1/desired_lrp_scheduling_infos/list", post(scheduling_infos))
        .route("/v1/desired_lrp_scheduling_infos/get_by_process_guid", post(scheduling_info))
        .route("/v1/desired_lrp_routing_infos/list", post(routing_infos))
        .route("/v1/desired_lrp/desire.r2", post(desire))
        .route("/v1/desired_lrp/update", post(update))
        .route("/v1/desired_lrp/remove", post(remove))
}

async fn list(State(served): State<Served>, call: Call, revision: Revision) -> Response {
    reply(call, wire::DesiredLrpsRequest::parse, |filter, _| async move {
        let lrps = served.controllers.board.read(|state| state.desired_lrps_where(&filter));
        let desired_lrps = lrps.iter().map(|lrp| views::desired_lrp(lrp, revision)).collect();
        Ok(wire::DesiredLrpsResponse { error: None, desired_lrps })
    })
    .await
}

async fn get(State(served): State<Served>, call: Call, revision: Revision) -> Response {
    reply(call, wire::ProcessGuidRequest::parse, |guid, _| async move {
        let lrp = served.controllers.board.read(|state| state.desired_lrp(&guid).cloned());
        let lrp = lrp.ok_or_else(Error::not_found)?;
        let desired_lrp = Some(views::desired_lrp(&lrp, revision));
        Ok(wire::DesiredLrpResponse { error: None, desired_lrp })
    })
    .await
}

async fn scheduling_infos(State(served): State<Served>, call: Call) -> Response {
    reply(call, wire::DesiredLrpsRequest::parse, |filter, _| async move {
        let lrps = served.controllers.board.read(|state| state.desired_lrps_where(&filter));
        let infos = lrps.iter().map(|lrp| lrp.scheduling_info().into()).collect();
        Ok(wire::DesiredLrpSchedulingInfosResponse { error: None, desired_lrp_scheduling_infos: infos })
    })
    .await
}

async fn scheduling_info(State(served): State<Served>, call: Call) -> Response {
    reply(call, wire::ProcessGuidRequest::parse, |guid, _| async move {
        let lrp = served.controllers.board.read(|state| state.desired_lrp(&guid).cloned());
        let info = lrp.ok_or_else(Error::not_found)?.scheduling_info().into();
        Ok(wire::DesiredLrpSchedulingInfoResponse { error: None, desired_lrp_scheduling_info: Some(info) })
    })
    .await
}

async fn routing_infos(State(served): State<Served>, call: Call) -> Response {
    reply(call, wire::DesiredLrpsRequest::parse, |filter, _| async move {
        let lrps = served.controllers.board.read(|state| state.desired_lrps_where(&filter));
        let desired_lrps = lrps.iter().map(|lrp| lrp.routing_info().into()).collect();
        Ok(wire::DesiredLrpsResponse { error: None, desired_lrps })
    })
    .await
}

async fn desire(State(Served { controllers, .. }): State<Served>, call: Call) -> Response {
    acknowledge(call, wire::DesireLrpRequest::parse, |lrp, trace_id| async move {
        controllers.desire_lrp(&trace_id, lrp).await
    })
    .await
}

async fn update(State(Served { controllers, .. }): State<Served>, call: Call) -> Response {
    acknowledge(call, wire::UpdateDesiredLrpRequest::parse, |(guid, update), trace_id| async move {
        controllers.update_lrp(&trace_id, guid, update).await
    })
    .await
}

async fn remove(State(Served { controllers, .. }): State<Served>, call: Call) -> Response {
    acknowledge(call, wire::ProcessGuidRequest::parse, |guid, trace_id| async move {
        controllers.remove_lrp(&trace_id, guid).await
    })
    .await
}
