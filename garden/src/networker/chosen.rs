//! Networks that containers' specs name: outside of the pool, as large as they say, shared by those who name the same.
//!
//! Of each the first address is the host's, on the link of every container there; the others are containers', each reached
//! by its own link alone. So they need no bridge, and reach one another no more than those of the pool do.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::str::FromStr;

use super::address::{InvalidNetwork, Network};
use super::plan::{Connection, SUBNET_PREFIX_BITS};
use super::rules::LOOPBACK;

/// A spec's words: `10.1.2.0/24`, with an address of it (`10.1.2.9/24`) that one, without a prefix a /30.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    pub network: Network,
    container_ip: Option<Ipv4Addr>,
}

impl FromStr for Wanted {
    type Err = InvalidNetwork;

    fn from_str(text: &str) -> Result<Wanted, InvalidNetwork> {
        let network: Network = match text.contains('/') {
            true => text.parse()?,
            false => format!("{text}/{SUBNET_PREFIX_BITS}").parse()?,
        };
        let address = text.split('/').next().and_then(|address| address.parse().ok());
        Ok(Wanted { network, container_ip: address.filter(|address| *address != network.address) })
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("the requested subnet ({0}) overlaps the dynamic allocation range ({1})")]
    Pool(Network, Network),
    #[error("the requested subnet ({0}) overlaps an existing subnet ({1})")]
    Subnet(Network, Network),
    #[error(
        "the requested subnet ({network}) overlaps an existing subnet (that of {link}, which has {address})"
    )]
    Host { network: Network, link: String, address: Ipv4Addr },
    #[error("the addresses of the requested subnet ({0}) are none that can be routed")]
    NotRouted(Network),
    #[error("insufficient IPs remaining in the pool")]
    UsedUp,
    #[error("the requested IP is already allocated")]
    Taken,
    #[error("a container IP must not equal the gateway IP")]
    Gateway,
    #[error("a container IP must not equal the broadcast IP")]
    Broadcast,
}

/// Those in use, and by whom.
#[derive(Debug, Default)]
pub struct Chosen(BTreeMap<(Ipv4Addr, u8), BTreeSet<Ipv4Addr>>);

impl Chosen {
    /// The container's address.
    pub fn acquire(&mut self, wanted: Wanted, pool: Network) -> Result<Ipv4Addr, Refused> {
        let network = wanted.network;
        if network.address.is_multicast() || network.overlaps(LOOPBACK) {
            return Err(Refused::NotRouted(network));
        }
        if network.overlaps(pool) {
            return Err(Refused::Pool(network, pool));
        }
        let others = self.0.keys().map(|(address, prefix_bits)| Network::new(*address, *prefix_bits));
        if let Some(other) = others.filter(|other| *other != network).find(|other| other.overlaps(network)) {
            return Err(Refused::Subnet(network, other));
        }
        let taken = self.0.get(&key(network));
        let address = choose(wanted, |address| taken.is_some_and(|taken| taken.contains(&address)))?;
        self.0.entry(key(network)).or_default().insert(address);
        Ok(address)
    }

    /// Of a container that is there already.
    pub fn take(&mut self, connection: &Connection) {
        if let Some(network) = connection.chosen {
            self.0.entry(key(network)).or_default().insert(connection.container_ip);
        }
    }

    pub fn release(&mut self, connection: &Connection) {
        let Some(network) = connection.chosen else { return };
        if let Some(taken) = self.0.get_mut(&key(network)) {
            taken.remove(&connection.container_ip);
            if taken.is_empty() {
                self.0.remove(&key(network));
            }
        }
    }
}

fn key(network: Network) -> (Ipv4Addr, u8) {
    (network.address, network.prefix_bits)
}

/// The first address is the network's name, the second the host's, the last everybody's.
fn choose(wanted: Wanted, is_taken: impl Fn(Ipv4Addr) -> bool) -> Result<Ipv4Addr, Refused> {
    let (host_ip, last) = (wanted.network.host_ip(), wanted.network.last());
    match wanted.container_ip {
        Some(address) if address == last => Err(Refused::Broadcast),
        Some(address) if address == host_ip => Err(Refused::Gateway),
        Some(address) if is_taken(address) => Err(Refused::Taken),
        Some(address) => Ok(address),
        None => {
            let mut free = (host_ip.to_bits().saturating_add(1)..last.to_bits()).map(Ipv4Addr::from_bits);
            free.find(|address| !is_taken(*address)).ok_or(Refused::UsedUp)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POOL: Network = Network::new(Ipv4Addr::new(10, 254, 0, 0), 22);

    fn acquire(chosen: &mut Chosen, text: &str) -> Result<Ipv4Addr, String> {
        chosen.acquire(text.parse().unwrap(), POOL).map_err(|refused| refused.to_string())
    }

    #[test]
    fn a_spec_names_a_network_and_perhaps_an_address_of_it() {
        let rows = [
            ("10.1.2.0", "10.1.2.0/30", None),
            ("10.1.2.1", "10.1.2.0/30", Some([10, 1, 2, 1])),
            ("10.1.2.0/24", "10.1.2.0/24", None),
            ("10.1.2.9/24", "10.1.2.0/24", Some([10, 1, 2, 9])),
        ];
        for (text, network, address) in rows {
            let wanted: Wanted = text.parse().unwrap();
            assert_eq!(
                (wanted.network.to_string().as_str(), wanted.container_ip),
                (network, address.map(Ipv4Addr::from))
            );
        }
        for text in ["", "x", "10.1.2", "10.1.2.0/33", "10.1.2.0/", "fd00::/64"] {
            assert!(text.parse::<Wanted>().is_err(), "{text}");
        }
    }

    #[test]
    fn addresses_are_given_once_and_again_when_they_came_back() {
        let mut chosen = Chosen::default();
        assert_eq!(acquire(&mut chosen, "10.1.2.0/29"), Ok([10, 1, 2, 2].into()));
        assert_eq!(acquire(&mut chosen, "10.1.2.3/29"), Ok([10, 1, 2, 3].into()));
        assert_eq!(acquire(&mut chosen, "10.1.2.0/29"), Ok([10, 1, 2, 4].into()));
        let mut connection = Connection::new(POOL, None, 0, "diego-");
        connection.chosen = Some("10.1.2.0/29".parse().unwrap());
        connection.container_ip = [10, 1, 2, 2].into();
        chosen.release(&connection);
        chosen.release(&connection);
        assert_eq!(acquire(&mut chosen, "10.1.2.2/29"), Ok([10, 1, 2, 2].into()));
        for address in 2..5 {
            connection.container_ip = [10, 1, 2, address].into();
            chosen.release(&connection);
        }
        assert_eq!(
            acquire(&mut chosen, "10.1.2.0/24"),
            Ok([10, 1, 2, 2].into()),
            "nobody is in the smaller one"
        );
        chosen.take(&Connection { chosen: Some("10.3.0.0/30".parse().unwrap()), ..connection });
        assert!(acquire(&mut chosen, "10.3.0.0/16").unwrap_err().contains("overlaps an existing subnet"));
    }

    #[test]
    fn what_cannot_be_given_is_refused_in_the_words_that_clients_know() {
        let mut chosen = Chosen::default();
        acquire(&mut chosen, "10.1.2.0/30").unwrap();
        let rows = [
            (
                "10.254.1.0/30",
                "the requested subnet (10.254.1.0/30) overlaps the dynamic allocation range (10.254.0.0/22)",
            ),
            (
                "10.0.0.0/8",
                "the requested subnet (10.0.0.0/8) overlaps the dynamic allocation range (10.254.0.0/22)",
            ),
            ("10.1.0.0/16", "the requested subnet (10.1.0.0/16) overlaps an existing subnet (10.1.2.0/30)"),
            ("10.1.2.0/30", "insufficient IPs remaining in the pool"),
            ("10.1.2.2/30", "the requested IP is already allocated"),
            ("10.1.2.1/30", "a container IP must not equal the gateway IP"),
            ("10.1.2.3/30", "a container IP must not equal the broadcast IP"),
            ("10.9.0.0/31", "insufficient IPs remaining in the pool"),
            ("10.9.0.0/32", "insufficient IPs remaining in the pool"),
            (
                "127.0.0.0/30",
                "the addresses of the requested subnet (127.0.0.0/30) are none that can be routed",
            ),
            (
                "224.0.0.0/24",
                "the addresses of the requested subnet (224.0.0.0/24) are none that can be routed",
            ),
        ];
        for (text, why) in rows {
            assert_eq!(acquire(&mut chosen, text), Err(why.to_string()), "{text}");
        }
    }
}
