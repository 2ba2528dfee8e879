//! Streams that end when they are told to.

use std::pin::Pin;
use std::task::{Context, Poll};

use garden_client::Reader;
use tokio::io::{AsyncRead, ReadBuf};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// Reads on until its token is cancelled, then fails: whoever reads it ends, and can be awaited.
pub(crate) struct Cancellable {
    inner: Reader,
    cancelled: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Cancellable {
    pub fn new(inner: Reader, cancel: &CancellationToken) -> Self {
        Cancellable { inner, cancelled: Box::pin(cancel.clone().cancelled_owned()) }
    }
}

impl AsyncRead for Cancellable {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        if self.cancelled.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(std::io::Error::other("cancelled")));
        }
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}
