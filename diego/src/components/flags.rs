//! Flags that several components share, each parsed into what the component really uses.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use bbs_client::{BbsClient, Lock, LocketClient};
use clap::Args;
use diego_base::http::ClientConfig;
use diego_base::telemetry::{Style, Timestamps};
use diego_base::tls::{Files, ServerTls};
use rootfs::registry::{Mirror, Policy};

use crate::duration;

#[derive(Args)]
pub struct Log {
    /// `debug`, `info` or `error`, or `info,rep=debug`.
    #[arg(long, default_value = "info")]
    pub log_level: String,
    /// The source of every line; otherwise the part of the process that speaks.
    #[arg(long, value_name = "NAME")]
    log_source: Option<String>,
    /// `rfc3339` or `unix-epoch`.
    #[arg(long, default_value = "rfc3339", value_parser = timestamps)]
    log_time_format: Timestamps,
}

impl Log {
    pub fn style(&self) -> Style {
        Style { process: self.log_source.clone(), timestamps: self.log_time_format, ..Style::default() }
    }
}

fn timestamps(text: &str) -> Result<Timestamps, String> {
    match text {
        "rfc3339" => Ok(Timestamps::Rfc3339),
        "unix-epoch" => Ok(Timestamps::UnixEpoch),
        _ => Err("it must be rfc3339 or unix-epoch".into()),
    }
}

/// How registries of images are reached.
#[derive(Args, Clone)]
#[command(next_help_heading = "Registries")]
pub struct Registries {
    /// For images that name no registry; otherwise Docker Hub.
    #[arg(long)]
    pub docker_registry: Option<String>,
    /// A registry, as HOST or HOST:PORT, that may be reached without TLS. May be given many times.
    #[arg(long = "insecure-docker-registry", value_name = "HOST")]
    pub insecure: Vec<String>,
    /// Where images of a registry are asked for before itself, in the order given; `*` is every registry. May be given
    /// many times.
    #[arg(long = "registry-mirror", value_name = "REGISTRY=[http://]HOST")]
    pub mirrors: Vec<Mirror>,
    /// Who we are to which registry: a file in the form of ~/.docker/config.json, which may name helpers.
    #[arg(long = "registry-credentials", value_name = "FILE")]
    pub credentials: Option<PathBuf>,
    /// A directory with one for each registry, as /etc/docker/certs.d: authorities in *.crt, our certificates in *.cert
    /// and *.key.
    #[arg(long = "registry-certificates", value_name = "DIRECTORY")]
    pub certificates: Option<PathBuf>,
    /// Authorities, in PEM, that may sign any registry's certificate, beside those of this machine. May be given many
    /// times.
    #[arg(long = "registry-ca-cert-file", value_name = "FILE")]
    pub authorities: Vec<PathBuf>,
}

impl Registries {
    pub fn policy(self) -> Policy {
        let usual = Policy::default();
        Policy {
            default_registry: self.docker_registry.unwrap_or(usual.default_registry),
            insecure: self.insecure,
            extra_authorities: self.authorities,
            certificates: self.certificates,
            mirrors: self.mirrors,
            credentials: self.credentials,
            ..Policy::default()
        }
    }
}

/// Without these everything is spoken in plain text, which is for one machine only.
#[derive(Args)]
pub struct Tls {
    /// The certificate, in PEM, that is shown to clients and to the components this one calls.
    #[arg(long, requires = "key_file", help_heading = "TLS")]
    cert_file: Option<PathBuf>,
    /// The certificate's private key, in PEM.
    #[arg(long, requires = "cert_file", help_heading = "TLS")]
    key_file: Option<PathBuf>,
    /// Authorities, in PEM, one of which must have signed the certificate of whoever is at the other end.
    #[arg(long, requires = "cert_file", help_heading = "TLS")]
    ca_cert_file: Option<PathBuf>,
}

impl Tls {
    fn files(&self) -> Option<Files> {
        let (cert, key) = self.cert_file.clone().zip(self.key_file.clone())?;
        Some(Files { cert, key, ca: self.ca_cert_file.clone() })
    }

    pub fn server(&self) -> Result<Option<ServerTls>> {
        Ok(self.files().map(|files| ServerTls::load(&files)).transpose()?)
    }

    pub fn client(&self) -> ClientConfig {
        ClientConfig { tls: self.files(), ..ClientConfig::default() }
    }

    /// `https` or `http`, as this component is to be called.
    pub fn scheme(&self) -> &'static str {
        if self.cert_file.is_some() { "https" } else { "http" }
    }
}

/// The client of a peer that is shown other files than the rest, where there are any.
pub fn with_files(usual: &ClientConfig, [cert, key, ca]: [&Option<PathBuf>; 3]) -> ClientConfig {
    let files = cert.clone().zip(key.clone()).map(|(cert, key)| Files { cert, key, ca: ca.clone() });
    ClientConfig { tls: files.or_else(|| usual.tls.clone()), ..usual.clone() }
}

/// Locket, for those who may hold a lock there, and the certificate it is shown.
#[derive(Args)]
pub struct Locket {
    /// The Locket whose lock says which of several works, as `HOST:PORT`. Without it there is only this one.
    #[arg(long)]
    locket: Option<String>,
    /// As whom the lock is held; otherwise as nobody before.
    #[arg(long, requires = "locket")]
    lock_owner: Option<String>,
    /// How long the lock outlives its last renewal.
    #[arg(long, default_value = "15s", value_parser = interval)]
    lock_ttl: Duration,
    /// Between two attempts to get the lock, and two renewals unless half of --lock-ttl is up before.
    #[arg(long, default_value = "5s", value_parser = interval)]
    lock_retry_interval: Duration,
    /// Shown to Locket; otherwise --cert-file is.
    #[arg(long, requires = "locket_key_file", help_heading = "TLS")]
    locket_cert_file: Option<PathBuf>,
    #[arg(long, requires = "locket_cert_file", help_heading = "TLS")]
    locket_key_file: Option<PathBuf>,
    /// Authorities, in PEM, one of which must have signed Locket's certificate.
    #[arg(long, requires = "locket_cert_file", help_heading = "TLS")]
    locket_ca_cert_file: Option<PathBuf>,
}

impl Locket {
    /// Must be called in a runtime.
    pub fn client(&self, usual: &ClientConfig) -> Result<Option<LocketClient>> {
        let files = [&self.locket_cert_file, &self.locket_key_file, &self.locket_ca_cert_file];
        let config = with_files(usual, files);
        self.locket.as_ref().map(|address| locket(address, &config)).transpose()
    }

    /// What says which of several works. Must be called in a runtime.
    pub fn lock(&self, usual: &ClientConfig) -> Result<Option<Lock>> {
        let lock = |locket| Lock {
            ttl: self.lock_ttl,
            renewal: self.lock_retry_interval,
            ..Lock::new(locket, self.lock_owner.clone())
        };
        Ok(self.client(usual)?.map(lock))
    }

    /// Whether it was told as whom the lock is to be held.
    pub fn has_owner(&self) -> bool {
        self.lock_owner.is_some()
    }
}

/// The certificate that the BBS is shown.
#[derive(Args)]
#[command(next_help_heading = "TLS")]
pub struct BbsTls {
    /// Shown to the BBS; otherwise --cert-file is.
    #[arg(long, requires = "bbs_key_file")]
    bbs_cert_file: Option<PathBuf>,
    #[arg(long, requires = "bbs_cert_file")]
    bbs_key_file: Option<PathBuf>,
    /// Authorities, in PEM, one of which must have signed the BBS's certificate.
    #[arg(long, requires = "bbs_cert_file")]
    bbs_ca_cert_file: Option<PathBuf>,
}

impl BbsTls {
    pub fn config(&self, usual: &ClientConfig) -> ClientConfig {
        with_files(usual, [&self.bbs_cert_file, &self.bbs_key_file, &self.bbs_ca_cert_file])
    }
}

/// The certificate that cells are shown.
#[derive(Args)]
#[command(next_help_heading = "TLS")]
pub struct RepTls {
    /// Shown to cells; otherwise --cert-file is.
    #[arg(long, requires = "rep_key_file")]
    rep_cert_file: Option<PathBuf>,
    #[arg(long, requires = "rep_cert_file")]
    rep_key_file: Option<PathBuf>,
    /// Authorities, in PEM, one of which must have signed a cell's certificate.
    #[arg(long, requires = "rep_cert_file")]
    rep_ca_cert_file: Option<PathBuf>,
}

impl RepTls {
    pub fn config(&self, usual: &ClientConfig) -> ClientConfig {
        with_files(usual, [&self.rep_cert_file, &self.rep_key_file, &self.rep_ca_cert_file])
    }
}

#[derive(Args)]
pub struct Bbs {
    /// The BBS, as `http://HOST:PORT` or `https://HOST:PORT`.
    #[arg(long, default_value = "http://127.0.0.1:8889")]
    bbs_url: String,
}

impl Bbs {
    pub fn client(&self, config: &ClientConfig) -> Result<BbsClient> {
        let unusable = || format!("cannot use the BBS at {}", self.bbs_url);
        anyhow::ensure!(
            self.bbs_url.contains("://"),
            "{}: it must begin with http:// or https://",
            unusable()
        );
        BbsClient::new(&self.bbs_url, config).with_context(unusable)
    }
}

/// Must be called in a runtime.
pub fn locket(address: &str, config: &ClientConfig) -> Result<LocketClient> {
    LocketClient::new(address, config).with_context(|| format!("cannot use Locket at {address}"))
}

#[derive(Args)]
pub struct Health {
    /// Answer every plain HTTP request here with 200, for whoever supervises this process.
    #[arg(long, value_parser = address)]
    pub health_address: Option<SocketAddr>,
}

/// More than nothing.
pub fn interval(text: &str) -> Result<Duration, String> {
    match duration::parse(text)? {
        Duration::ZERO => Err("it must be more than nothing".into()),
        interval => Ok(interval),
    }
}

/// `HOST:PORT`; of a name's addresses the first one of version 4, if it has any.
pub fn address(text: &str) -> Result<SocketAddr, String> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let found: Vec<_> = text.to_socket_addrs().map_err(|error| error.to_string())?.collect();
    let fourth = found.iter().find(|address| address.is_ipv4()).or(found.first());
    fourth.copied().ok_or_else(|| "it has no address".into())
}

/// `NAME=PATH`.
pub fn stack(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, path)) if !name.is_empty() && path.starts_with('/') => Ok((name.into(), path.into())),
        _ => Err("it must be NAME=/PATH".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stack_is_a_name_and_a_path() {
        assert_eq!(stack("linux=/roots/linux.tar"), Ok(("linux".into(), "/roots/linux.tar".into())));
        for text in ["linux", "=/roots", "linux=", "linux=roots/linux"] {
            assert_eq!(stack(text), Err("it must be NAME=/PATH".into()), "{text}");
        }
    }
}
