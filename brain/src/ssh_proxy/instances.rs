//! Where an instance's ssh daemon is, and how it wants to be spoken to: from the BBS's ActualLRP and the `diego-ssh`
//! route data of its DesiredLRP.

use async_trait::async_trait;
use bbs_client::BbsClient;
use bbs_models::{ActualLrp, ActualLrpFilter, DesiredLrp, PreferredAddress, Presence};
use serde::{Deserialize, Serialize};

/// The router name under which route data for ssh is kept.
pub const DIEGO_SSH: &str = "diego-ssh";

/// Route data for ssh, as it stands in a DesiredLRP.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct SshRoute {
    pub container_port: u16,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub host_fingerprint: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub user: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub password: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub private_key: String,
}

/// A daemon: its address and what the route data say of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    pub host: String,
    pub port: u16,
    pub route: SshRoute,
}

/// A target and what the log says of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    pub target: Target,
    pub instance_guid: String,
}

#[derive(Debug, thiserror::Error)]
pub enum FindError {
    #[error("no matching ActualLRP for ProcessGuid: {0}, Index: {1}")]
    NoInstance(String, u32),
    #[error("instance {0}/{1} is {2}")]
    NotRunning(String, u32, &'static str),
    #[error("SSH routing info not found")]
    NoRoute,
    #[error("cannot read the SSH routing info")]
    Route(#[from] serde_json::Error),
    #[error("the instance maps no port {0}")]
    NoPort(u16),
    #[error("cannot ask the BBS")]
    Bbs(#[source] bbs_client::Error),
}

/// Finds instances: at a BBS, or, in tests, where the test says.
#[async_trait]
pub trait Instances: Send + Sync {
    async fn find(&self, process_guid: &str, index: u32) -> Result<Found, FindError>;
}

/// Instances as the BBS knows them.
pub struct BbsInstances {
    pub bbs: BbsClient,
    /// Go to the container's own address where the instance itself does not prefer one.
    pub connect_to_instance_address: bool,
}

#[async_trait]
impl Instances for BbsInstances {
    async fn find(&self, process_guid: &str, index: u32) -> Result<Found, FindError> {
        let none = || FindError::NoInstance(process_guid.to_owned(), index);
        let filter = ActualLrpFilter {
            process_guid: process_guid.to_owned(),
            index: Some(index),
            ..Default::default()
        };
        let instances = self.bbs.actual_lrps(&filter).await.map_err(|error| match error.is_not_found() {
            true => none(),
            false => FindError::Bbs(error),
        })?;
        let instance = choose(instances).ok_or_else(none)?;
        let desired = self.bbs.desired_lrp_by_process_guid(process_guid).await.map_err(FindError::Bbs)?;
        target(&desired, &instance, self.connect_to_instance_address)
    }
}

/// Of several ActualLRPs of one index the one that runs, and the ordinary one before one that is being evacuated.
fn choose(mut instances: Vec<ActualLrp>) -> Option<ActualLrp> {
    instances.sort_by_key(|instance| (!instance.is_running(), instance.presence != Presence::Ordinary));
    instances.into_iter().next()
}

fn target(
    desired: &DesiredLrp,
    instance: &ActualLrp,
    use_instance_address: bool,
) -> Result<Found, FindError> {
    let route: SshRoute = desired.routes.read(DIEGO_SSH).ok_or(FindError::NoRoute)??;
    let (Some(net_info), Some(instance_guid)) = (instance.net_info(), instance.instance_guid()) else {
        let key = &instance.key;
        return Err(FindError::NotRunning(key.process_guid.clone(), key.index, instance.state.name()));
    };
    let mut ports = net_info.ports.iter();
    let mapping = ports
        .find(|mapping| mapping.container_port == route.container_port)
        .ok_or(FindError::NoPort(route.container_port))?;
    let inside = match net_info.preferred_address {
        PreferredAddress::Instance => true,
        PreferredAddress::Host => false,
        PreferredAddress::Unknown => use_instance_address,
    };
    let (host, port) = match inside {
        true => (&net_info.instance_address, mapping.container_port),
        false => (&net_info.address, mapping.host_port),
    };
    Ok(Found { target: Target { host: host.clone(), port, route }, instance_guid: instance_guid.to_owned() })
}

#[cfg(test)]
mod tests {
    use bbs_models::{ActualLrpInstanceKey, ActualLrpKey, ActualLrpNetInfo, PortMapping};

    use super::*;

    fn key() -> ActualLrpKey {
        ActualLrpKey::new("guid", 1, "domain")
    }

    fn running(preferred_address: PreferredAddress) -> ActualLrp {
        let mapping = PortMapping { container_port: 2222, host_port: 61001, ..Default::default() };
        let net_info = ActualLrpNetInfo {
            address: "10.0.0.1".into(),
            instance_address: "10.255.0.2".into(),
            ports: vec![PortMapping::default(), mapping],
            preferred_address,
            ..Default::default()
        };
        ActualLrp::running(key(), ActualLrpInstanceKey::new("instance", "cell"), net_info, 0)
    }

    #[test]
    fn the_running_ordinary_instance_is_chosen() {
        let unclaimed = ActualLrp::unclaimed(key(), 0);
        let mut evacuating = running(PreferredAddress::Unknown);
        evacuating.presence = Presence::Evacuating;
        let ordinary = running(PreferredAddress::Unknown);
        assert_eq!(choose(vec![evacuating.clone(), ordinary.clone()]), Some(ordinary));
        assert_eq!(choose(vec![unclaimed, evacuating.clone()]), Some(evacuating));
        assert_eq!(choose(Vec::new()), None);
    }
}
