//! Bytes on their way. Buffers belong to the thread, not to the connection, which keeps only what could not be passed on.
//!
//! What is reserved stays initialised, in the thread's keeping too: clearing it for each read and each record would cost
//! as much as the socket does.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Buffers kept by a thread for the next connection.
const SPARE_BUFFERS: usize = 4;
/// Larger ones are given back to the allocator.
const SPARE_BYTES_MAX: usize = 512 * 1024;

thread_local! {
    static SPARE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// Holds memory of its own only between [`Buffer::open`] and [`Buffer::close`], and while there is something in it.
#[derive(Debug, Default)]
pub(super) struct Buffer {
    /// All of it initialised; what is in use lies between `begin` and `end`.
    bytes: Vec<u8>,
    begin: usize,
    end: usize,
}

impl Buffer {
    pub fn is_empty(&self) -> bool {
        self.begin == self.end
    }

    pub fn len(&self) -> usize {
        self.end - self.begin
    }

    pub fn filled(&mut self) -> &mut [u8] {
        &mut self.bytes[self.begin..self.end]
    }

    /// To be added to.
    pub fn open(&mut self) -> &mut Buffer {
        if self.bytes.is_empty() {
            self.bytes = SPARE.with_borrow_mut(Vec::pop).unwrap_or_default();
        }
        self
    }

    /// Room for so many bytes behind what is there, of any content.
    pub fn room(&mut self, length: usize) -> &mut [u8] {
        if self.begin > 0 {
            self.bytes.copy_within(self.begin..self.end, 0);
            (self.begin, self.end) = (0, self.len());
        }
        let needed = self.end + length;
        if needed > self.bytes.len() {
            self.bytes.resize(needed, 0);
        }
        &mut self.bytes[self.end..needed]
    }

    /// So many bytes of the room have been written to.
    pub fn add(&mut self, length: usize) {
        self.end += length;
        assert!(self.end <= self.bytes.len(), "more was added than there was room for");
    }

    pub fn extend(&mut self, bytes: &[u8]) {
        self.room(bytes.len()).copy_from_slice(bytes);
        self.add(bytes.len());
    }

    /// The first so many are not needed any more.
    pub fn forget(&mut self, length: usize) {
        self.begin += length;
        assert!(self.begin <= self.end, "more was forgotten than there was");
    }

    /// Back to the thread what is not used, and no more kept than is in use.
    pub fn close(&mut self) {
        if self.bytes.is_empty() {
            return;
        }
        let kept = self.filled().to_vec();
        let spare = std::mem::replace(&mut self.bytes, kept);
        (self.begin, self.end) = (0, self.bytes.len());
        SPARE.with_borrow_mut(|spares| {
            if spares.len() < SPARE_BUFFERS && spare.len() <= SPARE_BYTES_MAX {
                spares.push(spare);
            }
        });
    }

    #[cfg(test)]
    pub fn held(&self) -> usize {
        self.bytes.capacity()
    }

    /// Until nothing is left.
    pub fn poll_send(&mut self, stream: &mut TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.is_empty() {
            let length = ready!(Pin::new(&mut *stream).poll_write(cx, self.filled()))?;
            if length == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.forget(length);
        }
        Poll::Ready(Ok(()))
    }

    /// Adds at least one byte and at most so many, or fails.
    pub fn poll_fill(
        &mut self,
        stream: &mut TcpStream,
        at_most: usize,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let mut room = ReadBuf::new(self.room(at_most));
        ready!(Pin::new(stream).poll_read(cx, &mut room))?;
        match room.filled().len() {
            0 => Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
            length => {
                self.add(length);
                Poll::Ready(Ok(()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_what_could_not_be_passed_on() {
        let mut buffer = Buffer::default();
        assert_eq!((buffer.held(), buffer.len()), (0, 0));
        buffer.open().extend(b"hello");
        buffer.room(100_000)[..6].copy_from_slice(b" world");
        buffer.add(6);
        buffer.forget(4);
        buffer.close();
        assert_eq!(buffer.filled(), b"o world");
        assert_eq!(buffer.held(), 7);
        buffer.open().extend(b"!");
        assert_eq!(buffer.filled(), b"o world!");
        buffer.forget(8);
        buffer.close();
        assert_eq!((buffer.held(), buffer.is_empty()), (0, true));
    }

    #[test]
    fn one_that_is_never_quite_empty_does_not_grow() {
        let mut buffer = Buffer::default();
        buffer.open().extend(&[7; 10]);
        for _ in 0..1000 {
            buffer.extend(&[7; 1000]);
            buffer.forget(1000);
        }
        assert_eq!(buffer.filled(), [7; 10]);
        assert!(buffer.bytes.len() <= 2000, "{}", buffer.bytes.len());
    }

    #[test]
    fn one_connections_bytes_are_no_others() {
        let mut first = Buffer::default();
        first.open().extend(b"secret");
        first.forget(6);
        first.close();
        let mut second = Buffer::default();
        second.open();
        assert!(second.filled().is_empty());
        second.extend(b"x");
        assert_eq!(second.filled(), b"x");
    }
}
