//! Whether the kernel still holds what containers are recorded to have. Others reload their firewalls and may flush ours
//! with them, or delete a link by hand: this finds out what is missing, and says so. What puts it right is in the parent.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::PoisonError;

use garden_sys::netlink::route::Route;
use garden_sys::nftables::Look;

use super::plan::Connection;
use super::{Error, Networker, Result, make_table, rules};

/// What is there now.
pub struct Seen {
    /// With the number of their rules.
    chains: BTreeMap<String, usize>,
    elements: BTreeMap<String, BTreeSet<Vec<u8>>>,
    links: BTreeSet<String>,
}

impl Seen {
    /// What a container should have and has not.
    pub fn lacks(&self, table: &str, handle: &str, connection: &Connection) -> Vec<String> {
        let mut lacks = Vec::new();
        if !self.links.contains(&connection.host_link) {
            lacks.push(format!("link {}", connection.host_link));
        }
        let jump = (rules::EGRESS, rules::jump(connection));
        for (set, element) in rules::elements(connection).into_iter().chain([jump]) {
            if !self.elements.get(set).is_some_and(|keys| keys.contains(&element.key)) {
                lacks.push(format!("element of '{set}'"));
            }
        }
        // Of a record that somebody has changed.
        let Ok(attached) = rules::attached(table, handle, connection) else { return lacks };
        for (chain, rules) in attached.rules() {
            match self.chains.get(chain) {
                Some(there) if there == rules => {}
                there => lacks.push(format!("egress rules ({} of {rules})", there.unwrap_or(&0))),
            }
        }
        let opened = rules::allowed(connection).unwrap_or_default();
        let there = self.elements.get(rules::own(connection).as_str());
        if there != Some(&opened) {
            lacks.push("egress rules as they were asked for".into());
        }
        lacks
    }
}

/// `None`: the table is not there, or not as it was made.
pub fn look(table: &str, policy: &rules::Policy) -> Result<Option<Seen>> {
    let see = || {
        let look = Look::open(table)?;
        if !look.exists()? {
            return Ok(None);
        }
        let chains = look.chains()?;
        let base = rules::base(table, policy);
        if base.rules().iter().any(|(chain, rules)| chains.get(chain) != Some(rules)) {
            return Ok(None);
        }
        let mut elements = BTreeMap::new();
        let own = chains.keys().map(String::as_str).filter(|chain| rules::is_own(chain));
        for set in own.chain([rules::PORTS, rules::SOURCES, rules::EGRESS]) {
            elements.insert(set.to_owned(), look.keys(set)?.into_iter().collect());
        }
        let links = Route::open()?.links()?.into_iter().map(|link| link.name).collect();
        Ok(Some(Seen { chains, elements, links }))
    };
    match see() {
        // It went while it was looked at.
        Err(error) if is_missing(&error) => Ok(None),
        seen => seen.map_err(Error::netlink("look at the firewall")),
    }
}

impl Networker {
    pub fn look(&self) -> Result<Option<Seen>> {
        look(&self.config.table, &self.policy())
    }

    /// What a container should have in the kernel and has not, in words.
    pub fn lacks(&self, seen: &Seen, handle: &str, connection: &Connection) -> Vec<String> {
        seen.lacks(&self.config.table, handle, connection)
    }

    /// The whole firewall again, with what these containers have, in one step. Not once it was removed
    /// for good: false.
    pub fn make_firewall_again(&self, kept: &[(&str, &Connection)]) -> Result<bool> {
        let removed = self.removed.lock().unwrap_or_else(PoisonError::into_inner);
        if *removed {
            return Ok(false);
        }
        make_table(&self.config.table, &self.policy(), kept).map(|()| true)
    }
}

pub(super) fn is_missing(error: &garden_sys::netlink::Error) -> bool {
    error.errno() == Some(rustix::io::Errno::NOENT.raw_os_error())
}
