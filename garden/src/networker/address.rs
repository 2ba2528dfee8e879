//! Addresses and networks of both families: parsed, shown, compared, and cut into networks of containers. No I/O.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A container's own network has so many addresses, in both families.
const SUBNET_ADDRESSES: u32 = 4;
const NETWORK_EXAMPLES: &str = "a network such as 10.254.0.0/18 or fd00:d1e9::/112";

/// Addresses of one family.
pub trait Address: Copy + Ord + fmt::Display + FromStr + Into<IpAddr> {
    const BITS: u8;
    const EXAMPLE: &'static str;
    fn to_number(self) -> u128;
    /// The lowest bits of it.
    fn from_number(number: u128) -> Self;
}

impl Address for Ipv4Addr {
    const BITS: u8 = 32;
    const EXAMPLE: &'static str = "an IPv4 network such as 10.254.0.0/18";

    fn to_number(self) -> u128 {
        self.to_bits().into()
    }

    fn from_number(number: u128) -> Self {
        Self::from_bits(number as u32)
    }
}

impl Address for Ipv6Addr {
    const BITS: u8 = 128;
    const EXAMPLE: &'static str = "an IPv6 network such as fd00:d1e9::/112";

    fn to_number(self) -> u128 {
        self.to_bits()
    }

    fn from_number(number: u128) -> Self {
        Self::from_bits(number)
    }
}

/// In CIDR notation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String", bound = "A: Address")]
pub struct Network<A: Address = Ipv4Addr> {
    pub address: A,
    pub prefix_bits: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {example}")]
pub struct InvalidNetwork {
    text: String,
    example: &'static str,
}

impl Network {
    /// Bits below the prefix are cleared.
    pub const fn new(address: Ipv4Addr, prefix_bits: u8) -> Self {
        let mask = match u32::MAX.checked_shl(32 - prefix_bits as u32) {
            Some(mask) => mask,
            None => 0,
        };
        Self { address: Ipv4Addr::from_bits(address.to_bits() & mask), prefix_bits }
    }

    /// The host's on the links of those who are in it.
    pub fn host_ip(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.address.to_bits().saturating_add(1))
    }

    pub fn last(self) -> Ipv4Addr {
        let below = u32::MAX.checked_shr(self.prefix_bits.into()).unwrap_or(0);
        Ipv4Addr::from_bits(self.address.to_bits() | below)
    }
}

impl Network<Ipv6Addr> {
    pub const fn new_v6(address: Ipv6Addr, prefix_bits: u8) -> Self {
        let mask = match u128::MAX.checked_shl(128 - prefix_bits as u32) {
            Some(mask) => mask,
            None => 0,
        };
        Self { address: Ipv6Addr::from_bits(address.to_bits() & mask), prefix_bits }
    }
}

impl<A: Address> Network<A> {
    /// The one that an address is of.
    pub fn of(address: A, prefix_bits: u8) -> Self {
        let mask = u128::MAX.checked_shl(u32::from(A::BITS - prefix_bits)).unwrap_or(0);
        Self { address: A::from_number(address.to_number() & mask), prefix_bits }
    }

    pub fn contains(self, address: A) -> bool {
        Self::of(address, self.prefix_bits) == self
    }

    pub fn overlaps(self, other: Self) -> bool {
        self.contains(other.address) || other.contains(self.address)
    }

    /// How many networks of four addresses there are.
    pub fn subnets(self) -> u32 {
        let bits = (A::BITS - 2).checked_sub(self.prefix_bits);
        bits.map_or(0, |bits| 1 << bits.min(31))
    }

    /// The address of this number in one of them.
    pub fn at(self, subnet: u32, number: u8) -> A {
        let offset = u128::from(subnet) * u128::from(SUBNET_ADDRESSES) + u128::from(number);
        A::from_number(self.address.to_number() + offset)
    }
}

impl<A: Address> FromStr for Network<A> {
    type Err = InvalidNetwork;

    fn from_str(text: &str) -> Result<Self, InvalidNetwork> {
        let invalid = || InvalidNetwork { text: text.to_owned(), example: A::EXAMPLE };
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, prefix.parse().map_err(|_| invalid())?),
            None => (text, A::BITS),
        };
        let address = address.parse().map_err(|_| invalid())?;
        if prefix > A::BITS { Err(invalid()) } else { Ok(Self::of(address, prefix)) }
    }
}

impl<A: Address> TryFrom<String> for Network<A> {
    type Error = InvalidNetwork;

    fn try_from(text: String) -> Result<Self, InvalidNetwork> {
        text.parse()
    }
}

impl<A: Address> From<Network<A>> for String {
    fn from(network: Network<A>) -> Self {
        network.to_string()
    }
}

impl<A: Address> fmt::Display for Network<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix_bits)
    }
}

/// Of either family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum AnyNetwork {
    V4(Network),
    V6(Network<Ipv6Addr>),
}

impl AnyNetwork {
    /// The one address.
    pub fn single(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self::V4(Network::of(address, Ipv4Addr::BITS as u8)),
            IpAddr::V6(address) => Self::V6(Network::of(address, Ipv6Addr::BITS as u8)),
        }
    }

    pub fn contains(self, address: IpAddr) -> bool {
        match (self, address) {
            (Self::V4(network), IpAddr::V4(address)) => network.contains(address),
            (Self::V6(network), IpAddr::V6(address)) => network.contains(address),
            _ => false,
        }
    }

    pub fn address(self) -> IpAddr {
        match self {
            Self::V4(network) => network.address.into(),
            Self::V6(network) => network.address.into(),
        }
    }

    pub fn prefix_bits(self) -> u8 {
        match self {
            Self::V4(network) => network.prefix_bits,
            Self::V6(network) => network.prefix_bits,
        }
    }

    pub fn is_ipv6(self) -> bool {
        matches!(self, Self::V6(_))
    }
}

impl From<Network> for AnyNetwork {
    fn from(network: Network) -> Self {
        Self::V4(network)
    }
}

impl From<Network<Ipv6Addr>> for AnyNetwork {
    fn from(network: Network<Ipv6Addr>) -> Self {
        Self::V6(network)
    }
}

impl FromStr for AnyNetwork {
    type Err = InvalidNetwork;

    fn from_str(text: &str) -> Result<Self, InvalidNetwork> {
        let v6 = || text.parse().map(Self::V6);
        let of_neither = |_| InvalidNetwork { text: text.to_owned(), example: NETWORK_EXAMPLES };
        text.parse().map(Self::V4).or_else(|_| v6()).map_err(of_neither)
    }
}

impl TryFrom<String> for AnyNetwork {
    type Error = InvalidNetwork;

    fn try_from(text: String) -> Result<Self, InvalidNetwork> {
        text.parse()
    }
}

impl From<AnyNetwork> for String {
    fn from(network: AnyNetwork) -> Self {
        network.to_string()
    }
}

impl fmt::Display for AnyNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::V4(network) => network.fmt(f),
            Self::V6(network) => network.fmt(f),
        }
    }
}

/// What may not be reached, as the operator means it: who denies everything of the one family, and does not speak of the
/// other, denies everything.
pub fn denied(networks: &[AnyNetwork], v6: bool) -> Vec<AnyNetwork> {
    let mut denied = networks.to_vec();
    let everything = |network: &AnyNetwork| network.prefix_bits() == 0;
    if v6 && !networks.iter().any(|network| network.is_ipv6()) && networks.iter().any(everything) {
        denied.push(Network::of(Ipv6Addr::UNSPECIFIED, 0).into());
    }
    denied
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_parsed_at_the_door() {
        for (text, expected) in [
            ("10.254.0.0/18", Some("10.254.0.0/18")),
            ("10.254.3.7/18", Some("10.254.0.0/18")),
            ("1.2.3.4", Some("1.2.3.4/32")),
            ("1.2.3.4/0", Some("0.0.0.0/0")),
            ("1.2.3.4/33", None),
            ("::1/64", None),
            ("x/8", None),
            ("1.2.3.4/x", None),
        ] {
            assert_eq!(
                text.parse::<Network>().ok().map(|network| network.to_string()).as_deref(),
                expected,
                "{text}"
            );
        }
    }

    #[test]
    fn networks_of_the_other_family_are_refused_with_an_example() {
        let v6 = |text: &str| text.parse::<Network<Ipv6Addr>>();
        for (text, expected) in [
            ("fd00:1::/112", Some("fd00:1::/112")),
            ("fd00:1::7:8/112", Some("fd00:1::7:0/112")),
            ("2001:db8::1", Some("2001:db8::1/128")),
            ("::1/0", Some("::/0")),
            ("::/129", None),
            ("10.0.0.0/8", None),
        ] {
            assert_eq!(v6(text).ok().map(|network| network.to_string()).as_deref(), expected, "{text}");
        }
        let error = v6("10.0.0.0/8").unwrap_err().to_string();
        assert_eq!(error, "\"10.0.0.0/8\" is not an IPv6 network such as fd00:d1e9::/112");
    }

    #[test]
    fn who_denies_everything_denies_ipv6_too() {
        let check = |networks: &str, v6: bool, expected: &str| {
            let networks: Vec<AnyNetwork> =
                networks.split_whitespace().map(|text| text.parse().unwrap()).collect();
            let denied: Vec<String> = denied(&networks, v6).iter().map(AnyNetwork::to_string).collect();
            assert_eq!(denied.join(" "), expected);
        };
        check("10.0.0.0/8", true, "10.0.0.0/8");
        check("10.0.0.0/8 0.0.0.0/0", true, "10.0.0.0/8 0.0.0.0/0 ::/0");
        check("0.0.0.0/0", false, "0.0.0.0/0");
        check("0.0.0.0/0 2001:db8::/32", true, "0.0.0.0/0 2001:db8::/32");
        let error = "x/8".parse::<AnyNetwork>().unwrap_err().to_string();
        assert_eq!(error, "\"x/8\" is not a network such as 10.254.0.0/18 or fd00:d1e9::/112");
    }
}
