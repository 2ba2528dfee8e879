//! The firewall as values: the table every garden makes at start, and what each container adds to it. No I/O.
//!
//! ```text
//! guard        prerouting, before all else: a container's packets carry its own address and never go to 127/8
//! prerouting   ┐ a mapped host port becomes the container's address and port (map `ports`),
//! output       ┘ from outside and from this host itself, 127.0.0.1 included
//! postrouting  addresses nobody else could answer to become the host's
//! forward      from a container: its own egress chain (map `egress`), then what the operator denies, then no other
//!              container; to a container: only answers and mapped ports
//! input        from a container to this host: answers only, unless the operator allows more
//! ```

use std::net::{IpAddr, Ipv4Addr};

use garden_client::{IpRange, MappedPort, NetOutRule, PortRange};
use garden_sys::nftables::{
    ChainKind, Comparison, ConntrackKey, DataType, Element, Expression, Field, Hook, MapData, MetaKey,
    Register, Transaction, Value, Verdict,
};

use serde::{Deserialize, Serialize};

use super::plan::{Connection, Network};

pub const PORTS: &str = "ports";
pub const SOURCES: &str = "sources";
pub const EGRESS: &str = "egress";
const FROM_CONTAINER: &str = "from_container";
const LINK_NAME_BYTES: usize = 16;
pub const DNS_PORT: u16 = 53;
/// What readers of these log lines know from iptables, whose prefixes end here.
const LOG_PREFIX_BYTES_MAX: usize = 28;

const PRIORITY_RAW: i32 = -300;
const PRIORITY_DESTINATION_NAT: i32 = -100;
const PRIORITY_FILTER: i32 = 0;
const PRIORITY_SOURCE_NAT: i32 = 100;

/// What the operator has decided for all containers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Policy {
    pub pool: Network,
    pub link_prefix: String,
    pub deny_networks: Vec<Network>,
    pub allow_host_access: bool,
    /// Reachable by every container on port 53, whatever else is denied.
    pub dns_servers: Vec<Ipv4Addr>,
    /// The host's side of a container's link answers DNS.
    pub host_answers_dns: bool,
}

/// Makes the table anew, whatever was there.
pub fn base(table: &str, policy: &Policy) -> Transaction {
    let mut change = Transaction::new(table);
    change.add_table().delete_table().add_table();
    change.add_set(PORTS, &[DataType::Port], MapData::Values(&[DataType::Ipv4Address, DataType::Port]));
    change.add_set(SOURCES, &[DataType::LinkName, DataType::Ipv4Address], MapData::Nothing);
    change.add_set(EGRESS, &[DataType::Ipv4Address], MapData::Verdict);
    guard(&mut change, policy);
    address_translation(&mut change, policy);
    forward(&mut change, policy);
    input(&mut change, policy);
    change
}

/// Whatever was there, nothing is.
pub fn removed(table: &str) -> Transaction {
    let mut change = Transaction::new(table);
    change.add_table().delete_table();
    change
}

fn guard(change: &mut Transaction, policy: &Policy) {
    change.add_base_chain("guard", ChainKind::Filter, Hook::Prerouting, PRIORITY_RAW);
    let address = Register(4);
    let mut spoofed = from_our_links(policy);
    spoofed.extend([
        Expression::Meta { key: MetaKey::InputLinkName, to: Register::FIRST },
        Expression::Payload { field: Field::IPV4_SOURCE, to: address },
        Expression::Contains { set: SOURCES.into(), key: Register::FIRST, inverted: true },
        drop_it(),
    ]);
    change.add_rule("guard", &spoofed);
    // Links of containers accept 127/8 so that mapped ports answer on 127.0.0.1; nothing else may come of it.
    let mut to_loopback = from_our_links(policy);
    to_loopback.extend(within(Field::IPV4_DESTINATION, Network::new(Ipv4Addr::LOCALHOST, 8)));
    to_loopback.push(drop_it());
    change.add_rule("guard", &to_loopback);
}

fn address_translation(change: &mut Transaction, policy: &Policy) {
    change.add_base_chain("prerouting", ChainKind::Nat, Hook::Prerouting, PRIORITY_DESTINATION_NAT);
    change.add_base_chain("output", ChainKind::Nat, Hook::Output, PRIORITY_DESTINATION_NAT);
    change.add_base_chain("postrouting", ChainKind::Nat, Hook::Postrouting, PRIORITY_SOURCE_NAT);
    let mut mapped = protocol(transport_number::TCP);
    mapped.extend([
        Expression::DestinationKind { to: Register::FIRST },
        Expression::compare(Register::FIRST, Comparison::Equal, &Expression::KIND_LOCAL.to_ne_bytes()),
        Expression::Payload { field: Field::DESTINATION_PORT, to: Register::FIRST },
        Expression::Find { map: PORTS.into(), key: Register::FIRST, to: Register::FIRST },
        Expression::DestinationNat { address: Register::FIRST, port: Register(1) },
    ]);
    change.add_rule("prerouting", &mapped).add_rule("output", &mapped);

    let from_pool = within(Field::IPV4_SOURCE, policy.pool);
    let masquerade = |change: &mut Transaction, mut rule: Vec<Expression>, when: Vec<Expression>| {
        rule.extend(when);
        rule.push(Expression::Masquerade);
        change.add_rule("postrouting", &rule);
    };
    let loopback = within(Field::IPV4_SOURCE, Network::new(Ipv4Addr::LOCALHOST, 8));
    masquerade(change, loopback, link(MetaKey::OutputLinkName, Comparison::Equal, policy));
    masquerade(change, from_pool.clone(), link(MetaKey::OutputLinkName, Comparison::NotEqual, policy));
    // A container that calls its own mapped port would not take the answer from itself.
    masquerade(change, from_pool, destination_translated());
}

fn forward(change: &mut Transaction, policy: &Policy) {
    change.add_chain(FROM_CONTAINER);
    change.add_rule(FROM_CONTAINER, &then(established(), accept()));
    for server in &policy.dns_servers {
        for transport in [transport_number::UDP, transport_number::TCP] {
            let mut rule = within(Field::IPV4_DESTINATION, Network::new(*server, 32));
            rule.extend(protocol(transport));
            rule.extend(port(DNS_PORT));
            change.add_rule(FROM_CONTAINER, &then(rule, accept()));
        }
    }
    let source = Expression::Payload { field: Field::IPV4_SOURCE, to: Register::FIRST };
    change
        .add_rule(FROM_CONTAINER, &[source, Expression::Decide { map: EGRESS.into(), key: Register::FIRST }]);
    let prohibited = Expression::Reject { code: Expression::REJECT_ADMIN_PROHIBITED };
    for network in &policy.deny_networks {
        change.add_rule(FROM_CONTAINER, &then(within(Field::IPV4_DESTINATION, *network), prohibited.clone()));
    }
    change.add_rule(FROM_CONTAINER, &then(destination_translated(), accept()));
    change.add_rule(FROM_CONTAINER, &then(within(Field::IPV4_DESTINATION, policy.pool), prohibited));
    change.add_rule(FROM_CONTAINER, &[accept()]);

    change.add_base_chain("forward", ChainKind::Filter, Hook::Forward, PRIORITY_FILTER);
    let to_our_links = || link(MetaKey::OutputLinkName, Comparison::Equal, policy);
    let jump = Expression::Verdict(Verdict::Jump(FROM_CONTAINER.into()));
    change.add_rule("forward", &then(from_our_links(policy), jump));
    change.add_rule("forward", &then([to_our_links(), established()].concat(), accept()));
    change.add_rule("forward", &then([to_our_links(), destination_translated()].concat(), accept()));
    change.add_rule("forward", &then(to_our_links(), drop_it()));
}

fn input(change: &mut Transaction, policy: &Policy) {
    change.add_base_chain("input", ChainKind::Filter, Hook::Input, PRIORITY_FILTER);
    if policy.allow_host_access {
        return;
    }
    change.add_rule("input", &then([from_our_links(policy), established()].concat(), accept()));
    if policy.host_answers_dns {
        for transport in [transport_number::UDP, transport_number::TCP] {
            let rule = [
                from_our_links(policy),
                within(Field::IPV4_DESTINATION, policy.pool),
                protocol(transport),
                port(DNS_PORT),
            ];
            change.add_rule("input", &then(rule.concat(), accept()));
        }
    }
    let prohibited = Expression::Reject { code: Expression::REJECT_HOST_PROHIBITED };
    change.add_rule("input", &then(from_our_links(policy), prohibited));
}

/// What one container adds to the table.
pub fn attached(table: &str, handle: &str, connection: &Connection) -> Result<Transaction, InvalidRule> {
    let mut change = Transaction::new(table);
    attach(&mut change, handle, connection)?;
    Ok(change)
}

/// The same as a part of a larger change, which is as it was when this is refused.
pub fn attach(change: &mut Transaction, handle: &str, connection: &Connection) -> Result<(), InvalidRule> {
    let rules = egress(handle, &connection.net_out)?;
    let chain = chain(connection);
    change.add_chain(&chain).flush_chain(&chain);
    for rule in rules {
        change.add_rule(&chain, &rule);
    }
    for (set, element) in elements(connection) {
        change.add_element(set, &element);
    }
    Ok(())
}

/// Takes it all away again, for several at once; what is not there is no harm.
pub fn detached(table: &str, connections: &[Connection]) -> Transaction {
    let mut change = Transaction::new(table);
    for connection in connections {
        let chain = chain(connection);
        change.add_chain(&chain);
        for (set, element) in elements(connection) {
            change.add_element(set, &element).delete_element(set, &element);
        }
        change.flush_chain(&chain).delete_chain(&chain);
    }
    change
}

pub fn port_mapped(table: &str, connection: &Connection, port: MappedPort) -> Transaction {
    let mut change = Transaction::new(table);
    change.add_element(PORTS, &port_element(connection, port));
    change
}

pub fn port_unmapped(table: &str, connection: &Connection, port: MappedPort) -> Transaction {
    let mut change = Transaction::new(table);
    change.delete_element(PORTS, &port_element(connection, port));
    change
}

/// More rules for a running container.
pub fn opened(
    table: &str,
    handle: &str,
    connection: &Connection,
    rules: &[NetOutRule],
) -> Result<Transaction, InvalidRule> {
    let mut change = Transaction::new(table);
    for rule in egress(handle, rules)? {
        change.add_rule(&chain(connection), &rule);
    }
    Ok(change)
}

/// The one with its egress rules.
pub fn chain(connection: &Connection) -> String {
    format!("egress-{}", connection.container_ip)
}

/// What of the sets is a container's.
pub fn elements(connection: &Connection) -> Vec<(&'static str, Element)> {
    let address = connection.container_ip.octets();
    let mut source = connection.host_link.clone().into_bytes();
    source.resize(LINK_NAME_BYTES, 0);
    source.extend(address);
    let jump = Value::Verdict(Verdict::Jump(chain(connection)));
    let ports = connection.mapped_ports.iter().map(|port| (PORTS, port_element(connection, *port)));
    let fixed = [
        (SOURCES, Element { key: source, value: Value::Nothing }),
        (EGRESS, Element { key: address.to_vec(), value: jump }),
    ];
    fixed.into_iter().chain(ports).collect()
}

fn port_element(connection: &Connection, port: MappedPort) -> Element {
    let mut value = connection.container_ip.octets().to_vec();
    value.extend((port.container_port as u16).to_be_bytes());
    value.extend([0, 0]);
    Element { key: (port.host_port as u16).to_be_bytes().to_vec(), value: Value::Bytes(value) }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRule {
    #[error("invalid protocol: {0}")]
    Protocol(u8),
    #[error("Ports cannot be specified for Protocol {0}")]
    Ports(&'static str),
}

/// Every rule of a container's egress chain. Ranges of one rule are alternatives: each network with each port.
fn egress(handle: &str, rules: &[NetOutRule]) -> Result<Vec<Vec<Expression>>, InvalidRule> {
    let mut all = Vec::new();
    for rule in rules {
        let transport = transport(rule)?;
        let networks = if rule.networks.is_empty() {
            vec![vec![]]
        } else {
            rule.networks.iter().filter_map(addresses).collect()
        };
        let ports =
            if rule.ports.is_empty() { vec![vec![]] } else { rule.ports.iter().map(port_range).collect() };
        for network in &networks {
            for port in &ports {
                let mut expressions = [transport.clone(), network.clone(), port.clone()].concat();
                if rule.log {
                    let prefix: String =
                        handle.chars().take(LOG_PREFIX_BYTES_MAX).filter(char::is_ascii).collect();
                    expressions.push(Expression::Log { prefix: prefix + " " });
                }
                expressions.push(accept());
                all.push(expressions);
            }
        }
    }
    Ok(all)
}

fn transport(rule: &NetOutRule) -> Result<Vec<Expression>, InvalidRule> {
    let (name, mut expressions) = match rule.protocol {
        0 => ("ALL", vec![]),
        1 => ("TCP", protocol(transport_number::TCP)),
        2 => ("UDP", protocol(transport_number::UDP)),
        3 => ("ICMP", protocol(transport_number::ICMP)),
        // The table is of IPv4 alone: such a rule allows nothing that could leave.
        4 => ("ICMPV6", protocol(transport_number::ICMPV6)),
        other => return Err(InvalidRule::Protocol(other)),
    };
    if !rule.ports.is_empty() && !matches!(rule.protocol, 1 | 2) {
        return Err(InvalidRule::Ports(name));
    }
    if let (3, Some(icmp)) = (rule.protocol, &rule.icmps) {
        const ANY_TYPE: u8 = 255;
        if icmp.kind != ANY_TYPE {
            expressions.extend(one(Field::ICMP_TYPE, Comparison::Equal, &[icmp.kind]));
        }
        if let Some(code) = icmp.code.filter(|code| *code != u8::MAX) {
            expressions.extend(one(Field::ICMP_CODE, Comparison::Equal, &[code]));
        }
    }
    Ok(expressions)
}

/// `None` for a range that is not of IPv4, which allows nothing here.
fn addresses(range: &IpRange) -> Option<Vec<Expression>> {
    let start = range.start.or(range.end);
    let end = range.end.or(range.start);
    match (start.map(|address| address.to_canonical()), end.map(|address| address.to_canonical())) {
        (Some(IpAddr::V4(start)), Some(IpAddr::V4(end))) => {
            let at_least = one(Field::IPV4_DESTINATION, Comparison::AtLeast, &start.octets());
            Some([at_least, one(Field::IPV4_DESTINATION, Comparison::AtMost, &end.octets())].concat())
        }
        (None, None) => Some(vec![]),
        _ => None,
    }
}

fn port_range(range: &PortRange) -> Vec<Expression> {
    let end = if range.end == 0 { range.start } else { range.end };
    let at_least = one(Field::DESTINATION_PORT, Comparison::AtLeast, &range.start.to_be_bytes());
    [at_least, one(Field::DESTINATION_PORT, Comparison::AtMost, &end.to_be_bytes())].concat()
}

/// Numbers of transport protocols in an IPv4 header.
mod transport_number {
    pub const ICMP: u8 = 1;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const ICMPV6: u8 = 58;
}

fn then(mut conditions: Vec<Expression>, last: Expression) -> Vec<Expression> {
    conditions.push(last);
    conditions
}

fn accept() -> Expression {
    Expression::Verdict(Verdict::Accept)
}

fn drop_it() -> Expression {
    Expression::Verdict(Verdict::Drop)
}

fn one(field: Field, comparison: Comparison, value: &[u8]) -> Vec<Expression> {
    let load = Expression::Payload { field, to: Register::FIRST };
    vec![load, Expression::compare(Register::FIRST, comparison, value)]
}

fn port(number: u16) -> Vec<Expression> {
    one(Field::DESTINATION_PORT, Comparison::Equal, &number.to_be_bytes())
}

fn protocol(number: u8) -> Vec<Expression> {
    let load = Expression::Meta { key: MetaKey::TransportProtocol, to: Register::FIRST };
    vec![load, Expression::compare(Register::FIRST, Comparison::Equal, &[number])]
}

fn within(field: Field, network: Network) -> Vec<Expression> {
    if network.prefix_bits == 0 {
        return vec![];
    }
    let load = Expression::Payload { field, to: Register::FIRST };
    let mask = Expression::mask(Register::FIRST, network.prefix_bits);
    vec![load, mask, Expression::compare(Register::FIRST, Comparison::Equal, &network.address.octets())]
}

/// Compared over the bytes of the prefix alone.
fn link(key: MetaKey, comparison: Comparison, policy: &Policy) -> Vec<Expression> {
    let load = Expression::Meta { key, to: Register::FIRST };
    vec![load, Expression::compare(Register::FIRST, comparison, policy.link_prefix.as_bytes())]
}

fn from_our_links(policy: &Policy) -> Vec<Expression> {
    link(MetaKey::InputLinkName, Comparison::Equal, policy)
}

fn established() -> Vec<Expression> {
    bits(ConntrackKey::State, Expression::STATE_ESTABLISHED | Expression::STATE_RELATED)
}

fn destination_translated() -> Vec<Expression> {
    bits(ConntrackKey::Status, Expression::STATUS_DESTINATION_NAT)
}

/// Any of the bits is set. The kernel holds them in this machine's byte order.
fn bits(key: ConntrackKey, bits: u32) -> Vec<Expression> {
    vec![
        Expression::Conntrack { key, to: Register::FIRST },
        Expression::Mask { register: Register::FIRST, mask: bits.to_ne_bytes() },
        Expression::compare(Register::FIRST, Comparison::NotEqual, &[0; 4]),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(json: &str) -> Result<usize, InvalidRule> {
        let rules: Vec<NetOutRule> = serde_json::from_str(json).unwrap();
        egress("handle", &rules).map(|rules| rules.len())
    }

    #[test]
    fn each_network_goes_with_each_port() {
        assert_eq!(rules("[]"), Ok(0));
        assert_eq!(rules("[{}]"), Ok(1));
        let two_by_two = r#"[{"protocol":1,
            "networks":[{"start":"1.2.3.4"},{"start":"10.0.0.0","end":"10.0.0.9"}],
            "ports":[{"start":80,"end":90},{"start":443,"end":443}]}]"#;
        assert_eq!(rules(two_by_two), Ok(4));
        assert_eq!(rules(r#"[{"protocol":3,"icmps":{"type":8,"code":0}}]"#), Ok(1));
    }

    #[test]
    fn a_rule_of_ipv6_alone_opens_nothing() {
        assert_eq!(rules(r#"[{"networks":[{"start":"2001:db8::1"}]}]"#), Ok(0));
        assert_eq!(rules(r#"[{"networks":[{"start":"::ffff:1.2.3.4"}]}]"#), Ok(1));
    }

    #[test]
    fn nonsense_is_refused() {
        assert_eq!(rules(r#"[{"protocol":9}]"#), Err(InvalidRule::Protocol(9)));
        let ports = rules(r#"[{"protocol":3,"ports":[{"start":80}]}]"#);
        assert_eq!(ports.unwrap_err().to_string(), "Ports cannot be specified for Protocol ICMP");
    }

    #[test]
    fn everything_a_container_adds_is_known_from_its_record() {
        let mut connection = Connection::new("10.254.0.0/18".parse().unwrap(), None, 0, "diego-");
        connection.mapped_ports.push(MappedPort { host_port: 61001, container_port: 8080 });
        let sets: Vec<_> = elements(&connection).into_iter().map(|(set, _)| set).collect();
        assert_eq!(sets, [SOURCES, EGRESS, PORTS]);
        let (_, port) = elements(&connection).pop().unwrap();
        assert_eq!(port.key, [0xee, 0x49]);
        assert_eq!(port.value, Value::Bytes(vec![10, 254, 0, 2, 0x1f, 0x90, 0, 0]));
    }
}
