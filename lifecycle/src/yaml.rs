//! YAML as buildpacks write it (`release` output, Procfile, `launch.yml`, `config.yml`), turned into JSON values so that
//! the rest of the crate reads one form. Only the first document counts; anchors work, tags are ignored.

use serde_json::{Map, Number, Value};
use yaml_rust2::{Yaml, YamlLoader};

/// More than any Procfile needs; a bound against documents that unfold.
pub const DOCUMENT_BYTES_MAX: usize = 1024 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum YamlError {
    #[error("yaml: {0}")]
    Syntax(#[from] yaml_rust2::ScanError),
    #[error("yaml: the document is larger than {DOCUMENT_BYTES_MAX} bytes")]
    TooLarge,
    #[error("yaml: {0}")]
    Shape(#[from] serde_json::Error),
}

/// The first document; `null` when there is none.
pub fn parse(text: &str) -> Result<Value, YamlError> {
    if text.len() > DOCUMENT_BYTES_MAX {
        return Err(YamlError::TooLarge);
    }
    let documents = YamlLoader::load_from_str(text)?;
    Ok(documents.into_iter().next().map_or(Value::Null, json))
}

/// As [`parse`], with the scalars under these top-level keys as the texts they were written as: `1.10` is a version.
pub fn parse_with_texts(text: &str, keys: &[&str]) -> Result<Value, YamlError> {
    if text.len() > DOCUMENT_BYTES_MAX {
        return Err(YamlError::TooLarge);
    }
    let documents = YamlLoader::load_from_str(text)?;
    let Some(Yaml::Hash(mut document)) = documents.into_iter().next() else {
        return Ok(Value::Null);
    };
    for key in keys {
        if let Some(value) = document.get_mut(&Yaml::String((*key).to_owned()))
            && let Some(text) = scalar(value.clone())
        {
            *value = Yaml::String(text);
        }
    }
    Ok(json(Yaml::Hash(document)))
}

/// A mapping of names to texts, in the order written. Numbers and booleans count as the text they were written as;
/// nothing (an empty document) is an empty mapping; `None` when it is anything else.
pub fn texts(text: &str) -> Result<Option<Vec<(String, String)>>, YamlError> {
    if text.len() > DOCUMENT_BYTES_MAX {
        return Err(YamlError::TooLarge);
    }
    let documents = YamlLoader::load_from_str(text)?;
    Ok(match documents.into_iter().next() {
        None | Some(Yaml::Null) => Some(Vec::new()),
        Some(mapping) => mapping_of_texts(mapping),
    })
}

/// The mapping of texts under `key` of the document, as [`texts`]; empty when the document or the key is not there.
pub fn texts_under(text: &str, key: &str) -> Result<Option<Vec<(String, String)>>, YamlError> {
    if text.len() > DOCUMENT_BYTES_MAX {
        return Err(YamlError::TooLarge);
    }
    let mut documents = YamlLoader::load_from_str(text)?;
    Ok(match documents.first_mut() {
        None | Some(Yaml::Null) => Some(Vec::new()),
        Some(Yaml::Hash(document)) => match document.remove(&Yaml::String(key.to_owned())) {
            None | Some(Yaml::Null) => Some(Vec::new()),
            Some(mapping) => mapping_of_texts(mapping),
        },
        Some(_) => None,
    })
}

fn mapping_of_texts(mapping: Yaml) -> Option<Vec<(String, String)>> {
    let Yaml::Hash(entries) = mapping else {
        return None;
    };
    entries.into_iter().map(|(key, value)| Some((scalar(key)?, scalar(value)?))).collect()
}

fn scalar(value: Yaml) -> Option<String> {
    match value {
        Yaml::String(text) | Yaml::Real(text) => Some(text),
        Yaml::Integer(number) => Some(number.to_string()),
        Yaml::Boolean(truth) => Some(truth.to_string()),
        Yaml::Null => Some(String::new()),
        Yaml::Array(_) | Yaml::Hash(_) | Yaml::Alias(_) | Yaml::BadValue => None,
    }
}

fn json(value: Yaml) -> Value {
    match value {
        Yaml::Real(text) => {
            text.parse().ok().and_then(Number::from_f64).map_or(Value::String(text), Value::Number)
        }
        Yaml::Integer(number) => number.into(),
        Yaml::String(text) => text.into(),
        Yaml::Boolean(truth) => truth.into(),
        Yaml::Array(items) => items.into_iter().map(json).collect(),
        Yaml::Hash(entries) => entries
            .into_iter()
            .filter_map(|(key, value)| Some((scalar(key)?, json(value))))
            .collect::<Map<_, _>>()
            .into(),
        Yaml::Alias(_) | Yaml::Null | Yaml::BadValue => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_of_texts_keeps_its_order() {
        let read = |text| texts(text).unwrap();
        let pairs = |list: &[(&str, &str)]| {
            let owned = |(a, b): &(&str, &str)| ((*a).to_owned(), (*b).to_owned());
            Some(list.iter().map(owned).collect::<Vec<_>>())
        };
        assert_eq!(
            read("web: bin/serve -p $PORT\nclock: 5\n"),
            pairs(&[("web", "bin/serve -p $PORT"), ("clock", "5")])
        );
        assert_eq!(read(""), pairs(&[]));
        assert_eq!(read("---\n"), pairs(&[]));
        assert_eq!(read("just words"), None);
        assert_eq!(read("web: [a, b]"), None);
        assert!(texts("web: : :\n\t- x").is_err());
    }

    #[test]
    fn a_version_stays_as_it_was_written() {
        let read = parse_with_texts("version: 1.10\nn: 1.10\n", &["version"]).unwrap();
        assert_eq!(read, serde_json::json!({"version": "1.10", "n": 1.1}));
    }

    #[test]
    fn documents_become_json() {
        let read =
            parse("---\nname: x\nconfig:\n  entrypoint_prefix: ruby\nn: 1.5\nl: [a, 2, true, ~]").unwrap();
        let expected = serde_json::json!({
            "name": "x", "config": {"entrypoint_prefix": "ruby"}, "n": 1.5, "l": ["a", 2, true, null]
        });
        assert_eq!(read, expected);
    }
}
