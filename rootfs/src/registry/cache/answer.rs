//! What the cache answers: the API's headers, and its errors in their JSON form.

use axum::body::Body;
use axum::http::header::{HeaderMap, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{Response, StatusCode};
use serde_json::json;

use super::download::Failure;
use super::route::Misroute;
use crate::registry::Error;

pub const API_VERSION: (&str, &str) = ("docker-distribution-api-version", "registry/2.0");
pub const CONTENT_DIGEST: &str = "docker-content-digest";

pub type Answer = Response<Body>;

/// A refusal with one of the API's error codes.
#[derive(Debug)]
pub struct Refusal {
    status: StatusCode,
    code: &'static str,
    message: String,
    header: Option<(axum::http::HeaderName, String)>,
}

impl Refusal {
    pub fn new(status: StatusCode, code: &'static str, message: impl ToString) -> Refusal {
        Refusal { status, code, message: message.to_string(), header: None }
    }

    /// That says what to show instead.
    pub fn challenge(message: String, challenge: String) -> Refusal {
        let header = Some((WWW_AUTHENTICATE, challenge));
        Refusal { header, ..Refusal::new(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", message) }
    }

    pub fn disk(error: &std::io::Error) -> Refusal {
        tracing::error!(%error, "the registry cache cannot use its disk");
        if error.kind() == std::io::ErrorKind::StorageFull {
            return Refusal::new(
                StatusCode::INSUFFICIENT_STORAGE,
                "DENIED",
                format!("the disk is full: {error}"),
            );
        }
        Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN", format!("cannot use the disk: {error}"))
    }

    pub fn is_not_found(&self) -> bool {
        self.status == StatusCode::NOT_FOUND
    }

    pub fn answer(self) -> Answer {
        let body = json!({"errors": [{"code": self.code, "message": self.message}]}).to_string();
        let mut answer = answer(self.status, Body::from(body));
        answer.headers_mut().insert("content-type", HeaderValue::from_static("application/json"));
        if let Some((name, value)) = self.header
            && let Ok(value) = HeaderValue::from_str(&value)
        {
            answer.headers_mut().insert(name, value);
        }
        answer
    }
}

impl From<Misroute> for Refusal {
    fn from(misroute: Misroute) -> Refusal {
        let (status, code, message) = match misroute {
            Misroute::Unknown => (StatusCode::NOT_FOUND, "UNSUPPORTED", "no such path in the API"),
            Misroute::Name => (StatusCode::BAD_REQUEST, "NAME_INVALID", "not the name of a repository"),
            Misroute::Digest => (StatusCode::BAD_REQUEST, "DIGEST_INVALID", "not a sha256 digest"),
            Misroute::Tag => (StatusCode::BAD_REQUEST, "TAG_INVALID", "not a tag"),
        };
        Refusal::new(status, code, message)
    }
}

impl From<&Error> for Refusal {
    fn from(error: &Error) -> Refusal {
        let (status, code, header) = match error {
            Error::ImageNotFound { .. } => (StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN", None),
            Error::BlobNotFound { .. } => (StatusCode::NOT_FOUND, "BLOB_UNKNOWN", None),
            Error::CredentialsNeeded { host, .. } | Error::CredentialsRefused { host, .. } => {
                // So that clients send what they have for us; it is passed on and not kept.
                let header = (WWW_AUTHENTICATE, format!("Basic realm=\"{host}\""));
                (StatusCode::UNAUTHORIZED, "UNAUTHORIZED", Some(header))
            }
            Error::TooManyRequests { after, .. } => {
                let header = after.map(|after| (RETRY_AFTER, after.as_secs().to_string()));
                (StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS", header)
            }
            _ => (StatusCode::BAD_GATEWAY, "UNKNOWN", None),
        };
        Refusal { status, code, message: error.to_string(), header }
    }
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Refusal {
        match &failure {
            Failure::Registry(error) => Refusal::from(&**error),
            Failure::Disk(error) => Refusal::disk(error),
            other => Refusal::new(StatusCode::BAD_GATEWAY, "UNKNOWN", other),
        }
    }
}

pub fn answer(status: StatusCode, body: Body) -> Answer {
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    answer.headers_mut().insert(API_VERSION.0, HeaderValue::from_static(API_VERSION.1));
    answer
}

/// Adds headers whose values we made ourselves.
pub fn with(mut answer: Answer, headers: &[(&'static str, String)]) -> Answer {
    let map: &mut HeaderMap = answer.headers_mut();
    for (name, value) in headers {
        if let Ok(value) = HeaderValue::from_str(value) {
            map.insert(*name, value);
        }
    }
    answer
}
