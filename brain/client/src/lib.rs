//! The auctioneer's API: its JSON types, named byte for byte as Go clients name them, and a client for it.

use diego_base::http::{Failed, Way};
use rep_client::{Lrp, PlacementConstraint, Resource, TRACE_HEADER, Task};
use reqwest::{Method, StatusCode};
use serde::{Deserialize, Deserializer, Serialize};

pub const TASKS_PATH: &str = "/v1/tasks";
pub const LRPS_PATH: &str = "/v1/lrps";

/// A Task to be placed: on the wire, the rep's own [`Task`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TaskStartRequest(pub Task);

/// Instances of one LRP to be placed.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LrpStartRequest {
    pub process_guid: String,
    pub domain: String,
    #[serde(deserialize_with = "null_is_default")]
    pub indices: Vec<i32>,
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
}

fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Why a request is not auctioned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRequest {
    #[error("task guid is empty")]
    TaskGuid,
    #[error("process guid is empty")]
    ProcessGuid,
    #[error("domain is empty")]
    Domain,
    #[error("indices must not be empty")]
    Indices,
    #[error("resources cannot be less than 0")]
    Resource,
    #[error("placement constraint cannot be empty")]
    PlacementConstraint,
}

impl TaskStartRequest {
    pub fn validate(&self) -> Result<(), InvalidRequest> {
        let task = &self.0;
        if task.task_guid.is_empty() {
            return Err(InvalidRequest::TaskGuid);
        }
        validate_placement(task.memory_mb, task.disk_mb, &task.rootfs)
    }
}

impl LrpStartRequest {
    pub fn new(
        process_guid: &str,
        domain: &str,
        indices: Vec<i32>,
        resource: Resource,
        constraint: PlacementConstraint,
    ) -> Self {
        Self {
            process_guid: process_guid.into(),
            domain: domain.into(),
            indices,
            placement_tags: constraint.placement_tags,
            volume_drivers: constraint.volume_drivers,
            rootfs: constraint.rootfs,
            memory_mb: resource.memory_mb,
            disk_mb: resource.disk_mb,
            max_pids: resource.max_pids,
        }
    }

    pub fn validate(&self) -> Result<(), InvalidRequest> {
        if self.process_guid.is_empty() {
            return Err(InvalidRequest::ProcessGuid);
        }
        if self.domain.is_empty() {
            return Err(InvalidRequest::Domain);
        }
        if self.indices.is_empty() {
            return Err(InvalidRequest::Indices);
        }
        validate_placement(self.memory_mb, self.disk_mb, &self.rootfs)
    }

    /// One piece of work for each index.
    pub fn lrps(&self) -> impl Iterator<Item = Lrp> + '_ {
        self.indices.iter().map(|index| {
            let resource =
                Resource { memory_mb: self.memory_mb, disk_mb: self.disk_mb, max_pids: self.max_pids };
            let constraint = PlacementConstraint {
                placement_tags: self.placement_tags.clone(),
                volume_drivers: self.volume_drivers.clone(),
                rootfs: self.rootfs.clone(),
            };
            Lrp::new(&self.process_guid, *index, &self.domain, resource, constraint)
        })
    }
}

fn validate_placement(memory_mb: i32, disk_mb: i32, rootfs: &str) -> Result<(), InvalidRequest> {
    if memory_mb < 0 || disk_mb < 0 {
        return Err(InvalidRequest::Resource);
    }
    if rootfs.is_empty() {
        return Err(InvalidRequest::PlacementConstraint);
    }
    Ok(())
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot request auctions of the auctioneer {url}")]
    Unreachable { url: String, source: Failed },
    #[error("cannot request auctions of the auctioneer {url}: http error: status code {}", status.as_u16())]
    Status { url: String, status: StatusCode },
}

#[derive(Debug, Clone)]
pub struct AuctioneerClient {
    http: Way,
    url: String,
}

impl AuctioneerClient {
    /// `url`: `http://127.0.0.1:9016` or `https://…`.
    pub fn new(http: impl Into<Way>, url: &str) -> Self {
        Self { http: http.into(), url: url.trim_end_matches('/').into() }
    }

    pub async fn request_lrp_auctions(
        &self,
        trace_id: &str,
        starts: &[LrpStartRequest],
    ) -> Result<(), Error> {
        self.post(LRPS_PATH, trace_id, starts).await
    }

    pub async fn request_task_auctions(
        &self,
        trace_id: &str,
        starts: &[TaskStartRequest],
    ) -> Result<(), Error> {
        self.post(TASKS_PATH, trace_id, starts).await
    }

    async fn post<T: Serialize>(&self, path: &str, trace_id: &str, starts: &[T]) -> Result<(), Error> {
        let mut request = self.http.request(Method::POST, format!("{}{path}", self.url)).json(starts);
        if !trace_id.is_empty() {
            request = request.header(TRACE_HEADER, trace_id);
        }
        let unreachable = |source| Error::Unreachable { url: self.url.clone(), source };
        match self.http.send(request).await.map_err(unreachable)?.status() {
            StatusCode::ACCEPTED => Ok(()),
            status => Err(Error::Status { url: self.url.clone(), status }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start() -> LrpStartRequest {
        let resource = Resource { memory_mb: 1024, disk_mb: 512, max_pids: 0 };
        let constraint = PlacementConstraint {
            rootfs: "docker:///docker.com/docker".into(),
            ..PlacementConstraint::default()
        };
        LrpStartRequest::new("some-guid", "tests", vec![2, 3], resource, constraint)
    }

    #[test]
    fn requests_are_read_and_written_as_go_does() {
        let json = r#"{"process_guid":"some-guid","domain":"tests","indices":[2,3],"PlacementTags":[],"VolumeDrivers":[],"RootFs":"docker:///docker.com/docker","MemoryMB":1024,"DiskMB":512,"MaxPids":0}"#;
        assert_eq!(serde_json::to_string(&start()).unwrap(), json);
        assert_eq!(serde_json::from_str::<LrpStartRequest>(json).unwrap(), start());

        let json = r#"{"TaskGuid":"the-task-guid","Domain":"test","PlacementTags":null,"VolumeDrivers":null,"RootFs":"rootfs","MemoryMB":1,"DiskMB":2,"MaxPids":3,"state":"Invalid","failed":false}"#;
        let task: TaskStartRequest = serde_json::from_str(json).unwrap();
        assert_eq!((task.0.task_guid.as_str(), task.0.max_pids), ("the-task-guid", 3));
    }

    #[test]
    fn a_request_that_cannot_be_placed_says_why() {
        let check = |change: fn(&mut LrpStartRequest), expected| {
            let mut request = start();
            change(&mut request);
            assert_eq!(request.validate(), Err(expected));
        };
        check(|r| r.process_guid.clear(), InvalidRequest::ProcessGuid);
        check(|r| r.domain.clear(), InvalidRequest::Domain);
        check(|r| r.indices.clear(), InvalidRequest::Indices);
        check(|r| r.disk_mb = -1, InvalidRequest::Resource);
        check(|r| r.rootfs.clear(), InvalidRequest::PlacementConstraint);
        assert_eq!(start().validate(), Ok(()));
        assert_eq!(TaskStartRequest::default().validate(), Err(InvalidRequest::TaskGuid));
    }

    #[test]
    fn each_index_is_its_own_piece_of_work() {
        let identifiers: Vec<_> = start().lrps().map(|lrp| lrp.identifier()).collect();
        assert_eq!(identifiers, ["some-guid.2", "some-guid.3"]);
    }
}
