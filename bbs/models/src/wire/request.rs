//! Requests and responses of the BBS API, but for those of LRPs and Tasks. In all of them, messages of one shape share
//! one type; its doc names them.

use prost::Message;

use super::actual_lrp_request::*;
use super::desired_lrp_request::*;
use super::task_request::*;
use super::{CellPresence, Error, Invalid};

/// What the routes without a request body are sent: nothing.
#[derive(Clone, PartialEq, Message)]
pub struct Empty {}

#[derive(Clone, PartialEq, Message)]
pub struct PingResponse {
    #[prost(bool, tag = "1")]
    pub available: bool,
}

/// Responses that carry an error or nothing: ActualLRPLifecycleResponse, DesiredLRPLifecycleResponse,
/// TaskLifecycleResponse, UpsertDomainResponse, RemoveEvacuatingActualLRPResponse.
#[derive(Clone, PartialEq, Message)]
pub struct LifecycleResponse {
    #[prost(message, optional, tag = "1")]
    pub error: Option<Error>,
}

/// Every response but the ping's can carry an error.
pub trait Response: Message + Default {
    fn error(&mut self) -> Option<Error>;
    fn of_error(error: Error) -> Self;
}

macro_rules! responses {
    ($($name:ident),* $(,)?) => {
        $(
            // Some of the messages have no other field.
            #[allow(clippy::needless_update)]
            impl Response for $name {
                fn error(&mut self) -> Option<Error> {
                    self.error.take()
                }

                fn of_error(error: Error) -> Self {
                    Self { error: Some(error), ..Self::default() }
                }
            }
        )*
    };
}

responses!(
    LifecycleResponse,
    DomainsResponse,
    CellsResponse,
    ActualLrpsResponse,
    ActualLrpGroupsResponse,
    ActualLrpGroupResponse,
    EvacuationResponse,
    DesiredLrpsResponse,
    DesiredLrpResponse,
    DesiredLrpSchedulingInfosResponse,
    DesiredLrpSchedulingInfoResponse,
    TasksResponse,
    TaskResponse,
    StartTaskResponse,
);

#[derive(Clone, PartialEq, Message)]
pub struct DomainsResponse {
    #[prost(message, optional, tag = "1")]
    pub error: Option<Error>,
    #[prost(string, repeated, tag = "2")]
    pub domains: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
pub struct UpsertDomainRequest {
    #[prost(string, tag = "1")]
    pub domain: String,
    /// Seconds; 0 is forever.
    #[prost(uint32, tag = "2")]
    pub ttl: u32,
}

impl UpsertDomainRequest {
    pub fn parse(self) -> Result<(String, u32), Invalid> {
        let mut invalid = Invalid::default();
        invalid.require(!self.domain.is_empty(), "domain");
        invalid.or((self.domain, self.ttl))
    }
}

#[derive(Clone, PartialEq, Message)]
pub struct CellsResponse {
    #[prost(message, optional, tag = "1")]
    pub error: Option<Error>,
    #[prost(message, repeated, tag = "2")]
    pub cells: Vec<CellPresence>,
}

#[derive(Clone, PartialEq, Message)]
pub struct EventsByCellId {
    /// Empty: of all cells.
    #[prost(string, tag = "1")]
    pub cell_id: String,
}
