//! Reads the route data of a DesiredLRP, in the parts that concern routers and the name service. Pure; what cannot be
//! read is logged and leads nowhere.

use bbs_models::Routes;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// The key of HTTP routes in a DesiredLRP's routes.
pub const CF_ROUTER: &str = "cf-router";
/// The key of the names by which instances find one another.
pub const INTERNAL_ROUTER: &str = "internal-router";

/// One entry of `cf-router`: these names lead to this port of every instance.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
pub struct HttpRoute {
    pub hostnames: Vec<String>,
    /// Inside the container.
    pub port: u16,
    pub route_service_url: String,
    pub isolation_segment: String,
    pub protocol: String,
    /// For the router alone, passed on as it is.
    pub options: Option<Value>,
}

#[derive(Deserialize)]
struct InternalRoute {
    hostname: String,
}

pub fn http_routes(routes: &Routes) -> Vec<HttpRoute> {
    read(routes, CF_ROUTER)
}

pub fn internal_hostnames(routes: &Routes) -> Vec<String> {
    let routes: Vec<InternalRoute> = read(routes, INTERNAL_ROUTER);
    routes.into_iter().map(|route| route.hostname).collect()
}

/// The entries for one router; one that cannot be read does not take the others with it.
fn read<T: DeserializeOwned>(routes: &Routes, router: &str) -> Vec<T> {
    let entries = match routes.read::<Option<Vec<Value>>>(router) {
        Some(Ok(entries)) => entries.unwrap_or_default(),
        Some(Err(error)) => {
            tracing::warn!(router, %error, "cannot read the routes of an LRP");
            Vec::new()
        }
        None => Vec::new(),
    };
    let entry = |entry| {
        let read = serde_json::from_value(entry);
        read.inspect_err(|error| tracing::warn!(router, %error, "cannot read a route of an LRP")).ok()
    };
    entries.into_iter().filter_map(entry).collect()
}
