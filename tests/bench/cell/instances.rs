//! From work accepted to RUNNING at the BBS: one at a time, two hundred at once, a thousand that stay.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bbs_client::EventStream;
use bbs_models::{
    Action, ActualLrpFilter, Check, CheckDefinition, DesiredLrp, Event, LogRateLimit, RunAction,
};
use futures_util::StreamExt;
use rep_client::{Lrp, PlacementConstraint, Resource, Work};

use crate::figures::{Report, Times};
use crate::machine::{CELL, Machine};
use crate::{memory, number};

const DOMAIN: &str = "bench";
const ROOTFS: &str = "preloaded:bench";
/// Little disk: a thousand are to fit.
const RESOURCE: Resource = Resource { memory_mb: 32, disk_mb: 12, max_pids: 0 };
const PORT: u16 = 8080;
/// By which the app's processes are told from those of others.
const REALM: &str = "bench-cell-app";
const INSTANCES_PATIENCE: Duration = Duration::from_secs(300);

/// A server of small pages with a check of its port every two seconds.
fn web(process_guid: &str, instances: u32) -> DesiredLrp {
    let args = ["-f", "-p", "8080", "-r", REALM].map(String::from).into();
    let mut lrp = of(process_guid, instances, RunAction { args, ..run("/bin/httpd") });
    let check = Check::Tcp { port: PORT, connect_timeout_ms: 0, interval_ms: 2000 };
    lrp.check_definition = Some(CheckDefinition { checks: vec![check], ..CheckDefinition::default() });
    lrp.ports = vec![PORT];
    lrp
}

pub fn run(path: &str) -> RunAction {
    RunAction { path: path.into(), user: "root".into(), ..RunAction::default() }
}

pub fn of(process_guid: &str, instances: u32, action: RunAction) -> DesiredLrp {
    let mut lrp = DesiredLrp::new(process_guid, DOMAIN, ROOTFS, Action::Run(action));
    lrp.instances = instances;
    lrp.memory_mb = RESOURCE.memory_mb as u32;
    lrp.disk_mb = RESOURCE.disk_mb as u32;
    lrp.log_guid = process_guid.into();
    lrp.log_source = "APP".into();
    lrp.log_rate_limit = Some(LogRateLimit::Unlimited);
    lrp.start_timeout_ms = 60_000;
    lrp
}

/// Gives all of it to the cell; when it was told.
pub async fn give(machine: &Machine, lrp: &DesiredLrp) -> Result<Instant> {
    machine.bbs.desire_lrp(lrp).await?;
    let constraint = || PlacementConstraint { rootfs: ROOTFS.into(), ..PlacementConstraint::default() };
    let piece = |index| Lrp::new(&lrp.process_guid, index, DOMAIN, RESOURCE, constraint());
    let work = Work {
        lrps: (0..lrp.instances as i32).map(piece).collect(),
        cell_id: CELL.into(),
        ..Work::default()
    };
    let told = Instant::now();
    let refused = machine.rep.perform(&work).await?;
    if !refused.is_empty() {
        bail!("the cell refused {} of {} instances", refused.lrps.len(), lrp.instances);
    }
    Ok(told)
}

/// How many crashed before so many were RUNNING.
pub async fn until_running(events: &mut EventStream, process_guid: &str, instances: usize) -> Result<usize> {
    let (mut running, mut crashed) = (HashSet::new(), 0);
    let waiting = async {
        while running.len() < instances {
            match events.next().await.context("the BBS went away")?? {
                Event::ActualLrpInstanceChanged { after, .. }
                    if after.key.process_guid == process_guid && after.is_running() =>
                {
                    running.insert(after.key.index);
                }
                Event::ActualLrpCrashed(_) => crashed += 1,
                _ => {}
            }
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(INSTANCES_PATIENCE, waiting).await.context("instances do not run")??;
    Ok(crashed)
}

pub async fn remove(machine: &Machine, process_guid: &str) -> Result<()> {
    machine.bbs.remove_desired_lrp(process_guid).await?;
    let gone = async || {
        let filter = ActualLrpFilter { process_guid: process_guid.into(), ..ActualLrpFilter::default() };
        let left = machine.bbs.actual_lrps(&filter).await?;
        anyhow::Ok(left.is_empty())
    };
    machine.until("the instances are gone", gone).await?;
    let empty = async || anyhow::Ok(machine.rep.state(Duration::from_secs(10)).await?.lrps.is_empty());
    machine.until("the cell is empty", empty).await
}

pub async fn start(machine: &Machine, report: &mut Report) -> Result<()> {
    let mut events = machine.bbs.subscribe_to_instance_events().await?;
    let mut times = Times::default();
    for round in 0..=number("ROUNDS", 20) {
        let name = format!("one-{round}");
        let told = give(machine, &web(&name, 1)).await?;
        until_running(&mut events, &name, 1).await?;
        // The first finds no cache warm.
        if round > 0 {
            times.add(told.elapsed());
        }
        remove(machine, &name).await?;
    }
    report.times("work accepted until RUNNING, port checked", &times);
    report.figure("cell_accept_to_running_ms", times.median_ms(), "ms");
    Ok(())
}

pub async fn storm(machine: &Machine, report: &mut Report) -> Result<()> {
    let instances = number("STORM", 200);
    let mut events = machine.bbs.subscribe_to_instance_events().await?;
    let told = give(machine, &web("storm", instances as u32)).await?;
    let crashed = until_running(&mut events, "storm", instances).await?;
    let took = told.elapsed();
    report.note(&format!("{instances} at once: {crashed} crashed before all were RUNNING"));
    report.figure("cell_storm_200_s", took.as_secs_f64(), "s");
    remove(machine, "storm").await
}

pub async fn thousand(machine: &Machine, fresh_kib: i64, report: &mut Report) -> Result<()> {
    let (instances, seconds) = (number("INSTANCES", 1000), number("SECONDS", 60));
    let mut events = machine.bbs.subscribe_to_instance_events().await?;
    let told = give(machine, &web("thousand", instances as u32)).await?;
    let crashed = until_running(&mut events, "thousand", instances).await?;
    report.note(&format!("{instances} at once: {:.1} s, {crashed} crashed", told.elapsed().as_secs_f64()));
    // What the start has left to do, it does in this time.
    tokio::time::sleep(Duration::from_secs(10)).await;
    let (cpu, syncs, began) = (machine.cell_cpu()?, machine.metrics().await?, Instant::now());
    tokio::time::sleep(Duration::from_secs(seconds as u64)).await;
    let percent = (machine.cell_cpu()? - cpu).as_secs_f64() / began.elapsed().as_secs_f64() * 100.0;
    let now = machine.metrics().await?;
    let more = |what: &str| {
        let of = |page: &std::collections::HashMap<String, f64>| {
            page.get(&format!("rep_bulk_sync_duration_seconds_{what}")).copied().unwrap_or_default()
        };
        of(&now) - of(&syncs)
    };
    report.figure("cell_1000_cpu_percent", percent, "%");
    report.figure("cell_bulk_sync_1000_ms", more("sum") / more("count") * 1e3, "ms");
    let own = memory::pss_kib(machine.cell_pid())? - fresh_kib - apps_kib()?;
    report.figure("cell_1000_overhead_kib", own as f64 / instances as f64, "KiB");
    let still = machine.rep.state(Duration::from_secs(30)).await?;
    let running = still.lrps.iter().filter(|lrp| lrp.state == "RUNNING").count();
    report.note(&format!("{running} of {instances} ran all the time"));
    remove(machine, "thousand").await
}

/// What the app's own processes take.
fn apps_kib() -> Result<i64> {
    let mut total = 0;
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let command = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if command.contains(REALM) {
            total += memory::pss_of(pid)?;
        }
    }
    Ok(total)
}
