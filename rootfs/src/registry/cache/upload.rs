//! Pushing into the cache: uploads of blobs in any number of pieces, and manifests that name them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::{HeaderMap, Method, StatusCode};
use futures_util::StreamExt as _;

use super::answer::{Answer, CONTENT_DIGEST, Refusal, answer, with};
use super::catalog::Tag;
use super::route::{Origin, origin};
use super::{Cache, now_ms};
use crate::blobs::{Blobs, Incoming};
use crate::digest::Digest;
use crate::image::Selector;
use crate::manifest::{Document, MANIFEST_BYTES_MAX};

/// Uploads begun and not finished.
const UPLOADS_MAX: usize = 256;
/// An upload that nobody touched for this long makes room for others.
const UPLOAD_IDLE_MAX: Duration = Duration::from_secs(3600);
/// Of one blob.
const UPLOAD_BYTES_MAX: u64 = 64 * 1024 * 1024 * 1024;

/// Room for so much is made at a time.
const UNCHECKED_BYTES: usize = 8 << 20;

type Shared = Arc<tokio::sync::Mutex<Incoming>>;

#[derive(Debug, Default)]
pub struct Uploads {
    open: Mutex<HashMap<String, (Instant, Shared)>>,
}

impl Uploads {
    fn open(&self) -> std::sync::MutexGuard<'_, HashMap<String, (Instant, Shared)>> {
        self.open.lock().unwrap_or_else(|e| e.into_inner())
    }

    async fn begin(&self, blobs: &Blobs) -> Result<String, Refusal> {
        let incoming = blobs.begin().await.map_err(|error| Refusal::disk(&error))?;
        let id = format!("{:032x}", rand::random::<u128>());
        let mut open = self.open();
        open.retain(|_, (touched, _)| touched.elapsed() < UPLOAD_IDLE_MAX);
        if open.len() >= UPLOADS_MAX {
            let message = format!("more than {UPLOADS_MAX} uploads are open");
            return Err(Refusal::new(StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS", message));
        }
        open.insert(id.clone(), (Instant::now(), Arc::new(tokio::sync::Mutex::new(incoming))));
        Ok(id)
    }

    fn get(&self, id: &str) -> Result<Shared, Refusal> {
        let mut open = self.open();
        let (touched, upload) = open.get_mut(id).ok_or_else(unknown)?;
        *touched = Instant::now();
        Ok(upload.clone())
    }

    /// Takes an upload out, so that nobody adds to it any more.
    fn take(&self, id: &str) -> Result<Incoming, Refusal> {
        let (_, upload) = self.open().remove(id).ok_or_else(unknown)?;
        let busy =
            |_| Refusal::new(StatusCode::CONFLICT, "BLOB_UPLOAD_INVALID", "another request writes to it");
        Arc::try_unwrap(upload).map(tokio::sync::Mutex::into_inner).map_err(busy)
    }
}

fn unknown() -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN", "no such upload; it may have been given up")
}

/// Only what is ours can be pushed: an image of another registry is what that registry says it is.
fn check_ours(name: &str) -> Result<(), Refusal> {
    match origin(name) {
        Origin::Ours => Ok(()),
        Origin::Upstream { host, .. } => {
            let message = format!("images of {host} are pushed to {host}");
            Err(Refusal::new(StatusCode::FORBIDDEN, "DENIED", message))
        }
    }
}

/// `POST …/blobs/uploads/`: begins an upload, or is one whole, or takes a blob that is here already.
pub async fn begin(
    cache: &Arc<Cache>,
    name: &str,
    query: &super::Query,
    body: Body,
) -> Result<Answer, Refusal> {
    check_ours(name)?;
    if let Some(Ok(digest)) = query.mount.as_deref().map(str::parse::<Digest>)
        && cache.blobs.used(&digest).is_some()
    {
        return Ok(created(format!("/v2/{name}/blobs/{digest}"), &digest));
    }
    let id = cache.uploads.begin(&cache.blobs).await?;
    match &query.digest {
        Some(digest) => finish(cache, name, &id, digest, body).await,
        None => Ok(progress(StatusCode::ACCEPTED, name, &id, 0)),
    }
}

/// `GET`, `PATCH`, `PUT` and `DELETE` of an upload.
pub async fn go_on(
    cache: &Arc<Cache>,
    method: &Method,
    name: &str,
    id: &str,
    query: &super::Query,
    headers: &HeaderMap,
    body: Body,
) -> Result<Answer, Refusal> {
    match *method {
        Method::GET | Method::HEAD => {
            let bytes = cache.uploads.get(id)?.lock().await.bytes();
            Ok(progress(StatusCode::NO_CONTENT, name, id, bytes))
        }
        Method::PATCH => {
            let upload = cache.uploads.get(id)?;
            let mut incoming = upload.lock().await;
            check_range(headers, incoming.bytes())?;
            let appended = append(cache, &mut incoming, body).await;
            if incoming.is_broken() {
                cache.uploads.open().remove(id);
            }
            appended?;
            Ok(progress(StatusCode::ACCEPTED, name, id, incoming.bytes()))
        }
        Method::PUT => {
            let missing = || Refusal::new(StatusCode::BAD_REQUEST, "DIGEST_INVALID", "no digest is given");
            finish(cache, name, id, query.digest.as_ref().ok_or_else(missing)?, body).await
        }
        Method::DELETE => cache.uploads.take(id).map(|_| answer(StatusCode::NO_CONTENT, Body::empty())),
        _ => Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", "no such method")),
    }
}

/// A piece must begin where the last one ended.
fn check_range(headers: &HeaderMap, have: u64) -> Result<(), Refusal> {
    let Some(range) = headers.get("content-range").and_then(|range| range.to_str().ok()) else {
        return Ok(());
    };
    let start =
        range.trim_start_matches("bytes ").split('-').next().and_then(|start| start.parse::<u64>().ok());
    match start {
        Some(start) if start == have => Ok(()),
        _ => {
            let message = format!("{have} bytes are here, the piece has the range {range}");
            Err(Refusal::new(StatusCode::RANGE_NOT_SATISFIABLE, "BLOB_UPLOAD_INVALID", message))
        }
    }
}

async fn append(cache: &Arc<Cache>, incoming: &mut Incoming, body: Body) -> Result<(), Refusal> {
    let mut pieces = body.into_data_stream();
    let mut unchecked = 0;
    while let Some(piece) = pieces.next().await {
        let broken = |error| Refusal::new(StatusCode::BAD_REQUEST, "BLOB_UPLOAD_INVALID", error);
        let piece = piece.map_err(broken)?;
        if incoming.bytes() + piece.len() as u64 > UPLOAD_BYTES_MAX {
            let message = format!("a blob has at most {UPLOAD_BYTES_MAX} bytes");
            return Err(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "SIZE_INVALID", message));
        }
        if unchecked < piece.len() {
            unchecked = UNCHECKED_BYTES.max(piece.len());
            cache.make_room(unchecked as u64).await.map_err(|error| Refusal::disk(&error))?;
        }
        unchecked -= piece.len();
        incoming.write(&piece).await.map_err(|error| Refusal::disk(&error))?;
    }
    // Who is told how much is here goes on from there.
    incoming.flush().await.map_err(|error| Refusal::disk(&error))
}

async fn finish(
    cache: &Arc<Cache>,
    name: &str,
    id: &str,
    digest: &str,
    body: Body,
) -> Result<Answer, Refusal> {
    let invalid = |message: String| Refusal::new(StatusCode::BAD_REQUEST, "DIGEST_INVALID", message);
    let digest: Digest =
        digest.parse().map_err(|error: crate::digest::InvalidDigest| invalid(error.to_string()))?;
    let mut incoming = cache.uploads.take(id)?;
    append(cache, &mut incoming, body).await?;
    match cache.blobs.keep(incoming, &digest).await.map_err(|error| Refusal::disk(&error))? {
        Ok(_) => Ok(created(format!("/v2/{name}/blobs/{digest}"), &digest)),
        Err(actual) => Err(invalid(format!("what was sent has the digest {actual}"))),
    }
}

/// `PUT …/manifests/…`.
pub async fn manifest(
    cache: &Arc<Cache>,
    name: &str,
    selector: &Selector,
    media_type: &str,
    body: Body,
) -> Result<Answer, Refusal> {
    check_ours(name)?;
    let invalid = |message: String| Refusal::new(StatusCode::BAD_REQUEST, "MANIFEST_INVALID", message);
    let bytes = axum::body::to_bytes(body, MANIFEST_BYTES_MAX as usize)
        .await
        .map_err(|error| invalid(format!("not at most {MANIFEST_BYTES_MAX} bytes: {error}")))?;
    let digest = Digest::of(&bytes);
    if let Selector::Digest(expected) = selector
        && *expected != digest
    {
        return Err(Refusal::new(
            StatusCode::BAD_REQUEST,
            "DIGEST_INVALID",
            format!("it has the digest {digest}"),
        ));
    }
    let document = Document::parse(media_type, &bytes).map_err(|error| invalid(error.to_string()))?;
    let named = match &document {
        Document::Index(index) => index.manifests.iter().collect::<Vec<_>>(),
        Document::Manifest(manifest) => manifest.layers.iter().chain([&manifest.config]).collect(),
    };
    for descriptor in named {
        if cache.blobs.used(&descriptor.digest).is_none() {
            let message = format!("blob {} is not here", descriptor.digest);
            return Err(Refusal::new(StatusCode::BAD_REQUEST, "MANIFEST_BLOB_UNKNOWN", message));
        }
    }
    let stored = async {
        cache.blobs.put(&bytes).await?;
        cache.catalog.add_manifest(name, &digest, media_type).await?;
        if let Selector::Tag(tag) = selector {
            let value = Tag { digest: digest.clone(), checked_ms: now_ms() };
            cache.catalog.set_tag(name, tag, &value).await?;
        }
        Ok::<_, std::io::Error>(())
    };
    stored.await.map_err(|error| Refusal::disk(&error))?;
    Ok(created(format!("/v2/{name}/manifests/{digest}"), &digest))
}

/// `DELETE …/manifests/…`: a tag alone, or an image with all its tags. Its layers go when the room is needed.
pub async fn delete(cache: &Arc<Cache>, name: &str, selector: &Selector) -> Result<Answer, Refusal> {
    check_ours(name)?;
    let unknown =
        || Refusal::new(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN", format!("{name} has no {selector}"));
    match selector {
        Selector::Tag(tag) => {
            cache.catalog.tag(name, tag).await.ok_or_else(unknown)?;
            cache.catalog.remove_tag(name, tag).await;
        }
        Selector::Digest(digest) => {
            cache.catalog.manifest(name, digest).await.ok_or_else(unknown)?;
            let (cache, name, digest) = (cache.clone(), name.to_string(), digest.clone());
            let removing = tokio::task::spawn_blocking(move || cache.catalog.remove_manifest(&name, &digest));
            let removed = removing.await.unwrap_or_else(|error| Err(std::io::Error::other(error)));
            removed.map_err(|error| Refusal::disk(&error))?;
        }
    }
    Ok(answer(StatusCode::ACCEPTED, Body::empty()))
}

fn created(location: String, digest: &Digest) -> Answer {
    let headers = [("location", location), (CONTENT_DIGEST, digest.to_string())];
    with(answer(StatusCode::CREATED, Body::empty()), &headers)
}

fn progress(status: StatusCode, name: &str, id: &str, bytes: u64) -> Answer {
    let headers = [
        ("location", format!("/v2/{name}/blobs/uploads/{id}")),
        ("docker-upload-uuid", id.to_string()),
        ("range", format!("0-{}", bytes.saturating_sub(1))),
    ];
    with(answer(status, Body::empty()), &headers)
}
