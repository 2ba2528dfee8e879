//! A connection to a daemon on which a session never waits to write while there is something to read. The library's sessions
//! do one or the other: two of them with much to tell each other would wait for each other for ever.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

/// More than one channel's window and what goes with it; then a session waits after all.
const HELD_BYTES_MAX: usize = 4 << 20;

/// Reading drives what waits to be written, so that both are to be polled by one task.
pub struct Outbox<Wire = TcpStream> {
    wire: Wire,
    held: BytesMut,
}

impl<Wire: AsyncWrite + Unpin> Outbox<Wire> {
    pub fn new(wire: Wire) -> Self {
        Outbox { wire, held: BytesMut::new() }
    }

    /// Writes what is held, as far as the other side takes it.
    fn poll_held(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.held.is_empty() {
            let written = ready!(Pin::new(&mut self.wire).poll_write(cx, &self.held))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.held.advance(written);
        }
        // Room that was needed once is not kept.
        self.held = BytesMut::new();
        Poll::Ready(Ok(()))
    }
}

impl<Wire: AsyncRead + AsyncWrite + Unpin> AsyncRead for Outbox<Wire> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // A broken connection is told by the next write; what came before it broke can still be read.
        let _ = self.poll_held(cx);
        Pin::new(&mut self.wire).poll_read(cx, into)
    }
}

impl<Wire: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Outbox<Wire> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let mut written = 0;
        if self.poll_held(cx)?.is_ready() {
            match Pin::new(&mut self.wire).poll_write(cx, data) {
                Poll::Ready(outcome) => written = outcome?,
                Poll::Pending => {}
            }
        }
        if written == 0 && self.held.len() >= HELD_BYTES_MAX {
            return Poll::Pending;
        }
        self.held.extend_from_slice(&data[written..]);
        Poll::Ready(Ok(data.len()))
    }

    /// What is held goes out as the session reads.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.poll_held(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            _ => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_held(cx))?;
        Pin::new(&mut self.wire).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn much_is_written_at_once_to_a_peer_that_does_not_read() {
        let (wire, mut peer) = tokio::io::duplex(1000);
        let mut outbox = Outbox::new(wire);
        let data: Vec<u8> = (0..HELD_BYTES_MAX).map(|n| n as u8).collect();
        outbox.write_all(&data).await.unwrap();
        outbox.flush().await.unwrap();
        // Only reading takes it on.
        peer.write_all(b"x").await.unwrap();
        let mut read = vec![0; data.len()];
        let (mut byte, mut more) = ([0], [0]);
        outbox.read_exact(&mut byte).await.unwrap();
        tokio::select! {
            _ = outbox.read_exact(&mut more) => panic!("nothing was sent"),
            whole = peer.read_exact(&mut read) => drop(whole.unwrap()),
        }
        assert!(read == data && byte == *b"x");
    }

    #[tokio::test]
    async fn what_is_held_is_bounded() {
        let (wire, _peer) = tokio::io::duplex(1000);
        let mut outbox = Outbox::new(wire);
        outbox.write_all(&vec![0; HELD_BYTES_MAX + 1000]).await.unwrap();
        let mut cx = Context::from_waker(std::task::Waker::noop());
        assert!(Pin::new(&mut outbox).poll_write(&mut cx, &[0]).is_pending());
    }

    #[tokio::test]
    async fn the_end_comes_after_what_is_held() {
        let (wire, mut peer) = tokio::io::duplex(10);
        let mut outbox = Outbox::new(wire);
        outbox.write_all(&[7; 5000]).await.unwrap();
        let mut read = Vec::new();
        let (shut, length) = tokio::join!(outbox.shutdown(), peer.read_to_end(&mut read));
        shut.unwrap();
        assert_eq!((length.unwrap(), read), (5000, vec![7; 5000]));
    }
}
