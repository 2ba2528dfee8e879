//! Who gets which addresses, link name and host ports: pools and arithmetic, no I/O.
//!
//! Each container has a /30 of its own: the host's side is its first address, the container its second. Where there is
//! an IPv6 pool, the same place in that is a /126 of its own, with the same numbers. Links are routed, there is no
//! bridge, so that containers share no broadcast domain.

use std::collections::{BTreeSet, VecDeque};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use garden_client::{BandwidthLimits, MappedPort, NetOutRule};
use garden_sys::netlink::shaping::Rate;
use serde::{Deserialize, Serialize};

use super::address::Network;

/// Of a container's own network.
pub const SUBNET_PREFIX_BITS: u8 = 30;
pub const SUBNET_V6_PREFIX_BITS: u8 = 126;
/// The name of the link inside every container.
pub const CONTAINER_LINK: &str = "eth0";
/// A link that carries IPv6 carries packets of this many bytes.
pub const MTU_V6_MIN: u32 = 1280;

/// Why a network cannot be cut up for containers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnfitPool {
    #[error("its addresses are none that can be routed")]
    NotRouted,
    #[error("it has room for {has} containers, and the IPv4 pool for {wanted}: a /{prefix_bits} would do")]
    Small { has: u32, wanted: u32, prefix_bits: u8 },
}

/// Whether every container that has IPv4 addresses can have these, too.
pub fn check_pool_v6(pool: Network<Ipv6Addr>, beside: Network) -> Result<(), UnfitPool> {
    let first = pool.address;
    let mapped = first.to_ipv4_mapped().is_some();
    let unicast = !first.is_multicast() && !first.is_unicast_link_local() && !first.is_loopback() && !mapped;
    // Of so short a prefix that all of these are in it.
    if !unicast || pool.prefix_bits < POOL_V6_PREFIX_BITS_MIN || first.segments()[0] == 0 {
        return Err(UnfitPool::NotRouted);
    }
    let (has, wanted) = (pool.subnets(), beside.subnets());
    let prefix_bits = SUBNET_V6_PREFIX_BITS - SUBNET_PREFIX_BITS.saturating_sub(beside.prefix_bits);
    if has < wanted { Err(UnfitPool::Small { has, wanted, prefix_bits }) } else { Ok(()) }
}

/// What is shorter is no site's: those of private use are a /8 for everybody together.
const POOL_V6_PREFIX_BITS_MIN: u8 = 16;

/// Both ends of a container's link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ends {
    pub host_ip: Ipv6Addr,
    pub container_ip: Ipv6Addr,
}

/// Everything the network of one container is: enough to make it, to change it, and to take it away after a restart.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Connection {
    /// The place of its /30 in the pool, and of its /126 in the IPv6 pool.
    pub subnet: u32,
    pub host_ip: Ipv4Addr,
    pub container_ip: Ipv4Addr,
    /// The network that its spec named, whose are its addresses of IPv4 then; `None`: they are the pool's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chosen: Option<Network>,
    /// `None`, as in records of a garden that knew none: it has no IPv6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub v6: Option<Ends>,
    pub host_link: String,
    pub mapped_ports: Vec<MappedPort>,
    pub net_out: Vec<NetOutRule>,
}

impl Connection {
    pub fn new(pool: Network, pool_v6: Option<Network<Ipv6Addr>>, subnet: u32, link_prefix: &str) -> Self {
        Self {
            subnet,
            host_ip: pool.at(subnet, 1),
            container_ip: pool.at(subnet, 2),
            chosen: None,
            v6: pool_v6.map(|pool| Ends { host_ip: pool.at(subnet, 1), container_ip: pool.at(subnet, 2) }),
            host_link: format!("{link_prefix}{subnet:x}"),
            mapped_ports: Vec::new(),
            net_out: Vec::new(),
        }
    }

    /// With an address of a network that its spec named.
    pub fn chosen(self, network: Network, container_ip: Ipv4Addr) -> Self {
        Self { host_ip: network.host_ip(), container_ip, chosen: Some(network), ..self }
    }

    pub fn container_ipv6(&self) -> Option<Ipv6Addr> {
        self.v6.map(|ends| ends.container_ip)
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
    fn an_ipv6_pool_has_room_for_all_and_can_be_routed() {
        let check = |v6: &str, v4: &str| {
            let checked = check_pool_v6(v6.parse().unwrap(), v4.parse().unwrap());
            checked.err().map(|why| why.to_string()).unwrap_or_default()
        };
        assert_eq!(check("fd00:1::/112", "10.254.0.0/18"), "");
        assert_eq!(check("fd00:1::/64", "10.0.0.0/8"), "");
        assert_eq!(check("2001:db8::/114", "10.254.0.0/18"), "");
        assert_eq!(
            check("fd00:1::/115", "10.254.0.0/18"),
            "it has room for 2048 containers, and the IPv4 pool for 4096: a /114 would do"
        );
        assert_eq!(check("fd00:1::/126", "10.254.0.0/30"), "");
        assert!(check("fd00:1::/127", "10.254.0.0/30").contains("a /126 would do"));
        for unfit in ["fe80::/64", "ff02::/112", "::1/64", "::ffff:10.0.0.0/104", "::/0", "2000::/3", "::/64"]
        {
            assert_eq!(check(unfit, "10.254.0.0/18"), "its addresses are none that can be routed", "{unfit}");
        }
    }

    #[test]
    fn a_connection_of_a_garden_that_knew_no_ipv6_has_none() {
        let old = r#"{"subnet":1,"host_ip":"10.254.0.5","container_ip":"10.254.0.6","host_link":"d-1",
            "mapped_ports":[],"net_out":[]}"#;
        let read: Connection = serde_json::from_str(old).unwrap();
        assert_eq!(read, Connection::new("10.254.0.0/18".parse().unwrap(), None, 1, "d-"));
        assert!(!serde_json::to_string(&read).unwrap().contains("v6"), "nor does it stumble over ours");
        let dual = Connection::new("10.254.0.0/18".parse().unwrap(), "fd00:1::/112".parse().ok(), 1, "d-");
        let again: Connection = serde_json::from_str(&serde_json::to_string(&dual).unwrap()).unwrap();
        assert_eq!(again, dual);
    }

    #[test]
    fn both_families_number_containers_alike() {
        let of = |subnet| {
            Connection::new("10.254.0.0/18".parse().unwrap(), "fd00:1::/112".parse().ok(), subnet, "d-")
        };
        let ends = of(65).v6.unwrap();
        assert_eq!(
            (ends.host_ip.to_string(), ends.container_ip.to_string()),
            ("fd00:1::105".into(), "fd00:1::106".into())
        );
        assert_eq!(of(4095).container_ipv6().unwrap().to_string(), "fd00:1::3ffe");
        assert_eq!(of(4095).container_ip.to_string(), "10.254.63.254");
    }

    #[test]
    fn every_container_has_a_30_of_its_own() {
        let pool: Network = "10.254.0.0/18".parse().unwrap();
        let connection = Connection::new(pool, None, 65, "diego-");
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
