//! Cells on the wire.

use std::collections::BTreeMap;

use prost::Message;

use crate as models;

#[derive(Clone, PartialEq, Message)]
pub struct CellCapacity {
    #[prost(int32, tag = "1")]
    pub memory_mb: i32,
    #[prost(int32, tag = "2")]
    pub disk_mb: i32,
    #[prost(int32, tag = "3")]
    pub containers: i32,
}

#[derive(Clone, PartialEq, Message)]
pub struct CellPresence {
    #[prost(string, tag = "1")]
    pub cell_id: String,
    #[prost(string, tag = "2")]
    pub rep_address: String,
    #[prost(string, tag = "3")]
    pub zone: String,
    #[prost(message, optional, tag = "4")]
    pub capacity: Option<CellCapacity>,
    #[prost(message, repeated, tag = "5")]
    pub rootfs_providers: Vec<RootfsProvider>,
    #[prost(string, repeated, tag = "6")]
    pub placement_tags: Vec<String>,
    #[prost(string, repeated, tag = "7")]
    pub optional_placement_tags: Vec<String>,
    #[prost(string, tag = "8")]
    pub rep_url: String,
    #[prost(btree_map = "string, string", tag = "9")]
    pub annotations: BTreeMap<String, String>,
}

#[derive(Clone, PartialEq, Message)]
pub struct RootfsProvider {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, repeated, tag = "2")]
    pub properties: Vec<String>,
}

impl From<CellPresence> for models::CellPresence {
    fn from(wire: CellPresence) -> Self {
        let capacity = wire.capacity.unwrap_or_default();
        let provider =
            |wire: RootfsProvider| models::RootfsProvider { name: wire.name, properties: wire.properties };
        Self {
            cell_id: wire.cell_id,
            rep_address: wire.rep_address,
            zone: wire.zone,
            capacity: models::CellCapacity {
                memory_mb: capacity.memory_mb,
                disk_mb: capacity.disk_mb,
                containers: capacity.containers,
            },
            rootfs_providers: wire.rootfs_providers.into_iter().map(provider).collect(),
            placement_tags: wire.placement_tags,
            optional_placement_tags: wire.optional_placement_tags,
            rep_url: wire.rep_url,
            annotations: wire.annotations,
        }
    }
}

impl From<models::CellPresence> for CellPresence {
    fn from(presence: models::CellPresence) -> Self {
        let provider = |provider: models::RootfsProvider| RootfsProvider {
            name: provider.name,
            properties: provider.properties,
        };
        Self {
            cell_id: presence.cell_id,
            rep_address: presence.rep_address,
            zone: presence.zone,
            capacity: Some(CellCapacity {
                memory_mb: presence.capacity.memory_mb,
                disk_mb: presence.capacity.disk_mb,
                containers: presence.capacity.containers,
            }),
            rootfs_providers: presence.rootfs_providers.into_iter().map(provider).collect(),
            placement_tags: presence.placement_tags,
            optional_placement_tags: presence.optional_placement_tags,
            rep_url: presence.rep_url,
            annotations: presence.annotations,
        }
    }
}
