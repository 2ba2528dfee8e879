//! The way to an instance: by TLS where it is served that and the authority of instances is known, and then only to the
//! one that was meant. Addresses come again; who shows another instance's name is passed over.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::routes::table::Backend;

/// For the connection, and for TLS on it.
const CONNECT_TIME: Duration = Duration::from_secs(2);

#[derive(Debug, thiserror::Error)]
#[error("cannot use the authority of instances: {0}")]
pub struct CannotTrust(String);

/// How instances are reached; by default without TLS.
#[derive(Clone, Default)]
pub struct Backends(Option<TlsConnector>);

impl Backends {
    /// By TLS, where instances show certificates of this authority, in PEM.
    pub fn signed_by(authority: &str) -> Result<Backends, CannotTrust> {
        let cannot = |error: &dyn std::fmt::Display| CannotTrust(error.to_string());
        let mut roots = RootCertStore::empty();
        let certificate =
            CertificateDer::from_pem_slice(authority.as_bytes()).map_err(|error| cannot(&error))?;
        roots.add(certificate).map_err(|error| cannot(&error))?;
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| cannot(&error))?;
        let config = config.with_root_certificates(roots).with_no_client_auth();
        Ok(Backends(Some(TlsConnector::from(Arc::new(config)))))
    }

    pub(super) async fn connect(&self, backend: &Backend) -> io::Result<Connection> {
        let connecting = async {
            match (&self.0, backend.tls_port) {
                (Some(tls), Some(port)) => {
                    let name = ServerName::try_from(backend.instance_guid.clone());
                    let name = name.map_err(io::Error::other)?;
                    let stream = connect(&backend.address, port).await?;
                    Ok(Connection::Tls(Box::new(tls.connect(name, stream).await?)))
                }
                _ => Ok(Connection::Plain(connect(&backend.address, backend.port).await?)),
            }
        };
        tokio::time::timeout(CONNECT_TIME, connecting).await?
    }
}

async fn connect(address: &str, port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect((address, port)).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

pub(super) enum Connection {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Connection::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Connection::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Connection::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Connection::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Connection::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Connection::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Connection::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Connection::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;
    use tokio_rustls::rustls::ServerConfig;
    use tokio_rustls::rustls::pki_types::PrivateKeyDer;

    use super::*;

    /// Greets each client by TLS as `name`; the port, and the authority that says so.
    async fn instance(name: &str) -> (u16, String) {
        let mut authority = CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority_key = KeyPair::generate().unwrap();
        let pem = authority.self_signed(&authority_key).unwrap().pem();
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &Issuer::new(authority, authority_key)).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
            );
        let acceptor = TlsAcceptor::from(Arc::new(config.unwrap()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    if let Ok(mut client) = acceptor.accept(client).await {
                        client.write_all(b"hello").await.unwrap();
                        client.shutdown().await.unwrap();
                    }
                });
            }
        });
        (port, pem)
    }

    #[tokio::test]
    async fn an_instance_is_reached_by_its_own_name_and_by_its_authority_only() {
        let ((port, authority), (_, other)) = (instance("guid-1").await, instance("guid-1").await);
        let backend = |guid: &str| Backend {
            address: "127.0.0.1".into(),
            port: 1,
            tls_port: Some(port),
            process_guid: "p".into(),
            index: 0,
            instance_guid: guid.into(),
        };
        let trusting = Backends::signed_by(&authority).unwrap();
        let mut heard = String::new();
        trusting.connect(&backend("guid-1")).await.unwrap().read_to_string(&mut heard).await.unwrap();
        assert_eq!(heard, "hello");
        assert!(trusting.connect(&backend("guid-2")).await.is_err(), "another instance has its place");
        assert!(trusting.connect(&backend("not a name")).await.is_err());
        let elsewhere = Backends::signed_by(&other).unwrap();
        assert!(elsewhere.connect(&backend("guid-1")).await.is_err(), "of another authority");
        let plain = Backend { port, tls_port: None, ..backend("guid-1") };
        assert!(matches!(trusting.connect(&plain).await.unwrap(), Connection::Plain(_)));
        assert!(Backends::signed_by("rubbish").is_err());
    }
}
