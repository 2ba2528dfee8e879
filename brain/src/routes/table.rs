//! The routing table: which names lead to which instances. Pure; fed by what the BBS says, in any order and more than
//! once: what is older than what is known changes nothing.
//!
//! Each call looks at the instances it is about, no others, and answers with what changed for routers. A new address
//! is told before the old one is taken back, so that a name always leads somewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use bbs_models::{ActualLrp, ModificationTag, Presence, RoutingInfo};

use super::message::{Audience, Change, Entry, Registration};
use super::offers::{Desired, Instance};

/// Registrations that are handed out at once when all are asked for; one process's stay together.
pub const PAGE_REGISTRATIONS: usize = 500;

/// A place where an instance answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backend {
    pub address: String,
    pub port: u16,
    /// Where it speaks TLS, and shows its guid.
    pub tls_port: Option<u16>,
    pub process_guid: String,
    pub index: u32,
    pub instance_guid: String,
}

#[derive(Debug, Default)]
pub struct RoutingTable {
    processes: BTreeMap<String, Process>,
    /// HTTP backends by host name in lower case.
    by_hostname: BTreeMap<String, Vec<Backend>>,
    direct: bool,
}

#[derive(Debug, Default)]
struct Process {
    desired: Option<Desired>,
    /// By instance guid.
    instances: BTreeMap<String, Twins>,
}

/// An instance as the BBS knows it once, or twice while its cell is evacuated. Both have the same address.
#[derive(Debug, Default)]
struct Twins {
    ordinary: Option<Instance>,
    evacuating: Option<Instance>,
}

impl Twins {
    /// A suspect instance is an ordinary one whose cell is silent: perhaps it still answers.
    fn of(&mut self, presence: Presence) -> &mut Option<Instance> {
        match presence {
            Presence::Ordinary | Presence::Suspect => &mut self.ordinary,
            Presence::Evacuating => &mut self.evacuating,
        }
    }

    fn shown(&self) -> Option<&Instance> {
        self.ordinary.as_ref().or(self.evacuating.as_ref())
    }
}

impl Process {
    fn offers(&self, instance_guid: &str, direct: bool) -> Vec<Registration> {
        let shown = self.instances.get(instance_guid).and_then(Twins::shown);
        match (&self.desired, shown) {
            (Some(desired), Some(instance)) => desired.offers(instance, direct),
            _ => Vec::new(),
        }
    }

    fn all_offers(&self, direct: bool) -> Vec<Registration> {
        self.instances.keys().flat_map(|guid| self.offers(guid, direct)).collect()
    }

    fn is_empty(&self) -> bool {
        self.desired.is_none() && self.instances.is_empty()
    }
}

impl RoutingTable {
    /// One whose instances are reached by their own addresses unless they prefer their cell's.
    pub fn direct() -> RoutingTable {
        RoutingTable { direct: true, ..Default::default() }
    }

    /// The backends of a host name, without its port. Case does not matter.
    pub fn backends(&self, hostname: &str) -> &[Backend] {
        let hostname = hostname.split(':').next().unwrap_or_default().to_ascii_lowercase();
        self.by_hostname.get(&hostname).map_or(&[], Vec::as_slice)
    }

    pub fn knows_desired(&self, process_guid: &str) -> bool {
        self.processes.get(process_guid).is_some_and(|process| process.desired.is_some())
    }

    /// All registrations, a page at a time: those of the processes after `process_guid`, and where the next page
    /// begins, if there is one.
    pub fn registrations_after(&self, process_guid: Option<&str>) -> (Vec<Registration>, Option<String>) {
        let mut page = Vec::new();
        let from = process_guid.map_or(Bound::Unbounded, Bound::Excluded);
        for (guid, process) in self.processes.range::<str, _>((from, Bound::Unbounded)) {
            page.extend(process.all_offers(self.direct));
            if page.len() >= PAGE_REGISTRATIONS {
                return (page, Some(guid.clone()));
            }
        }
        (page, None)
    }

    pub fn set_desired(&mut self, info: &RoutingInfo) -> Vec<Change> {
        let known = self.processes.get(&info.key.process_guid).and_then(|process| process.desired.as_ref());
        if known.is_some_and(|known| !known.tag.succeeded_by(&info.modification_tag)) {
            return Vec::new();
        }
        self.change_desired(&info.key.process_guid, Some(Desired::new(info)))
    }

    pub fn remove_desired(&mut self, process_guid: &str, tag: &ModificationTag) -> Vec<Change> {
        let known = self.processes.get(process_guid).and_then(|process| process.desired.as_ref());
        match known {
            Some(known) if is_not_older(&known.tag, tag) => self.change_desired(process_guid, None),
            _ => Vec::new(),
        }
    }

    /// An instance that no longer runs is removed; one that is not routable stays known, so that older news of it
    /// does not bring it back.
    pub fn set_actual(&mut self, lrp: &ActualLrp) -> Vec<Change> {
        let Some(instance) = Instance::new(lrp) else { return self.remove_actual(lrp) };
        let guid = instance.guid.clone();
        self.change_instance(&lrp.key.process_guid, &guid, |twins| {
            let known = twins.of(lrp.presence);
            if known.as_ref().is_none_or(|known| known.tag.succeeded_by(&instance.tag)) {
                *known = Some(instance);
            }
        })
    }

    /// One of two twins that goes takes nothing with it.
    pub fn remove_actual(&mut self, lrp: &ActualLrp) -> Vec<Change> {
        let Some(guid) = lrp.instance_guid() else { return Vec::new() };
        self.change_instance(&lrp.key.process_guid, guid, |twins| {
            twins.of(lrp.presence).take_if(|known| is_not_older(&known.tag, &lrp.modification_tag));
        })
    }

    /// Makes the table what the BBS, read whole, says. A domain that is not fresh may lack LRPs only because nobody
    /// told the BBS of them yet: what is known of those stays.
    pub fn sync(
        &mut self,
        desired: &[RoutingInfo],
        actual: &[ActualLrp],
        fresh_domains: &[String],
    ) -> Vec<Change> {
        let mut changes: Vec<_> = desired.iter().flat_map(|info| self.set_desired(info)).collect();
        changes.extend(actual.iter().flat_map(|lrp| self.set_actual(lrp)));
        let processes: BTreeSet<_> = desired.iter().map(|info| info.key.process_guid.as_str()).collect();
        let instances: BTreeSet<_> = actual.iter().filter_map(instance_key).collect();
        let (gone_processes, gone_instances) = self.beyond(&processes, &instances, fresh_domains);
        for (process_guid, guid, presence) in gone_instances {
            changes.extend(self.change_instance(&process_guid, &guid, |twins| *twins.of(presence) = None));
        }
        changes.extend(gone_processes.iter().flat_map(|guid| self.change_desired(guid, None)));
        changes
    }

    /// What is known here and not there.
    fn beyond(
        &self,
        processes: &BTreeSet<&str>,
        instances: &BTreeSet<(&str, bool)>,
        fresh_domains: &[String],
    ) -> (Vec<String>, Vec<(String, String, Presence)>) {
        let (mut gone_processes, mut gone_instances) = (Vec::new(), Vec::new());
        for (process_guid, process) in &self.processes {
            let fresh = |desired: &Desired| fresh_domains.contains(&desired.domain);
            if process.desired.as_ref().is_some_and(fresh) && !processes.contains(process_guid.as_str()) {
                gone_processes.push(process_guid.clone());
            }
            for (guid, twins) in &process.instances {
                for (twin, presence) in
                    [(&twins.ordinary, Presence::Ordinary), (&twins.evacuating, Presence::Evacuating)]
                {
                    let evacuating = presence == Presence::Evacuating;
                    if twin.is_some() && !instances.contains(&(guid.as_str(), evacuating)) {
                        gone_instances.push((process_guid.clone(), guid.clone(), presence));
                    }
                }
            }
        }
        (gone_processes, gone_instances)
    }

    fn change_desired(&mut self, process_guid: &str, desired: Option<Desired>) -> Vec<Change> {
        let process = self.processes.entry(process_guid.into()).or_default();
        let before = process.all_offers(self.direct);
        process.desired = desired;
        let after = process.all_offers(self.direct);
        if process.is_empty() {
            self.processes.remove(process_guid);
        }
        self.tell(process_guid, before, after, None)
    }

    fn change_instance(
        &mut self,
        process_guid: &str,
        instance_guid: &str,
        change: impl FnOnce(&mut Twins),
    ) -> Vec<Change> {
        let process = self.processes.entry(process_guid.into()).or_default();
        let before = process.offers(instance_guid, self.direct);
        let twins = process.instances.entry(instance_guid.into()).or_default();
        change(twins);
        let since_ns = twins.shown().and_then(Instance::since_ns);
        let gone = twins.shown().is_none();
        let after = process.offers(instance_guid, self.direct);
        if gone {
            process.instances.remove(instance_guid);
        }
        if process.is_empty() {
            self.processes.remove(process_guid);
        }
        self.tell(process_guid, before, after, since_ns)
    }

    /// The difference, for routers and in the table of names. An entry that stays and says something else is told
    /// again, not taken back; nor is one that another instance has come to stand for.
    fn tell(
        &mut self,
        process_guid: &str,
        before: Vec<Registration>,
        after: Vec<Registration>,
        since_ns: Option<i64>,
    ) -> Vec<Change> {
        let mut before: BTreeMap<Entry, Registration> =
            before.into_iter().map(|offer| (offer.entry(), offer)).collect();
        let mut changes = Vec::new();
        let mut told = BTreeSet::new();
        for mut offer in after {
            if !told.insert(offer.entry()) {
                continue;
            }
            let known = before.remove(&offer.entry());
            if known.as_ref() == Some(&offer) {
                continue;
            }
            match known {
                Some(known) => self.replace_backend(process_guid, &known, Some(&offer)),
                None => {
                    self.replace_backend(process_guid, &offer, Some(&offer));
                    offer.endpoint_updated_at_ns = since_ns;
                }
            }
            changes.push(Change::Register(offer));
        }
        for offer in before.into_values() {
            self.replace_backend(process_guid, &offer, None);
            if !self.still_leads_to(&offer) {
                changes.push(Change::Unregister(offer));
            }
        }
        changes
    }

    fn replace_backend(&mut self, process_guid: &str, old: &Registration, new: Option<&Registration>) {
        if old.audience != Audience::Router {
            return;
        }
        for uri in &old.uris {
            let hostname = uri.to_ascii_lowercase();
            let backends = self.by_hostname.entry(hostname.clone()).or_default();
            let old = backend(process_guid, old);
            backends.retain(|backend| *backend != old);
            backends.extend(new.map(|new| backend(process_guid, new)));
            if backends.is_empty() {
                self.by_hostname.remove(&hostname);
            }
        }
    }

    fn still_leads_to(&self, offer: &Registration) -> bool {
        let same = |backend: &Backend| backend.address == offer.host && backend.port == offer.port;
        offer.audience == Audience::Router && offer.uris.iter().all(|uri| self.backends(uri).iter().any(same))
    }
}

/// Of removals: one with the tag that is known is no older.
fn is_not_older(known: &ModificationTag, tag: &ModificationTag) -> bool {
    known == tag || known.succeeded_by(tag)
}

fn instance_key(lrp: &ActualLrp) -> Option<(&str, bool)> {
    lrp.is_running().then_some(())?;
    Some((lrp.instance_guid()?, lrp.presence == Presence::Evacuating))
}

fn backend(process_guid: &str, offer: &Registration) -> Backend {
    Backend {
        address: offer.host.clone(),
        port: offer.port,
        tls_port: offer.tls_port,
        process_guid: process_guid.to_owned(),
        index: offer.private_instance_index.parse().unwrap_or_default(),
        instance_guid: offer.private_instance_id.clone(),
    }
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
