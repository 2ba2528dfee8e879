//! What a cell says of itself: the value of its presence in Locket, and an entry of the BBS's list of cells.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

use crate::{LockKind, Resource};

pub const PRELOADED_ROOTFS_SCHEME: &str = "preloaded";
pub const PRELOADED_OCI_ROOTFS_SCHEME: &str = "preloaded+layer";
pub const EXTRA_ROOTFS_SCHEME: &str = "extra";

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct CellPresence {
    pub cell_id: String,
    /// Plain HTTP, for clients that know no `rep_url`.
    pub rep_address: String,
    pub zone: String,
    pub capacity: CellCapacity,
    #[serde(rename = "rootfs_provider_list", deserialize_with = "null_is_default")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rootfs_providers: Vec<RootfsProvider>,
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub placement_tags: Vec<String>,
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub optional_placement_tags: Vec<String>,
    pub rep_url: String,
    #[serde(deserialize_with = "null_is_default")]
    pub annotations: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct CellCapacity {
    pub memory_mb: i32,
    pub disk_mb: i32,
    pub containers: i32,
}

/// A URL scheme a cell can make root filesystems of; with no `properties`, any.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RootfsProvider {
    pub name: String,
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub properties: Vec<String>,
}

impl RootfsProvider {
    /// The list a cell sends: its preloaded root filesystems by both schemes, extra ones, and whole schemes.
    pub fn list(preloaded: &[String], extra: &[String], schemes: &[String]) -> Vec<Self> {
        let one =
            |name: &str, properties: &[String]| Self { name: name.into(), properties: properties.into() };
        let mut providers = vec![
            one(PRELOADED_ROOTFS_SCHEME, preloaded),
            one(PRELOADED_OCI_ROOTFS_SCHEME, preloaded),
            one(EXTRA_ROOTFS_SCHEME, extra),
        ];
        providers.extend(schemes.iter().map(|scheme| one(scheme, &[])));
        providers
    }
}

impl CellPresence {
    /// The cell whose presence `resource` is; `None` if it is no presence, or one of something else.
    pub fn of_resource(resource: &Resource) -> Option<Self> {
        if resource.kind != LockKind::Presence {
            return None;
        }
        serde_json::from_str(&resource.value).ok().filter(|cell: &Self| !cell.cell_id.is_empty())
    }

    /// What a cell puts into Locket: its key is the cell's id.
    pub fn to_resource(&self, owner: impl Into<String>) -> Result<Resource, serde_json::Error> {
        Ok(Resource {
            key: self.cell_id.clone(),
            owner: owner.into(),
            value: serde_json::to_string(self)?,
            kind: LockKind::Presence,
        })
    }
}

/// Go clients send `null` for an empty list or map.
fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}
