//! Netlink sockets: requests to the kernel, its acknowledgements and dumps.
//!
//! Synchronous and small on purpose: a request is a few hundred bytes and is answered before the call returns. What
//! the messages mean is in [`route`] (links, addresses, routes), [`shaping`] (how fast links send) and [`crate::nftables`]; what should exist is decided
//! by garden's networker.

pub mod message;
pub mod route;
pub mod shaping;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use message::{Attributes, Header, Message};
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

/// The kernel answers at once; a silence this long is a broken kernel, and must not hang a container's creation.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// A dump of links arrives in pieces of at most this many bytes.
const RECEIVE_BUFFER_BYTES: usize = 64 * 1024;
/// Room for one transaction of many rules; the default of 208 KiB holds only some hundreds.
const SEND_BUFFER_BYTES: libc::c_int = 16 * 1024 * 1024;

const NLMSG_ERROR: u16 = libc::NLMSG_ERROR as u16;
const NLMSG_DONE: u16 = libc::NLMSG_DONE as u16;
const NLMSGERR_ATTR_MSG: u16 = 1;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot open a netlink socket")]
    Open(#[source] io::Error),
    #[error("cannot enter a network namespace")]
    Enter(#[source] io::Error),
    #[error("cannot make a network namespace")]
    Make(#[source] io::Error),
    #[error("cannot {act}{}", reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default())]
    Refused {
        act: String,
        /// The kernel's own words, where it has some.
        reason: Option<String>,
        source: io::Error,
    },
    #[error("cannot {act}: the kernel's answer is malformed")]
    Malformed { act: String },
}

impl Error {
    /// The error number of a refusal.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Error::Open(source)
            | Error::Enter(source)
            | Error::Make(source)
            | Error::Refused { source, .. } => source.raw_os_error(),
            Error::Malformed { .. } => None,
        }
    }

    fn refused(act: &str, source: impl Into<io::Error>) -> Self {
        Error::Refused { act: act.into(), reason: None, source: source.into() }
    }
}

pub type Result<T> = std::result::Result<T, Error>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Route,
    Netfilter,
}

/// Belongs to the network namespace it was opened in, whoever uses it afterwards.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    sequence: AtomicU32,
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Socket {
    /// In the network namespace of the calling thread.
    pub fn open(protocol: Protocol) -> Result<Self> {
        let protocol = match protocol {
            // Number 0, for which there is no other name.
            Protocol::Route => None,
            Protocol::Netfilter => Some(rustix::net::netlink::NETFILTER),
        };
        Self::try_open(protocol).map_err(Error::Open)
    }

    /// In another network namespace: a short-lived thread enters it, opens the socket and ends. The caller's own
    /// threads never change namespace.
    pub fn open_in(protocol: Protocol, namespace: BorrowedFd<'_>) -> Result<Self> {
        in_namespace(namespace, || Self::open(protocol))?
    }

    fn try_open(protocol: Option<rustix::net::Protocol>) -> io::Result<Self> {
        let fd = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            protocol,
        )?;
        rustix::net::bind(&fd, &SocketAddrNetlink::new(0, 0))?;
        sockopt::set_socket_timeout(&fd, sockopt::Timeout::Recv, Some(ANSWER_TIMEOUT))?;
        set_option(&fd, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, SEND_BUFFER_BYTES)?;
        // Reasons in words, and no echo of our request in the answer.
        set_option(&fd, libc::SOL_NETLINK, libc::NETLINK_EXT_ACK, 1)?;
        set_option(&fd, libc::SOL_NETLINK, libc::NETLINK_CAP_ACK, 1)?;
        Ok(Self { fd, sequence: AtomicU32::new(1) })
    }

    /// One request, acknowledged.
    pub(crate) fn request(&self, act: &str, message: Message) -> Result<()> {
        self.transaction(act, vec![message])
    }

    /// Requests sent as one datagram; done when the last that asks for an acknowledgement has it. The first refusal
    /// is the error.
    pub(crate) fn transaction(&self, act: &str, messages: Vec<Message>) -> Result<()> {
        let (mut datagram, mut last, first) = (Vec::new(), None, self.sequence.load(Ordering::Relaxed));
        for message in messages {
            let sequence = self.next();
            if message.wants_ack() {
                last = Some(sequence);
            }
            message.append_to(&mut datagram, sequence);
        }
        self.send(act, &datagram)?;
        let Some(last) = last else { return Ok(()) };
        self.await_ack(act, first, last)
    }

    fn await_ack(&self, act: &str, first: u32, last: u32) -> Result<()> {
        let mut refusal = None;
        loop {
            let mut finished = false;
            self.receive(act, |header, payload| {
                // Of an earlier transaction; numbers begin again at some time.
                let is_late = header.sequence.wrapping_sub(first) > u32::MAX / 2;
                if header.kind != NLMSG_ERROR || is_late {
                    return Ok(());
                }
                let answer = acknowledgement(act, header, payload);
                let refused = answer.is_err();
                refusal = refusal.take().or(answer.err());
                // A transaction refused as a whole is answered on its first message alone.
                finished |= header.sequence == last || (refused && header.sequence == first);
                Ok(())
            })?;
            if finished {
                return refusal.map_or(Ok(()), Err);
            }
        }
    }

    /// Every message of a dump (or the single answer to a get) is handed to `each`.
    pub(crate) fn dump(&self, act: &str, message: Message, mut each: impl FnMut(&[u8])) -> Result<()> {
        let sequence = self.next();
        let mut datagram = Vec::new();
        message.append_to(&mut datagram, sequence);
        self.send(act, &datagram)?;
        loop {
            let mut finished = false;
            self.receive(act, |header, payload| {
                if header.sequence != sequence {
                    return Ok(());
                }
                match header.kind {
                    NLMSG_DONE => finished = true,
                    NLMSG_ERROR => {
                        finished = true;
                        acknowledgement(act, header, payload)?;
                    }
                    _ => each(payload),
                }
                Ok(())
            })?;
            if finished {
                return Ok(());
            }
        }
    }

    /// Hears from now on what the kernel tells everybody in this group.
    /// By which the kernel tells it from others.
    pub(crate) fn port(&self) -> Result<u32> {
        let address = rustix::net::getsockname(&self.fd).map_err(|errno| Error::Open(errno.into()))?;
        let address = SocketAddrNetlink::try_from(address).map_err(|errno| Error::Open(errno.into()))?;
        Ok(address.pid())
    }

    pub(crate) fn join(&self, group: u32) -> Result<()> {
        let group = libc::c_int::try_from(group).unwrap_or_default();
        set_option(&self.fd, libc::SOL_NETLINK, libc::NETLINK_ADD_MEMBERSHIP, group).map_err(Error::Open)
    }

    /// Hands everything that was told to `each`; false if so much was that not all was heard. Does not wait.
    pub(crate) fn hear(&self, mut each: impl FnMut(Header, &[u8])) -> Result<bool> {
        const ACT: &str = "hear what changes";
        rustix::io::ioctl_fionbio(&self.fd, true).map_err(|error| Error::refused(ACT, error))?;
        let mut complete = true;
        loop {
            let received = self.receive(ACT, |header, payload| {
                each(header, payload);
                Ok(())
            });
            match received {
                Err(Error::Refused { source, .. }) if source.kind() == io::ErrorKind::TimedOut => {
                    return Ok(complete);
                }
                Err(error) if error.errno() == Some(libc::ENOBUFS) => complete = false,
                other => other?,
            }
        }
    }

    fn next(&self) -> u32 {
        self.sequence.fetch_add(1, Ordering::Relaxed)
    }

    fn send(&self, act: &str, datagram: &[u8]) -> Result<()> {
        rustix::net::send(&self.fd, datagram, SendFlags::empty())
            .map_err(|error| Error::refused(act, error))?;
        Ok(())
    }

    fn receive(&self, act: &str, mut each: impl FnMut(Header, &[u8]) -> Result<()>) -> Result<()> {
        let mut buffer = vec![0u8; RECEIVE_BUFFER_BYTES];
        let (length, _) =
            rustix::io::retry_on_intr(|| rustix::net::recv(&self.fd, &mut buffer[..], RecvFlags::empty()))
                .map_err(|error| match error {
                    rustix::io::Errno::AGAIN => Error::refused(act, io::Error::from(io::ErrorKind::TimedOut)),
                    error => Error::refused(act, error),
                })?;
        let mut rest = &buffer[..length.min(RECEIVE_BUFFER_BYTES)];
        while !rest.is_empty() {
            let (header, payload, next) =
                message::split(rest).ok_or_else(|| Error::Malformed { act: act.to_owned() })?;
            each(header, payload)?;
            rest = next;
        }
        Ok(())
    }
}

/// `struct nlmsgerr`, with the kernel's words if there are any.
fn acknowledgement(act: &str, header: Header, payload: &[u8]) -> Result<()> {
    /// The header of the request follows the error number.
    const WORDS_OFFSET: usize = 4 + message::HEADER_BYTES;
    let code = payload.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes));
    match code {
        Some(0) => Ok(()),
        Some(code) => {
            let words =
                (header.flags & message::NLM_F_ACK_TLVS != 0).then(|| payload.get(WORDS_OFFSET..)).flatten();
            let reason = words
                .and_then(|words| Attributes::new(words).find(|(kind, _)| *kind == NLMSGERR_ATTR_MSG))
                .map(|(_, text)| message::text(text));
            Err(Error::Refused { act: act.into(), reason, source: io::Error::from_raw_os_error(-code) })
        }
        None => Err(Error::Malformed { act: act.into() }),
    }
}

fn set_option(fd: &OwnedFd, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    // SAFETY: the pointer and length describe `value`, which outlives the call.
    let result = unsafe {
        libc::setsockopt(
            fd.as_fd().as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Runs `act` on a thread of its own that has entered `namespace`.
pub fn in_namespace<T: Send>(namespace: BorrowedFd<'_>, act: impl FnOnce() -> T + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("netns".into()).spawn_scoped(scope, || {
            move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network))
                .map_err(|error| Error::Enter(error.into()))?;
            Ok(act())
        });
        let thread = thread.map_err(Error::Enter)?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// A network namespace with nothing in it but a loopback link that is down. It lives as long as something refers to
/// it: this descriptor, a socket opened in it, a process.
pub fn new_namespace() -> Result<OwnedFd> {
    let make = || -> io::Result<OwnedFd> {
        // SAFETY: only the network namespace is unshared; it is of no consequence to memory or descriptors.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }?;
        Ok(std::fs::File::open("/proc/thread-self/ns/net")?.into())
    };
    let thread = std::thread::Builder::new().name("netns".into()).spawn(make).map_err(Error::Make)?;
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)).map_err(Error::Make)
}
