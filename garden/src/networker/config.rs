//! How the operator wants containers' networks, and what is checked of it before the first container is.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::address::{AnyNetwork, Network};
use super::plan::{self, Connection, MTU_V6_MIN, Pool};
use super::{Error, Result, host};

#[derive(Debug, Clone)]
pub struct Config {
    /// Cut into networks of four addresses, one a container.
    pub pool: Network,
    /// Cut the same way; `None`: containers have no IPv6.
    pub pool_v6: Option<Network<Ipv6Addr>>,
    pub port_pool_start: u16,
    pub port_pool_size: u16,
    /// Of the nftables table; two gardens on one host need two names and two prefixes.
    pub table: String,
    /// Of kernels that keep a table for its owner. Otherwise who flushes all rules flushes it, too, and it is made again.
    pub owns_table: bool,
    pub link_prefix: String,
    /// `None`: that of the link of the host's default route.
    pub mtu: Option<u32>,
    /// Everything of IPv4 stands for everything, unless networks of IPv6 are named, too.
    pub deny_networks: Vec<AnyNetwork>,
    pub allow_host_access: bool,
    pub dns_servers: Vec<IpAddr>,
    pub additional_dns_servers: Vec<IpAddr>,
    pub additional_host_entries: Vec<String>,
    /// `None`: that of the host's way to the internet.
    pub external_ip: Option<IpAddr>,
    /// Networks are made by somebody else: the host's firewall and settings are left alone.
    pub idle: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            pool: Network::new(Ipv4Addr::new(10, 254, 0, 0), 18),
            pool_v6: None,
            port_pool_start: 61001,
            port_pool_size: 4534,
            table: "diego".into(),
            owns_table: true,
            link_prefix: "diego-".into(),
            mtu: None,
            deny_networks: Vec::new(),
            allow_host_access: false,
            dns_servers: Vec::new(),
            additional_dns_servers: Vec::new(),
            additional_host_entries: Vec::new(),
            external_ip: None,
            idle: false,
        }
    }
}

impl Config {
    /// Whether a connection of an earlier life could have been made with these settings: with others its address or the
    /// name of its link would become another's. One without IPv6 could, before there was a pool for that.
    pub fn could_have_made(&self, connection: &Connection) -> bool {
        let pool_v6 = self.pool_v6.filter(|_| connection.v6.is_some());
        let pooled = Connection::new(self.pool, pool_v6, connection.subnet, &self.link_prefix);
        let made = match connection.chosen {
            Some(network) if network.overlaps(self.pool) => return false,
            Some(network) => pooled.chosen(network, connection.container_ip),
            None => pooled,
        };
        let names = |connection: &Connection| {
            (connection.host_ip, connection.container_ip, connection.v6, connection.host_link.clone())
        };
        u64::from(connection.subnet) < Pool::subnets(self.pool).size() && names(&made) == names(connection)
    }
}

/// All that would only fail with the first container.
pub fn check_ipv6(config: &Config, pool: Network<Ipv6Addr>, mtu: u32) -> Result<()> {
    plan::check_pool_v6(pool, config.pool).map_err(|source| Error::PoolV6 { pool, source })?;
    if !host::has_ipv6() {
        return Err(Error::NoIpv6(pool));
    }
    if mtu < MTU_V6_MIN { Err(Error::MtuV6 { mtu, pool }) } else { Ok(()) }
}

/// What is attached to this host would not be reached any more.
pub fn check_pool(config: &Config) -> Result<()> {
    let within = host::address_within(config.pool, &config.link_prefix);
    match within.map_err(Error::netlink("list the host's addresses"))? {
        Some((link, address)) => Err(Error::PoolOverlaps { pool: config.pool, link, address }),
        None => Ok(()),
    }
}
