//! What idle containers weigh in the agent with TLS before them and without: as pages of its process, and as bytes that are
//! allocated.
//!
//! Pages come and go for reasons of the allocator's, by the dozen. So each kind is weighed in an agent that was never anything
//! else, in which so many were started before that what is made once and for all is not counted.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::agent::{Agent, PORT, Target, Way, names};
use super::figures::Report;
use super::{ALLOCATOR, Garden, memory, number};

/// Of those that count.
const STARTED_BEFORE: f64 = 0.5;

/// For each container.
#[derive(Debug, Clone, Copy)]
struct Weighed {
    resident_kib: f64,
    allocated_kib: f64,
}

pub fn measure(garden: &Garden, work: &Path, report: &mut Report) -> Result<()> {
    let (mut plain, mut tls) = (Vec::new(), Vec::new());
    for (round, kind) in ["plain", "tls", "tls", "plain"].into_iter().enumerate() {
        let weighed = weigh_in_another(garden, &work.join(format!("idle-{round}")), kind)?;
        if kind == "tls" { tls.push(weighed) } else { plain.push(weighed) }
    }
    let figures: [(&str, &str, fn(&Weighed) -> f64); 2] = [
        ("resident", "tls_proxy_idle_kib", |weighed| weighed.resident_kib),
        ("allocated", "tls_proxy_idle_allocated_kib", |weighed| weighed.allocated_kib),
    ];
    for (what, name, of) in figures {
        let mean = |all: &[Weighed]| all.iter().map(of).sum::<f64>() / all.len() as f64;
        let told =
            |all: &[Weighed]| all.iter().map(|one| format!("{:.1}", of(one))).collect::<Vec<_>>().join(", ");
        report.note(&format!(
            "an idle container in the agent, {what}: {} KiB without TLS, {} with",
            told(&plain),
            told(&tls)
        ));
        report.figure(name, mean(&tls) - mean(&plain), "KiB");
    }
    Ok(())
}

fn weigh_in_another(garden: &Garden, directory: &Path, kind: &str) -> Result<Weighed> {
    let agent = Command::new(std::env::current_exe()?)
        .args(["weigh", kind, &garden.root])
        .args([&garden.socket, directory])
        .output()?;
    if !agent.status.success() {
        bail!("an agent failed: {}", String::from_utf8_lossy(&agent.stderr));
    }
    let told = String::from_utf8(agent.stdout)?;
    let (resident, allocated) = told.trim().split_once(' ').context("an agent that tells no figures")?;
    Ok(Weighed { resident_kib: resident.parse()?, allocated_kib: allocated.parse()? })
}

/// Prints what an idle container weighs in this process.
pub async fn weigh(kind: &str, root: &str, socket: &str, directory: &str) -> Result<()> {
    let garden = Garden { socket: PathBuf::from(socket), root: root.into() };
    let way = if kind == "tls" { Way::Tls } else { Way::Plain };
    let count = number("IDLE", 200);
    let agent = Agent::start(&garden, Path::new(directory))?;
    let before = names("before", (count as f64 * STARTED_BEFORE) as usize);
    let counted = names("counted", count);
    let weigh = async || {
        settle(&agent, &before, way).await?;
        let began = now()?;
        settle(&agent, &counted, way).await?;
        let ended = now()?;
        anyhow::Ok([ended.0 - began.0, ended.1 - began.1].map(|kib| kib / count as f64))
    };
    let weighed = weigh().await;
    agent.remove(&[before, counted].concat()).await?;
    agent.end().await?;
    let [resident, allocated] = weighed?;
    println!("{resident} {allocated}");
    Ok(())
}

/// Resident and allocated, in KiB.
fn now() -> Result<(f64, f64)> {
    Ok((memory::pss_of(std::process::id())? as f64, ALLOCATOR.allocated() as f64 / 1024.0))
}

/// One after the other, as they come to a cell; each is asked for something once.
async fn settle(agent: &Agent, guids: &[String], way: Way) -> Result<()> {
    for guid in guids {
        agent.run(std::slice::from_ref(guid), &[PORT], way != Way::Plain).await?;
        agent.fetch(&Target { guid, over: None }, 1000, way).await?;
    }
    Ok(())
}
