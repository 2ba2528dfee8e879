//! A connection of a client: TCP or unix, used through a shared reference, so that one task may read while another writes,
//! and so that the kernel can be told to move bytes between it and a pipe by itself.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::RecvFlags;
use rustix::pipe::SpliceFlags;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

/// How often a connection that has closed its sending half is asked whether it is there at all.
const PRESENCE_PERIOD: Duration = Duration::from_secs(5);
/// A peer that takes nothing is looked at again after this time.
const STALL_CHECK: Duration = Duration::from_secs(1);

pub enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

macro_rules! each {
    ($self:ident, $stream:ident => $act:expr) => {
        match $self {
            Socket::Tcp($stream) => $act,
            Socket::Unix($stream) => $act,
        }
    };
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        each!(self, stream => stream.as_fd())
    }
}

impl Socket {
    /// Answers go out at once; a peer whose machine is gone is noticed in the end.
    pub fn prepare(&self) -> io::Result<()> {
        if let Socket::Tcp(stream) = self {
            stream.set_nodelay(true)?;
            rustix::net::sockopt::set_socket_keepalive(stream, true)?;
        }
        Ok(())
    }

    pub async fn readable(&self) -> io::Result<()> {
        each!(self, stream => stream.readable().await)
    }

    pub async fn writable(&self) -> io::Result<()> {
        each!(self, stream => stream.writable().await)
    }

    pub fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        each!(self, stream => stream.try_write(bytes))
    }

    /// Zero: the peer sends nothing more.
    pub fn poll_read(&self, context: &mut Context<'_>, bytes: &mut [u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(each!(self, stream => stream.poll_read_ready(context)))?;
            match each!(self, stream => stream.try_read(bytes)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }

    pub async fn read(&self, bytes: &mut [u8]) -> io::Result<usize> {
        std::future::poll_fn(|context| self.poll_read(context, bytes)).await
    }

    pub async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.try_write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => bytes = &bytes[written..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable().await?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Moves what a pipe holds to the peer, once that takes it. An empty pipe is `WouldBlock`, sooner or later.
    pub async fn splice_from(&self, pipe: BorrowedFd<'_>, bytes_max: usize) -> io::Result<usize> {
        match self.try_splice_from(pipe, bytes_max) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.stalled().await,
            result => return result,
        }
        self.try_splice_from(pipe, bytes_max)
    }

    /// The same as far as the peer takes it at once.
    pub fn try_splice_from(&self, pipe: BorrowedFd<'_>, bytes_max: usize) -> io::Result<usize> {
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        let splice =
            || rustix::pipe::splice(pipe, None, self, None, bytes_max, flags).map_err(io::Error::from);
        match splice() {
            // Once more, so that the peer's waking is waited for: it need not have been the peer that could not.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                each!(self, stream => stream.try_io(Interest::WRITABLE, splice))
            }
            result => result,
        }
    }

    /// After nothing could be moved, until it is worth another attempt.
    pub async fn stalled(&self) {
        // Should it have been the pipe that was empty, the peer's waking would not come.
        _ = tokio::time::timeout(STALL_CHECK, self.writable()).await;
    }

    /// Moves what the peer has sent to a pipe, once there is some and the pipe has room. Zero: the peer sends nothing more.
    pub async fn splice_into(&self, pipe: &AsyncFd<OwnedFd>, bytes_max: usize) -> io::Result<usize> {
        if !self.filled().await? {
            return Ok(0);
        }
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        // Something has come, and nobody else takes it: what `WouldBlock` is about can only be the pipe.
        let splice = |pipe: &OwnedFd| Ok(rustix::pipe::splice(self, None, pipe, None, bytes_max, flags)?);
        pipe.async_io(Interest::WRITABLE, splice).await
    }

    /// Once the peer has sent something: whether it has not ended.
    async fn filled(&self) -> io::Result<bool> {
        let look = || {
            let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
            match rustix::net::recv(self, &mut [0; 1], flags) {
                Err(Errno::INTR) => Err(Errno::AGAIN.into()),
                other => Ok(other?.1 > 0),
            }
        };
        loop {
            match each!(self, stream => stream.try_io(Interest::READABLE, look)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.readable().await?,
                result => return result,
            }
        }
    }

    /// The peer reads the end of what we say.
    pub fn finish(&self) {
        // A peer that is gone needs no end.
        let _ = rustix::net::shutdown(self, rustix::net::Shutdown::Write);
    }

    /// Whether there is nobody at the other end: both directions are closed, or the connection is broken.
    pub fn is_gone(&self) -> bool {
        let mut fds = [PollFd::new(self, PollFlags::empty())];
        poll(&mut fds, Some(&rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok()
            && fds[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
    }

    /// Until there is nobody at the other end. What the peer still says is passed over; that it says no more is not yet
    /// its end.
    pub async fn gone(&self) {
        let mut ignored = [0; 64];
        while matches!(self.read(&mut ignored).await, Ok(length) if length > 0) {}
        self.broken().await;
    }

    /// Like [`Self::gone`], for when somebody else reads, or nobody.
    pub async fn broken(&self) {
        while !self.is_gone() {
            tokio::time::sleep(PRESENCE_PERIOD).await;
        }
    }
}

/// What comes by a connection, framed in some way.
pub trait Incoming: AsyncRead + Send + Unpin {
    fn connection(&self) -> Arc<Socket>;
    /// How many of the next bytes lie in the connection one after the other; zero: the end. `None`: some that have been
    /// taken from it already come first.
    fn poll_straight(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Option<u64>>>;
    /// So many of them have been taken.
    fn taken(&mut self, count: usize);
}

/// A reader whose bytes need not be read: see [`Straight::move_into`].
pub struct Straight(pub Box<dyn Incoming>);

impl Straight {
    /// Moves some of what comes to a pipe, without their passing through here. Zero: the end. `None`: what comes next has to
    /// be read.
    pub async fn move_into(
        &mut self,
        pipe: &AsyncFd<OwnedFd>,
        bytes_max: usize,
    ) -> io::Result<Option<usize>> {
        let next = std::future::poll_fn(|context| self.0.poll_straight(context)).await?;
        let Some(straight @ 1..) = next else { return Ok(next.map(|_| 0)) };
        let bytes_max = bytes_max.min(usize::try_from(straight).unwrap_or(usize::MAX));
        match self.0.connection().splice_into(pipe, bytes_max).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            count => {
                self.0.taken(count);
                Ok(Some(count))
            }
        }
    }
}

impl AsyncRead for Straight {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0).poll_read(context, buffer)
    }
}
