//! Why a piece of work was not placed, in the words that platform clients match on.

use std::fmt;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    #[error("unable to communicate to compatible cells")]
    NoCells,
    #[error("found no compatible cell for required rootfs")]
    Rootfs,
    #[error("found no compatible cell with required volume drivers")]
    VolumeDrivers,
    #[error("found no compatible cell with {}", tags(.0))]
    PlacementTags(Vec<String>),
    #[error("{0}")]
    InsufficientResources(Shortage),
    #[error("waiting to start instance: reached in-flight start limit")]
    TooManyStarting,
}

/// What every compatible cell is short of; if they are not short of the same, nothing is named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shortage {
    pub containers: bool,
    pub disk: bool,
    pub memory: bool,
}

impl Shortage {
    pub(crate) const ALL: Self = Self { containers: true, disk: true, memory: true };

    pub(crate) fn is_none(self) -> bool {
        !(self.containers || self.disk || self.memory)
    }

    pub(crate) fn and(self, other: Self) -> Self {
        Self {
            containers: self.containers && other.containers,
            disk: self.disk && other.disk,
            memory: self.memory && other.memory,
        }
    }
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("insufficient resources")?;
        let named = [("containers", self.containers), ("disk", self.disk), ("memory", self.memory)];
        let mut separator = ": ";
        for (name, _) in named.iter().filter(|(_, short)| *short) {
            write!(f, "{separator}{name}")?;
            separator = ", ";
        }
        Ok(())
    }
}

/// `no placement tags`, `placement tag "a"`, `placement tags "a", "b" and "c"`.
fn tags(tags: &[String]) -> String {
    match tags {
        [] => "no placement tags".into(),
        [tag] => format!("placement tag \"{tag}\""),
        [first @ .., last] => {
            let first: Vec<_> = first.iter().map(|tag| format!("\"{tag}\"")).collect();
            format!("placement tags {} and \"{last}\"", first.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_said_in_the_words_that_clients_know() {
        let check = |failure: Failure, text: &str| assert_eq!(failure.to_string(), text);
        let tags = |tags: &[&str]| Failure::PlacementTags(tags.iter().map(|tag| tag.to_string()).collect());
        check(tags(&[]), "found no compatible cell with no placement tags");
        check(tags(&["a"]), r#"found no compatible cell with placement tag "a""#);
        check(tags(&["a", "b", "c"]), r#"found no compatible cell with placement tags "a", "b" and "c""#);
        let short =
            |containers, disk, memory| Failure::InsufficientResources(Shortage { containers, disk, memory });
        check(short(true, true, true), "insufficient resources: containers, disk, memory");
        check(short(false, false, true), "insufficient resources: memory");
        check(short(false, false, false), "insufficient resources");
    }
}
