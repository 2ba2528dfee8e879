//! A client's connection that acknowledges at once while the client logs in. Until then OpenSSH's client holds each small
//! packet back while the one before is not acknowledged, which a kernel likes to do only after 40 ms.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

/// More than a login takes; then the client has a session and sends at once.
const EAGER_READS: u32 = 64;

pub struct Eager {
    stream: TcpStream,
    reads_left: u32,
}

impl Eager {
    pub fn new(stream: TcpStream) -> Eager {
        Eager { stream, reads_left: EAGER_READS }
    }
}

impl AsyncRead for Eager {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(cx, into);
        if read.is_ready() && self.reads_left > 0 {
            self.reads_left -= 1;
            // The kernel falls back by itself; a login is only slower where it will not be told.
            let _ = self.stream.set_quickack(true);
        }
        read
    }
}

impl AsyncWrite for Eager {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
