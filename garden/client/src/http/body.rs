//! The body of an answer as it comes, into the reader's own buffer: archives are long, and every copy of them counts.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncBufRead, AsyncRead, ReadBuf};

use super::stream::Hijacked;

/// Of a chunk's size, or of a header behind the last chunk.
const LINE_BYTES_MAX: usize = 4 << 10;

/// How the end of a body is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    Chunked,
    Length(u64),
    UntilClosed,
}

/// What comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// The line with a chunk's size, after the end of the line of the chunk before.
    Size,
    /// So many bytes of the body, then the next chunk.
    Chunk(u64),
    /// So many bytes of the body, then nothing.
    Last(u64),
    /// Bytes of the body for as long as the connection is open.
    Any,
    /// Headers, up to an empty line.
    Trailer,
    End,
}

pub(super) struct Body {
    stream: Hijacked,
    next: Next,
    line: Vec<u8>,
}

impl Body {
    pub fn new(stream: Hijacked, framing: Framing) -> Body {
        let next = match framing {
            Framing::Chunked => Next::Size,
            Framing::Length(length) => Next::Last(length),
            Framing::UntilClosed => Next::Any,
        };
        Body { stream, next, line: Vec::new() }
    }

    /// One line, without its end.
    fn poll_line(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Vec<u8>>> {
        loop {
            let bytes = ready!(Pin::new(&mut self.stream).poll_fill_buf(context))?;
            if bytes.is_empty() {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
            let end = bytes.iter().position(|&byte| byte == b'\n');
            let taken = end.map_or(bytes.len(), |end| end + 1);
            self.line.extend_from_slice(&bytes[..taken]);
            Pin::new(&mut self.stream).consume(taken);
            if self.line.len() > LINE_BYTES_MAX {
                return Poll::Ready(Err(malformed()));
            }
            if end.is_some() {
                let line = std::mem::take(&mut self.line);
                return Poll::Ready(Ok(line.trim_ascii_end().to_vec()));
            }
        }
    }

    fn poll_size(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Next>> {
        let line = ready!(self.poll_line(context))?;
        if line.is_empty() {
            return Poll::Ready(Ok(Next::Size));
        }
        let size = line.split(|&byte| byte == b';').next().unwrap_or_default();
        let size = std::str::from_utf8(size).ok().and_then(|size| u64::from_str_radix(size.trim(), 16).ok());
        Poll::Ready(match size {
            Some(0) => Ok(Next::Trailer),
            Some(size) => Ok(Next::Chunk(size)),
            None => Err(malformed()),
        })
    }

    /// At most so many bytes; zero: the connection has ended.
    fn poll_some(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
        bytes_max: u64,
    ) -> Poll<io::Result<usize>> {
        let bytes_max = buffer.remaining().min(usize::try_from(bytes_max).unwrap_or(usize::MAX));
        let mut part = ReadBuf::new(buffer.initialize_unfilled_to(bytes_max));
        ready!(Pin::new(&mut self.stream).poll_read(context, &mut part))?;
        let length = part.filled().len();
        buffer.advance(length);
        Poll::Ready(Ok(length))
    }
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the answer is not in chunks")
}

/// What is left after so many of them have come.
fn less(left: u64, length: usize) -> io::Result<u64> {
    match length {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        length => Ok(left - length as u64),
    }
}

impl AsyncRead for Body {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            match self.next {
                Next::End => return Poll::Ready(Ok(())),
                _ if buffer.remaining() == 0 => return Poll::Ready(Ok(())),
                Next::Size => self.next = ready!(self.poll_size(context))?,
                Next::Trailer => {
                    if ready!(self.poll_line(context))?.is_empty() {
                        self.next = Next::End;
                    }
                }
                Next::Any => return self.poll_some(context, buffer, u64::MAX).map_ok(drop),
                Next::Last(0) => self.next = Next::End,
                Next::Chunk(0) => self.next = Next::Size,
                Next::Chunk(left) => {
                    let length = ready!(self.poll_some(context, buffer, left))?;
                    self.next = Next::Chunk(less(left, length)?);
                    return Poll::Ready(Ok(()));
                }
                Next::Last(left) => {
                    let length = ready!(self.poll_some(context, buffer, left))?;
                    self.next = Next::Last(less(left, length)?);
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};

    use super::*;

    /// What a reader gets that reads so many bytes at once, of what comes in such pieces.
    async fn read(framing: Framing, said: &[u8], piece: usize, at_once: usize) -> io::Result<Vec<u8>> {
        let (mut theirs, ours) = tokio::io::duplex(16);
        let said = said.to_vec();
        tokio::spawn(async move {
            for piece in said.chunks(piece) {
                theirs.write_all(piece).await.unwrap();
            }
        });
        let mut body = Body::new(BufReader::with_capacity(8, Box::new(ours)), framing);
        let (mut all, mut buffer) = (Vec::new(), vec![0; at_once]);
        loop {
            match body.read(&mut buffer).await? {
                0 => return Ok(all),
                length => all.extend_from_slice(&buffer[..length]),
            }
        }
    }

    #[tokio::test]
    async fn a_body_is_what_was_said_however_it_comes() {
        let chunks = b"5\r\nhello\r\n1;name=value\r\n \r\nA\r\n0123456789\r\n0\r\nX-Header: x\r\n\r\n";
        let whole = b"hello 0123456789";
        for piece in [1, 3, 7, 1000] {
            for at_once in [1, 4, 8, 100] {
                for (framing, said) in [
                    (Framing::Chunked, &chunks[..]),
                    (Framing::Length(16), b"hello 0123456789HTTP/1.1 200 OK"),
                    (Framing::UntilClosed, whole),
                ] {
                    let heard = read(framing, said, piece, at_once).await.unwrap();
                    assert_eq!(heard, whole, "{framing:?} {piece} {at_once}");
                }
            }
        }
        assert_eq!(read(Framing::Length(0), b"", 1, 1).await.unwrap(), b"");
        assert_eq!(read(Framing::Chunked, b"0\r\n\r\n", 1, 1).await.unwrap(), b"");
    }

    #[tokio::test]
    async fn a_body_that_ends_early_or_makes_no_sense_is_an_error() {
        for (framing, said) in [
            (Framing::Chunked, &b"5\r\nhel"[..]),
            (Framing::Chunked, b"5\r\nhello\r\n"),
            (Framing::Chunked, b"5\r\nhello\r\n0\r\n"),
            (Framing::Chunked, b"hello"),
            (Framing::Chunked, b"hello\r\n"),
            (Framing::Chunked, b"fffffffffffffffff\r\n"),
            (Framing::Length(6), b"hello"),
        ] {
            assert!(read(framing, said, 100, 100).await.is_err(), "{framing:?} {said:?}");
        }
        let endless = [b'1'; LINE_BYTES_MAX + 1];
        let error = read(Framing::Chunked, &endless, 100, 100).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
