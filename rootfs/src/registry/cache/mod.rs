//! The private registry cache: a registry inside the cell's network that staging fills and instances read.
//!
//! It speaks the OCI distribution API. Repositories of other registries are part of its names (see [`route`]) and are
//! pulled through: blobs while they are being stored, manifests by digest from here, tags from their registry, or as
//! they last were when that is gone. `POST /v1/resolve` pins an image to its digest and brings all of it here, so that
//! every later instance runs exactly that, whatever becomes of the registry. Credentials are used and forgotten; what
//! they let in is later known by its digest only. Filling the cache is for [`Writers`], reading from it for everybody.
//!
//! Old images are given up when a new one needs the room, and when whoever keeps the account of the disk says so: see
//! [`evict`].

mod answer;
mod catalog;
mod download;
mod evict;
mod pull_through;
mod resolve;
mod route;
mod upload;
mod writers;

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use axum::body::Body;
use axum::extract::{Path, Query as UrlQuery, Request, State};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::middleware::Next;
use axum::routing::{any, get, post};
use axum::{Extension, Router};
use diego_base::serve::{Listen, Listener, Peer};
use diego_base::tls::ServerTls;
use rootfs_ledger::Ledger;
use serde::Deserialize;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use answer::{Answer, Refusal, answer};
use catalog::Catalog;
use download::Downloads;
use route::Route;
use upload::Uploads;
use writers::{Gate, TOKEN_LIFE, TOKEN_PATH, Verdict};

use super::{Client, Policy};
use crate::blobs::Blobs;

pub use evict::{CacheUsage, Evict, Evicted};
pub use resolve::{ResolveLine, ResolveRequest, Resolved};
pub use writers::{InvalidAccounts, Network, Writers};

#[derive(Debug)]
pub struct Config {
    pub listen: Listen,
    /// `None`: in plain text.
    pub tls: Option<ServerTls>,
    pub directory: PathBuf,
    /// Who may push, delete, and have images pinned; without more it is who is on this machine.
    pub writers: Writers,
    /// How other registries are reached.
    pub upstream: Policy,
    /// `host:port` under which others reach this cache, for the images it resolves; `None`: as they asked.
    pub advertised: Option<String>,
    /// How long a tag is believed without asking its registry again.
    pub tag_age_max: Duration,
    /// A resolved image that nobody asked for in this time may be given up where the disk needs it.
    pub keep_pinned: Duration,
    /// The account of the disk that the cache shares with others; `None`: its own.
    pub ledger: Option<Ledger>,
}

impl Config {
    pub fn new(listen: Listen, directory: PathBuf) -> Config {
        Config {
            listen,
            tls: None,
            directory,
            writers: Writers::default(),
            upstream: Policy::default(),
            advertised: None,
            tag_age_max: Duration::from_secs(30),
            keep_pinned: Duration::from_secs(7 * 24 * 3600),
            ledger: None,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Listen(#[from] diego_base::serve::Error),
    #[error("cannot use {} for the registry cache: {source}", path.display())]
    Directory { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Client(#[from] super::Error),
    #[error(transparent)]
    Disk(#[from] rootfs_ledger::Error),
}

/// Serves the cache until `shutdown`.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<(), Error> {
    let cache = Cache::open(&config).await?;
    serve(config.listen, cache, shutdown).await
}

/// Serves a cache that its owner keeps a hand on, to evict from it.
pub async fn serve(listen: Listen, cache: Arc<Cache>, shutdown: CancellationToken) -> Result<(), Error> {
    let listener = Listener::bind(listen).await?;
    if let Some(address) = listener.tcp_address() {
        let writers = cache.gate.writers.to_string();
        tracing::info!(%address, writers, "registry-cache.started");
    }
    let tls = cache.tls.clone();
    diego_base::serve::serve(listener, router(cache), tls, shutdown).await;
    Ok(())
}

/// The cache's state, for those who serve its [`router`] beside others.
pub struct Cache {
    blobs: Arc<Blobs>,
    catalog: Catalog,
    downloads: Arc<Downloads>,
    uploads: Uploads,
    client: Client,
    tls: Option<ServerTls>,
    gate: Gate,
    advertised: Option<String>,
    tag_age_max: Duration,
    keep_pinned: Duration,
    ledger: Ledger,
}

impl Cache {
    /// Opens the cache in its directory; its address is for who serves it.
    pub async fn open(config: &Config) -> Result<Arc<Cache>, Error> {
        let directory = config.directory.clone();
        let failed = |source| Error::Directory { path: directory.clone(), source };
        // Emptying what a killed process left may take long.
        let path = directory.clone();
        let opening = tokio::task::spawn_blocking(move || Ok((Blobs::open(&path)?, Catalog::open(&path)?)));
        let opened: std::io::Result<(Blobs, Catalog)> =
            opening.await.unwrap_or_else(|e| Err(std::io::Error::other(e)));
        let (blobs, catalog) = opened.map_err(failed)?;
        let ledger = crate::room::ledger(config.ledger.as_ref(), &config.directory)?;
        let cache = Arc::new(Cache {
            blobs: Arc::new(blobs),
            catalog,
            downloads: Arc::default(),
            uploads: Uploads::default(),
            client: Client::new(config.upstream.clone())?,
            tls: config.tls.clone(),
            gate: Gate::new(config.writers.clone()),
            advertised: config.advertised.clone(),
            tag_age_max: config.tag_age_max,
            keep_pinned: config.keep_pinned,
            ledger,
        });
        cache.ledger.register(&cache);
        Ok(cache)
    }
}

pub fn router(cache: Arc<Cache>) -> Router {
    Router::new()
        .route("/v1/resolve", post(resolve::resolve))
        .route("/v2/{*path}", any(distribution))
        .layer(axum::middleware::from_fn_with_state(cache.clone(), only_writers_write))
        .route("/v2", any(ping))
        .route("/v2/", any(ping))
        .route(TOKEN_PATH, get(token))
        .with_state(cache)
}

/// What the API's requests may have in their query.
#[derive(Debug, Default, Deserialize)]
struct Query {
    digest: Option<String>,
    mount: Option<String>,
    /// The registry a mirror's client means.
    ns: Option<String>,
}

type From = Option<Extension<Peer>>;

/// Everything but reading fills the cache, or empties it.
async fn only_writers_write(
    State(cache): State<Arc<Cache>>,
    peer: From,
    request: Request,
    next: Next,
) -> Answer {
    let (peer, headers, now) = (address(peer), request.headers(), Instant::now());
    if matches!(*request.method(), Method::GET | Method::HEAD) {
        return match cache.gate.lets_read(peer, headers, now) {
            true => next.run(request).await,
            false => cache.ask_for_token(headers).answer(),
        };
    }
    match cache.gate.judge(peer, headers, now) {
        Verdict::May => next.run(request).await,
        Verdict::MayWithAccount => cache.ask_for_token(headers).answer(),
        Verdict::Never => {
            let writers = &cache.gate.writers;
            tracing::info!(?peer, method = %request.method(), "registry-cache.write-refused");
            let message = format!("only {writers} may push here, delete, or have images pinned");
            Refusal::new(StatusCode::FORBIDDEN, "DENIED", message).answer()
        }
    }
}

/// Where nobody says from where a request comes, it comes from nowhere that was named.
fn address(peer: From) -> Option<IpAddr> {
    peer.map_or(Some(IpAddr::V4(Ipv4Addr::UNSPECIFIED)), |Extension(Peer(address))| address)
}

impl Cache {
    fn ask_for_token(&self, headers: &HeaderMap) -> Refusal {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        // Somebody before us may have ended the client's TLS.
        let https = self.tls.is_some() || text("x-forwarded-proto") == Some("https");
        let scheme = if https { "https" } else { "http" };
        let host = text("host").unwrap_or_default();
        let message = format!("only {} may push here, delete, or have images pinned", self.gate.writers);
        Refusal::challenge(
            message,
            format!("Bearer realm=\"{scheme}://{host}{TOKEN_PATH}\",service=\"{host}\""),
        )
    }
}

/// `GET /v2/`: clients show what they have to who asks for it here.
async fn ping(State(cache): State<Arc<Cache>>, peer: From, headers: HeaderMap) -> Answer {
    match cache.gate.welcomes(address(peer), &headers, Instant::now()) {
        true => json_answer(&json!({})),
        false => cache.ask_for_token(&headers).answer(),
    }
}

/// `GET /v1/token`.
async fn token(
    State(cache): State<Arc<Cache>>,
    UrlQuery(query): UrlQuery<Vec<(String, String)>>,
    headers: HeaderMap,
) -> Answer {
    // Some clients give many scopes in one, with spaces between them.
    let scopes = query.iter().filter(|(name, _)| name == "scope").flat_map(|(_, scope)| scope.split(' '));
    match cache.gate.token(&headers, &scopes.collect::<Vec<_>>(), Instant::now()) {
        // Both names: clients look for one or the other.
        Some(token) => {
            let expires_in = TOKEN_LIFE.as_secs();
            json_answer(&json!({"token": token, "access_token": token, "expires_in": expires_in}))
        }
        None => {
            let message = format!("only {} may push here or delete", cache.gate.writers);
            Refusal::new(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", message).answer()
        }
    }
}

async fn distribution(
    State(cache): State<Arc<Cache>>,
    Path(path): Path<String>,
    UrlQuery(query): UrlQuery<Query>,
    method: Method,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    match dispatch(&cache, &path, &query, &method, &headers, body).await {
        Ok(answer) => answer,
        Err(refusal) => refusal.answer(),
    }
}

async fn dispatch(
    cache: &Arc<Cache>,
    path: &str,
    query: &Query,
    method: &Method,
    headers: &HeaderMap,
    body: Body,
) -> Result<Answer, Refusal> {
    let route = Route::parse(path)?.within(query.ns.as_deref());
    let reads = matches!(*method, Method::GET | Method::HEAD);
    let credentials = cache.gate.credentials_for_others(headers);
    match route {
        Route::Ping => Ok(json_answer(&json!({}))),
        Route::Tags { name } if reads => Ok(tags(cache, &name).await),
        Route::Manifest { name, selector } if reads => {
            pull_through::manifest(cache, method, &name, &selector, credentials).await
        }
        Route::Manifest { name, selector } if *method == Method::PUT => {
            let media_type = headers.get("content-type").and_then(|value| value.to_str().ok());
            upload::manifest(cache, &name, &selector, media_type.unwrap_or_default(), body).await
        }
        Route::Manifest { name, selector } if *method == Method::DELETE => {
            upload::delete(cache, &name, &selector).await
        }
        Route::Blob { name, digest } if reads => {
            pull_through::blob(cache, method, &name, &digest, headers, credentials).await
        }
        Route::NewUpload { name } if *method == Method::POST => {
            upload::begin(cache, &name, query, body).await
        }
        Route::Upload { name, id } => upload::go_on(cache, method, &name, &id, query, headers, body).await,
        _ => Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", format!("no {method} here"))),
    }
}

async fn tags(cache: &Cache, name: &str) -> Answer {
    json_answer(&json!({"name": name, "tags": cache.catalog.tags(name).await}))
}

fn json_answer(value: &serde_json::Value) -> Answer {
    let body = answer(StatusCode::OK, Body::from(value.to_string()));
    answer::with(body, &[("content-type", "application/json".into())])
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
