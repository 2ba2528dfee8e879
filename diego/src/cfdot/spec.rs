//! What is given to create or change something: JSON on the command line, or `@` and the path of a file of it.

use std::io::ErrorKind;

use serde::de::DeserializeOwned;

use super::Failure;

/// What the wire says, not yet what it means.
pub fn read<W: DeserializeOwned>(argument: &str) -> Result<W, Failure> {
    let json = match argument.strip_prefix('@') {
        None => argument.to_owned(),
        Some(path) => {
            std::fs::read_to_string(path).map_err(|error| Failure::Usage(unreadable(path, &error)))?
        }
    };
    let invalid = |why: String| Failure::Usage(format!("Invalid JSON: {why}"));
    // A list of values in the right order would do for a structure.
    if json.trim_start().starts_with('[') {
        return Err(invalid("a list is no object".into()));
    }
    serde_json::from_str(&json).map_err(|error| invalid(error.to_string()))
}

fn unreadable(path: &str, error: &std::io::Error) -> String {
    match error.kind() {
        ErrorKind::NotFound => format!("stat {path}: no such file or directory"),
        _ => format!("read {path}: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bbs_models::wire;

    fn refused(argument: &str) -> String {
        read::<wire::DesiredLrp>(argument).unwrap_err().to_string()
    }

    #[test]
    fn a_spec_is_json_or_a_file_of_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), r#"{"process_guid": "p"}"#).unwrap();
        let named = format!("@{}", file.path().display());
        for argument in [r#"{"process_guid": "p"}"#, &named] {
            assert_eq!(read::<wire::DesiredLrp>(argument).unwrap().process_guid, "p");
        }
        for nonsense in ["{", "[]", "", "1"] {
            assert!(refused(nonsense).starts_with("Invalid JSON: "), "{nonsense}");
        }
        assert_eq!(refused("@/nowhere"), "stat /nowhere: no such file or directory");
    }
}
