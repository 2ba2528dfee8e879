//! A container's egress rules in garden's terms. Pure.

use std::net::IpAddr;

use garden_client::{IcmpControl, IpRange, NetOutRule, PortRange};

use crate::EgressRule;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum EgressError {
    #[error("failed to convert destination to ip range")]
    Destination,
    #[error("security group has invalid values: unknown protocol '{0}'")]
    Protocol(String),
}

/// One rule a destination; a destination may itself be a list with commas.
pub(crate) fn net_out_rules(rules: &[EgressRule]) -> Result<Vec<NetOutRule>, EgressError> {
    let mut converted = Vec::new();
    for rule in rules {
        let protocol = protocol(&rule.protocol)?;
        for destination in rule.destinations.iter().flat_map(|list| list.split(',')) {
            converted.push(NetOutRule {
                protocol,
                networks: vec![range(destination.trim()).ok_or(EgressError::Destination)?],
                ports: ports(rule),
                icmps: rule.icmp.map(|(kind, code)| IcmpControl { kind: kind as u8, code: Some(code as u8) }),
                log: rule.log,
            });
        }
    }
    Ok(converted)
}

fn protocol(name: &str) -> Result<u8, EgressError> {
    ["all", "tcp", "udp", "icmp", "icmpv6"]
        .iter()
        .position(|known| *known == name)
        .and_then(|position| u8::try_from(position).ok())
        .ok_or_else(|| EgressError::Protocol(name.to_string()))
}

fn ports(rule: &EgressRule) -> Vec<PortRange> {
    match rule.port_range {
        Some((start, end)) => vec![PortRange { start, end }],
        None => rule.ports.iter().map(|port| PortRange { start: *port, end: *port }).collect(),
    }
}

fn range(text: &str) -> Option<IpRange> {
    let (start, end) = if let Some((start, end)) = text.split_once('-') {
        (start.trim().parse().ok()?, end.trim().parse().ok()?)
    } else if let Some((address, bits)) = text.split_once('/') {
        network(address.parse().ok()?, bits.parse().ok()?)?
    } else {
        let address: IpAddr = text.parse().ok()?;
        (address, address)
    };
    Some(IpRange { start: Some(start), end: Some(end) })
}

/// The first and the last address of a network.
fn network(address: IpAddr, bits: u32) -> Option<(IpAddr, IpAddr)> {
    match address {
        IpAddr::V4(address) => {
            let host = u32::MAX.checked_shr(bits).unwrap_or(0);
            let start = u32::from(address) & !host;
            (bits <= 32).then(|| (IpAddr::V4(start.into()), IpAddr::V4((start | host).into())))
        }
        IpAddr::V6(address) => {
            let host = u128::MAX.checked_shr(bits).unwrap_or(0);
            let start = u128::from(address) & !host;
            (bits <= 128).then(|| (IpAddr::V6(start.into()), IpAddr::V6((start | host).into())))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(destination: &str) -> String {
        let rule = EgressRule {
            protocol: "tcp".into(),
            destinations: vec![destination.into()],
            ports: vec![80, 443],
            ..EgressRule::default()
        };
        match net_out_rules(&[rule]) {
            Ok(rules) => {
                assert!(rules.iter().all(|rule| rule.protocol == 1 && rule.ports.len() == 2));
                let text = |rule: &NetOutRule| {
                    let range = rule.networks[0];
                    format!("{}..{}", range.start.unwrap(), range.end.unwrap())
                };
                rules.iter().map(text).collect::<Vec<_>>().join(" ")
            }
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn destinations_become_ranges() {
        let table = [
            ("10.0.0.1", "10.0.0.1..10.0.0.1"),
            ("10.0.0.1-10.0.0.9", "10.0.0.1..10.0.0.9"),
            ("10.1.2.3/8", "10.0.0.0..10.255.255.255"),
            ("0.0.0.0/0", "0.0.0.0..255.255.255.255"),
            ("10.0.0.1/32", "10.0.0.1..10.0.0.1"),
            ("10.0.0.1,10.0.0.2", "10.0.0.1..10.0.0.1 10.0.0.2..10.0.0.2"),
            ("fd00::/120", "fd00::..fd00::ff"),
            ("10.0.0.0/33", "failed to convert destination to ip range"),
            ("nowhere", "failed to convert destination to ip range"),
        ];
        for (destination, wanted) in table {
            assert_eq!(ranges(destination), wanted, "{destination}");
        }
    }

    #[test]
    fn an_unknown_protocol_is_refused() {
        let rule = EgressRule { protocol: "sctp".into(), ..EgressRule::default() };
        assert!(net_out_rules(&[rule]).unwrap_err().to_string().contains("sctp"));
    }
}
