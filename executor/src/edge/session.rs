//! One end of TLS without any I/O: bytes of the connection in, bytes of the app out, and the other way round.
//!
//! Built on the part of the TLS library that keeps no buffers of its own, so that many records are dealt with at once
//! and a connection on which nothing happens holds none.

use std::sync::Arc;

use rustls::ServerConfig;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError};

use super::buffer::Buffer;

/// What one record adds to what is in it, and more.
const RECORD_OVERHEAD_BYTES: usize = 64;
const RECORD_BYTES: usize = 16 * 1024;

#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(transparent)]
    Tls(#[from] rustls::Error),
    #[error("cannot encrypt any more")]
    Encrypt,
}

pub(super) struct Session {
    tls: UnbufferedServerConnection,
    /// The client has said that it sends nothing more.
    client_finished: bool,
}

impl Session {
    pub fn new(config: Arc<ServerConfig>) -> Result<Session, Error> {
        Ok(Session { tls: UnbufferedServerConnection::new(config)?, client_finished: false })
    }

    pub fn is_handshaking(&self) -> bool {
        self.tls.is_handshaking()
    }

    pub fn client_finished(&self) -> bool {
        self.client_finished
    }

    /// Takes what the client has sent: answers how much of it is dealt with, the rest must be given again with what
    /// follows it. What is for the app is added to `plain`, what is for the client to `out`, in the case of an error too.
    pub fn take(&mut self, input: &mut [u8], plain: &mut Buffer, out: &mut Buffer) -> Result<usize, Error> {
        let mut taken = 0;
        let advanced = self.advance(input, &mut taken, plain, out, |_, _| Ok(()));
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
            if encode(&mut message, out).is_err() {
                return;
            }
        }
    }

    /// `rest`: what [`Session::take`] has left of its input: no whole record, so that nothing of it is taken here.
    pub fn encrypt(&mut self, rest: &mut [u8], data: &[u8], out: &mut Buffer) -> Result<(), Error> {
        self.advance(rest, &mut 0, &mut Buffer::default(), out, |traffic, out| {
            let records = data.len().div_ceil(RECORD_BYTES);
            fill(out, data.len() + (records + 2) * RECORD_OVERHEAD_BYTES, |room| traffic.encrypt(data, room))
        })
    }

    /// Says that nothing more comes from the app.
    pub fn finish(&mut self, rest: &mut [u8], out: &mut Buffer) -> Result<(), Error> {
        self.advance(rest, &mut 0, &mut Buffer::default(), out, |traffic, out| {
            fill(out, RECORD_OVERHEAD_BYTES, |room| traffic.queue_close_notify(room))
        })
    }

    /// Until the library has nothing more to do; `write` is called at that point if the handshake is over.
    fn advance(
        &mut self,
        input: &mut [u8],
        taken: &mut usize,
        plain: &mut Buffer,
        out: &mut Buffer,
        write: impl FnOnce(&mut Traffic<'_>, &mut Buffer) -> Result<(), Error>,
    ) -> Result<(), Error> {
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
                ConnectionState::EncodeTlsData(mut message) => encode(&mut message, out)?,
                ConnectionState::TransmitTlsData(message) => message.done(),
                ConnectionState::PeerClosed => self.client_finished = true,
                ConnectionState::WriteTraffic(mut traffic) => {
                    write(&mut traffic, out)?;
                    return Ok(());
                }
                ConnectionState::BlockedHandshake | ConnectionState::Closed => return Ok(()),
                // Early data is never offered.
                _ => return Err(rustls::Error::General("unexpected state".into()).into()),
            }
        }
    }
}

type Traffic<'a> = rustls::unbuffered::WriteTraffic<'a, rustls::server::ServerConnectionData>;
type Message<'a> = rustls::unbuffered::EncodeTlsData<'a, rustls::server::ServerConnectionData>;

fn encode(message: &mut Message<'_>, out: &mut Buffer) -> Result<(), Error> {
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
        return Ok(());
    }
}

/// Adds what `write` writes into room of this size.
fn fill(
    out: &mut Buffer,
    room: usize,
    write: impl FnOnce(&mut [u8]) -> Result<usize, EncryptError>,
) -> Result<(), Error> {
    let length = write(out.room(room)).map_err(|_| Error::Encrypt)?;
    out.add(length);
    Ok(())
}
