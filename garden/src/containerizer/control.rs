//! The control socket of a container or of the nursery, for a task to await: whole messages in and out.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use garden_sys::packets::{self, Assembler, Message, Received};
use rustix::net::SendFlags;
use serde::Serialize;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::watched::watched;

pub struct Control {
    socket: AsyncFd<OwnedFd>,
    assembler: Assembler,
}

impl Control {
    /// The limits are for what arrives.
    pub fn new(socket: OwnedFd, bytes_max: usize, fds_max: usize) -> io::Result<Control> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        let socket = watched(socket, Interest::READABLE | Interest::WRITABLE)?;
        Ok(Control { socket, assembler: Assembler::new(bytes_max, fds_max) })
    }

    /// Not safe to cancel: half a message may have gone out.
    pub async fn send(&self, message: &impl Serialize, fds: &[OwnedFd]) -> io::Result<()> {
        let bytes = serde_json::to_vec(message)?;
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        for (index, (header, part)) in packets::split(&bytes).enumerate() {
            let fds = if index == 0 { &fds[..] } else { &[] };
            self.socket
                .async_io(Interest::WRITABLE, |socket| {
                    packets::send_packet(socket.as_fd(), header, part, fds, SendFlags::DONTWAIT)
                })
                .await?;
        }
        Ok(())
    }

    /// The next message; `None`: the other end is gone. Safe to cancel.
    pub async fn receive(&mut self) -> io::Result<Option<Message>> {
        loop {
            let mut ready = self.socket.readable_mut().await?;
            let assembler = &mut self.assembler;
            match ready.try_io(|socket| assembler.receive(socket.get_ref())) {
                Ok(received) => match received? {
                    Received::Message(message) => return Ok(Some(message)),
                    Received::Partial => {}
                    Received::Closed => return Ok(None),
                },
                Err(_would_block) => {}
            }
        }
    }
}
