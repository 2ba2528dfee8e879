//! Route data of an LRP: for each router the JSON it understands, which the BBS carries but does not read.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

/// Router name (`cf-router`, `diego-ssh`, `tcp-router`, `internal-router`) to JSON text, kept byte for byte.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Routes(BTreeMap<String, String>);

impl Routes {
    pub fn new() -> Self {
        Self::default()
    }

    /// `json` must be one JSON value.
    pub fn insert_raw(&mut self, router: impl Into<String>, json: String) -> Result<(), serde_json::Error> {
        serde_json::from_str::<&RawValue>(&json)?;
        self.0.insert(router.into(), json);
        Ok(())
    }

    pub fn insert<T: Serialize>(
        &mut self,
        router: impl Into<String>,
        value: &T,
    ) -> Result<(), serde_json::Error> {
        self.0.insert(router.into(), serde_json::to_string(value)?);
        Ok(())
    }

    pub fn raw(&self, router: &str) -> Option<&str> {
        self.0.get(router).map(String::as_str)
    }

    /// `None` if there is nothing for this router.
    pub fn read<T: DeserializeOwned>(&self, router: &str) -> Option<Result<T, serde_json::Error>> {
        self.raw(router).map(serde_json::from_str)
    }

    pub fn remove(&mut self, router: &str) {
        self.0.remove(router);
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(router, json)| (router.as_str(), json.as_str()))
    }

    /// Of the JSON texts, without the router names.
    pub fn len_bytes(&self) -> usize {
        self.0.values().map(String::len).sum()
    }
}

impl Serialize for Routes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let raw: BTreeMap<&String, &RawValue> = self
            .0
            .iter()
            .map(|(router, json)| Ok((router, serde_json::from_str(json)?)))
            .collect::<Result<_, serde_json::Error>>()
            .map_err(serde::ser::Error::custom)?;
        raw.serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_router_is_sent_is_kept_byte_for_byte() {
        let mut routes = Routes::new();
        routes.insert_raw("cf-router", r#"[ {"port":8080,"hostnames":["a"]} ]"#.to_string()).unwrap();
        assert_eq!(
            serde_json::to_string(&routes).unwrap(),
            r#"{"cf-router":[ {"port":8080,"hostnames":["a"]} ]}"#
        );
        assert!(routes.insert_raw("x", "{".to_string()).is_err());
    }
}
