//! One volume driver: JSON over HTTP, as Docker's volume plugins speak it. Each call has its deadline; what a driver
//! answers is bounded.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::StreamExt;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::spec::{Address, Spec, Tls};
use crate::steps::report;

/// For calls that only ask.
const ASK_TIMEOUT: Duration = Duration::from_secs(10);
/// For a mount, with what goes before it; a server may have to be reached first.
pub(super) const MOUNT_TIMEOUT: Duration = Duration::from_secs(60);
pub(super) const UNMOUNT_TIMEOUT: Duration = Duration::from_secs(30);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Of one answer; a list of volumes is the longest.
const ANSWER_BYTES_MAX: usize = 4 << 20;
const VOLUME_DRIVER: &str = "VolumeDriver";

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("cannot read {path}")]
    Read { path: std::path::PathBuf, source: std::io::Error },
    #[error("cannot make a client")]
    Client(#[source] reqwest::Error),
    #[error("{call} failed")]
    Call { call: &'static str, source: reqwest::Error },
    #[error("{call} was not answered within {0}s", .within.as_secs())]
    Deadline { call: &'static str, within: Duration },
    #[error("the answer to {call} cannot be understood: {why}")]
    Answer { call: &'static str, why: String },
    /// May tell what is nobody's affair but the operator's.
    #[error("{call} was refused: {told}")]
    Refused { call: &'static str, told: String },
    /// The driver has said that users may read this.
    #[error("{0}")]
    RefusedForAll(String),
    #[error("it is no volume driver: it implements {0:?}")]
    NoVolumeDriver(Vec<String>),
}

impl Error {
    /// What the user of the volume may read: no addresses, no options, no words of the driver's that are not meant for all.
    pub fn for_users(&self, driver: &str) -> Option<String> {
        match self {
            Error::RefusedForAll(told) => Some(told.clone()),
            Error::Deadline { within, .. } => {
                Some(format!("volume driver '{driver}' did not answer within {}s", within.as_secs()))
            }
            Error::Call { .. } => Some(format!("volume driver '{driver}' does not answer")),
            Error::Answer { .. } => {
                Some(format!("volume driver '{driver}' gave an answer that means nothing"))
            }
            Error::Read { .. } | Error::Client(_) | Error::Refused { .. } | Error::NoVolumeDriver(_) => None,
        }
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Driver {
    pub spec: Spec,
    http: reqwest::Client,
    base: String,
}

/// As far as it is used.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Answer {
    err: Option<String>,
    implements: Option<Vec<String>>,
    mountpoint: Option<String>,
    volumes: Option<Vec<Volume>>,
}

/// What a driver says of one of its volumes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct Volume {
    pub name: String,
    /// Empty while it is not mounted.
    pub mountpoint: Option<String>,
    /// Not all drivers tell.
    pub mount_count: Option<i64>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Create<'a> {
    name: &'a str,
    opts: &'a Options,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Named<'a> {
    name: &'a str,
}

/// A refusal for all comes as JSON within the JSON.
#[derive(Deserialize)]
struct ForAll {
    #[serde(rename = "SafeDescription")]
    description: String,
}

pub(crate) type Options = serde_json::Map<String, serde_json::Value>;

impl Driver {
    pub fn new(spec: Spec) -> Result<Driver, Error> {
        let builder = reqwest::Client::builder().no_proxy().connect_timeout(CONNECT_TIMEOUT);
        let (builder, base) = match &spec.address {
            Address::Http(url) => (builder, url.clone()),
            Address::Unix(path) => (builder.unix_socket(path.clone()), "http://driver".to_owned()),
        };
        let builder = match &spec.tls {
            Some(tls) => with_tls(builder, tls)?,
            None => builder,
        };
        diego_base::tls::install_provider();
        Ok(Driver { http: builder.build().map_err(Error::Client)?, base, spec })
    }

    /// Whether it is there, and drives volumes.
    pub async fn activate(&self) -> Result<(), Error> {
        let answer: Answer = self.call("/Plugin.Activate", &BTreeMap::<(), ()>::new(), ASK_TIMEOUT).await?;
        let implements = answer.implements.unwrap_or_default();
        match implements.iter().any(|what| what == VOLUME_DRIVER) {
            true => Ok(()),
            false => Err(Error::NoVolumeDriver(implements)),
        }
    }

    /// Makes the volume known, then mounts it; answers where.
    pub async fn mount(&self, name: &str, opts: &Options) -> Result<String, Error> {
        self.call("/VolumeDriver.Create", &Create { name, opts }, MOUNT_TIMEOUT).await?;
        let answer = self.call("/VolumeDriver.Mount", &Named { name }, MOUNT_TIMEOUT).await?;
        let mountpoint = answer.mountpoint.unwrap_or_default();
        match mountpoint.starts_with('/') {
            true => Ok(mountpoint),
            false => {
                Err(Error::Answer { call: "/VolumeDriver.Mount", why: format!("'{mountpoint}' is no place") })
            }
        }
    }

    pub async fn unmount(&self, name: &str) -> Result<(), Error> {
        self.call("/VolumeDriver.Unmount", &Named { name }, UNMOUNT_TIMEOUT).await.map(drop)
    }

    pub async fn list(&self) -> Result<Vec<Volume>, Error> {
        let answer = self.call("/VolumeDriver.List", &BTreeMap::<(), ()>::new(), ASK_TIMEOUT).await?;
        Ok(answer.volumes.unwrap_or_default())
    }

    async fn call(
        &self,
        call: &'static str,
        body: &impl Serialize,
        within: Duration,
    ) -> Result<Answer, Error> {
        let calling = self.call_however_long(call, body);
        tokio::time::timeout(within, calling).await.map_err(|_| Error::Deadline { call, within })?
    }

    async fn call_however_long(&self, call: &'static str, body: &impl Serialize) -> Result<Answer, Error> {
        let failed = |error: reqwest::Error| Error::Call { call, source: error.without_url() };
        let response =
            self.http.post(format!("{}{call}", self.base)).json(body).send().await.map_err(failed)?;
        let status = response.status();
        let mut answer = Vec::new();
        let mut pieces = response.bytes_stream();
        while let Some(piece) = pieces.next().await {
            answer.extend_from_slice(&piece.map_err(failed)?);
            if answer.len() > ANSWER_BYTES_MAX {
                return Err(Error::Answer {
                    call,
                    why: format!("it is longer than {ANSWER_BYTES_MAX} bytes"),
                });
            }
        }
        // A refusal says so itself, whatever its status.
        let answer: Answer = parse(&answer).map_err(|why| match status.is_success() {
            true => Error::Answer { call, why },
            false => Error::Refused { call, told: status.to_string() },
        })?;
        match answer.err.as_deref() {
            Some(told) if !told.is_empty() => Err(refusal(call, told)),
            _ if !status.is_success() => Err(Error::Refused { call, told: status.to_string() }),
            _ => Ok(answer),
        }
    }
}

fn parse<T: DeserializeOwned>(json: &[u8]) -> Result<T, String> {
    serde_json::from_slice(json).map_err(|error| report(&error))
}

fn refusal(call: &'static str, told: &str) -> Error {
    match serde_json::from_str::<ForAll>(told) {
        Ok(for_all) => Error::RefusedForAll(for_all.description),
        Err(_) => Error::Refused { call, told: told.to_owned() },
    }
}

fn with_tls(mut builder: reqwest::ClientBuilder, tls: &Tls) -> Result<reqwest::ClientBuilder, Error> {
    let read = |path: &std::path::Path| {
        std::fs::read(path).map_err(|source| Error::Read { path: path.to_path_buf(), source })
    };
    diego_base::tls::install_provider();
    builder = builder.tls_danger_accept_invalid_certs(tls.skip_verify);
    if !tls.cert.as_os_str().is_empty() {
        let mut identity = read(&tls.cert)?;
        identity.extend(read(&tls.key)?);
        builder = builder.identity(reqwest::Identity::from_pem(&identity).map_err(Error::Client)?);
    }
    if !tls.ca.as_os_str().is_empty() {
        let roots = reqwest::Certificate::from_pem_bundle(&read(&tls.ca)?).map_err(Error::Client)?;
        builder = builder.tls_certs_only(roots);
    }
    Ok(builder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_read_what_is_meant_for_them() {
        let call = "/VolumeDriver.Mount";
        let rows = [
            (refusal(call, r#"{"SafeDescription":"no such share"}"#), Some("no such share")),
            (refusal(call, "user=root,password=secret"), None),
            (
                Error::Answer { call, why: "x".into() },
                Some("volume driver 'nfs' gave an answer that means nothing"),
            ),
            (
                Error::Deadline { call, within: MOUNT_TIMEOUT },
                Some("volume driver 'nfs' did not answer within 60s"),
            ),
        ];
        for (error, expected) in rows {
            assert_eq!(error.for_users("nfs").as_deref(), expected, "{error}");
        }
    }
}
