//! A registry on loopback that serves one image under every name, or misbehaves as it is told.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use crate::images::{Image, digest};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It has no image at all.
    Empty,
    /// Every request is answered with this status.
    Status(u16),
    /// A bit of the layer is flipped on its way.
    CorruptLayer,
    /// The layer ends early.
    TruncatedLayer,
    /// The manifest is another than the one asked for by digest.
    OtherManifest,
}

/// Served by a thread of its own until dropped.
pub struct Registry {
    pub address: SocketAddr,
    _runtime: tokio::runtime::Runtime,
}

struct Served {
    image: Image,
    fault: Option<Fault>,
}

impl Registry {
    pub fn serving(image: Image, fault: Option<Fault>) -> Registry {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new()
            .route("/v2/", get(|| async {}))
            .route("/v2/{*path}", get(answer))
            .with_state(Arc::new(Served { image, fault }));
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            axum::serve(listener, router).await.unwrap();
        });
        Registry { address, _runtime: runtime }
    }

    /// A reference to its image.
    pub fn image(&self) -> String {
        format!("{}/test/image:1", self.address)
    }
}

async fn answer(State(served): State<Arc<Served>>, Path(path): Path<String>) -> Response {
    match served.fault {
        Some(Fault::Status(401)) => {
            let challenge = [(header::WWW_AUTHENTICATE, "Basic realm=\"test\"")];
            return (StatusCode::UNAUTHORIZED, challenge).into_response();
        }
        Some(Fault::Status(status)) => return StatusCode::from_u16(status).unwrap().into_response(),
        Some(Fault::Empty) => return StatusCode::NOT_FOUND.into_response(),
        _ => {}
    }
    let wanted = path.rsplit('/').next().unwrap_or_default();
    if path.contains("/manifests/") {
        return manifest(&served);
    }
    let image = &served.image;
    if wanted == digest(&image.config) {
        image.config.clone().into_response()
    } else if wanted == digest(&image.layer) {
        layer(&served).into_response()
    } else {
        StatusCode::NOT_FOUND.into_response()
    }
}

fn manifest(served: &Served) -> Response {
    let mut sent = served.image.manifest.clone();
    let named = digest(&sent);
    if served.fault == Some(Fault::OtherManifest) {
        sent.push(b'\n');
    }
    let headers = [
        (header::CONTENT_TYPE.as_str(), "application/vnd.oci.image.manifest.v1+json".to_owned()),
        ("docker-content-digest", named),
    ];
    (headers, sent).into_response()
}

fn layer(served: &Served) -> Vec<u8> {
    let mut layer = served.image.layer.clone();
    match served.fault {
        Some(Fault::CorruptLayer) => {
            let middle = layer.len() / 2;
            layer[middle] ^= 1;
        }
        Some(Fault::TruncatedLayer) => layer.truncate(layer.len() / 2),
        _ => {}
    }
    layer
}
