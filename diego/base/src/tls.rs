//! Certificates and keys from PEM files, turned once into what a server or a client uses.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

/// The PEM files of one end of a connection. With `ca`, the other end must show a certificate signed by it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    pub cert: PathBuf,
    pub key: PathBuf,
    pub ca: Option<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read {what} from {path}: {reason}")]
    Read { what: &'static str, path: PathBuf, reason: String },
    #[error("cannot use certificate {cert} with key {key}")]
    Pair { cert: PathBuf, key: PathBuf, source: rustls::Error },
    #[error("cannot verify clients against {ca}: {reason}")]
    Verifier { ca: PathBuf, reason: String },
}

/// Chooses this process's TLS provider. Every way into TLS calls it first; later calls do nothing.
pub fn install_provider() {
    // An error means that one is installed already, which is all we want.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// A server's side of TLS, ready to accept.
#[derive(Clone, Debug)]
pub struct ServerTls(pub(crate) Arc<ServerConfig>);

impl ServerTls {
    /// Offers HTTP/2 and HTTP/1.1 by ALPN.
    pub fn load(files: &Files) -> Result<Self, Error> {
        install_provider();
        let builder = match &files.ca {
            None => ServerConfig::builder().with_no_client_auth(),
            Some(ca) => {
                let verifier = WebPkiClientVerifier::builder(Arc::new(roots(ca)?))
                    .build()
                    .map_err(|error| Error::Verifier { ca: ca.clone(), reason: error.to_string() })?;
                ServerConfig::builder().with_client_cert_verifier(verifier)
            }
        };
        let mut config = builder
            .with_single_cert(certificates(&files.cert)?, key(&files.key)?)
            .map_err(|source| Error::Pair { cert: files.cert.clone(), key: files.key.clone(), source })?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(ServerTls(Arc::new(config)))
    }
}

/// A client's side of TLS, for protocols that are not HTTP.
#[derive(Clone, Debug)]
pub struct ClientTls(pub Arc<ClientConfig>);

impl ClientTls {
    /// Shows the certificate, and believes servers whose own one of the authorities has signed, of which there must be
    /// some.
    pub fn load(files: &Files) -> Result<Self, Error> {
        install_provider();
        let authorities = files.ca.as_deref().map(roots).transpose()?.unwrap_or_else(RootCertStore::empty);
        let config = ClientConfig::builder()
            .with_root_certificates(authorities)
            .with_client_auth_cert(certificates(&files.cert)?, key(&files.key)?)
            .map_err(|source| Error::Pair { cert: files.cert.clone(), key: files.key.clone(), source })?;
        Ok(ClientTls(Arc::new(config)))
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let failed = |reason: String| Error::Read { what: "certificates", path: path.into(), reason };
    let pem = CertificateDer::pem_file_iter(path).map_err(|error| failed(error.to_string()))?;
    let found = pem.collect::<Result<Vec<_>, _>>().map_err(|error| failed(error.to_string()))?;
    if found.is_empty() { Err(failed("no certificate in it".into())) } else { Ok(found) }
}

fn key(path: &Path) -> Result<PrivateKeyDer<'static>, Error> {
    PrivateKeyDer::from_pem_file(path).map_err(|error| Error::Read {
        what: "a private key",
        path: path.into(),
        reason: error.to_string(),
    })
}

fn roots(path: &Path) -> Result<RootCertStore, Error> {
    let mut store = RootCertStore::empty();
    for certificate in certificates(path)? {
        store
            .add(certificate)
            .map_err(|error| Error::Verifier { ca: path.into(), reason: error.to_string() })?;
    }
    Ok(store)
}
