//! What a container shows to those who connect to it, and whom it lets in.
//!
//! A face is one certificate with its key, for as long as that is used. Sessions are not resumed: each connection sees
//! the certificate of now, and shows its own again. Routers keep their connections.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme,
};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::ContainerProxy;
use crate::credentials::{Issued, names};

static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| Arc::new(provider()));

/// AES with short keys first: it is a quarter cheaper, and no weaker for what lives as long as a connection.
fn provider() -> CryptoProvider {
    use rustls::CipherSuite::{
        TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
        TLS13_AES_128_GCM_SHA256,
    };
    let cheap = [
        TLS13_AES_128_GCM_SHA256,
        TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
    ];
    let mut provider = ring::default_provider();
    provider.cipher_suites.sort_by_key(|suite| !cheap.contains(&suite.suite()));
    provider
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("cannot read the authorities that sign clients' certificates: {0}")]
    Authorities(String),
    #[error("clients' certificates are to be verified, and there is no authority that signs them")]
    NoAuthorities,
    #[error("cannot use a certificate")]
    Certificate(#[from] rustls::Error),
    #[error("cannot read a certificate that was just issued: {0}")]
    Issued(String),
}

/// How containers are met; the same for all of a cell.
#[derive(Debug, Clone)]
pub(crate) struct Manners {
    /// `None`: whoever comes is let in.
    clients: Option<Arc<dyn ClientCertVerifier>>,
    http2: bool,
}

impl Manners {
    pub fn of(proxy: &ContainerProxy) -> Result<Manners, Error> {
        let clients = proxy.require_client_certificates.then(|| Clients::of(proxy)).transpose()?;
        Ok(Manners { clients: clients.map(|clients| Arc::new(clients) as _), http2: proxy.http2 })
    }

    /// For routers and others outside of the platform's containers.
    pub fn for_routers(&self, issued: &Issued) -> Result<Arc<ServerConfig>, Error> {
        let clients = self.clients.clone().unwrap_or_else(WebPkiClientVerifier::no_client_auth);
        let mut config = config(issued, clients)?;
        if self.http2 {
            config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        }
        Ok(Arc::new(config))
    }

    /// For other containers, which the platform's network policies have let through.
    pub fn for_containers(&self, issued: &Issued) -> Result<Arc<ServerConfig>, Error> {
        Ok(Arc::new(config(issued, WebPkiClientVerifier::no_client_auth())?))
    }
}

fn config(issued: &Issued, clients: Arc<dyn ClientCertVerifier>) -> Result<ServerConfig, Error> {
    let unreadable = |error: rustls::pki_types::pem::Error| Error::Issued(error.to_string());
    let chain = CertificateDer::pem_slice_iter(issued.certificate_chain_pem.as_bytes());
    let chain = chain.collect::<Result<Vec<_>, _>>().map_err(unreadable)?;
    let key = PrivateKeyDer::from_pem_slice(issued.private_key_pem.as_bytes()).map_err(unreadable)?;
    let mut config = ServerConfig::builder_with_provider(PROVIDER.clone())
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(clients)
        .with_single_cert(chain, key)?;
    config.ignore_client_order = true;
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    // To go on without the library once hands are shaken: see `records`.
    config.enable_secret_extraction = true;
    Ok(config)
}

/// Lets in who shows a certificate of one of the authorities with one of the names, if there are names.
#[derive(Debug)]
struct Clients {
    signed: Arc<dyn ClientCertVerifier>,
    names: Vec<String>,
}

impl Clients {
    fn of(proxy: &ContainerProxy) -> Result<Clients, Error> {
        let mut roots = RootCertStore::empty();
        for pem in &proxy.trusted_ca_certificates_pem {
            for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
                let certificate = certificate.map_err(|error| Error::Authorities(error.to_string()))?;
                roots.add(certificate).map_err(|error| Error::Authorities(error.to_string()))?;
            }
        }
        if roots.is_empty() {
            return Err(Error::NoAuthorities);
        }
        let signed = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), PROVIDER.clone()).build();
        let signed = signed.map_err(|error| Error::Authorities(error.to_string()))?;
        Ok(Clients { signed, names: proxy.verify_subject_alt_names.clone() })
    }
}

impl ClientCertVerifier for Clients {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.signed.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.signed.verify_client_cert(certificate, intermediates, now)?;
        let is_wanted = |name: &String| self.names.contains(name);
        if self.names.is_empty() || names::alternative_names(certificate).iter().any(is_wanted) {
            return Ok(verified);
        }
        Err(CertificateError::ApplicationVerificationFailure.into())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.signed.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.signed.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.signed.supported_verify_schemes()
    }
}

/// A certificate in use.
#[derive(Debug)]
pub(super) struct Face {
    pub config: Arc<ServerConfig>,
    retired: CancellationToken,
    /// When its connections must be over; known once it is retired.
    last_day: watch::Sender<Option<Instant>>,
}

impl Face {
    pub fn new(config: Arc<ServerConfig>) -> Face {
        Face { config, retired: CancellationToken::new(), last_day: watch::Sender::new(None) }
    }

    /// Another has taken its place.
    pub fn retire(&self, connections_last: Duration) {
        self.last_day.send_replace(Some(Instant::now() + connections_last));
        self.retired.cancel();
    }

    pub fn last_day(&self) -> Option<Instant> {
        *self.last_day.borrow()
    }

    pub async fn is_retired(&self) {
        self.retired.cancelled().await;
    }
}
