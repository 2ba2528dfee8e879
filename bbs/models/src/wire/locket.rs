//! Locket's messages, of the gRPC service `models.Locket`.

use prost::Message;

use crate as models;

/// The paths of the service's four calls.
pub const LOCK_PATH: &str = "/models.Locket/Lock";
pub const FETCH_PATH: &str = "/models.Locket/Fetch";
pub const RELEASE_PATH: &str = "/models.Locket/Release";
pub const FETCH_ALL_PATH: &str = "/models.Locket/FetchAll";

#[derive(Clone, PartialEq, Message)]
pub struct LocketResource {
    #[prost(string, tag = "1")]
    pub key: String,
    #[prost(string, tag = "2")]
    pub owner: String,
    #[prost(string, tag = "3")]
    pub value: String,
    /// Deprecated in favour of `type_code`; written for clients that read only this.
    #[prost(string, tag = "4")]
    pub kind: String,
    /// 1 lock, 2 presence.
    #[prost(int32, tag = "5")]
    pub type_code: i32,
}

#[derive(Clone, PartialEq, Message)]
pub struct LockRequest {
    #[prost(message, optional, tag = "1")]
    pub resource: Option<LocketResource>,
    #[prost(int64, tag = "2")]
    pub ttl_in_seconds: i64,
}

/// LockResponse and ReleaseResponse: nothing.
#[derive(Clone, PartialEq, Message)]
pub struct LocketDone {}

#[derive(Clone, PartialEq, Message)]
pub struct ReleaseRequest {
    #[prost(message, optional, tag = "1")]
    pub resource: Option<LocketResource>,
}

#[derive(Clone, PartialEq, Message)]
pub struct FetchRequest {
    #[prost(string, tag = "1")]
    pub key: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct FetchResponse {
    #[prost(message, optional, tag = "1")]
    pub resource: Option<LocketResource>,
}

#[derive(Clone, PartialEq, Message)]
pub struct FetchAllRequest {
    /// Deprecated and not read.
    #[prost(string, tag = "1")]
    pub kind: String,
    #[prost(int32, tag = "2")]
    pub type_code: i32,
}

#[derive(Clone, PartialEq, Message)]
pub struct FetchAllResponse {
    #[prost(message, repeated, tag = "1")]
    pub resources: Vec<LocketResource>,
}

/// `None` for a number that is no kind.
pub fn lock_kind(type_code: i32) -> Option<models::LockKind> {
    match type_code {
        1 => Some(models::LockKind::Lock),
        2 => Some(models::LockKind::Presence),
        _ => None,
    }
}

pub fn type_code(kind: models::LockKind) -> i32 {
    match kind {
        models::LockKind::Lock => 1,
        models::LockKind::Presence => 2,
    }
}

impl LocketResource {
    /// `None` if its type is not known.
    pub fn parse(self) -> Option<models::Resource> {
        let kind = lock_kind(self.type_code)?;
        Some(models::Resource { key: self.key, owner: self.owner, value: self.value, kind })
    }
}

impl From<models::Resource> for LocketResource {
    fn from(resource: models::Resource) -> Self {
        Self {
            key: resource.key,
            owner: resource.owner,
            value: resource.value,
            kind: resource.kind.name().to_string(),
            type_code: type_code(resource.kind),
        }
    }
}
