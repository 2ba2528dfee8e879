//! What is given to create or change something: JSON on the command line, or `@` and the path of a file of it.

use bbs_models::wire::Invalid;
use bbs_models::{Error, ErrorKind};
use serde::de::DeserializeOwned;

use super::Failure;

/// What the wire says, not yet what it means.
pub fn read<W: DeserializeOwned>(argument: &str) -> Result<W, Failure> {
    let json = match argument.strip_prefix('@') {
        None => argument.to_owned(),
        Some(path) => std::fs::read_to_string(path)
            .map_err(|error| Failure::Usage(format!("cannot read {path}: {error}")))?,
    };
    serde_json::from_str(&json).map_err(|error| Failure::Usage(format!("Invalid JSON: {error}")))
}

/// What it means; refused here in the words in which the BBS would refuse it.
pub fn parse<W, T: TryFrom<W, Error = Invalid>>(wire: W) -> Result<T, Failure> {
    wire.try_into()
        .map_err(|invalid: Invalid| Failure::Bbs(Error::new(ErrorKind::InvalidRequest, invalid.to_string())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bbs_models::{DesiredLrp, wire};

    fn refused(argument: &str) -> String {
        let parsed = read::<wire::DesiredLrp>(argument).and_then(parse::<_, DesiredLrp>);
        parsed.unwrap_err().to_string()
    }

    #[test]
    fn a_spec_is_json_or_a_file_of_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), r#"{"process_guid": "p"}"#).unwrap();
        let named = format!("@{}", file.path().display());
        for argument in [r#"{"process_guid": "p"}"#, &named] {
            assert_eq!(read::<wire::DesiredLrp>(argument).unwrap().process_guid, "p");
        }
        assert!(refused("{").starts_with("Invalid JSON: "));
        assert!(refused("@/nowhere").starts_with("cannot read /nowhere: "));
    }

    #[test]
    fn an_invalid_lrp_is_refused_as_the_bbs_would() {
        let error = refused(r#"{"process_guid": "p", "domain": "d", "rootfs": "preloaded:x"}"#);
        assert_eq!(error, "BBS error\nType 4: InvalidRequest\nMessage: invalid action type");
    }
}
