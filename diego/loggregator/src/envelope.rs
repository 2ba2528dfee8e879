//! `loggregator.v2.Envelope` in the wire format of protocol buffers, written by hand: one comes for each line that any
//! app says, and most of it is the same as the one before.

use std::cell::RefCell;

/// Fields of `Envelope`.
const TIMESTAMP: u32 = 1;
const SOURCE_ID: u32 = 2;
const LOG: u32 = 4;
const COUNTER: u32 = 5;
const GAUGE: u32 = 6;
const TIMER: u32 = 7;
const INSTANCE_ID: u32 = 8;
const TAGS: u32 = 9;

/// Wire types.
const VARINT: u32 = 0;
const FIXED64: u32 = 1;
const BYTES: u32 = 2;

/// A scratch buffer that grew beyond this for one long line is given back.
const SCRATCH_BYTES_MAX: usize = 128 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    Out,
    Err,
}

/// One measure of a gauge.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Value<'a> {
    pub name: &'a str,
    pub value: f64,
    pub unit: &'a str,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Message<'a> {
    Log {
        payload: &'a [u8],
        stream: Stream,
    },
    Gauge(&'a [Value<'a>]),
    /// Grew by so much.
    Delta {
        name: &'a str,
        delta: u64,
    },
    /// Stands at so much.
    Total {
        name: &'a str,
        total: u64,
    },
    /// Nanoseconds since the epoch.
    Timer {
        name: &'a str,
        start_ns: i64,
        stop_ns: i64,
    },
}

/// Who an envelope is about: source, instance and tags, encoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source(Vec<u8>);

impl Source {
    /// Of two tags of one name the later one stands.
    pub(crate) fn new<'a>(
        source_id: &str,
        instance_id: &str,
        origin: &str,
        tags: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Source {
        let mut encoded = Vec::with_capacity(256);
        put_bytes(&mut encoded, SOURCE_ID, source_id.as_bytes());
        put_bytes(&mut encoded, INSTANCE_ID, instance_id.as_bytes());
        let mut put_tag = |name, value: &str| {
            put_entry(&mut encoded, TAGS, name, |entry| put_bytes(entry, 2, value.as_bytes()))
        };
        if !origin.is_empty() {
            put_tag("origin", origin);
        }
        for (name, value) in tags {
            put_tag(name, value);
        }
        Source(encoded)
    }
}

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Calls `done` with the encoded envelope.
pub fn encode<T>(
    timestamp_ns: i64,
    source: &Source,
    message: &Message<'_>,
    done: impl FnOnce(&[u8]) -> T,
) -> T {
    SCRATCH.with_borrow_mut(|scratch| {
        scratch.clear();
        put_varint(scratch, TIMESTAMP, timestamp_ns as u64);
        scratch.extend_from_slice(&source.0);
        put_message(scratch, message);
        let result = done(scratch);
        if scratch.capacity() > SCRATCH_BYTES_MAX {
            *scratch = Vec::new();
        }
        result
    })
}

fn put_message(out: &mut Vec<u8>, message: &Message<'_>) {
    match *message {
        Message::Log { payload, stream } => put_within(out, LOG, |log| {
            put_bytes(log, 1, payload);
            put_varint(log, 2, (stream == Stream::Err).into());
        }),
        Message::Gauge(values) => put_within(out, GAUGE, |gauge| {
            for value in values {
                put_entry(gauge, 1, value.name, |entry| {
                    put_within(entry, 2, |measure| {
                        put_bytes(measure, 1, value.unit.as_bytes());
                        put_key(measure, 2, FIXED64);
                        measure.extend_from_slice(&value.value.to_le_bytes());
                    });
                });
            }
        }),
        Message::Delta { name, delta } => put_within(out, COUNTER, |counter| {
            put_bytes(counter, 1, name.as_bytes());
            put_varint(counter, 2, delta);
        }),
        Message::Total { name, total } => put_within(out, COUNTER, |counter| {
            put_bytes(counter, 1, name.as_bytes());
            put_varint(counter, 3, total);
        }),
        Message::Timer { name, start_ns, stop_ns } => put_within(out, TIMER, |timer| {
            put_bytes(timer, 1, name.as_bytes());
            put_varint(timer, 2, start_ns as u64);
            put_varint(timer, 3, stop_ns as u64);
        }),
    }
}

/// An entry of a map: a message of a key and a value.
fn put_entry(out: &mut Vec<u8>, field: u32, name: &str, value: impl FnOnce(&mut Vec<u8>)) {
    put_within(out, field, |entry| {
        put_bytes(entry, 1, name.as_bytes());
        value(entry);
    });
}

/// A message within a message. Its length comes first and is known last; nearly always it takes one or two bytes.
fn put_within(out: &mut Vec<u8>, field: u32, content: impl FnOnce(&mut Vec<u8>)) {
    put_key(out, field, BYTES);
    let start = out.len();
    content(out);
    let mut length = [0; LENGTH_BYTES_MAX];
    let length = encode_number((out.len() - start) as u64, &mut length);
    out.splice(start..start, length.iter().copied());
}

fn put_bytes(out: &mut Vec<u8>, field: u32, bytes: &[u8]) {
    put_key(out, field, BYTES);
    put_number(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Zero is what a field is that is not there.
fn put_varint(out: &mut Vec<u8>, field: u32, number: u64) {
    if number != 0 {
        put_key(out, field, VARINT);
        put_number(out, number);
    }
}

fn put_key(out: &mut Vec<u8>, field: u32, wire_type: u32) {
    put_number(out, u64::from(field << 3 | wire_type));
}

const LENGTH_BYTES_MAX: usize = 10;

fn put_number(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(encode_number(number, &mut [0; LENGTH_BYTES_MAX]));
}

/// Seven bits a byte, the lowest first; the highest bit says that more follow.
pub fn encode_number(mut number: u64, bytes: &mut [u8; LENGTH_BYTES_MAX]) -> &[u8] {
    let mut length = 0;
    while number >= 0x80 {
        bytes[length] = number as u8 | 0x80;
        number >>= 7;
        length += 1;
    }
    bytes[length] = number as u8;
    &bytes[..=length]
}
