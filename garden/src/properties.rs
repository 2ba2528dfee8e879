//! What clients note down about containers, and how they find them by it. Pure.

use garden_client::Properties;

/// Whether a container's creation has succeeded, as if it were a property.
pub const STATE: &str = "garden.state";
const CREATED: &str = "created";
const ALL: &str = "all";

/// Whether a container is in a list of those with the `wanted` properties. Only created ones are, unless the list is
/// of `garden.state` "all".
pub fn matches(wanted: &Properties, properties: &Properties, created: bool) -> bool {
    let state_matches = match wanted.get(STATE).map(String::as_str) {
        None | Some(CREATED) => created,
        Some(ALL) => true,
        Some(_) => false,
    };
    state_matches
        && wanted
            .iter()
            .filter(|(name, _)| *name != STATE)
            .all(|(name, value)| properties.get(name) == Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Properties {
        text.split_whitespace()
            .filter_map(|pair| pair.split_once('='))
            .map(|(a, b)| (a.into(), b.into()))
            .collect()
    }

    #[test]
    fn containers_are_found_by_all_of_their_properties() {
        let check = |wanted: &str, has: &str, created: bool, expected: bool| {
            assert_eq!(matches(&parse(wanted), &parse(has), created), expected, "{wanted} in {has}");
        };
        check("", "", true, true);
        check("", "a=1", true, true);
        check("a=1", "a=1 b=2", true, true);
        check("a=1 b=2", "a=1 b=2", true, true);
        check("a=1 b=3", "a=1 b=2", true, false);
        check("c=1", "a=1", true, false);
        check("", "a=1", false, false);
        check("garden.state=all", "a=1", false, true);
        check("garden.state=all a=2", "a=1", false, false);
        check("garden.state=created", "", true, true);
        check("garden.state=other", "", true, false);
    }
}
