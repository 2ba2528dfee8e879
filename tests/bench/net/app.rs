//! What runs at both ends of a connection: an app that speaks HTTP/1.1 and HTTP/2 without TLS, one that pours bytes, and
//! a client that drinks them.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use axum::Router;
use axum::extract::Path;
use axum::http::Version;
use axum::routing::get;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};

const PIECE_BYTES: usize = 256 * 1024;
/// Of the kernel's accounts of processes, on every machine.
const TICKS_PER_SECOND: f64 = 100.0;

/// Tells each client in which version of HTTP it was asked, and what is in its environment.
pub fn serve_http(port: u16) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await?;
        let router = Router::new()
            .route("/", get(|version: Version| async move { format!("hello over {version:?}\n") }))
            .route(
                "/env/{name}",
                get(|Path(name): Path<String>| async { std::env::var(name).unwrap_or_default() }),
            );
        Ok(axum::serve(listener, router).await?)
    })
}

/// Sends as many bytes as each client asks for, by a number in eight bytes; by the other port over TLS of its own.
pub fn serve_bytes(port: u16, own_tls: u16) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
    if let Some(config) = own_tls_config()? {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, own_tls))?;
        std::thread::spawn(move || {
            while let Ok((client, _)) = listener.accept() {
                let Ok(tls) = rustls::ServerConnection::new(config.clone()) else { return };
                let mut client = rustls::StreamOwned::new(tls, client);
                // Whole records, many at once.
                client.conn.set_buffer_limit(Some(PIECE_BYTES));
                pour(&mut client);
            }
        });
    }
    loop {
        pour(&mut listener.accept()?.0);
    }
}

/// Until it has what it wanted, or goes.
fn pour(client: &mut (impl Read + Write)) {
    let piece = vec![b'x'; PIECE_BYTES];
    let mut wanted = [0; 8];
    // Who only looks whether somebody is here asks for nothing.
    if client.read_exact(&mut wanted).is_err() {
        return;
    }
    let mut left = u64::from_le_bytes(wanted);
    while left > 0 {
        let length = left.min(PIECE_BYTES as u64);
        if client.write_all(&piece[..length as usize]).is_err() {
            return;
        }
        left -= length;
    }
    // Who has all that it wanted may be gone.
    _ = client.flush();
}

/// With the certificate that the cell gives its container; `None` where it gives none.
fn own_tls_config() -> Result<Option<Arc<rustls::ServerConfig>>> {
    let (Ok(chain), Ok(key)) = (std::env::var("CF_INSTANCE_CERT"), std::env::var("CF_INSTANCE_KEY")) else {
        return Ok(None);
    };
    let chain = CertificateDer::pem_file_iter(chain)?.collect::<std::result::Result<Vec<_>, _>>()?;
    let mut provider = rustls::crypto::ring::default_provider();
    // The cheaper one first, as the agent has it.
    provider
        .cipher_suites
        .sort_by_key(|suite| suite.suite() != rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth();
    let mut config = config.with_single_cert(chain, PrivateKeyDer::from_pem_file(key)?)?;
    config.ignore_client_order = true;
    Ok(Some(Arc::new(config)))
}

/// What a client shows of TLS to the app's cell.
#[derive(Clone, Copy)]
pub struct Tls<'a> {
    pub authority: &'a str,
    pub name: &'a str,
    /// Shakes hands and asks, and leaves what comes as it is: its work is another machine's.
    pub is_far: bool,
}

/// Of a process, in user's and in kernel's mode.
pub fn cpu_seconds(pid: &str) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<_> = stat.rsplit_once(')').context("no fields")?.1.split_whitespace().collect();
    let ticks: f64 = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
    Ok(ticks / TICKS_PER_SECOND)
}

/// Prints how many seconds so many bytes took, the handshake not counted, and how many of a processor it took here.
pub fn fetch(address: &str, bytes: u64, tls: Option<Tls<'_>>) -> Result<()> {
    let stream = TcpStream::connect(address).with_context(|| format!("cannot connect to {address}"))?;
    stream.set_nodelay(true)?;
    let seconds = match tls {
        None => drink(stream, bytes)?,
        Some(tls) => {
            let mut stream = rustls::StreamOwned::new(client(tls)?, Buffered::new(stream));
            while stream.conn.is_handshaking() {
                stream.conn.complete_io(&mut stream.sock)?;
            }
            if tls.is_far { drink_sealed(stream, bytes)? } else { drink(stream, bytes)? }
        }
    };
    println!("{seconds} {}", cpu_seconds("self")?);
    Ok(())
}

/// What comes is a little more than was asked for: what TLS adds, less than a hundredth.
fn drink_sealed(
    mut stream: rustls::StreamOwned<rustls::ClientConnection, Buffered>,
    bytes: u64,
) -> Result<f64> {
    let began = Instant::now();
    stream.write_all(&bytes.to_le_bytes())?;
    stream.flush()?;
    let (mut left, mut buffer) = (bytes, vec![0; PIECE_BYTES]);
    while left > 0 {
        match stream.sock.read(&mut buffer)? {
            0 => bail!("{left} bytes did not come"),
            length => left = left.saturating_sub(length as u64),
        }
    }
    Ok(began.elapsed().as_secs_f64())
}

fn client(Tls { authority, name, .. }: Tls<'_>) -> Result<rustls::ClientConnection> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(authority)?)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(rustls::ClientConnection::new(Arc::new(config), ServerName::try_from(name.to_owned())?)?)
}

fn drink(mut stream: impl Read + Write, bytes: u64) -> Result<f64> {
    let began = Instant::now();
    stream.write_all(&bytes.to_le_bytes())?;
    stream.flush()?;
    let (mut left, mut buffer) = (bytes, vec![0; PIECE_BYTES]);
    while left > 0 {
        match stream.read(&mut buffer)? {
            0 => bail!("{left} bytes did not come"),
            length => left -= length as u64,
        }
    }
    Ok(began.elapsed().as_secs_f64())
}

/// Reads much at once: the TLS library asks for little.
struct Buffered(std::io::BufReader<TcpStream>);

impl Buffered {
    fn new(stream: TcpStream) -> Self {
        Buffered(std::io::BufReader::with_capacity(PIECE_BYTES, stream))
    }
}

impl Read for Buffered {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Buffered {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.get_mut().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.get_mut().flush()
    }
}
