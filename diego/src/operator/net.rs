//! `diego net`: which networks the containers of this cell have, what holds for one of them, and why a packet of its would
//! pass or not. Reads what garden keeps on disk, and looks whether the kernel agrees: garden need not answer.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use garden::depot::{self, Depot};
use garden::networker::explain::{self, Packet, Shown};
use garden::networker::{Connection, Published, host_addresses, older_tables};
use serde::Serialize;

use super::Failure;
use super::Global;
use super::output::{self, Row, print};

#[derive(Args)]
pub struct Flags {
    /// Garden's handle of a container; otherwise all are listed.
    handle: Option<String>,
    /// Tell whether the container could send this, and why: tcp://192.0.2.1:443, udp://[2001:db8::1]:53, icmp://192.0.2.1,
    /// icmpv6://2001:db8::1
    #[arg(long, requires = "handle", value_name = "PACKET")]
    to: Option<Packet>,
    /// Where garden keeps its records; otherwise `garden` in the state directory.
    #[arg(long, value_name = "DIRECTORY")]
    depot: Option<PathBuf>,
}

#[derive(Serialize)]
struct Container {
    handle: String,
    address: Ipv4Addr,
    #[serde(skip_serializing_if = "Option::is_none")]
    address_v6: Option<Ipv6Addr>,
    link: String,
    /// Host port and container port.
    ports: Vec<(u32, u32)>,
    egress_rules: usize,
    /// What the kernel lacks of it.
    lacks: Vec<String>,
}

impl Row for Container {
    const HEADINGS: &'static [&'static str] =
        &["CONTAINER", "ADDRESS", "LINK", "PORTS", "EGRESS RULES", "KERNEL"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.handle.clone(),
            with_v6(self.address, self.address_v6),
            self.link.clone(),
            ports(&self.ports),
            self.egress_rules.to_string(),
            kernel(&self.lacks),
        ]
    }
}

fn with_v6(address: Ipv4Addr, v6: Option<Ipv6Addr>) -> String {
    v6.map_or_else(|| address.to_string(), |v6| format!("{address}, {v6}"))
}

fn ports(ports: &[(u32, u32)]) -> String {
    let each = ports.iter().map(|(host, container)| format!("{host}->{container}"));
    if ports.is_empty() { "-".into() } else { each.collect::<Vec<_>>().join(",") }
}

fn kernel(lacks: &[String]) -> String {
    if lacks.is_empty() { "as recorded".into() } else { format!("no {}", lacks.join(", no ")) }
}

/// What garden has on disk.
struct Known {
    published: Published,
    records: Vec<depot::Record>,
}

impl Known {
    fn read(directory: PathBuf) -> Result<Known, Failure> {
        let unreachable = || {
            Failure::Unreachable(format!(
                "no garden has made networks with {}; name its directory with --depot",
                directory.display()
            ))
        };
        let published = Published::read(&directory).context("cannot tell what garden has decided")?;
        let published = published.ok_or_else(unreachable)?;
        let found = Depot::of(&directory).found().context("cannot read garden's records")?;
        let records = found.into_iter().filter_map(|found| match found.content {
            depot::Content::Record(record) => Some(*record),
            depot::Content::Nothing | depot::Content::Unclear(..) => None,
        });
        Ok(Known { published, records: records.collect() })
    }

    fn connections(&self) -> Vec<(&str, &Connection)> {
        self.records
            .iter()
            .filter_map(|record| Some((record.handle.as_str(), record.connection.as_ref()?)))
            .collect()
    }
}

pub fn run(global: &Global, flags: &Flags) -> Result<(), Failure> {
    let known = Known::read(flags.depot.clone().unwrap_or_else(|| global.state.join("garden")))?;
    let connections = known.connections();
    let Some(wanted) = &flags.handle else {
        output::rows(global.json, &containers(&known, &connections)?)?;
        return Ok(tell_of_older_tables(global)?);
    };
    let found = connections.iter().find(|(handle, _)| handle == wanted);
    let (handle, connection) = found
        .ok_or_else(|| Failure::Unknown(format!("no container '{wanted}' has a network of garden's")))?;
    if let Some(packet) = flags.to {
        let addresses = host_addresses().context("cannot tell what this host's addresses are")?;
        let host = explain::Host { addresses: &addresses, containers: &connections };
        let verdict = explain::sent(&known.published.policy, &host, connection, packet);
        print(&verdict.to_string())?;
        if !verdict.passes {
            return Err(Failure::Unsuccessful(format!("'{wanted}' could not send that")));
        }
        return Ok(tell_of_older_tables(global)?);
    }
    for container in containers(&known, &[(handle, connection)])? {
        match global.json {
            true => output::line(&container)?,
            false => describe(&known, &container, connection)?,
        }
    }
    Ok(tell_of_older_tables(global)?)
}

/// For people alone: nothing here knows what these tables say.
fn tell_of_older_tables(global: &Global) -> anyhow::Result<()> {
    if global.json {
        return Ok(());
    }
    let tables = older_tables().context("cannot tell whether iptables without nftables is in use")?;
    if tables.is_empty() {
        return Ok(());
    }
    print(&format!(
        "iptables without nftables is in use, too: what its tables drop ({}) is dropped, whatever is said here",
        tables.join(", ")
    ))
}

fn containers(known: &Known, connections: &[(&str, &Connection)]) -> anyhow::Result<Vec<Container>> {
    let lacks = known.published.lacks(connections).context("cannot look at the firewall")?;
    let each = connections.iter().zip(lacks).map(|((handle, connection), lacks)| {
        let ports = connection.mapped_ports.iter().map(|port| (port.host_port, port.container_port));
        Container {
            handle: (*handle).into(),
            address: connection.container_ip,
            address_v6: connection.container_ipv6(),
            link: connection.host_link.clone(),
            ports: ports.collect(),
            egress_rules: connection.net_out.len(),
            lacks,
        }
    });
    Ok(each.collect())
}

fn describe(known: &Known, container: &Container, connection: &Connection) -> anyhow::Result<()> {
    let policy = &known.published.policy;
    let line = |name: &str, value: String| print(&format!("{name:<16}{value}"));
    line("container", container.handle.clone())?;
    let inside = with_v6(connection.container_ip, connection.container_ipv6());
    let outside = with_v6(connection.host_ip, connection.v6.map(|ends| ends.host_ip));
    line("address", format!("{inside} by {outside} of the host"))?;
    line("link", container.link.clone())?;
    line("ports", ports(&container.ports))?;
    line("kernel", kernel(&container.lacks))?;
    print("What it sends is looked at in this order, the first that fits decides:")?;
    let mut number = 0;
    let mut rule = |text: String| {
        number += 1;
        print(&format!("{number:>4}  {text}"))
    };
    rule("answers to others: pass".into())?;
    for server in &policy.dns_servers {
        rule(format!("DNS to {server}: passes"))?;
    }
    for egress in &connection.net_out {
        rule(format!("{}: passes", Shown(egress)))?;
    }
    for network in &policy.deny_networks {
        rule(format!("to {network}: refused (deny-network)"))?;
    }
    rule("to a mapped port of a container: passes".into())?;
    let pools = match policy.pool_v6 {
        Some(v6) => format!("{} and {v6}", policy.pool),
        None => policy.pool.to_string(),
    };
    rule(format!("to {pools}, other containers: refused"))?;
    if policy.host_answers_dns && !policy.allow_host_access {
        rule(format!("DNS to this host by its addresses in {pools}: passes"))?;
    }
    let host = if policy.allow_host_access { "passes" } else { "refused, but for answers" };
    rule(format!("to this host: {host} (allow-host-access)"))?;
    rule("anything else: passes".into())
}
