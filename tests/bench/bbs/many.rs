//! A large cluster's board: how long a pass over everything takes, what it weighs, how fast everything is told, and how
//! soon another BBS answers from the same database.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bbs_models::{ActualLrpFilter, ActualLrpInstanceKey, DesiredLrpFilter};

use super::figures::Report;
use super::number;
use super::operations::{DOMAIN, desired, key, started};
use super::served::{Served, cell_id};

const CLIENTS: usize = 32;
const PASSES: usize = 3;
const PATIENCE: Duration = Duration::from_secs(120);

pub async fn measure(report: &mut Report) -> Result<()> {
    let (lrps, instances, cells) = (number("LRPS", 25_000), number("INSTANCES", 10), number("CELLS", 1_000));
    let mut served = Served::start(None, cells).await?;
    let began = Instant::now();
    fill(&served, lrps, instances, cells).await?;
    let all = lrps * instances;
    report.note(&format!(
        "{all} instances of {lrps} LRPs on {cells} cells desired and started in {:?}",
        began.elapsed()
    ));
    let bbs = served.client()?;
    bbs.upsert_domain(DOMAIN, None).await?;
    let (pass_s, repairs) = pass(&served).await?;
    report.note(&format!("a pass over everything: {pass_s:.3} s, {repairs} repairs"));
    report.figure("bbs_converge_250k_s", pass_s, "s");
    let began = Instant::now();
    let listed = bbs.scheduling_infos(&DesiredLrpFilter::default()).await?.len();
    report.note(&format!("{listed} scheduling infos listed"));
    report.figure("bbs_scheduling_infos_s", began.elapsed().as_secs_f64(), "s");
    let began = Instant::now();
    let listed = bbs.actual_lrps(&ActualLrpFilter::default()).await?.len();
    report.note(&format!("{listed} ActualLRPs listed"));
    report.figure("bbs_actual_lrps_s", began.elapsed().as_secs_f64(), "s");
    report.figure("bbs_rss_250k_mib", served.resident_mib()?, "MiB");
    report.figure("bbs_failover_s", served.fail_over().await?.as_secs_f64(), "s");
    let there = served.client()?.actual_lrps(&ActualLrpFilter::default()).await?.len();
    if there != all {
        bail!("after the fail-over {there} of {all} instances are there");
    }
    report.figure("bbs_rss_250k_after_failover_mib", served.resident_mib()?, "MiB");
    Ok(())
}

async fn fill(served: &Served, lrps: usize, instances: usize, cells: usize) -> Result<()> {
    let mut running = tokio::task::JoinSet::new();
    for first in 0..CLIENTS {
        let bbs = served.client()?;
        running.spawn(async move {
            for number in (first..lrps).step_by(CLIENTS) {
                let guid = format!("lrp-{number}");
                bbs.desire_lrp(&desired(&guid, instances as u32, 1_000)).await?;
                for index in 0..instances {
                    let cell = cell_id((number * instances + index) % cells);
                    let instance = ActualLrpInstanceKey::new(format!("{guid}-{index}"), cell);
                    bbs.start_actual_lrp(&key(&guid, index as u32), &instance, &started()).await?;
                }
            }
            anyhow::Ok(())
        });
    }
    while let Some(filled) = running.join_next().await {
        filled??;
    }
    Ok(())
}

/// The median of the next passes, as the BBS tells of them, and what the last of them found.
async fn pass(served: &Served) -> Result<(f64, u64)> {
    let (before, began) = (passes(&served.log()?).len(), Instant::now());
    loop {
        let mut new = passes(&served.log()?).split_off(before);
        if new.len() >= PASSES {
            let repairs = new.last().context("a pass")?.1;
            new.sort_by(|a, b| a.0.total_cmp(&b.0));
            return Ok((new[new.len() / 2].0, repairs));
        }
        if began.elapsed() > PATIENCE {
            bail!("the BBS does not look at everything");
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// Seconds and repairs of each.
fn passes(log: &str) -> Vec<(f64, u64)> {
    let field = |line: &str, name: &str| {
        let after = line.split(&format!("\"{name}\":")).nth(1)?;
        let digits: String = after.trim_start_matches('"').chars().take_while(char::is_ascii_digit).collect();
        digits.parse::<u64>().ok()
    };
    let lines = log.lines().filter(|line| line.contains("converged"));
    lines
        .filter_map(|line| Some((field(line, "duration_ns")? as f64 / 1e9, field(line, "repairs")?)))
        .collect()
}
