//! Reading images from a registry: manifests whole, blobs as streams that survive an interruption.
//!
//! An [`Access`] is one repository with one set of credentials; it holds the token it was given and is dropped with it.
//! Nothing is written to disk here, and a blob's digest is for its receiver to verify, who sees the bytes last.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine as _;
use bytes::Bytes;
use futures_util::StreamExt as _;
use http::header::{
    ACCEPT, AUTHORIZATION, CONTENT_RANGE, CONTENT_TYPE, HeaderValue, RANGE, WWW_AUTHENTICATE,
};
use http::{Method, StatusCode};
use reqwest::{Response, Url};
use serde::Deserialize;
use tokio::sync::{mpsc, oneshot};

use super::auth::Challenge;
use super::retry::{Retry, retry_after};
use super::{Credentials, Error, full_repository, serving_host};
use crate::digest::Digest;
use crate::image::{Reference, Selector};
use crate::manifest::{ACCEPTED, CONFIG_BYTES_MAX, Descriptor, MANIFEST_BYTES_MAX};

const CONNECT_TIME_MAX: Duration = Duration::from_secs(10);
const REDIRECTS_MAX: usize = 5;
const TOKEN_BYTES_MAX: u64 = 1024 * 1024;
/// How often the rest of one blob is asked for, however far each attempt came.
const RESUMES_MAX: u32 = 10;
const CONTENT_DIGEST: &str = "docker-content-digest";

/// Which registries are reached how.
#[derive(Debug, Clone)]
pub struct Policy {
    /// For images that name no registry.
    pub default_registry: String,
    /// `host` or `host:port` reached without TLS; loopback always is.
    pub insecure: Vec<String>,
    /// PEM files of further authorities that may sign registries.
    pub extra_authorities: Vec<PathBuf>,
    pub retry: Retry,
    /// Without a byte for this long, an answer is given up.
    pub stall_max: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Policy {
            default_registry: super::DOCKER_HUB.into(),
            insecure: Vec::new(),
            extra_authorities: Vec::new(),
            retry: Retry::default(),
            stall_max: Duration::from_secs(30),
        }
    }
}

#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    policy: Arc<Policy>,
}

impl Client {
    pub fn new(policy: Policy) -> Result<Client, Error> {
        diego_base::tls::install_provider();
        let mut builder = reqwest::Client::builder()
            .no_proxy()
            .user_agent(concat!("diego-rootfs/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIME_MAX)
            .read_timeout(policy.stall_max)
            .redirect(reqwest::redirect::Policy::custom(redirect));
        for path in &policy.extra_authorities {
            let failed = |reason: String| Error::Client { reason: format!("{}: {reason}", path.display()) };
            let pem = std::fs::read(path).map_err(|error| failed(error.to_string()))?;
            let certificates = reqwest::Certificate::from_pem_bundle(&pem);
            builder = builder.tls_certs_merge(certificates.map_err(|error| failed(error.to_string()))?);
        }
        let http = builder.build().map_err(|error| Error::Client { reason: error.to_string() })?;
        Ok(Client { http, policy: Arc::new(policy) })
    }

    pub fn default_registry(&self) -> &str {
        &self.policy.default_registry
    }

    /// One image's repository, for one user. Nothing is sent yet.
    pub fn access(&self, reference: &Reference, credentials: Option<Credentials>) -> Access {
        let named = reference.host.as_deref().unwrap_or(&self.policy.default_registry);
        let host = serving_host(named).to_string();
        let repository = full_repository(&host, &reference.repository);
        let named = Reference { host: Some(named.into()), ..reference.clone() };
        let scheme = if self.is_insecure(&host) { "http" } else { "https" };
        Access {
            client: self.clone(),
            base: format!("{scheme}://{host}/v2/{repository}"),
            scope: format!("repository:{repository}:pull"),
            host,
            image: named.to_string(),
            credentials,
            authorization: Mutex::new(None),
        }
    }

    /// Any URL's bytes, sent to `sink` in order; once, without resuming. The size is told before the first byte.
    pub async fn download(
        &self,
        url: &str,
        sink: &mpsc::Sender<Bytes>,
        size_known: oneshot::Sender<u64>,
        report: &(dyn Fn(u64, u64) + Send + Sync),
    ) -> Result<(), String> {
        let answer = self.http.get(url).send().await.map_err(|error| reason(&error))?;
        if !answer.status().is_success() {
            return Err(format!("the server answers {}", answer.status().as_u16()));
        }
        let total = answer.content_length().ok_or("the server does not say how large it is")?;
        if size_known.send(total).is_err() {
            return Ok(());
        }
        let mut done = 0;
        let mut body = answer.bytes_stream();
        while let Some(piece) = body.next().await {
            let piece = piece.map_err(|error| reason(&error))?;
            done += piece.len() as u64;
            report(done, total);
            if sink.send(piece).await.is_err() {
                break;
            }
        }
        Ok(())
    }

    fn is_insecure(&self, host: &str) -> bool {
        let name = without_port(host);
        let loopback =
            name == "localhost" || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
        loopback || self.policy.insecure.iter().any(|allowed| allowed == host || allowed == name)
    }
}

fn without_port(host: &str) -> &str {
    match host.strip_prefix('[').and_then(|host| host.split_once(']')) {
        Some((address, _)) => address,
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    }
}

fn redirect(attempt: reqwest::redirect::Attempt<'_>) -> reqwest::redirect::Action {
    let loses_tls = attempt.url().scheme() != "https"
        && attempt.previous().last().is_some_and(|from| from.scheme() == "https");
    if loses_tls {
        attempt.error("it redirects from https to http")
    } else if attempt.previous().len() > REDIRECTS_MAX {
        attempt.error("it redirects without end")
    } else {
        attempt.follow()
    }
}

/// A manifest or an index as it was sent: its digest is that of these bytes.
#[derive(Debug, Clone)]
pub struct Fetched {
    pub media_type: String,
    pub digest: Digest,
    pub bytes: Bytes,
}

pub struct Access {
    client: Client,
    /// `scheme://host/v2/repository`.
    base: String,
    host: String,
    /// As people are told about it.
    image: String,
    scope: String,
    credentials: Option<Credentials>,
    authorization: Mutex<Option<HeaderValue>>,
}

/// What is asked for, to say what was not there.
#[derive(Clone, Copy)]
enum Wanted<'a> {
    Image,
    Blob(&'a Digest),
}

impl Access {
    pub fn host(&self) -> &str {
        &self.host
    }

    pub fn image(&self) -> &str {
        &self.image
    }

    pub async fn manifest(&self, selector: &Selector) -> Result<Fetched, Error> {
        let url = format!("{}/manifests/{selector}", self.base);
        let answer = self.send(Method::GET, &url, None, Wanted::Image).await?;
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
        let url = format!("{}/manifests/{selector}", self.base);
        let answer = self.send(Method::HEAD, &url, None, Wanted::Image).await?;
        Ok(header(&answer, CONTENT_DIGEST).and_then(|text| text.parse().ok()))
    }

    /// A blob's size in bytes.
    pub async fn blob_size(&self, digest: &Digest) -> Result<u64, Error> {
        let url = format!("{}/blobs/{digest}", self.base);
        let answer = self.send(Method::HEAD, &url, None, Wanted::Blob(digest)).await?;
        // Not `content_length()`, which is that of the empty body.
        let length = header(&answer, "content-length").and_then(|text| text.parse().ok());
        length.ok_or_else(|| self.interrupted(format!("it does not say how large layer {digest} is")))
    }

    /// A small blob (an image's configuration), whole and verified.
    pub async fn small_blob(&self, descriptor: &Descriptor) -> Result<Bytes, Error> {
        let url = format!("{}/blobs/{}", self.base, descriptor.digest);
        let answer = self.send(Method::GET, &url, None, Wanted::Blob(&descriptor.digest)).await?;
        let bytes = self.read(answer, "configuration", CONFIG_BYTES_MAX).await?;
        self.check_digest(Some(&descriptor.digest), &Digest::of(&bytes))?;
        Ok(bytes)
    }

    /// Sends a blob's bytes in order to `sink`; what is interrupted is resumed where it stopped. Ends early, without
    /// an error, when nobody receives any more.
    pub async fn blob(&self, digest: &Digest, size: u64, sink: &mpsc::Sender<Bytes>) -> Result<(), Error> {
        let began = Instant::now();
        let mut done = 0;
        let mut fruitless = 0;
        for _ in 0..=RESUMES_MAX {
            let before = done;
            let reason = match self.blob_from(digest, size, &mut done, sink).await? {
                Streamed::Whole | Streamed::NotWanted => return Ok(()),
                Streamed::Interrupted(reason) => reason,
            };
            fruitless = if done > before { 1 } else { fruitless + 1 };
            // Only attempts that bring nothing use up patience; RESUMES_MAX bounds the others.
            let elapsed = if done > before { Duration::ZERO } else { began.elapsed() };
            match self.client.policy.retry.wait(fruitless, elapsed, None, rand::random()) {
                Some(wait) => tokio::time::sleep(wait).await,
                None => return Err(self.interrupted(reason)),
            }
            tracing::debug!(image = self.image, %digest, done, size, "resuming a layer");
        }
        Err(self.interrupted(format!("layer {digest} was interrupted {RESUMES_MAX} times")))
    }

    async fn blob_from(
        &self,
        digest: &Digest,
        size: u64,
        done: &mut u64,
        sink: &mpsc::Sender<Bytes>,
    ) -> Result<Streamed, Error> {
        let url = format!("{}/blobs/{digest}", self.base);
        let from = (*done > 0).then_some(*done);
        let answer = self.send(Method::GET, &url, from, Wanted::Blob(digest)).await?;
        let mut skip = match (from, answer.status()) {
            (Some(from), StatusCode::PARTIAL_CONTENT) => {
                let starts = header(&answer, CONTENT_RANGE.as_str()).and_then(|text| range_start(&text));
                if starts.is_some_and(|start| start != from) {
                    return Ok(Streamed::Interrupted("it sends another range than was asked for".into()));
                }
                0
            }
            (Some(from), _) => from,
            (None, _) => 0,
        };
        let promised = answer.content_length().map(|length| length + *done - skip);
        if let Some(actual) = promised.filter(|length| *length != size) {
            return Err(self.wrong_size(digest, size, actual));
        }
        let mut body = answer.bytes_stream();
        while let Some(piece) = body.next().await {
            let mut piece = match piece {
                Ok(piece) => piece,
                Err(error) => return Ok(Streamed::Interrupted(reason(&error))),
            };
            let skipped = skip.min(piece.len() as u64);
            skip -= skipped;
            let piece = piece.split_off(skipped as usize);
            *done += piece.len() as u64;
            if *done > size {
                return Err(self.wrong_size(digest, size, *done));
            }
            if sink.send(piece).await.is_err() {
                return Ok(Streamed::NotWanted);
            }
        }
        if *done == size {
            return Ok(Streamed::Whole);
        }
        Ok(Streamed::Interrupted(format!("it ended after {done} of {size} bytes")))
    }

    /// Sends one request until it is answered: logs in where asked to, waits where told to. Any 2xx is an answer.
    async fn send(
        &self,
        method: Method,
        url: &str,
        from: Option<u64>,
        wanted: Wanted<'_>,
    ) -> Result<Response, Error> {
        let began = Instant::now();
        let mut tries = 0;
        let mut logged_in = false;
        loop {
            let (error, asked) = match self.request(&method, url, from).send().await {
                Ok(answer) if answer.status().is_success() => return Ok(answer),
                Ok(answer) if answer.status() == StatusCode::UNAUTHORIZED && !logged_in => {
                    logged_in = true;
                    self.log_in(&answer).await?;
                    continue;
                }
                Ok(answer) => {
                    let asked = header(&answer, "retry-after").and_then(|text| retry_after(&text));
                    (self.refusal(answer.status(), asked, wanted), asked)
                }
                Err(error) => (self.unreachable(&error), None),
            };
            tries += 1;
            let wait = self.client.policy.retry.wait(tries, began.elapsed(), asked, rand::random());
            match wait.filter(|_| error.registry_is_gone()) {
                Some(wait) => tokio::time::sleep(wait).await,
                None => return Err(error),
            }
        }
    }

    fn request(&self, method: &Method, url: &str, from: Option<u64>) -> reqwest::RequestBuilder {
        let mut request = self.client.http.request(method.clone(), url).header(ACCEPT, ACCEPTED.join(", "));
        if let Some(authorization) = self.authorization.lock().unwrap_or_else(|e| e.into_inner()).clone() {
            request = request.header(AUTHORIZATION, authorization);
        }
        match from {
            Some(from) => request.header(RANGE, format!("bytes={from}-")),
            None => request,
        }
    }

    fn refusal(&self, status: StatusCode, after: Option<Duration>, wanted: Wanted<'_>) -> Error {
        let (host, image) = (self.host.clone(), self.image.clone());
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
        let (host, image) = (self.host.clone(), self.image.clone());
        match self.credentials {
            Some(_) => Error::CredentialsRefused { host, image, status },
            None => Error::CredentialsNeeded { host, image, status },
        }
    }

    async fn log_in(&self, answer: &Response) -> Result<(), Error> {
        let challenge = |reason| Error::Challenge { host: self.host.clone(), reason };
        let headers = answer.headers().get_all(WWW_AUTHENTICATE);
        let headers: Vec<&str> = headers.iter().filter_map(|value| value.to_str().ok()).collect();
        if headers.is_empty() {
            return Err(self.refused(401));
        }
        let authorization = match Challenge::parse(headers).map_err(challenge)? {
            Challenge::Basic => match &self.credentials {
                Some(credentials) => basic(credentials),
                None => return Err(self.refused(401)),
            },
            Challenge::Bearer { realm, service, scope } => {
                let scope = scope.unwrap_or_else(|| self.scope.clone());
                format!("Bearer {}", self.token(&realm, service, &scope).await?)
            }
        };
        let mut value = HeaderValue::from_str(&authorization)
            .map_err(|_| challenge("its token is no header value".into()))?;
        value.set_sensitive(true);
        *self.authorization.lock().unwrap_or_else(|e| e.into_inner()) = Some(value);
        Ok(())
    }

    async fn token(&self, realm: &str, service: Option<String>, scope: &str) -> Result<String, Error> {
        let challenge = |reason: String| Error::Challenge { host: self.host.clone(), reason };
        let mut url = Url::parse(realm).map_err(|error| challenge(error.to_string()))?;
        if url.scheme() == "http" && self.base.starts_with("https:") {
            return Err(challenge(format!("the credentials would go to {realm} without TLS")));
        }
        url.query_pairs_mut().append_pair("scope", scope);
        if let Some(service) = service {
            url.query_pairs_mut().append_pair("service", &service);
        }
        let mut request = self.client.http.get(url);
        if let Some(credentials) = &self.credentials {
            request = request.header(AUTHORIZATION, basic(credentials));
        }
        let answer = request.send().await.map_err(|error| self.unreachable(&error))?;
        if !answer.status().is_success() {
            let asked = header(&answer, "retry-after").and_then(|text| retry_after(&text));
            return Err(self.refusal(answer.status(), asked, Wanted::Image));
        }
        let bytes = self.read(answer, "token", TOKEN_BYTES_MAX).await?;
        let token: Token = serde_json::from_slice(&bytes).map_err(|error| challenge(error.to_string()))?;
        token.token.or(token.access_token).ok_or_else(|| challenge("it gives no token".into()))
    }

    async fn read(&self, answer: Response, what: &'static str, limit: u64) -> Result<Bytes, Error> {
        let too_large =
            || Error::TooLarge { host: self.host.clone(), image: self.image.clone(), what, limit };
        if answer.content_length().is_some_and(|length| length > limit) {
            return Err(too_large());
        }
        let mut bytes = Vec::new();
        let mut body = answer.bytes_stream();
        while let Some(piece) = body.next().await {
            let piece = piece.map_err(|error| self.interrupted(reason(&error)))?;
            if bytes.len() as u64 + piece.len() as u64 > limit {
                return Err(too_large());
            }
            bytes.extend_from_slice(&piece);
        }
        Ok(bytes.into())
    }

    fn check_digest(&self, expected: Option<&Digest>, actual: &Digest) -> Result<(), Error> {
        match expected {
            Some(expected) if expected != actual => Err(Error::WrongDigest {
                host: self.host.clone(),
                image: self.image.clone(),
                expected: expected.clone(),
                actual: actual.clone(),
            }),
            _ => Ok(()),
        }
    }

    fn wrong_size(&self, digest: &Digest, expected: u64, actual: u64) -> Error {
        let (host, image) = (self.host.clone(), self.image.clone());
        Error::WrongSize { host, image, digest: digest.clone(), expected, actual }
    }

    fn interrupted(&self, reason: String) -> Error {
        Error::Interrupted { host: self.host.clone(), image: self.image.clone(), reason }
    }

    fn unreachable(&self, error: &reqwest::Error) -> Error {
        let mut reason = reason(error);
        if error.is_connect() && reason.contains("refused") {
            reason = "connection refused, nothing listens there".into();
        }
        Error::Unreachable { host: self.host.clone(), image: self.image.clone(), reason }
    }
}

enum Streamed {
    Whole,
    NotWanted,
    Interrupted(String),
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

fn header(answer: &Response, name: &str) -> Option<String> {
    answer.headers().get(name).and_then(|value| value.to_str().ok()).map(String::from)
}

/// `bytes 10-20/30`.
fn range_start(value: &str) -> Option<u64> {
    value.strip_prefix("bytes ")?.split('-').next()?.parse().ok()
}

/// The innermost cause says it best: "connection refused", "certificate expired".
fn reason(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "no answer in time".into();
    }
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}
