//! Other firewalls of the same host. A packet passes only what all of them let through, and some drop whatever is forwarded
//! and not their own: iptables' chain once Docker or ufw have set its policy, and firewalld's zones. There we say that what
//! comes from containers' links, and goes to them, is judged by our table; said behind the operator's own rules, which hold
//! for containers too, and before what these firewalls do with the unknown. Each is told again when it has forgotten it.
//!
//! Chains that are not known here are left alone: an operator who wrote them means what they say. Rules of the older
//! iptables, without nftables, cannot be seen from here, only that there are some: [`older_tables`].

use std::io;
use std::sync::PoisonError;

use garden_sys::nftables::others::{Changes, OthersChain, OthersRule, Packets, chains};
use garden_sys::nftables::{Comparison, Expression, Family, Hook, MetaKey, Register, Verdict};

use super::rules::Policy;
use super::{Error, Networker, Result};

/// A chain that drops what it does not know.
struct Known {
    table: &'static str,
    chain: &'static str,
    /// The first jump to one of these is what comes behind the operator's own rules; without any it is the chain's end.
    behind: &'static [&'static str],
}

const KNOWN: [Known; 2] = [
    // Docker's and ufw's, by iptables.
    Known { table: "filter", chain: "FORWARD", behind: &["ufw-after-forward", "ufw6-after-forward"] },
    Known {
        table: "firewalld",
        chain: "filter_FORWARD",
        behind: &["filter_FORWARD_ZONES", "filter_FORWARD_IN_ZONES", "filter_FORWARD_IN_ZONES_SOURCE"],
    },
];

impl Known {
    fn is(&self, chain: &OthersChain) -> bool {
        self.table == chain.table && self.chain == chain.name
    }
}

impl Networker {
    /// What others do to firewalls from now on. `None`: somebody else makes the networks.
    pub fn listen(&self) -> Result<Option<Changes>> {
        let open = || Changes::open(&self.config.table, &self.reservations.owner);
        let listen = (!self.config.idle).then(open).transpose();
        listen.map_err(Error::netlink("listen to changes of the firewall"))
    }

    /// Lets what our table judges through the other firewalls. Tells by name which had to be told.
    pub fn pass_others(&self) -> Result<Vec<String>> {
        let removed = self.removed.lock().unwrap_or_else(PoisonError::into_inner);
        let mut told = Vec::new();
        if *removed {
            return Ok(told);
        }
        for (known, chain) in known_chains()? {
            let passed = self.pass(known, &chain);
            match passed {
                Ok(false) => {}
                Ok(true) => told.push(format!("{} of table {}", chain.name, chain.table)),
                // It went meanwhile.
                Err(error) if super::drift::is_missing(&error) => {}
                Err(source) => return Err(Error::Netlink { act: "pass another firewall", source }),
            }
        }
        Ok(told)
    }

    /// True if it had to be told.
    fn pass(&self, known: &Known, chain: &OthersChain) -> garden_sys::netlink::Result<bool> {
        let there = chain.rules()?;
        let comment = self.comment();
        let before = there
            .iter()
            .position(|rule| rule.target.as_deref().is_some_and(|target| known.behind.contains(&target)));
        let (early, late) = there.split_at(before.unwrap_or(there.len()));
        let rules = passes(chain.packets, &self.policy());
        if ours(early, &comment).len() == rules.len() && ours(late, &comment).is_empty() {
            return Ok(false);
        }
        let before = before.map(|place| there[place].handle);
        chain.put(&comment, &rules, before, &ours(&there, &comment))?;
        Ok(true)
    }

    /// Takes it back.
    pub(super) fn leave_others(&self) -> Result<()> {
        let comment = self.comment();
        for (_, chain) in known_chains()? {
            let delete = || chain.delete(&ours(&chain.rules()?, &comment));
            match delete() {
                Err(error) if super::drift::is_missing(&error) => {}
                left => left.map_err(Error::netlink("take rules out of another firewall"))?,
            }
        }
        Ok(())
    }

    fn comment(&self) -> String {
        format!("judged by table {}", self.config.table)
    }
}

/// The names of its tables, by family, in the network namespace of the calling thread. Not there where the kernel has none of it.
const OLDER_TABLES: [(&str, &str); 2] =
    [("ip", "/proc/thread-self/net/ip_tables_names"), ("ip6", "/proc/thread-self/net/ip6_tables_names")];

/// Tables of iptables without nftables that are in use here: `ip filter`. What these drop is dropped, and they are not told what
/// ours judges.
pub fn older_tables() -> Result<Vec<String>> {
    let mut tables = Vec::new();
    for (family, path) in OLDER_TABLES {
        match std::fs::read_to_string(path) {
            Ok(names) => tables.extend(names.lines().map(|name| format!("{family} {name}"))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(Error::File { act: "read", path: path.into(), source }),
        }
    }
    Ok(tables)
}

/// Once, when garden starts: they may be an operator's, or what a tool has left that nobody uses any more.
pub(super) fn tell_of_older_tables() {
    match older_tables() {
        Ok(tables) if tables.is_empty() => {}
        Ok(tables) => tracing::warn!(
            tables = tables.join(", "),
            "iptables without nftables is in use on this host: what its tables drop is dropped, containers' packets too"
        ),
        Err(error) => {
            tracing::warn!(error = crate::chain(&error), "cannot tell which older tables there are")
        }
    }
}

fn known_chains() -> Result<Vec<(&'static Known, OthersChain)>> {
    let all = chains(Hook::Forward).map_err(Error::netlink("list other firewalls"))?;
    let known = |chain: OthersChain| KNOWN.iter().find(|known| known.is(&chain)).map(|known| (known, chain));
    Ok(all.into_iter().filter_map(known).collect())
}

fn ours(rules: &[OthersRule], comment: &str) -> Vec<u64> {
    let ours = rules.iter().filter(|rule| rule.comment.as_deref() == Some(comment));
    ours.map(|rule| rule.handle).collect()
}

/// What our tables judge of the packets of such a chain, and nothing else: IPv6 only where containers have it. Counted, as iptables
/// writes its rules and shows them.
fn passes(packets: Packets, policy: &Policy) -> Vec<Vec<Expression>> {
    let compare = |key, value: &[u8]| {
        let load = Expression::Meta { key, to: Register::FIRST };
        [load, Expression::compare(Register::FIRST, Comparison::Equal, value)]
    };
    let by = |family: Family, link| {
        let mut rule = Vec::new();
        if packets == Packets::Both {
            rule.extend(compare(MetaKey::NetworkProtocol, &[family.number()]));
        }
        rule.extend(compare(link, policy.link_prefix.as_bytes()));
        rule.extend([Expression::Count, Expression::Verdict(Verdict::Accept)]);
        rule
    };
    let links = [MetaKey::InputLinkName, MetaKey::OutputLinkName];
    let families = policy.families().filter(|family| packets.includes(*family));
    families.flat_map(|family| links.map(|link| by(family, link))).collect()
}
