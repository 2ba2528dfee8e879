//! What a cell says of itself to the auctioneer (`GET /state`).

use serde::{Deserialize, Serialize};

use crate::{Lrp, RootfsProviders, Task, null_is_default};

/// Field order and names are Go's; lists are `[]` when a cell has none, and read as empty when `null`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CellState {
    pub rep_url: String,
    pub cell_id: String,
    pub cell_index: i32,
    #[serde(rename = "RootFSProviders", deserialize_with = "null_is_default")]
    pub rootfs_providers: RootfsProviders,
    #[serde(rename = "AvailableResources")]
    pub available_resources: Resources,
    #[serde(rename = "TotalResources")]
    pub total_resources: Resources,
    #[serde(rename = "LRPs", deserialize_with = "null_is_default")]
    pub lrps: Vec<Lrp>,
    #[serde(rename = "Tasks", deserialize_with = "null_is_default")]
    pub tasks: Vec<Task>,
    /// Containers that are reserved, initializing or created.
    #[serde(rename = "StartingContainerCount")]
    pub starting_container_count: i32,
    #[serde(rename = "Zone")]
    pub zone: String,
    #[serde(rename = "Evacuating")]
    pub evacuating: bool,
    #[serde(rename = "VolumeDrivers", deserialize_with = "null_is_default")]
    pub volume_drivers: Vec<String>,
    #[serde(rename = "PlacementTags", deserialize_with = "null_is_default")]
    pub placement_tags: Vec<String>,
    #[serde(rename = "OptionalPlacementTags", deserialize_with = "null_is_default")]
    pub optional_placement_tags: Vec<String>,
    /// Added to the memory of each LRP by this cell.
    #[serde(rename = "ProxyMemoryAllocationMB")]
    pub proxy_memory_allocation_mb: i32,
}

/// What a cell has, or has left. Signed as on the wire: a cell may be over-committed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Resources {
    #[serde(rename = "MemoryMB")]
    pub memory_mb: i32,
    #[serde(rename = "DiskMB")]
    pub disk_mb: i32,
    #[serde(rename = "Containers")]
    pub containers: i32,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TaskState;

    const GO: &str = concat!(
        r#"{"rep_url":"https://cell-1.cell.service.cf.internal:1801","cell_id":"cell-1","cell_index":3,"#,
        r#""RootFSProviders":{"docker":{"type":"arbitrary"},"preloaded":{"set":{"cflinuxfs4":{}},"type":"fixed_set"},"preloaded+layer":{"set":{"cflinuxfs4":{}},"type":"fixed_set"}},"#,
        r#""AvailableResources":{"MemoryMB":900,"DiskMB":2000,"Containers":248},"#,
        r#""TotalResources":{"MemoryMB":1000,"DiskMB":3000,"Containers":250},"#,
        r#""LRPs":[{"instance_guid":"ig","process_guid":"pg","index":1,"domain":"cf-apps","PlacementTags":["iso"],"VolumeDrivers":[],"RootFs":"preloaded:cflinuxfs4","MemoryMB":64,"DiskMB":128,"MaxPids":10,"state":"RUNNING"}],"#,
        r#""Tasks":[{"TaskGuid":"tg","Domain":"cf-tasks","PlacementTags":[],"VolumeDrivers":[],"RootFs":"docker:///a","MemoryMB":36,"DiskMB":872,"MaxPids":0,"state":"Completed","failed":true}],"#,
        r#""StartingContainerCount":0,"Zone":"z1","Evacuating":false,"VolumeDrivers":["nfs"],"PlacementTags":["iso"],"OptionalPlacementTags":["opt"],"ProxyMemoryAllocationMB":32}"#,
    );

    #[test]
    fn a_state_is_read_and_written_as_go_does() {
        let state: CellState = serde_json::from_str(GO).unwrap();
        assert_eq!(state.lrps[0].index, 1);
        assert_eq!(state.tasks[0].state, TaskState::Completed);
        assert!(state.rootfs_providers.matches("preloaded:cflinuxfs4"));
        assert_eq!(serde_json::to_string(&state).unwrap(), GO);
    }

    #[test]
    fn nulls_and_missing_fields_are_empty() {
        let json = r#"{"cell_id":"a","RootFSProviders":null,"LRPs":null,"Tasks":null,"VolumeDrivers":null,"PlacementTags":null}"#;
        let state: CellState = serde_json::from_str(json).unwrap();
        assert_eq!(state, CellState { cell_id: "a".into(), ..CellState::default() });
    }
}
