//! Egress rules: what a container may reach.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SecurityGroupRule {
    pub protocol: RuleProtocol,
    /// Never empty.
    pub destinations: Vec<Destination>,
    /// Log each first packet that the rule lets through.
    pub log: bool,
    pub annotations: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum RuleProtocol {
    All,
    Tcp(RulePorts),
    Udp(RulePorts),
    Icmp(IcmpType),
    IcmpV6(IcmpType),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum RulePorts {
    /// Never empty.
    List(Vec<u16>),
    /// Both ends included.
    Range { start: u16, end: u16 },
}

impl RulePorts {
    pub fn ranges(&self) -> Vec<(u16, u16)> {
        match self {
            Self::List(ports) => ports.iter().map(|&port| (port, port)).collect(),
            Self::Range { start, end } => vec![(*start, *end)],
        }
    }
}

/// -1 is any type, any code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct IcmpType {
    pub kind: i32,
    pub code: i32,
}

/// One text of a rule's `destinations`: addresses, `a/n` networks and `a-b` ranges, separated by commas.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Destination {
    text: String,
    ranges: Vec<(IpAddr, IpAddr)>,
}

impl Destination {
    /// First and last address of each part, both included.
    pub fn ranges(&self) -> &[(IpAddr, IpAddr)] {
        &self.ranges
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The texts are those that platform clients know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DestinationError {
    #[error("Invalid IP")]
    Ip,
    #[error("invalid CIDR address: {0}")]
    Cidr(String),
}

impl FromStr for Destination {
    type Err = DestinationError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let ranges = text.split(',').map(parse_range).collect::<Result<_, _>>()?;
        Ok(Self { text: text.to_string(), ranges })
    }
}

fn parse_range(text: &str) -> Result<(IpAddr, IpAddr), DestinationError> {
    let ip = |text: &str| text.parse::<IpAddr>().map_err(|_| DestinationError::Ip);
    match text.find(['-', '/']) {
        None => ip(text).map(|ip| (ip, ip)),
        Some(at) if text.as_bytes()[at] == b'/' => {
            network(&text[..at], &text[at + 1..]).ok_or_else(|| DestinationError::Cidr(text.to_string()))
        }
        Some(at) => {
            let (first, last) = (ip(&text[..at])?, ip(&text[at + 1..])?);
            let ordered = first.is_ipv4() == last.is_ipv4() && first <= last;
            if ordered { Ok((first, last)) } else { Err(DestinationError::Ip) }
        }
    }
}

fn network(address: &str, prefix: &str) -> Option<(IpAddr, IpAddr)> {
    if prefix.is_empty() || !prefix.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let prefix: u32 = prefix.parse().ok()?;
    match address.parse().ok()? {
        IpAddr::V4(ip) => {
            let host = 32u32.checked_sub(prefix).map(|bits| u32::MAX.checked_shr(32 - bits).unwrap_or(0))?;
            let first = u32::from(ip) & !host;
            Some((Ipv4Addr::from(first).into(), Ipv4Addr::from(first | host).into()))
        }
        IpAddr::V6(ip) => {
            let host =
                128u32.checked_sub(prefix).map(|bits| u128::MAX.checked_shr(128 - bits).unwrap_or(0))?;
            let first = u128::from(ip) & !host;
            Some((Ipv6Addr::from(first).into(), Ipv6Addr::from(first | host).into()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_are_addresses_networks_and_ranges() {
        let ranges = |text: &str| {
            let destination: Destination = text.parse().unwrap();
            destination.ranges().iter().map(|(a, b)| format!("{a}-{b}")).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(ranges("10.0.0.1"), "10.0.0.1-10.0.0.1");
        assert_eq!(ranges("10.1.2.3/8"), "10.0.0.0-10.255.255.255");
        assert_eq!(ranges("0.0.0.0/0"), "0.0.0.0-255.255.255.255");
        assert_eq!(ranges("1.2.3.4/32"), "1.2.3.4-1.2.3.4");
        assert_eq!(ranges("10.0.0.1-10.0.0.9,fd00::/126"), "10.0.0.1-10.0.0.9 fd00::-fd00::3");
        assert_eq!(ranges("::/0"), "::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff");
    }

    #[test]
    fn what_is_no_destination_is_refused_in_known_words() {
        let refused = |text: &str| text.parse::<Destination>().unwrap_err().to_string();
        assert_eq!(refused(""), "Invalid IP");
        assert_eq!(refused("example.com"), "Invalid IP");
        assert_eq!(refused("10.0.0.9-10.0.0.1"), "Invalid IP");
        assert_eq!(refused("10.0.0.1-fd00::1"), "Invalid IP");
        assert_eq!(refused("10.0.0.1/33"), "invalid CIDR address: 10.0.0.1/33");
        assert_eq!(refused("10.0.0.1/+8"), "invalid CIDR address: 10.0.0.1/+8");
        assert_eq!(refused("10.0.0.1/"), "invalid CIDR address: 10.0.0.1/");
    }
}
