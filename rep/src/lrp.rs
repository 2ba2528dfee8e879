//! What an LRP instance's container means for the BBS: decided from a snapshot alone, so that looking again, after a
//! lost event or a restart of the BBS, decides the same.
//!
//! ```text
//! container      the cell stays                          the cell is evacuated
//! reserved       claim, then run                         unclaim, delete
//! initializing,  claim                                   unclaim, delete
//!   created
//! running        start                                   let it be started elsewhere first
//! completed      remove if it was told to stop,          the same, as an evacuating instance; delete
//!                crash if not; delete
//! ```

use std::collections::BTreeMap;

use bbs_models::{ActualLrpNetInfo, PortMapping, PreferredAddress};
use executor::{Container, State};

/// In the order in which they are to be carried out; one that is refused ends the list, see the harmonizer.
#[derive(Debug, Clone, PartialEq)]
pub enum Call {
    Claim,
    /// Fetch the DesiredLRP and start its recipe in the reserved container.
    Run,
    Start(Started),
    Crash {
        reason: String,
    },
    Remove,
    EvacuateClaimed,
    EvacuateRunning(Started),
    EvacuateCrashed {
        reason: String,
    },
    EvacuateStopped,
    /// The container, not the ActualLRP.
    Delete,
}

/// What the BBS, and through it every router, is told about a running instance.
#[derive(Debug, Clone, PartialEq)]
pub struct Started {
    pub net_info: ActualLrpNetInfo,
    pub internal_routes: Vec<String>,
    pub metric_tags: BTreeMap<String, String>,
    pub routable: bool,
}

pub fn react(container: &Container, evacuating: bool, preferred_address: PreferredAddress) -> Vec<Call> {
    match (&container.state, evacuating) {
        (State::Reserved, false) => vec![Call::Claim, Call::Run],
        (State::Initializing | State::Created, false) => vec![Call::Claim],
        (State::Reserved | State::Initializing | State::Created, true) => {
            vec![Call::EvacuateClaimed, Call::Delete]
        }
        (State::Running, false) => vec![Call::Start(started(container, preferred_address))],
        (State::Running, true) => vec![Call::EvacuateRunning(started(container, preferred_address))],
        (State::Completed(result), false) if result.stopped => vec![Call::Remove, Call::Delete],
        (State::Completed(result), true) if result.stopped => vec![Call::EvacuateStopped, Call::Delete],
        (State::Completed(result), false) => {
            vec![Call::Crash { reason: result.failure_reason.clone() }, Call::Delete]
        }
        (State::Completed(result), true) => {
            vec![Call::EvacuateCrashed { reason: result.failure_reason.clone() }, Call::Delete]
        }
    }
}

fn started(container: &Container, preferred_address: PreferredAddress) -> Started {
    let address = |ip: Option<std::net::IpAddr>| ip.map(|ip| ip.to_string()).unwrap_or_default();
    let info = container.run_info.as_deref();
    Started {
        net_info: ActualLrpNetInfo {
            address: address(container.external_ip),
            ports: container.ports.iter().map(port_mapping).collect(),
            instance_address: address(container.internal_ip),
            instance_ipv6_address: address(container.internal_ipv6),
            preferred_address,
        },
        internal_routes: info.map(|info| info.internal_routes.clone()).unwrap_or_default(),
        metric_tags: info.map(|info| info.metric_tags.clone()).unwrap_or_default(),
        routable: container.routable,
    }
}

fn port_mapping(port: &executor::PortMapping) -> PortMapping {
    let known = |port: u16| (port != 0).then_some(port);
    PortMapping {
        container_port: port.container_port,
        host_port: port.host_port,
        container_tls_proxy_port: known(port.container_tls_proxy_port),
        host_tls_proxy_port: known(port.host_tls_proxy_port),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use executor::{Resource, RunInfo, RunResult};

    fn container(state: State) -> Container {
        let mut container = Container::reserved("ig", Resource::default(), BTreeMap::new(), 0);
        container.state = state;
        container
    }

    fn completed(stopped: bool, reason: &str) -> State {
        State::Completed(RunResult {
            failed: !stopped,
            failure_reason: reason.into(),
            retryable: false,
            stopped,
        })
    }

    fn names(state: State, evacuating: bool) -> String {
        let calls = react(&container(state), evacuating, PreferredAddress::Host);
        let name = |call: &Call| format!("{call:?}").split([' ', '(']).next().unwrap().to_owned();
        calls.iter().map(name).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn each_state_has_its_calls() {
        let check = |state: State, staying: &str, evacuating: &str| {
            assert_eq!(names(state.clone(), false), staying, "{state:?}");
            assert_eq!(names(state.clone(), true), evacuating, "{state:?}, evacuating");
        };
        check(State::Reserved, "Claim Run", "EvacuateClaimed Delete");
        check(State::Initializing, "Claim", "EvacuateClaimed Delete");
        check(State::Created, "Claim", "EvacuateClaimed Delete");
        check(State::Running, "Start", "EvacuateRunning");
        check(completed(true, ""), "Remove Delete", "EvacuateStopped Delete");
        check(completed(false, "exit 1"), "Crash Delete", "EvacuateCrashed Delete");
    }

    #[test]
    fn a_crash_tells_its_reason() {
        let calls = react(&container(completed(false, "exit 1")), false, PreferredAddress::Host);
        assert_eq!(calls[0], Call::Crash { reason: "exit 1".into() });
    }

    #[test]
    fn a_running_instance_tells_where_it_is() {
        let mut container = container(State::Running);
        container.external_ip = Some([10, 0, 0, 1].into());
        container.internal_ip = Some([10, 255, 0, 2].into());
        container.routable = true;
        let port = executor::PortMapping {
            container_port: 8080,
            host_port: 61001,
            container_tls_proxy_port: 61443,
            host_tls_proxy_port: 61002,
        };
        let plain = executor::PortMapping { container_port: 2222, host_port: 61003, ..Default::default() };
        container.ports = vec![port, plain];
        let info = RunInfo { internal_routes: vec!["a.internal".into()], ..RunInfo::default() };
        container.run_info = Some(std::sync::Arc::new(info));
        let calls = react(&container, false, PreferredAddress::Host);
        let [Call::Start(started)] = calls.as_slice() else { panic!("{calls:?}") };
        assert_eq!(started.net_info.address, "10.0.0.1");
        assert_eq!(started.net_info.instance_address, "10.255.0.2");
        assert_eq!(started.net_info.ports[0].host_tls_proxy_port, Some(61002));
        assert_eq!(started.net_info.ports[1].host_tls_proxy_port, None);
        assert_eq!(started.internal_routes, ["a.internal"]);
        assert!(started.routable);
    }
}
