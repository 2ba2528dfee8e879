//! One registry, asked for one repository: logs in where it is told to, waits where it is told to, and says in one line
//! what was wrong. A mirror is one of these, and so is the registry it stands for; who is asked when is for
//! [`super::access`] to say.

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use base64::Engine as _;
use bytes::Bytes;
use futures_util::StreamExt as _;
use http::header::{
    ACCEPT, AUTHORIZATION, CONTENT_RANGE, CONTENT_TYPE, HeaderValue, RANGE, WWW_AUTHENTICATE,
};
use http::{Method, StatusCode};
use reqwest::{Response, Url};
use serde::Deserialize;
use tokio::sync::mpsc;

use super::auth::Challenge;
use super::client::REDIRECTS_WITHOUT_END;
use super::keyring::Keyring;
use super::retry::{Pace, Retry, retry_after};
use super::{Credentials, Error};
use crate::digest::Digest;
use crate::image::Selector;
use crate::manifest::{ACCEPTED, CONFIG_BYTES_MAX, Descriptor, MANIFEST_BYTES_MAX};

const TOKEN_BYTES_MAX: u64 = 1024 * 1024;
const CONTENT_DIGEST: &str = "docker-content-digest";
/// As which programs that exchange identity tokens know us.
const CLIENT_ID: &str = "diego";

/// Where it is and who asks.
pub struct Place {
    pub http: Result<reqwest::Client, String>,
    pub host: String,
    /// `scheme://host/v2/repository`.
    pub base: String,
    /// Added to each URL.
    pub query: String,
    pub repository: String,
    /// As people are told about it.
    pub image: String,
    /// `None`: what the keyring has.
    pub credentials: Option<Credentials>,
    pub keyring: Keyring,
    pub retry: Retry,
    pub stall_max: Duration,
}

pub struct Endpoint {
    pub place: Place,
    authorization: Mutex<Option<HeaderValue>>,
    passed_over: AtomicBool,
    /// Credentials were shown; so they are what was refused.
    known: AtomicBool,
}

/// A manifest or an index as it was sent: its digest is that of these bytes.
#[derive(Debug, Clone)]
pub struct Fetched {
    pub media_type: String,
    pub digest: Digest,
    pub bytes: Bytes,
}

/// What is asked for, to say what was not there.
#[derive(Clone, Copy)]
enum Wanted<'a> {
    Image,
    Blob(&'a Digest),
}

/// Where a blob's bytes go, in order.
pub enum Out<'a> {
    Sink(&'a mpsc::Sender<Bytes>),
    Memory(&'a mut Vec<u8>),
}

pub enum Streamed {
    /// As far as was wanted, or all of it where the registry knows no ranges.
    Whole,
    NotWanted,
    Interrupted(String),
}

impl Endpoint {
    pub fn new(place: Place) -> Endpoint {
        Endpoint {
            place,
            authorization: Mutex::default(),
            passed_over: Default::default(),
            known: Default::default(),
        }
    }

    /// Notes that the next one is asked instead; what is gone is not asked again by this one's owner.
    pub fn pass_over(&self, error: &Error) {
        tracing::info!(mirror = self.place.host, image = self.place.image, %error, "registry.mirror-passed-over");
        if error.registry_is_gone() {
            self.forbid();
        }
    }

    /// Not to be asked any more; whether it was until now.
    pub fn forbid(&self) -> bool {
        !self.passed_over.swap(true, Ordering::Relaxed)
    }

    pub fn is_passed_over(&self) -> bool {
        self.passed_over.load(Ordering::Relaxed)
    }

    pub async fn manifest(&self, selector: &Selector) -> Result<Fetched, Error> {
        let answer = self.send(Method::GET, &self.manifest_url(selector), None, Wanted::Image).await?;
        let media_type = header(&answer, CONTENT_TYPE.as_str()).unwrap_or_default();
        let media_type = media_type.split(';').next().unwrap_or_default().trim().to_string();
        let promised = header(&answer, CONTENT_DIGEST).and_then(|text| text.parse::<Digest>().ok());
        let bytes = self.read(answer, "manifest", MANIFEST_BYTES_MAX).await?;
        let digest = Digest::of(&bytes);
        let expected = match selector {
            Selector::Digest(digest) => Some(digest.clone()),
            Selector::Tag(_) => promised,
        };
        self.check_digest(expected.as_ref(), &digest)?;
        Ok(Fetched { media_type, digest, bytes })
    }

    /// What a tag stands for now, where the registry says so without sending it.
    pub async fn digest(&self, selector: &Selector) -> Result<Option<Digest>, Error> {
        let answer = self.send(Method::HEAD, &self.manifest_url(selector), None, Wanted::Image).await?;
        Ok(header(&answer, CONTENT_DIGEST).and_then(|text| text.parse().ok()))
    }

    /// A blob's size in bytes.
    pub async fn blob_size(&self, digest: &Digest) -> Result<u64, Error> {
        let answer = self.send(Method::HEAD, &self.blob_url(digest), None, Wanted::Blob(digest)).await?;
        // Not `content_length()`, which is that of the empty body.
        let length = header(&answer, "content-length").and_then(|text| text.parse().ok());
        length.ok_or_else(|| self.interrupted(format!("it does not say how large layer {digest} is")))
    }

    /// A small blob (an image's configuration), whole and verified.
    pub async fn small_blob(&self, descriptor: &Descriptor) -> Result<Bytes, Error> {
        let digest = &descriptor.digest;
        let answer = self.send(Method::GET, &self.blob_url(digest), None, Wanted::Blob(digest)).await?;
        let bytes = self.read(answer, "configuration", CONFIG_BYTES_MAX).await?;
        self.check_digest(Some(digest), &Digest::of(&bytes))?;
        Ok(bytes)
    }

    /// One request for the `part` of a blob that is not `done` yet; what comes goes `out`. A registry without ranges
    /// sends all of it: what is done already is left out, and what follows the part too, unless it goes to a sink.
    pub async fn stretch(
        &self,
        digest: &Digest,
        size: u64,
        part: &Range<u64>,
        done: &mut u64,
        out: &mut Out<'_>,
    ) -> Result<Streamed, Error> {
        let range = *done..part.end;
        let asked = (range != (0..size)).then_some(&range);
        let asked = asked.map(|range| (range.clone(), size));
        let answer =
            self.send(Method::GET, &self.blob_url(digest), asked.clone(), Wanted::Blob(digest)).await?;
        let ranged = asked.is_some() && answer.status() == StatusCode::PARTIAL_CONTENT;
        if ranged
            && let Some((start, total)) =
                header(&answer, CONTENT_RANGE.as_str()).and_then(|text| content_range(&text))
        {
            if start != range.start {
                return Ok(Streamed::Interrupted("it sends another range than was asked for".into()));
            }
            if let Some(total) = total.filter(|total| *total != size) {
                return Err(self.wrong_size(digest, size, total));
            }
        }
        let (mut skip, end) = match (ranged, &out) {
            (true, _) => (0, part.end),
            (false, Out::Sink(_)) => (*done, size),
            (false, Out::Memory(_)) => (*done, part.end),
        };
        let promised = answer.content_length().map(|length| length + *done - skip);
        if let Some(actual) = promised.filter(|length| *length != if ranged { part.end } else { size }) {
            return Err(self.wrong_size(digest, size, actual));
        }
        let mut pace = Pace::new(self.place.stall_max);
        let mut body = answer.bytes_stream();
        while *done < end {
            let asked = Instant::now();
            let piece = match body.next().await {
                Some(Ok(piece)) => piece,
                Some(Err(error)) => return Ok(Streamed::Interrupted(reason(&error))),
                None => return Ok(Streamed::Interrupted(format!("it ended after {done} of {size} bytes"))),
            };
            if pace.is_too_slow(asked.elapsed(), piece.len()) {
                return Ok(Streamed::Interrupted("it sends next to nothing".into()));
            }
            let skipped = skip.min(piece.len() as u64);
            skip -= skipped;
            let piece = piece.slice(skipped as usize..);
            let fits = (end - *done).min(piece.len() as u64);
            if fits < piece.len() as u64 && end == size {
                return Err(self.wrong_size(digest, size, *done + piece.len() as u64));
            }
            *done += fits;
            let piece = piece.slice(..fits as usize);
            match out {
                Out::Memory(bytes) => bytes.extend_from_slice(&piece),
                Out::Sink(sink) if sink.send(piece).await.is_err() => return Ok(Streamed::NotWanted),
                Out::Sink(_) => {}
            }
        }
        // So that the connection can be used again; and to see that nothing follows.
        match body.next().await {
            Some(Ok(more)) if end == size && !more.is_empty() => {
                Err(self.wrong_size(digest, size, size + more.len() as u64))
            }
            _ => Ok(Streamed::Whole),
        }
    }

    fn manifest_url(&self, selector: &Selector) -> String {
        format!("{}/manifests/{selector}{}", self.place.base, self.place.query)
    }

    fn blob_url(&self, digest: &Digest) -> String {
        format!("{}/blobs/{digest}{}", self.place.base, self.place.query)
    }

    /// Sends one request until it is answered: logs in where asked to, waits where told to. Any 2xx is an answer.
    async fn send(
        &self,
        method: Method,
        url: &str,
        range: Option<(Range<u64>, u64)>,
        wanted: Wanted<'_>,
    ) -> Result<Response, Error> {
        let began = Instant::now();
        let mut tries = 0;
        let mut logged_in = false;
        loop {
            let (error, asked) = match self.request(&method, url, range.as_ref())?.send().await {
                Ok(answer) if answer.status().is_success() => return Ok(answer),
                Ok(answer) if answer.status() == StatusCode::UNAUTHORIZED && !logged_in => {
                    logged_in = true;
                    match self.log_in(&answer).await {
                        Ok(()) => continue,
                        Err((error, asked)) => (error, asked),
                    }
                }
                Ok(answer) => {
                    let asked = waits(&answer);
                    (self.refusal(answer.status(), asked, wanted), asked)
                }
                Err(error) => (self.unreachable(&error), None),
            };
            tries += 1;
            let wait = self.place.retry.wait(tries, began.elapsed(), asked, rand::random());
            match wait.filter(|_| error.registry_is_gone()) {
                Some(wait) => tokio::time::sleep(wait).await,
                None => return Err(error),
            }
            logged_in = false;
        }
    }

    fn http(&self) -> Result<&reqwest::Client, Error> {
        self.place.http.as_ref().map_err(|reason| Error::Client { reason: reason.clone() })
    }

    fn request(
        &self,
        method: &Method,
        url: &str,
        range: Option<&(Range<u64>, u64)>,
    ) -> Result<reqwest::RequestBuilder, Error> {
        let mut request = self.http()?.request(method.clone(), url).header(ACCEPT, ACCEPTED.join(", "));
        if let Some(authorization) = self.authorization.lock().unwrap_or_else(|e| e.into_inner()).clone() {
            request = request.header(AUTHORIZATION, authorization);
        }
        Ok(match range {
            Some((range, size)) if range.end == *size => {
                request.header(RANGE, format!("bytes={}-", range.start))
            }
            Some((range, _)) => request.header(RANGE, format!("bytes={}-{}", range.start, range.end - 1)),
            None => request,
        })
    }

    fn refusal(&self, status: StatusCode, after: Option<Duration>, wanted: Wanted<'_>) -> Error {
        let (host, image) = (self.place.host.clone(), self.place.image.clone());
        let code = status.as_u16();
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => self.refused(code),
            StatusCode::NOT_FOUND => match wanted {
                Wanted::Image => Error::ImageNotFound { image },
                Wanted::Blob(digest) => Error::BlobNotFound { image, digest: digest.clone() },
            },
            StatusCode::TOO_MANY_REQUESTS => Error::TooManyRequests { host, image, after },
            _ if status.is_server_error() => Error::RegistryFails { host, image, status: code },
            _ => Error::Unexpected { host, image, status: code },
        }
    }

    fn refused(&self, status: u16) -> Error {
        let (host, image) = (self.place.host.clone(), self.place.image.clone());
        match self.known.load(Ordering::Relaxed) || self.place.credentials.is_some() {
            true => Error::CredentialsRefused { host, image, status },
            false => Error::CredentialsNeeded { host, image, status },
        }
    }

    /// The error comes with how long the registry wants us to wait.
    async fn log_in(&self, answer: &Response) -> Result<(), (Error, Option<Duration>)> {
        let challenge = |reason| (Error::Challenge { host: self.place.host.clone(), reason }, None);
        let headers = answer.headers().get_all(WWW_AUTHENTICATE);
        let headers: Vec<&str> = headers.iter().filter_map(|value| value.to_str().ok()).collect();
        let credentials = self.credentials().await.map_err(|error| (error, None))?;
        self.known.store(credentials.is_some(), Ordering::Relaxed);
        if headers.is_empty() {
            return Err((self.refused(401), None));
        }
        let authorization = match Challenge::parse(headers).map_err(challenge)? {
            Challenge::Basic => match &credentials {
                Some(credentials) => basic(credentials),
                None => return Err((self.refused(401), None)),
            },
            Challenge::Bearer { realm, service, scope } => {
                let scope = scope.unwrap_or_else(|| format!("repository:{}:pull", self.place.repository));
                format!("Bearer {}", self.token(&realm, service, &scope, credentials.as_ref()).await?)
            }
        };
        let mut value = HeaderValue::from_str(&authorization)
            .map_err(|_| challenge("its token is no header value".into()))?;
        value.set_sensitive(true);
        *self.authorization.lock().unwrap_or_else(|e| e.into_inner()) = Some(value);
        Ok(())
    }

    async fn credentials(&self) -> Result<Option<Credentials>, Error> {
        if let Some(credentials) = &self.place.credentials {
            return Ok(Some(credentials.clone()));
        }
        let found = self.place.keyring.find(&self.place.host, &self.place.repository).await;
        found.map_err(|reason| Error::Keyring { host: self.place.host.clone(), reason })
    }

    async fn token(
        &self,
        realm: &str,
        service: Option<String>,
        scope: &str,
        credentials: Option<&Credentials>,
    ) -> Result<String, (Error, Option<Duration>)> {
        let final_error = |error: Error| (error, None);
        let challenge = |reason: String| (Error::Challenge { host: self.place.host.clone(), reason }, None);
        let mut url = Url::parse(realm).map_err(|error| challenge(error.to_string()))?;
        if url.scheme() == "http" && self.place.base.starts_with("https:") {
            return Err(challenge(format!("the credentials would go to {realm} without TLS")));
        }
        let pairs = [("scope", Some(scope)), ("service", service.as_deref())];
        let pairs = pairs.into_iter().filter_map(|(name, value)| Some((name, value?)));
        let http = self.http().map_err(final_error)?;
        let request = match credentials.and_then(Credentials::as_identity_token) {
            Some(token) => {
                let more =
                    [("grant_type", "refresh_token"), ("client_id", CLIENT_ID), ("refresh_token", token)];
                http.post(url)
                    .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
                    .body(form(pairs.chain(more)))
            }
            None => {
                url.query_pairs_mut().extend_pairs(pairs);
                match credentials {
                    Some(credentials) => http.get(url).header(AUTHORIZATION, basic(credentials)),
                    None => http.get(url),
                }
            }
        };
        let answer = request.send().await.map_err(|error| final_error(self.unreachable(&error)))?;
        if !answer.status().is_success() {
            let asked = waits(&answer);
            return Err((self.refusal(answer.status(), asked, Wanted::Image), asked));
        }
        let bytes = self.read(answer, "token", TOKEN_BYTES_MAX).await.map_err(final_error)?;
        let token: Token = serde_json::from_slice(&bytes).map_err(|error| challenge(error.to_string()))?;
        token.token.or(token.access_token).ok_or_else(|| challenge("it gives no token".into()))
    }

    async fn read(&self, answer: Response, what: &'static str, limit: u64) -> Result<Bytes, Error> {
        let (host, image) = (&self.place.host, &self.place.image);
        let too_large = || Error::TooLarge { host: host.clone(), image: image.clone(), what, limit };
        if answer.content_length().is_some_and(|length| length > limit) {
            return Err(too_large());
        }
        let mut bytes = Vec::new();
        let mut pace = Pace::new(self.place.stall_max);
        let mut body = answer.bytes_stream();
        loop {
            let asked = Instant::now();
            let Some(piece) = body.next().await else { return Ok(bytes.into()) };
            let piece = piece.map_err(|error| self.interrupted(reason(&error)))?;
            if pace.is_too_slow(asked.elapsed(), piece.len()) {
                return Err(self.interrupted("it sends next to nothing".into()));
            }
            if bytes.len() as u64 + piece.len() as u64 > limit {
                return Err(too_large());
            }
            bytes.extend_from_slice(&piece);
        }
    }

    fn check_digest(&self, expected: Option<&Digest>, actual: &Digest) -> Result<(), Error> {
        match expected {
            Some(expected) if expected != actual => Err(Error::WrongDigest {
                host: self.place.host.clone(),
                image: self.place.image.clone(),
                expected: expected.clone(),
                actual: actual.clone(),
            }),
            _ => Ok(()),
        }
    }

    fn wrong_size(&self, digest: &Digest, expected: u64, actual: u64) -> Error {
        let (host, image) = (self.place.host.clone(), self.place.image.clone());
        Error::WrongSize { host, image, digest: digest.clone(), expected, actual }
    }

    pub fn interrupted(&self, reason: String) -> Error {
        Error::Interrupted { host: self.place.host.clone(), image: self.place.image.clone(), reason }
    }

    fn unreachable(&self, error: &reqwest::Error) -> Error {
        let (host, image) = (self.place.host.clone(), self.place.image.clone());
        let mut reason = reason(error);
        if error.is_redirect() || reason == REDIRECTS_WITHOUT_END {
            return Error::Redirected { host, image, reason };
        }
        if error.is_connect() && reason.contains("refused") {
            reason = "connection refused, nothing listens there".into();
        }
        Error::Unreachable { host, image, reason }
    }
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

fn basic(credentials: &Credentials) -> String {
    let pair = format!("{}:{}", credentials.username, credentials.password);
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair))
}

fn form<'a>(pairs: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    // A form is written as a query is.
    match Url::parse("form:") {
        Ok(mut url) => {
            url.query_pairs_mut().extend_pairs(pairs);
            url.query().unwrap_or_default().into()
        }
        Err(_) => String::new(),
    }
}

fn header(answer: &Response, name: &str) -> Option<String> {
    answer.headers().get(name).and_then(|value| value.to_str().ok()).map(String::from)
}

/// How long the registry wants us to wait.
fn waits(answer: &Response) -> Option<Duration> {
    header(answer, "retry-after").and_then(|text| retry_after(&text, SystemTime::now()))
}

/// Where `bytes 10-20/30` begins, and of how many bytes it is a part.
fn content_range(value: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = value.strip_prefix("bytes ")?.split_once('/')?;
    Some((range.split('-').next()?.parse().ok()?, total.parse().ok()))
}

/// The innermost cause says it best: "connection refused", "certificate expired".
pub fn reason(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "no answer in time".into();
    }
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}
