//! What the client of a process says: lines of JSON.
//!
//! Clients that have all of a process's input at hand send it as one message, however long. So that is decoded as it
//! comes and never held whole; of any other message at most [`MESSAGE_BYTES_MAX`] are.

use std::io;

use garden_client::wire::{ProcessPayload, STDIN};
use tokio::io::{AsyncBufRead, AsyncBufReadExt};

use super::connection::{Budget, Share};

/// Of a message, or of the part of one that is not input.
const MESSAGE_BYTES_MAX: usize = 64 << 10;
const REPLACEMENT: u32 = 0xfffd;

#[derive(Debug, PartialEq)]
pub(super) enum Said {
    Message(Box<ProcessPayload>),
    /// Some of the input.
    Input(Vec<u8>),
}

#[derive(Default)]
pub(super) struct Messages(Within);

#[derive(Default)]
enum Within {
    #[default]
    Nothing,
    Input(JsonString),
    /// What follows the input of a message that is longer than others, so many bytes of it so far.
    Rest(usize),
}

impl Messages {
    /// `None` at the end of the stream.
    pub(super) async fn next(
        &mut self,
        reader: &mut (impl AsyncBufRead + Unpin),
        budget: &Budget,
    ) -> io::Result<Option<Said>> {
        loop {
            match &mut self.0 {
                Within::Nothing => {
                    if let Some(said) = self.begin(reader, budget).await? {
                        return Ok(said);
                    }
                }
                Within::Input(string) => {
                    let available = reader.fill_buf().await?;
                    if available.is_empty() {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    let mut input = Vec::with_capacity(available.len());
                    let (taken, ended) = string.decode(available, &mut input)?;
                    reader.consume(taken);
                    if ended {
                        self.0 = Within::Rest(0);
                    }
                    return Ok(Some(Said::Input(input)));
                }
                Within::Rest(length) => {
                    let available = reader.fill_buf().await?;
                    let newline = available.iter().position(|byte| *byte == b'\n');
                    let taken = newline.map_or(available.len(), |end| end + 1);
                    *length += taken;
                    if *length > MESSAGE_BYTES_MAX {
                        return Err(too_long());
                    }
                    reader.consume(taken);
                    if newline.is_some() || taken == 0 {
                        self.0 = Within::Nothing;
                    }
                }
            }
        }
    }

    /// A whole message, or the first of a long one's input. `None`: nothing but an empty line.
    async fn begin(
        &mut self,
        reader: &mut (impl AsyncBufRead + Unpin),
        budget: &Budget,
    ) -> io::Result<Option<Option<Said>>> {
        let (mut bytes, mut share) = (Vec::new(), Share::default());
        loop {
            let available = reader.fill_buf().await?;
            let newline = available.iter().position(|byte| *byte == b'\n');
            let taken = newline.map_or(available.len(), |end| end + 1);
            budget.cover(&mut share, bytes.len() + taken).map_err(|_| too_long())?;
            bytes.extend_from_slice(&available[..taken]);
            reader.consume(taken);
            let whole = newline.is_some() || taken == 0;
            if whole && bytes.trim_ascii().is_empty() {
                return Ok((taken == 0).then_some(None));
            }
            if whole {
                let message = serde_json::from_slice(&bytes).map_err(io::Error::other)?;
                return Ok(Some(Some(Said::Message(Box::new(message)))));
            }
            if bytes.len() > MESSAGE_BYTES_MAX {
                let start = input_in(&bytes).ok_or_else(too_long)?;
                let (mut string, mut input) = (JsonString::default(), Vec::new());
                let (taken, ended) = string.decode(&bytes[start..], &mut input)?;
                self.0 =
                    if ended { Within::Rest(bytes.len() - start - taken) } else { Within::Input(string) };
                return Ok(Some(Some(Said::Input(input))));
            }
        }
    }
}

fn too_long() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("a message is longer than {MESSAGE_BYTES_MAX} bytes"))
}

/// Where the input begins in a message that has not come whole, as clients write it: the fields before it are short.
fn input_in(message: &[u8]) -> Option<usize> {
    let mut rest = message.trim_ascii_start().strip_prefix(b"{")?;
    let mut is_input = false;
    loop {
        rest = rest.trim_ascii_start().strip_prefix(b"\"")?;
        let end = rest.iter().position(|byte| *byte == b'"')?;
        let key = &rest[..end];
        rest = rest[end + 1..].trim_ascii_start().strip_prefix(b":")?.trim_ascii_start();
        match (key, rest.strip_prefix(b"\"")) {
            (b"data", Some(data)) if is_input => return Some(message.len() - data.len()),
            (_, Some(string)) => {
                let (taken, ended) = JsonString::default().decode(string, &mut Vec::new()).ok()?;
                rest = ended.then(|| &string[taken..])?;
            }
            (_, None) => {
                let end = rest.iter().position(|byte| matches!(byte, b',' | b'{' | b'[' | b'}'))?;
                is_input |= key == b"source" && rest[..end].trim_ascii() == STDIN.to_string().as_bytes();
                rest = &rest[end..];
            }
        }
        rest = rest.trim_ascii_start().strip_prefix(b",")?;
    }
}

/// The inside of a JSON string on its way. Half of a pair of surrogates is replaced, as the public server does.
#[derive(Default)]
struct JsonString {
    escape: Escape,
    /// The first of a pair.
    high: Option<u32>,
}

#[derive(Default)]
enum Escape {
    #[default]
    None,
    Begun,
    Unicode {
        digits: u8,
        code: u32,
    },
}

impl JsonString {
    /// How many bytes of it were taken, and whether the string has ended.
    fn decode(&mut self, bytes: &[u8], into: &mut Vec<u8>) -> io::Result<(usize, bool)> {
        let wrong = || io::Error::new(io::ErrorKind::InvalidData, "a message's input is no JSON string");
        let mut at = 0;
        while let Some(&byte) = bytes.get(at) {
            at += 1;
            match (&mut self.escape, byte) {
                (Escape::None, b'\\') => self.escape = Escape::Begun,
                (Escape::None, b'"') => {
                    self.end_pair(into);
                    return Ok((at, true));
                }
                (Escape::None, 0..=0x1f) => return Err(wrong()),
                (Escape::None, _) => {
                    self.end_pair(into);
                    let plain = |byte: &u8| !matches!(byte, b'\\' | b'"' | 0..=0x1f);
                    let end = at + bytes[at..].iter().take_while(|byte| plain(byte)).count();
                    into.extend_from_slice(&bytes[at - 1..end]);
                    at = end;
                }
                (Escape::Begun, b'u') => self.escape = Escape::Unicode { digits: 0, code: 0 },
                (Escape::Begun, byte) => {
                    self.escape = Escape::None;
                    self.end_pair(into);
                    into.push(escaped(byte).ok_or_else(wrong)?);
                }
                (Escape::Unicode { digits, code }, byte) => {
                    *code = *code << 4 | char::from(byte).to_digit(16).ok_or_else(wrong)?;
                    *digits += 1;
                    if *digits == 4 {
                        let code = *code;
                        self.escape = Escape::None;
                        self.unit(code, into);
                    }
                }
            }
        }
        Ok((at, false))
    }

    /// One unit of UTF-16.
    fn unit(&mut self, unit: u32, into: &mut Vec<u8>) {
        if let (Some(high), 0xdc00..=0xdfff) = (self.high, unit) {
            self.high = None;
            return push(0x10000 + ((high - 0xd800) << 10 | (unit - 0xdc00)), into);
        }
        self.end_pair(into);
        match unit {
            0xd800..=0xdbff => self.high = Some(unit),
            unit => push(unit, into),
        }
    }

    fn end_pair(&mut self, into: &mut Vec<u8>) {
        if self.high.take().is_some() {
            push(REPLACEMENT, into);
        }
    }
}

fn escaped(byte: u8) -> Option<u8> {
    Some(match byte {
        b'"' | b'\\' | b'/' => byte,
        b'b' => 8,
        b'f' => 12,
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        _ => return None,
    })
}

fn push(code: u32, into: &mut Vec<u8>) {
    let char = char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER);
    into.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes());
}

#[cfg(test)]
mod tests {
    use tokio::io::BufReader;

    use super::*;

    /// All that is said, input in one piece, and what went wrong at the end.
    fn said(stream: &[u8], piece: usize) -> (Vec<Said>, Option<String>) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut reader = BufReader::with_capacity(piece, stream);
            let (mut messages, budget, mut all) = (Messages::default(), Budget::new(1 << 30), Vec::new());
            loop {
                match messages.next(&mut reader, &budget).await {
                    Ok(None) => return (all, None),
                    Err(error) => return (all, Some(error.to_string())),
                    Ok(Some(Said::Input(more))) => match all.last_mut() {
                        Some(Said::Input(input)) => input.extend(more),
                        _ => all.push(Said::Input(more)),
                    },
                    Ok(Some(said)) => all.push(said),
                }
            }
        })
    }

    fn input(data: &str) -> String {
        let data = serde_json::to_string(data).unwrap();
        format!("{{\"process_id\":\"p \\\" q\",\"source\":0,\"data\":{data}}}\n")
    }

    fn message(line: &str) -> Said {
        Said::Message(Box::new(serde_json::from_str(line).unwrap()))
    }

    #[test]
    fn input_of_any_length_comes_as_it_was_sent_and_messages_after_it_too() {
        let text = "plain \u{0}\u{1f}\"\\/\u{8}\u{c}\n\r\t é 漢 😀 ".repeat(9_000);
        let end = "{\"process_id\":\"p\",\"source\":0}";
        let stream = format!("{end}\n\n{}{end}\n{}{end}", input(&text), input("short"));
        for piece in [1, 7, 4096] {
            let (all, error) = said(stream.as_bytes(), piece);
            let (all, error) = (all.as_slice(), error.as_deref());
            assert_eq!(error, None, "in pieces of {piece}");
            assert!(
                all.len() == 5 && all[0] == message(end) && all[2] == message(end) && all[4] == message(end)
            );
            assert!(all[1] == Said::Input(text.clone().into_bytes()), "in pieces of {piece}");
            assert!(all[3] == message(input("short").trim_end()));
        }
    }

    #[test]
    fn escapes_mean_what_the_public_server_takes_them_for() {
        for (string, expected) in [
            (r"\u0041\u00e9\u6f22", "Aé漢"),
            (r"\ud83d\ude00", "😀"),
            (r"\ud83d", "\u{fffd}"),
            (r"\ud83dx", "\u{fffd}x"),
            (r"\ud83d\n", "\u{fffd}\n"),
            (r"\ud83d\ud83d\ude00", "\u{fffd}😀"),
            (r"\ude00", "\u{fffd}"),
        ] {
            for piece in 1..=string.len() {
                let (mut decoder, mut decoded) = (JsonString::default(), Vec::new());
                let whole = format!("{string}\"");
                for part in whole.as_bytes().chunks(piece) {
                    decoder.decode(part, &mut decoded).unwrap();
                }
                assert_eq!(String::from_utf8(decoded).unwrap(), expected, "{string} in pieces of {piece}");
            }
        }
        for broken in ["\\x", "\\u12g4", "a\u{1}", "\n"] {
            assert!(JsonString::default().decode(broken.as_bytes(), &mut Vec::new()).is_err(), "{broken:?}");
        }
    }

    #[test]
    fn what_is_long_and_no_input_is_refused_with_bounded_memory() {
        let long = "x".repeat(2 * MESSAGE_BYTES_MAX);
        let too_long = "a message is longer than 65536 bytes";
        for (stream, expected) in [
            (format!("{{\"process_id\":\"{long}\"}}\n"), too_long),
            (format!("{{\"data\":\"{long}\",\"source\":0}}\n"), too_long),
            (format!("{{\"source\":1,\"data\":\"{long}\"}}\n"), too_long),
            (format!("{{\"source\":0,\"data\":\"{long}\",\"more\":\"{long}\"}}\n"), too_long),
            (format!("[{long}]"), too_long),
            (format!("{{\"source\":0,\"data\":\"{long}\\z\"}}\n"), "a message's input is no JSON string"),
            (format!("{{\"source\":0,\"data\":\"{long}"), "unexpected end of file"),
        ] {
            let (_, error) = said(stream.as_bytes(), 4096);
            assert_eq!(error.as_deref(), Some(expected), "{stream:.40}");
        }
    }
}
