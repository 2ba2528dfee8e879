//! The door to other people's registries: what is reached how is decided here, what is said to them in [`super::access`].

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::sync::{mpsc, oneshot};

use super::access::Access;
use super::endpoint::{Endpoint, Place, reason};
use super::keyring::Keyring;
use super::policy::{HostCertificates, Policy};
use super::{Credentials, DOCKER_HUB, Error, Retry, full_repository, serving_host};
use crate::image::Reference;

const CONNECT_TIME_MAX: Duration = Duration::from_secs(10);
const REDIRECTS_MAX: usize = 5;
pub const REDIRECTS_WITHOUT_END: &str = "it redirects without end";

#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    policy: Arc<Policy>,
}

impl Client {
    pub fn new(policy: Policy) -> Result<Client, Error> {
        diego_base::tls::install_provider();
        let http = http(&policy, HostCertificates::default())?;
        if let Some(path) = &policy.credentials {
            // Said at the start, not at the first pull.
            let readable = std::fs::File::open(path);
            readable.map_err(|error| Error::Client { reason: format!("{}: {error}", path.display()) })?;
        }
        Ok(Client { http, policy: Arc::new(policy) })
    }

    pub fn default_registry(&self) -> &str {
        &self.policy.default_registry
    }

    /// One image's repository, for one user. Nothing is sent yet.
    pub fn access(&self, reference: &Reference, credentials: Option<Credentials>) -> Arc<Access> {
        let named = reference.host.as_deref().unwrap_or(&self.policy.default_registry);
        let host = serving_host(named).to_string();
        let repository = full_repository(&host, &reference.repository);
        let image = Reference { host: Some(named.into()), ..reference.clone() }.to_string();
        let endpoint = |scheme: Option<&str>, host: &str, mirror: bool, credentials| {
            let own = self.policy.certificates_for(host).map_err(|error| error.to_string());
            let usual = if matches!(own, Ok(None)) { self.policy.scheme(host) } else { "https" };
            let scheme = scheme.unwrap_or(usual);
            let query =
                mirror.then(|| format!("?ns={}", if named == DOCKER_HUB { "docker.io" } else { named }));
            Endpoint::new(Place {
                http: own.and_then(|own| self.http_for(own)),
                host: host.into(),
                base: format!("{scheme}://{host}/v2/{repository}"),
                query: query.unwrap_or_default(),
                repository: repository.clone(),
                image: image.clone(),
                credentials,
                keyring: Keyring::new(self.policy.credentials.clone()),
                // Who comes after a mirror does better than waiting for it.
                retry: if mirror { Retry { tries_max: 1, ..self.policy.retry } } else { self.policy.retry },
                stall_max: self.policy.stall_max,
            })
        };
        // What opens a registry is not for its mirrors to see.
        let mirrors = self.policy.mirrors_of(&host).filter(|(_, mirror)| *mirror != host);
        let mirrors = mirrors.map(|(scheme, mirror)| endpoint(scheme, mirror, true, None)).collect();
        Arc::new(Access::new(mirrors, endpoint(None, &host, false, credentials)))
    }

    /// Registries with certificates of their own have a client of their own, made anew for each pull: they are replaced
    /// while we run.
    fn http_for(&self, own: Option<HostCertificates>) -> Result<reqwest::Client, String> {
        match own {
            Some(own) => http(&self.policy, own).map_err(|error| error.to_string()),
            None => Ok(self.http.clone()),
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
}

fn http(policy: &Policy, own: HostCertificates) -> Result<reqwest::Client, Error> {
    let mut builder = reqwest::Client::builder()
        .no_proxy()
        .user_agent(concat!("diego-rootfs/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_TIME_MAX)
        .read_timeout(policy.stall_max)
        .redirect(reqwest::redirect::Policy::custom(redirect));
    let failed = |what: &dyn std::fmt::Display, error: reqwest::Error| Error::Client {
        reason: format!("{what}: {}", reason(&error)),
    };
    for path in &policy.extra_authorities {
        let pem = std::fs::read(path)
            .map_err(|error| Error::Client { reason: format!("{}: {error}", path.display()) })?;
        let certificates = reqwest::Certificate::from_pem_bundle(&pem);
        builder = builder.tls_certs_merge(certificates.map_err(|error| failed(&path.display(), error))?);
    }
    for pem in &own.authorities {
        let certificates = reqwest::Certificate::from_pem_bundle(pem);
        builder = builder.tls_certs_merge(certificates.map_err(|error| failed(&"its authorities", error))?);
    }
    if let Some(pem) = &own.identity {
        let identity = reqwest::Identity::from_pem(pem);
        builder = builder.identity(identity.map_err(|error| failed(&"our certificate for it", error))?);
    }
    builder.build().map_err(|error| Error::Client { reason: reason(&error) })
}

fn redirect(attempt: reqwest::redirect::Attempt<'_>) -> reqwest::redirect::Action {
    let loses_tls = attempt.url().scheme() != "https"
        && attempt.previous().last().is_some_and(|from| from.scheme() == "https");
    if loses_tls {
        attempt.error("it redirects from https to http")
    } else if attempt.previous().len() > REDIRECTS_MAX {
        attempt.error(REDIRECTS_WITHOUT_END)
    } else {
        attempt.follow()
    }
}
