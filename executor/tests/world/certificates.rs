//! Who signs containers' certificates, and clients that trust it.

use std::sync::Arc;
use std::time::Duration;

use executor::InstanceIdentity;
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

/// What it signs is good for a day.
pub fn authority() -> InstanceIdentity {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    InstanceIdentity {
        ca_certificate_pem: params.self_signed(&key).unwrap().pem(),
        ca_private_key_pem: key.serialize_pem(),
        validity: Duration::from_secs(24 * 3600),
    }
}

pub fn trusting(authority_pem: &str) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority_pem.as_bytes()).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let config = config.with_safe_default_protocol_versions().unwrap();
    Arc::new(config.with_root_certificates(roots).with_no_client_auth())
}
