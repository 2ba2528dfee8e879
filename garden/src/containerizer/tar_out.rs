//! A tar stream out of a container: the bytes of a pipe, then the word of whoever wrote them whether that was all.

use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use garden_client::Reader;
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};
use tokio::net::unix::pipe::Receiver;
use tokio::sync::oneshot;
use tokio::time::Sleep;

use super::owner::Refused;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error(transparent)]
    Read(#[from] io::Error),
}

type Outcome = oneshot::Receiver<Result<(), Refused>>;

/// Enough to see that something comes; an archive is never smaller.
const FIRST_BYTES: usize = 512;

/// Waits for the first bytes, or for the reason that there are none.
pub async fn open(pipe: OwnedFd, outcome: Outcome, stall: Duration) -> Result<Reader, Error> {
    let mut pipe = Receiver::from_owned_fd(pipe)?;
    let mut first = vec![0; FIRST_BYTES];
    let length = pipe.read(&mut first).await?;
    if length == 0 {
        outcome.await.unwrap_or(Err(Refused::Ended))?;
        return Ok(Box::new(tokio::io::empty()));
    }
    first.truncate(length);
    Ok(Box::new(io::Cursor::new(first).chain(TarOut { pipe, outcome: Some(outcome), stall, waiting: None })))
}

struct TarOut {
    pipe: Receiver,
    /// `None` once it has been told.
    outcome: Option<Outcome>,
    stall: Duration,
    /// Since the last read found nothing. A reader that takes its time does not count.
    waiting: Option<Pin<Box<Sleep>>>,
}

impl TarOut {
    fn poll_stalled(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let stall = self.stall;
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(tokio::time::sleep(stall)));
        ready!(waiting.as_mut().poll(context));
        let why = format!("the container has sent nothing more for {stall:?}");
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, why)))
    }
}

impl AsyncRead for TarOut {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let filled = buffer.filled().len();
        match Pin::new(&mut self.pipe).poll_read(context, buffer) {
            Poll::Ready(read) => read?,
            Poll::Pending => return self.poll_stalled(context),
        }
        self.waiting = None;
        if buffer.filled().len() > filled || buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let Some(outcome) = &mut self.outcome else { return Poll::Ready(Ok(())) };
        let outcome = ready!(Pin::new(outcome).poll(context)).unwrap_or(Err(Refused::Ended));
        self.outcome = None;
        Poll::Ready(outcome.map_err(io::Error::other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::containerizer::streams::pipe;

    const STALL: Duration = Duration::from_millis(200);

    #[tokio::test]
    async fn silence_half_way_ends_the_stream_with_an_error() {
        let (read, write) = pipe().unwrap();
        let (_answer, outcome) = oneshot::channel();
        rustix::io::write(&write, b"half").unwrap();
        let mut reader = open(read, outcome, STALL).await.unwrap();
        let error = reader.read_to_end(&mut Vec::new()).await.unwrap_err();
        assert_eq!(error.to_string(), "the container has sent nothing more for 200ms");
        drop(write);
    }

    #[tokio::test]
    async fn a_failure_before_the_first_byte_is_told_at_once() {
        let (read, write) = pipe().unwrap();
        let (answer, outcome) = oneshot::channel();
        drop(write);
        answer.send(Err(Refused::Other { message: "no such file".into() })).unwrap();
        assert_eq!(open(read, outcome, STALL).await.err().unwrap().to_string(), "no such file");
    }

    #[tokio::test]
    async fn a_failure_half_way_ends_the_stream_with_an_error() {
        let (read, write) = pipe().unwrap();
        let (answer, outcome) = oneshot::channel();
        rustix::io::write(&write, b"half").unwrap();
        let mut reader = open(read, outcome, STALL).await.unwrap();
        drop(write);
        answer.send(Err(Refused::Other { message: "disk on fire".into() })).unwrap();
        let mut bytes = Vec::new();
        let error = reader.read_to_end(&mut bytes).await.unwrap_err();
        assert_eq!((&bytes[..], error.to_string()), (&b"half"[..], "disk on fire".to_string()));
    }
}
