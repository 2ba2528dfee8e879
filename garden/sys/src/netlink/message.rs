//! The bytes of netlink: headers and nested attributes, both ways. Pure.

pub const HEADER_BYTES: usize = 16;
const ATTRIBUTE_HEADER_BYTES: usize = 4;
const ALIGNMENT: usize = 4;
/// The two top bits of an attribute's kind are flags (nested, network byte order).
const KIND_MASK: u16 = 0x3fff;
const NESTED: u16 = 0x8000;

pub const NLM_F_REQUEST: u16 = libc::NLM_F_REQUEST as u16;
pub const NLM_F_ACK: u16 = libc::NLM_F_ACK as u16;
pub const NLM_F_DUMP: u16 = libc::NLM_F_DUMP as u16;
pub const NLM_F_CREATE: u16 = libc::NLM_F_CREATE as u16;
pub const NLM_F_REPLACE: u16 = libc::NLM_F_REPLACE as u16;
pub const NLM_F_EXCL: u16 = libc::NLM_F_EXCL as u16;
pub const NLM_F_APPEND: u16 = libc::NLM_F_APPEND as u16;
pub const NLM_F_ACK_TLVS: u16 = 0x200;

/// `struct nlmsghdr`, as far as it is of interest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub kind: u16,
    pub flags: u16,
    pub sequence: u32,
    /// Of the socket that asked for it, in what everybody is told, too.
    pub port: u32,
}

/// A request being put together.
#[derive(Debug, Clone)]
pub struct Message {
    kind: u16,
    flags: u16,
    payload: Vec<u8>,
}

impl Message {
    pub fn new(kind: u16, flags: u16, fixed: &[u8]) -> Self {
        let mut message = Self { kind, flags: flags | NLM_F_REQUEST, payload: fixed.to_vec() };
        message.pad();
        message
    }

    pub fn ask_for_ack(&mut self) {
        self.flags |= NLM_F_ACK;
    }

    pub fn wants_ack(&self) -> bool {
        self.flags & NLM_F_ACK != 0
    }

    pub fn attribute(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        self.put_header(kind, value.len());
        self.payload.extend_from_slice(value);
        self.pad();
        self
    }

    pub fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        self.put_header(kind, value.len() + 1);
        self.payload.extend_from_slice(value.as_bytes());
        self.payload.push(0);
        self.pad();
        self
    }

    /// In this machine's byte order, as rtnetlink wants numbers.
    pub fn native_u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.attribute(kind, &value.to_ne_bytes())
    }

    /// In network byte order, as nfnetlink wants numbers.
    pub fn network_u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.attribute(kind, &value.to_be_bytes())
    }

    pub fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        self.nested_after(kind, &[], fill)
    }

    /// Nested attributes behind a fixed structure.
    pub fn nested_after(&mut self, kind: u16, fixed: &[u8], fill: impl FnOnce(&mut Self)) -> &mut Self {
        let start = self.payload.len();
        self.put_header(kind | NESTED, 0);
        self.payload.extend_from_slice(fixed);
        self.pad();
        fill(self);
        let length = u16::try_from(self.payload.len() - start).unwrap_or(u16::MAX);
        self.payload[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self
    }

    pub fn append_to(&self, datagram: &mut Vec<u8>, sequence: u32) {
        let length = (HEADER_BYTES + self.payload.len()) as u32;
        datagram.extend_from_slice(&length.to_ne_bytes());
        datagram.extend_from_slice(&self.kind.to_ne_bytes());
        datagram.extend_from_slice(&self.flags.to_ne_bytes());
        datagram.extend_from_slice(&sequence.to_ne_bytes());
        datagram.extend_from_slice(&0u32.to_ne_bytes());
        datagram.extend_from_slice(&self.payload);
    }

    fn put_header(&mut self, kind: u16, length: usize) {
        let length = u16::try_from(ATTRIBUTE_HEADER_BYTES + length).unwrap_or(u16::MAX);
        self.payload.extend_from_slice(&length.to_ne_bytes());
        self.payload.extend_from_slice(&kind.to_ne_bytes());
    }

    fn pad(&mut self) {
        self.payload.resize(self.payload.len().next_multiple_of(ALIGNMENT), 0);
    }
}

/// The first message of a datagram, its payload, and the rest.
pub fn split(datagram: &[u8]) -> Option<(Header, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(*datagram.first_chunk()?) as usize;
    let header = Header {
        kind: u16::from_ne_bytes(datagram.get(4..6)?.try_into().ok()?),
        flags: u16::from_ne_bytes(datagram.get(6..8)?.try_into().ok()?),
        sequence: u32::from_ne_bytes(datagram.get(8..12)?.try_into().ok()?),
        port: u32::from_ne_bytes(datagram.get(12..16)?.try_into().ok()?),
    };
    let payload = datagram.get(HEADER_BYTES..length)?;
    let rest = datagram.get(length.next_multiple_of(ALIGNMENT)..).unwrap_or(&[]);
    Some((header, payload, rest))
}

/// The attributes of a payload, by kind; ends at the first that is malformed.
pub struct Attributes<'a>(&'a [u8]);

impl<'a> Attributes<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(u16::from_ne_bytes(*self.0.first_chunk()?));
        let kind = u16::from_ne_bytes(self.0.get(2..4)?.try_into().ok()?) & KIND_MASK;
        let value = self.0.get(ATTRIBUTE_HEADER_BYTES..length)?;
        self.0 = self.0.get(length.next_multiple_of(ALIGNMENT)..).unwrap_or(&[]);
        Some((kind, value))
    }
}

/// A string attribute, without its terminating zero.
pub fn text(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let mut message = Message::new(7, NLM_F_ACK, &[1, 2, 3]);
        message.text(1, "abc").nested(2, |inner| {
            inner.native_u32(3, 9);
        });
        let mut datagram = Vec::new();
        message.append_to(&mut datagram, 5);
        message.append_to(&mut datagram, 6);
        let (header, payload, rest) = split(&datagram).unwrap();
        assert_eq!(header, Header { kind: 7, flags: NLM_F_ACK | NLM_F_REQUEST, sequence: 5, port: 0 });
        assert_eq!(&payload[..4], &[1, 2, 3, 0]);
        let attributes: Vec<_> = Attributes::new(&payload[4..]).collect();
        assert_eq!(attributes[0], (1, &b"abc\0"[..]));
        assert_eq!(attributes[1].0, 2);
        assert_eq!(Attributes::new(attributes[1].1).next(), Some((3, &9u32.to_ne_bytes()[..])));
        assert_eq!(split(rest).unwrap().0.sequence, 6);
    }

    #[test]
    fn malformed_bytes_end_the_reading() {
        assert!(split(&[0; 3]).is_none());
        assert!(split(&[255; 20]).is_none());
        assert!(split(&[0; 20]).is_none());
        assert_eq!(Attributes::new(&[2, 0, 1, 0]).next(), None);
        assert_eq!(Attributes::new(&[200, 0, 1, 0]).next(), None);
    }
}
