//! A connection of a client: TCP or unix, used through a shared reference, so that one task may read while another writes,
//! and so that the kernel can be told to move bytes between it and a pipe by itself.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::pipe::SpliceFlags;
use tokio::io::Interest;
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
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        let splice = || Ok(rustix::pipe::splice(pipe, None, self, None, bytes_max, flags)?);
        match each!(self, stream => stream.try_io(Interest::WRITABLE, splice)) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            result => return result,
        }
        // Should it have been the pipe that was empty, the peer's waking would not come.
        _ = tokio::time::timeout(STALL_CHECK, self.writable()).await;
        splice()
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
