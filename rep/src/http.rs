//! The rep's API. Two listeners: one the platform reaches (state, work, instances, Tasks, metrics, logs), and one for
//! the machine's own administrator (ping, evacuate).

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::{StatusCode, header};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use bytes::Bytes;
use executor::UpdateRequest;
use executor::logs::{Followed, LogLine, Logs, Out};
use futures_util::{Stream, StreamExt, stream};
use rep_client::{LrpUpdate, Work};
use serde::Deserialize;

use crate::auction_cell::AuctionCell;
use crate::containers::SharedContainers;
use crate::evacuation::Evacuation;
use crate::occurrence::{self, Witness};
use crate::trace::{TraceId, Traces};
use crate::usage::Usage;

/// Thousands of pieces of work in one request.
const BODY_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Lines answered where a request does not say how many.
const LOG_LINES_DEFAULT: usize = 100;

/// What requests are answered from.
pub struct Api {
    pub cell_id: String,
    pub auction_cell: AuctionCell,
    pub traces: Traces,
    pub usage: Arc<Usage>,
    pub executor: SharedContainers,
    pub logs: Logs,
}

impl Api {
    /// What happens to a container from now on was asked for by this request.
    fn note(&self, guid: &str, trace: &TraceId) {
        if self.executor.get(guid).is_ok() {
            self.traces.note(guid, trace);
        }
    }
}

/// For the auctioneer, the BBS and the operator's tools.
pub fn network_router(api: Arc<Api>, witness: Arc<dyn Witness>) -> Router {
    Router::new()
        .route("/state", get(state))
        .route("/container_metrics", get(container_metrics))
        .route("/work", post(perform))
        .route("/v2/lrps/{process_guid}/instances/{instance_guid}", put(update_lrp_instance))
        .route("/v1/lrps/{process_guid}/instances/{instance_guid}", put(update_lrp_instance))
        .route("/v1/lrps/{process_guid}/instances/{instance_guid}/stop", post(stop_lrp_instance))
        .route("/v1/tasks/{task_guid}/cancel", post(cancel_task))
        .route("/v1/logs/{log_guid}", get(logs))
        .route_layer(from_fn_with_state(witness, occurrence::requests))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(api)
}

/// For the administrator of the cell's machine.
pub fn admin_router(evacuation: Evacuation) -> Router {
    Router::new()
        .route("/ping", get(|| async { StatusCode::OK }))
        .route("/evacuate", post(evacuate))
        .with_state(evacuation)
}

/// An unhealthy cell tells its state too, with a status by which auctioneers leave it out.
async fn state(State(api): State<Arc<Api>>) -> Response {
    let status = if api.auction_cell.healthy() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(api.auction_cell.state())).into_response()
}

async fn container_metrics(State(api): State<Arc<Api>>) -> Response {
    Json(api.usage.collection(&*api.executor, &api.cell_id)).into_response()
}

async fn perform(State(api): State<Arc<Api>>, trace: TraceId, body: Bytes) -> Response {
    let work: Work = match serde_json::from_slice(&body) {
        Ok(work) => work,
        Err(error) => return refused(StatusCode::BAD_REQUEST, "failed-to-unmarshal", &trace, &error),
    };
    match api.auction_cell.perform(work, &trace) {
        Ok(failed) => Json(failed).into_response(),
        Err(error) => refused(StatusCode::INTERNAL_SERVER_ERROR, "failed-to-perform-work", &trace, &error),
    }
}

/// An LRP instance's container is named by its instance guid; the process guid is there for the reader.
async fn update_lrp_instance(
    State(api): State<Arc<Api>>,
    Path((_process_guid, instance_guid)): Path<(String, String)>,
    trace: TraceId,
    body: Bytes,
) -> Response {
    let update: LrpUpdate = match serde_json::from_slice(&body) {
        Ok(update) => update,
        Err(error) => return refused(StatusCode::BAD_REQUEST, "failed-to-unmarshal", &trace, &error),
    };
    let internal_routes =
        update.internal_routes.map(|routes| routes.into_iter().map(|route| route.hostname).collect());
    let request = UpdateRequest { guid: instance_guid, internal_routes, metric_tags: update.metric_tags };
    match api.executor.update(request).await {
        Ok(()) => StatusCode::ACCEPTED.into_response(),
        Err(error) => {
            refused(StatusCode::INTERNAL_SERVER_ERROR, "failed-to-update-container", &trace, &error)
        }
    }
}

async fn stop_lrp_instance(
    State(api): State<Arc<Api>>,
    Path((_process_guid, instance_guid)): Path<(String, String)>,
    trace: TraceId,
) -> Response {
    api.note(&instance_guid, &trace);
    match api.executor.stop(&instance_guid).await {
        Ok(()) => StatusCode::ACCEPTED.into_response(),
        Err(error) => refused(StatusCode::INTERNAL_SERVER_ERROR, "failed-to-stop-container", &trace, &error),
    }
}

/// Answered at once: to delete a container takes as long as its processes take to end.
async fn cancel_task(
    State(api): State<Arc<Api>>,
    Path(task_guid): Path<String>,
    trace: TraceId,
) -> StatusCode {
    api.note(&task_guid, &trace);
    let executor = api.executor.clone();
    tokio::spawn(async move {
        match executor.delete(&task_guid).await {
            Ok(()) | Err(executor::Error::ContainerNotFound) => {}
            Err(error) => {
                tracing::error!(task_guid, trace_id = trace.as_str(), %error, "failed-deleting-container");
            }
        }
    });
    StatusCode::ACCEPTED
}

async fn evacuate(State(evacuation): State<Evacuation>) -> Response {
    evacuation.begin();
    (StatusCode::ACCEPTED, Json(serde_json::json!({ "ping_path": "/ping" }))).into_response()
}

fn refused(
    status: StatusCode,
    message: &'static str,
    trace: &TraceId,
    error: &dyn std::fmt::Display,
) -> Response {
    tracing::error!(trace_id = trace.as_str(), %error, "{message}");
    (status, Json(serde_json::json!({ "error": error.to_string() }))).into_response()
}

#[derive(Deserialize)]
struct LogsQuery {
    lines: Option<usize>,
    #[serde(default)]
    follow: bool,
}

/// One JSON object a line: the newest lines, then, if asked to follow, each as it is said.
async fn logs(
    State(api): State<Arc<Api>>,
    Path(log_guid): Path<String>,
    Query(query): Query<LogsQuery>,
) -> Response {
    let lines = query.lines.unwrap_or(LOG_LINES_DEFAULT);
    let (recent, follow) = api.logs.recent_and_follow(&log_guid, lines);
    let recent = stream::iter(recent).map(|line| ndjson(&line));
    let body = if query.follow {
        Body::from_stream(recent.chain(following(follow)).map(fine))
    } else {
        Body::from_stream(recent.map(fine))
    };
    ([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response()
}

fn fine(line: Bytes) -> Result<Bytes, Infallible> {
    Ok(line)
}

fn following(follow: executor::logs::Follow) -> impl Stream<Item = Bytes> {
    stream::unfold(follow, |mut follow| async move {
        let line = match follow.next().await? {
            Followed::Line(line) => ndjson(&line),
            Followed::Missed(lines) => missed(lines),
        };
        Some((line, follow))
    })
}

fn ndjson(line: &LogLine) -> Bytes {
    let wire = rep_client::LogLine {
        timestamp: line.timestamp_ns,
        log_guid: line.guid.to_string(),
        instance_guid: line.instance_guid.to_string(),
        index: line.index,
        source_name: line.source.to_string(),
        stream: match line.stream {
            Out::Out => "out".into(),
            Out::Err => "err".into(),
        },
        message: line.text().into_owned(),
    };
    json_line(&wire)
}

/// A reader too slow for what is said is told how much it did not see.
fn missed(lines: u64) -> Bytes {
    json_line(&rep_client::LogLine {
        source_name: "CELL".into(),
        stream: "err".into(),
        message: format!("{lines} lines were missed"),
        ..Default::default()
    })
}

fn json_line(line: &rep_client::LogLine) -> Bytes {
    let mut json = serde_json::to_vec(line).unwrap_or_default();
    json.push(b'\n');
    json.into()
}
