//! Just enough of an HTTP client for a check: one GET on one connection, its status, redirects within the container.
//!
//! What it reads was written by the application: bounded, and trusted for nothing but the status.

use std::io;
use std::net::{IpAddr, SocketAddr};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Read of a body, so that the application does not see its client leave early; the rest is left unread.
const BODY_BYTES_MAX: u64 = 1 << 20;
const HEADERS_MAX: usize = 128;
const REDIRECTS_MAX: usize = 10;

/// The status of the last answer. The caller bounds the time.
pub(super) async fn status(ip: IpAddr, port: u16, path: &str) -> io::Result<u16> {
    let (mut port, mut path) = (port, path.to_string());
    for _ in 0..REDIRECTS_MAX {
        let head = get(ip, port, &path).await?;
        match head.redirect_to {
            Some(location) => match follow(&location, ip, port, &path) {
                Some(next) => (port, path) = next,
                None => return Ok(head.status),
            },
            None => return Ok(head.status),
        }
    }
    Err(io::Error::other("stopped after 10 redirects"))
}

struct Head {
    status: u16,
    redirect_to: Option<String>,
    body_bytes: Option<u64>,
}

async fn get(ip: IpAddr, port: u16, path: &str) -> io::Result<Head> {
    let address = SocketAddr::new(ip, port);
    let mut stream = TcpStream::connect(address).await?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: diego-healthcheck\r\nX-Forwarded-Proto: https\r\n\
         Accept-Encoding: identity\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut received = Vec::with_capacity(4096);
    loop {
        if let Some((head, length)) = parse(&received)? {
            if head.status >= 200 {
                let left = head.body_bytes.unwrap_or(BODY_BYTES_MAX).min(BODY_BYTES_MAX);
                drain(stream, left.saturating_sub((received.len() - length) as u64)).await;
                return Ok(head);
            }
            received.drain(..length);
            continue;
        }
        if received.len() >= HEAD_BYTES_MAX || stream.read_buf(&mut received).await? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
        }
    }
}

/// The status is known; whatever befalls the body changes nothing.
async fn drain(stream: TcpStream, bytes: u64) {
    let _ = tokio::io::copy(&mut stream.take(bytes), &mut tokio::io::sink()).await;
}

fn parse(received: &[u8]) -> io::Result<Option<(Head, usize)>> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    let length = match response.parse(received).map_err(io::Error::other)? {
        httparse::Status::Complete(length) => length,
        httparse::Status::Partial => return Ok(None),
    };
    let status = response.code.unwrap_or_default();
    let header = |name: &str| {
        let found = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
        found.and_then(|header| std::str::from_utf8(header.value).ok())
    };
    let redirect_to = match status {
        301 | 302 | 303 | 307 | 308 => header("location").map(str::to_string),
        _ => None,
    };
    let body_bytes = header("content-length").and_then(|value| value.trim().parse().ok());
    Ok(Some((Head { status, redirect_to, body_bytes }, length)))
}

/// Where a redirect leads; `None` when that is not this container over plain HTTP.
fn follow(location: &str, ip: IpAddr, port: u16, path: &str) -> Option<(u16, String)> {
    let base = reqwest::Url::parse(&format!("http://{}{path}", SocketAddr::new(ip, port))).ok()?;
    let next = base.join(location).ok()?;
    if next.scheme() != "http" || next.host_str() != base.host_str() {
        return None;
    }
    let query = next.query().map(|query| format!("?{query}")).unwrap_or_default();
    Some((next.port_or_known_default()?, format!("{}{query}", next.path())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_stay_within_the_container() {
        let ip: IpAddr = "10.254.0.2".parse().unwrap();
        let table = [
            ("/ok?a=1", Some((8080, "/ok?a=1"))),
            ("ok", Some((8080, "/health/ok"))),
            ("http://10.254.0.2:9090/x", Some((9090, "/x"))),
            ("https://10.254.0.2:8080/x", None),
            ("http://169.254.169.254/latest", None),
        ];
        for (location, wanted) in table {
            let wanted = wanted.map(|(port, path)| (port, path.to_string()));
            assert_eq!(follow(location, ip, 8080, "/health/"), wanted, "{location}");
        }
    }
}
