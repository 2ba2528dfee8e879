//! The store as its operators see it, over HTTP on a socket in the store's directory, which root alone can enter.
//!
//! ```text
//! GET    /v1/images            every image that is here: [`ImageRow`]s
//! POST   /v1/images            pulls one: [`PullRequest`]; answers [`PullLine`]s, one JSON value a line
//! DELETE /v1/images/DIGEST     forgets one
//! POST   /v1/collect           takes away what is unused: [`CollectRequest`]; answers [`Freed`]
//! GET    /v1/disk              the account of the disk: [`Disk`]
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::body::Body;
use axum::extract::{Json, Path as UrlPath, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use bytes::Bytes;
use diego_base::serve::{self, Listen, Listener};
use rootfs_ledger::Report;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use crate::digest::Digest;
use crate::image::ImageRef;
use crate::pull::Progress;
use crate::registry::Credentials;
use crate::store::{Error, Store, stored};

/// In the store's directory.
const SOCKET: &str = "admin.sock";
/// Lines of a pull that wait for a slow reader; further ones are left out but for the last.
const LINES_WAITING_MAX: usize = 256;

pub fn socket(store: &Path) -> PathBuf {
    store.join(SOCKET)
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRow {
    pub digest: String,
    /// As it was asked for last.
    pub name: String,
    pub layers: usize,
    pub bytes: u64,
    /// Something needs one of its layers.
    pub in_use: bool,
    /// Seconds.
    pub unused_for: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PullRequest {
    pub image: String,
    pub username: String,
    pub password: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum PullLine {
    Progress { layer: String, done: u64, total: u64 },
    Failed { error: String },
    Pulled { digest: String, bytes: u64 },
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CollectRequest {
    /// Of all tenants of the disk; `None`: all that is unused.
    pub bytes: Option<u64>,
    /// Seconds.
    pub unused_for: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Freed {
    pub things: u64,
    pub bytes: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    pub total_bytes: u64,
    pub free_bytes: u64,
    /// What may still be written.
    pub room_bytes: u64,
    pub low_mark_bytes: u64,
    pub high_mark_bytes: u64,
    pub brim_bytes: u64,
    pub claimed_bytes: u64,
    /// What other processes on this machine are promised of the disk, or about to write.
    pub elsewhere_bytes: u64,
    /// What roots may take together, as advertised.
    pub roots_capacity_bytes: u64,
    pub tenants: BTreeMap<String, Tenancy>,
    /// What is taken by none of them.
    pub others_bytes: u64,
    pub collections: u64,
    pub collected_things: u64,
    pub collected_bytes: u64,
    pub refused_claims: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tenancy {
    pub bytes: u64,
    pub evictable_bytes: u64,
    pub promised_bytes: u64,
}

impl Disk {
    fn new(report: Report, roots_capacity_bytes: u64) -> Disk {
        let Report { space, marks, tenants, claimed_bytes, elsewhere_bytes, room_bytes, collected } = report;
        let ours: u64 = tenants.iter().map(|(_, usage, _)| usage.bytes).sum();
        let mut by_name: BTreeMap<String, Tenancy> = BTreeMap::new();
        for (name, usage, promised) in tenants {
            let tenancy = by_name.entry(name.into()).or_default();
            tenancy.bytes += usage.bytes;
            tenancy.evictable_bytes += usage.evictable_bytes;
            tenancy.promised_bytes += promised;
        }
        Disk {
            total_bytes: space.total,
            free_bytes: space.free,
            room_bytes,
            low_mark_bytes: marks.low,
            high_mark_bytes: marks.high,
            brim_bytes: marks.brim,
            claimed_bytes,
            elsewhere_bytes,
            roots_capacity_bytes,
            tenants: by_name,
            others_bytes: space.taken().saturating_sub(ours),
            collections: collected.times,
            collected_things: collected.things,
            collected_bytes: collected.bytes,
            refused_claims: collected.refused,
        }
    }
}

impl Store {
    /// Every image that is here whole, the longest unused last. Blocking.
    pub fn images(&self) -> Result<Vec<ImageRow>, Error> {
        let inner = &self.inner;
        let failed = || crate::store::disk("read the images in", &inner.collector.images);
        let used: BTreeMap<Digest, SystemTime> =
            inner.layers.by_last_use().map_err(failed())?.into_iter().map(|(at, l)| (l.id, at)).collect();
        let (pinned, now) = (inner.layers.pinned(), SystemTime::now());
        let mut rows: BTreeMap<String, ImageRow> = BTreeMap::new();
        for (_, record) in inner.collector.records().map_err(failed())? {
            let ids = stored(&record.layers);
            let Some(last) = ids
                .iter()
                .map(|id| used.get(id))
                .collect::<Option<Vec<_>>>()
                .map(|all| all.into_iter().max())
            else {
                continue;
            };
            let unused = last.and_then(|at| now.duration_since(*at).ok()).unwrap_or_default();
            let digest = record.digest.to_string();
            rows.insert(
                digest.clone(),
                ImageRow {
                    digest,
                    name: record.name,
                    layers: record.layers.len(),
                    bytes: record.layers.iter().map(|layer| layer.bytes).sum(),
                    in_use: ids.iter().any(|id| pinned.contains(id)),
                    unused_for: unused.as_secs(),
                },
            );
        }
        let mut rows: Vec<ImageRow> = rows.into_values().collect();
        rows.sort_by(|a, b| (a.unused_for, &a.name).cmp(&(b.unused_for, &b.name)));
        Ok(rows)
    }

    /// Blocking.
    pub fn disk(&self) -> Result<Disk, Error> {
        Ok(Disk::new(self.ledger().report()?, self.capacity()?))
    }

    /// Serves operators until `shutdown`; the store goes on without it where the socket cannot be had.
    pub async fn serve_admin(self, shutdown: CancellationToken) {
        let path = socket(&self.inner.directory);
        match Listener::bind(Listen::Unix(path)).await {
            Ok(listener) => serve::serve(listener, router(self), None, shutdown).await,
            Err(error) => tracing::warn!(%error, "operators cannot ask for images"),
        }
    }
}

fn router(store: Store) -> Router {
    Router::new()
        .route("/v1/images", get(images).post(pull))
        .route("/v1/images/{digest}", delete(remove))
        .route("/v1/collect", post(collect))
        .route("/v1/disk", get(disk))
        .with_state(store)
}

/// An error as a client reads it.
#[derive(Serialize)]
struct Refused {
    error: String,
}

fn refused(status: StatusCode, error: impl ToString) -> Response {
    (status, Json(Refused { error: error.to_string() })).into_response()
}

async fn answer<T: Serialize + Send + 'static>(
    act: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Response {
    match tokio::task::spawn_blocking(act).await {
        Ok(Ok(value)) => Json(value).into_response(),
        Ok(Err(error)) => refused(StatusCode::INTERNAL_SERVER_ERROR, error),
        Err(error) => refused(StatusCode::INTERNAL_SERVER_ERROR, error),
    }
}

async fn images(State(store): State<Store>) -> Response {
    answer(move || store.images()).await
}

async fn disk(State(store): State<Store>) -> Response {
    answer(move || store.disk()).await
}

/// Of the whole disk, not of the store alone: who asks wants the room.
async fn collect(State(store): State<Store>, Json(request): Json<CollectRequest>) -> Response {
    answer(move || {
        let unused_for = Duration::from_secs(request.unused_for);
        let evicted = store.ledger().collect(request.bytes.unwrap_or(u64::MAX), unused_for);
        Ok(Freed { things: evicted.things, bytes: evicted.bytes })
    })
    .await
}

async fn remove(State(store): State<Store>, UrlPath(digest): UrlPath<String>) -> Response {
    let Ok(digest) = digest.parse::<Digest>() else {
        return refused(StatusCode::BAD_REQUEST, format!("'{digest}' is no digest"));
    };
    let known = digest.clone();
    match tokio::task::spawn_blocking(move || store.remove_image(&digest)).await {
        Ok(Ok(true)) => StatusCode::NO_CONTENT.into_response(),
        Ok(Ok(false)) => refused(StatusCode::NOT_FOUND, format!("there is no image {known}")),
        Ok(Err(error)) => refused(StatusCode::INTERNAL_SERVER_ERROR, error),
        Err(error) => refused(StatusCode::INTERNAL_SERVER_ERROR, error),
    }
}

async fn pull(State(store): State<Store>, Json(request): Json<PullRequest>) -> Response {
    let image: ImageRef = match request.image.parse() {
        Ok(image) => image,
        Err(error) => return refused(StatusCode::BAD_REQUEST, error),
    };
    let (lines, received) = mpsc::channel(LINES_WAITING_MAX);
    tokio::spawn(async move {
        let report = |progress| {
            if let Progress::Layer { digest, done, total } = progress {
                // The next one says more.
                let _ = lines.try_send(PullLine::Progress { layer: digest.to_string(), done, total });
            }
        };
        let credentials = Credentials::given(&request.username, &request.password);
        let pulling = store.pull(&image, credentials, &report);
        let pulled = tokio::select! {
            pulled = pulling => pulled,
            // Nobody waits for it any more.
            () = lines.closed() => return,
        };
        let last = match pulled {
            Ok(image) => PullLine::Pulled { digest: image.digest.to_string(), bytes: image.bytes() },
            Err(error) => PullLine::Failed { error: error.to_string() },
        };
        let _ = lines.send(last).await;
    });
    let lines = ReceiverStream::new(received).map(|line| {
        let mut bytes = serde_json::to_vec(&line)?;
        bytes.push(b'\n');
        Ok::<_, serde_json::Error>(Bytes::from(bytes))
    });
    Body::from_stream(lines).into_response()
}
