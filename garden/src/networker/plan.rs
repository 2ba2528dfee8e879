//! Who gets which addresses, link name and host ports: pools and arithmetic, no I/O.
//!
//! Each container has a /30 of its own: the host's side is its first address, the container its second. Links are
//! routed, there is no bridge, so that containers share no broadcast domain.

use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;
use std::time::Duration;

use garden_client::{BandwidthLimits, MappedPort, NetOutRule};
use garden_sys::netlink::shaping::Rate;
use serde::{Deserialize, Serialize};

/// Of a container's own network.
pub const SUBNET_PREFIX_BITS: u8 = 30;
const SUBNET_ADDRESSES: u32 = 1 << (32 - SUBNET_PREFIX_BITS);
/// The name of the link inside every container.
pub const CONTAINER_LINK: &str = "eth0";

/// An IPv4 network in CIDR notation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Network {
    pub address: Ipv4Addr,
    pub prefix_bits: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an IPv4 network such as 10.254.0.0/18")]
pub struct InvalidNetwork(String);

impl Network {
    /// Bits below the prefix are cleared.
    pub const fn new(address: Ipv4Addr, prefix_bits: u8) -> Self {
        let mask = match u32::MAX.checked_shl(32 - prefix_bits as u32) {
            Some(mask) => mask,
            None => 0,
        };
        Self { address: Ipv4Addr::from_bits(address.to_bits() & mask), prefix_bits }
    }

    fn subnets(self) -> u32 {
        if self.prefix_bits > SUBNET_PREFIX_BITS {
            0
        } else {
            1 << (SUBNET_PREFIX_BITS - self.prefix_bits).min(31)
        }
    }
}

impl FromStr for Network {
    type Err = InvalidNetwork;

    fn from_str(text: &str) -> Result<Self, InvalidNetwork> {
        let invalid = || InvalidNetwork(text.to_owned());
        let (address, prefix) = text.split_once('/').unwrap_or((text, "32"));
        let address = address.parse().map_err(|_| invalid())?;
        let prefix_bits = prefix.parse().ok().filter(|bits| *bits <= 32).ok_or_else(invalid)?;
        Ok(Self::new(address, prefix_bits))
    }
}

impl TryFrom<String> for Network {
    type Error = InvalidNetwork;

    fn try_from(text: String) -> Result<Self, InvalidNetwork> {
        text.parse()
    }
}

impl From<Network> for String {
    fn from(network: Network) -> Self {
        network.to_string()
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix_bits)
    }
}

/// Everything the network of one container is: enough to make it, to change it, and to take it away after a restart.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Connection {
    /// The place of its /30 in the pool.
    pub subnet: u32,
    pub host_ip: Ipv4Addr,
    pub container_ip: Ipv4Addr,
    pub host_link: String,
    pub mapped_ports: Vec<MappedPort>,
    pub net_out: Vec<NetOutRule>,
}

impl Connection {
    pub fn new(pool: Network, subnet: u32, link_prefix: &str) -> Self {
        let base = pool.address.to_bits() + subnet * SUBNET_ADDRESSES;
        Self {
            subnet,
            host_ip: Ipv4Addr::from_bits(base + 1),
            container_ip: Ipv4Addr::from_bits(base + 2),
            host_link: format!("{link_prefix}{subnet:x}"),
            mapped_ports: Vec::new(),
            net_out: Vec::new(),
        }
    }
}

/// What may wait for its turn on a limited link: more would only be late.
const LATENCY_MAX: Duration = Duration::from_millis(25);
/// A bucket smaller than what comes between two ticks of the kernel's clock would be slower than its rate.
const BURST_MIN: Duration = Duration::from_millis(10);

/// How fast each side of a container's link may send; `None`: as fast as it can.
pub fn rate(limits: BandwidthLimits, mtu: u32) -> Option<Rate> {
    let bytes_per_second = limits.rate_in_bytes_per_second;
    if bytes_per_second == 0 {
        return None;
    }
    let bytes = |of: Duration| {
        u64::try_from(u128::from(bytes_per_second) * of.as_millis() / 1000).unwrap_or(u64::MAX)
    };
    let narrow = |bytes: u64| u32::try_from(bytes).unwrap_or(u32::MAX);
    let burst_bytes = limits.burst_rate_in_bytes_per_second.max(bytes(BURST_MIN)).max(2 * u64::from(mtu));
    let queue_bytes = narrow(burst_bytes.saturating_add(bytes(LATENCY_MAX)));
    Some(Rate { bytes_per_second, burst_bytes: narrow(burst_bytes), queue_bytes })
}

/// Handed out oldest first, so that a number is used again as late as possible: peers that remember it (neighbour and
/// connection tables, routers) have forgotten by then.
#[derive(Debug)]
pub struct Pool {
    free: VecDeque<u32>,
    numbers: std::ops::Range<u32>,
    used: BTreeSet<u32>,
}

impl Pool {
    pub fn subnets(network: Network) -> Self {
        Self::new(0..network.subnets())
    }

    pub fn ports(start: u16, size: u16) -> Self {
        let start = u32::from(start);
        Self::new(start..(start + u32::from(size)).min(u32::from(u16::MAX) + 1))
    }

    fn new(numbers: std::ops::Range<u32>) -> Self {
        Self { free: numbers.clone().collect(), numbers, used: BTreeSet::new() }
    }

    pub fn size(&self) -> u64 {
        u64::from(self.numbers.end - self.numbers.start)
    }

    pub fn free(&self) -> u64 {
        self.free.len() as u64
    }

    pub fn acquire(&mut self) -> Option<u32> {
        let number = self.free.pop_front()?;
        self.used.insert(number);
        Some(number)
    }

    /// A given number, of the pool or not; false if it is taken.
    pub fn take(&mut self, number: u32) -> bool {
        if !self.used.insert(number) {
            return false;
        }
        self.free.retain(|free| *free != number);
        true
    }

    /// No harm if it was not taken.
    pub fn release(&mut self, number: u32) {
        if self.used.remove(&number) && self.numbers.contains(&number) {
            self.free.push_back(number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limited_link_has_a_bucket_that_its_rate_can_fill() {
        let rate = |rate_in_bytes_per_second, burst_rate_in_bytes_per_second| {
            rate(BandwidthLimits { rate_in_bytes_per_second, burst_rate_in_bytes_per_second }, 1500)
        };
        assert_eq!(rate(0, 7), None);
        let limited = |bytes_per_second, burst_bytes, queue_bytes| {
            Some(Rate { bytes_per_second, burst_bytes, queue_bytes })
        };
        assert_eq!(rate(1000, 0), limited(1000, 3000, 3025));
        assert_eq!(rate(1_000_000, 0), limited(1_000_000, 10_000, 35_000));
        assert_eq!(rate(1_000_000, 500_000), limited(1_000_000, 500_000, 525_000));
        assert_eq!(rate(u64::MAX, 1), limited(u64::MAX, u32::MAX, u32::MAX));
    }

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
        ] {
            assert_eq!(
                text.parse::<Network>().ok().map(|network| network.to_string()).as_deref(),
                expected,
                "{text}"
            );
        }
    }

    #[test]
    fn every_container_has_a_30_of_its_own() {
        let pool: Network = "10.254.0.0/18".parse().unwrap();
        let connection = Connection::new(pool, 65, "diego-");
        assert_eq!(connection.host_ip.to_string(), "10.254.1.5");
        assert_eq!(connection.container_ip.to_string(), "10.254.1.6");
        assert_eq!(connection.host_link, "diego-41");
        assert_eq!(Pool::subnets(pool).size(), 4096);
        assert_eq!(Pool::subnets("10.0.0.0/31".parse().unwrap()).size(), 0);
    }

    #[test]
    fn a_pool_ends_and_gives_again_what_came_back() {
        let mut pool = Pool::ports(65534, 100);
        assert_eq!(pool.size(), 2);
        assert_eq!((pool.acquire(), pool.acquire(), pool.acquire()), (Some(65534), Some(65535), None));
        pool.release(65535);
        pool.release(65535);
        assert!(pool.take(80) && !pool.take(80));
        pool.release(80);
        assert_eq!((pool.acquire(), pool.acquire()), (Some(65535), None));
    }
}
