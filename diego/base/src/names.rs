//! Names that nobody has yet. Handed out here, so that what happens to a whole control plane under a seed happens again
//! under the same seed, names and their order included.

use std::cell::Cell;

thread_local! {
    static STREAM: Cell<Option<u64>> = const { Cell::new(None) };
}

/// A random UUID, as text.
pub fn guid() -> String {
    match STREAM.get() {
        None => uuid::Uuid::new_v4().to_string(),
        Some(state) => {
            let (state, high) = split_mix(state);
            let (state, low) = split_mix(state);
            STREAM.set(Some(state));
            let bits = u128::from(high) << 64 | u128::from(low);
            uuid::Builder::from_random_bytes(bits.to_be_bytes()).into_uuid().to_string()
        }
    }
}

/// From now on, this thread's names follow from `seed`. For simulations alone: they can be foretold.
pub fn under_seed(seed: u64) {
    STREAM.set(Some(seed));
}

/// SplitMix64.
fn split_mix(state: u64) -> (u64, u64) {
    let state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (state, mixed ^ (mixed >> 31))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_under_a_seed_come_again_and_others_do_not() {
        assert_ne!(guid(), guid());
        under_seed(7);
        let names = [guid(), guid()];
        assert_ne!(names[0], names[1]);
        under_seed(7);
        assert_eq!([guid(), guid()], names);
        assert_eq!(names[0].as_bytes()[14], b'4');
    }
}
