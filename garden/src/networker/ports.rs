//! Ports of the host that lead into containers.

use garden_client::{MappedPort, NetIn};

use super::plan::{Connection, Pool};
use super::{Error, Networker, Result, host, lock, rules};

impl Networker {
    /// Adds ports to a connection: all that are asked for, or none.
    pub fn reserve_ports(&self, connection: &mut Connection, net_in: &[NetIn]) -> Result<()> {
        let had = connection.mapped_ports.len();
        for port in net_in {
            match self.reserve_port(port.host_port, port.container_port) {
                Ok(mapped) => connection.mapped_ports.push(mapped),
                Err(error) => {
                    let mut ports = lock(&self.reservations.ports);
                    connection.mapped_ports.drain(had..).for_each(|port| ports.release(port.host_port));
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    fn reserve_port(&self, host_port: u32, container_port: u32) -> Result<MappedPort> {
        for port in [host_port, container_port] {
            u16::try_from(port).map_err(|_| Error::NoSuchPort(port))?;
        }
        let v6 = self.config.pool_v6.is_some();
        let mut pool = lock(&self.reservations.ports);
        let host_port = if host_port == 0 {
            next_free_port(&mut pool, v6)?
        } else if host::listened_on(host_port as u16, v6) || !pool.take(host_port) {
            return Err(Error::PortInUse(host_port));
        } else {
            host_port
        };
        Ok(MappedPort {
            host_port,
            container_port: if container_port == 0 { host_port } else { container_port },
        })
    }

    /// Maps one more port of a running container. The caller records the result in the connection.
    pub fn net_in(&self, connection: &Connection, host_port: u32, container_port: u32) -> Result<MappedPort> {
        let port = self.reserve_port(host_port, container_port)?;
        let mapped = rules::port_mapped(&self.config.table, connection, port);
        self.reservations
            .owner
            .commit("map a port", mapped)
            .map_err(Error::netlink("open the firewall"))
            .inspect_err(|_| lock(&self.reservations.ports).release(port.host_port))?;
        Ok(port)
    }

    /// Of a port that could not be recorded. One whose rule cannot be removed stays reserved.
    pub fn undo_net_in(&self, connection: &Connection, port: MappedPort) {
        let unmapped = rules::port_unmapped(&self.config.table, connection, port);
        match self.reservations.owner.commit("unmap a port", unmapped) {
            Ok(()) => lock(&self.reservations.ports).release(port.host_port),
            Err(error) => tracing::error!(port = port.host_port, %error, "cannot unmap a port"),
        }
    }
}

/// Ports that some process of the host listens on are passed over: mapping one would take it away from that process.
fn next_free_port(pool: &mut Pool, v6: bool) -> Result<u32> {
    let mut passed_over = Vec::new();
    let port = loop {
        match pool.acquire() {
            Some(port) if host::listened_on(port as u16, v6) => passed_over.push(port),
            other => break other,
        }
    };
    for busy in passed_over {
        pool.release(busy);
    }
    port.ok_or(Error::PortsUsedUp)
}
