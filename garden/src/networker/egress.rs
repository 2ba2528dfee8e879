//! A container's egress rules as few rules of the firewall, however many they are: the kernel looks through the rules of
//! all containers at each change of one, but not through what is in sets. Pure.
//!
//! Every rule asked for is some regions of all packets there are: each of its networks with each of its ranges of ports.
//! The kernel's sets take ranges of addresses, protocols and ports together, but no two that overlap; so regions are laid in
//! layers, within each of which none overlap. The first layer is the elements of a set that each container has from the
//! beginning: to add to a set costs the same however many containers there are. Hardly anybody needs another layer, or wants
//! something logged; that takes rules.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use garden_client::{IpRange, NetOutRule, PortRange};
use garden_sys::nftables::{
    Comparison, DataType, Element, Expression, Family, Field, MetaKey, Register, Transaction, Verdict,
};

use super::rules::transport_number;

/// Of another layer with no more regions each gets a rule: a set costs the kernel some 15 KiB.
const COMPARED_MAX: usize = 4;
const REGISTER_BYTES: u32 = 4;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRule {
    #[error("invalid protocol: {0}")]
    Protocol(u8),
    #[error("Ports cannot be specified for Protocol {0}")]
    Ports(&'static str),
    #[error("invalid network range: {0}-{1}")]
    Network(IpAddr, IpAddr),
    #[error("invalid port range: {0}-{1}")]
    PortRange(u16, u16),
}

type Range = RangeInclusive<u128>;

/// What packets are told apart by, as places in a [`Region`].
const PROTOCOL: usize = 0;
const ADDRESS: usize = 1;
const PORT: usize = 2;
/// These two share their bytes with ports. They are compared, and not in sets: hardly a rule has them.
const ICMP_TYPE: usize = 3;
const ICMP_CODE: usize = 4;
const PARTS: usize = 5;

/// Of the first parts, as they are in sets.
fn key(family: Family) -> [DataType; 3] {
    [DataType::TransportProtocol, family.address(), DataType::Port]
}

fn bytes(family: Family, part: usize) -> u32 {
    [1, family.address_bytes(), 2, 1, 1][part]
}

fn everything(family: Family, part: usize) -> Range {
    0..=u128::MAX >> (u128::BITS - u8::BITS * bytes(family, part))
}

fn load(family: Family, part: usize, to: Register) -> Expression {
    let field = match part {
        PROTOCOL => return Expression::Meta { key: MetaKey::TransportProtocol, to },
        ADDRESS => Field::destination(family),
        PORT => Field::DESTINATION_PORT,
        ICMP_TYPE => Field::ICMP_TYPE,
        _ => Field::ICMP_CODE,
    };
    Expression::Payload { field, to }
}

/// The packets that are in all of these ranges.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Region([Range; PARTS]);

impl Region {
    fn all(family: Family) -> Self {
        Self(std::array::from_fn(|part| everything(family, part)))
    }

    fn with(&self, part: usize, range: Range) -> Self {
        let mut region = self.clone();
        region.0[part] = range;
        region
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.0.iter().zip(&other.0).all(|(a, b)| a.start() <= b.end() && b.start() <= a.end())
    }

    fn contains(&self, other: &Self) -> bool {
        self.0.iter().zip(&other.0).all(|(a, b)| a.start() <= b.start() && b.end() <= a.end())
    }

    /// Whether a set's key says all of it.
    fn fits_key(&self, family: Family) -> bool {
        [ICMP_TYPE, ICMP_CODE].iter().all(|part| self.0[*part] == everything(family, *part))
    }

    /// By comparisons of what is not all there is.
    fn conditions(&self, family: Family) -> Vec<Expression> {
        let mut conditions = Vec::new();
        for (part, range) in self.0.iter().enumerate() {
            let mut compare = |comparison, value: &u128| {
                let value = &value.to_be_bytes()[size_of::<u128>() - bytes(family, part) as usize..];
                conditions.push(load(family, part, Register::FIRST));
                conditions.push(Expression::compare(Register::FIRST, comparison, value));
            };
            if range.start() == range.end() {
                compare(Comparison::Equal, range.start());
                continue;
            }
            if range.start() != everything(family, part).start() {
                compare(Comparison::AtLeast, range.start());
            }
            if range.end() != everything(family, part).end() {
                compare(Comparison::AtMost, range.end());
            }
        }
        conditions
    }
}

/// Regions of which no two have a packet in common.
#[derive(Debug, PartialEq, Eq)]
struct Layer {
    log: bool,
    regions: Vec<Region>,
}

/// In an order in which the first that has a packet says about it what the first rule does that allows it.
#[derive(Debug, PartialEq, Eq)]
pub struct Egress {
    family: Family,
    layers: Vec<Layer>,
}

impl Egress {
    /// What is about the other family, like a range of its addresses, allows nothing here.
    pub fn new(family: Family, rules: &[NetOutRule]) -> Result<Self, InvalidRule> {
        let mut layers = vec![Layer { log: false, regions: Vec::new() }];
        for rule in rules {
            for region in regions(family, rule)? {
                lay(&mut layers, region, rule.log);
            }
        }
        Ok(Self { family, layers })
    }

    /// What the container's own set has.
    pub fn elements(&self) -> Vec<Element> {
        let first = self.layers.first().into_iter().flat_map(|layer| &layer.regions);
        first.filter(|region| region.fits_key(self.family)).map(|region| self.element(region)).collect()
    }

    fn element(&self, region: &Region) -> Element {
        let key = key(self.family);
        Element::of_ranges(&key, &region.0[..key.len()])
    }

    pub fn logs(&self) -> bool {
        self.layers.iter().any(|layer| layer.log)
    }

    /// Rules for all else, behind that of the container's own set. Packets to be logged go to the chain `logged`.
    pub fn add_rest(&self, change: &mut Transaction, chain: &str, logged: &str) {
        for (place, layer) in self.layers.iter().enumerate() {
            let verdict = if layer.log { Verdict::Goto(logged.into()) } else { Verdict::Accept };
            let (mut in_set, mut compared): (Vec<_>, Vec<_>) =
                layer.regions.iter().partition(|region| region.fits_key(self.family));
            if place == 0 {
                in_set.clear();
            } else if in_set.len() <= COMPARED_MAX {
                compared.append(&mut in_set);
            }
            for region in compared {
                change.add_rule(chain, &then(region.conditions(self.family), verdict.clone()));
            }
            if !in_set.is_empty() {
                let elements: Vec<_> = in_set.into_iter().map(|region| self.element(region)).collect();
                let set = change.add_set_of_a_rule(&key(self.family), &elements);
                change.add_rule(chain, &then(in_set_named(self.family, set), verdict));
            }
        }
    }
}

/// A set for [`Egress::elements`], without any.
pub fn add_set(change: &mut Transaction, family: Family, name: &str) {
    change.add_set_of_ranges(name, &key(family));
}

/// What is in the container's own set is let through.
pub fn rule_of_set(family: Family, name: &str) -> Vec<Expression> {
    then(in_set_named(family, name.into()), Verdict::Accept)
}

fn in_set_named(family: Family, set: String) -> Vec<Expression> {
    let mut register = Register::FIRST;
    let mut rule = Vec::new();
    for part in 0..key(family).len() {
        rule.push(load(family, part, register));
        register.0 += bytes(family, part).div_ceil(REGISTER_BYTES);
    }
    rule.push(Expression::Contains { set, key: Register::FIRST, inverted: false });
    rule
}

fn then(mut conditions: Vec<Expression>, verdict: Verdict) -> Vec<Expression> {
    conditions.push(Expression::Verdict(verdict));
    conditions
}

/// Into the first layer it may be in: behind all that would say otherwise about a packet of it.
fn lay(layers: &mut Vec<Layer>, region: Region, log: bool) {
    let mut from = 0;
    for (place, layer) in layers.iter().enumerate() {
        if layer.regions.iter().any(|earlier| earlier.contains(&region)) {
            return;
        }
        if layer.log != log && layer.regions.iter().any(|earlier| earlier.overlaps(&region)) {
            from = place + 1;
        }
    }
    let fits = |layer: &&mut Layer| {
        layer.log == log && !layer.regions.iter().any(|earlier| earlier.overlaps(&region))
    };
    match layers[from..].iter_mut().find(fits) {
        Some(layer) => layer.regions.push(region),
        None => layers.push(Layer { log, regions: vec![region] }),
    }
}

fn regions(family: Family, rule: &NetOutRule) -> Result<Vec<Region>, InvalidRule> {
    let protocol = protocol(family, rule)?;
    let networks = if rule.networks.is_empty() {
        vec![everything(family, ADDRESS)]
    } else {
        let of_family = |range| addresses(family, range).transpose();
        rule.networks.iter().filter_map(of_family).collect::<Result<_, _>>()?
    };
    let ports = if rule.ports.is_empty() {
        vec![everything(family, PORT)]
    } else {
        rule.ports.iter().map(ports).collect::<Result<_, _>>()?
    };
    let Some(protocol) = protocol else { return Ok(Vec::new()) };
    let with =
        |network: &Range, ports: &Range| protocol.with(ADDRESS, network.clone()).with(PORT, ports.clone());
    Ok(networks.iter().flat_map(|network| ports.iter().map(|ports| with(network, ports))).collect())
}

/// `None`: none that there is in this family.
fn protocol(family: Family, rule: &NetOutRule) -> Result<Option<Region>, InvalidRule> {
    let (name, number) = match rule.protocol {
        0 => ("ALL", everything(family, PROTOCOL)),
        1 => ("TCP", only(transport_number::TCP)),
        2 => ("UDP", only(transport_number::UDP)),
        3 => ("ICMP", only(transport_number::ICMP)),
        4 => ("ICMPV6", only(transport_number::ICMPV6)),
        other => return Err(InvalidRule::Protocol(other)),
    };
    if !rule.ports.is_empty() && !matches!(rule.protocol, 1 | 2) {
        return Err(InvalidRule::Ports(name));
    }
    if let (3, Family::Ipv6) | (4, Family::Ipv4) = (rule.protocol, family) {
        return Ok(None);
    }
    let mut region = Region::all(family).with(PROTOCOL, number);
    if let (3 | 4, Some(icmp)) = (rule.protocol, &rule.icmps) {
        const ANY: u8 = 255;
        for (part, value) in [(ICMP_TYPE, Some(icmp.kind)), (ICMP_CODE, icmp.code)] {
            if let Some(value) = value.filter(|value| *value != ANY) {
                region = region.with(part, only(value));
            }
        }
    }
    Ok(Some(region))
}

fn only(value: impl Into<u128>) -> Range {
    let value = value.into();
    value..=value
}

/// `None` for a range that is not of this family.
fn addresses(family: Family, range: &IpRange) -> Result<Option<Range>, InvalidRule> {
    let (Some(start), Some(end)) = (range.start.or(range.end), range.end.or(range.start)) else {
        return Ok(Some(everything(family, ADDRESS)));
    };
    let (start, end) = (start.to_canonical(), end.to_canonical());
    let (range, of) = match (start, end) {
        (IpAddr::V4(first), IpAddr::V4(last)) => {
            (first.to_bits().into()..=last.to_bits().into(), Family::Ipv4)
        }
        (IpAddr::V6(first), IpAddr::V6(last)) => (first.to_bits()..=last.to_bits(), Family::Ipv6),
        _ => return Err(InvalidRule::Network(start, end)),
    };
    if range.is_empty() {
        return Err(InvalidRule::Network(start, end));
    }
    Ok((of == family).then_some(range))
}

fn ports(range: &PortRange) -> Result<Range, InvalidRule> {
    let end = if range.end == 0 { range.start } else { range.end };
    if range.start > end {
        return Err(InvalidRule::PortRange(range.start, end));
    }
    Ok(range.start.into()..=end.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(json: &str) -> Vec<NetOutRule> {
        serde_json::from_str(json).unwrap()
    }

    fn egress(json: &str) -> Result<Egress, InvalidRule> {
        Egress::new(Family::Ipv4, &rules(json))
    }

    /// How many regions each layer has; those that log marked.
    fn layers(json: &str) -> String {
        let shown = |layer: &Layer| format!("{}{}", layer.regions.len(), if layer.log { "!" } else { "" });
        egress(json).unwrap().layers.iter().map(shown).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn each_network_goes_with_each_port() {
        assert_eq!(layers("[]"), "0");
        assert_eq!(layers("[{}]"), "1");
        let two_by_two = r#"[{"protocol":1,
            "networks":[{"start":"1.2.3.4"},{"start":"10.0.0.0","end":"10.0.0.9"}],
            "ports":[{"start":80,"end":90},{"start":443,"end":443}]}]"#;
        assert_eq!(layers(two_by_two), "4");
        assert_eq!(layers(r#"[{"protocol":3,"icmps":{"type":8,"code":0}}]"#), "1");
    }

    #[test]
    fn what_overlaps_is_in_different_layers_and_what_adds_nothing_in_none() {
        let tcp = |ports: &str, rest: &str| format!(r#"{{"protocol":1,"ports":[{ports}]{rest}}}"#);
        let of = |rules: &[String]| layers(&format!("[{}]", rules.join(",")));
        let (low, high) = (tcp(r#"{"start":1,"end":90}"#, ""), tcp(r#"{"start":80,"end":99}"#, ""));
        let (one, far) = (tcp(r#"{"start":85}"#, ""), tcp(r#"{"start":443}"#, ""));
        assert_eq!(of(&[low.clone(), far.clone()]), "2");
        assert_eq!(of(&[low.clone(), high.clone(), far.clone()]), "2 1");
        assert_eq!(of(&[low.clone(), one.clone(), low.clone()]), "1");
        assert_eq!(of(&[one.clone(), low.clone(), far]), "2 1");
        let logged = |ports| tcp(ports, r#","log":true"#);
        assert_eq!(
            of(&[low.clone(), logged(r#"{"start":85}"#)]),
            "1",
            "the first says that it is not logged"
        );
        assert_eq!(of(&[logged(r#"{"start":85}"#), low.clone(), one]), "0 1! 1");
        assert_eq!(of(&[low, logged(r#"{"start":80,"end":99}"#), high, logged(r#"{"start":7000}"#)]), "1 2!");
    }

    /// Against the rules as they are asked for, one after the other.
    #[test]
    fn the_first_layer_says_of_every_packet_what_the_first_rule_does() {
        let small = |seed: &mut u64, below: u64| {
            *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (*seed >> 33) % below
        };
        for mut seed in 0..300 {
            let mut flat: Vec<(Region, bool)> = Vec::new();
            let mut layers = vec![Layer { log: false, regions: Vec::new() }];
            for _ in 0..12 {
                let mut range = |width: u64| {
                    let (a, b) = (small(&mut seed, width), small(&mut seed, width));
                    u128::from(a.min(b))..=u128::from(a.max(b))
                };
                let region = Region([range(2), range(6), range(6), range(2), 0..=0]);
                let log = small(&mut seed, 2) == 1;
                flat.push((region.clone(), log));
                lay(&mut layers, region, log);
            }
            for layer in &layers {
                for (place, region) in layer.regions.iter().enumerate() {
                    assert!(
                        !layer.regions[..place].iter().any(|other| other.overlaps(region)),
                        "seed {seed}"
                    );
                }
            }
            for number in 0..2 * 6 * 6 * 2u8 {
                let packet = [number % 2, number / 2 % 6, number / 12 % 6, number / 72, 0];
                let packet = Region(packet.map(only));
                let asked = flat.iter().find(|(region, _)| region.contains(&packet)).map(|(_, log)| *log);
                let laid = layers.iter().find(|layer| layer.regions.iter().any(|at| at.contains(&packet)));
                assert_eq!(laid.map(|layer| layer.log), asked, "seed {seed}, {packet:?}");
            }
        }
    }

    #[test]
    fn many_rules_of_a_container_are_few_of_the_firewall() {
        let count = |json: &str| {
            let mut change = Transaction::new("t");
            let egress = egress(json).unwrap();
            egress.add_rest(&mut change, "c", "l");
            (
                egress.elements().len(),
                change.rules().get(&(Family::Ipv4, "c".into())).copied().unwrap_or_default(),
            )
        };
        let rule = |number: u16| {
            let (port, start) = (1000 + number, format!("10.0.{number}.0"));
            let end = format!("10.0.{number}.99");
            format!(
                r#"{{"protocol":1,"networks":[{{"start":"{start}","end":"{end}"}}],"ports":[{{"start":{port}}}]}}"#
            )
        };
        let many = |rules: u16| (0..rules).map(rule).collect::<Vec<_>>().join(",");
        let twice = format!("{{}},{},{{}}", many(200));
        let logged = many(200).replace("]}", r#"],"log":true}"#).replace("99\"}],\"log\":true", "99\"}]");
        assert_eq!(count("[{}]"), (1, 0));
        assert_eq!(count(&format!("[{}]", many(200))), (200, 0));
        assert_eq!(count(&format!("[{twice}]")), (1, 0), "all was said already");
        assert_eq!(count(&format!("[{},{{}}]", many(200))), (200, 1));
        assert_eq!(count(&format!(r#"[{},{{"protocol":3,"icmps":{{"type":8}}}}]"#, many(200))), (200, 1));
        assert_eq!(count(&format!("[{logged}]")), (0, 1));
        assert_eq!(count(r#"[{"log":true}]"#), (0, 1));
    }

    #[test]
    fn a_rule_of_ipv6_alone_opens_nothing() {
        assert_eq!(layers(r#"[{"networks":[{"start":"2001:db8::1"}]}]"#), "0");
        assert_eq!(layers(r#"[{"networks":[{"start":"::ffff:1.2.3.4"}]}]"#), "1");
        assert_eq!(layers(r#"[{"protocol":4}]"#), "0");
    }

    #[test]
    fn nonsense_is_refused() {
        for (json, expected) in [
            (r#"[{"protocol":9}]"#, "invalid protocol: 9"),
            (r#"[{"protocol":3,"ports":[{"start":80}]}]"#, "Ports cannot be specified for Protocol ICMP"),
            (r#"[{"protocol":4,"ports":[{"start":80}]}]"#, "Ports cannot be specified for Protocol ICMPV6"),
            (r#"[{"protocol":1,"ports":[{"start":90,"end":80}]}]"#, "invalid port range: 90-80"),
            (
                r#"[{"networks":[{"start":"1.2.3.4","end":"1.2.3.3"}]}]"#,
                "invalid network range: 1.2.3.4-1.2.3.3",
            ),
            (r#"[{"networks":[{"start":"1.2.3.4","end":"::1"}]}]"#, "invalid network range: 1.2.3.4-::1"),
        ] {
            assert_eq!(egress(json).unwrap_err().to_string(), expected);
        }
    }
}
