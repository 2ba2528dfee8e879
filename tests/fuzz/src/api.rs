//! What clients send to the Garden API: heads, targets, chunks and JSON.
#![no_main]
#![allow(dead_code)]

#[path = "../../../garden/src/http/head.rs"]
mod head;
#[path = "../../../garden/src/http/routes.rs"]
mod routes;

/// As much of it as routes name.
mod relay {
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum OutputKind {
        Stdout,
        Stderr,
    }
}

use garden_client::wire::{self, NetInPorts, ProcessPayload};
use garden_client::{ContainerSpec, Error, NetOutRule, ProcessSpec};
use head::{Malformed, Position};
use libfuzzer_sys::fuzz_target;
use serde::Serialize;
use serde::de::DeserializeOwned;

fuzz_target!(|data: &[u8]| {
    let Some((&kind, data)) = data.split_first() else { return };
    match kind % 3 {
        0 => heads(data),
        1 => chunks(data),
        _ => json(data),
    }
});

/// However it arrives, a head says the same.
fn heads(data: &[u8]) {
    let whole = head::parse(data, 0);
    let mut seen = 0;
    for end in (0..=data.len()).step_by(7).chain([data.len()]) {
        match head::parse(&data[..end], seen) {
            Ok(None) => seen = end,
            Ok(Some(found)) => {
                assert!(found.length <= end);
                assert_eq!(Ok(Some(found.clone())), whole);
                routes::parse(&found.method, &found.target);
                routes::methods(&found.target);
                return;
            }
            Err(_) => return assert!(whole.is_err()),
        }
    }
    assert_eq!(whole, Ok(None));
}

/// However they arrive, chunks hold the same.
fn chunks(data: &[u8]) {
    let Some((&size, data)) = data.split_first() else { return };
    let (at_once, in_pieces) = (content(data, data.len().max(1)), content(data, usize::from(size).max(1)));
    if let (Ok(at_once), Ok(in_pieces)) = (&at_once, &in_pieces) {
        assert_eq!(at_once, in_pieces);
    }
    assert_eq!(at_once.is_ok(), in_pieces.is_ok());
}

/// `None`: more is to come.
fn content(body: &[u8], size: usize) -> Result<Option<Vec<u8>>, Malformed> {
    let (mut position, mut buffer, mut content) = (Position::ChunkLine, Vec::new(), Vec::new());
    for piece in body.chunks(size) {
        buffer.extend_from_slice(piece);
        while let Some((used, next)) = position.step(&buffer)? {
            buffer.drain(..used);
            position = next;
            match position {
                Position::End => return Ok(Some(content)),
                Position::Content { left, .. } => {
                    let count = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                    content.extend(buffer.drain(..count));
                    position = position.after(count);
                    if count == 0 {
                        break;
                    }
                }
                _ => {}
            }
        }
    }
    Ok(None)
}

fn json(data: &[u8]) {
    survives::<ContainerSpec>(data);
    survives::<ProcessSpec>(data);
    survives::<Vec<NetOutRule>>(data);
    survives::<ProcessPayload>(data);
    survives::<Error>(data);
    // Not comparable; they must only not harm.
    let _ = serde_json::from_slice::<NetInPorts>(data);
    if let Ok(text) = std::str::from_utf8(data) {
        wire::decode_query(text);
        if let Some(name) = wire::decode_segment(text) {
            assert_eq!(wire::decode_segment(&wire::encode(&name)), Some(name));
        }
    }
}

/// What we understood we say in the same words.
fn survives<T: DeserializeOwned + Serialize + PartialEq + std::fmt::Debug>(data: &[u8]) {
    let Ok(value) = serde_json::from_slice::<T>(data) else { return };
    let said = wire::line(&value).unwrap();
    assert_eq!(serde_json::from_slice::<T>(&said).unwrap(), value);
}
