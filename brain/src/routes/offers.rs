//! Which registrations an instance of an LRP stands for. Pure.

use std::collections::BTreeMap;

use bbs_models::{
    ActualLrp, ActualLrpNetInfo, MetricTags, ModificationTag, PortMapping, PreferredAddress, RoutingInfo,
    resolve_metric_tags,
};

use super::message::{Audience, Registration};
use super::parse::{HttpRoute, http_routes, internal_hostnames};

/// The tag that says who told the router.
const COMPONENT: (&str, &str) = ("component", "route-emitter");

/// Of a DesiredLRP, what routing needs.
#[derive(Debug)]
pub struct Desired {
    pub domain: String,
    pub tag: ModificationTag,
    instances: u32,
    log_guid: String,
    metric_tags: MetricTags,
    http: Vec<HttpRoute>,
    internal: Vec<String>,
}

/// Of an ActualLRP that runs, what routing needs.
#[derive(Debug)]
pub struct Instance {
    pub tag: ModificationTag,
    pub guid: String,
    pub index: u32,
    net_info: ActualLrpNetInfo,
    since_ns: i64,
    zone: String,
    routable: bool,
}

impl Desired {
    pub fn new(info: &RoutingInfo) -> Desired {
        Desired {
            domain: info.key.domain.clone(),
            tag: info.modification_tag.clone(),
            instances: info.instances,
            log_guid: info.key.log_guid.clone(),
            metric_tags: info.metric_tags.clone(),
            http: http_routes(&info.routes),
            internal: internal_hostnames(&info.routes),
        }
    }

    /// An index that is no longer desired is led to no more, before its instance is stopped. `direct` is the address
    /// an instance gets that prefers none: its own, not its cell's.
    pub fn offers(&self, instance: &Instance, direct: bool) -> Vec<Registration> {
        if !instance.routable || instance.index >= self.instances {
            return Vec::new();
        }
        let internal = self.internal.iter().map(|hostname| self.internal(hostname, instance));
        let direct = match instance.net_info.preferred_address {
            PreferredAddress::Unknown => direct,
            PreferredAddress::Instance => true,
            PreferredAddress::Host => false,
        };
        let http = self.http.iter().flat_map(|route| self.http(route, instance, direct));
        http.chain(internal).collect()
    }

    fn http<'a>(
        &'a self,
        route: &'a HttpRoute,
        instance: &'a Instance,
        direct: bool,
    ) -> impl Iterator<Item = Registration> + 'a {
        let mapped = instance.net_info.ports.iter().find(|mapped| mapped.container_port == route.port);
        mapped.into_iter().flat_map(move |mapped| {
            route.hostnames.iter().map(move |hostname| {
                let (host, port, tls_port) = instance.address(mapped, direct);
                Registration {
                    port,
                    tls_port,
                    protocol: route.protocol.clone(),
                    route_service_url: route.route_service_url.clone(),
                    isolation_segment: route.isolation_segment.clone(),
                    private_instance_id: instance.guid.clone(),
                    server_cert_domain_san: instance.guid.clone(),
                    tags: self.tags(instance),
                    options: route.options.clone(),
                    ..self.registration(Audience::Router, vec![hostname.clone()], host, instance)
                }
            })
        })
    }

    /// Without a port: the name service only knows addresses. Each instance has a name of its own too.
    fn internal(&self, hostname: &str, instance: &Instance) -> Registration {
        let names = vec![hostname.to_owned(), format!("{}.{hostname}", instance.index)];
        let host = &instance.net_info.instance_address;
        self.registration(Audience::ServiceDiscovery, names, host, instance)
    }

    fn registration(
        &self,
        audience: Audience,
        uris: Vec<String>,
        host: &str,
        instance: &Instance,
    ) -> Registration {
        Registration {
            audience,
            host: host.to_owned(),
            port: 0,
            tls_port: None,
            uris,
            protocol: String::new(),
            app: self.log_guid.clone(),
            route_service_url: String::new(),
            private_instance_id: String::new(),
            private_instance_index: instance.index.to_string(),
            server_cert_domain_san: String::new(),
            isolation_segment: String::new(),
            endpoint_updated_at_ns: None,
            tags: component_tag(BTreeMap::new()),
            availability_zone: instance.zone.clone(),
            options: None,
        }
    }

    fn tags(&self, instance: &Instance) -> BTreeMap<String, String> {
        component_tag(resolve_metric_tags(&self.metric_tags, instance.index, &instance.guid))
    }
}

fn component_tag(mut tags: BTreeMap<String, String>) -> BTreeMap<String, String> {
    tags.insert(COMPONENT.0.into(), COMPONENT.1.into());
    tags
}

impl Instance {
    /// `None` unless it runs.
    pub fn new(lrp: &ActualLrp) -> Option<Instance> {
        Some(Instance {
            tag: lrp.modification_tag.clone(),
            guid: lrp.instance_guid()?.to_owned(),
            index: lrp.key.index,
            net_info: lrp.net_info()?.clone(),
            since_ns: lrp.since_ns,
            zone: lrp.availability_zone.clone(),
            // A cell that does not say is one that has no readiness checks.
            routable: lrp.routable.unwrap_or(true),
        })
    }

    pub fn since_ns(&self) -> Option<i64> {
        (self.since_ns > 0).then_some(self.since_ns)
    }

    fn address<'a>(&'a self, mapped: &PortMapping, direct: bool) -> (&'a str, u16, Option<u16>) {
        if direct {
            let host = &self.net_info.instance_address;
            (host, mapped.container_port, mapped.container_tls_proxy_port)
        } else {
            (&self.net_info.address, mapped.host_port, mapped.host_tls_proxy_port)
        }
    }
}
