//! The link of a container with its host: a veth pair, an address of each side, the way out.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::BorrowedFd;

use garden_client::{BandwidthLimits, NetworkStat};
use garden_sys::netlink::in_namespace;
use garden_sys::netlink::route::{Route, Veth};

use super::plan::{self, CONTAINER_LINK, Connection, SUBNET_PREFIX_BITS, SUBNET_V6_PREFIX_BITS};
use super::{Error, Networker, Result, host, rules};
use crate::milestone;

/// By which neighbours find one another: the same on every link, and of no use beyond it.
const HOST_LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
const CONTAINER_LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);
const LINK_LOCAL_PREFIX_BITS: u8 = 64;
const CONTAINER_SIDE: &str = "set up a container's side of a link";

impl Networker {
    /// Links a namespace with the host. Until [`Networker::open_firewall`], nothing that comes from it is let through.
    pub fn link(&self, connection: &Connection, namespace: BorrowedFd<'_>) -> Result<()> {
        let host = Route::open().map_err(Error::netlink("reach the host's links"))?;
        self.make_links(&host, connection, namespace).map_err(Error::netlink("make a container's links"))?;
        milestone::passed();
        host::configure_link(&connection.host_link, connection.v6.is_some())?;
        host_side(&host, connection).map_err(Error::netlink("set up the host's side of a link"))?;
        milestone::passed();
        let container = enter(connection, namespace)?;
        container_side(&container, connection).map_err(Error::netlink(CONTAINER_SIDE))?;
        let prepared = rules::prepared(&self.config.table, connection);
        self.reservations
            .owner
            .commit("prepare the firewall for a container", prepared)
            .map_err(Error::netlink("prepare the firewall"))
    }

    fn make_links(
        &self,
        host: &Route,
        connection: &Connection,
        namespace: BorrowedFd<'_>,
    ) -> garden_sys::netlink::Result<()> {
        let veth = Veth {
            name: &connection.host_link,
            peer_name: CONTAINER_LINK,
            peer_namespace: namespace,
            mtu: self.mtu,
        };
        match host.create_veth(&veth) {
            // A leftover of an earlier life: nobody else may use our prefix, and our pool says the name is free.
            Err(error) if error.errno() == Some(rustix::io::Errno::EXIST.raw_os_error()) => {
                host.delete(&connection.host_link)?;
                host.create_veth(&veth)
            }
            result => result,
        }
    }

    /// Holds what the container receives, and what it sends, each to its rate. The kernel does it as long as the link lives,
    /// whatever becomes of garden.
    pub fn shape(
        &self,
        connection: &Connection,
        namespace: BorrowedFd<'_>,
        limits: BandwidthLimits,
    ) -> Result<()> {
        let Some(rate) = plan::rate(limits, self.mtu) else { return Ok(()) };
        let limit = |links: &Route, name| links.limit_rate(links.index(name)?, rate);
        let both = || {
            limit(&Route::open()?, &connection.host_link)?;
            limit(&Route::open_in(namespace)?, CONTAINER_LINK)
        };
        both().map_err(Error::netlink("limit a container's bandwidth"))
    }

    /// Of all containers at once, by the name of the host's link; as the container sees it.
    pub fn traffic(&self) -> Result<BTreeMap<String, NetworkStat>> {
        let links = Route::open()
            .and_then(|host| host.links())
            .map_err(Error::netlink("read the links' counters"))?;
        let ours = links.into_iter().filter(|link| link.name.starts_with(&self.config.link_prefix));
        Ok(ours
            .map(|link| (link.name, NetworkStat { rx_bytes: link.tx_bytes, tx_bytes: link.rx_bytes }))
            .collect())
    }

    /// Deletes links with our prefix that belong to none of `kept`.
    pub fn delete_stray_links(&self, kept: &[&Connection]) -> Result<()> {
        let host = Route::open().map_err(Error::netlink("reach the host's links"))?;
        let links = host.links().map_err(Error::netlink("list the host's links"))?;
        let stray = links.into_iter().map(|link| link.name).filter(|name| {
            name.starts_with(&self.config.link_prefix)
                && !kept.iter().any(|connection| connection.host_link == *name)
        });
        let mut outcome = Ok(());
        for name in stray {
            tracing::info!(link = name, "deleting a stray link");
            outcome = outcome.and(host.delete(&name).map(drop));
        }
        outcome.map_err(Error::netlink("delete a stray link"))
    }
}

fn host_side(host: &Route, connection: &Connection) -> garden_sys::netlink::Result<()> {
    let index = host.index(&connection.host_link)?;
    if connection.v6.is_some() {
        host.without_own_addresses(index)?;
    }
    host.bring_up(index)?;
    host_side_addresses(connection).iter().try_for_each(|address| address.give(host, index))?;
    let Some(_) = connection.v6 else { return Ok(()) };
    // By which mapped ports answer on ::1, as they do on 127.0.0.1 by a setting.
    host.add_local_route(index, Ipv6Addr::LOCALHOST)
}

/// An address of one side of a link, and what is reached by it.
#[derive(Debug, Clone, Copy)]
pub enum Given {
    Within(IpAddr, u8),
    /// The other side alone: others of its network are on other links.
    Beside(Ipv4Addr, Ipv4Addr),
}

impl Given {
    pub fn address(self) -> IpAddr {
        match self {
            Self::Within(address, _) => address,
            Self::Beside(address, _) => address.into(),
        }
    }

    pub fn give(self, links: &Route, index: u32) -> garden_sys::netlink::Result<()> {
        match self {
            Self::Within(address, prefix_bits) => links.add_address(index, address, prefix_bits),
            Self::Beside(address, other) => links.add_address_with_peer(index, address, other),
        }
    }

    fn v4(connection: &Connection, address: Ipv4Addr, other: Ipv4Addr) -> Self {
        match connection.chosen {
            None => Self::Within(address.into(), SUBNET_PREFIX_BITS),
            Some(_) => Self::Beside(address, other),
        }
    }
}

pub fn host_side_addresses(connection: &Connection) -> Vec<Given> {
    let mut addresses = vec![Given::v4(connection, connection.host_ip, connection.container_ip)];
    if let Some(ends) = connection.v6 {
        addresses.push(Given::Within(HOST_LINK_LOCAL.into(), LINK_LOCAL_PREFIX_BITS));
        addresses.push(Given::Within(ends.host_ip.into(), SUBNET_V6_PREFIX_BITS));
    }
    addresses
}

fn container_side(container: &Route, connection: &Connection) -> garden_sys::netlink::Result<()> {
    container.bring_up(container.index("lo")?)?;
    let index = container.index(CONTAINER_LINK)?;
    Given::v4(connection, connection.container_ip, connection.host_ip).give(container, index)?;
    if connection.v6.is_some() {
        container.without_own_addresses(index)?;
    }
    container.bring_up(index)?;
    container.add_default_route(connection.host_ip)?;
    let Some(ends) = connection.v6 else { return Ok(()) };
    container.add_address(index, CONTAINER_LINK_LOCAL, LINK_LOCAL_PREFIX_BITS)?;
    container.add_address(index, ends.container_ip, SUBNET_V6_PREFIX_BITS)?;
    container.add_default_route(ends.host_ip)
}

/// A door into the container's network namespace, which has what its link needs.
fn enter(connection: &Connection, namespace: BorrowedFd<'_>) -> Result<Route> {
    let open = || -> Result<Route> {
        if connection.v6.is_some() {
            host::speak_ipv6("lo")?;
            host::speak_ipv6(CONTAINER_LINK)?;
        }
        Route::open().map_err(Error::netlink(CONTAINER_SIDE))
    };
    in_namespace(namespace, open).map_err(Error::netlink(CONTAINER_SIDE))?
}
