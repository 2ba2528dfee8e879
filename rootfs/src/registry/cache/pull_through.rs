//! Reading from the cache, and through it from the registries behind it.

use std::io::SeekFrom;
use std::sync::Arc;

use axum::body::Body;
use axum::http::{HeaderMap, Method, StatusCode};
use bytes::Bytes;
use futures_util::Stream;
use tokio::fs::File;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};

use super::answer::{Answer, CONTENT_DIGEST, Refusal, answer, with};
use super::catalog::Tag;
use super::download::{Download, Failure, State};
use super::route::{Origin, origin};
use super::{Cache, now_ms};
use crate::digest::Digest;
use crate::image::{Reference, Selector};
use crate::registry::{Access, Credentials, Fetched};

const PIECE_BYTES: usize = 128 * 1024;

/// The registry behind a name, if there is one.
pub fn behind(cache: &Cache, name: &str, credentials: Option<Credentials>) -> Option<Arc<Access>> {
    match origin(name) {
        Origin::Ours => None,
        Origin::Upstream { host, repository } => {
            let selector = Selector::Tag("latest".into());
            Some(cache.client.access(&Reference { host: Some(host), repository, selector }, credentials))
        }
    }
}

pub async fn manifest(
    cache: &Arc<Cache>,
    method: &Method,
    name: &str,
    selector: &Selector,
    credentials: Option<Credentials>,
) -> Result<Answer, Refusal> {
    let digest = match selector {
        Selector::Digest(digest) => digest.clone(),
        Selector::Tag(tag) => tag_digest(cache, name, tag, credentials.clone()).await?,
    };
    if cache.catalog.manifest(name, &digest).await.is_none() {
        let Some(access) = behind(cache, name, credentials) else { return Err(unknown(name, selector)) };
        let fetched = access.manifest(&Selector::Digest(digest.clone())).await;
        store(cache, name, &fetched.map_err(|error| Refusal::from(&error))?).await?;
    }
    cache.catalog.touch(name, &digest);
    let media_type = cache.catalog.manifest(name, &digest).await.unwrap_or_default();
    let bytes = cache.blobs.read(&digest).await.map_err(|error| Refusal::disk(&error))?;
    let headers = [
        ("content-type", media_type),
        ("content-length", bytes.len().to_string()),
        (CONTENT_DIGEST, digest.to_string()),
    ];
    let body = if *method == Method::HEAD { Body::empty() } else { Body::from(bytes) };
    Ok(with(answer(StatusCode::OK, body), &headers))
}

fn unknown(name: &str, selector: &Selector) -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN", format!("{name} has no manifest {selector}"))
}

/// What a tag stands for. Its registry is asked, unless it just was; when it is gone, what it last said holds. What was
/// seen with credentials is not remembered: the next one may have none.
pub async fn tag_digest(
    cache: &Arc<Cache>,
    name: &str,
    tag: &str,
    credentials: Option<Credentials>,
) -> Result<Digest, Refusal> {
    let known = cache.catalog.tag(name, tag).await;
    let public = credentials.is_none();
    let Some(access) = behind(cache, name, credentials) else {
        return known.map(|tag| tag.digest).ok_or_else(|| unknown(name, &Selector::Tag(tag.into())));
    };
    if let Some(known) = &known
        && now_ms().saturating_sub(known.checked_ms) < cache.tag_age_max.as_millis() as u64
    {
        return Ok(known.digest.clone());
    }
    match ask(cache, name, tag, &access).await {
        Ok(digest) => {
            if public {
                let value = Tag { digest: digest.clone(), checked_ms: now_ms() };
                cache.catalog.set_tag(name, tag, &value).await.map_err(|error| Refusal::disk(&error))?;
            }
            Ok(digest)
        }
        Err(Asked::Registry(error)) => match known {
            Some(known) if error.registry_is_gone() => {
                tracing::warn!(name, tag, digest = %known.digest, %error, "serving a tag as it last was");
                Ok(known.digest)
            }
            _ => {
                let refusal = Refusal::from(&error);
                if refusal.is_not_found() {
                    cache.catalog.remove_tag(name, tag).await;
                }
                Err(refusal)
            }
        },
        Err(Asked::Refused(refusal)) => Err(refusal),
    }
}

enum Asked {
    Registry(crate::registry::Error),
    Refused(Refusal),
}

/// First without its content: registries that count pulls do not count that.
async fn ask(cache: &Arc<Cache>, name: &str, tag: &str, access: &Access) -> Result<Digest, Asked> {
    let selector = Selector::Tag(tag.into());
    if let Some(digest) = access.digest(&selector).await.map_err(Asked::Registry)?
        && cache.catalog.manifest(name, &digest).await.is_some()
    {
        return Ok(digest);
    }
    let fetched = access.manifest(&selector).await.map_err(Asked::Registry)?;
    store(cache, name, &fetched).await.map_err(Asked::Refused)?;
    Ok(fetched.digest)
}

pub async fn store(cache: &Cache, name: &str, fetched: &Fetched) -> Result<(), Refusal> {
    let stored = async {
        cache.blobs.put(&fetched.bytes).await?;
        cache.catalog.add_manifest(name, &fetched.digest, &fetched.media_type).await
    };
    stored.await.map_err(|error| Refusal::disk(&error))
}

pub async fn blob(
    cache: &Arc<Cache>,
    method: &Method,
    name: &str,
    digest: &Digest,
    headers: &HeaderMap,
    credentials: Option<Credentials>,
) -> Result<Answer, Refusal> {
    let content = content(cache, method, name, digest, credentials).await?;
    let size = content.size();
    let range = headers.get("range").and_then(|range| range.to_str().ok());
    let (status, first, length) = match range.map(|range| parse_range(range, size)) {
        None | Some(Range::Ignored) => (StatusCode::OK, 0, size),
        Some(Range::Part { first, length }) => (StatusCode::PARTIAL_CONTENT, first, length),
        Some(Range::Outside) => {
            let message = format!("the blob has {size} bytes");
            return Err(Refusal::new(StatusCode::RANGE_NOT_SATISFIABLE, "RANGE_INVALID", message));
        }
    };
    let mut headers = vec![
        ("content-type", "application/octet-stream".to_string()),
        ("content-length", length.to_string()),
        ("accept-ranges", "bytes".to_string()),
        (CONTENT_DIGEST, digest.to_string()),
    ];
    if status == StatusCode::PARTIAL_CONTENT {
        headers.push(("content-range", format!("bytes {first}-{}/{size}", first + length - 1)));
    }
    let body = match *method == Method::HEAD {
        true => Body::empty(),
        false => content.body(cache, digest, first, length).await.map_err(|error| Refusal::disk(&error))?,
    };
    Ok(with(answer(status, body), &headers))
}

enum Content {
    Here {
        size: u64,
    },
    OnItsWay(Download),
    /// Asked for its size only: not fetched.
    Elsewhere {
        size: u64,
    },
}

async fn content(
    cache: &Arc<Cache>,
    method: &Method,
    name: &str,
    digest: &Digest,
    credentials: Option<Credentials>,
) -> Result<Content, Refusal> {
    if let Some(size) = cache.blobs.used(digest) {
        return Ok(Content::Here { size });
    }
    if let Some(download) = cache.downloads.get(digest) {
        return Ok(Content::OnItsWay(download));
    }
    let missing =
        || Refusal::new(StatusCode::NOT_FOUND, "BLOB_UNKNOWN", format!("{name} has no blob {digest}"));
    let access = behind(cache, name, credentials).ok_or_else(missing)?;
    let size = access.blob_size(digest).await.map_err(|error| Refusal::from(&error))?;
    if *method == Method::HEAD {
        return Ok(Content::Elsewhere { size });
    }
    cache.make_room(size).await.map_err(|error| Refusal::disk(&error))?;
    let download = cache.downloads.fetch(&cache.blobs, access, digest, size).await?;
    Ok(Content::OnItsWay(download))
}

impl Content {
    fn size(&self) -> u64 {
        match self {
            Content::Here { size } | Content::Elsewhere { size } => *size,
            Content::OnItsWay(download) => download.size,
        }
    }

    async fn body(self, cache: &Cache, digest: &Digest, first: u64, length: u64) -> std::io::Result<Body> {
        let (mut file, state) = match self {
            Content::Elsewhere { .. } => return Ok(Body::empty()),
            Content::Here { .. } => (File::open(cache.blobs.path(digest)).await?, None),
            Content::OnItsWay(download) => match File::open(&download.path).await {
                Ok(file) => (file, Some(download.state)),
                // It was renamed just now.
                Err(_) => (File::open(cache.blobs.path(digest)).await?, None),
            },
        };
        file.seek(SeekFrom::Start(first)).await?;
        Ok(Body::from_stream(follow(file, state, first, first + length)))
    }
}

struct Follower {
    file: File,
    /// `None`: the file is whole.
    state: Option<tokio::sync::watch::Receiver<State>>,
    at: u64,
    end: u64,
}

/// A file's bytes from `at` to `end`, as far as they are there, waiting for the others.
fn follow(
    file: File,
    state: Option<tokio::sync::watch::Receiver<State>>,
    at: u64,
    end: u64,
) -> impl Stream<Item = std::io::Result<Bytes>> {
    let follower = Follower { file, state, at, end };
    futures_util::stream::try_unfold(follower, |mut follower| async move {
        if follower.at == follower.end {
            return Ok(None);
        }
        let readable = follower.readable().await.map_err(std::io::Error::other)?;
        let length = (readable.min(follower.end) - follower.at).min(PIECE_BYTES as u64);
        let mut piece = vec![0; length as usize];
        follower.file.read_exact(&mut piece).await?;
        follower.at += length;
        Ok(Some((Bytes::from(piece), follower)))
    })
}

impl Follower {
    /// Where what can be read ends; more than `at`.
    async fn readable(&mut self) -> Result<u64, Failure> {
        let Some(state) = &mut self.state else { return Ok(self.end) };
        let at = self.at;
        let ready = |state: &State| !matches!(state, State::Running { readable } if *readable <= at);
        match state.wait_for(ready).await {
            Ok(state) => match &*state {
                State::Running { readable } => Ok(*readable),
                State::Whole => Ok(self.end),
                State::Failed(failure) => Err(failure.clone()),
            },
            Err(_) => Err(Failure::Stopped),
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Range {
    /// Of a kind that a server may leave unheeded.
    Ignored,
    Outside,
    Part {
        first: u64,
        length: u64,
    },
}

/// One range of bytes; several are answered with the whole.
fn parse_range(value: &str, size: u64) -> Range {
    let Some((first, last)) = value.strip_prefix("bytes=").and_then(|range| range.split_once('-')) else {
        return Range::Ignored;
    };
    let number = |text: &str| text.trim().parse::<u64>();
    let (first, last) = match (number(first), number(last)) {
        (Ok(first), Ok(last)) => (first, last.min(size.saturating_sub(1))),
        (Ok(first), Err(_)) if last.trim().is_empty() => (first, size.saturating_sub(1)),
        // The last so many bytes.
        (Err(_), Ok(count)) if first.trim().is_empty() => {
            (size.saturating_sub(count), size.saturating_sub(1))
        }
        _ => return Range::Ignored,
    };
    match first < size && first <= last {
        true => Range::Part { first, length: last - first + 1 },
        false => Range::Outside,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_parts_of_the_blob_or_refused() {
        for (value, first, length) in [
            ("bytes=0-", 0, 10),
            ("bytes=4-", 4, 6),
            ("bytes=4-5", 4, 2),
            ("bytes=4-100", 4, 6),
            ("bytes=-3", 7, 3),
            ("bytes=-100", 0, 10),
        ] {
            assert_eq!(parse_range(value, 10), Range::Part { first, length }, "{value}");
        }
        assert_eq!(parse_range("bytes=10-", 10), Range::Outside);
        assert_eq!(parse_range("bytes=5-4", 10), Range::Outside);
        assert_eq!(parse_range("bytes=0-", 0), Range::Outside);
        assert_eq!(parse_range("bytes=0-1,3-4", 10), Range::Ignored);
        assert_eq!(parse_range("lines=0-1", 10), Range::Ignored);
    }
}
