//! Server-sent events, as far as the BBS speaks them: bytes in, whole events out. No I/O.

use std::mem;

/// One event of the stream.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SseEvent {
    pub id: String,
    pub name: String,
    pub data: String,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SseError {
    #[error("an event is longer than {0} bytes")]
    TooLong(usize),
    #[error("a line is not UTF-8")]
    NotText,
}

/// Collects bytes into lines, and lines into events.
#[derive(Debug)]
pub struct SseParser {
    bytes_max: usize,
    line: Vec<u8>,
    /// A carriage return ended the last line; a line feed right after it belongs to it.
    after_return: bool,
    event: SseEvent,
    has_data: bool,
}

impl SseParser {
    /// `bytes_max` is of one event, so that a peer cannot make us hold more.
    pub fn new(bytes_max: usize) -> Self {
        Self { bytes_max, line: Vec::new(), after_return: false, event: SseEvent::default(), has_data: false }
    }

    /// The events that `bytes` complete.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Vec<SseEvent>, SseError> {
        let mut events = Vec::new();
        for &byte in bytes {
            let follows_return = mem::replace(&mut self.after_return, byte == b'\r');
            match byte {
                b'\n' if follows_return => {}
                b'\n' | b'\r' => events.extend(self.end_line()?),
                _ => {
                    if self.line.len() + self.event.data.len() >= self.bytes_max {
                        return Err(SseError::TooLong(self.bytes_max));
                    }
                    self.line.push(byte);
                }
            }
        }
        Ok(events)
    }

    fn end_line(&mut self) -> Result<Option<SseEvent>, SseError> {
        let line = String::from_utf8(mem::take(&mut self.line)).map_err(|_| SseError::NotText)?;
        if line.is_empty() {
            let event = mem::take(&mut self.event);
            return Ok(mem::take(&mut self.has_data).then_some(event));
        }
        let (field, value) = line.split_once(':').unwrap_or((&line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => self.event.name = value.to_string(),
            "id" => self.event.id = value.to_string(),
            "data" => {
                if mem::replace(&mut self.has_data, true) {
                    self.event.data.push('\n');
                }
                self.event.data.push_str(value);
            }
            // Comments begin with a colon; `retry` is not ours to follow.
            _ => {}
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(chunks: &[&str]) -> Vec<(String, String, String)> {
        let mut parser = SseParser::new(1000);
        let fed = chunks.iter().flat_map(|chunk| parser.feed(chunk.as_bytes()).unwrap());
        fed.map(|event| (event.id, event.name, event.data)).collect()
    }

    fn one(id: &str, name: &str, data: &str) -> Vec<(String, String, String)> {
        vec![(id.to_string(), name.to_string(), data.to_string())]
    }

    #[test]
    fn an_event_ends_with_an_empty_line_however_it_is_cut() {
        let whole = "id: 7\nevent: task_created\ndata: YWJj\n\n";
        assert_eq!(events(&[whole]), one("7", "task_created", "YWJj"));
        for at in 0..whole.len() {
            assert_eq!(
                events(&[&whole[..at], &whole[at..]]),
                one("7", "task_created", "YWJj"),
                "cut at {at}"
            );
        }
        assert_eq!(events(&[&whole.replace('\n', "\r\n")]), one("7", "task_created", "YWJj"));
        assert_eq!(events(&[&whole.replace('\n', "\r")]), one("7", "task_created", "YWJj"));
    }

    #[test]
    fn comments_and_events_without_data_are_nothing() {
        assert_eq!(events(&[": hello\n\nevent: x\n\nretry: 1\n\n"]), vec![]);
        assert_eq!(events(&["data:a\ndata: b\nwhat\n\n"]), one("", "", "a\nb"));
    }

    #[test]
    fn an_endless_event_is_refused() {
        let mut parser = SseParser::new(10);
        assert_eq!(parser.feed(&[b'x'; 11]), Err(SseError::TooLong(10)));
        let mut parser = SseParser::new(10);
        assert_eq!(parser.feed(b"data: 1234\ndata: 1234\n"), Err(SseError::TooLong(10)));
        let mut parser = SseParser::new(10);
        assert_eq!(parser.feed(&[0xff, b'\n']), Err(SseError::NotText));
    }
}
