//! What is wrong with a message: all of it at once, in the words that platform clients know.

use std::fmt;

/// Faults that are told of one message; it may have as many as it has parts.
pub const FAULTS_TOLD_MAX: usize = 64;
/// Of one fault that quotes what it is about.
pub const FAULT_CHARS_MAX: usize = 256;

/// Texts such as `Invalid field: process_guid`, joined by `, `.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Invalid {
    faults: Vec<String>,
    untold: usize,
}

impl std::error::Error for Invalid {}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.faults.join(", "))?;
        if self.untold > 0 { write!(f, ", and {} more", self.untold) } else { Ok(()) }
    }
}

impl Invalid {
    pub fn field(name: &str) -> Self {
        let mut invalid = Self::default();
        invalid.add_field(name);
        invalid
    }

    pub fn faults(&self) -> &[String] {
        &self.faults
    }

    pub(super) fn add(&mut self, text: impl Into<String>) {
        if self.faults.len() == FAULTS_TOLD_MAX {
            self.untold += 1;
            return;
        }
        let mut text = text.into();
        if let Some((end, _)) = text.char_indices().nth(FAULT_CHARS_MAX) {
            text.truncate(end);
            text.push('…');
        }
        self.faults.push(text);
    }

    pub(super) fn add_field(&mut self, name: &str) {
        self.add(format!("Invalid field: {name}"));
    }

    pub(super) fn require(&mut self, holds: bool, field: &str) {
        if !holds {
            self.add_field(field);
        }
    }

    pub(super) fn append(&mut self, other: Self) {
        other.faults.into_iter().for_each(|fault| self.add(fault));
        self.untold += other.untold;
    }

    /// The value, or its faults kept.
    pub(super) fn take<T>(&mut self, parsed: Result<T, Self>) -> Option<T> {
        parsed.map_err(|invalid| self.append(invalid)).ok()
    }

    /// As [`take`](Self::take), the faults headed by the name of the field.
    pub(super) fn take_field<T>(&mut self, field: &str, parsed: Result<T, Self>) -> Option<T> {
        if parsed.is_err() {
            self.add_field(field);
        }
        self.take(parsed)
    }

    pub(super) fn list<W, T: TryFrom<W, Error = Self>>(
        &mut self,
        field: Option<&str>,
        list: Vec<W>,
    ) -> Vec<T> {
        list.into_iter()
            .filter_map(|item| match field {
                Some(field) => self.take_field(field, item.try_into()),
                None => self.take(item.try_into()),
            })
            .collect()
    }

    /// Quantities are signed on the wire and never negative.
    pub(super) fn unsigned(&mut self, field: &str, value: i32) -> u32 {
        u32::try_from(value).unwrap_or_else(|_| {
            self.add_field(field);
            0
        })
    }

    pub(super) fn or<T>(self, value: T) -> Result<T, Self> {
        if self.faults.is_empty() { Ok(value) } else { Err(self) }
    }
}

impl From<Invalid> for crate::Error {
    fn from(invalid: Invalid) -> Self {
        Self::invalid_request(invalid.to_string())
    }
}
