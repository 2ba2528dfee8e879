//! Just enough of an HTTP client for a check: one GET on one connection, its status, redirects within the container.
//!
//! What it reads was written by the application: bounded, and trusted for nothing but the status.

use std::io;
use std::net::{IpAddr, SocketAddr};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::vantage::Way;

const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Read of a body, so that the application does not see its client leave early; the rest is left unread.
const BODY_BYTES_MAX: u64 = 1 << 20;
const HEADERS_MAX: usize = 128;
const REDIRECTS_MAX: usize = 10;

/// What was answered last. The caller bounds the time.
pub(super) async fn get(to: SocketAddr, path: &str, mut way: Way<'_>) -> io::Result<Answer> {
    let (mut port, mut path) = (to.port(), path.to_string());
    for _ in 0..REDIRECTS_MAX {
        let address = SocketAddr::new(to.ip(), port);
        let answer = ask(way.connect(address).await?, address, &path).await?;
        let location = answer.head.redirect_to.as_deref();
        match location.and_then(|location| follow(location, to.ip(), port, &path)) {
            Some(next) => (port, path) = next,
            None => return Ok(answer),
        }
    }
    Err(io::Error::other("stopped after 10 redirects"))
}

struct Head {
    status: u16,
    redirect_to: Option<String>,
    body: Body,
}

/// How the end of a body is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Body {
    Bytes(u64),
    Chunked,
    /// By the end of the connection.
    Open,
}

pub(super) struct Answer {
    head: Head,
    stream: TcpStream,
    /// Of the body, with the head.
    received: Vec<u8>,
}

impl Answer {
    pub fn status(&self) -> u16 {
        self.head.status
    }

    /// Takes the body, as much of it as is bearable. The status is known: whatever befalls the body changes nothing, and the
    /// caller may drop this.
    pub async fn drain(self) {
        let Answer { head, mut stream, mut received } = self;
        let last = |received: &[u8]| head.body == Body::Chunked && received.ends_with(LAST_CHUNK);
        let mut left = match head.body {
            Body::Bytes(bytes) => bytes.min(BODY_BYTES_MAX),
            Body::Chunked | Body::Open => BODY_BYTES_MAX,
        };
        left = left.saturating_sub(received.len() as u64);
        while left > 0 && !last(&received) {
            let tail = received.len().saturating_sub(LAST_CHUNK.len());
            received.drain(..tail);
            match stream.read_buf(&mut received).await {
                Ok(length @ 1..) => left = left.saturating_sub(length as u64),
                _ => return,
            }
        }
    }
}

/// Without trailers; who sends them waits for the end of the check.
const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

async fn ask(mut stream: TcpStream, address: SocketAddr, path: &str) -> io::Result<Answer> {
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: diego-healthcheck\r\nX-Forwarded-Proto: https\r\n\
         Accept-Encoding: identity\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut received = Vec::with_capacity(4096);
    loop {
        if let Some((head, length)) = parse(&received)? {
            received.drain(..length);
            if head.status >= 200 {
                return Ok(Answer { head, stream, received });
            }
            continue;
        }
        if received.len() >= HEAD_BYTES_MAX || stream.read_buf(&mut received).await? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
        }
    }
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
    let chunked = header("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked"));
    let length_of_body = header("content-length").and_then(|value| value.trim().parse().ok());
    let body = match (status, length_of_body) {
        (204 | 304, _) => Body::Bytes(0),
        _ if chunked => Body::Chunked,
        (_, Some(bytes)) => Body::Bytes(bytes),
        (_, None) => Body::Open,
    };
    Ok(Some((Head { status, redirect_to, body }, length)))
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
