//! The JSON bodies of the Garden API beyond the types of [`crate::spec`], the messages of a process's stream, and how
//! names travel in paths and queries. Shared by the HTTP client and garden's server.

use std::io;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufRead, AsyncBufReadExt};

use crate::{Error, TtySpec};

/// One message of a process's stream, where nobody has reason to say more.
pub const MESSAGE_BYTES_MAX: usize = 1 << 20;

#[derive(Debug, Serialize, Deserialize)]
pub struct Created {
    #[serde(rename = "Handle", alias = "handle", default)]
    pub handle: String,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Handles {
    #[serde(rename = "Handles", alias = "handles", default, deserialize_with = "null_is_empty")]
    pub handles: Vec<String>,
}

/// A list of nothing is `null` where a server writes lists as Go does.
fn null_is_empty<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    Ok(Option::<Vec<String>>::deserialize(deserializer)?.unwrap_or_default())
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct StopRequest {
    pub kill: bool,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PropertyValue {
    pub value: String,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct NetInPorts {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub handle: String,
    #[serde(skip_serializing_if = "is_zero")]
    pub host_port: u32,
    #[serde(skip_serializing_if = "is_zero")]
    pub container_port: u32,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct InfoEntry {
    pub info: crate::ContainerInfo,
    pub err: Option<Error>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct MetricsEntry {
    pub metrics: crate::Metrics,
    pub err: Option<Error>,
}

/// What goes both ways over a process's stream, one JSON object a line.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProcessPayload {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub process_id: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub stream_id: String,
    /// 0: stdin. With data it is input, without it is the end of input.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_status: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tty: Option<TtySpec>,
    /// 0: terminate, 1: kill.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal: Option<u8>,
}

pub const STDIN: u8 = 0;
pub const SIGNAL_TERMINATE: u8 = 0;
pub const SIGNAL_KILL: u8 = 1;

/// As a line. These types hold nothing that JSON cannot say.
pub fn line(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec(message).map_err(io::Error::other)?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// The next message of at most [`MESSAGE_BYTES_MAX`], or `None` at the end of the stream.
pub async fn read_message<T: DeserializeOwned>(
    reader: &mut (impl AsyncBufRead + Unpin),
) -> io::Result<Option<T>> {
    let invalid = |reason: String| io::Error::new(io::ErrorKind::InvalidData, reason);
    let mut bytes = Vec::new();
    loop {
        let available = reader.fill_buf().await?;
        if available.is_empty() {
            break;
        }
        let newline = available.iter().position(|byte| *byte == b'\n');
        let taken = newline.map_or(available.len(), |end| end + 1);
        bytes.extend_from_slice(&available[..taken]);
        reader.consume(taken);
        if bytes.len() > MESSAGE_BYTES_MAX {
            return Err(invalid(format!("a message is longer than {MESSAGE_BYTES_MAX} bytes")));
        }
        if newline.is_some() && !bytes.trim_ascii().is_empty() {
            break;
        }
    }
    if bytes.trim_ascii().is_empty() {
        return Ok(None);
    }
    serde_json::from_slice(&bytes).map(Some).map_err(|error| invalid(error.to_string()))
}

/// A name as one segment of a path, or as a key or value of a query.
pub fn encode(name: &str) -> String {
    let mut encoded = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => encoded.push(byte.into()),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

/// `None` when it is not UTF-8 or an escape is broken.
pub fn decode_segment(segment: &str) -> Option<String> {
    decode(segment, false)
}

/// The pairs of a query in their order; broken ones are left out.
pub fn decode_query(query: &str) -> Vec<(String, String)> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs
        .filter_map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Some((decode(name, true)?, decode(value, true)?))
        })
        .collect()
}

fn decode(text: &str, plus_is_space: bool) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'%' => {
                let mut digit = || char::from(rest.next()?).to_digit(16);
                bytes.push((digit()? * 16 + digit()?) as u8);
            }
            b'+' if plus_is_space => bytes.push(b' '),
            _ => bytes.push(byte),
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_nothing_may_be_null_or_absent() {
        for json in [r#"{"Handles":null}"#, "{}", r#"{"Handles":[]}"#] {
            assert!(serde_json::from_str::<Handles>(json).unwrap().handles.is_empty(), "{json}");
        }
        assert_eq!(serde_json::from_str::<Handles>(r#"{"handles":["a"]}"#).unwrap().handles, ["a"]);
    }

    #[test]
    fn names_survive_paths_and_queries() {
        for name in ["plain", "a/b", "ü ö", "100%", "a+b=c&d", ""] {
            assert_eq!(decode_segment(&encode(name)).as_deref(), Some(name));
            let query = format!("{}={}", encode("key"), encode(name));
            assert_eq!(decode_query(&query), [("key".to_owned(), name.to_owned())]);
        }
        assert_eq!(
            decode_query("a+b=c+d&x"),
            [("a b".to_owned(), "c d".to_owned()), ("x".to_owned(), String::new())]
        );
        assert_eq!(decode_segment("%zz"), None);
        assert_eq!(decode_segment("%ff"), None);
        assert_eq!(decode_segment("%e"), None);
    }

    #[tokio::test]
    async fn messages_are_lines_with_a_limit() {
        let mut reader = &b"\n{\"exit_status\":3}\n{\"error\":\"x\"}"[..];
        let first: ProcessPayload = read_message(&mut reader).await.unwrap().unwrap();
        assert_eq!(first.exit_status, Some(3));
        let second: ProcessPayload = read_message(&mut reader).await.unwrap().unwrap();
        assert_eq!(second.error.as_deref(), Some("x"));
        assert!(read_message::<ProcessPayload>(&mut reader).await.unwrap().is_none());
        assert!(read_message::<ProcessPayload>(&mut &b"nonsense\n"[..]).await.is_err());
        let endless = vec![b'x'; MESSAGE_BYTES_MAX + 2];
        assert!(read_message::<ProcessPayload>(&mut &endless[..]).await.is_err());
    }

    #[test]
    fn payloads_are_those_of_the_public_client() {
        let input = ProcessPayload {
            process_id: "p".into(),
            source: Some(STDIN),
            data: Some("hi".into()),
            ..Default::default()
        };
        assert_eq!(line(&input).unwrap(), b"{\"process_id\":\"p\",\"source\":0,\"data\":\"hi\"}\n");
        let entry =
            InfoEntry { err: Some(Error::ContainerNotFound { handle: "x".into() }), ..Default::default() };
        let json = serde_json::to_value(&entry).unwrap();
        assert_eq!(json["Err"]["Type"], "ContainerNotFoundError");
        assert_eq!(json["Info"]["State"], "");
    }
}
