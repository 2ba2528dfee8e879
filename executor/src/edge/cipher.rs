//! Records of TLS 1.2 and 1.3 sealed and opened where they lie. No I/O, no state but a key and a number.
//!
//! The one rule that all rests on: **no key seals two records with the same number**. A number is taken by
//! [`Key::take_number`] alone, which counts before anything is sealed and cannot count down; a sealer is neither cloned nor
//! told a number, but where the handshake left off; and it ends before the cipher's limit. What a record says is for
//! [`super::records`].

use ring::aead::{
    AES_128_GCM, AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey,
};
use rustls::{ConnectionTrafficSecrets, ContentType, ProtocolVersion};

/// In one record.
pub(super) const CONTENT_BYTES_MAX: usize = 16 * 1024;
const HEADER_BYTES: usize = 5;
const TAG_BYTES: usize = 16;
/// The part of a nonce that TLS 1.2 sends along, where the cipher is AES.
const SENT_NONCE_BYTES: usize = 8;
/// What a record may be longer than its content, whatever for: in TLS 1.2, and in 1.3.
const OVERHEAD_BYTES_MAX_12: usize = 2048;
const OVERHEAD_BYTES_MAX_13: usize = 256;

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Error {
    #[error("a record's seal is broken")]
    BrokenSeal,
    #[error("a record is longer than it may be")]
    TooLong,
    #[error("what came is not a record")]
    NotARecord,
    #[error("a key has sealed as many records as it may")]
    WornOut,
    #[error("a cipher that is not known here")]
    UnknownCipher,
}

/// How a record is built around what is sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// `header ‖ sealed(content ‖ kind ‖ zeros) ‖ tag`; the header says nothing of what is inside.
    Tls13,
    /// `header ‖ sent nonce ‖ sealed(content) ‖ tag`
    Tls12Aes,
    /// `header ‖ sealed(content) ‖ tag`
    Tls12ChaCha,
}

impl Form {
    /// Before the content.
    fn head_bytes(self) -> usize {
        HEADER_BYTES + if self == Form::Tls12Aes { SENT_NONCE_BYTES } else { 0 }
    }

    /// Behind it.
    fn tail_bytes(self) -> usize {
        TAG_BYTES + usize::from(self == Form::Tls13)
    }

    fn body_bytes_max(self) -> usize {
        CONTENT_BYTES_MAX + if self == Form::Tls13 { OVERHEAD_BYTES_MAX_13 } else { OVERHEAD_BYTES_MAX_12 }
    }
}

struct Key {
    aead: LessSafeKey,
    iv: [u8; NONCE_LEN],
    form: Form,
    next: u64,
}

impl Key {
    /// `secrets` say which number is next.
    fn new(version: ProtocolVersion, secrets: (u64, ConnectionTrafficSecrets)) -> Result<Key, Error> {
        use ConnectionTrafficSecrets::{Aes128Gcm, Aes256Gcm, Chacha20Poly1305};
        let (next, secrets) = secrets;
        let (algorithm, key, iv) = match secrets {
            Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
            Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
            Chacha20Poly1305 { key, iv } => (&CHACHA20_POLY1305, key, iv),
            _ => return Err(Error::UnknownCipher),
        };
        let form = match version {
            ProtocolVersion::TLSv1_3 => Form::Tls13,
            ProtocolVersion::TLSv1_2 if algorithm == &CHACHA20_POLY1305 => Form::Tls12ChaCha,
            ProtocolVersion::TLSv1_2 => Form::Tls12Aes,
            _ => return Err(Error::UnknownCipher),
        };
        let aead = UnboundKey::new(algorithm, key.as_ref()).map_err(|_| Error::UnknownCipher)?;
        let iv = iv.as_ref().try_into().map_err(|_| Error::UnknownCipher)?;
        Ok(Key { aead: LessSafeKey::new(aead), iv, form, next })
    }

    /// Never the same one twice.
    fn take_number(&mut self, end: u64) -> Result<u64, Error> {
        let number = self.next;
        if number >= end {
            return Err(Error::WornOut);
        }
        self.next = number + 1;
        Ok(number)
    }

    fn nonce(&self, number: u64) -> [u8; NONCE_LEN] {
        let mut nonce = self.iv;
        for (byte, of_number) in nonce[NONCE_LEN - 8..].iter_mut().zip(number.to_be_bytes()) {
            *byte ^= of_number;
        }
        nonce
    }

    /// What is sealed along without being sent, or is sent beside it.
    fn associated(&self, number: u64, kind: u8, body: usize, content: usize) -> Aad<Associated> {
        let mut bytes = [0; 13];
        let length = match self.form {
            Form::Tls13 => {
                bytes[..HEADER_BYTES].copy_from_slice(&header(kind, body));
                HEADER_BYTES
            }
            Form::Tls12Aes | Form::Tls12ChaCha => {
                bytes[..8].copy_from_slice(&number.to_be_bytes());
                bytes[8..].copy_from_slice(&header(kind, content));
                bytes.len()
            }
        };
        Aad::from(Associated { bytes, length })
    }
}

struct Associated {
    bytes: [u8; 13],
    length: usize,
}

impl AsRef<[u8]> for Associated {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// Both versions say that they are 1.2.
fn header(kind: u8, length: usize) -> [u8; HEADER_BYTES] {
    let [high, low] = u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes();
    [kind, 3, 3, high, low]
}

/// Seals what is sent.
pub(super) struct Sealer {
    key: Key,
    /// Numbers from here on are not used.
    end: u64,
}

impl Sealer {
    /// At most so many records are sealed with one key.
    pub fn new(
        version: ProtocolVersion,
        secrets: (u64, ConnectionTrafficSecrets),
        records_max: u64,
    ) -> Result<Sealer, Error> {
        Ok(Sealer { key: Key::new(version, secrets)?, end: records_max })
    }

    pub fn records_left(&self) -> u64 {
        self.end.saturating_sub(self.key.next)
    }

    pub fn head_bytes(&self) -> usize {
        self.key.form.head_bytes()
    }

    /// With so much content.
    pub fn record_bytes(&self, content: usize) -> usize {
        self.key.form.head_bytes() + content + self.key.form.tail_bytes()
    }

    /// The content is where it belongs already; what is before and behind it is written.
    pub fn seal(&mut self, kind: ContentType, record: &mut [u8]) -> Result<(), Error> {
        let form = self.key.form;
        let content = record.len().checked_sub(self.record_bytes(0));
        let content = content.filter(|content| *content <= CONTENT_BYTES_MAX).ok_or(Error::TooLong)?;
        let number = self.key.take_number(self.end)?;
        let nonce = self.key.nonce(number);
        let kind = u8::from(kind);
        let shown = if form == Form::Tls13 { ContentType::ApplicationData.into() } else { kind };
        let body = record.len() - HEADER_BYTES;
        record[..HEADER_BYTES].copy_from_slice(&header(shown, body));
        if form == Form::Tls12Aes {
            record[HEADER_BYTES..form.head_bytes()].copy_from_slice(&nonce[NONCE_LEN - SENT_NONCE_BYTES..]);
        }
        let tag_at = record.len() - TAG_BYTES;
        let (sealed, tag_place) = record[form.head_bytes()..].split_at_mut(tag_at - form.head_bytes());
        if form == Form::Tls13 {
            sealed[content] = kind;
        }
        let associated = self.key.associated(number, shown, body, content);
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = self.key.aead.seal_in_place_separate_tag(nonce, associated, sealed);
        tag_place.copy_from_slice(tag.map_err(|_| Error::TooLong)?.as_ref());
        Ok(())
    }

    /// As if the cipher could bear no more.
    #[cfg(test)]
    pub fn wear_out_after(&mut self, records_max: u64) {
        self.end = records_max;
    }
}

/// What was in a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Opened {
    pub kind: ContentType,
    pub content_bytes: usize,
    /// Of the whole record.
    pub record_bytes: usize,
}

/// Opens what is received. After an error it is of no use.
pub(super) struct Opener(Key);

impl Opener {
    pub fn new(version: ProtocolVersion, secrets: (u64, ConnectionTrafficSecrets)) -> Result<Opener, Error> {
        Key::new(version, secrets).map(Opener)
    }

    /// The record at `at`, if it has come whole. What was in it is at `to` then, which is not behind `at`.
    pub fn open(&mut self, bytes: &mut [u8], at: usize, to: usize) -> Result<Option<Opened>, Error> {
        let Some(&[shown, major, _, high, low]) = bytes[at..].first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        let (key, body) = (&mut self.0, usize::from(u16::from_be_bytes([high, low])));
        let form = key.form;
        let is_kind = match form {
            Form::Tls13 => shown == u8::from(ContentType::ApplicationData),
            _ => {
                (ContentType::ChangeCipherSpec.into()..=ContentType::ApplicationData.into()).contains(&shown)
            }
        };
        if major != 3 || !is_kind {
            return Err(Error::NotARecord);
        }
        if body > form.body_bytes_max() {
            return Err(Error::TooLong);
        }
        let record_bytes = HEADER_BYTES + body;
        if bytes.len() - at < record_bytes {
            return Ok(None);
        }
        let content = record_bytes.checked_sub(form.head_bytes() + TAG_BYTES).ok_or(Error::BrokenSeal)?;
        let number = key.take_number(u64::MAX)?;
        let mut nonce = key.nonce(number);
        if form == Form::Tls12Aes {
            nonce[..NONCE_LEN - SENT_NONCE_BYTES].copy_from_slice(&key.iv[..NONCE_LEN - SENT_NONCE_BYTES]);
            let sent = &bytes[at + HEADER_BYTES..at + form.head_bytes()];
            nonce[NONCE_LEN - SENT_NONCE_BYTES..].copy_from_slice(sent);
        }
        let associated = key.associated(number, shown, body, content);
        let sealed_at = at + form.head_bytes() - to;
        let room = &mut bytes[to..at + record_bytes];
        let nonce = Nonce::assume_unique_for_key(nonce);
        let opened = key.aead.open_within(nonce, associated, room, sealed_at..);
        let (kind, content_bytes) = inside(form, shown, opened.map_err(|_| Error::BrokenSeal)?)?;
        Ok(Some(Opened { kind, content_bytes, record_bytes }))
    }
}

/// What kind of content it is, and how much.
fn inside(form: Form, shown: u8, opened: &[u8]) -> Result<(ContentType, usize), Error> {
    if form != Form::Tls13 {
        let is_too_long = opened.len() > CONTENT_BYTES_MAX;
        return if is_too_long { Err(Error::TooLong) } else { Ok((shown.into(), opened.len())) };
    }
    if opened.len() > CONTENT_BYTES_MAX + 1 {
        return Err(Error::TooLong);
    }
    let kind_at = opened.iter().rposition(|byte| *byte != 0).ok_or(Error::NotARecord)?;
    Ok((opened[kind_at].into(), kind_at))
}
