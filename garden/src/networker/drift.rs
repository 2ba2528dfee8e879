//! Whether the kernel still holds what containers are recorded to have. Others reload their firewalls and may flush ours
//! with them, or delete a link by hand: this finds out what is missing, and says so. What puts it right is in the parent.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::PoisonError;

use garden_sys::netlink::route::Route;
use garden_sys::nftables::{Changed, Family, Look};

use super::links::host_side_addresses;
use super::plan::Connection;
use super::{Error, Networker, Result, host, rules, table};

/// What is there now.
pub struct Seen {
    /// With the number of their rules.
    chains: BTreeMap<(Family, String), usize>,
    elements: BTreeMap<(Family, String), BTreeSet<Vec<u8>>>,
    /// With their addresses.
    links: BTreeMap<String, BTreeSet<IpAddr>>,
}

impl Seen {
    /// What a container should have and has not.
    pub fn lacks(&self, table: &str, handle: &str, connection: &Connection) -> Vec<String> {
        let mut lacks = self.lacks_of_link(connection);
        for (family, address) in rules::addresses(connection) {
            let jump = (rules::EGRESS, rules::jump(connection, address));
            for (set, element) in rules::elements(connection, address).into_iter().chain([jump]) {
                let keys = self.elements.get(&(family, set.to_owned()));
                if !keys.is_some_and(|keys| keys.contains(&element.key)) {
                    lacks.push(format!("{}element of '{set}'", told(family)));
                }
            }
        }
        // Of a record that somebody has changed.
        let Ok(attached) = rules::attached(table, handle, connection) else { return lacks };
        for (chain, rules) in attached.rules() {
            match self.chains.get(chain) {
                Some(there) if there == rules => {}
                there => {
                    let there = there.unwrap_or(&0);
                    lacks.push(format!("{}egress rules ({there} of {rules})", told(chain.0)));
                }
            }
        }
        for allowed in rules::allowed(connection).unwrap_or_default() {
            let there = self.elements.get(&(allowed.family, rules::own(connection)));
            if there != Some(&allowed.keys()) {
                lacks.push(format!("{}egress rules as they were asked for", told(allowed.family)));
            }
        }
        lacks
    }

    fn lacks_of_link(&self, connection: &Connection) -> Vec<String> {
        let Some(addresses) = self.links.get(&connection.host_link) else {
            return vec![format!("link {}", connection.host_link)];
        };
        let wanted = host_side_addresses(connection).into_iter().map(|given| given.address());
        let missing = wanted.filter(|address| !addresses.contains(address));
        missing.map(|address| format!("address {address} of its link")).collect()
    }
}

fn told(family: Family) -> &'static str {
    if family == Family::Ipv4 { "" } else { "IPv6 " }
}

/// `None`: the table is not there, or not as it was made.
pub fn look(table: &str, policy: &rules::Policy) -> Result<Option<Seen>> {
    let see = || {
        let (mut chains, mut elements) = (BTreeMap::new(), BTreeMap::new());
        for family in policy.families() {
            let look = Look::open(table, family)?;
            if !look.exists()? {
                return Ok(None);
            }
            let of_family = look.chains()?;
            let own = of_family.keys().map(String::as_str).filter(|chain| rules::is_own(chain));
            for set in own.chain([rules::PORTS, rules::SOURCES, rules::EGRESS, rules::CHOSEN]) {
                elements.insert((family, set.to_owned()), look.keys(set)?.into_iter().collect());
            }
            chains.extend(of_family.into_iter().map(|(chain, rules)| ((family, chain), rules)));
        }
        let base = rules::base(table, policy, Changed::ByAnybody);
        if base.rules().iter().any(|(chain, rules)| chains.get(chain) != Some(rules)) {
            return Ok(None);
        }
        Ok(Some(Seen { chains, elements, links: links()? }))
    };
    match see() {
        // It went while it was looked at.
        Err(error) if is_missing(&error) => Ok(None),
        seen => seen.map_err(Error::netlink("look at the firewall")),
    }
}

fn links() -> garden_sys::netlink::Result<BTreeMap<String, BTreeSet<IpAddr>>> {
    let host = Route::open()?;
    let mut addresses = BTreeMap::<u32, BTreeSet<IpAddr>>::new();
    for (link, address) in host.addresses()? {
        addresses.entry(link).or_default().insert(address);
    }
    let links = host.links()?.into_iter();
    Ok(links.map(|link| (link.name, addresses.remove(&link.index).unwrap_or_default())).collect())
}

impl Networker {
    pub fn look(&self) -> Result<Option<Seen>> {
        look(&self.config.table, &self.policy())
    }

    /// What a container should have in the kernel and has not, in words.
    pub fn lacks(&self, seen: &Seen, handle: &str, connection: &Connection) -> Vec<String> {
        seen.lacks(&self.config.table, handle, connection)
    }

    /// What can be put right of the network of a container that lives: all but its link.
    pub fn repair(&self, handle: &str, connection: &Connection) -> Result<()> {
        self.give_addresses_again(connection)?;
        self.open_firewall_again(handle, connection)
    }

    /// A link that is set down, or told to have no IPv6, forgets its addresses of that family.
    fn give_addresses_again(&self, connection: &Connection) -> Result<()> {
        let failed = "give a link its addresses again";
        let host = Route::open().map_err(Error::netlink(failed))?;
        let Some(link) = host.find(&connection.host_link).map_err(Error::netlink(failed))? else {
            return Ok(());
        };
        host::unless_gone(host::configure_link(&connection.host_link, connection.v6.is_some()))?;
        let again = || -> garden_sys::netlink::Result<()> {
            host.bring_up(link.index)?;
            for address in host_side_addresses(connection) {
                match address.give(&host, link.index) {
                    Err(error) if error.errno() == Some(rustix::io::Errno::EXIST.raw_os_error()) => {}
                    added => added?,
                }
            }
            if connection.v6.is_some() {
                match host.add_local_route(link.index, Ipv6Addr::LOCALHOST) {
                    Err(error) if error.errno() == Some(rustix::io::Errno::EXIST.raw_os_error()) => {}
                    added => added?,
                }
            }
            Ok(())
        };
        match again() {
            // It went meanwhile.
            Err(error) if error.errno() == Some(rustix::io::Errno::NODEV.raw_os_error()) => Ok(()),
            given => given.map_err(Error::netlink(failed)),
        }
    }

    /// The whole firewall again, with what these containers have, in one step. Not once it was removed
    /// for good: false.
    pub fn make_firewall_again(&self, kept: &[(&str, &Connection)]) -> Result<bool> {
        let removed = self.removed.lock().unwrap_or_else(PoisonError::into_inner);
        if *removed {
            return Ok(false);
        }
        table::make(&self.reservations.owner, self.changed, &self.config.table, &self.policy(), kept)?;
        Ok(true)
    }
}

pub(super) fn is_missing(error: &garden_sys::netlink::Error) -> bool {
    error.errno() == Some(rustix::io::Errno::NOENT.raw_os_error())
}
