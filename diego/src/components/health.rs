//! The answer to whoever asks whether this process lives: yes, on any path. It says nothing of what the process does.

use std::net::SocketAddr;

use axum::Router;
use axum::http::StatusCode;
use diego_base::serve::{Error, Listen, Listener, serve};
use tokio_util::sync::CancellationToken;

pub async fn run(address: SocketAddr, shutdown: CancellationToken) -> Result<(), Error> {
    let listener = Listener::bind(Listen::Tcp(address)).await?;
    serve(listener, Router::new().fallback(async || StatusCode::OK), None, shutdown).await;
    Ok(())
}
