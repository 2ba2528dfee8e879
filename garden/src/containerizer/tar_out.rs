//! A tar stream out of a container: the bytes of a pipe, then the word of whoever wrote them whether that was all.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use garden_client::Reader;
use rustix::io::{Errno, ioctl_fionread};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, Interest, ReadBuf};
use tokio::sync::oneshot;
use tokio::time::{Sleep, timeout};

use super::owner::Refused;
use super::streams::at_end;
use super::watched::watched;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error(transparent)]
    Read(#[from] io::Error),
}

type Outcome = oneshot::Receiver<Result<(), Refused>>;

/// Waits for the first bytes, or for the reason that there are none.
pub async fn open(pipe: OwnedFd, outcome: Outcome, stall: Duration) -> Result<Reader, Error> {
    rustix::io::ioctl_fionbio(&pipe, true).map_err(io::Error::from)?;
    let pipe = watched(pipe, Interest::READABLE)?;
    if pipe.async_io(Interest::READABLE, filled).await? == 0 {
        outcome.await.unwrap_or(Err(Refused::Ended))?;
        return Ok(Box::new(tokio::io::empty()));
    }
    Ok(Box::new(TarOut { pipe, outcome: Some(outcome), stall, waiting: None }))
}

/// How much is in a pipe; zero: it is at its end.
fn filled(pipe: &OwnedFd) -> io::Result<usize> {
    match ioctl_fionread(pipe)? {
        0 if at_end(pipe) => Ok(0),
        0 => Err(Errno::AGAIN.into()),
        count => Ok(usize::try_from(count).unwrap_or(usize::MAX)),
    }
}

/// May be read, or told when there is something in its pipe, from where the kernel can move it.
pub struct TarOut {
    pipe: AsyncFd<OwnedFd>,
    /// `None` once it has been told.
    outcome: Option<Outcome>,
    stall: Duration,
    /// Since the last read found nothing. A reader that takes its time does not count.
    waiting: Option<Pin<Box<Sleep>>>,
}

impl AsFd for TarOut {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.get_ref().as_fd()
    }
}

impl TarOut {
    /// How many bytes are in the pipe, once there are some. Zero: that was all of the archive.
    pub async fn available(&mut self) -> io::Result<usize> {
        let filled = timeout(self.stall, self.pipe.async_io(Interest::READABLE, filled)).await;
        match filled.map_err(|_| self.stalled())?? {
            0 => std::future::poll_fn(|context| self.poll_end(context)).await.map(|()| 0),
            count => Ok(count),
        }
    }

    fn stalled(&self) -> io::Error {
        let why = format!("the container has sent nothing more for {:?}", self.stall);
        io::Error::new(io::ErrorKind::TimedOut, why)
    }

    fn poll_stalled(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let stall = self.stall;
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(tokio::time::sleep(stall)));
        ready!(waiting.as_mut().poll(context));
        Poll::Ready(Err(self.stalled()))
    }

    fn poll_end(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(outcome) = &mut self.outcome else { return Poll::Ready(Ok(())) };
        let outcome = ready!(Pin::new(outcome).poll(context)).unwrap_or(Err(Refused::Ended));
        self.outcome = None;
        Poll::Ready(outcome.map_err(io::Error::other))
    }

    fn poll_pipe(&self, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.pipe.poll_read_ready(context))?;
            let read =
                |pipe: &AsyncFd<OwnedFd>| Ok(rustix::io::read(pipe.get_ref(), buffer.initialize_unfilled())?);
            if let Ok(read) = ready.try_io(read) {
                let length = read?;
                buffer.advance(length);
                return Poll::Ready(Ok(length));
            }
        }
    }
}

impl AsyncRead for TarOut {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let room = buffer.remaining();
        let Poll::Ready(read) = self.poll_pipe(context, buffer) else { return self.poll_stalled(context) };
        self.waiting = None;
        if read? > 0 || room == 0 { Poll::Ready(Ok(())) } else { self.poll_end(context) }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

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
