//! What routers are told of one place where an instance answers: the JSON of `router.register`,
//! `router.unregister`, `service-discovery.register` and `service-discovery.unregister`. Pure.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

/// What became true of the table, and is to be told in this order.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    Register(Registration),
    Unregister(Registration),
}

/// Who is told of a registration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Audience {
    /// Routers that lead requests from outside to instances.
    Router,
    /// The name service by which instances find one another.
    ServiceDiscovery,
}

/// Names that lead to one address. Numbers that are 0 and texts that are empty are not sent, but for `port`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Registration {
    #[serde(skip)]
    pub audience: Audience,
    pub host: String,
    pub port: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_port: Option<u16>,
    pub uris: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub protocol: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub app: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub route_service_url: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub private_instance_id: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub private_instance_index: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub server_cert_domain_san: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub isolation_segment: String,
    /// When the instance began to be reachable; told once, with its first registration.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint_updated_at_ns: Option<i64>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub availability_zone: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub options: Option<Value>,
}

/// What makes two registrations the same entry of a router's table: the later one replaces the earlier one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Entry {
    audience: Audience,
    uris: Vec<String>,
    host: String,
    port: u16,
    tls_port: Option<u16>,
}

impl Registration {
    pub fn entry(&self) -> Entry {
        Entry {
            audience: self.audience,
            uris: self.uris.clone(),
            host: self.host.clone(),
            port: self.port,
            tls_port: self.tls_port,
        }
    }
}
