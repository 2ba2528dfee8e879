//! Why a component is not begun with what its file says: in the word that tools look for in its log, and under the exit
//! code that supervisors know.

use std::path::{Path, PathBuf};

use diego_base::telemetry::{self, Style};
use diego_base::tls::{Files, ServerTls};
use rustls::client::verify_server_name;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::ParsedCertificate;

use super::Settings;

/// Something is missing that nothing works without.
pub const UNUSABLE: u8 = 1;
/// Somebody must be told, met or believed who cannot be.
pub const FATAL: u8 = 2;
/// Administrators' scripts reach the component here.
const LOOPBACK: &str = "127.0.0.1";

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{word}: {why}")]
pub struct Refusal {
    pub word: &'static str,
    pub code: u8,
    pub why: String,
}

impl Refusal {
    pub fn new(word: &'static str, code: u8, why: impl Into<String>) -> Self {
        Refusal { word, code, why: why.into() }
    }

    /// In the component's log, where its operators look for it. Answers its exit code.
    pub fn say(&self, component: &str) -> u8 {
        let style = Style { process: Some(component.into()), ..Style::default() };
        telemetry::init_styled("info", Box::new(std::io::stdout()), style);
        tracing::error!(error = self.why, "{}", self.word);
        self.code
    }
}

/// By these keys the file names a certificate, its key and the authorities of the other end.
pub struct Keys {
    pub cert: &'static str,
    pub key: &'static str,
    pub ca: &'static str,
}

/// All three, which must be usable together: what deployments speak is never plain.
pub fn identity(settings: &Settings, keys: &Keys) -> Result<Files, String> {
    let path = |key: &'static str| match settings.text(key) {
        Ok(Some(path)) => Ok(PathBuf::from(path)),
        Ok(None) => Err(format!("the file says no {key}")),
        Err((key, why)) => Err(format!("{key}: {why}")),
    };
    let files = Files { cert: path(keys.cert)?, key: path(keys.key)?, ca: Some(path(keys.ca)?) };
    ServerTls::load(&files).map_err(|error| error.to_string())?;
    Ok(files)
}

/// Whether `path` holds certificates and nothing else, the first of which is good for 127.0.0.1.
pub fn is_for_loopback(path: &Path) -> Result<(), String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let unreadable = || format!("failed parsing cert {}", path.display());
    let certificates: Vec<CertificateDer> = CertificateDer::pem_slice_iter(text.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|_| unreadable())?;
    let parsed: Vec<ParsedCertificate> = certificates
        .iter()
        .map(ParsedCertificate::try_from)
        .collect::<Result<_, _>>()
        .map_err(|_| unreadable())?;
    // A certificate whose beginning was lost is left over.
    if text.matches("-----END").count() != certificates.len() {
        return Err(unreadable());
    }
    let first = parsed.first().ok_or_else(unreadable)?;
    let name = ServerName::try_from(LOOPBACK).map_err(|error| error.to_string())?;
    verify_server_name(first, &name).map_err(|_| {
        format!("invalid SAN metadata. certificate needs to contain {LOOPBACK} for IP SAN metadata.")
    })
}
