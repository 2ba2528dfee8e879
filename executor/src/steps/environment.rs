//! The network environment that every process of a container gets.

use serde::Serialize;

use crate::PortMapping;

#[derive(Serialize)]
struct Port {
    #[serde(skip_serializing_if = "is_zero")]
    external: u16,
    internal: u16,
    #[serde(skip_serializing_if = "is_zero")]
    external_tls_proxy: u16,
    #[serde(skip_serializing_if = "is_zero")]
    internal_tls_proxy: u16,
}

fn is_zero(port: &u16) -> bool {
    *port == 0
}

/// `CF_INSTANCE_IP`, `…_INTERNAL_IP`, `…_PORT`, `…_ADDR`, `…_PORTS`; an address that is not known is empty.
pub(crate) fn network(
    external: &str,
    internal: &str,
    internal_v6: &str,
    ports: &[PortMapping],
) -> Vec<String> {
    let mut env = vec![format!("CF_INSTANCE_IP={external}"), format!("CF_INSTANCE_INTERNAL_IP={internal}")];
    if !internal_v6.is_empty() {
        env.push(format!("CF_INSTANCE_INTERNAL_IPV6={internal_v6}"));
    }
    let Some(first) = ports.first() else {
        env.extend(["CF_INSTANCE_PORT=", "CF_INSTANCE_ADDR=", "CF_INSTANCE_PORTS=[]"].map(String::from));
        return env;
    };
    if first.host_port > 0 {
        env.push(format!("CF_INSTANCE_PORT={}", first.host_port));
        env.push(format!("CF_INSTANCE_ADDR={external}:{}", first.host_port));
    }
    let ports: Vec<_> = ports
        .iter()
        .map(|port| Port {
            external: port.host_port,
            internal: port.container_port,
            external_tls_proxy: port.host_tls_proxy_port,
            internal_tls_proxy: port.container_tls_proxy_port,
        })
        .collect();
    let json = serde_json::to_string(&ports).unwrap_or_else(|_| "[]".to_string());
    env.push(format!("CF_INSTANCE_PORTS={json}"));
    env
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_ports_the_names_are_there_and_empty() {
        let env = network("10.0.0.1", "10.254.0.2", "", &[]);
        let wanted = [
            "CF_INSTANCE_IP=10.0.0.1",
            "CF_INSTANCE_INTERNAL_IP=10.254.0.2",
            "CF_INSTANCE_PORT=",
            "CF_INSTANCE_ADDR=",
            "CF_INSTANCE_PORTS=[]",
        ];
        assert_eq!(env, wanted);
    }

    #[test]
    fn the_first_port_is_the_address_and_all_are_listed() {
        let tls = PortMapping {
            container_port: 8080,
            host_port: 61001,
            container_tls_proxy_port: 61443,
            host_tls_proxy_port: 61002,
        };
        let ssh = PortMapping { container_port: 2222, host_port: 61003, ..PortMapping::default() };
        let env = network("10.0.0.1", "10.254.0.2", "fd00::2", &[tls, ssh]);
        let wanted = [
            "CF_INSTANCE_IP=10.0.0.1",
            "CF_INSTANCE_INTERNAL_IP=10.254.0.2",
            "CF_INSTANCE_INTERNAL_IPV6=fd00::2",
            "CF_INSTANCE_PORT=61001",
            "CF_INSTANCE_ADDR=10.0.0.1:61001",
            r#"CF_INSTANCE_PORTS=[{"external":61001,"internal":8080,"external_tls_proxy":61002,"internal_tls_proxy":61443},{"external":61003,"internal":2222}]"#,
        ];
        assert_eq!(env, wanted);
    }
}
