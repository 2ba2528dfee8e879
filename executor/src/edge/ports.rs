//! Which port of a container speaks TLS for which port of its app. Pure; the numbers are those that platforms know.

use garden_client::{ContainerInfo, NetIn};

use crate::PortMapping;

/// For other containers, which reach it by its address: it is not mapped to the host.
pub(crate) const CONTAINER_TO_CONTAINER: u16 = 61443;
const FIRST: u16 = 61001;
const LAST: u16 = 65533;
/// The app's port that other containers are led to.
const DEFAULT_HTTP: u16 = 8080;

/// One listener: what comes in at `port` goes to `app_port` without its TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Front {
    pub app_port: u16,
    pub port: u16,
}

impl Front {
    pub fn is_for_containers(&self) -> bool {
        self.port == CONTAINER_TO_CONTAINER
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PortError {
    #[error("port {CONTAINER_TO_CONTAINER} is reserved for container networking")]
    Reserved,
    #[error("no ports available")]
    NoneLeft,
}

/// One for each port of the app, in their order, and one more for other containers.
pub(crate) fn fronts(app_ports: &[PortMapping]) -> Result<Vec<Front>, PortError> {
    let is_app_port = |port: u16| app_ports.iter().any(|mapping| mapping.container_port == port);
    if is_app_port(CONTAINER_TO_CONTAINER) {
        return Err(PortError::Reserved);
    }
    let mut free = (FIRST..=LAST).filter(|port| *port != CONTAINER_TO_CONTAINER && !is_app_port(*port));
    let mut fronts = Vec::new();
    for mapping in app_ports {
        let app_port = mapping.container_port;
        fronts.push(Front { app_port, port: free.next().ok_or(PortError::NoneLeft)? });
        if app_port == DEFAULT_HTTP {
            fronts.push(Front { app_port, port: CONTAINER_TO_CONTAINER });
        }
    }
    Ok(fronts)
}

/// What garden is to map to the host. `unproxied`: the app's own ports too, where TLS is spoken for them.
pub(crate) fn net_in(app_ports: &[PortMapping], fronts: &[Front], unproxied: bool) -> Vec<NetIn> {
    let own = app_ports.iter().filter(|_| unproxied || fronts.is_empty());
    let own = own
        .map(|port| NetIn { host_port: port.host_port.into(), container_port: port.container_port.into() });
    let fronts = fronts.iter().filter(|front| !front.is_for_containers());
    own.chain(fronts.map(|front| NetIn { host_port: 0, container_port: front.port.into() })).collect()
}

/// What garden has mapped: an app's port once for each listener before it. 0 is a port that is not mapped.
pub(crate) fn mapped(app_ports: &[PortMapping], fronts: &[Front], info: &ContainerInfo) -> Vec<PortMapping> {
    let host_port = |port: u16| {
        let mapped = info.mapped_ports.iter().find(|mapped| mapped.container_port == u32::from(port));
        mapped.and_then(|mapped| u16::try_from(mapped.host_port).ok()).unwrap_or(0)
    };
    let mut all = Vec::new();
    for app in app_ports {
        let plain = PortMapping {
            container_port: app.container_port,
            host_port: host_port(app.container_port),
            ..PortMapping::default()
        };
        let before = all.len();
        let fronts = fronts.iter().filter(|front| front.app_port == app.container_port);
        all.extend(fronts.map(|front| PortMapping {
            container_tls_proxy_port: front.port,
            host_tls_proxy_port: host_port(front.port),
            ..plain
        }));
        if all.len() == before {
            all.push(plain);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use garden_client::MappedPort;

    use super::*;

    fn app(ports: &[u16]) -> Vec<PortMapping> {
        ports.iter().map(|&container_port| PortMapping { container_port, ..Default::default() }).collect()
    }

    fn pairs(ports: &[u16]) -> Vec<(u16, u16)> {
        fronts(&app(ports)).unwrap().iter().map(|front| (front.app_port, front.port)).collect()
    }

    #[test]
    fn each_port_has_a_listener_and_the_default_one_two() {
        assert_eq!(pairs(&[]), []);
        assert_eq!(pairs(&[8080, 2222]), [(8080, 61001), (8080, 61443), (2222, 61002)]);
        assert_eq!(pairs(&[61001, 9000]), [(61001, 61002), (9000, 61003)]);
        assert_eq!(fronts(&app(&[8080, 61443])), Err(PortError::Reserved));
        let many: Vec<u16> = (1..=443).collect();
        let last = pairs(&many)[442];
        assert_eq!(last, (443, 61444), "the reserved port is left out");
        let all: Vec<u16> = (1..=4533).collect();
        assert_eq!(fronts(&app(&all)), Err(PortError::NoneLeft));
    }

    #[test]
    fn the_host_is_given_what_routers_need_and_no_more() {
        let ports = |unproxied, ports: &[u16]| -> Vec<u32> {
            let app = app(ports);
            let mapped = net_in(&app, &fronts(&app).unwrap(), unproxied);
            mapped.iter().map(|port| port.container_port).collect()
        };
        assert_eq!(ports(true, &[8080, 2222]), [8080, 2222, 61001, 61002]);
        assert_eq!(ports(false, &[8080, 2222]), [61001, 61002]);
        let without: Vec<_> =
            net_in(&app(&[8080]), &[], false).iter().map(|port| port.container_port).collect();
        assert_eq!(without, [8080], "with no listener nothing else leads to the app");
    }

    #[test]
    fn a_port_is_told_once_for_each_listener() {
        let app = app(&[8080, 2222]);
        let map = |host_port, container_port| MappedPort { host_port, container_port };
        let info = ContainerInfo {
            mapped_ports: vec![map(1, 8080), map(2, 2222), map(3, 61001), map(4, 61002)],
            ..ContainerInfo::default()
        };
        let told = |mappings: Vec<PortMapping>| -> Vec<[u16; 4]> {
            let all = mappings.into_iter();
            all.map(|port| {
                [port.container_port, port.host_port, port.container_tls_proxy_port, port.host_tls_proxy_port]
            })
            .collect()
        };
        let fronts = fronts(&app).unwrap();
        let wanted = [[8080, 1, 61001, 3], [8080, 1, 61443, 0], [2222, 2, 61002, 4]];
        assert_eq!(told(mapped(&app, &fronts, &info)), wanted);
        assert_eq!(told(mapped(&app, &[], &info)), [[8080, 1, 0, 0], [2222, 2, 0, 0]]);
    }
}
