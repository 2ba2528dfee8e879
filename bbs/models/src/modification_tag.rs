//! Orders versions of one record: the epoch is new when the record is made anew, the index grows with each change.

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct ModificationTag {
    #[serde(default)]
    pub epoch: String,
    #[serde(default)]
    pub index: u32,
}

impl ModificationTag {
    pub fn new(epoch: impl Into<String>, index: u32) -> Self {
        Self { epoch: epoch.into(), index }
    }

    pub fn increment(&mut self) {
        self.index = self.index.wrapping_add(1);
    }

    /// Whether `other` is news to someone who knows `self`. Without an epoch on both sides everything is.
    pub fn succeeded_by(&self, other: &Self) -> bool {
        if self.epoch.is_empty() || other.epoch.is_empty() {
            return true;
        }
        self.epoch != other.epoch || self.index < other.index
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_later_index_or_another_epoch_succeeds() {
        let tag = ModificationTag::new;
        for (known, other, succeeds) in [
            (tag("a", 1), tag("a", 2), true),
            (tag("a", 1), tag("a", 1), false),
            (tag("a", 2), tag("a", 1), false),
            (tag("a", 9), tag("b", 0), true),
            (tag("", 9), tag("b", 0), true),
            (tag("a", 9), tag("", 0), true),
        ] {
            assert_eq!(known.succeeded_by(&other), succeeds, "{known:?} {other:?}");
        }
    }
}
