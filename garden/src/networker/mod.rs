//! Gives each container a network: a link of its own, addresses, mapped ports and a firewall, by netlink alone.
//!
//! [`plan`], [`rules`] and [`resolv`] decide; this file acts. All of it is synchronous and answers within milliseconds:
//! call it from a blocking thread. It works on the network namespace of the calling thread as the host's.
//! It does not make network namespaces (the containerizer does) and does not keep records (the depot does): a
//! [`Connection`] is all there is to know, and it exists, with its reservations, before anything in the kernel does.

pub mod address;
mod beside;
mod chosen;
mod config;
mod departures;
mod drift;
mod egress;
pub mod explain;
mod host;
mod links;
pub mod plan;
mod ports;
mod published;
pub mod resolv;
pub mod rules;
mod table;
#[cfg(test)]
mod tests;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::BorrowedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::milestone;
pub use address::{AnyNetwork, Network};
pub use beside::older_tables;
pub use chosen::Wanted;
pub use config::Config;
use config::{check_ipv6, check_pool};
use departures::{Departures, Reservations};
use garden_client::{NetIn, NetOutRule};
use garden_sys::netlink::route::LINK_NAME_BYTES_MAX;
use garden_sys::nftables::{Changed, Owner};
pub use plan::Connection;
use plan::{MTU_V6_MIN, Pool};
pub use published::{Published, host_addresses};

use crate::plugins::network::{self, Connected};
use resolv::HostSide;

const RESOLV_CONF: &str = "/etc/resolv.conf";
const DEFAULT_MTU: u32 = 1500;
const SETTLE_TIME: Duration = Duration::from_secs(20);
/// A program that was about to begin when a garden ended has what was the garden's until it has begun.
const CLAIM_PATIENCE: Duration = Duration::from_secs(1);
const CLAIM_PAUSE: Duration = Duration::from_millis(5);
/// The number of a container's subnet, in hexadecimal, ends the name of its link.
const LINK_SUFFIX_BYTES_MAX: usize = 8;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("link prefix {0:?} is empty or too long")]
    LinkPrefix(String),
    #[error("cannot use the IPv6 pool {pool}")]
    PoolV6 { pool: Network<Ipv6Addr>, source: plan::UnfitPool },
    #[error("this machine's kernel has no IPv6 (is it off, by ipv6.disable=1?), which the pool {0} needs")]
    NoIpv6(Network<Ipv6Addr>),
    #[error(
        "links of {mtu} bytes a packet carry no IPv6, which the pool {pool} needs: {MTU_V6_MIN} is the least"
    )]
    MtuV6 { mtu: u32, pool: Network<Ipv6Addr> },
    #[error("another garden on this host uses the {kind} '{name}'")]
    InUse { kind: &'static str, name: String },
    #[error("cannot claim the {kind} '{name}'")]
    Claim { kind: &'static str, name: String, source: io::Error },
    #[error("cannot make the firewall table {table}")]
    Table { table: String, source: garden_sys::netlink::Error },
    #[error("cannot {act} {path}")]
    File { act: &'static str, path: PathBuf, source: io::Error },
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
    #[error("the pool of container networks {pool} overlaps the network of {link}, which has {address}")]
    PoolOverlaps { pool: Network, link: String, address: Ipv4Addr },
    #[error("the pool of container networks {0} is used up")]
    SubnetsUsedUp(Network),
    #[error("port pool is exhausted")]
    PortsUsedUp,
    #[error("host port {0} is in use")]
    PortInUse(u32),
    #[error("port {0} does not exist")]
    NoSuchPort(u32),
    #[error("the network {0} is asked for, and containers of this garden have no IPv6")]
    NoPoolV6(String),
    #[error("the network {0} is asked for, and containers are given their IPv6 networks from {1}")]
    ChosenV6(String, Network<Ipv6Addr>),
    #[error(transparent)]
    Wanted(#[from] address::InvalidNetwork),
    #[error(transparent)]
    Chosen(#[from] chosen::Refused),
    #[error(transparent)]
    InvalidRule(#[from] egress::InvalidRule),
    #[error("cannot {act}")]
    Netlink { act: &'static str, source: garden_sys::netlink::Error },
}

impl Error {
    fn netlink(act: &'static str) -> impl FnOnce(garden_sys::netlink::Error) -> Self {
        move |source| Error::Netlink { act, source }
    }
}

pub type Result<T> = std::result::Result<T, Error>;

#[derive(Debug)]
pub struct Networker {
    config: Config,
    mtu: u32,
    external_ip: IpAddr,
    host_resolv_conf: String,
    reservations: Arc<Reservations>,
    departures: Departures,
    changed: Changed,
    /// Garden ends, and its table with it.
    removed: Mutex<bool>,
    _claims: [UnixListener; 2],
}

impl Networker {
    /// Makes the firewall's table anew and lets the host forward. What containers of an earlier life had, each by its handle,
    /// is reserved for them and is in the new table from the first moment on: their traffic does not notice.
    pub fn start(config: Config, kept: &[(&str, &Connection)]) -> Result<Self> {
        let prefix = config.link_prefix.as_bytes();
        if prefix.is_empty() || prefix.len() + LINK_SUFFIX_BYTES_MAX > LINK_NAME_BYTES_MAX {
            return Err(Error::LinkPrefix(config.link_prefix));
        }
        let mtu = config.mtu.or_else(host::default_route_mtu).unwrap_or(DEFAULT_MTU);
        if let Some(pool) = config.pool_v6.filter(|_| !config.idle) {
            check_ipv6(&config, pool, mtu)?;
        }
        let claims = [claim("table", &config.table)?, claim("links", &config.link_prefix)?];
        // A host without one resolves nothing, and its containers neither.
        let host_resolv_conf = std::fs::read_to_string(RESOLV_CONF).unwrap_or_default();
        let (owner, mut changed) = (Arc::new(Owner::default()), Changed::ByAnybody);
        if !config.idle {
            check_pool(&config)?;
            changed = table::make_first(&owner, &config, &policy(&config, &host_resolv_conf), kept)?;
            if config.pool_v6.is_none() {
                table::remove_that_of_ipv6(&owner, &config.table);
            }
            milestone::passed();
            host::forward_packets(config.pool_v6.is_some())?;
        }
        let reservations = Arc::new(Reservations {
            table: config.table.clone(),
            owner,
            subnets: Mutex::new(Pool::subnets(config.pool)),
            chosen: Mutex::default(),
            ports: Mutex::new(Pool::ports(config.port_pool_start, config.port_pool_size)),
        });
        kept.iter().for_each(|(_, connection)| reservations.take(connection));
        let networker = Self {
            mtu,
            external_ip: config
                .external_ip
                .or_else(host::own_address)
                .unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            host_resolv_conf,
            _claims: claims,
            departures: Departures::start(reservations.clone()).map_err(Error::Thread)?,
            reservations,
            changed,
            removed: Mutex::default(),
            config,
        };
        if !networker.config.idle {
            beside::tell_of_older_tables();
            if let Err(error) = networker.pass_others() {
                tracing::error!(
                    error = crate::chain(&error),
                    "other firewalls of this host may drop what containers send"
                );
            }
        }
        Ok(networker)
    }

    /// Whoever switched forwarding off.
    pub fn forward_packets(&self) -> Result<()> {
        host::forward_packets(self.config.pool_v6.is_some())
    }

    /// What the operator has decided for all containers.
    pub fn policy(&self) -> rules::Policy {
        policy(&self.config, &self.host_resolv_conf)
    }

    /// What others may know of it; `None`: somebody else makes the networks.
    pub fn published(&self) -> Option<Published> {
        (!self.config.idle).then(|| Published { table: self.config.table.clone(), policy: self.policy() })
    }

    /// How many containers there are addresses for.
    pub fn capacity(&self) -> u64 {
        lock(&self.reservations.subnets).size()
    }

    /// The host's address by which mapped ports are reached from elsewhere.
    pub fn external_ip(&self) -> IpAddr {
        self.external_ip
    }

    /// Reserves everything the container will use; nothing in the kernel changes yet. Ended by
    /// [`Networker::disconnect`].
    pub fn reserve(&self, net_in: &[NetIn], net_out: &[NetOutRule]) -> Result<Connection> {
        let mut connection = self.reserve_addresses(None)?;
        match self.reserve_ports(&mut connection, net_in) {
            Ok(()) => connection.net_out = net_out.to_vec(),
            Err(error) => {
                self.reservations.release(&connection);
                return Err(error);
            }
        }
        Ok(connection)
    }

    /// What a spec's word on its network means; `None`: any of the pool.
    pub fn wanted(&self, network: &str) -> Result<Option<Wanted>> {
        if network.is_empty() {
            return Ok(None);
        }
        let address = network.split('/').next().unwrap_or_default();
        match (address.parse::<Ipv6Addr>(), self.config.pool_v6) {
            (Ok(_), None) => Err(Error::NoPoolV6(network.into())),
            (Ok(_), Some(pool)) => Err(Error::ChosenV6(network.into(), pool)),
            (Err(_), _) => Ok(Some(network.parse()?)),
        }
    }

    /// The addresses of a container to come: of the pool, or as its spec wants them.
    pub fn reserve_addresses(&self, wanted: Option<Wanted>) -> Result<Connection> {
        let Config { pool, pool_v6, link_prefix, .. } = &self.config;
        let subnet = lock(&self.reservations.subnets).acquire().ok_or(Error::SubnetsUsedUp(*pool))?;
        let connection = Connection::new(*pool, *pool_v6, subnet, link_prefix);
        let Some(wanted) = wanted else { return Ok(connection) };
        match self.choose(wanted) {
            Ok(container_ip) => Ok(connection.chosen(wanted.network, container_ip)),
            Err(error) => {
                self.reservations.release(&connection);
                Err(error)
            }
        }
    }

    fn choose(&self, wanted: Wanted) -> Result<Ipv4Addr> {
        let of_others = host::address_within(wanted.network, &self.config.link_prefix);
        if let Some((link, address)) = of_others.map_err(Error::netlink("list the host's addresses"))? {
            return Err(chosen::Refused::Host { network: wanted.network, link, address }.into());
        }
        Ok(lock(&self.reservations.chosen).acquire(wanted, self.config.pool)?)
    }

    /// How many more containers there are addresses for.
    pub fn free_addresses(&self) -> u64 {
        lock(&self.reservations.subnets).free()
    }

    /// Makes what [`Networker::reserve`] reserved. At an error, [`Networker::disconnect`] takes away what exists.
    pub fn connect(&self, handle: &str, connection: &Connection, namespace: BorrowedFd<'_>) -> Result<()> {
        self.link(connection, namespace)?;
        self.open_firewall(handle, connection)
    }

    /// Lets through what the container that has just been linked may send and receive: its address, its ports, its egress rules.
    pub fn open_firewall(&self, handle: &str, connection: &Connection) -> Result<()> {
        let opened = rules::opened(&self.config.table, handle, connection)?;
        match self.reservations.owner.commit("add a container to the firewall", opened) {
            // Others have flushed what was prepared.
            Err(error) if drift::is_missing(&error) => self.open_firewall_again(handle, connection),
            opened => opened.map_err(Error::netlink("open the firewall")),
        }
    }

    /// In the place of what a container has, if anything.
    pub fn open_firewall_again(&self, handle: &str, connection: &Connection) -> Result<()> {
        let attached = rules::attached(&self.config.table, handle, connection)?;
        self.reservations
            .owner
            .commit("open the firewall for a container again", attached)
            .map_err(Error::netlink("open the firewall"))
    }

    /// Reserves again what a container of an earlier life has that is about to be taken away.
    pub fn reserve_again(&self, connection: &Connection) {
        self.reservations.take(connection);
    }

    /// Back to the rules of the connection, when more could not be recorded.
    pub fn undo_bulk_net_out(&self, handle: &str, connection: &Connection) {
        let undone = self.open_firewall_again(handle, connection);
        if let Err(error) = undone {
            tracing::error!(handle, error = crate::chain(&error), "cannot remove egress rules");
        }
    }

    /// More egress for a running container. The caller records the rules in the connection.
    pub fn bulk_net_out(&self, handle: &str, connection: &Connection, net_out: &[NetOutRule]) -> Result<()> {
        let net_out = [&connection.net_out, net_out].concat();
        self.open_firewall_again(handle, &Connection { net_out, ..connection.clone() })
    }

    /// Takes everything away, whether it was ever made or not, and gives the reservations back, behind the answer
    /// (see [`departures`]). Once: afterwards the reservations may be another's.
    pub fn disconnect(&self, connection: Connection) {
        self.departures.add(connection);
    }

    /// Waits until everything that was disconnected is gone. Blocking.
    pub fn settle(&self) {
        if !self.departures.settle(SETTLE_TIME) {
            tracing::warn!("networks of containers are still being taken away");
        }
    }

    /// When no container is left: no trace in the firewall. (Forwarding stays on: others may have come to rely on it.)
    pub fn remove_table(&self) -> Result<()> {
        if self.config.idle {
            return Ok(());
        }
        let mut removed = self.removed.lock().unwrap_or_else(PoisonError::into_inner);
        *removed = true;
        self.leave_others()?;
        let table = rules::removed(&self.config.table, self.policy().families());
        self.reservations
            .owner
            .commit("remove the firewall's table", table)
            .map_err(Error::netlink("remove the firewall"))
    }

    pub fn resolv_conf(&self, connection: &Connection) -> String {
        let Config { dns_servers, additional_dns_servers, .. } = &self.config;
        let host_ip = HostSide { v4: connection.host_ip, v6: connection.v6.map(|ends| ends.host_ip) };
        resolv::resolv_conf(&self.host_resolv_conf, host_ip, dns_servers, additional_dns_servers)
    }

    pub fn hosts(&self, ip: Option<IpAddr>, ipv6: Option<Ipv6Addr>, hostname: &str) -> String {
        resolv::hosts(ip, ipv6, hostname, &self.config.additional_host_entries)
    }

    /// For a container whose network a plugin has made.
    pub fn plugin_resolv_conf(&self, connected: &Connected, container_ip: Option<IpAddr>) -> String {
        let Config { dns_servers, additional_dns_servers, .. } = &self.config;
        network::resolv_conf(
            &self.host_resolv_conf,
            connected,
            dns_servers,
            additional_dns_servers,
            container_ip,
        )
    }
}

fn policy(config: &Config, host_resolv_conf: &str) -> rules::Policy {
    let dns_servers = config.dns_servers.iter().chain(&config.additional_dns_servers);
    rules::Policy {
        pool: config.pool,
        pool_v6: config.pool_v6,
        link_prefix: config.link_prefix.clone(),
        deny_networks: address::denied(&config.deny_networks, config.pool_v6.is_some()),
        allow_host_access: config.allow_host_access,
        dns_servers: dns_servers.copied().collect(),
        host_answers_dns: resolv::asks_the_host(host_resolv_conf, &config.dns_servers),
    }
}

/// Two gardens with the same names would take each other's networks for leftovers. An abstract socket belongs to a
/// network namespace, as these names do, and goes with its process however that ends.
fn claim(kind: &'static str, name: &str) -> Result<UnixListener> {
    let failed = |source| Error::Claim { kind, name: name.into(), source };
    let address = SocketAddr::from_abstract_name(format!("diego-garden/{kind}/{name}")).map_err(failed)?;
    let began = Instant::now();
    loop {
        match UnixListener::bind_addr(&address) {
            Err(error) if error.kind() != io::ErrorKind::AddrInUse => return Err(failed(error)),
            Err(_) if began.elapsed() > CLAIM_PATIENCE => {
                return Err(Error::InUse { kind, name: name.into() });
            }
            Err(_) => std::thread::sleep(CLAIM_PAUSE),
            Ok(claimed) => return Ok(claimed),
        }
    }
}

fn lock<T>(pool: &Mutex<T>) -> MutexGuard<'_, T> {
    pool.lock().unwrap_or_else(PoisonError::into_inner)
}
