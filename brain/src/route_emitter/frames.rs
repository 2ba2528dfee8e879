//! What a NATS server says, cut into frames. Pure. Headers are not spoken: the client says so when it connects.

use bytes::{Buf, Bytes, BytesMut};
use serde::Deserialize;
use tokio_util::codec::Decoder;

/// Bytes of a control line; the longest one tells of all servers of a cluster.
pub const LINE_BYTES_MAX: usize = 64 * 1024;
/// Bytes of one message that we are sent; greetings of routers are a hundredth of it.
pub const PAYLOAD_BYTES_MAX: usize = 1024 * 1024;

#[derive(Debug, PartialEq)]
pub enum Frame {
    Hello(Hello),
    Message(Message),
    Ping,
    Pong,
    Ok,
    Refused(String),
}

/// Of the server's first line, what concerns us.
#[derive(Debug, PartialEq, Deserialize)]
pub struct Hello {
    #[serde(default = "max_payload")]
    pub max_payload: usize,
    #[serde(default)]
    pub tls_required: bool,
    /// It may speak TLS, or not.
    #[serde(default)]
    pub tls_available: bool,
}

fn max_payload() -> usize {
    PAYLOAD_BYTES_MAX
}

#[derive(Debug, PartialEq)]
pub struct Message {
    pub subject: String,
    pub payload: Bytes,
}

#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    #[error("the NATS server sent a line of more than {LINE_BYTES_MAX} bytes")]
    LineTooLong,
    #[error("the NATS server sent a message of {0} bytes")]
    PayloadTooLong(usize),
    #[error("the NATS server said {0:?}, which is not understood")]
    NotUnderstood(String),
    #[error("cannot read from the NATS server: {0}")]
    Io(#[from] std::io::Error),
}

#[derive(Default)]
pub struct Frames {
    /// A message whose payload is not whole yet: its subject and its bytes.
    awaited: Option<(String, usize)>,
}

impl Decoder for Frames {
    type Item = Frame;
    type Error = FrameError;

    fn decode(&mut self, input: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
        if self.awaited.is_none() {
            let Some(line) = take_line(input)? else { return Ok(None) };
            match parse(&line)? {
                Line::Frame(frame) => return Ok(Some(frame)),
                Line::Message { subject, len } => self.awaited = Some((subject, len)),
            }
        }
        Ok(self.payload(input))
    }
}

impl Frames {
    fn payload(&mut self, input: &mut BytesMut) -> Option<Frame> {
        let (subject, len) = self.awaited.take()?;
        if input.len() < len + 2 {
            self.awaited = Some((subject, len));
            return None;
        }
        let payload = input.split_to(len).freeze();
        input.advance(2);
        Some(Frame::Message(Message { subject, payload }))
    }
}

enum Line {
    Frame(Frame),
    Message { subject: String, len: usize },
}

fn take_line(input: &mut BytesMut) -> Result<Option<String>, FrameError> {
    let Some(end) = input.windows(2).position(|pair| pair == b"\r\n") else {
        return if input.len() > LINE_BYTES_MAX { Err(FrameError::LineTooLong) } else { Ok(None) };
    };
    let line = input.split_to(end);
    input.advance(2);
    Ok(Some(String::from_utf8_lossy(&line).into_owned()))
}

fn parse(line: &str) -> Result<Line, FrameError> {
    let not_understood = || FrameError::NotUnderstood(line.chars().take(200).collect());
    let (word, rest) = line.split_once([' ', '\t']).unwrap_or((line, ""));
    let frame = match word.to_ascii_uppercase().as_str() {
        "INFO" => Frame::Hello(serde_json::from_str(rest).map_err(|_| not_understood())?),
        "PING" => Frame::Ping,
        "PONG" => Frame::Pong,
        "+OK" => Frame::Ok,
        "-ERR" => Frame::Refused(rest.trim_matches([' ', '\'']).to_owned()),
        "MSG" => {
            // MSG subject sid [reply] bytes
            let words: Vec<_> = rest.split_ascii_whitespace().collect();
            let [subject, _, .., len] = words.as_slice() else { return Err(not_understood()) };
            let len = len.parse().map_err(|_| not_understood())?;
            if len > PAYLOAD_BYTES_MAX {
                return Err(FrameError::PayloadTooLong(len));
            }
            return Ok(Line::Message { subject: (*subject).to_owned(), len });
        }
        _ => return Err(not_understood()),
    };
    Ok(Line::Frame(frame))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All frames of `input`, fed a byte at a time.
    fn frames(input: &str) -> Result<Vec<Frame>, FrameError> {
        let (mut decoder, mut buffer, mut frames) = (Frames::default(), BytesMut::new(), Vec::new());
        for byte in input.bytes() {
            buffer.extend_from_slice(&[byte]);
            frames.extend(decoder.decode(&mut buffer)?);
        }
        Ok(frames)
    }

    fn message(subject: &str, payload: &'static str) -> Frame {
        Frame::Message(Message { subject: subject.into(), payload: payload.into() })
    }

    #[test]
    fn frames_come_whole_however_they_are_cut() {
        let hello = Frame::Hello(Hello { max_payload: 9, tls_required: false, tls_available: false });
        for (input, expected) in [
            ("INFO {\"server_id\":\"x\",\"max_payload\":9}\r\n", vec![hello]),
            ("PING\r\nPONG\r\n+OK\r\n", vec![Frame::Ping, Frame::Pong, Frame::Ok]),
            ("-ERR 'Authorization Violation'\r\n", vec![Frame::Refused("Authorization Violation".into())]),
            ("MSG router.start 1 5\r\na\r\nbc\r\n", vec![message("router.start", "a\r\nbc")]),
            ("MSG a.b 2 _INBOX.1 0\r\n\r\nPING\r\n", vec![message("a.b", ""), Frame::Ping]),
            ("PIN", vec![]),
        ] {
            assert_eq!(frames(input).unwrap(), expected, "{input:?}");
        }
    }

    #[test]
    fn nonsense_is_refused_before_it_fills_memory() {
        assert!(matches!(frames("HELO\r\n"), Err(FrameError::NotUnderstood(_))));
        assert!(matches!(frames("MSG a\r\n"), Err(FrameError::NotUnderstood(_))));
        assert!(matches!(frames("MSG a 1 -4\r\n"), Err(FrameError::NotUnderstood(_))));
        assert!(matches!(frames("MSG a 1 99999999\r\n"), Err(FrameError::PayloadTooLong(99999999))));
        assert!(matches!(frames("INFO nonsense\r\n"), Err(FrameError::NotUnderstood(_))));
        let endless = &mut BytesMut::from(vec![b'x'; LINE_BYTES_MAX + 1].as_slice());
        assert!(matches!(Frames::default().decode(endless), Err(FrameError::LineTooLong)));
    }
}
