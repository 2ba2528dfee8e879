//! The BBS API: protobuf over HTTP, one route a call, and event streams.
//!
//! A refusal is an answer like any other: status 200, the error inside. Only what is not a call at all has another
//! status: 404 for an unknown route, 405 for a wrong method, 413 for a body that is too large.

mod actual_lrps;
mod desired_lrps;
mod events;
mod tasks;
mod views;

use std::time::Instant;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, FromRequest, Request, State};
use axum::http::header;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use bbs_models::{Error, wire};
use prost::Message;
use tokio_util::sync::CancellationToken;

use crate::controllers::Controllers;

/// Bytes of one request.
pub const BODY_BYTES_MAX: usize = 16 * 1024 * 1024;
const PROTOBUF: &str = "application/x-protobuf";
const TRACE_HEADER: &str = "X-Vcap-Request-Id";

#[derive(Clone)]
pub struct Served {
    pub controllers: Controllers,
    /// Ends event streams, which never end by themselves.
    pub shutdown: CancellationToken,
}

pub fn router(served: Served) -> Router {
    Router::new()
        .route("/v1/ping", post(ping))
        .route("/v1/domains/list", post(domains))
        .route("/v1/domains/upsert", post(upsert_domain))
        .route("/v1/cells/list.r1", post(cells))
        .merge(actual_lrps::routes())
        .merge(desired_lrps::routes())
        .merge(tasks::routes())
        .merge(events::routes())
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(from_fn_with_state(served.clone(), measured))
        .with_state(served)
}

async fn measured(State(served): State<Served>, request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let answer = next.run(request).await;
    served.controllers.witness.answered(begun.elapsed());
    answer
}

/// One request, its body read.
struct Call {
    path: String,
    trace_id: String,
    body: Bytes,
}

impl<S: Send + Sync> FromRequest<S> for Call {
    type Rejection = Response;

    async fn from_request(request: Request, state: &S) -> Result<Call, Response> {
        let path = request.uri().path().to_string();
        let trace_id = request.headers().get(TRACE_HEADER).and_then(|value| value.to_str().ok());
        let trace_id = trace_id.unwrap_or_default().to_string();
        let body = Bytes::from_request(request, state).await.map_err(IntoResponse::into_response)?;
        Ok(Call { path, trace_id, body })
    }
}

impl Call {
    fn parse<Q, P>(&self, parse: fn(Q) -> Result<P, wire::Invalid>) -> Result<P, Error>
    where
        Q: Message + Default,
    {
        let request = wire::decode(&self.body).map_err(|_| Error::bad_request())?;
        parse(request).map_err(|invalid| Error::invalid_request(invalid.to_string()))
    }
}

/// Parses, acts, answers.
async fn reply<Q, P, R, F>(
    call: Call,
    parse: fn(Q) -> Result<P, wire::Invalid>,
    act: impl FnOnce(P, String) -> F,
) -> Response
where
    Q: Message + Default,
    R: wire::Response,
    F: Future<Output = Result<R, Error>>,
{
    let answer = match call.parse(parse) {
        Ok(parsed) => act(parsed, call.trace_id.clone()).await,
        Err(error) => Err(error),
    };
    respond(&answer.unwrap_or_else(|error| {
        refused(&call, &error);
        R::of_error(error.into())
    }))
}

/// As [`reply`], for calls that change something and have nothing to say.
async fn acknowledge<Q, P, F>(
    call: Call,
    parse: fn(Q) -> Result<P, wire::Invalid>,
    act: impl FnOnce(P, String) -> F,
) -> Response
where
    Q: Message + Default,
    F: Future<Output = Result<(), Error>>,
{
    reply(call, parse, |parsed, trace_id| {
        let acting = act(parsed, trace_id);
        async { acting.await.map(|()| wire::LifecycleResponse::default()) }
    })
    .await
}

fn refused(call: &Call, error: &Error) {
    tracing::info!(route = %call.path, trace_id = %call.trace_id, kind = %error.kind, %error, "refused");
}

fn respond<R: Message>(response: &R) -> Response {
    ([(header::CONTENT_TYPE, PROTOBUF)], response.encode_to_vec()).into_response()
}

async fn ping() -> Response {
    respond(&wire::PingResponse { available: true })
}

async fn domains(State(served): State<Served>) -> Response {
    respond(&wire::DomainsResponse { error: None, domains: served.controllers.fresh_domains() })
}

async fn upsert_domain(State(Served { controllers, .. }): State<Served>, call: Call) -> Response {
    acknowledge(call, wire::UpsertDomainRequest::parse, |(domain, ttl_s), trace_id| async move {
        controllers.upsert_domain(&trace_id, domain, ttl_s).await
    })
    .await
}

async fn cells(State(served): State<Served>) -> Response {
    let cells = served.controllers.cells.list().into_iter().map(Into::into).collect();
    respond(&wire::CellsResponse { error: None, cells })
}
