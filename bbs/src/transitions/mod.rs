//! What may become of what: every state machine of the BBS as functions from the old value to the new.
//!
//! Pure: no I/O, no clock, no chance. Time comes as `now_ns`, guids as arguments. What is refused is refused with the
//! error that the API's clients match on. Whether two transitions meet is not a question here: one writer runs them.

pub mod actual_lrp;
pub mod desired_lrp;
pub mod domain;
pub mod evacuation;
pub mod restart;
pub mod suspect;
#[cfg(test)]
mod tables;
pub mod task;

/// Bytes of a crash reason, placement error, failure reason or rejection reason; longer ones are cut.
pub const REASON_BYTES_MAX: usize = 1024;
const TRUNCATED: &str = "(truncated)";

/// `text`, short enough to be kept; a cut one says so at its end.
fn truncated(mut text: String) -> String {
    if text.len() < REASON_BYTES_MAX {
        return text;
    }
    let mut end = REASON_BYTES_MAX - TRUNCATED.len();
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text.push_str(TRUNCATED);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_reason_is_cut_and_says_so() {
        assert_eq!(truncated("short".into()), "short");
        assert_eq!(truncated("x".repeat(1023)).len(), 1023);
        let cut = truncated("x".repeat(5000));
        assert_eq!((cut.len(), cut.ends_with("x(truncated)")), (1024, true));
        assert!(truncated("é".repeat(5000)).ends_with("é(truncated)"));
    }
}
