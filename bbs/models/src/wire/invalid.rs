//! What is wrong with a message: all of it at once, in the words that platform clients know.

/// Texts such as `Invalid field: process_guid`, joined by `, `.
#[derive(Debug, Clone, PartialEq, Eq, Default, thiserror::Error)]
#[error("{}", faults.join(", "))]
pub struct Invalid {
    faults: Vec<String>,
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
        self.faults.push(text.into());
    }

    pub(super) fn add_field(&mut self, name: &str) {
        self.faults.push(format!("Invalid field: {name}"));
    }

    pub(super) fn require(&mut self, holds: bool, field: &str) {
        if !holds {
            self.add_field(field);
        }
    }

    pub(super) fn append(&mut self, other: Self) {
        self.faults.extend(other.faults);
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
