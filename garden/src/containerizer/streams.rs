//! Carrying bytes between the pipes (or the terminal) of a process and whoever listens.
//!
//! One task an output. It reads only when all its listeners have taken what was read before, so a slow reader slows the
//! process down and costs no memory; output that nobody listens to is thrown away. Where the one listener is a client's
//! connection, the kernel moves the bytes there, and they do not pass through here at all.
//!
//! Output of a process that outlived its garden is different: who listened to it has lost its connection and may come
//! again. Until then it stays in the pipe, which is made wide, for as long as [`CLIENT_RETURNS`]; of a process that has
//! ended, until the end is forgotten, too.

use std::any::Any;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use garden_client::{Reader, Writer};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::pipe::fcntl_setpipe_size;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::sync::{Notify, watch};

use super::liveness::Progress;
use super::watched::watched;
use crate::relay::OutputWriter;
use crate::socket::{Socket, Straight};

/// What is read at once, and given to the listeners without a pause for others.
const CHUNK_BYTES: usize = 64 * 1024;
/// What the kernel moves at once, likewise.
const SPLICE_BYTES: usize = 256 * 1024;
/// What a pipe is made to hold that has been found full: whoever fills it is woken less often.
pub const BUSY_PIPE_BYTES: usize = 256 * 1024;
/// Of input, read at once: little from who types, much from who does not.
const FED_BYTES_MIN: usize = 8 * 1024;
const FED_BYTES_MAX: usize = 256 * 1024;
/// What a pipe holds at most, whatever its owner makes of it (`fs.pipe-max-size`).
const PIPE_BYTES_MAX: usize = 1 << 20;

/// How long a process that wrote more than a pipe holds is held up for clients of a garden that has died.
pub const CLIENT_RETURNS: Duration = Duration::from_secs(120);

/// One output of a process.
#[derive(Clone)]
pub struct Output(Arc<Shared>);

struct Shared {
    arrivals: Mutex<Arrivals>,
    /// Somebody arrived, or nobody will any more.
    changed: Arc<Notify>,
    drained: watch::Sender<bool>,
}

#[derive(Default)]
struct Arrivals {
    /// Listeners that have come since the last chunk.
    listeners: Vec<Writer>,
    /// The output waits for the first of them.
    held: bool,
    /// Nothing will come any more.
    over: bool,
}

impl Shared {
    fn new(listeners: Vec<Writer>, held: bool) -> Arc<Shared> {
        let arrivals = Mutex::new(Arrivals { listeners, held, over: false });
        Arc::new(Shared { arrivals, changed: Arc::default(), drained: watch::Sender::new(false) })
    }

    fn arrivals(&self) -> MutexGuard<'_, Arrivals> {
        self.arrivals.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.changed.notify_one();
    }
}

impl Output {
    /// `ended` tells when the process is gone: what it wrote before is then in the pipe, and once the pipe is empty the
    /// output counts as drained, even while some grandchild holds the other end.
    pub fn start(
        fd: OwnedFd,
        listener: Option<Writer>,
        ended: watch::Receiver<Option<i32>>,
    ) -> io::Result<Output> {
        Self::carried(fd, Shared::new(listener.into_iter().collect(), false), ended, Duration::ZERO)
    }

    /// The output of a process that an earlier garden started; `None`: nothing is left of it.
    pub fn adopted(fd: Option<OwnedFd>, ended: watch::Receiver<Option<i32>>) -> io::Result<Output> {
        Self::held(fd, ended, CLIENT_RETURNS)
    }

    fn held(
        fd: Option<OwnedFd>,
        ended: watch::Receiver<Option<i32>>,
        patience: Duration,
    ) -> io::Result<Output> {
        match fd {
            Some(fd) => {
                // A terminal has no size, and a pipe that cannot be wider is one nevertheless.
                let _ = fcntl_setpipe_size(&fd, PIPE_BYTES_MAX);
                Self::carried(fd, Shared::new(Vec::new(), true), ended, patience)
            }
            None => {
                let shared = Shared::new(Vec::new(), false);
                shared.arrivals().over = true;
                shared.drained.send_replace(true);
                Ok(Output(shared))
            }
        }
    }

    fn carried(
        fd: OwnedFd,
        shared: Arc<Shared>,
        ended: watch::Receiver<Option<i32>>,
        patience: Duration,
    ) -> io::Result<Output> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        let source = watched(fd, Interest::READABLE)?;
        let changed = shared.changed.clone();
        let pump = Pump {
            source,
            // Of what is held, it has been already.
            enlarged: shared.arrivals().held,
            shared: Arc::downgrade(&shared),
            changed,
            listeners: Vec::new(),
            ended,
            copies_only: false,
        };
        tokio::spawn(pump.run(patience));
        Ok(Output(shared))
    }

    pub fn attach(&self, listener: Writer) {
        let mut arrivals = self.0.arrivals();
        if arrivals.over {
            // Dropped, it hears the end.
            return;
        }
        if arrivals.held {
            arrivals.held = false;
            self.0.drained.send_replace(false);
        }
        arrivals.listeners.push(listener);
        self.0.changed.notify_one();
    }

    pub async fn drained(&self) {
        // An error is a pump that is gone: nothing more will come.
        let _ = self.0.drained.subscribe().wait_for(|drained| *drained).await;
    }
}

struct Pump {
    source: AsyncFd<OwnedFd>,
    /// Gone when nobody can listen any more.
    shared: Weak<Shared>,
    changed: Arc<Notify>,
    listeners: Vec<Writer>,
    ended: watch::Receiver<Option<i32>>,
    /// The source is something from which the kernel does not move bytes by itself.
    copies_only: bool,
    enlarged: bool,
}

enum Carried {
    /// All there was; more may come.
    Everything,
    /// As much as the pipe could hold when this began; there may be more already.
    PipeFull,
    End,
}

impl Pump {
    async fn run(mut self, patience: Duration) {
        if !self.hold(patience).await {
            return;
        }
        loop {
            // Asked before the pipe is read: what was written before the end is then in it.
            let ended = self.ended.borrow().is_some();
            let carried = self.carry().await;
            if ended {
                self.tell_drained();
            }
            match carried {
                Carried::PipeFull => self.enlarge(),
                Carried::End => break,
                Carried::Everything if ended => wait_readable(&self.source).await,
                Carried::Everything => tokio::select! {
                    () = wait_readable(&self.source) => {}
                    // An owner that is gone will never say when it ends; bytes still will.
                    Ok(_) = self.ended.changed() => {}
                },
            }
        }
        if let Some(shared) = self.shared.upgrade() {
            shared.arrivals().over = true;
        }
        self.adopt();
        self.tell_drained();
        for mut listener in self.listeners {
            // It has got all there was; whether it can still be told so is its own affair.
            let _ = listener.shutdown().await;
        }
    }

    fn tell_drained(&self) {
        if let Some(shared) = self.shared.upgrade() {
            shared.drained.send_if_modified(|drained| !std::mem::replace(drained, true));
        }
    }

    /// Leaves everything where it is until somebody listens, or nobody comes while the process waits. False: it has ended,
    /// and nobody can come any more.
    async fn hold(&mut self, patience: Duration) -> bool {
        let patience = tokio::time::sleep(patience);
        tokio::pin!(patience);
        loop {
            let ended = self.ended.borrow().is_some();
            match self.shared.upgrade() {
                Some(shared) => {
                    let mut arrivals = shared.arrivals();
                    if !arrivals.held {
                        return true;
                    }
                    if !ended && patience.is_elapsed() {
                        arrivals.held = false;
                        return true;
                    }
                    if ended {
                        // Who does not listen need not wait; who does makes this untrue.
                        shared.drained.send_replace(true);
                    }
                }
                None => return !ended,
            }
            tokio::select! {
                () = self.changed.notified() => {}
                () = &mut patience, if !ended && !patience.is_elapsed() => {}
                Ok(_) = self.ended.changed() => {}
            }
        }
    }

    /// Others get their turn after each chunk: a process may write faster than its listeners take, for ever.
    async fn carry(&mut self) -> Carried {
        let mut chunk = Vec::new();
        let mut total = 0;
        while total < PIPE_BYTES_MAX {
            self.adopt();
            let carried = match self.direct() {
                Some(socket) => self.splice(&socket).await,
                None => self.copy(&mut chunk).await,
            };
            match carried {
                Ok(0) => return Carried::End,
                Ok(length) => total += length,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Carried::Everything,
                // EIO is how a terminal says that nobody has its other end open.
                Err(_) => return Carried::End,
            }
            tokio::task::yield_now().await;
        }
        Carried::PipeFull
    }

    async fn copy(&mut self, chunk: &mut Vec<u8>) -> rustix::io::Result<usize> {
        chunk.resize(CHUNK_BYTES, 0);
        let length = rustix::io::read(self.source.get_ref(), &mut chunk[..])?;
        // Also to who came before this was written, though after it was last looked.
        self.adopt();
        self.give(&chunk[..length]).await;
        Ok(length)
    }

    /// The connection of the only listener, when bytes may go there past it.
    fn direct(&self) -> Option<Arc<Socket>> {
        let [listener] = &self.listeners[..] else { return None };
        let listener: &dyn Any = &**listener;
        if self.copies_only { None } else { listener.downcast_ref::<OutputWriter>()?.direct() }
    }

    /// Like [`Self::copy`], by the kernel.
    async fn splice(&mut self, socket: &Socket) -> rustix::io::Result<usize> {
        let source = self.source.get_ref();
        if rustix::io::ioctl_fionread(source)? == 0 {
            // Empty, or at its end: which of the two does not depend on the connection.
            return if at_end(source) { Ok(0) } else { Err(Errno::AGAIN) };
        }
        let moved = {
            // Nobody comes while it is moved to the one who was there.
            let shared = self.shared.upgrade();
            let arrivals = shared.as_ref().map(|shared| shared.arrivals());
            if arrivals.as_ref().is_some_and(|arrivals| !arrivals.listeners.is_empty()) {
                return Err(Errno::INTR);
            }
            socket.try_splice_from(source.as_fd(), SPLICE_BYTES)
        };
        match moved {
            Ok(length) => return Ok(length),
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock => socket.stalled().await,
                io::ErrorKind::Interrupted => {}
                // Not a pipe, after all.
                io::ErrorKind::InvalidInput => self.copies_only = true,
                // The connection is broken, and with it the listener.
                _ => self.listeners.clear(),
            },
        }
        Err(Errno::INTR)
    }

    /// As large as this kernel and the user's share of pipe memory allow; as it is otherwise.
    fn enlarge(&mut self) {
        if !std::mem::replace(&mut self.enlarged, true) {
            let _ = fcntl_setpipe_size(self.source.get_ref(), BUSY_PIPE_BYTES);
        }
    }

    fn adopt(&mut self) {
        if let Some(shared) = self.shared.upgrade() {
            self.listeners.append(&mut shared.arrivals().listeners);
        }
    }

    async fn give(&mut self, bytes: &[u8]) {
        let mut index = 0;
        while index < self.listeners.len() {
            let listener = &mut self.listeners[index];
            let given = async {
                listener.write_all(bytes).await?;
                listener.flush().await
            };
            match given.await {
                Ok(()) => index += 1,
                // It has gone; the others have not.
                Err(_) => drop(self.listeners.swap_remove(index)),
            }
        }
    }
}

/// Whether an empty pipe has no writer any more.
pub fn at_end(pipe: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(pipe, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    // Filled in between it is readable too, and not at its end.
    poll(&mut fds, Some(&now)).is_ok()
        && fds[0].revents().contains(PollFlags::HUP)
        && !fds[0].revents().contains(PollFlags::IN)
}

async fn wait_readable(source: &AsyncFd<OwnedFd>) {
    if let Ok(mut ready) = source.readable().await {
        // Cleared first, then read until empty: a byte that comes in between makes it ready again.
        ready.clear_ready();
    } else {
        // The runtime is shutting down.
        std::future::pending::<()>().await;
    }
}

/// Feeds a process from a client until either is at its end; the descriptor is closed by returning.
pub async fn feed(fd: OwnedFd, mut client: Reader, progress: &Progress) -> io::Result<()> {
    rustix::io::ioctl_fionbio(&fd, true)?;
    let sink = watched(fd, Interest::WRITABLE)?;
    let (mut chunk, mut bytes_max) = (Vec::new(), FED_BYTES_MIN);
    loop {
        let length = match straight(&mut client) {
            Some(straight) => straight.move_into(&sink, FED_BYTES_MAX).await?,
            None => None,
        };
        let length = match length {
            Some(moved) => moved,
            None => pass_on(&mut client, &mut chunk, bytes_max, &sink, progress).await?,
        };
        progress.step();
        if length == 0 {
            return Ok(());
        }
        if length >= bytes_max && bytes_max < FED_BYTES_MAX {
            bytes_max = FED_BYTES_MAX;
            // As it is, otherwise.
            let _ = fcntl_setpipe_size(sink.get_ref(), BUSY_PIPE_BYTES);
        }
    }
}

fn straight(client: &mut Reader) -> Option<&mut Straight> {
    let client: &mut dyn Any = &mut **client;
    client.downcast_mut()
}

/// One chunk. Zero: the end.
async fn pass_on(
    client: &mut Reader,
    chunk: &mut Vec<u8>,
    bytes_max: usize,
    sink: &AsyncFd<OwnedFd>,
    progress: &Progress,
) -> io::Result<usize> {
    chunk.resize(bytes_max, 0);
    let length = client.read(&mut chunk[..bytes_max]).await?;
    progress.step();
    let mut rest = &chunk[..length];
    while !rest.is_empty() {
        let written =
            sink.async_io(Interest::WRITABLE, |fd| Ok(rustix::io::write(fd.as_fd(), rest)?)).await?;
        rest = &rest[written..];
    }
    Ok(length)
}

/// A pipe for one stream of a process.
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    async fn collect(mut reader: impl tokio::io::AsyncRead + Unpin) -> Vec<u8> {
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).await.unwrap();
        bytes
    }

    #[tokio::test]
    async fn all_that_was_written_before_the_end_arrives_though_the_pipe_stays_open() {
        let (read, write) = pipe().unwrap();
        let (exit, ended) = watch::channel(None);
        let (ours, theirs) = tokio::io::duplex(16);
        let output = Output::start(read, Some(Box::new(theirs)), ended).unwrap();
        rustix::io::write(&write, b"hello over a small window").unwrap();
        exit.send_replace(Some(0));
        let reader = tokio::spawn(async move {
            let mut ours = ours;
            let mut bytes = vec![0; 25];
            ours.read_exact(&mut bytes).await.unwrap();
            (bytes, ours)
        });
        tokio::time::timeout(Duration::from_secs(5), output.drained()).await.unwrap();
        let (bytes, ours) = reader.await.unwrap();
        assert_eq!(bytes, b"hello over a small window");
        rustix::io::write(&write, b"!").unwrap();
        drop(write);
        assert_eq!(collect(ours).await, b"!");
    }

    /// Takes all at once, as logs do, but more slowly than a pipe is filled.
    struct Slow;

    impl tokio::io::AsyncWrite for Slow {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            std::thread::sleep(Duration::from_millis(1));
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// Writes as fast as the pipe takes it, until its reader is gone.
    fn flood(write: OwnedFd) {
        std::thread::spawn(move || while rustix::io::write(&write, &[b'y'; 4096]).is_ok() {});
    }

    #[tokio::test]
    async fn a_flood_leaves_time_for_others_and_does_not_hide_the_end() {
        let (read, write) = pipe().unwrap();
        let (exit, ended) = watch::channel(None);
        let output = Output::start(read, Some(Box::new(Slow)), ended).unwrap();
        flood(write);
        // On the one thread that the flood is carried on.
        tokio::time::sleep(Duration::from_millis(20)).await;
        exit.send_replace(Some(0));
        tokio::time::timeout(Duration::from_secs(5), output.drained()).await.unwrap();
    }

    #[tokio::test]
    async fn a_listener_that_goes_does_not_stop_the_others() {
        let (read, write) = pipe().unwrap();
        let (_exit, ended) = watch::channel(None);
        let (first, gone) = tokio::io::duplex(64);
        let output = Output::start(read, Some(Box::new(gone)), ended).unwrap();
        drop(first);
        let (second, theirs) = tokio::io::duplex(64);
        output.attach(Box::new(theirs));
        rustix::io::write(&write, b"still here").unwrap();
        drop(write);
        assert_eq!(collect(second).await, b"still here");
        output.drained().await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn who_came_before_it_was_written_hears_it() {
        for _ in 0..2_000 {
            let (read, write) = pipe().unwrap();
            let (_exit, ended) = watch::channel(None);
            let output = Output::start(read, None, ended).unwrap();
            let (ours, theirs) = tokio::io::duplex(64);
            output.attach(Box::new(theirs));
            rustix::io::write(&write, b"here").unwrap();
            drop(write);
            assert_eq!(collect(ours).await, b"here");
        }
    }

    #[tokio::test]
    async fn what_was_written_without_a_garden_waits_for_a_listener() {
        let (read, write) = pipe().unwrap();
        let (exit, ended) = watch::channel(None);
        let output = Output::adopted(Some(read), ended).unwrap();
        rustix::io::write(&write, b"before").unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
        exit.send_replace(Some(0));
        // Nobody listens, so nobody is kept waiting.
        tokio::time::timeout(Duration::from_secs(5), output.drained()).await.unwrap();
        let (ours, theirs) = tokio::io::duplex(64);
        output.attach(Box::new(theirs));
        tokio::time::timeout(Duration::from_secs(5), output.drained()).await.unwrap();
        drop(write);
        assert_eq!(collect(ours).await, b"before");
        // The next one hears that it is over.
        let (ours, theirs) = tokio::io::duplex(64);
        output.attach(Box::new(theirs));
        assert_eq!(collect(ours).await, b"");
    }

    #[tokio::test]
    async fn a_process_whose_client_does_not_return_goes_on() {
        let (read, write) = pipe().unwrap();
        let (_exit, ended) = watch::channel(None);
        let output = Output::held(Some(read), ended, Duration::from_millis(200)).unwrap();
        rustix::io::ioctl_fionbio(&write, true).unwrap();
        while rustix::io::write(&write, &[b'x'; 4096]).is_ok() {}
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(rustix::io::write(&write, b"x"), Err(Errno::AGAIN), "it is held up");
        let deadline = std::time::Instant::now() + Duration::from_secs(5);
        while rustix::io::write(&write, b"x").is_err() {
            assert!(std::time::Instant::now() < deadline, "it is still held up");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        drop(output);
    }

    #[tokio::test]
    async fn outputs_that_nobody_can_listen_to_any_more_hold_nothing() {
        let (read, write) = pipe().unwrap();
        let (exit, ended) = watch::channel(None);
        let output = Output::adopted(Some(read), ended).unwrap();
        exit.send_replace(Some(0));
        tokio::time::timeout(Duration::from_secs(5), output.drained()).await.unwrap();
        drop(output);
        let deadline = std::time::Instant::now() + Duration::from_secs(5);
        while rustix::io::write(&write, b"x") != Err(Errno::PIPE) {
            assert!(std::time::Instant::now() < deadline, "the pipe is held");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn a_process_is_fed_until_the_client_ends() {
        let (read, write) = pipe().unwrap();
        let client: Reader = Box::new(&b"some input"[..]);
        feed(write, client, &Progress::default()).await.unwrap();
        let mut bytes = Vec::new();
        io::Read::read_to_end(&mut std::fs::File::from(read), &mut bytes).unwrap();
        assert_eq!(bytes, b"some input");
    }
}
