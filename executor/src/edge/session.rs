//! A handshake without any I/O: what the client has sent in, what it is answered out. What comes after it is for
//! [`Records`].
//!
//! Built on the part of the TLS library that keeps no buffers of its own.

use std::sync::Arc;

use rustls::ServerConfig;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError};

use super::buffer::Buffer;
use super::records::{self, Records};

pub(super) struct Session {
    tls: UnbufferedServerConnection,
    /// The client has said that it sends nothing more.
    client_finished: bool,
}

impl Session {
    pub fn new(config: Arc<ServerConfig>) -> Result<Session, rustls::Error> {
        Ok(Session { tls: UnbufferedServerConnection::new(config)?, client_finished: false })
    }

    pub fn is_handshaking(&self) -> bool {
        self.tls.is_handshaking()
    }

    /// The handshake is over, and what it had to say is out.
    pub fn into_records(self) -> Result<Records, records::Error> {
        Records::after(self.tls, self.client_finished)
    }

    /// Takes what the client has sent: answers how much of it is dealt with, the rest must be given again with what
    /// follows it. What is for the app is added to `plain`, what is for the client to `out`, in the case of an error too.
    pub fn take(
        &mut self,
        input: &mut [u8],
        plain: &mut Buffer,
        out: &mut Buffer,
    ) -> Result<usize, rustls::Error> {
        let mut taken = 0;
        let advanced = self.advance(input, &mut taken, plain, out);
        if advanced.is_err() {
            self.explain(&mut input[taken..], out);
        }
        advanced.map(|()| taken)
    }

    /// The reason why it came to nothing, for the client. The library wants to see what it has left of its input.
    fn explain(&mut self, rest: &mut [u8], out: &mut Buffer) {
        let mut taken = 0;
        // Not once more than there is something to say: it would look at its input again.
        while self.tls.wants_write() {
            let status = self.tls.process_tls_records(&mut rest[taken..]);
            taken += status.discard;
            let Ok(ConnectionState::EncodeTlsData(mut message)) = status.state else { return };
            encode(&mut message, out);
        }
    }

    /// Until the library has nothing more to do.
    fn advance(
        &mut self,
        input: &mut [u8],
        taken: &mut usize,
        plain: &mut Buffer,
        out: &mut Buffer,
    ) -> Result<(), rustls::Error> {
        loop {
            let status = self.tls.process_tls_records(&mut input[*taken..]);
            *taken += status.discard;
            match status.state? {
                ConnectionState::ReadTraffic(mut records) => {
                    while let Some(record) = records.next_record() {
                        let record = record?;
                        *taken += record.discard;
                        plain.extend(record.payload);
                    }
                }
                ConnectionState::EncodeTlsData(mut message) => encode(&mut message, out),
                ConnectionState::TransmitTlsData(message) => message.done(),
                ConnectionState::PeerClosed => self.client_finished = true,
                ConnectionState::WriteTraffic(_)
                | ConnectionState::BlockedHandshake
                | ConnectionState::Closed => return Ok(()),
                // Early data is never offered.
                _ => return Err(rustls::Error::General("unexpected state".into())),
            }
        }
    }
}

type Message<'a> = rustls::unbuffered::EncodeTlsData<'a, rustls::server::ServerConnectionData>;

fn encode(message: &mut Message<'_>, out: &mut Buffer) {
    let mut room = 0;
    loop {
        match message.encode(out.room(room)) {
            Ok(length) => out.add(length),
            Err(EncodeError::InsufficientSize(needed)) => {
                room = needed.required_size;
                continue;
            }
            Err(EncodeError::AlreadyEncoded) => {}
        }
        return;
    }
}
