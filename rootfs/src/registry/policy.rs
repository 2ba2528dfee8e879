//! Which registries are reached how: what an operator says about them, and what follows for one host.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use super::{Error, Retry, serving_host};

/// Bytes of one certificate or key.
const PEM_BYTES_MAX: u64 = 1024 * 1024;

#[derive(Debug, Clone)]
pub struct Policy {
    /// For images that name no registry.
    pub default_registry: String,
    /// `host` or `host:port` reached without TLS; loopback always is.
    pub insecure: Vec<String>,
    /// PEM files of further authorities that may sign registries.
    pub extra_authorities: Vec<PathBuf>,
    /// A directory with one for each registry, `host` or `host:port`: authorities in `*.crt`, and certificates that we
    /// show in `*.cert`, each with its `*.key`. As `/etc/docker/certs.d`. Who has one is always reached by TLS.
    pub certificates: Option<PathBuf>,
    /// Asked in this order before the registry they stand for.
    pub mirrors: Vec<Mirror>,
    /// Who we are where: a file in the form of `~/.docker/config.json`. Read anew for each login.
    pub credentials: Option<PathBuf>,
    pub retry: Retry,
    /// Without a byte for this long, an answer is given up; and so is one that brings next to nothing.
    pub stall_max: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Policy {
            default_registry: super::DOCKER_HUB.into(),
            insecure: Vec::new(),
            extra_authorities: Vec::new(),
            certificates: None,
            mirrors: Vec::new(),
            credentials: None,
            retry: Retry::default(),
            stall_max: Duration::from_secs(30),
        }
    }
}

/// Another place for the images of a registry, written `HOST=[http://|https://]MIRROR`; `*` is every registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    of: String,
    /// `None`: as the mirror itself is reached.
    scheme: Option<&'static str>,
    host: String,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no mirror of the form REGISTRY=[http://|https://]HOST[:PORT]")]
pub struct InvalidMirror(String);

impl FromStr for Mirror {
    type Err = InvalidMirror;

    fn from_str(text: &str) -> Result<Mirror, InvalidMirror> {
        let invalid = || InvalidMirror(text.into());
        let (of, place) = text.split_once('=').ok_or_else(invalid)?;
        let (scheme, host) = match (place.strip_prefix("http://"), place.strip_prefix("https://")) {
            (Some(host), _) => (Some("http"), host),
            (_, Some(host)) => (Some("https"), host),
            _ => (None, place),
        };
        let host = host.trim_end_matches('/');
        let is_host = |text: &str| {
            !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b".-:[]".contains(&b))
        };
        if !is_host(host) || of != "*" && !is_host(of) {
            return Err(invalid());
        }
        Ok(Mirror { of: serving_host(of).into(), scheme, host: host.into() })
    }
}

/// What TLS needs to know of one host beside what it knows of all.
#[derive(Default)]
pub struct HostCertificates {
    pub authorities: Vec<Vec<u8>>,
    /// A certificate with its key, one after the other.
    pub identity: Option<Vec<u8>>,
}

impl Policy {
    /// Where the mirrors of `host` are, and by which scheme if that was said.
    pub fn mirrors_of(&self, host: &str) -> impl Iterator<Item = (Option<&'static str>, &str)> {
        let suitable = self.mirrors.iter().filter(move |mirror| mirror.of == "*" || mirror.of == host);
        suitable.map(|mirror| (mirror.scheme, mirror.host.as_str()))
    }

    /// How a host is reached of which nothing else is said.
    pub fn scheme(&self, host: &str) -> &'static str {
        let name = without_port(host);
        let loopback =
            name == "localhost" || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
        match loopback || self.insecure.iter().any(|allowed| allowed == host || allowed == name) {
            true => "http",
            false => "https",
        }
    }

    /// `None`: this host needs nothing that others do not.
    pub fn certificates_for(&self, host: &str) -> Result<Option<HostCertificates>, Error> {
        let Some(directory) = self.certificates.as_ref().map(|directory| directory.join(host)) else {
            return Ok(None);
        };
        let failed = |path: &Path, reason: &dyn std::fmt::Display| Error::Client {
            reason: format!("{}: {reason}", path.display()),
        };
        let entries = match std::fs::read_dir(&directory) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            entries => entries.map_err(|error| failed(&directory, &error))?,
        };
        let mut found = HostCertificates::default();
        for entry in entries {
            let path = entry.map_err(|error| failed(&directory, &error))?.path();
            let read = |path: &Path| read_pem(path).map_err(|error| failed(path, &error));
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("crt") => found.authorities.push(read(&path)?),
                Some("cert") => {
                    let mut identity = read(&path)?;
                    identity.push(b'\n');
                    identity.extend(read(&path.with_extension("key"))?);
                    found.identity = Some(identity);
                }
                _ => {}
            }
        }
        Ok(Some(found))
    }
}

fn read_pem(path: &Path) -> std::io::Result<Vec<u8>> {
    if std::fs::metadata(path)?.len() > PEM_BYTES_MAX {
        return Err(std::io::Error::other(format!("more than {PEM_BYTES_MAX} bytes")));
    }
    std::fs::read(path)
}

fn without_port(host: &str) -> &str {
    match host.strip_prefix('[').and_then(|host| host.split_once(']')) {
        Some((address, _)) => address,
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_and_what_is_allowed_goes_without_tls() {
        let policy = Policy { insecure: vec!["plain.example".into(), "r:5000".into()], ..Policy::default() };
        for (host, scheme) in [
            ("registry.example", "https"),
            ("plain.example", "http"),
            ("plain.example:5000", "http"),
            ("r:5000", "http"),
            ("r:5001", "https"),
            ("r", "https"),
            ("localhost:1", "http"),
            ("127.0.0.2", "http"),
            ("[::1]:5000", "http"),
            ("127.0.0.1.example", "https"),
        ] {
            assert_eq!(policy.scheme(host), scheme, "{host}");
        }
    }

    #[test]
    fn mirrors_are_asked_in_the_order_given() {
        let mirror = |text: &str| text.parse::<Mirror>();
        let mirrors = ["docker.io=https://a.example", "*=127.0.0.1:5050", "docker.io=http://b.example:80/"];
        let policy =
            Policy { mirrors: mirrors.map(|text| mirror(text).unwrap()).to_vec(), ..Policy::default() };
        let of = |host: &str| policy.mirrors_of(host).collect::<Vec<_>>();
        let hub = [(Some("https"), "a.example"), (None, "127.0.0.1:5050"), (Some("http"), "b.example:80")];
        assert_eq!(of("registry-1.docker.io"), hub);
        assert_eq!(of("quay.io"), [(None, "127.0.0.1:5050")]);
        for wrong in ["a.example", "a.example=", "=b", "a b=c", "a=ftp://b", "a=b/c"] {
            assert_eq!(mirror(wrong), Err(InvalidMirror(wrong.into())));
        }
    }
}
