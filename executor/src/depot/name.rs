//! A guid as the name of a directory: letters, digits, `-` and `_` as they are, other bytes as `%` and two digits.

use std::fmt::Write;

pub(super) fn of(guid: &str) -> String {
    let mut name = String::new();
    for byte in guid.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => name.push(byte.into()),
            // Writing to a string cannot fail.
            _ => _ = write!(name, "%{byte:02x}"),
        }
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stays_in_its_directory_and_is_nobody_elses() {
        for (guid, name) in [
            ("a-B_9", "a-B_9"),
            ("..", "%2e%2e"),
            ("a/b", "a%2fb"),
            ("a%2fb", "a%252fb"),
            ("lock", "lock"),
            ("ü", "%c3%bc"),
        ] {
            assert_eq!(of(guid), name);
        }
    }
}
