//! The routing table: which host names lead to which instances. Pure; fed by what the BBS says, in any order and more
//! than once: what is older than what is known changes nothing.

use std::collections::BTreeMap;

use bbs_models::{ActualLrp, ActualLrpState, ModificationTag, Presence, Routes};
use serde::{Deserialize, Serialize};

/// The key of HTTP routes in a DesiredLRP's routes.
pub const CF_ROUTER: &str = "cf-router";

/// One entry of `cf-router`: these names lead to this port of every instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpRoute {
    pub hostnames: Vec<String>,
    pub port: u16,
}

/// A place where an instance answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backend {
    pub address: String,
    pub port: u16,
    pub process_guid: String,
    pub index: u32,
    pub instance_guid: String,
}

#[derive(Debug, Default)]
pub struct RoutingTable {
    desired: BTreeMap<String, Desired>,
    /// By process guid, then by instance guid.
    instances: BTreeMap<String, BTreeMap<String, ActualLrp>>,
    by_hostname: BTreeMap<String, Vec<Backend>>,
}

#[derive(Debug)]
struct Desired {
    routes: Vec<HttpRoute>,
    tag: ModificationTag,
}

/// The HTTP routes among an LRP's routes; none if they are not what a router understands.
pub fn http_routes(routes: &Routes) -> Vec<HttpRoute> {
    match routes.read(CF_ROUTER) {
        Some(Ok(routes)) => routes,
        Some(Err(error)) => {
            tracing::warn!(%error, "cannot read the routes of an LRP");
            Vec::new()
        }
        None => Vec::new(),
    }
}

impl RoutingTable {
    /// The backends of a host name, without its port. Case does not matter.
    pub fn backends(&self, hostname: &str) -> &[Backend] {
        let hostname = hostname.split(':').next().unwrap_or_default().to_ascii_lowercase();
        self.by_hostname.get(&hostname).map_or(&[], Vec::as_slice)
    }

    pub fn set_desired(&mut self, process_guid: &str, routes: &Routes, tag: &ModificationTag) {
        let known = self.desired.get(process_guid);
        if known.is_none_or(|known| known.tag.succeeded_by(tag)) {
            let desired = Desired { routes: http_routes(routes), tag: tag.clone() };
            self.desired.insert(process_guid.into(), desired);
            self.recompute();
        }
    }

    pub fn remove_desired(&mut self, process_guid: &str) {
        if self.desired.remove(process_guid).is_some() {
            self.recompute();
        }
    }

    /// Only a running, routable instance is reachable; any other state of it takes it out of the table.
    pub fn set_actual(&mut self, lrp: &ActualLrp) {
        let Some(guid) = lrp.instance_guid() else { return };
        let of_process = self.instances.entry(lrp.key.process_guid.clone()).or_default();
        let known = of_process.get(guid);
        let evacuates = known.is_some_and(|known| known.presence != lrp.presence);
        if evacuates || known.is_none_or(|known| known.modification_tag.succeeded_by(&lrp.modification_tag)) {
            of_process.insert(guid.into(), lrp.clone());
            self.recompute();
        }
    }

    /// An instance that moves to evacuating is removed as ordinary and stays reachable as evacuating.
    pub fn remove_actual(&mut self, lrp: &ActualLrp) {
        let Some(guid) = lrp.instance_guid() else { return };
        let Some(of_process) = self.instances.get_mut(&lrp.key.process_guid) else { return };
        if of_process.get(guid).is_some_and(|known| known.presence == lrp.presence) {
            of_process.remove(guid);
            if of_process.is_empty() {
                self.instances.remove(&lrp.key.process_guid);
            }
            self.recompute();
        }
    }

    /// Forgets what the BBS, read whole, does not have.
    pub fn retain(&mut self, desired: impl Fn(&str) -> bool, instance: impl Fn(&str) -> bool) {
        self.desired.retain(|process_guid, _| desired(process_guid));
        self.instances.retain(|_, of_process| {
            of_process.retain(|guid, _| instance(guid));
            !of_process.is_empty()
        });
        self.recompute();
    }

    fn recompute(&mut self) {
        self.by_hostname.clear();
        for (process_guid, desired) in &self.desired {
            let Some(instances) = self.instances.get(process_guid) else { continue };
            for route in &desired.routes {
                let backends: Vec<_> =
                    instances.values().filter_map(|lrp| backend(lrp, route.port)).collect();
                for hostname in &route.hostnames {
                    let hostname = hostname.to_ascii_lowercase();
                    self.by_hostname.entry(hostname).or_default().extend(backends.iter().cloned());
                }
            }
        }
    }
}

fn backend(lrp: &ActualLrp, container_port: u16) -> Option<Backend> {
    let ActualLrpState::Running { instance, net_info } = &lrp.state else { return None };
    if lrp.routable == Some(false) || lrp.presence == Presence::Suspect {
        return None;
    }
    let mapped = net_info.ports.iter().find(|mapping| mapping.container_port == container_port)?;
    Some(Backend {
        address: net_info.address.clone(),
        port: mapped.host_port,
        process_guid: lrp.key.process_guid.clone(),
        index: lrp.key.index,
        instance_guid: instance.instance_guid.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use bbs_models::{ActualLrpInstanceKey, ActualLrpKey, ActualLrpNetInfo, PortMapping};

    fn routes(hostnames: &[&str]) -> Routes {
        let mut routes = Routes::new();
        let hostnames = hostnames.iter().map(|name| name.to_string()).collect();
        routes.insert(CF_ROUTER, &[HttpRoute { hostnames, port: 8080 }]).unwrap();
        routes
    }

    fn running(guid: &str, index: u32, host_port: u16, tag: u32) -> ActualLrp {
        let ports = vec![PortMapping { container_port: 8080, host_port, ..Default::default() }];
        let net_info = ActualLrpNetInfo { address: "10.0.0.1".into(), ports, ..Default::default() };
        let instance = ActualLrpInstanceKey::new(guid, "cell");
        let mut lrp = ActualLrp::running(ActualLrpKey::new("app", index, "domain"), instance, net_info, 0);
        lrp.modification_tag = ModificationTag::new("epoch", tag);
        lrp
    }

    fn ports(table: &RoutingTable, hostname: &str) -> Vec<u16> {
        table.backends(hostname).iter().map(|backend| backend.port).collect()
    }

    fn table() -> RoutingTable {
        let mut table = RoutingTable::default();
        table.set_desired("app", &routes(&["app.localhost", "www.localhost"]), &ModificationTag::new("e", 1));
        table.set_actual(&running("a", 0, 61001, 1));
        table.set_actual(&running("b", 1, 61002, 1));
        table
    }

    #[test]
    fn every_name_leads_to_every_running_instance() {
        assert_eq!(ports(&table(), "app.localhost"), [61001, 61002]);
        assert_eq!(ports(&table(), "WWW.localhost:8080"), [61001, 61002]);
        assert_eq!(ports(&table(), "other.localhost"), Vec::<u16>::new());
    }

    #[test]
    fn an_instance_that_is_not_routable_is_left_out() {
        let mut table = table();
        table.set_actual(&ActualLrp { routable: Some(false), ..running("a", 0, 61001, 2) });
        assert_eq!(ports(&table, "app.localhost"), [61002]);
    }

    #[test]
    fn news_that_is_old_changes_nothing() {
        let mut table = table();
        table.set_actual(&running("a", 0, 61009, 0));
        table.set_desired("app", &routes(&["old.localhost"]), &ModificationTag::new("e", 0));
        assert_eq!(ports(&table, "app.localhost"), [61001, 61002]);
        assert_eq!(ports(&table, "old.localhost"), Vec::<u16>::new());
    }

    #[test]
    fn an_evacuating_instance_stays_until_it_is_gone() {
        let mut table = table();
        let ordinary = running("a", 0, 61001, 1);
        let evacuating = ActualLrp { presence: Presence::Evacuating, ..ordinary.clone() };
        table.set_actual(&evacuating);
        table.remove_actual(&ordinary);
        assert_eq!(ports(&table, "app.localhost"), [61001, 61002]);
        table.remove_actual(&evacuating);
        assert_eq!(ports(&table, "app.localhost"), [61002]);
    }

    #[test]
    fn without_its_desired_lrp_an_instance_is_not_reachable() {
        let mut table = table();
        table.remove_desired("app");
        assert_eq!(ports(&table, "app.localhost"), Vec::<u16>::new());
    }
}
