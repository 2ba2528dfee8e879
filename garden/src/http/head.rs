//! The heads of requests and the framing of their bodies. Pure; what clients send is hostile until it has passed here.

use httparse::Status;

/// Of a request; query strings name all handles of a cell.
pub const HEAD_BYTES_MAX: usize = 256 << 10;
const HEADERS_MAX: usize = 100;
/// Of the line that tells a chunk's length, extensions included, and of each line after the last chunk.
pub const CHUNK_LINE_BYTES_MAX: usize = 4 << 10;
/// After the last chunk.
const TRAILERS_MAX: u32 = 32;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    pub method: String,
    pub target: String,
    /// Of the head itself.
    pub length: usize,
    pub body: Framing,
    /// The client waits for a word before it sends the body.
    pub expects_continue: bool,
    /// The client may ask again on this connection.
    pub persistent: bool,
    /// An answer may come in chunks.
    pub takes_chunks: bool,
}

/// How much body follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    Exactly(u64),
    Chunks,
}

/// Why a request is no request; the connection is not used after it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("{0}")]
    Bad(String),
    #[error(
        "the head of the request is longer than {HEAD_BYTES_MAX} bytes or has more than {HEADERS_MAX} lines"
    )]
    HeadTooLong,
    #[error("unsupported transfer encoding")]
    Encoding,
}

impl Malformed {
    fn bad(what: impl std::fmt::Display) -> Malformed {
        Malformed::Bad(what.to_string())
    }
}

/// The head at the beginning of `bytes`, of which the first `seen` have been looked at before; `None`: more is needed.
pub fn parse(bytes: &[u8], seen: usize) -> Result<Option<Head>, Malformed> {
    // Empty lines before a request are no end of it.
    let start = bytes.iter().position(|byte| !matches!(byte, b'\r' | b'\n')).unwrap_or(bytes.len());
    if bytes.get(start).is_some_and(|byte| !byte.is_ascii_alphabetic()) {
        return Err(Malformed::bad("this is not HTTP"));
    }
    if !ends(&bytes[start..], seen.saturating_sub(start)) {
        return if bytes.len() > HEAD_BYTES_MAX { Err(Malformed::HeadTooLong) } else { Ok(None) };
    }
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(bytes) {
        Ok(Status::Partial) if bytes.len() > HEAD_BYTES_MAX => Err(Malformed::HeadTooLong),
        Ok(Status::Partial) => Ok(None),
        Ok(Status::Complete(length)) if length > HEAD_BYTES_MAX => Err(Malformed::HeadTooLong),
        Ok(Status::Complete(length)) => understand(&request, length).map(Some),
        Err(httparse::Error::TooManyHeaders) => Err(Malformed::HeadTooLong),
        Err(error) => Err(Malformed::bad(error)),
    }
}

/// Whether an empty line ends in what is new: parsing each time a byte arrives would take the square of a head's length.
fn ends(bytes: &[u8], seen: usize) -> bool {
    let new = &bytes[seen.saturating_sub(3).min(bytes.len())..];
    new.windows(2).any(|two| two == b"\n\n") || new.windows(3).any(|three| three == b"\n\r\n")
}

fn understand(request: &httparse::Request<'_, '_>, length: usize) -> Result<Head, Malformed> {
    let values = |name: &'static str| {
        let found = request.headers.iter().filter(move |header| header.name.eq_ignore_ascii_case(name));
        found.map(|header| header.value.trim_ascii())
    };
    let says = |name: &'static str, token: &str| {
        let mut tokens = values(name).flat_map(|value| value.split(|byte| *byte == b','));
        tokens.any(|said| said.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
    };
    let newer = request.version == Some(1);
    Ok(Head {
        method: request.method.unwrap_or_default().into(),
        target: request.path.unwrap_or_default().into(),
        length,
        body: framing(values("content-length"), values("transfer-encoding"))?,
        expects_continue: newer && says("expect", "100-continue"),
        persistent: if newer { !says("connection", "close") } else { says("connection", "keep-alive") },
        takes_chunks: newer,
    })
}

/// Two ways to say a length are two lengths to whoever stands between, so there must be one.
fn framing<'a>(
    mut lengths: impl Iterator<Item = &'a [u8]>,
    mut encodings: impl Iterator<Item = &'a [u8]>,
) -> Result<Framing, Malformed> {
    if let Some(encoding) = encodings.next() {
        if lengths.next().is_some() {
            return Err(Malformed::bad("both a length and a transfer encoding"));
        }
        let chunked = encoding.eq_ignore_ascii_case(b"chunked") && encodings.next().is_none();
        return if chunked { Ok(Framing::Chunks) } else { Err(Malformed::Encoding) };
    }
    let Some(first) = lengths.next() else { return Ok(Framing::Exactly(0)) };
    if lengths.any(|other| other != first) {
        return Err(Malformed::bad("two different lengths"));
    }
    let digits =
        std::str::from_utf8(first).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    let length = digits.and_then(|digits| digits.parse().ok());
    length.map(Framing::Exactly).ok_or_else(|| Malformed::bad("a length that is no number"))
}

/// Where in a body the next byte stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Position {
    /// So many bytes of content follow; `in_chunks`: then more chunks.
    Content {
        left: u64,
        in_chunks: bool,
    },
    ChunkLine,
    /// The line end after a chunk's content.
    ChunkEnd,
    Trailer {
        lines: u32,
    },
    End,
    /// No framing any more: all that comes.
    Raw,
}

impl Position {
    pub fn begin(framing: Framing) -> Position {
        match framing {
            Framing::Exactly(0) => Position::End,
            Framing::Exactly(left) => Position::Content { left, in_chunks: false },
            Framing::Chunks => Position::ChunkLine,
        }
    }

    /// After `count` bytes of content.
    pub fn after(self, count: usize) -> Position {
        match self {
            Position::Content { left, in_chunks } if left > count as u64 => {
                Position::Content { left: left - count as u64, in_chunks }
            }
            Position::Content { in_chunks: true, .. } => Position::ChunkEnd,
            Position::Content { in_chunks: false, .. } => Position::End,
            other => other,
        }
    }

    /// Steps over framing at the beginning of `bytes`: how many they are and what comes then; `None`: more is needed.
    pub fn step(self, bytes: &[u8]) -> Result<Option<(usize, Position)>, Malformed> {
        match self {
            Position::Content { .. } | Position::End | Position::Raw => Ok(Some((0, self))),
            Position::ChunkLine => match httparse::parse_chunk_size(bytes) {
                Ok(Status::Complete((used, 0))) => Ok(Some((used, Position::Trailer { lines: 0 }))),
                Ok(Status::Complete((used, left))) => {
                    Ok(Some((used, Position::Content { left, in_chunks: true })))
                }
                Ok(Status::Partial) => incomplete(bytes),
                Err(_) => Err(Malformed::bad("a chunk without a length")),
            },
            Position::ChunkEnd if bytes.starts_with(b"\r\n") => Ok(Some((2, Position::ChunkLine))),
            Position::ChunkEnd if b"\r\n".starts_with(bytes) => Ok(None),
            Position::ChunkEnd => Err(Malformed::bad("a chunk that is longer than it said")),
            Position::Trailer { lines } => match bytes.iter().position(|byte| *byte == b'\n') {
                Some(end) if matches!(&bytes[..end], b"" | b"\r") => Ok(Some((end + 1, Position::End))),
                Some(end) if end < CHUNK_LINE_BYTES_MAX && lines < TRAILERS_MAX => {
                    Ok(Some((end + 1, Position::Trailer { lines: lines + 1 })))
                }
                Some(_) => Err(Malformed::bad("too much after the last chunk")),
                None => incomplete(bytes),
            },
        }
    }
}

fn incomplete(bytes: &[u8]) -> Result<Option<(usize, Position)>, Malformed> {
    if bytes.len() > CHUNK_LINE_BYTES_MAX {
        Err(Malformed::bad("a chunk's line is too long"))
    } else {
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(text: &str) -> Head {
        parse(text.as_bytes(), 0).unwrap().unwrap()
    }

    #[test]
    fn heads_say_what_follows() {
        let plain = head("GET /ping?a=b HTTP/1.1\r\nHost: api\r\n\r\nrest");
        assert_eq!((plain.method.as_str(), plain.target.as_str()), ("GET", "/ping?a=b"));
        assert_eq!((plain.body, plain.persistent, plain.takes_chunks), (Framing::Exactly(0), true, true));
        assert_eq!(plain.length, "GET /ping?a=b HTTP/1.1\r\nHost: api\r\n\r\n".len());
        let chunks = head("\r\nPUT / HTTP/1.1\r\nTransfer-Encoding: Chunked\r\nExpect: 100-Continue\r\n\r\n");
        assert_eq!((chunks.body, chunks.expects_continue), (Framing::Chunks, true));
        assert_eq!(head("POST / HTTP/1.1\ncontent-length: 007\n\n").body, Framing::Exactly(7));
        assert!(!head("GET / HTTP/1.1\r\nConnection: x, Close\r\n\r\n").persistent);
        assert!(!head("GET / HTTP/1.0\r\n\r\n").persistent);
        assert!(head("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").persistent);
    }

    #[test]
    fn a_head_in_pieces_is_found_at_its_last_byte() {
        let text = b"GET /a HTTP/1.1\r\nHost: api\r\n\r\n";
        for end in 1..text.len() {
            assert_eq!(parse(&text[..end], end - 1), Ok(None), "{end}");
        }
        assert!(parse(text, text.len() - 1).unwrap().is_some());
        assert_eq!(parse(b"", 0), Ok(None));
        assert_eq!(parse(b"\r\n\r\n", 0), Ok(None), "empty lines before a request");
        assert_eq!(parse(b"\n\nAAAAAA\n", 0), Ok(None), "which are not its end");
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "\x16\x03\x01",
            "{\"a\":1}",
            "GET\r\n\r\n",
            "GET / HTTP/2.0\r\n\r\n",
            "GET / HTTP/1.1\r\nno colon\r\n\r\n",
            "GET / HTTP/1.1\r\nA: b\r\n folded\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: +1\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        ] {
            assert!(matches!(parse(text.as_bytes(), 0), Err(Malformed::Bad(_))), "{text:?}");
        }
        for encoding in ["gzip", "gzip, chunked", "chunked\r\nTransfer-Encoding: chunked"] {
            let text = format!("POST / HTTP/1.1\r\nTransfer-Encoding: {encoding}\r\n\r\n");
            assert_eq!(parse(text.as_bytes(), 0), Err(Malformed::Encoding), "{encoding}");
        }
        let endless = vec![b'a'; HEAD_BYTES_MAX + 1];
        assert_eq!(parse(&endless, 0), Err(Malformed::HeadTooLong));
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(HEADERS_MAX + 1));
        assert_eq!(parse(many.as_bytes(), 0), Err(Malformed::HeadTooLong));
    }

    /// The content of a body that arrives in pieces of `size` bytes.
    fn content(body: &[u8], size: usize) -> Result<Vec<u8>, Malformed> {
        let (mut position, mut buffer, mut content) = (Position::ChunkLine, Vec::new(), Vec::new());
        for piece in body.chunks(size) {
            buffer.extend_from_slice(piece);
            while let Some((used, next)) = position.step(&buffer)? {
                buffer.drain(..used);
                position = next;
                let Position::Content { left, .. } = position else {
                    if position == Position::End { return Ok(content) } else { continue }
                };
                let count = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                if count == 0 {
                    break;
                }
                content.extend(buffer.drain(..count));
                position = position.after(count);
            }
        }
        Err(Malformed::bad("no end"))
    }

    #[test]
    fn chunks_are_put_together_however_they_arrive() {
        let body = b"5\r\nhello\r\n1;ext=1\r\n \r\n00A\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\n";
        for size in 1..=body.len() {
            assert_eq!(content(body, size).as_deref(), Ok(&b"hello 0123456789"[..]), "{size}");
        }
    }

    #[test]
    fn broken_chunks_are_refused() {
        for body in ["x\r\n", "5\r\nhelloo", "fffffffffffffffff\r\n", "-1\r\n"] {
            assert!(content(body.as_bytes(), 1).is_err(), "{body}");
        }
        let endless = format!("1;{}", "x".repeat(2 * CHUNK_LINE_BYTES_MAX));
        assert_ne!(content(endless.as_bytes(), 512), Err(Malformed::bad("no end")));
        let trailers = format!("0\r\n{}", "a: b\r\n".repeat(100));
        assert_ne!(content(trailers.as_bytes(), 512), Err(Malformed::bad("no end")));
    }
}
