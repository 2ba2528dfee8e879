//! The control socket of a container or of the nursery, for a task to await: whole messages in and out.

use std::collections::VecDeque;
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
    outgoing: VecDeque<Outgoing>,
}

/// A message on its way out.
struct Outgoing {
    request: Option<u64>,
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
    packets_sent: usize,
}

/// What came of an [`exchange`](Control::exchange).
pub enum Exchanged {
    Message(Message),
    /// One that was queued has gone out.
    Sent,
    /// The message that was queued for this request did not go out.
    Unsent(Option<u64>),
}

impl Control {
    /// The limits are for what arrives.
    pub fn new(socket: OwnedFd, bytes_max: usize, fds_max: usize) -> io::Result<Control> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        let socket = watched(socket, Interest::READABLE | Interest::WRITABLE)?;
        let outgoing = VecDeque::new();
        Ok(Control { socket, assembler: Assembler::new(bytes_max, fds_max), outgoing })
    }

    /// To be sent by [`Control::exchange`].
    pub fn queue(
        &mut self,
        request: Option<u64>,
        message: &impl Serialize,
        fds: Vec<OwnedFd>,
    ) -> io::Result<()> {
        let bytes = serde_json::to_vec(message)?;
        self.outgoing.push_back(Outgoing { request, bytes, fds, packets_sent: 0 });
        Ok(())
    }

    pub fn has_queued(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Sends what is queued and receives at the same time: were either to wait for the other, both ends could, for ever,
    /// each with its buffer full. Returns at each message, in or out; `None`: the other end is gone. Safe to cancel.
    pub async fn exchange(&mut self) -> io::Result<Option<Exchanged>> {
        loop {
            let Self { socket, assembler, outgoing } = self;
            tokio::select! {
                ready = socket.readable() => {
                    match ready?.try_io(|socket| assembler.receive(socket.get_ref())) {
                        Ok(received) => match received? {
                            Received::Message(message) => return Ok(Some(Exchanged::Message(message))),
                            Received::Partial => {}
                            Received::Closed => return Ok(None),
                        },
                        Err(_would_block) => {}
                    }
                }
                ready = socket.writable(), if !outgoing.is_empty() => {
                    let Some(next) = outgoing.front_mut() else { continue };
                    match ready?.try_io(|socket| next.send_packet(socket.get_ref())) {
                        Ok(Ok(is_last)) if is_last => {
                            outgoing.pop_front();
                            return Ok(Some(Exchanged::Sent));
                        }
                        Ok(Ok(_)) => {}
                        Ok(Err(_)) => {
                            let unsent = outgoing.pop_front().and_then(|unsent| unsent.request);
                            return Ok(Some(Exchanged::Unsent(unsent)));
                        }
                        Err(_would_block) => {}
                    }
                }
            }
        }
    }

    /// For conversations of question and answer, where nothing is to be received meanwhile. Not safe to cancel: half a message may have gone out.
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

impl Outgoing {
    /// True: it was the last.
    fn send_packet(&mut self, socket: &OwnedFd) -> io::Result<bool> {
        let Some((header, part)) = packets::split(&self.bytes).nth(self.packets_sent) else {
            return Ok(true);
        };
        let fds: Vec<_> = match self.packets_sent {
            0 => self.fds.iter().map(AsFd::as_fd).collect(),
            _ => Vec::new(),
        };
        packets::send_packet(socket.as_fd(), header, part, &fds, SendFlags::DONTWAIT)?;
        self.packets_sent += 1;
        Ok(packets::split(&self.bytes).count() == self.packets_sent)
    }
}
