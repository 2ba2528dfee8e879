//! Networks made by a program: how Cloud Foundry's own networking and others that are built on CNI join in.
//!
//! ```text
//! PROGRAM EXTRA… --action up|down|net-in|bulk-net-out --handle HANDLE      JSON on stdin, JSON on stdout
//! ```
//! `up` is told the pid of a process in the container's network namespace, and the container's properties that begin
//! with `network.`; what it answers becomes properties of the container, and those with established names are what is
//! known of its network. `down` is called for every container for which `up` was, whatever became of that, and again
//! until it succeeds. Nothing is remembered here: that is the record's.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use garden_client::{MappedPort, NetIn, NetOutRule, Properties};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{Failure, Program};
use crate::networker::resolv;

/// Silk and the like take tenths of a second; a plugin that asks a server may take longer.
pub const DEADLINE: Duration = Duration::from_secs(60);

pub const CONTAINER_IP: &str = "garden.network.container-ip";
pub const CONTAINER_IPV6: &str = "garden.network.container-ipv6";
pub const HOST_IP: &str = "garden.network.host-ip";
pub const EXTERNAL_IP: &str = "garden.network.external-ip";
pub const MAPPED_PORTS: &str = "garden.network.mapped-ports";
/// Of the link inside the container whose traffic counts; `eth0` without it.
pub const INTERFACE: &str = "garden.network.interface";
const INTERFACE_DEFAULT: &str = "eth0";

const PROPERTY_PREFIX: &str = "network.";
/// Told to the plugin under its own name.
const LOG_CONFIG: &str = "log_config";

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("external networker encountered an error running '{action}' action: {source}")]
    Failed { action: &'static str, source: Failure },
    #[error("unmarshaling result from external networker: {0}")]
    Answer(serde_json::Error),
    /// As the established server words it.
    #[error("cannot find container [{0}]")]
    NoAddress(String),
}

type Result<T> = std::result::Result<T, Error>;

#[derive(Debug, Clone)]
pub struct NetworkPlugin {
    pub program: Program,
}

#[derive(Serialize)]
struct Up<'a> {
    #[serde(rename = "Pid")]
    pid: i32,
    #[serde(rename = "Properties")]
    properties: BTreeMap<&'a str, &'a str>,
    #[serde(rename = "netout_rules", skip_serializing_if = "<[_]>::is_empty")]
    net_out: &'a [NetOutRule],
    #[serde(rename = "netin", skip_serializing_if = "<[_]>::is_empty")]
    net_in: &'a [NetIn],
}

/// The answer to `up`.
#[derive(Debug, Default, Clone, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Connected {
    #[serde(alias = "Properties")]
    pub properties: Option<Properties>,
    /// Instead of the machine's and the operator's.
    pub dns_servers: Option<Vec<IpAddr>>,
    pub search_domains: Option<Vec<String>>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct MapPort<'a> {
    #[serde(rename = "HostIP")]
    host_ip: &'a str,
    host_port: u32,
    #[serde(rename = "ContainerIP")]
    container_ip: &'a str,
    container_port: u32,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct PortMapped {
    host_port: u32,
    container_port: u32,
}

#[derive(Serialize)]
struct OpenEgress<'a> {
    container_ip: &'a str,
    netout_rules: &'a [NetOutRule],
}

impl NetworkPlugin {
    pub async fn up(
        &self,
        handle: &str,
        pid: i32,
        properties: &Properties,
        net_in: &[NetIn],
        net_out: &[NetOutRule],
    ) -> Result<Connected> {
        let properties = told(properties);
        self.ask("up", handle, &Up { pid, properties, net_out, net_in }).await
    }

    /// Also where `up` failed, or was never called.
    pub async fn down(&self, handle: &str) -> Result<()> {
        self.tell("down", handle, &()).await
    }

    pub async fn net_in(&self, handle: &str, known: &Properties, port: NetIn) -> Result<MappedPort> {
        let request = MapPort {
            host_ip: known.get(EXTERNAL_IP).map_or("", String::as_str),
            container_ip: address(handle, known)?,
            host_port: port.host_port,
            container_port: port.container_port,
        };
        let PortMapped { host_port, container_port } = self.ask("net-in", handle, &request).await?;
        Ok(MappedPort { host_port, container_port })
    }

    pub async fn bulk_net_out(&self, handle: &str, known: &Properties, rules: &[NetOutRule]) -> Result<()> {
        let request = OpenEgress { container_ip: address(handle, known)?, netout_rules: rules };
        self.tell("bulk-net-out", handle, &request).await
    }

    async fn tell(&self, action: &'static str, handle: &str, input: &impl Serialize) -> Result<()> {
        self.run(action, handle, input).await.map(drop)
    }

    /// A plugin that has nothing to say may say nothing.
    async fn ask<T: DeserializeOwned + Default>(
        &self,
        action: &'static str,
        handle: &str,
        input: &impl Serialize,
    ) -> Result<T> {
        let stdout = self.run(action, handle, input).await?;
        if stdout.iter().all(u8::is_ascii_whitespace) {
            return Ok(T::default());
        }
        serde_json::from_slice(&stdout).map_err(Error::Answer)
    }

    async fn run(&self, action: &'static str, handle: &str, input: &impl Serialize) -> Result<Vec<u8>> {
        let stdin = serde_json::to_vec(input).map_err(Error::Answer)?;
        let output = self.program.run(&["--action", action, "--handle", handle], &stdin).await;
        let output = output.map_err(|source| Error::Failed { action, source })?;
        if !output.stderr.is_empty() {
            tracing::info!(handle, action, stderr = output.stderr, "external-networker-result");
        }
        Ok(output.stdout)
    }
}

fn told(properties: &Properties) -> BTreeMap<&str, &str> {
    let told = properties.iter().filter_map(|(name, value)| match name.strip_prefix(PROPERTY_PREFIX) {
        Some(name) => Some((name, value.as_str())),
        None => (name == LOG_CONFIG).then_some((LOG_CONFIG, value.as_str())),
    });
    told.collect()
}

fn address<'a>(handle: &str, known: &'a Properties) -> Result<&'a str> {
    known.get(CONTAINER_IP).map(String::as_str).ok_or_else(|| Error::NoAddress(handle.into()))
}

/// Nothing where there are none, or nonsense.
pub fn mapped_ports(known: &Properties) -> Vec<MappedPort> {
    known.get(MAPPED_PORTS).and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
}

pub fn add_mapped_port(known: &mut Properties, port: MappedPort) {
    let mut ports = mapped_ports(known);
    ports.push(port);
    // Numbers and names only: it can always be written.
    known.insert(MAPPED_PORTS.into(), serde_json::to_string(&ports).unwrap_or_default());
}

/// Name servers of the plugin replace all others. Its search domains replace the machine's.
pub fn resolv_conf(
    host: &str,
    connected: &Connected,
    operator: &[IpAddr],
    additional: &[IpAddr],
    container_ip: Option<IpAddr>,
) -> String {
    let servers =
        |servers: &[IpAddr]| servers.iter().map(|server| format!("nameserver {server}\n")).collect();
    let mut text: String = match &connected.dns_servers {
        Some(own) => servers(own),
        None => {
            let without_search =
                |line: &&str| connected.search_domains.is_none() || !line.starts_with("search");
            let host: String = host.lines().filter(without_search).map(|line| format!("{line}\n")).collect();
            let own = match container_ip {
                Some(IpAddr::V4(address)) => address,
                _ => std::net::Ipv4Addr::LOCALHOST,
            };
            let own = resolv::HostSide { v4: own, v6: None };
            resolv::resolv_conf(&host, own, operator, additional)
        }
    };
    if let Some(domains) = &connected.search_domains {
        text += &format!("search {}\n", domains.join(" "));
    }
    text
}

pub fn interface(known: &Properties) -> &str {
    known.get(INTERFACE).map_or(INTERFACE_DEFAULT, String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn properties(pairs: &[(&str, &str)]) -> Properties {
        pairs.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
    }

    #[test]
    fn the_plugin_is_told_what_it_has_always_been_told() {
        let known =
            properties(&[("network.app_id", "a"), ("app_id", "b"), ("log_config", "c"), ("network.", "d")]);
        let up = |net_in: &[NetIn], net_out: &[NetOutRule]| {
            serde_json::to_value(Up { pid: 42, properties: told(&known), net_in, net_out }).unwrap()
        };
        let told = serde_json::json!({ "app_id": "a", "log_config": "c", "": "d" });
        assert_eq!(up(&[], &[]), serde_json::json!({ "Pid": 42, "Properties": told }));
        let rule = NetOutRule { protocol: 1, ..NetOutRule::default() };
        assert_eq!(
            up(&[NetIn { host_port: 9, container_port: 8 }], &[rule]),
            serde_json::json!({
                "Pid": 42, "Properties": told, "netout_rules": [{ "protocol": 1 }],
                "netin": [{ "host_port": 9, "container_port": 8 }],
            })
        );
        let port = MapPort { host_ip: "h", host_port: 1, container_ip: "c", container_port: 2 };
        assert_eq!(
            serde_json::to_value(port).unwrap(),
            serde_json::json!({ "HostIP": "h", "HostPort": 1, "ContainerIP": "c", "ContainerPort": 2 })
        );
        assert_eq!(serde_json::to_string(&()).unwrap(), "null");
    }

    #[test]
    fn the_plugins_name_servers_go_before_all_others() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let check = |dns: Option<&[&str]>, search: Option<&[&str]>, operator: &[IpAddr], expected: &str| {
            let connected = Connected {
                dns_servers: dns.map(|dns| dns.iter().map(|text| ip(text)).collect()),
                search_domains: search.map(|search| search.iter().map(|text| text.to_string()).collect()),
                ..Connected::default()
            };
            let host = "nameserver 9.9.9.9\nsearch host\noptions x\n";
            let text = resolv_conf(host, &connected, operator, &[ip("8.8.8.8")], None);
            assert_eq!(text, expected, "{dns:?} {search:?} {operator:?}");
        };
        check(Some(&["1.1.1.1"]), None, &[ip("2.2.2.2")], "nameserver 1.1.1.1\n");
        check(Some(&[]), Some(&["a", "b"]), &[], "search a b\n");
        check(None, None, &[ip("2.2.2.2")], "nameserver 2.2.2.2\nnameserver 8.8.8.8\n");
        check(None, Some(&["a"]), &[], "nameserver 9.9.9.9\noptions x\nnameserver 8.8.8.8\nsearch a\n");
        check(None, None, &[], "nameserver 9.9.9.9\nsearch host\noptions x\nnameserver 8.8.8.8\n");
    }

    #[test]
    fn ports_are_kept_as_a_property() {
        let mut known = properties(&[(MAPPED_PORTS, "nonsense")]);
        assert_eq!(mapped_ports(&known), []);
        add_mapped_port(&mut known, MappedPort { host_port: 1, container_port: 2 });
        add_mapped_port(&mut known, MappedPort { host_port: 3, container_port: 4 });
        assert_eq!(
            known[MAPPED_PORTS],
            r#"[{"HostPort":1,"ContainerPort":2},{"HostPort":3,"ContainerPort":4}]"#
        );
    }
}
