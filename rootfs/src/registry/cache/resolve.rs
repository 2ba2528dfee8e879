//! `POST /v1/resolve`: what an image is now, by digest, with all of it brought here.
//!
//! The answer is a stream of JSON lines: the progress of each layer, and a last line that is either the pinned image or
//! an error. The status is 200 in both cases, because it is sent before either is known.

use std::collections::HashSet;
use std::convert::Infallible;
use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State as AxumState;
use axum::http::{HeaderMap, StatusCode};
use futures_util::{StreamExt as _, TryStreamExt as _};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::answer::{Answer, Refusal, answer, with};
use super::download::{Download, Failure, State};
use super::pull_through::{behind, store};
use super::route::{Origin, encode_host, origin};
use super::{Cache, now_ms};
use crate::digest::Digest;
use crate::image::{ImageRef, Reference, Selector};
use crate::manifest::{Configuration, Descriptor, Document, ImageConfig, Manifest, Platform};
use crate::registry::{Access, Credentials, Error, Fetched};

const LAYERS_AT_ONCE_MAX: usize = 4;
/// Lines that a slow reader has not taken yet; progress waits for it.
const LINES_WAITING_MAX: usize = 64;
/// Progress is told in steps of this many bytes.
const STEP_BYTES: u64 = 512 * 1024;

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ResolveRequest {
    /// `docker://…`, as desired work names it.
    pub image: String,
    pub username: String,
    pub password: String,
}

/// One line of the answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ResolveLine {
    Progress { layer: Digest, done: u64, total: u64 },
    Error { error: String },
    Resolved(Resolved),
}

/// An image as every later instance is to run it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resolved {
    /// In this cache, by digest.
    pub image: String,
    pub digest: Digest,
    pub config: ImageConfig,
    /// Of the layers' blobs, in bytes.
    pub size: u64,
}

#[derive(Debug, thiserror::Error)]
enum Unresolved {
    #[error(transparent)]
    Image(#[from] crate::image::InvalidImage),
    #[error("'{0}' is not in a registry: only docker:// images can be resolved")]
    NotInARegistry(String),
    #[error("registry {0} has no name in this cache: use a host name instead of an address")]
    NoName(String),
    #[error(transparent)]
    Registry(#[from] Error),
    #[error("image {image} cannot be used: {source}")]
    Manifest { image: String, source: crate::manifest::Error },
    #[error(transparent)]
    Download(#[from] Failure),
    #[error("image {0} is not in this cache")]
    Unknown(String),
    #[error("cannot store image {0}")]
    Store(String),
}

pub async fn resolve(
    AxumState(cache): AxumState<Arc<Cache>>,
    headers: HeaderMap,
    request: Result<Json<ResolveRequest>, axum::extract::rejection::JsonRejection>,
) -> Answer {
    let request = match request {
        Ok(Json(request)) => request,
        Err(error) => return Refusal::new(StatusCode::BAD_REQUEST, "UNSUPPORTED", error).answer(),
    };
    let host = headers.get("host").and_then(|host| host.to_str().ok()).unwrap_or_default();
    let address = cache.advertised.clone().unwrap_or_else(|| host.to_string());
    let (sender, lines) = mpsc::channel(LINES_WAITING_MAX);
    // When the reader leaves, the channel closes and the work stops at its next line.
    tokio::spawn(async move {
        let left = sender.clone();
        let line = tokio::select! {
            answer = pin(&cache, &address, &request, &sender) => match answer {
                Ok(resolved) => ResolveLine::Resolved(resolved),
                Err(error) => ResolveLine::Error { error: error.to_string() },
            },
            () = left.closed() => return,
        };
        let _ = sender.send(line).await;
    });
    let lines = ReceiverStream::new(lines).map(|line| {
        let mut text = serde_json::to_string(&line).unwrap_or_default();
        text.push('\n');
        Ok::<_, Infallible>(text)
    });
    let headers = [("content-type", "application/x-ndjson".to_string())];
    with(answer(StatusCode::OK, Body::from_stream(lines)), &headers)
}

async fn pin(
    cache: &Arc<Cache>,
    address: &str,
    request: &ResolveRequest,
    lines: &mpsc::Sender<ResolveLine>,
) -> Result<Resolved, Unresolved> {
    let ImageRef::Registry(reference) = request.image.parse::<ImageRef>()? else {
        return Err(Unresolved::NotInARegistry(request.image.clone()));
    };
    let credentials = Credentials::given(&request.username, &request.password);
    let name = name_here(cache, address, &reference)?;
    let image = reference.to_string();
    let from = match behind(cache, &name, credentials.clone()) {
        Some(_) => From::Registry(access(cache, &name, &reference, credentials.clone())),
        None => From::Here,
    };
    let (fetched, manifest) = from.manifest(cache, &name, &image, &reference.selector).await?;
    if let (Selector::Tag(tag), None, From::Registry(_)) = (&reference.selector, &credentials, &from) {
        let value = super::catalog::Tag { digest: fetched.top.clone(), checked_ms: now_ms() };
        let stored = cache.catalog.set_tag(&name, tag, &value).await;
        stored.map_err(|_| Unresolved::Store(image.clone()))?;
    }
    // First, so that nothing of it is given up while the rest is on its way.
    for digest in [&fetched.top, &fetched.digest] {
        let pinned = cache.catalog.pin(&name, digest).await;
        pinned.map_err(|_| Unresolved::Store(image.clone()))?;
    }
    bring(cache, &from, &image, &manifest, lines).await?;
    let bytes = cache.blobs.read(&manifest.config.digest).await;
    let bytes = bytes.map_err(|_| Unresolved::Store(image.clone()))?;
    let config = Configuration::parse(&bytes, manifest.layers.len())
        .map_err(|source| Unresolved::Manifest { image: image.clone(), source })?;
    Ok(Resolved {
        image: format!("docker://{address}/{name}@{}", fetched.digest),
        digest: fetched.digest,
        config: config.run,
        size: manifest.layers.iter().map(|layer| layer.size).sum(),
    })
}

/// The repository's name in this cache. An image that names this cache already is not asked for over the network.
fn name_here(cache: &Cache, address: &str, reference: &Reference) -> Result<String, Unresolved> {
    let host = reference.host.as_deref().unwrap_or(cache.client.default_registry());
    if host == address {
        return Ok(reference.repository.clone());
    }
    let encoded = encode_host(host).ok_or_else(|| Unresolved::NoName(host.into()))?;
    // With the folder that the registry itself would add.
    let repository =
        crate::registry::full_repository(crate::registry::serving_host(host), &reference.repository);
    Ok(format!("{encoded}/{repository}"))
}

/// Errors are to name the image as the person named it, not as it is called here.
fn access(cache: &Cache, name: &str, reference: &Reference, credentials: Option<Credentials>) -> Arc<Access> {
    match origin(name) {
        Origin::Upstream { host, repository } => {
            let selector = reference.selector.clone();
            cache.client.access(&Reference { host: Some(host), repository, selector }, credentials)
        }
        Origin::Ours => cache.client.access(reference, credentials),
    }
}

enum From {
    Registry(Arc<Access>),
    /// Pushed to this cache.
    Here,
}

struct Pinned {
    /// Of the image for this platform.
    digest: Digest,
    /// Of what the tag stands for, which may be an index.
    top: Digest,
}

impl From {
    async fn manifest(
        &self,
        cache: &Cache,
        name: &str,
        image: &str,
        selector: &Selector,
    ) -> Result<(Pinned, Manifest), Unresolved> {
        let refused = |source| Unresolved::Manifest { image: image.into(), source };
        let first = self.fetch(cache, name, image, selector).await?;
        let top = first.digest.clone();
        let (digest, document) = match parse(&first).map_err(refused)? {
            Document::Index(index) => {
                let chosen = index.choose(&Platform::of_this_machine()).map_err(refused)?;
                let chosen = Selector::Digest(chosen.digest.clone());
                let second = self.fetch(cache, name, image, &chosen).await?;
                (second.digest.clone(), parse(&second).map_err(refused)?)
            }
            document => (top.clone(), document),
        };
        match document {
            Document::Manifest(manifest) => Ok((Pinned { digest, top }, manifest)),
            Document::Index(_) => {
                Err(refused(crate::manifest::Error::Invalid("an index in an index".into())))
            }
        }
    }

    /// A manifest that is here by digest is not asked for again: that is what makes a pinned image independent.
    async fn fetch(
        &self,
        cache: &Cache,
        name: &str,
        image: &str,
        selector: &Selector,
    ) -> Result<Fetched, Unresolved> {
        let digest = match (self, selector) {
            (_, Selector::Digest(digest)) => Some(digest.clone()),
            (From::Here, Selector::Tag(tag)) => cache.catalog.tag(name, tag).await.map(|tag| tag.digest),
            (From::Registry(_), Selector::Tag(_)) => None,
        };
        if let Some(digest) = digest
            && let Some(media_type) = cache.catalog.manifest(name, &digest).await
            && let Ok(bytes) = cache.blobs.read(&digest).await
        {
            return Ok(Fetched { media_type, digest, bytes: bytes.into() });
        }
        let From::Registry(access) = self else { return Err(Unresolved::Unknown(image.into())) };
        let fetched = access.manifest(selector).await?;
        store(cache, name, &fetched).await.map_err(|_| Unresolved::Store(image.into()))?;
        Ok(fetched)
    }
}

fn parse(fetched: &Fetched) -> Result<Document, crate::manifest::Error> {
    Document::parse(&fetched.media_type, &fetched.bytes)
}

/// Brings the configuration and all layers here, several at a time.
async fn bring(
    cache: &Arc<Cache>,
    from: &From,
    image: &str,
    manifest: &Manifest,
    lines: &mpsc::Sender<ResolveLine>,
) -> Result<(), Unresolved> {
    let mut seen = HashSet::new();
    let wanted = [&manifest.config].into_iter().chain(&manifest.layers);
    let wanted: Vec<&Descriptor> = wanted.filter(|blob| seen.insert(&blob.digest)).collect();
    let config = &manifest.config.digest;
    futures_util::stream::iter(wanted)
        .map(Ok)
        .try_for_each_concurrent(LAYERS_AT_ONCE_MAX, |blob| async move {
            let lines = (blob.digest != *config).then_some(lines);
            bring_one(cache, from, image, blob, lines).await
        })
        .await
}

async fn bring_one(
    cache: &Arc<Cache>,
    from: &From,
    image: &str,
    blob: &Descriptor,
    lines: Option<&mpsc::Sender<ResolveLine>>,
) -> Result<(), Unresolved> {
    let total = blob.size;
    let tell = |done| async move {
        if let Some(lines) = lines {
            let _ = lines.send(ResolveLine::Progress { layer: blob.digest.clone(), done, total }).await;
        }
    };
    if cache.blobs.used(&blob.digest).is_none() {
        let From::Registry(access) = from else { return Err(Unresolved::Unknown(image.into())) };
        cache.make_room(total).await.map_err(|error| Failure::Disk(Arc::new(error)))?;
        let mut download =
            cache.downloads.fetch(&cache.blobs, access.clone(), &blob.digest, blob.size).await?;
        let mut told = 0;
        while let Some(done) = next(&mut download, told).await? {
            told = done;
            tell(done).await;
        }
    }
    tell(total).await;
    Ok(())
}

/// How many bytes are here, once it is a step more than `told`; `None`: all.
async fn next(download: &mut Download, told: u64) -> Result<Option<u64>, Failure> {
    let moved =
        |state: &State| !matches!(state, State::Running { readable } if *readable < told + STEP_BYTES);
    match download.state.wait_for(moved).await {
        Ok(state) => match &*state {
            State::Running { readable } => Ok(Some(*readable)),
            State::Whole => Ok(None),
            State::Failed(failure) => Err(failure.clone()),
        },
        Err(_) => Err(Failure::Stopped),
    }
}
