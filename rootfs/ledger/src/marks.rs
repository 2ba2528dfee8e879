//! How full a disk may become, and when something has to go. Pure.

/// One in so many bytes of a disk lies between two marks, and no more than a bound.
const PART: u64 = 20;
const KEPT_BYTES_MAX: u64 = 2 << 30;
const BELOW_BRIM_BYTES_MAX: u64 = 2 << 30;
const COLLECTED_BYTES_MAX: u64 = 4 << 30;

/// In bytes of a disk that are taken, or spoken for. `low < high < brim < total` on every disk on which there is a byte
/// to give: collecting begins before claims are refused, and claims are refused before the disk is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Marks {
    /// Nothing is taken beyond; the rest is for everybody else.
    pub brim: u64,
    /// Beyond it something has to go,
    pub high: u64,
    /// until no more than this is taken.
    pub low: u64,
}

impl Marks {
    /// Of a disk's real size, so that they are always within it.
    pub fn of(total: u64) -> Marks {
        let part = |most: u64| (total / PART).min(most);
        let brim = total - part(KEPT_BYTES_MAX);
        let high = brim - part(BELOW_BRIM_BYTES_MAX);
        Marks { brim, high, low: high - part(COLLECTED_BYTES_MAX) }
    }

    /// What may be taken beyond `taken`.
    pub fn room(&self, taken: u64) -> u64 {
        self.brim.saturating_sub(taken)
    }

    /// What has to go.
    pub fn excess(&self, taken: u64) -> Option<u64> {
        (taken > self.high).then(|| taken - self.low)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn collecting_begins_below_the_brim_and_the_brim_lies_below_the_end_of_any_disk() {
        let sizes = (5..62).flat_map(|power| [1u64 << power, (1 << power) + 12_345, 3 << power]);
        for total in sizes {
            let marks = Marks::of(total);
            assert!(
                marks.low < marks.high && marks.high < marks.brim && marks.brim < total,
                "{total}: {marks:?}"
            );
            assert_eq!((marks.excess(marks.high), marks.room(marks.brim)), (None, 0));
            assert!(marks.excess(marks.high + 1).is_some() && marks.room(marks.high + 1) > 0 || total < 100);
        }
        // Too small to give anything.
        assert_eq!(Marks::of(0).room(0), 0);
    }
}
