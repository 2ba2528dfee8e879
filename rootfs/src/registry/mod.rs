//! Registries: a client of other people's ([`client`]), and one of our own that caches them ([`cache`]).
//!
//! ```text
//! Policy ──▶ Client ──access(image)──▶ Access { mirrors…, registry } ──▶ Endpoint: one host, one repository, one login
//! ```

mod access;
mod auth;
pub mod cache;
mod client;
mod endpoint;
mod keyring;
mod policy;
mod retry;

use std::time::Duration;

use crate::digest::Digest;
use crate::manifest;

pub use access::Access;
pub use client::Client;
pub use endpoint::Fetched;
pub use policy::{InvalidMirror, Mirror, Policy};
pub use retry::Retry;

/// What a registry is given to let us in. Never written anywhere, never shown.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Credentials {
    pub username: String,
    pub password: String,
}

impl Credentials {
    /// `None` when there is neither a name nor a password: anonymous.
    pub fn given(username: &str, password: &str) -> Option<Credentials> {
        if username.is_empty() && password.is_empty() {
            return None;
        }
        Some(Credentials { username: username.into(), password: password.into() })
    }

    /// A token that stands for a user, to be exchanged for one that opens a repository; written as Docker does.
    pub(crate) fn identity_token(token: &str) -> Credentials {
        Credentials { username: IDENTITY_TOKEN.into(), password: token.into() }
    }

    pub(crate) fn as_identity_token(&self) -> Option<&str> {
        (self.username == IDENTITY_TOKEN).then_some(self.password.as_str())
    }
}

/// The name of a user whose password is an identity token.
const IDENTITY_TOKEN: &str = "<token>";

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Credentials({}, …)", self.username)
    }
}

/// Each says what the person who named the image can do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("image {image} not found in its registry")]
    ImageNotFound { image: String },
    #[error("layer {digest} of image {image} not found in its registry")]
    BlobNotFound { image: String, digest: Digest },
    #[error(
        "registry {host} does not let anonymous users read image {image} ({status}): give a username and a password, or check the image's name"
    )]
    CredentialsNeeded { host: String, image: String, status: u16 },
    #[error(
        "registry {host} does not accept the credentials given for image {image} ({status}): check username, password and the right to read it"
    )]
    CredentialsRefused { host: String, image: String, status: u16 },
    #[error("registry {host} refuses image {image} for now, too many requests (429){}", retry_hint(after))]
    TooManyRequests { host: String, image: String, after: Option<Duration> },
    #[error("registry {host} fails ({status}) when asked for image {image}: try again later")]
    RegistryFails { host: String, image: String, status: u16 },
    #[error("registry {host} answers {status} when asked for image {image}")]
    Unexpected { host: String, image: String, status: u16 },
    #[error("registry {host} cannot be reached for image {image}: {reason}")]
    Unreachable { host: String, image: String, reason: String },
    #[error("registry {host} stopped in the middle of image {image}: {reason}")]
    Interrupted { host: String, image: String, reason: String },
    #[error("registry {host} leads astray when asked for image {image}: {reason}")]
    Redirected { host: String, image: String, reason: String },
    #[error("cannot find out who we are to registry {host}: {reason}")]
    Keyring { host: String, reason: String },
    #[error("registry {host} asks for a login that is not understood: {reason}")]
    Challenge { host: String, reason: String },
    #[error("registry {host} sends {actual} for image {image} where {expected} was asked for")]
    WrongDigest { host: String, image: String, expected: Digest, actual: Digest },
    #[error(
        "registry {host} sends {actual} bytes for layer {digest} of image {image}, whose manifest says {expected}"
    )]
    WrongSize { host: String, image: String, digest: Digest, expected: u64, actual: u64 },
    #[error("registry {host} sends more than {limit} bytes for the {what} of image {image}")]
    TooLarge { host: String, image: String, what: &'static str, limit: u64 },
    #[error("image {image} cannot be used: {source}")]
    Manifest { image: String, source: manifest::Error },
    #[error("cannot make an HTTP client for registries: {reason}")]
    Client { reason: String },
}

fn retry_hint(after: &Option<Duration>) -> String {
    match after {
        Some(after) => format!(": try again in {} s, or give credentials", after.as_secs().max(1)),
        None => ": try again later, or give credentials".into(),
    }
}

impl Error {
    /// Whether the registry, rather than its answer, is missing: what was known of it before may still be used.
    pub fn registry_is_gone(&self) -> bool {
        matches!(
            self,
            Error::TooManyRequests { .. }
                | Error::RegistryFails { .. }
                | Error::Unreachable { .. }
                | Error::Interrupted { .. }
        )
    }
}

/// The name by which Docker Hub is known and the host that serves it.
const DOCKER_HUB: &str = "registry-1.docker.io";

/// The host that serves what people call `name`.
pub(crate) fn serving_host(name: &str) -> &str {
    match name {
        "docker.io" | "index.docker.io" => DOCKER_HUB,
        other => other,
    }
}

/// Docker Hub's own images are in a folder that nobody types.
pub(crate) fn full_repository(host: &str, repository: &str) -> String {
    match host == DOCKER_HUB && !repository.contains('/') {
        true => format!("library/{repository}"),
        false => repository.into(),
    }
}
