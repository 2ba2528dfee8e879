//! Reading a message that anybody may have written. A body is as small as it is sent, but what it says may be large in
//! memory: two bytes are an empty action, or an empty volume mount. So the steps of reading it are counted.

use prost::Message;
use prost::bytes::Buf;

/// A field takes two or three: its number, its length or value, its content. Enough for the guids of 400,000 LRPs.
const READ_STEPS_MAX: usize = 2_000_000;
/// So near its end a body is not cut: a number that is read byte by byte there must not end under its reader.
const NUMBER_BYTES_MAX: usize = 10;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    #[error("not a message of this kind")]
    Malformed(#[from] prost::DecodeError),
    #[error("a message of too many parts")]
    TooManyParts,
}

/// The message, unless it is malformed or has too many parts.
pub fn decode<M: Message + Default>(body: &[u8]) -> Result<M, Unreadable> {
    let mut counted = Counted { rest: body, steps_left: READ_STEPS_MAX };
    let message = M::decode(&mut counted);
    if counted.steps_left == 0 {
        return Err(Unreadable::TooManyParts);
    }
    Ok(message?)
}

/// Ends early when its steps are used up.
struct Counted<'a> {
    rest: &'a [u8],
    steps_left: usize,
}

impl Buf for Counted<'_> {
    fn remaining(&self) -> usize {
        self.chunk().len()
    }

    fn chunk(&self) -> &[u8] {
        if self.steps_left == 0 && self.rest.len() > NUMBER_BYTES_MAX { &[] } else { self.rest }
    }

    fn advance(&mut self, count: usize) {
        self.rest = self.rest.get(count..).unwrap_or_default();
        self.steps_left = self.steps_left.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{ManyActions, ProcessGuidRequest};

    #[test]
    fn what_is_well_formed_is_read_as_it_is() {
        let request = ProcessGuidRequest { process_guid: "p".into() };
        assert_eq!(decode(&request.encode_to_vec()), Ok(request));
        assert_eq!(decode(&[]), Ok(ProcessGuidRequest::default()));
        assert!(matches!(decode::<ProcessGuidRequest>(&[0x0a, 9]), Err(Unreadable::Malformed(_))));
    }

    #[test]
    fn small_parts_are_counted() {
        let empty_actions = |count: usize| [0x0a, 0].repeat(count);
        assert_eq!(
            decode::<ManyActions>(&empty_actions(999_999)).map(|many| many.actions.len()),
            Ok(999_999)
        );
        assert_eq!(decode::<ManyActions>(&empty_actions(1_000_000)), Err(Unreadable::TooManyParts));
    }

    #[test]
    fn a_body_that_ends_within_a_number_ends_no_reader() {
        for steps_left in 0..4 {
            let body = [[0x0a, 0].repeat(1_000_000 - 2), [0x0a, 0].repeat(steps_left), vec![0x80; 9]];
            assert!(decode::<ManyActions>(&body.concat()).is_err());
        }
    }

    #[test]
    fn one_large_part_is_not_many() {
        let request = ProcessGuidRequest { process_guid: "p".repeat(16 * 1024 * 1024) };
        assert!(decode::<ProcessGuidRequest>(&request.encode_to_vec()).is_ok());
    }
}
