//! Messages with descriptors over a `SOCK_SEQPACKET` socket: split into packets, put together again, bounded.
//!
//! Each packet begins with one byte that says whether more of the same message follows; descriptors travel with the
//! first packet. What the bytes mean is not known here. Either end may be hostile: a message longer than the limit
//! given is an error, descriptors beyond the limit are closed by the kernel.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::OFlags;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

/// Payload of one packet. Most messages fit in one; the buffer for it is the largest thing in a pid 1's memory.
pub const PACKET_BYTES_MAX: usize = 8 * 1024;
/// What the kernel takes in one message (SCM_MAX_FD).
pub const PACKET_FDS_MAX: usize = 253;

const LAST: u8 = 0;
const MORE: u8 = 1;

/// A connected pair, both ends close-on-exec and blocking.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// A socket that can be connected to by `directory/name` once its owner listens; only its owner may.
pub fn bind_below(directory: &Path, name: &str) -> io::Result<OwnedFd> {
    let socket = socket(SocketFlags::CLOEXEC)?;
    // Before there is a name: nobody connects between its making and its closing to others.
    rustix::fs::fchmod(&socket, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR)?;
    below(directory, name, |address| Ok(rustix::net::bind(&socket, address)?))?;
    Ok(socket)
}

/// Connected to whoever listens at `directory/name`. Does not wait: `WouldBlock` while others are waiting there.
pub fn connect_below(directory: &Path, name: &str) -> io::Result<OwnedFd> {
    let socket = socket(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
    below(directory, name, |address| Ok(rustix::net::connect(&socket, address)?))?;
    Ok(socket)
}

fn socket(flags: SocketFlags) -> io::Result<OwnedFd> {
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

/// By a descriptor of the directory: an address has room for 107 bytes, a path is often longer.
fn below<T>(
    directory: &Path,
    name: &str,
    act: impl FnOnce(&SocketAddrUnix) -> io::Result<T>,
) -> io::Result<T> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(directory, flags, rustix::fs::Mode::empty())?;
    act(&SocketAddrUnix::new(format!("/proc/self/fd/{}/{name}", directory.as_raw_fd()))?)
}

/// The process at the other end: of a connection the one that began to listen. 0: it is gone, or not of our pid
/// namespace.
pub fn peer(socket: impl AsFd) -> io::Result<i32> {
    let mut credentials = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the pointers describe `credentials` and `length`, which outlive the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut credentials).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(credentials.pid) } else { Err(io::Error::last_os_error()) }
}

/// The packets of a message, each its header byte and its part of the bytes.
pub fn split(message: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    let count = message.len().div_ceil(PACKET_BYTES_MAX).max(1);
    (0..count).map(move |index| {
        let start = index * PACKET_BYTES_MAX;
        let end = message.len().min(start + PACKET_BYTES_MAX);
        (if index + 1 == count { LAST } else { MORE }, &message[start..end])
    })
}

/// Sends one packet of [`split`]; `WouldBlock` when the socket or `flags` say so and the buffer is full.
pub fn send_packet(
    socket: BorrowedFd<'_>,
    header: u8,
    part: &[u8],
    fds: &[BorrowedFd<'_>],
    flags: SendFlags,
) -> io::Result<()> {
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(fds.len()))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors in one message"));
    }
    let header = [header];
    let parts = [io::IoSlice::new(&header), io::IoSlice::new(part)];
    rustix::io::retry_on_intr(|| {
        rustix::net::sendmsg(socket, &parts, &mut control, flags | SendFlags::NOSIGNAL)
    })?;
    Ok(())
}

/// Sends a whole message on a blocking socket.
pub fn send(socket: impl AsFd, message: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    for (index, (header, part)) in split(message).enumerate() {
        send_packet(socket.as_fd(), header, part, if index == 0 { fds } else { &[] }, SendFlags::empty())?;
    }
    Ok(())
}

/// A whole message as it arrived.
#[derive(Debug)]
pub struct Message {
    pub bytes: Vec<u8>,
    pub fds: Vec<OwnedFd>,
}

#[derive(Debug)]
pub enum Received {
    Message(Message),
    /// A packet came; more of its message is to follow.
    Partial,
    Closed,
}

/// Puts packets together. One for each socket, so that a message may be interrupted by `WouldBlock`.
pub struct Assembler {
    bytes_max: usize,
    fds_max: usize,
    packet: Vec<u8>,
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
}

impl Assembler {
    pub fn new(bytes_max: usize, fds_max: usize) -> Assembler {
        let fds_max = fds_max.min(PACKET_FDS_MAX);
        Assembler {
            bytes_max,
            fds_max,
            packet: vec![0; PACKET_BYTES_MAX + 1],
            bytes: Vec::new(),
            fds: Vec::new(),
        }
    }

    /// Takes one packet from the socket.
    pub fn receive(&mut self, socket: impl AsFd) -> io::Result<Received> {
        let (length, fds) = self.receive_packet(socket.as_fd())?;
        if length == 0 {
            return Ok(Received::Closed);
        }
        self.fds.extend(fds);
        if self.bytes.len() + length - 1 > self.bytes_max || self.fds.len() > self.fds_max {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a message larger than its limit"));
        }
        self.bytes.extend_from_slice(&self.packet[1..length]);
        if self.packet[0] == MORE {
            return Ok(Received::Partial);
        }
        Ok(Received::Message(Message {
            bytes: std::mem::take(&mut self.bytes),
            fds: std::mem::take(&mut self.fds),
        }))
    }

    /// Waits on a blocking socket for a whole message; `None`: the other end is gone.
    pub fn receive_message(&mut self, socket: impl AsFd) -> io::Result<Option<Message>> {
        loop {
            match self.receive(socket.as_fd())? {
                Received::Message(message) => return Ok(Some(message)),
                Received::Partial => {}
                Received::Closed => return Ok(None),
            }
        }
    }

    fn receive_packet(&mut self, socket: BorrowedFd<'_>) -> io::Result<(usize, Vec<OwnedFd>)> {
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(self.fds_max))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [io::IoSliceMut::new(&mut self.packet)];
        let received = loop {
            match rustix::net::recvmsg(socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
                Err(rustix::io::Errno::INTR) => {}
                // The other end died with our last message unread: gone all the same.
                Err(rustix::io::Errno::CONNRESET) => return Ok((0, Vec::new())),
                other => break other?,
            }
        };
        let mut fds = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        Ok((received.bytes, fds))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_message_and_its_descriptors_arrive_whole() {
        let (a, b) = pair().unwrap();
        let long: Vec<u8> = (0..PACKET_BYTES_MAX * 2 + 7).map(|n| n as u8).collect();
        let sender = std::thread::spawn({
            let long = long.clone();
            move || {
                let file = std::fs::File::open("/dev/null").unwrap();
                send(&a, &long, &[file.as_fd()]).unwrap();
                send(&a, b"", &[]).unwrap();
            }
        });
        let mut assembler = Assembler::new(1 << 20, 4);
        let message = assembler.receive_message(&b).unwrap().unwrap();
        assert_eq!((message.bytes == long, message.fds.len()), (true, 1));
        assert_eq!(assembler.receive_message(&b).unwrap().unwrap().bytes, b"");
        sender.join().unwrap();
        assert!(assembler.receive_message(&b).unwrap().is_none());
    }

    #[test]
    fn a_socket_below_a_long_path_tells_who_listens() {
        let root = std::env::temp_dir().join(format!("packets-{}", std::process::id()));
        let directory = root.join("long".repeat(40));
        std::fs::create_dir_all(&directory).unwrap();
        let bound = bind_below(&directory, "name").unwrap();
        let mode = std::os::unix::fs::PermissionsExt::mode(
            &std::fs::metadata(directory.join("name")).unwrap().permissions(),
        );
        assert_eq!(mode & 0o777, 0o600);
        assert!(connect_below(&directory, "name").is_err(), "nobody listens");
        rustix::net::listen(&bound, 1).unwrap();
        let client = connect_below(&directory, "name").unwrap();
        assert_eq!(peer(&client).unwrap(), std::process::id() as i32);
        std::fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn a_message_beyond_the_limit_is_refused() {
        let (a, b) = pair().unwrap();
        send(&a, &[7; 100], &[]).unwrap();
        assert!(Assembler::new(99, 4).receive_message(&b).is_err());
    }

    #[test]
    fn more_descriptors_than_allowed_do_not_get_in() {
        let (a, b) = pair().unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        send(&a, b"x", &[file.as_fd(); 20]).unwrap();
        let got = Assembler::new(99, 2).receive_message(&b);
        assert!(got.is_err() || got.unwrap().unwrap().fds.len() <= 2);
    }
}
