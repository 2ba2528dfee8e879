//! A small HTTP router for one machine: looks a request's host name up in the routing table and hands the request to
//! one of the instances, in turn. An instance that does not take the connection is passed over. Web sockets pass.
//!
//! It is no replacement for a cluster's router: no TLS for its own clients, no sticky sessions, no access log.

mod backends;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use diego_base::serve::{self, Listen, Listener};
use hyper_util::rt::TokioIo;
use tokio_util::sync::CancellationToken;

use self::backends::Connection;
pub use self::backends::{Backends, CannotTrust};
use crate::routes::table::Backend;
use crate::routes::watch::Routing;

const ANSWER_TIME: Duration = Duration::from_secs(900);

#[derive(Debug, thiserror::Error)]
#[error("cannot start the router: {0}")]
pub struct Error(#[from] serve::Error);

pub async fn run(
    listen: Listen,
    routing: Routing,
    instances: Backends,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let listener = Listener::bind(listen).await?;
    let state = Arc::new(Turns { routing, instances, next: AtomicUsize::new(0) });
    tracing::info!("started");
    serve::serve(listener, Router::new().fallback(route).with_state(state), None, shutdown).await;
    Ok(())
}

struct Turns {
    routing: Routing,
    instances: Backends,
    next: AtomicUsize,
}

async fn route(State(turns): State<Arc<Turns>>, request: Request) -> Result<Response, Infallible> {
    let host = host(&request);
    let backends = turns.routing.backends(&host);
    if backends.is_empty() {
        let text = format!("404 Not Found: Requested route ('{host}') does not exist.\n");
        let unknown = [("x-cf-routererror", "unknown_route")];
        return Ok((StatusCode::NOT_FOUND, unknown, text).into_response());
    }
    let first = turns.next.fetch_add(1, Ordering::Relaxed);
    for turn in 0..backends.len() {
        let backend = &backends[(first + turn) % backends.len()];
        match turns.instances.connect(backend).await {
            Ok(stream) => return Ok(forward(stream, backend, &host, request).await),
            Err(error) => tracing::info!(%host, index = backend.index, %error, "passed over an instance"),
        }
    }
    Ok(failed("endpoint_failure", format!("no instance of '{host}' takes connections")))
}

fn host(request: &Request) -> String {
    let named = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    named.or(request.uri().host()).unwrap_or_default().to_owned()
}

fn failed(code: &'static str, reason: String) -> Response {
    let code = [("x-cf-routererror", code)];
    (StatusCode::BAD_GATEWAY, code, format!("502 Bad Gateway: {reason}\n")).into_response()
}

async fn forward(stream: Connection, backend: &Backend, host: &str, mut request: Request) -> Response {
    let (mut sender, connection) = match hyper::client::conn::http1::handshake(TokioIo::new(stream)).await {
        Ok(parts) => parts,
        Err(error) => return failed("endpoint_failure", error.to_string()),
    };
    tokio::spawn(connection.with_upgrades());
    let client_side = hyper::upgrade::on(&mut request);
    prepare(&mut request, backend, host);
    let answered = tokio::time::timeout(ANSWER_TIME, sender.send_request(request)).await;
    let mut response = match answered {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => return failed("endpoint_failure", format!("'{host}' broke off: {error}")),
        Err(_) => return failed("endpoint_failure", format!("'{host}' did not answer")),
    };
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        tokio::spawn(join(client_side, hyper::upgrade::on(&mut response)));
    }
    response.map(Body::new)
}

/// What an instance may want to know, by the names a cluster's router gives it.
fn prepare(request: &mut Request, backend: &Backend, host: &str) {
    let target = request.uri().path_and_query().map_or("/", |target| target.as_str()).to_owned();
    *request.uri_mut() = target.parse::<Uri>().unwrap_or_default();
    *request.version_mut() = axum::http::Version::HTTP_11;
    let headers = request.headers_mut();
    for (name, value) in [
        ("host", host),
        ("x-forwarded-proto", "http"),
        ("x-cf-instanceid", &backend.instance_guid),
        ("x-cf-instanceindex", &backend.index.to_string()),
    ] {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    }
}

/// Two ends that agreed to leave HTTP: bytes go both ways until one of them ends.
async fn join(client: hyper::upgrade::OnUpgrade, instance: hyper::upgrade::OnUpgrade) {
    if let (Ok(client), Ok(instance)) = (client.await, instance.await) {
        let _ = tokio::io::copy_bidirectional(&mut TokioIo::new(client), &mut TokioIo::new(instance)).await;
    }
}
