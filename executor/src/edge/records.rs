//! A connection whose handshake is over: bytes of the app to records and back, many at once and where they lie.
//!
//! The TLS library shakes hands and then leaves its keys here; it still knows those that come after them. What can be said
//! at this point is little, and all else ends the connection: data, alerts, in TLS 1.3 new keys, in TLS 1.2 a wish to
//! begin again, which is refused. Nothing here waits for anything.

use std::io::IoSliceMut;

use rustls::kernel::KernelConnection;
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::{AlertDescription, ContentType, ProtocolVersion, SupportedCipherSuite};

use super::buffer::Buffer;
use super::cipher::{self, CONTENT_BYTES_MAX, Opener, Sealer};

/// Read from an app, sealed and written at once: half as many cost more, twice as many gain nothing.
const RECORDS_AT_ONCE: usize = 8;
/// Of a key, for what is not the app's: alerts, new keys.
const RECORDS_KEPT: u64 = 8;
/// Without data between them.
const NEW_KEYS_MAX: u8 = 32;
const WARNINGS_MAX: u8 = 4;
const WISHES_TO_BEGIN_AGAIN_MAX: u8 = 1;

const LEVEL_WARNING: u8 = 1;
const LEVEL_FATAL: u8 = 2;
const CLIENT_HELLO: u8 = 1;
const KEY_UPDATE: u8 = 24;

#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(transparent)]
    Record(#[from] cipher::Error),
    #[error("cannot go on with a connection's keys")]
    Keys(#[from] rustls::Error),
    #[error("the client has ended the connection: {0:?}")]
    Alert(AlertDescription),
    #[error("the client sent {0}, which has no place here")]
    Unexpected(&'static str),
    #[error("the client sent {0} that cannot be read")]
    Unreadable(&'static str),
    #[error("the client sent {0} too often")]
    TooOften(&'static str),
}

impl Error {
    /// As the client is told.
    fn description(&self) -> Option<AlertDescription> {
        Some(match self {
            Error::Alert(_) => return None,
            Error::Record(cipher::Error::BrokenSeal) => AlertDescription::BadRecordMac,
            Error::Record(cipher::Error::TooLong) => AlertDescription::RecordOverflow,
            Error::Record(cipher::Error::NotARecord) | Error::Unexpected(_) | Error::TooOften(_) => {
                AlertDescription::UnexpectedMessage
            }
            Error::Unreadable(_) => AlertDescription::DecodeError,
            Error::Record(cipher::Error::WornOut | cipher::Error::UnknownCipher) | Error::Keys(_) => {
                AlertDescription::InternalError
            }
        })
    }
}

/// What was done with bytes that have come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Taken {
    /// Dealt with. The rest must be given again, with what follows it.
    pub bytes: usize,
    /// For the app, at the beginning of what was given.
    pub content_bytes: usize,
}

pub(super) struct Records {
    sealer: Sealer,
    opener: Opener,
    /// Knows the keys that come after these.
    keys: KernelConnection<ServerConnectionData>,
    /// With one key.
    records_max: u64,
    /// The client has said that it sends nothing more.
    client_finished: bool,
    new_keys_left: u8,
    warnings_left: u8,
    wishes_left: u8,
}

impl Records {
    /// The library has done all that it can with what has come, and all that it had to say is on its way.
    pub fn after(tls: UnbufferedServerConnection, client_finished: bool) -> Result<Records, Error> {
        let (secrets, keys) = tls.dangerous_into_kernel_connection()?;
        let version = keys.protocol_version();
        let records_max = match keys.negotiated_cipher_suite() {
            SupportedCipherSuite::Tls12(suite) => suite.common.confidentiality_limit,
            SupportedCipherSuite::Tls13(suite) => suite.common.confidentiality_limit,
        };
        Ok(Records {
            sealer: Sealer::new(version, secrets.tx, records_max)?,
            opener: Opener::new(version, secrets.rx)?,
            keys,
            records_max,
            client_finished,
            new_keys_left: NEW_KEYS_MAX,
            warnings_left: WARNINGS_MAX,
            wishes_left: WISHES_TO_BEGIN_AGAIN_MAX,
        })
    }

    pub fn client_finished(&self) -> bool {
        self.client_finished
    }

    /// Opens what has come whole. Answers to the client's own messages are added to `out`.
    pub fn open(&mut self, input: &mut [u8], out: &mut Buffer) -> Result<Taken, Error> {
        let mut taken = Taken { bytes: 0, content_bytes: 0 };
        while !self.client_finished {
            let at = taken.content_bytes;
            let Some(opened) = self.opener.open(input, taken.bytes, at)? else { return Ok(taken) };
            taken.bytes += opened.record_bytes;
            let content = &input[at..at + opened.content_bytes];
            match opened.kind {
                ContentType::ApplicationData => {
                    taken.content_bytes += content.len();
                    self.new_keys_left = NEW_KEYS_MAX;
                }
                ContentType::Alert => self.hear_alert(content)?,
                ContentType::Handshake => self.hear_handshake(content, out)?,
                _ => return Err(Error::Unexpected("a record of another kind")),
            }
        }
        // Nothing follows its end, and what does nevertheless is nobody's.
        Ok(Taken { bytes: input.len(), ..taken })
    }

    fn hear_alert(&mut self, alert: &[u8]) -> Result<(), Error> {
        let &[level, description] = alert else { return Err(Error::Unreadable("an alert")) };
        let description = AlertDescription::from(description);
        if description == AlertDescription::CloseNotify {
            self.client_finished = true;
            return Ok(());
        }
        // Newer clients' levels mean nothing; of their alerts one ends nothing.
        let is_warning = match self.is_tls13() {
            true => description == AlertDescription::UserCanceled,
            false => level == LEVEL_WARNING,
        };
        if !is_warning {
            return Err(Error::Alert(description));
        }
        count_down(&mut self.warnings_left, "warnings")
    }

    fn hear_handshake(&mut self, message: &[u8], out: &mut Buffer) -> Result<(), Error> {
        match (self.is_tls13(), message) {
            // Alone in its record: what follows is sealed with another key.
            (true, &[KEY_UPDATE, 0, 0, 1, wants_ours @ 0..=1]) => {
                count_down(&mut self.new_keys_left, "new keys")?;
                self.opener = Opener::new(ProtocolVersion::TLSv1_3, self.keys.update_rx_secret()?)?;
                if wants_ours == 1 { self.change_key(out) } else { Ok(()) }
            }
            (true, [KEY_UPDATE, ..]) => Err(Error::Unreadable("a change of keys")),
            (false, [CLIENT_HELLO, ..]) => {
                count_down(&mut self.wishes_left, "a wish to begin again")?;
                let no = [LEVEL_WARNING, AlertDescription::NoRenegotiation.into()];
                self.add(ContentType::Alert, &no, out)
            }
            _ => Err(Error::Unexpected("a message of a handshake")),
        }
    }

    /// What follows is sealed with another key.
    fn change_key(&mut self, out: &mut Buffer) -> Result<(), Error> {
        self.add(ContentType::Handshake, &[KEY_UPDATE, 0, 0, 1, 0], out)?;
        let secrets = self.keys.update_tx_secret()?;
        self.sealer = Sealer::new(ProtocolVersion::TLSv1_3, secrets, self.records_max)?;
        Ok(())
    }

    fn is_tls13(&self) -> bool {
        self.keys.protocol_version() == ProtocolVersion::TLSv1_3
    }

    /// Room for one row of records, for [`Records::seal`].
    pub fn row_bytes(&self) -> usize {
        RECORDS_AT_ONCE * self.sealer.record_bytes(CONTENT_BYTES_MAX)
    }

    /// Where in such room the app's bytes belong, one record after the other.
    pub fn contents<'a>(&self, row: &'a mut [u8]) -> [IoSliceMut<'a>; RECORDS_AT_ONCE] {
        let head = self.sealer.head_bytes();
        let mut records = row.chunks_mut(self.sealer.record_bytes(CONTENT_BYTES_MAX));
        std::array::from_fn(|_| {
            let record = records.next().unwrap_or_default();
            let end = record.len().min(head + CONTENT_BYTES_MAX);
            IoSliceMut::new(&mut record[head.min(end)..end])
        })
    }

    /// Seals so many bytes that lie there; answers how much of the row is to be sent.
    pub fn seal(&mut self, row: &mut [u8], mut content: usize) -> Result<usize, Error> {
        let mut length = 0;
        while content > 0 {
            let here = content.min(CONTENT_BYTES_MAX);
            let record = self.sealer.record_bytes(here);
            self.sealer.seal(ContentType::ApplicationData, &mut row[length..length + record])?;
            (length, content) = (length + record, content - here);
        }
        Ok(length)
    }

    /// To be called before each row: a key that is nearly worn out is replaced where the version knows how.
    pub fn make_ready(&mut self, out: &mut Buffer) -> Result<(), Error> {
        if self.sealer.records_left() >= RECORDS_AT_ONCE as u64 + RECORDS_KEPT {
            return Ok(());
        }
        if self.is_tls13() { self.change_key(out) } else { Err(cipher::Error::WornOut.into()) }
    }

    /// Says that nothing more comes from the app.
    pub fn finish(&mut self, out: &mut Buffer) -> Result<(), Error> {
        self.add(ContentType::Alert, &[LEVEL_WARNING, AlertDescription::CloseNotify.into()], out)
    }

    /// The reason why the connection ends, for the client.
    pub fn explain(&mut self, error: &Error, out: &mut Buffer) -> Result<(), Error> {
        match error.description() {
            Some(description) => self.add(ContentType::Alert, &[LEVEL_FATAL, description.into()], out),
            None => Ok(()),
        }
    }

    fn add(&mut self, kind: ContentType, content: &[u8], out: &mut Buffer) -> Result<(), Error> {
        let (head, length) = (self.sealer.head_bytes(), self.sealer.record_bytes(content.len()));
        let record = out.room(length);
        record[head..head + content.len()].copy_from_slice(content);
        self.sealer.seal(kind, record)?;
        out.add(length);
        Ok(())
    }

    /// As if the cipher could bear no more.
    #[cfg(test)]
    pub fn wear_out_after(&mut self, records_max: u64) {
        self.records_max = records_max;
        self.sealer.wear_out_after(records_max);
    }
}

fn count_down(left: &mut u8, of: &'static str) -> Result<(), Error> {
    *left = left.checked_sub(1).ok_or(Error::TooOften(of))?;
    Ok(())
}
