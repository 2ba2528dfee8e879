//! The auctioneer's API: what is valid of a request is put into the next batch, and 202 says no more than that.

use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use brain_client::{InvalidRequest, LRPS_PATH, LrpStartRequest, TASKS_PATH, TaskStartRequest};
use bytes::Bytes;
use rep_client::TRACE_HEADER;
use serde::de::DeserializeOwned;

use super::batch::{Auction, Batch};

/// About a hundred thousand instances.
const BODY_BYTES_MAX: usize = 64 * 1024 * 1024;

pub fn router(batch: Arc<Batch>) -> Router {
    Router::new()
        .route(TASKS_PATH, post(tasks))
        .route(LRPS_PATH, post(lrps))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(batch)
}

async fn lrps(State(batch): State<Arc<Batch>>, headers: HeaderMap, body: Bytes) -> Response {
    let starts: Vec<LrpStartRequest> = match parse(&body) {
        Ok(starts) => starts,
        Err(refused) => return refused,
    };
    let valid = starts.iter().filter(|start| is_valid(&start.process_guid, start.validate()));
    let auctions = valid.flat_map(LrpStartRequest::lrps).map(|work| Auction { work, refusals: 0 }).collect();
    answer(batch.add(auctions, Vec::new(), trace_id(&headers)))
}

async fn tasks(State(batch): State<Arc<Batch>>, headers: HeaderMap, body: Bytes) -> Response {
    let starts: Vec<TaskStartRequest> = match parse(&body) {
        Ok(starts) => starts,
        Err(refused) => return refused,
    };
    let valid = starts.into_iter().filter(|start| is_valid(&start.0.task_guid, start.validate()));
    let auctions = valid.map(|start| Auction { work: start.0, refusals: 0 }).collect();
    answer(batch.add(Vec::new(), auctions, trace_id(&headers)))
}

/// `null` is an empty list, as Go clients encode one.
fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<Vec<T>, Response> {
    serde_json::from_slice::<Option<Vec<T>>>(body).map(Option::unwrap_or_default).map_err(|error| {
        tracing::error!(%error, "malformed-json");
        error_response(StatusCode::BAD_REQUEST, &error)
    })
}

/// The invalid are left out; the others are not held up by them.
fn is_valid(guid: &str, validity: Result<(), InvalidRequest>) -> bool {
    match validity {
        Ok(()) => true,
        Err(error) => {
            tracing::error!(guid, %error, "start-validate-failed");
            false
        }
    }
}

fn answer(added: Result<(), super::batch::Full>) -> Response {
    match added {
        Ok(()) => (StatusCode::ACCEPTED, Json(serde_json::json!({}))).into_response(),
        Err(full) => {
            tracing::error!(%full, "turned auctions away");
            error_response(StatusCode::SERVICE_UNAVAILABLE, &full)
        }
    }
}

fn error_response(status: StatusCode, error: &dyn std::fmt::Display) -> Response {
    (status, Json(serde_json::json!({ "error": error.to_string() }))).into_response()
}

fn trace_id(headers: &HeaderMap) -> &str {
    headers.get(TRACE_HEADER).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;
    use axum::http::Request;
    use tower::ServiceExt;

    async fn post(batch: &Arc<Batch>, path: &str, body: &'static str) -> u16 {
        let request = Request::post(path).body(Body::from(body)).unwrap();
        router(batch.clone()).oneshot(request).await.unwrap().status().as_u16()
    }

    #[tokio::test]
    async fn what_is_valid_is_accepted_and_the_rest_left_out() {
        let batch = Arc::new(Batch::default());
        let body = r#"[{"process_guid":"pg","domain":"d","indices":[0,1],"RootFs":"docker:///a","MemoryMB":1},{"process_guid":"","indices":[2]}]"#;
        assert_eq!(post(&batch, "/v1/lrps", body).await, 202);
        assert_eq!(
            post(&batch, "/v1/tasks", r#"[{"TaskGuid":"tg","Domain":"d","RootFs":"docker:///a"},{}]"#).await,
            202
        );
        assert_eq!(post(&batch, "/v1/tasks", "null").await, 202);
        let drained = batch.drain();
        assert_eq!((drained.lrps.len(), drained.tasks.len()), (2, 1));
    }

    #[tokio::test]
    async fn malformed_json_is_refused() {
        let batch = Arc::new(Batch::default());
        assert_eq!(post(&batch, "/v1/lrps", "{").await, 400);
        assert_eq!(post(&batch, "/v1/tasks", r#"{"TaskGuid":"tg"}"#).await, 400);
        assert!(batch.is_empty());
    }
}
