//! A container's network as the gardener deals with it: made by the networker, or by a plugin where there is one, and
//! noted down in the record either way.

use std::convert::Infallible;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use garden_client::{
    BindMount, ContainerSpec, Error, MappedPort, NetIn, NetOutRule, NetworkStat, Properties, Result,
};

use super::create::etc_files;
use super::entry::Entry;
use super::{Gardener, blocking, chain};
use crate::containerizer::Blank;
use crate::networker::{Connection, Wanted};
use crate::plugins::network::{self, NetworkPlugin};
use crate::{depot, networker};

/// Both halves of a change to a container's network: the kernel's and the record's.
#[derive(Debug, thiserror::Error)]
enum NetworkChange {
    #[error("container '{0}' has no network")]
    NoNetwork(String),
    #[error(transparent)]
    Networker(#[from] networker::Error),
    #[error(transparent)]
    Depot(#[from] depot::Error),
}

fn network_of(record: &mut depot::Record) -> std::result::Result<&mut Connection, NetworkChange> {
    let handle = &record.handle;
    record.connection.as_mut().ok_or_else(|| NetworkChange::NoNetwork(handle.clone()))
}

fn failed(error: network::Error) -> Error {
    Error::Other(chain(&error))
}

impl Gardener {
    /// A plugin decides for itself.
    pub(super) fn wanted_network(&self, spec: &ContainerSpec) -> Result<Option<Wanted>> {
        if self.plugin().is_some() {
            return Ok(None);
        }
        self.0.networker.wanted(&spec.network).map_err(|error| Error::Other(error.to_string()))
    }

    pub(super) fn plugin(&self) -> Option<&NetworkPlugin> {
        self.0.config.network_plugin.as_ref()
    }

    /// Gives it its network, and the files that say so, to be bound over the image's.
    pub(super) async fn connect(
        &self,
        entry: &Arc<Entry>,
        spec: &ContainerSpec,
        blank: &Arc<Blank>,
    ) -> Result<Vec<BindMount>> {
        if self.plugin().is_some() {
            return self.plug_in(entry, spec, blank).await;
        }
        let (gardener, blank) = (self.clone(), blank.clone());
        let Some(connection) = entry.with_record(|record| record.connection.clone()) else {
            return Ok(Vec::new());
        };
        let (handle, bandwidth) = (entry.handle.clone(), spec.limits.bandwidth);
        let connect = move || {
            let networker = &gardener.0.networker;
            networker.shape(&connection, blank.network_namespace(), bandwidth)?;
            networker.open_firewall(&handle, &connection)?;
            let hosts =
                networker.hosts(Some(connection.container_ip.into()), connection.container_ipv6(), &handle);
            let directory = gardener.network_files(&handle);
            etc_files(&directory, &hosts, &networker.resolv_conf(&connection), &blank)
        };
        self.step(entry, "open the firewall", blocking(connect)).await
    }

    /// Where a container's `hosts` and `resolv.conf` are: with its root, so that what it writes to them counts for its disk
    /// limit; in the depot when the root is a plugin's. Only for this process to open.
    pub(super) fn network_files(&self, handle: &str) -> PathBuf {
        self.0.store.files(handle).unwrap_or_else(|_| self.0.depot.directory(handle))
    }

    async fn plug_in(
        &self,
        entry: &Arc<Entry>,
        spec: &ContainerSpec,
        blank: &Arc<Blank>,
    ) -> Result<Vec<BindMount>> {
        let Some(plugin) = self.plugin() else { return Ok(Vec::new()) };
        let ContainerSpec { properties, net_in, net_out, .. } = spec;
        let connected =
            plugin.up(&entry.handle, blank.pid(), properties, net_in, net_out).await.map_err(failed)?;
        let mut known = Properties::from([(network::EXTERNAL_IP.to_owned(), self.external_ip().to_string())]);
        known.extend(connected.properties.clone().unwrap_or_default());
        let container_ip = known.get(network::CONTAINER_IP).and_then(|text| text.parse::<IpAddr>().ok());
        let container_ipv6 = known.get(network::CONTAINER_IPV6).and_then(|text| text.parse().ok());
        self.change(entry.clone(), move |record| record.properties.extend(known)).await?;
        let (gardener, handle, blank) = (self.clone(), entry.handle.clone(), blank.clone());
        let write = move || {
            let networker = &gardener.0.networker;
            let hosts = networker.hosts(container_ip, container_ipv6, &handle);
            let resolv_conf = networker.plugin_resolv_conf(&connected, container_ip);
            etc_files(&gardener.network_files(&handle), &hosts, &resolv_conf, &blank)
        };
        self.step(entry, "write the network's files", blocking(write)).await
    }

    /// Safe to call again. What the networker had goes to others at once; what a plugin gave must be gone first.
    pub(super) async fn disconnect(&self, entry: &Arc<Entry>) -> Result<()> {
        let (gardener, same_entry) = (self.clone(), entry.clone());
        let disconnect = move || {
            if let Some(connection) = same_entry.take_connection() {
                gardener.0.networker.disconnect(connection);
            }
            Ok::<_, Infallible>(())
        };
        self.step(entry, "take the network away", blocking(disconnect)).await?;
        if !entry.with_record(|record| record.plugged) {
            return Ok(());
        }
        let plugin = self.plugin().ok_or_else(|| {
            Error::Other("its network was made by a plugin, and this garden has none to take it away".into())
        })?;
        plugin.down(&entry.handle).await.map_err(failed)?;
        self.change(entry.clone(), |record| record.plugged = false).await
    }

    pub(super) async fn map_port(&self, entry: Arc<Entry>, port: NetIn) -> Result<MappedPort> {
        if let Some(plugin) = self.plugin() {
            let known = entry.with_record(|record| record.properties.clone());
            let mapped = plugin.net_in(&entry.handle, &known, port).await.map_err(failed)?;
            let add =
                move |record: &mut depot::Record| network::add_mapped_port(&mut record.properties, mapped);
            self.change(entry, add).await?;
            return Ok(mapped);
        }
        let (gardener, changed) = (self.clone(), entry.clone());
        let change = move || {
            let networker = &gardener.0.networker;
            // While nobody else changes the record: a network that goes meanwhile could be another's.
            let map = |record: &mut depot::Record| {
                let connection = network_of(record)?;
                let mapped = networker.net_in(connection, port.host_port, port.container_port)?;
                connection.mapped_ports.push(mapped);
                Ok::<_, NetworkChange>(mapped)
            };
            let undo = |was: &depot::Record, mapped| {
                was.connection.iter().for_each(|connection| networker.undo_net_in(connection, mapped));
            };
            changed.try_change(&gardener.0.depot, map, undo)
        };
        self.step(&entry, "map a port", blocking(change)).await
    }

    pub(super) async fn open_egress(&self, entry: Arc<Entry>, rules: Vec<NetOutRule>) -> Result<()> {
        if let Some(plugin) = self.plugin() {
            let known = entry.with_record(|record| record.properties.clone());
            return plugin.bulk_net_out(&entry.handle, &known, &rules).await.map_err(failed);
        }
        let (gardener, changed) = (self.clone(), entry.clone());
        let change = move || {
            let networker = &gardener.0.networker;
            let open = |record: &mut depot::Record| {
                let connection = network_of(record)?;
                networker.bulk_net_out(&changed.handle, connection, &rules)?;
                connection.net_out.extend(rules);
                Ok::<_, NetworkChange>(())
            };
            let undo = |was: &depot::Record, ()| {
                was.connection
                    .iter()
                    .for_each(|connection| networker.undo_bulk_net_out(&changed.handle, connection));
            };
            changed.try_change(&gardener.0.depot, open, undo)
        };
        self.step(&entry, "open its network to the world", blocking(change)).await
    }

    /// Of a link that a plugin has made, as the kernel counts it in the container's network namespace.
    pub(super) fn plugged_traffic(&self, entry: &Entry) -> Option<NetworkStat> {
        let pid = entry.known_container()?.pid();
        let table = std::fs::read_to_string(format!("/proc/{pid}/net/dev")).ok()?;
        entry.with_record(|record| traffic(&table, network::interface(&record.properties)))
    }
}

/// Of one link in the kernel's table: received bytes are the first number, sent bytes the ninth.
fn traffic(table: &str, interface: &str) -> Option<NetworkStat> {
    let line = table.lines().find_map(|line| line.trim().strip_prefix(interface)?.strip_prefix(':'))?;
    let mut numbers = line.split_whitespace().map(|number| number.parse().ok());
    Some(NetworkStat { rx_bytes: numbers.next()??, tx_bytes: numbers.nth(7)?? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traffic_is_read_from_the_kernels_table() {
        let table =
            "Inter-|   Receive\n face |bytes\n    lo: 1 2 3 4 5 6 7 8 9 10\n  eth0: 11 2 3 4 5 6 7 8 19 10\n";
        assert_eq!(traffic(table, "eth0"), Some(NetworkStat { rx_bytes: 11, tx_bytes: 19 }));
        assert_eq!(traffic(table, "eth"), None);
    }
}
