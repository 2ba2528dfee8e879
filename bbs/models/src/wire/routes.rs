//! Routes on the wire: a map from router to bytes, which in JSON is an object of what those bytes say.

use std::collections::BTreeMap;

use prost::Message;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

use super::Invalid;
use crate as models;

#[derive(Clone, PartialEq, Message)]
pub struct ProtoRoutes {
    #[prost(btree_map = "string, bytes", tag = "1")]
    pub routes: BTreeMap<String, Vec<u8>>,
}

impl Serialize for ProtoRoutes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let raw: BTreeMap<&String, &RawValue> = self
            .routes
            .iter()
            .map(|(router, json)| Ok((router, serde_json::from_slice(json)?)))
            .collect::<Result<_, serde_json::Error>>()
            .map_err(serde::ser::Error::custom)?;
        raw.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for ProtoRoutes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw: Option<BTreeMap<String, Box<RawValue>>> = Option::deserialize(deserializer)?;
        let bytes = |(router, json): (String, Box<RawValue>)| (router, json.get().as_bytes().to_vec());
        Ok(Self { routes: raw.unwrap_or_default().into_iter().map(bytes).collect() })
    }
}

pub(super) fn parse_routes(wire: ProtoRoutes) -> Result<models::Routes, Invalid> {
    let mut routes = models::Routes::new();
    if wire.routes.values().map(Vec::len).sum::<usize>() > models::ROUTES_BYTES_MAX {
        return Err(Invalid::field("routes"));
    }
    for (router, json) in wire.routes {
        let json = String::from_utf8(json).map_err(|_| Invalid::field("routes"))?;
        routes.insert_raw(router, json).map_err(|_| Invalid::field("routes"))?;
    }
    Ok(routes)
}

impl From<models::Routes> for ProtoRoutes {
    fn from(routes: models::Routes) -> Self {
        let bytes = |(router, json): (&str, &str)| (router.to_string(), json.as_bytes().to_vec());
        Self { routes: routes.iter().map(bytes).collect() }
    }
}
