//! What is known of containers: state, addresses, and what they use. Blocking; many containers in one pass.

use std::collections::BTreeMap;

use garden_client::{
    ContainerInfo, DiskStat, Error, Metrics, NETWORK_NAMESPACE_PROPERTY, NetworkNamespace, NetworkStat,
    Result,
};

use super::entry::Entry;
use super::{Gardener, chain};
use crate::plugins::network;

const MIB: u64 = 1 << 20;
/// The event that clients look for to say why a process ended.
const OUT_OF_MEMORY: &str = "Out of memory";
const PERCENT: f64 = 100.0;
/// A look takes some 50 µs, as does the start of a thread.
const PART_MIN: usize = 32;
const PARTS_MAX: usize = 4;

/// In percent: all CPUs, spread over all memory in MiB, as shares are given out by memory.
pub fn default_entitlement_per_share(total_memory_bytes: u64) -> f64 {
    let cpus = std::thread::available_parallelism().map_or(1, |cpus| cpus.get());
    cpus as f64 * PERCENT / (total_memory_bytes / MIB).max(1) as f64
}

/// Nanoseconds of CPU that `shares` entitle to over an age.
fn entitlement_ns(shares: u64, percent_per_share: f64, age_ns: u64) -> u64 {
    (shares as f64 * (percent_per_share / PERCENT) * age_ns as f64) as u64
}

/// Of so many things that it pays, each processor looks at a part.
fn in_parts<T: Send>(
    handles: &[String],
    look: &(impl Fn(&String) -> (String, T) + Sync),
) -> BTreeMap<String, T> {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let part = handles.len().div_ceil(processors.min(PARTS_MAX)).max(PART_MIN);
    std::thread::scope(|scope| {
        let mut parts = handles.chunks(part);
        let own = parts.next().unwrap_or_default();
        let others: Vec<_> =
            parts.map(|part| scope.spawn(move || part.iter().map(look).collect::<Vec<_>>())).collect();
        let mut all: BTreeMap<String, T> = own.iter().map(look).collect();
        for other in others {
            match other.join() {
                Ok(part) => all.extend(part),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        all
    })
}

impl Gardener {
    pub(super) fn infos(&self, handles: Vec<String>) -> BTreeMap<String, Result<ContainerInfo>> {
        let info =
            |handle: &String| (handle.clone(), self.entry(handle).and_then(|entry| self.info_of(&entry)));
        in_parts(&handles, &info)
    }

    fn info_of(&self, entry: &Entry) -> Result<ContainerInfo> {
        let mut record = entry.record();
        // Ours to say, whatever its creator wrote there.
        record.properties.remove(NETWORK_NAMESPACE_PROPERTY);
        if let Some(container) = &record.container {
            let namespace =
                NetworkNamespace { pid: container.init.pid, started: container.init.started }.to_string();
            record.properties.insert(NETWORK_NAMESPACE_PROPERTY.into(), namespace);
        }
        let container = entry.known_container();
        let out_of_memory = match &container {
            // A container whose pid 1 is gone may have lost its control groups, too.
            Some(container) if container.is_alive() => container.out_of_memory()?,
            _ => false,
        };
        let running = container.as_ref().is_some_and(|container| container.is_alive()) && !record.stopped;
        let (host_ip, container_ip, container_ipv6, mapped_ports) = match record.connection {
            Some(connection) => {
                let ipv6 = connection.container_ipv6().map(|address| address.to_string());
                let (host_ip, container_ip) = (connection.host_ip, connection.container_ip);
                let ipv6 = ipv6.unwrap_or_default();
                (host_ip.to_string(), container_ip.to_string(), ipv6, connection.mapped_ports)
            }
            None => {
                let known = |name: &str| record.properties.get(name).cloned().unwrap_or_default();
                let ports = network::mapped_ports(&record.properties);
                let ipv6 = known(network::CONTAINER_IPV6);
                (known(network::HOST_IP), known(network::CONTAINER_IP), ipv6, ports)
            }
        };
        Ok(ContainerInfo {
            state: if running { "active" } else { "stopped" }.into(),
            events: if out_of_memory { vec![OUT_OF_MEMORY.into()] } else { Vec::new() },
            host_ip,
            container_ip,
            container_ipv6,
            external_ip: self.external_ip().to_string(),
            container_path: self.0.depot.directory(&entry.handle).to_string_lossy().into_owned(),
            process_ids: container.map(|container| container.process_ids()).unwrap_or_default(),
            properties: record.properties,
            mapped_ports,
        })
    }

    /// `disks`: what plugins say of their roots.
    pub(super) fn all_metrics(
        &self,
        handles: Vec<String>,
        disks: &BTreeMap<String, Result<DiskStat>>,
    ) -> BTreeMap<String, Result<Metrics>> {
        let traffic = self.0.networker.traffic();
        let traffic = match &traffic {
            Ok(traffic) => Ok(traffic),
            Err(error) => Err(Error::Other(chain(error))),
        };
        let metrics = |handle: &String| {
            let result = self
                .entry(handle)
                .and_then(|entry| self.metrics_of(&entry, traffic.clone()?, disks.get(handle)));
            (handle.clone(), result)
        };
        in_parts(&handles, &metrics)
    }

    fn metrics_of(
        &self,
        entry: &Entry,
        traffic: &BTreeMap<String, NetworkStat>,
        plugin_disk: Option<&Result<DiskStat>>,
    ) -> Result<Metrics> {
        let usage = entry.container()?.usage()?;
        let disk = match plugin_disk {
            Some(disk) => disk.clone()?,
            None => self.stored_disk(&entry.handle)?,
        };
        let link = entry
            .with_record(|record| record.connection.as_ref().map(|connection| connection.host_link.clone()));
        let (age, cpu_entitlement) = self.age_and_entitlement(entry);
        Ok(Metrics {
            memory: usage.memory,
            cpu: usage.cpu,
            pid: usage.pid,
            disk,
            network: match link {
                Some(link) => traffic.get(&link).copied(),
                None => self.plugged_traffic(entry),
            },
            age,
            cpu_entitlement,
        })
    }

    /// Both in nanoseconds.
    fn age_and_entitlement(&self, entry: &Entry) -> (u64, u64) {
        let (created_at_ns, cpu) = entry.with_record(|record| (record.created_at_ns, record.spec.limits.cpu));
        let age = u64::try_from(self.0.clock.now_ns() - created_at_ns).unwrap_or(0);
        let shares = if cpu.weight > 0 { cpu.weight } else { cpu.limit_in_shares };
        (age, entitlement_ns(shares, self.0.cpu_entitlement_per_share, age))
    }

    /// CPU that a container was entitled to until now.
    pub(super) fn entitled_ns(&self, handle: &str) -> Result<u64> {
        Ok(self.age_and_entitlement(&*self.entry(handle)?).1)
    }
}

impl Gardener {
    fn stored_disk(&self, handle: &str) -> Result<DiskStat> {
        let disk = self.0.store.usage(handle).map_err(|error| Error::Other(chain(&error)))?;
        Ok(DiskStat {
            total_bytes_used: disk.total_bytes,
            total_inodes_used: disk.total_inodes,
            exclusive_bytes_used: disk.exclusive_bytes,
            exclusive_inodes_used: disk.exclusive_inodes,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_is_looked_at_once() {
        for count in [0, 1, PART_MIN, PART_MIN + 1, 1000] {
            let handles: Vec<String> = (0..count).map(|number| number.to_string()).collect();
            let looked = in_parts(&handles, &|handle| (handle.clone(), handle.len()));
            assert_eq!(looked.len(), count);
            assert!(looked.iter().all(|(handle, length)| handle.len() == *length));
        }
    }

    #[test]
    fn shares_entitle_to_cpu_by_age() {
        assert_eq!(entitlement_ns(0, 1.0, 1_000), 0);
        assert_eq!(entitlement_ns(100, 1.0, 1_000), 1_000);
        assert_eq!(entitlement_ns(50, 0.5, 1_000_000), 250_000);
        let cpus = std::thread::available_parallelism().unwrap().get() as f64;
        assert_eq!(default_entitlement_per_share(100 * MIB), cpus);
    }
}
