//! The way into a container's network: sockets that are made there and served here.
//!
//! Threads of their own go in and come back out; no other thread of this process is ever anywhere but at home. A socket
//! belongs for good to the network it was made in.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use garden_client::NetworkNamespace;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, Mode, OFlags, fstat, openat};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, listen, socket_with, sockopt};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::sync::{mpsc, oneshot};

/// Connections that wait to be taken, for one listener.
const BACKLOG: i32 = 1024;
/// Errands that wait for the thread; each takes microseconds.
const ERRANDS_MAX: usize = 256;

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("cannot find the network of process {pid}")]
    Find { pid: i32, source: io::Error },
    #[error("process {0} is not the container's any more")]
    Gone(i32),
    #[error("process {0} has no network of its own")]
    NotApart(i32),
    #[error("cannot start the thread that enters containers' networks")]
    Start(#[source] io::Error),
    #[error("cannot listen on port {port} in the container's network")]
    Listen { port: u16, source: io::Error },
    #[error("cannot make a socket in the container's network")]
    Socket(#[source] io::Error),
}

/// A network that exists as long as this does: to be dropped before the container is destroyed.
#[derive(Debug)]
pub(crate) struct Namespace(OwnedFd);

impl Namespace {
    /// Of the process that garden tells of, if it still is that one.
    pub fn open(at: NetworkNamespace) -> Result<Namespace, Error> {
        let pid = at.pid;
        let found = |source: rustix::io::Errno| match source {
            rustix::io::Errno::NOENT | rustix::io::Errno::SRCH => Error::Gone(pid),
            other => Error::Find { pid, source: other.into() },
        };
        // What is read below this descriptor is of one process, whoever has its id afterwards.
        let directory = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let process = openat(CWD, format!("/proc/{pid}"), directory, Mode::empty()).map_err(found)?;
        let open = |name| openat(&process, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        let mut stat = String::new();
        io::Read::read_to_string(&mut std::fs::File::from(open("stat").map_err(found)?), &mut stat)
            .map_err(|source| Error::Find { pid, source })?;
        if start_time(&stat) != Some(at.started) {
            return Err(Error::Gone(pid));
        }
        let namespace = open("ns/net").map_err(found)?;
        let home = home().map_err(|source| Error::Find { pid, source })?;
        let identity = |fd: &OwnedFd| fstat(fd).map(|stat| (stat.st_dev, stat.st_ino)).map_err(found);
        if identity(&namespace)? == identity(&home)? {
            return Err(Error::NotApart(pid));
        }
        Ok(Namespace(namespace))
    }
}

/// Field 22; the second, the name, may hold spaces and brackets.
fn start_time(stat: &str) -> Option<u64> {
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// The calling thread's.
fn home() -> io::Result<OwnedFd> {
    Ok(openat(CWD, "/proc/thread-self/ns/net", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

/// A thread that goes into networks itself, and only there.
pub(crate) struct Away {
    home: OwnedFd,
}

/// A connection that nobody waited for.
pub(crate) enum Attempt {
    /// And was closed.
    Connected,
    Failed(io::Error),
    UnderWay(OwnedFd),
}

impl Away {
    /// The home of the thread that goes is the network of the caller.
    pub fn from_here() -> Result<Away, Error> {
        Ok(Away { home: home().map_err(Error::Start)? })
    }

    /// Leaves the thread in that network. An error is this machine's, not that of whoever is there.
    pub fn attempt(&self, namespace: &Namespace, to: SocketAddr) -> io::Result<Attempt> {
        enter(&namespace.0)?;
        let socket = socket(family(to.ip()))?;
        match connect(&socket, &to) {
            Ok(()) => return Ok(Attempt::Connected),
            Err(Errno::INPROGRESS) => {}
            Err(error) => return Ok(Attempt::Failed(error.into())),
        }
        // Within one network the answer is there before the call returns.
        let mut ready = [PollFd::new(&socket, PollFlags::OUT)];
        if poll(&mut ready, Some(&Timespec::default()))? == 0 {
            return Ok(Attempt::UnderWay(socket));
        }
        match sockopt::socket_error(&socket)? {
            Ok(()) => Ok(Attempt::Connected),
            Err(error) => Ok(Attempt::Failed(error.into())),
        }
    }

    pub fn come_back(&self) -> io::Result<()> {
        enter(&self.home)
    }
}

/// Goes on errands into networks; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Errands(mpsc::Sender<Errand>);

struct Errand {
    namespace: Arc<Namespace>,
    make: Make,
    reply: oneshot::Sender<io::Result<OwnedFd>>,
}

#[derive(Debug, Clone, Copy)]
enum Make {
    Listener { port: u16, takes_ipv6: bool },
    Stream(AddressFamily),
}

impl Errands {
    /// The thread's home is the network of the caller; it ends with the last clone.
    pub fn start() -> Result<Errands, Error> {
        let (sender, mut errands) = mpsc::channel::<Errand>(ERRANDS_MAX);
        let home = home().map_err(Error::Start)?;
        let go = move || {
            while let Some(errand) = errands.blocking_recv() {
                let made = enter(&errand.namespace.0).and_then(|()| make(errand.make));
                // Who asked may have given up.
                let _ = errand.reply.send(made);
                if let Err(error) = enter(&home) {
                    // Nothing made from here on would be where it is thought to be.
                    tracing::error!(%error, "executor.cannot-come-back-from-a-container");
                    return;
                }
            }
        };
        std::thread::Builder::new().name("errands".into()).spawn(go).map_err(Error::Start)?;
        Ok(Errands(sender))
    }

    /// Of every address of that network: those of IPv4, and the others, too, if there are any.
    pub async fn listener(
        &self,
        namespace: &Arc<Namespace>,
        port: u16,
        takes_ipv6: bool,
    ) -> Result<std::net::TcpListener, Error> {
        let made = self.go(namespace, Make::Listener { port, takes_ipv6 }).await;
        made.map(Into::into).map_err(|source| Error::Listen { port, source })
    }

    /// For an address of this kind, not connected to anything.
    pub async fn stream(&self, namespace: &Arc<Namespace>, to: IpAddr) -> Result<std::net::TcpStream, Error> {
        self.go(namespace, Make::Stream(family(to))).await.map(Into::into).map_err(Error::Socket)
    }

    async fn go(&self, namespace: &Arc<Namespace>, make: Make) -> io::Result<OwnedFd> {
        let (reply, made) = oneshot::channel();
        let ended = |_| io::Error::other("the thread that enters containers' networks has ended");
        let errand = Errand { namespace: namespace.clone(), make, reply };
        self.0.send(errand).await.map_err(|_| io::ErrorKind::BrokenPipe).map_err(io::Error::from)?;
        made.await.map_err(ended)?
    }
}

fn family(ip: IpAddr) -> AddressFamily {
    if ip.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 }
}

fn enter(namespace: &OwnedFd) -> io::Result<()> {
    Ok(move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?)
}

fn make(what: Make) -> io::Result<OwnedFd> {
    match what {
        Make::Stream(family) => socket(family),
        Make::Listener { port, takes_ipv6: false } => {
            listener(socket(AddressFamily::INET)?, (Ipv4Addr::UNSPECIFIED, port).into())
        }
        Make::Listener { port, takes_ipv6: true } => {
            let both = socket(AddressFamily::INET6)?;
            // Otherwise a sysctl of the network decides.
            sockopt::set_ipv6_v6only(&both, false)?;
            listener(both, (Ipv6Addr::UNSPECIFIED, port).into())
        }
    }
}

fn socket(family: AddressFamily) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socket_with(family, SocketType::STREAM, flags, None)?)
}

fn listener(socket: OwnedFd, at: SocketAddr) -> io::Result<OwnedFd> {
    // Connections of an earlier listener may not be over yet.
    sockopt::set_socket_reuseaddr(&socket, true)?;
    bind(&socket, &at)?;
    listen(&socket, BACKLOG)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own_start() -> u64 {
        start_time(&std::fs::read_to_string("/proc/self/stat").unwrap()).unwrap()
    }

    #[test]
    fn another_process_with_the_same_id_is_not_entered() {
        let pid = std::process::id() as i32;
        let error = Namespace::open(NetworkNamespace { pid, started: own_start() + 1 }).unwrap_err();
        assert_eq!(error.to_string(), format!("process {pid} is not the container's any more"));
        let error = Namespace::open(NetworkNamespace { pid: i32::MAX, started: 1 }).unwrap_err();
        assert!(matches!(error, Error::Gone(_)), "{error}");
    }

    #[test]
    fn a_container_that_shares_the_hosts_network_is_not_served() {
        let pid = std::process::id() as i32;
        let error = Namespace::open(NetworkNamespace { pid, started: own_start() }).unwrap_err();
        assert!(matches!(error, Error::NotApart(_)), "{error}");
    }

    #[test]
    fn the_start_time_is_found_behind_any_name() {
        let tail = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20";
        assert_eq!(start_time(&format!("42 (a ) b (c) {tail}")), Some(4711));
        assert_eq!(start_time("42 (cut"), None);
    }
}
