//! Routes about Tasks.

use axum::Router;
use axum::extract::State;
use axum::response::Response;
use axum::routing::post;
use bbs_models::{Error, wire};

use super::views::{self, Revision};
use super::{Call, Served, acknowledge, reply};

pub fn routes() -> Router<Served> {
    Router::new()
        .route("/v1/tasks/list.r3", post(|served, call| list(served, call, Revision::Current)))
        .route("/v1/tasks/list.r2", post(|served, call| list(served, call, Revision::Old)))
        .route("/v1/tasks/get_by_task_guid.r3", post(|served, call| get(served, call, Revision::Current)))
        .route("/v1/tasks/get_by_task_guid.r2", post(|served, call| get(served, call, Revision::Old)))
        .route("/v1/tasks/desire.r2", post(desire))
        .route("/v1/tasks/start", post(start))
        .route("/v1/tasks/cancel", post(cancel))
        .route("/v1/tasks/fail", post(fail))
        .route("/v1/tasks/reject", post(reject))
        .route("/v1/tasks/complete", post(complete))
        .route("/v1/tasks/resolving", post(resolving))
        .route("/v1/tasks/delete", post(delete))
}

async fn list(State(served): State<Served>, call: Call, revision: Revision) -> Response {
    reply(call, wire::TasksRequest::parse, |filter, _| async move {
        let tasks = served.controllers.board.read(|state| state.tasks_where(&filter));
        let tasks = tasks.iter().map(|task| views::task(task, revision)).collect();
        Ok(wire::TasksResponse { error: None, tasks })
    })
    .await
}

async fn get(State(served): State<Served>, call: Call, revision: Revision) -> Response {
    reply(call, wire::TaskGuidRequest::parse, |guid, _| async move {
        let task = served.controllers.board.read(|state| state.task(&guid).cloned());
        let task = task.ok_or_else(Error::not_found)?;
        Ok(wire::TaskResponse { error: None, task: Some(views::task(&task, revision)) })
    })
    .await
}

async fn desire(State(Served { controllers, .. }): State<Served>, call: Call) -> Response {
    let parse = wire::DesireTaskRequest::parse;
    acknowledge(call, parse, |(guid, domain, definition), trace_id| async move {
        controllers.desire_task(&trace_id, guid, domain, definition).await
    })
    .await
}

async fn start(State(Served { controllers, .. }): State<Served>, call: Call) -> Response {
    reply(call, wire::StartTaskRequest::parse, |(guid, cell_id), trace_id| async move {
        let should_start = controllers.start_task(&trace_id, guid, cell_id).await?;
        Ok(wire::StartTaskResponse { error: None, should_start })
    })
    .await
}

async fn cancel(State(Served { controllers, .. }): State<Served>, call: Call) -> Response {
    acknowledge(call, wire::TaskGuidRequest::parse, |guid, trace_id| async move {
        controllers.cancel_task(&trace_id, guid).await
    })
    .await
}

async fn fail(State(Served { controllers, .. }): State<Served>, call: Call) -> Response {
    acknowledge(call, wire::TaskReasonRequest::parse, |(guid, reason), trace_id| async move {
        controllers.fail_task(&trace_id, guid, reason).await
    })
    .await
}

async fn reject(State(Served { controllers, .. }): State<Served>, call: Call) -> Response {
    acknowledge(call, wire::TaskReasonRequest::parse, |(guid, reason), trace_id| async move {
        controllers.reject_task(&trace_id, guid, reason).await
    })
    .await
}

async fn complete(State(Served { controllers, .. }): State<Served>, call: Call) -> Response {
    let parse = wire::CompleteTaskRequest::parse;
    acknowledge(call, parse, |(guid, cell_id, outcome), trace_id| async move {
        controllers.complete_task(&trace_id, guid, cell_id, outcome).await
    })
    .await
}

async fn resolving(State(Served { controllers, .. }): State<Served>, call: Call) -> Response {
    acknowledge(call, wire::TaskGuidRequest::parse, |guid, trace_id| async move {
        controllers.resolving_task(&trace_id, guid).await
    })
    .await
}

async fn delete(State(Served { controllers, .. }): State<Served>, call: Call) -> Response {
    acknowledge(call, wire::TaskGuidRequest::parse, |guid, trace_id| async move {
        controllers.delete_task(&trace_id, guid).await
    })
    .await
}
