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
//!
//! Where containers have IPv6 there is a second table of the same name for it, with the same chains over the other
//! addresses; both change in one step. What is only there: neighbours may always find one another.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use garden_client::MappedPort;
use garden_sys::nftables::{
    ChainKind, Changed, Comparison, ConntrackKey, DataType, Element, Expression, Family, Field, Hook,
    MapData, MetaKey, Register, Transaction, Value, Verdict,
};

use serde::{Deserialize, Serialize};

use super::address::{AnyNetwork, Network};
use super::egress::{self, Egress, InvalidRule};
use super::plan::Connection;

pub const PORTS: &str = "ports";
pub const SOURCES: &str = "sources";
pub const EGRESS: &str = "egress";
/// Addresses that specs have chosen, outside of the pool.
pub const CHOSEN: &str = "chosen";
const OWN_PREFIX: &str = "egress-";
const FROM_CONTAINER: &str = "from_container";
const LINK_NAME_BYTES: usize = 16;
const REGISTER_BYTES: u32 = 4;
pub const DNS_PORT: u16 = 53;
/// What readers of these log lines know from iptables, whose prefixes end here.
const LOG_PREFIX_BYTES_MAX: usize = 28;
/// Of one container: what it sends more is let through unlogged.
const LOG_LINES_PER_SECOND_MAX: u32 = 100;

const PRIORITY_RAW: i32 = -300;
const PRIORITY_DESTINATION_NAT: i32 = -100;
const PRIORITY_FILTER: i32 = 0;
const PRIORITY_SOURCE_NAT: i32 = 100;

pub const LOOPBACK: Network = Network::new(Ipv4Addr::LOCALHOST, 8);
const LINK_LOCAL_V6: Network<Ipv6Addr> = Network::new_v6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10);
const LOOPBACK_V6: Network<Ipv6Addr> = Network::new_v6(Ipv6Addr::LOCALHOST, 128);
/// Of ICMPv6: who has an address, and who says that it has. (What routers say is not among them.)
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;

/// What the operator has decided for all containers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Policy {
    pub pool: Network,
    #[serde(default)]
    pub pool_v6: Option<Network<Ipv6Addr>>,
    pub link_prefix: String,
    pub deny_networks: Vec<AnyNetwork>,
    pub allow_host_access: bool,
    /// Reachable by every container on port 53, whatever else is denied.
    pub dns_servers: Vec<IpAddr>,
    /// The host's side of a container's link answers DNS.
    pub host_answers_dns: bool,
}

impl Policy {
    /// Of a family that containers have.
    pub fn pool_of(&self, family: Family) -> Option<AnyNetwork> {
        match family {
            Family::Ipv4 => Some(self.pool.into()),
            Family::Ipv6 => self.pool_v6.map(AnyNetwork::V6),
        }
    }

    pub fn families(&self) -> impl Iterator<Item = Family> {
        Family::ALL.into_iter().filter(|family| self.pool_of(*family).is_some())
    }
}

/// One family's table, as the policy wants it.
struct Half<'a> {
    policy: &'a Policy,
    family: Family,
    pool: AnyNetwork,
    source: Field,
    destination: Field,
}

/// Makes the table anew, whatever was there.
pub fn base(table: &str, policy: &Policy, changed: Changed) -> Transaction {
    let mut change = Transaction::new(table);
    for family in policy.families() {
        let Some(pool) = policy.pool_of(family) else { continue };
        let (source, destination) = (Field::source(family), Field::destination(family));
        let half = Half { policy, family, pool, source, destination };
        change.turn_to(family).add_table(Changed::ByAnybody).delete_table().add_table(changed);
        change.add_set(PORTS, &[DataType::Port], MapData::Values(&[family.address(), DataType::Port]));
        change.add_set(SOURCES, &[DataType::LinkName, family.address()], MapData::Nothing);
        change.add_set(EGRESS, &[family.address()], MapData::Verdict);
        change.add_set(CHOSEN, &[family.address()], MapData::Nothing);
        guard(&mut change, &half);
        address_translation(&mut change, &half);
        forward(&mut change, &half);
        input(&mut change, &half);
    }
    change
}

/// Whatever was there of these families, nothing is.
pub fn removed(table: &str, families: impl IntoIterator<Item = Family>) -> Transaction {
    let mut change = Transaction::new(table);
    for family in families {
        change.turn_to(family).add_table(Changed::ByAnybody).delete_table();
    }
    change
}

fn guard(change: &mut Transaction, half: &Half<'_>) {
    change.add_base_chain("guard", ChainKind::Filter, Hook::Prerouting, PRIORITY_RAW);
    let from_our_links = || from_our_links(half.policy);
    if half.family == Family::Ipv6 {
        let link_local = within(half.source, LINK_LOCAL_V6.into());
        let rule = [from_our_links(), link_local, of_neighbours()].concat();
        change.add_rule("guard", &then(rule, accept()));
    }
    let address = Register(4);
    let mut spoofed = from_our_links();
    spoofed.extend([
        Expression::Meta { key: MetaKey::InputLinkName, to: Register::FIRST },
        Expression::Payload { field: half.source, to: address },
        Expression::Contains { set: SOURCES.into(), key: Register::FIRST, inverted: true },
        drop_it(),
    ]);
    change.add_rule("guard", &spoofed);
    // Links of containers accept these so that mapped ports answer on them; nothing else may come of it.
    let to_loopback = [from_our_links(), within(half.destination, half.loopback())].concat();
    change.add_rule("guard", &then(to_loopback, drop_it()));
}

fn address_translation(change: &mut Transaction, half: &Half<'_>) {
    change.add_base_chain("prerouting", ChainKind::Nat, Hook::Prerouting, PRIORITY_DESTINATION_NAT);
    change.add_base_chain("output", ChainKind::Nat, Hook::Output, PRIORITY_DESTINATION_NAT);
    change.add_base_chain("postrouting", ChainKind::Nat, Hook::Postrouting, PRIORITY_SOURCE_NAT);
    let mapped = mapped_ports(half);
    change.add_rule("prerouting", &mapped).add_rule("output", &mapped);

    let masquerade = |change: &mut Transaction, mut rule: Vec<Expression>, when: Vec<Expression>| {
        rule.extend(when);
        rule.push(Expression::Masquerade);
        change.add_rule("postrouting", &rule);
    };
    let from_loopback = within(half.source, half.loopback());
    masquerade(change, from_loopback, link(MetaKey::OutputLinkName, Comparison::Equal, half.policy));
    for from_container in half.of_containers(half.source) {
        let leaving = link(MetaKey::OutputLinkName, Comparison::NotEqual, half.policy);
        masquerade(change, from_container.clone(), leaving);
        // A container that calls its own mapped port would not take the answer from itself.
        masquerade(change, from_container, destination_translated());
    }
}

fn mapped_ports(half: &Half<'_>) -> Vec<Expression> {
    let mut rule = protocol(transport_number::TCP);
    if half.family == Family::Ipv6 {
        // Their answers could not come back.
        rule.extend(outside(half.destination, LINK_LOCAL_V6.into()));
    }
    let port = Register(half.family.address_bytes() / REGISTER_BYTES);
    rule.extend([
        Expression::DestinationKind { to: Register::FIRST },
        Expression::compare(Register::FIRST, Comparison::Equal, &Expression::KIND_LOCAL.to_ne_bytes()),
        Expression::Payload { field: Field::DESTINATION_PORT, to: Register::FIRST },
        Expression::Find { map: PORTS.into(), key: Register::FIRST, to: Register::FIRST },
        Expression::DestinationNat { family: half.family, address: Register::FIRST, port },
    ]);
    rule
}

fn forward(change: &mut Transaction, half: &Half<'_>) {
    let policy = half.policy;
    change.add_chain(FROM_CONTAINER);
    change.add_rule(FROM_CONTAINER, &then(established(), accept()));
    for server in policy.dns_servers.iter().filter(|server| family_of(**server) == half.family) {
        for transport in [transport_number::UDP, transport_number::TCP] {
            let mut rule = within(half.destination, AnyNetwork::single(*server));
            rule.extend(protocol(transport));
            rule.extend(port(DNS_PORT));
            change.add_rule(FROM_CONTAINER, &then(rule, accept()));
        }
    }
    let source = Expression::Payload { field: half.source, to: Register::FIRST };
    change
        .add_rule(FROM_CONTAINER, &[source, Expression::Decide { map: EGRESS.into(), key: Register::FIRST }]);
    let prohibited = Expression::Reject { code: half.prohibited(Expression::REJECT_ADMIN_PROHIBITED) };
    let v6 = half.family == Family::Ipv6;
    for network in policy.deny_networks.iter().filter(|network| network.is_ipv6() == v6) {
        change.add_rule(FROM_CONTAINER, &then(within(half.destination, *network), prohibited.clone()));
    }
    change.add_rule(FROM_CONTAINER, &then(destination_translated(), accept()));
    for to_container in half.of_containers(half.destination) {
        change.add_rule(FROM_CONTAINER, &then(to_container, prohibited.clone()));
    }
    change.add_rule(FROM_CONTAINER, &[accept()]);

    change.add_base_chain("forward", ChainKind::Filter, Hook::Forward, PRIORITY_FILTER);
    let to_our_links = || link(MetaKey::OutputLinkName, Comparison::Equal, policy);
    let jump = Expression::Verdict(Verdict::Jump(FROM_CONTAINER.into()));
    change.add_rule("forward", &then(from_our_links(policy), jump));
    change.add_rule("forward", &then([to_our_links(), established()].concat(), accept()));
    change.add_rule("forward", &then([to_our_links(), destination_translated()].concat(), accept()));
    change.add_rule("forward", &then(to_our_links(), drop_it()));
}

fn input(change: &mut Transaction, half: &Half<'_>) {
    let policy = half.policy;
    change.add_base_chain("input", ChainKind::Filter, Hook::Input, PRIORITY_FILTER);
    if policy.allow_host_access {
        return;
    }
    if half.family == Family::Ipv6 {
        change.add_rule("input", &then([from_our_links(policy), of_neighbours()].concat(), accept()));
    }
    change.add_rule("input", &then([from_our_links(policy), established()].concat(), accept()));
    if policy.host_answers_dns {
        for transport in [transport_number::UDP, transport_number::TCP] {
            // Of networks that were chosen it is not known which of the host's addresses is on their links.
            let to_pool = within(half.destination, half.pool);
            let from_chosen = half.of_containers(half.source).into_iter().skip(1);
            for to_host in std::iter::once(to_pool).chain(from_chosen) {
                let rule = [from_our_links(policy), to_host, protocol(transport), port(DNS_PORT)];
                change.add_rule("input", &then(rule.concat(), accept()));
            }
        }
    }
    let prohibited = Expression::Reject { code: half.prohibited(Expression::REJECT_HOST_PROHIBITED) };
    change.add_rule("input", &then(from_our_links(policy), prohibited));
}

impl Half<'_> {
    /// Of the pool, or chosen; specs choose of IPv4 only.
    fn of_containers(&self, field: Field) -> Vec<Vec<Expression>> {
        let chosen = vec![
            Expression::Payload { field, to: Register::FIRST },
            Expression::Contains { set: CHOSEN.into(), key: Register::FIRST, inverted: false },
        ];
        let ways = [Some(within(field, self.pool)), (self.family == Family::Ipv4).then_some(chosen)];
        ways.into_iter().flatten().collect()
    }

    fn loopback(&self) -> AnyNetwork {
        if self.family == Family::Ipv4 { LOOPBACK.into() } else { LOOPBACK_V6.into() }
    }

    fn prohibited(&self, of_ipv4: u8) -> u8 {
        if self.family == Family::Ipv4 { of_ipv4 } else { Expression::REJECT_PROHIBITED_V6 }
    }
}

/// What can be there before a container is, of the place that waits for it: with the place's own rules nothing passes. The kernel
/// looks through all chains at each of these, which is why it is done ahead.
pub fn prepared(table: &str, connection: &Connection) -> Transaction {
    let mut change = Transaction::new(table);
    prepare(&mut change, connection);
    change
}

/// In the place of what it had.
fn prepare(change: &mut Transaction, connection: &Connection) {
    let own = own(connection);
    for (family, address) in addresses(connection) {
        change.turn_to(family).add_chain(&own).flush_chain(&own);
        egress::add_set(change, family, &own);
        change.flush_set(&own);
        change.add_rule(&own, &egress::rule_of_set(family, &own));
        change.add_elements(EGRESS, &[jump(connection, address)]);
    }
}

/// What one container adds to what was prepared for it.
pub fn opened(table: &str, handle: &str, connection: &Connection) -> Result<Transaction, InvalidRule> {
    let mut change = Transaction::new(table);
    open(&mut change, handle, connection, &allowed(connection)?);
    Ok(change)
}

fn open(change: &mut Transaction, handle: &str, connection: &Connection, allowed: &[Allowed]) {
    let (own, logged) = (own(connection), logged_chain(connection));
    for Allowed { family, address, egress } in allowed {
        change.turn_to(*family);
        if egress.logs() {
            let prefix: String = handle.chars().take(LOG_PREFIX_BYTES_MAX).filter(char::is_ascii).collect();
            let line = Expression::Log { prefix: prefix + " " };
            let limit = Expression::Limit { packets_per_second: LOG_LINES_PER_SECOND_MAX };
            change.add_chain(&logged).flush_chain(&logged);
            change.add_rule(&logged, &[limit, Expression::Count, line]).add_rule(&logged, &[accept()]);
        }
        change.add_elements(&own, &egress.elements());
        egress.add_rest(change, &own, &logged);
        for (set, element) in elements(connection, *address) {
            change.add_elements(set, &[element]);
        }
    }
}

/// All of a container, prepared or not.
pub fn attached(table: &str, handle: &str, connection: &Connection) -> Result<Transaction, InvalidRule> {
    let mut change = Transaction::new(table);
    attach(&mut change, handle, connection)?;
    Ok(change)
}

/// The same as a part of a larger change, which is as it was when this is refused.
pub fn attach(change: &mut Transaction, handle: &str, connection: &Connection) -> Result<(), InvalidRule> {
    let allowed = allowed(connection)?;
    prepare(change, connection);
    open(change, handle, connection, &allowed);
    Ok(())
}

/// Takes it all away again, for several at once; what is not there is no harm.
pub fn detached(table: &str, connections: &[Connection]) -> Transaction {
    let mut change = Transaction::new(table);
    for connection in connections {
        let (own, logged) = (own(connection), logged_chain(connection));
        for (family, address) in addresses(connection) {
            change.turn_to(family).add_chain(&own);
            let jump = (EGRESS, jump(connection, address));
            for (set, element) in elements(connection, address).into_iter().chain([jump]) {
                let element = [element];
                change.add_elements(set, &element).delete_elements(set, &element);
            }
            change.flush_chain(&own).delete_chain(&own);
            egress::add_set(&mut change, family, &own);
            change.delete_set(&own);
            change.add_chain(&logged).flush_chain(&logged).delete_chain(&logged);
        }
    }
    change
}

pub fn port_mapped(table: &str, connection: &Connection, port: MappedPort) -> Transaction {
    let mut change = Transaction::new(table);
    for (family, address) in addresses(connection) {
        change.turn_to(family).add_elements(PORTS, &[port_element(address, port)]);
    }
    change
}

pub fn port_unmapped(table: &str, connection: &Connection, port: MappedPort) -> Transaction {
    let mut change = Transaction::new(table);
    for (family, address) in addresses(connection) {
        change.turn_to(family).delete_elements(PORTS, &[port_element(address, port)]);
    }
    change
}

/// The name of the chain with its egress rules, and of the set that is most of them; in both tables.
pub fn own(connection: &Connection) -> String {
    format!("{OWN_PREFIX}{}", connection.container_ip)
}

pub fn is_own(chain: &str) -> bool {
    chain.starts_with(OWN_PREFIX)
}

/// The addresses that a container has.
pub fn addresses(connection: &Connection) -> impl Iterator<Item = (Family, IpAddr)> {
    let v6 = connection.container_ipv6().map(IpAddr::V6);
    [connection.container_ip.into()].into_iter().chain(v6).map(|address| (family_of(address), address))
}

fn family_of(address: IpAddr) -> Family {
    if address.is_ipv4() { Family::Ipv4 } else { Family::Ipv6 }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().into(),
        IpAddr::V6(address) => address.octets().into(),
    }
}

/// What a container may send by one of its addresses.
pub struct Allowed {
    pub family: Family,
    address: IpAddr,
    egress: Egress,
}

pub fn allowed(connection: &Connection) -> Result<Vec<Allowed>, InvalidRule> {
    let of = |(family, address)| {
        Ok(Allowed { family, address, egress: Egress::new(family, &connection.net_out)? })
    };
    addresses(connection).map(of).collect()
}

impl Allowed {
    /// Keys of the container's own set, each with its end.
    pub fn keys(&self) -> BTreeSet<Vec<u8>> {
        let elements = self.egress.elements().into_iter();
        elements.map(|element| [element.key, element.key_end.unwrap_or_default()].concat()).collect()
    }
}

/// What packets go through that a rule lets out and wants logged.
fn logged_chain(connection: &Connection) -> String {
    format!("logged-{}", connection.container_ip)
}

/// To the container's chain.
pub fn jump(connection: &Connection, address: IpAddr) -> Element {
    Element::new(octets(address), Value::Verdict(Verdict::Jump(own(connection))))
}

/// What a container that is connected has in sets of all containers, for one of its addresses. Without these nothing that it
/// sends passes.
pub fn elements(connection: &Connection, address: IpAddr) -> Vec<(&'static str, Element)> {
    let mut source = connection.host_link.clone().into_bytes();
    source.resize(LINK_NAME_BYTES, 0);
    source.extend(octets(address));
    let ports = connection.mapped_ports.iter().map(|port| (PORTS, port_element(address, *port)));
    let chosen = (address.is_ipv4() && connection.chosen.is_some())
        .then(|| (CHOSEN, Element::new(octets(address), Value::Nothing)));
    [(SOURCES, Element::new(source, Value::Nothing))].into_iter().chain(chosen).chain(ports).collect()
}

fn port_element(address: IpAddr, port: MappedPort) -> Element {
    let mut value = octets(address);
    value.extend((port.container_port as u16).to_be_bytes());
    value.extend([0, 0]);
    Element::new((port.host_port as u16).to_be_bytes().to_vec(), Value::Bytes(value))
}

/// Numbers of transport protocols in a packet's header.
pub mod transport_number {
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

fn within(field: Field, network: AnyNetwork) -> Vec<Expression> {
    if network.prefix_bits() == 0 {
        return vec![];
    }
    compared(field, network, Comparison::Equal)
}

fn outside(field: Field, network: AnyNetwork) -> Vec<Expression> {
    compared(field, network, Comparison::NotEqual)
}

fn compared(field: Field, network: AnyNetwork, comparison: Comparison) -> Vec<Expression> {
    let address = network.address();
    let load = Expression::Payload { field, to: Register::FIRST };
    let mask = Expression::mask(Register::FIRST, family_of(address), network.prefix_bits());
    vec![load, mask, Expression::compare(Register::FIRST, comparison, &octets(address))]
}

/// By which they find one another.
fn of_neighbours() -> Vec<Expression> {
    let load = Expression::Payload { field: Field::ICMP_TYPE, to: Register::FIRST };
    let end = |comparison, kind| Expression::compare(Register::FIRST, comparison, &[kind]);
    let mut conditions = protocol(transport_number::ICMPV6);
    conditions.extend([
        load,
        end(Comparison::AtLeast, NEIGHBOUR_SOLICITATION),
        end(Comparison::AtMost, NEIGHBOUR_ADVERTISEMENT),
    ]);
    conditions
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
        Expression::Mask { register: Register::FIRST, mask: bits.to_ne_bytes().into() },
        Expression::compare(Register::FIRST, Comparison::NotEqual, &[0; 4]),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_a_container_adds_is_known_from_its_record() {
        let pool = "10.254.0.0/18".parse().unwrap();
        let mut connection = Connection::new(pool, None, 0, "diego-");
        connection.mapped_ports.push(MappedPort { host_port: 61001, container_port: 8080 });
        let elements = || elements(&connection, connection.container_ip.into());
        let sets: Vec<_> = elements().into_iter().map(|(set, _)| set).collect();
        assert_eq!(sets, [SOURCES, PORTS]);
        let (_, port) = elements().pop().unwrap();
        assert_eq!(port.key, [0xee, 0x49]);
        assert_eq!(port.value, Value::Bytes(vec![10, 254, 0, 2, 0x1f, 0x90, 0, 0]));
    }
}
