//! Why a packet that a container sends would pass, or not: the chains of [`super::rules`] walked in their order, without
//! a packet. Pure; a test holds it to what the kernel does.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use garden_client::{IpRange, NetOutRule, PortRange};

use super::plan::Connection;
use super::rules::{DNS_PORT, Policy};

/// What would be sent, new and unasked: answers always pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    pub protocol: Protocol,
    pub to: IpAddr,
    /// Of TCP and UDP.
    pub port: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Of the address's family.
    Icmp,
    Tcp,
    Udp,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a packet such as tcp://192.0.2.1:443, udp://[2001:db8::1]:53, icmp://192.0.2.1 or icmpv6://2001:db8::1"
)]
pub struct InvalidPacket(String);

impl FromStr for Packet {
    type Err = InvalidPacket;

    fn from_str(text: &str) -> Result<Self, InvalidPacket> {
        let parse = || {
            let (protocol, address) = text.split_once("://").unwrap_or(("tcp", text));
            let protocol = match protocol {
                "tcp" => Protocol::Tcp,
                "udp" => Protocol::Udp,
                "icmp" | "icmpv6" => {
                    let to: IpAddr = address.parse().ok()?;
                    let packet = Packet { protocol: Protocol::Icmp, to, port: 0 };
                    return (to.is_ipv6() == (protocol == "icmpv6")).then_some(packet);
                }
                _ => return None,
            };
            let address: SocketAddr = address.parse().ok()?;
            Some(Packet { protocol, to: address.ip().to_canonical(), port: address.port() })
        };
        parse().ok_or_else(|| InvalidPacket(text.to_owned()))
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    pub passes: bool,
    pub why: String,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", if self.passes { "passes" } else { "is refused" }, self.why)
    }
}

fn passes(why: impl Into<String>) -> Verdict {
    Verdict { passes: true, why: why.into() }
}

fn refused(why: impl Into<String>) -> Verdict {
    Verdict { passes: false, why: why.into() }
}

/// What else is known of the host.
pub struct Host<'a> {
    /// Of all its links, those to containers too.
    pub addresses: &'a [IpAddr],
    /// All of its containers, each with its handle.
    pub containers: &'a [(&'a str, &'a Connection)],
}

/// What becomes of a packet of the container that has this connection.
pub fn sent(policy: &Policy, host: &Host<'_>, from: &Connection, packet: Packet) -> Verdict {
    if packet.to.is_loopback() {
        return passes("it stays in the container, whose loopback is its own");
    }
    let Some(own) = address(from, packet) else {
        return refused("the container has no IPv6");
    };
    if packet.to == own {
        return passes("it stays in the container, whose address that is");
    }
    if is_link_local(packet.to) {
        return refused("by such an address neighbours find one another, and nothing else passes");
    }
    if !host.addresses.contains(&packet.to) {
        return forwarded(policy, host, from, packet);
    }
    let mapped = |connection: &Connection| {
        let ports = connection.mapped_ports.iter();
        ports.filter(|port| port.host_port == u32::from(packet.port)).map(|port| port.container_port).next()
    };
    let found = host.containers.iter().find_map(|(handle, connection)| {
        // One without IPv6 has no ports there.
        Some((handle, address(connection, packet)?, mapped(connection)?))
    });
    match found.filter(|_| packet.protocol == Protocol::Tcp) {
        Some((handle, address, port)) => {
            let to = format!("port {} is mapped to port {port} of container '{handle}'", packet.port);
            let inner = Packet { to: address, port: port as u16, ..packet };
            match decided(policy, from, inner) {
                Some(verdict) => Verdict { why: format!("{to}; {}", verdict.why), ..verdict },
                None => passes(to),
            }
        }
        None => to_the_host(policy, from, packet),
    }
}

/// Of the packet's family.
fn address(connection: &Connection, packet: Packet) -> Option<IpAddr> {
    match packet.to {
        IpAddr::V4(_) => Some(connection.container_ip.into()),
        IpAddr::V6(_) => connection.container_ipv6().map(IpAddr::V6),
    }
}

fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

fn in_pool(policy: &Policy, address: IpAddr) -> bool {
    let pools = policy.families().filter_map(|family| policy.pool_of(family));
    pools.into_iter().any(|pool| pool.contains(address))
}

fn to_the_host(policy: &Policy, from: &Connection, packet: Packet) -> Verdict {
    if policy.allow_host_access {
        return passes("the host may be reached (allow-host-access)");
    }
    let answers = in_pool(policy, packet.to) || (from.chosen.is_some() && packet.to.is_ipv4());
    if policy.host_answers_dns && answers && is_dns(packet) {
        return passes("the host answers DNS for its containers");
    }
    refused("the host may not be reached (allow-host-access is off)")
}

fn forwarded(policy: &Policy, host: &Host<'_>, from: &Connection, packet: Packet) -> Verdict {
    if let Some(verdict) = decided(policy, from, packet) {
        return verdict;
    }
    let other = host.containers.iter().find(|(_, connection)| address(connection, packet) == Some(packet.to));
    if !in_pool(policy, packet.to) && other.is_none() {
        return passes("no rule is about it, and what nothing denies may leave");
    }
    let other = other.map_or("of containers".into(), |(handle, _)| format!("of container '{handle}'"));
    refused(format!("{} is an address {other}, and containers do not reach one another", packet.to))
}

/// By the chain of what containers send, up to where translated packets are let through.
fn decided(policy: &Policy, from: &Connection, packet: Packet) -> Option<Verdict> {
    if policy.dns_servers.contains(&packet.to) && is_dns(packet) {
        return Some(passes(format!("{} is a DNS server of all containers", packet.to)));
    }
    if let Some(number) = from.net_out.iter().position(|rule| allows(rule, packet)) {
        return Some(passes(format!(
            "egress rule {} allows it: {}",
            number + 1,
            Shown(&from.net_out[number])
        )));
    }
    let denied = policy.deny_networks.iter().find(|network| network.contains(packet.to))?;
    Some(refused(format!("the network {denied} is denied to all containers (deny-network)")))
}

fn is_dns(packet: Packet) -> bool {
    packet.port == DNS_PORT && packet.protocol != Protocol::Icmp
}

/// A new call: of the messages of ICMP that which asks for an echo.
const ECHO_REQUEST: u8 = 8;
const ECHO_REQUEST_V6: u8 = 128;

fn allows(rule: &NetOutRule, packet: Packet) -> bool {
    let protocol = match rule.protocol {
        0 => true,
        1 => packet.protocol == Protocol::Tcp,
        2 => packet.protocol == Protocol::Udp,
        3 | 4 => {
            let icmp = rule.icmps.unwrap_or(garden_client::IcmpControl { kind: u8::MAX, code: None });
            let code = icmp.code.is_none_or(|code| code == u8::MAX || code == 0);
            let echo = if packet.to.is_ipv4() { ECHO_REQUEST } else { ECHO_REQUEST_V6 };
            let family = packet.to.is_ipv6() == (rule.protocol == 4);
            let kind = icmp.kind == u8::MAX || icmp.kind == echo;
            packet.protocol == Protocol::Icmp && family && kind && code
        }
        _ => false,
    };
    let network = |range: &IpRange| {
        let canonical = |address: Option<IpAddr>| address.map(|address| address.to_canonical());
        match (canonical(range.start.or(range.end)), canonical(range.end.or(range.start))) {
            // Of two families none is between them: addresses of one are all before the other's.
            (Some(start), Some(end)) => {
                start.is_ipv4() == end.is_ipv4() && (start..=end).contains(&packet.to)
            }
            _ => true,
        }
    };
    let port = |range: &PortRange| {
        let end = if range.end == 0 { range.start } else { range.end };
        (range.start..=end).contains(&packet.port)
    };
    protocol
        && (rule.networks.is_empty() || rule.networks.iter().any(network))
        && (rule.ports.is_empty() || rule.ports.iter().any(port))
}

/// A rule as people read it.
pub struct Shown<'a>(pub &'a NetOutRule);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rule = self.0;
        let protocol = ["all", "tcp", "udp", "icmp", "icmpv6"].get(usize::from(rule.protocol));
        write!(f, "{}", protocol.unwrap_or(&"unknown"))?;
        let address = |address: Option<IpAddr>| address.map_or("any".into(), |address| address.to_string());
        let between =
            |start: String, end: String| if start == end { start } else { format!("{start}-{end}") };
        let networks = rule
            .networks
            .iter()
            .map(|range| between(address(range.start.or(range.end)), address(range.end.or(range.start))));
        let networks: Vec<String> = networks.collect();
        write!(f, " to {}", if networks.is_empty() { "anywhere".into() } else { networks.join(", ") })?;
        let ports = rule.ports.iter().map(|range| {
            let end = if range.end == 0 { range.start } else { range.end };
            between(range.start.to_string(), end.to_string())
        });
        let ports: Vec<String> = ports.collect();
        if !ports.is_empty() {
            write!(f, " port {}", ports.join(", "))?;
        }
        if let Some(icmp) = rule.icmps {
            write!(f, " type {}", icmp.kind)?;
        }
        if rule.log { write!(f, ", logged") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_parsed_at_the_door() {
        let packet = |protocol, port| Ok(Packet { protocol, to: [192, 0, 2, 1].into(), port });
        let v6 = |protocol, port| Ok(Packet { protocol, to: "2001:db8::1".parse().unwrap(), port });
        for (text, expected) in [
            ("tcp://[2001:db8::1]:443", v6(Protocol::Tcp, 443)),
            ("[2001:db8::1]:443", v6(Protocol::Tcp, 443)),
            ("icmpv6://2001:db8::1", v6(Protocol::Icmp, 0)),
            ("tcp://192.0.2.1:443", packet(Protocol::Tcp, 443)),
            ("192.0.2.1:443", packet(Protocol::Tcp, 443)),
            ("udp://192.0.2.1:53", packet(Protocol::Udp, 53)),
            ("icmp://192.0.2.1", packet(Protocol::Icmp, 0)),
        ] {
            assert_eq!(text.parse::<Packet>(), expected);
        }
        for nonsense in [
            "",
            "tcp://192.0.2.1",
            "sctp://192.0.2.1:1",
            "tcp://192.0.2.1:70000",
            "icmp://x",
            "icmp://::1",
            "icmpv6://1.2.3.4",
            "tcp://2001:db8::1:443",
        ] {
            assert_eq!(nonsense.parse::<Packet>(), Err(InvalidPacket(nonsense.into())));
        }
    }

    #[test]
    fn rules_are_shown_as_people_read_them() {
        for (json, expected) in [
            ("{}", "all to anywhere"),
            (
                r#"{"protocol":1,"networks":[{"start":"1.2.3.4"}],"ports":[{"start":80,"end":90},{"start":443}],"log":true}"#,
                "tcp to 1.2.3.4 port 80-90, 443, logged",
            ),
            (r#"{"protocol":3,"icmps":{"type":8}}"#, "icmp to anywhere type 8"),
        ] {
            let rule: NetOutRule = serde_json::from_str(json).unwrap();
            assert_eq!(Shown(&rule).to_string(), expected);
        }
    }
}
