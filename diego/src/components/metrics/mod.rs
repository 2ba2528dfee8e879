//! The cell's own metrics: what happens is counted in a [`Tally`], passed on to the platform, and told to Prometheus at the
//! debug address (`/metrics`).

pub mod names;
pub mod process;
mod prometheus;
mod tally;

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use diego_base::serve::{self, Listen, Listener};
use executor::Executor;
use loggregator::Forwarder;
pub use tally::{Requests, Said, Tally};
use tokio_util::sync::CancellationToken;

use self::process::Process;
use self::prometheus::Page;
use super::forward::capacity;

/// Whoever reads `/metrics` is not kept waiting for a garden that does not answer.
const MEASURE_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Clone)]
pub struct Debug {
    pub executor: Executor,
    pub tally: Tally,
    pub forwarder: Option<Forwarder>,
}

impl Debug {
    /// Until `shutdown`.
    pub async fn serve(self, address: SocketAddr, shutdown: CancellationToken) -> Result<(), serve::Error> {
        let listener = Listener::bind(Listen::Tcp(address)).await?;
        tokio::spawn(serve::serve(listener, self.router(), None, shutdown));
        Ok(())
    }

    fn router(self) -> Router {
        Router::new().route("/metrics", get(metrics)).with_state(self)
    }
}

async fn metrics(State(debug): State<Debug>) -> impl IntoResponse {
    let executor = &debug.executor;
    let used = tokio::time::timeout(MEASURE_TIMEOUT, executor.metrics()).await;
    let used = used.ok().and_then(Result::ok);
    let resources = (executor.total_resources(), executor.remaining_resources());
    let page = Page {
        kept: &debug.tally.kept(),
        capacity: &capacity::report(resources, &executor.list(), used.as_ref()),
        process: Process::now(),
        forwarded: debug.forwarder.as_ref().map(Forwarder::counts),
    };
    ([(CONTENT_TYPE, prometheus::CONTENT_TYPE)], page.text())
}
