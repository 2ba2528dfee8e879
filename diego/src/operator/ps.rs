//! `diego ps`: apps, their instances, and what is wrong with those that do not run.

use anyhow::Context;
use bbs_models::{ActualLrp, ActualLrpState, DesiredLrp, Presence};
use clap::Args;
use diego_base::clock::{Clock, SystemClock};
use serde::Serialize;

use super::Global;
use super::output::{self, Row};
use super::target::Target;
use super::{Failure, recipe};

#[derive(Args)]
pub struct Flags {
    /// Only this app.
    name: Option<String>,
    /// Also what others than this CLI desire.
    #[arg(long)]
    all: bool,
}

#[derive(Serialize)]
struct Instance {
    name: String,
    /// `None`: the app has no instances now.
    index: Option<u32>,
    state: String,
    cell: String,
    /// `host address:host port->container port` of each.
    ports: Vec<Port>,
    crashes: u32,
    since_ns: i64,
    /// Why it crashed last, or why no cell takes it.
    reason: String,
    #[serde(skip)]
    age: String,
}

#[derive(Serialize, PartialEq)]
struct Port {
    address: String,
    host_port: u16,
    container_port: u16,
}

impl Row for Instance {
    const HEADINGS: &'static [&'static str] =
        &["APP", "INDEX", "STATE", "SINCE", "CRASHES", "CELL", "PORTS", "REASON"];

    fn cells(&self) -> Vec<String> {
        let port = |port: &Port| format!("{}:{}->{}", port.address, port.host_port, port.container_port);
        vec![
            self.name.clone(),
            self.index.map_or("-".into(), |index| index.to_string()),
            self.state.clone(),
            self.age.clone(),
            self.crashes.to_string(),
            self.cell.clone(),
            self.ports.iter().map(port).collect::<Vec<_>>().join(" "),
            self.reason.clone(),
        ]
    }
}

pub async fn run(global: &Global, flags: Flags) -> Result<(), Failure> {
    let target = Target::reach(global).await?;
    let apps = match &flags.name {
        Some(name) => vec![target.app(name).await?],
        None => target.bbs.desired_lrps(&Default::default()).await.context("cannot list the apps")?,
    };
    let instances = target.bbs.actual_lrps(&Default::default()).await.context("cannot list the instances")?;
    let now_ns = SystemClock.now_ns();
    let mut listed = Vec::new();
    for app in apps.iter().filter(|app| flags.all || flags.name.is_some() || app.domain == recipe::DOMAIN) {
        listed.extend(of_app(app, &instances, now_ns));
    }
    listed.sort_by(|a, b| (&a.name, a.index).cmp(&(&b.name, b.index)));
    output::rows(global.json, &listed)?;
    Ok(())
}

fn of_app(app: &DesiredLrp, instances: &[ActualLrp], now_ns: i64) -> Vec<Instance> {
    let own = instances.iter().filter(|lrp| lrp.key.process_guid == app.process_guid);
    let mut rows: Vec<_> = own.map(|lrp| instance(lrp, now_ns)).collect();
    if rows.is_empty() {
        rows.push(Instance {
            name: app.process_guid.clone(),
            index: None,
            state: "STOPPED".into(),
            cell: String::new(),
            ports: Vec::new(),
            crashes: 0,
            since_ns: 0,
            reason: String::new(),
            age: String::new(),
        });
    }
    rows
}

fn instance(lrp: &ActualLrp, now_ns: i64) -> Instance {
    let mut state = lrp.state.name().to_owned();
    match lrp.presence {
        Presence::Evacuating => state.push_str(" (evacuating)"),
        Presence::Suspect => state.push_str(" (suspect)"),
        Presence::Ordinary if lrp.is_running() && lrp.routable == Some(false) => {
            state.push_str(" (not ready)")
        }
        Presence::Ordinary => {}
    }
    let reason = match &lrp.state {
        ActualLrpState::Unclaimed { placement_error } if !placement_error.is_empty() => {
            placement_error.clone()
        }
        _ => lrp.crash_reason.clone(),
    };
    let ports = lrp.net_info().map_or(Vec::new(), |net| {
        let port = |mapping: &bbs_models::PortMapping| Port {
            address: net.address.clone(),
            host_port: mapping.host_port,
            container_port: mapping.container_port,
        };
        let mut ports: Vec<_> = net.ports.iter().map(port).collect();
        // Told once for each port that speaks TLS for it.
        ports.dedup();
        ports
    });
    Instance {
        name: lrp.key.process_guid.clone(),
        index: Some(lrp.key.index),
        state,
        cell: lrp.cell_id().unwrap_or_default().to_owned(),
        ports,
        crashes: lrp.crash_count,
        since_ns: lrp.since_ns,
        reason,
        age: output::age(lrp.since_ns, now_ns),
    }
}
