//! Work for a cell (`POST /work`): LRP instances and Tasks to be allocated, and an update of a running instance.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::null_is_default;

/// What a container takes from its cell.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Resource {
    pub memory_mb: i32,
    pub disk_mb: i32,
    pub max_pids: i32,
}

impl Resource {
    pub fn is_valid(&self) -> bool {
        self.memory_mb >= 0 && self.disk_mb >= 0
    }
}

/// Which cells may run it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PlacementConstraint {
    pub placement_tags: Vec<String>,
    pub volume_drivers: Vec<String>,
    pub rootfs: String,
}

/// One LRP instance. Flat, as Go writes its embedded parts; no `flatten`, which would buffer every cell's whole state.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Lrp {
    /// Empty until a cell has given it one.
    pub instance_guid: String,
    pub process_guid: String,
    pub index: i32,
    pub domain: String,
    #[serde(rename = "PlacementTags", deserialize_with = "null_is_default")]
    pub placement_tags: Vec<String>,
    #[serde(rename = "VolumeDrivers", deserialize_with = "null_is_default")]
    pub volume_drivers: Vec<String>,
    #[serde(rename = "RootFs")]
    pub rootfs: String,
    #[serde(rename = "MemoryMB")]
    pub memory_mb: i32,
    #[serde(rename = "DiskMB")]
    pub disk_mb: i32,
    #[serde(rename = "MaxPids")]
    pub max_pids: i32,
    /// In a cell's state: `CLAIMED`, `RUNNING`, `SHUTDOWN` or `CRASHED`; in work: empty.
    pub state: String,
}

impl Lrp {
    pub fn new(
        process_guid: &str,
        index: i32,
        domain: &str,
        resource: Resource,
        constraint: PlacementConstraint,
    ) -> Self {
        Self {
            instance_guid: String::new(),
            process_guid: process_guid.into(),
            index,
            domain: domain.into(),
            placement_tags: constraint.placement_tags,
            volume_drivers: constraint.volume_drivers,
            rootfs: constraint.rootfs,
            memory_mb: resource.memory_mb,
            disk_mb: resource.disk_mb,
            max_pids: resource.max_pids,
            state: String::new(),
        }
    }

    /// What auctions are told apart by: process guid and index.
    pub fn identifier(&self) -> String {
        format!("{}.{}", self.process_guid, self.index)
    }
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Task {
    #[serde(rename = "TaskGuid")]
    pub task_guid: String,
    #[serde(rename = "Domain")]
    pub domain: String,
    #[serde(rename = "PlacementTags", deserialize_with = "null_is_default")]
    pub placement_tags: Vec<String>,
    #[serde(rename = "VolumeDrivers", deserialize_with = "null_is_default")]
    pub volume_drivers: Vec<String>,
    #[serde(rename = "RootFs")]
    pub rootfs: String,
    #[serde(rename = "MemoryMB")]
    pub memory_mb: i32,
    #[serde(rename = "DiskMB")]
    pub disk_mb: i32,
    #[serde(rename = "MaxPids")]
    pub max_pids: i32,
    pub state: TaskState,
    pub failed: bool,
}

impl Task {
    pub fn new(task_guid: &str, domain: &str, resource: Resource, constraint: PlacementConstraint) -> Self {
        Self {
            task_guid: task_guid.into(),
            domain: domain.into(),
            placement_tags: constraint.placement_tags,
            volume_drivers: constraint.volume_drivers,
            rootfs: constraint.rootfs,
            memory_mb: resource.memory_mb,
            disk_mb: resource.disk_mb,
            max_pids: resource.max_pids,
            state: TaskState::Invalid,
            failed: false,
        }
    }
}

/// The BBS's Task states, by name on this wire.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum TaskState {
    #[default]
    Invalid,
    Pending,
    Running,
    Completed,
    Resolving,
}

/// Work to be done; as the answer, the work that was refused. Go decodes `null` and `[]` alike.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Work {
    #[serde(rename = "LRPs", deserialize_with = "null_is_default")]
    pub lrps: Vec<Lrp>,
    #[serde(rename = "Tasks", deserialize_with = "null_is_default")]
    pub tasks: Vec<Task>,
    /// The cell it is meant for; a cell with another id refuses it all.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cell_id: String,
}

impl Work {
    pub fn is_empty(&self) -> bool {
        self.lrps.is_empty() && self.tasks.is_empty()
    }
}

/// New internal routes and metric tags of a running instance; `None` (JSON `null`) leaves as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LrpUpdate {
    pub instance_guid: String,
    pub process_guid: String,
    pub index: i32,
    pub domain: String,
    pub internal_routes: Option<Vec<InternalRoute>>,
    pub metric_tags: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InternalRoute {
    pub hostname: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_read_and_written_as_go_does() {
        let resource = Resource { memory_mb: 64, disk_mb: 128, max_pids: 10 };
        let constraint =
            PlacementConstraint { rootfs: "docker:///a".into(), ..PlacementConstraint::default() };
        let work = Work {
            lrps: vec![Lrp::new("pg", 2, "d", resource, constraint.clone())],
            tasks: vec![Task::new("tg", "d", resource, constraint)],
            cell_id: "cell-1".into(),
        };
        let json = concat!(
            r#"{"LRPs":[{"instance_guid":"","process_guid":"pg","index":2,"domain":"d","PlacementTags":[],"VolumeDrivers":[],"RootFs":"docker:///a","MemoryMB":64,"DiskMB":128,"MaxPids":10,"state":""}],"#,
            r#""Tasks":[{"TaskGuid":"tg","Domain":"d","PlacementTags":[],"VolumeDrivers":[],"RootFs":"docker:///a","MemoryMB":64,"DiskMB":128,"MaxPids":10,"state":"Invalid","failed":false}],"#,
            r#""cell_id":"cell-1"}"#,
        );
        assert_eq!(serde_json::to_string(&work).unwrap(), json);
        assert_eq!(serde_json::from_str::<Work>(json).unwrap(), work);
        assert_eq!(serde_json::from_str::<Work>(r#"{"LRPs":null,"Tasks":null}"#).unwrap(), Work::default());
    }

    #[test]
    fn an_update_keeps_null_apart_from_empty() {
        let json = r#"{"instance_guid":"ig","process_guid":"pg","index":0,"domain":"d","internal_routes":[{"hostname":"a.apps.internal"}],"metric_tags":null}"#;
        let update: LrpUpdate = serde_json::from_str(json).unwrap();
        assert_eq!(update.metric_tags, None);
        assert_eq!(update.internal_routes.as_ref().unwrap()[0].hostname, "a.apps.internal");
        assert_eq!(serde_json::to_string(&update).unwrap(), json);
        let emptied: LrpUpdate = serde_json::from_str(r#"{"internal_routes":[],"metric_tags":{}}"#).unwrap();
        assert_eq!(emptied.internal_routes, Some(vec![]));
    }
}
