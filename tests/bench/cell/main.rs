//! What a cell costs and how fast it is, by its own API: a `diego cell` with a BBS and a Locket beside it in processes of
//! their own, real containers, and this program in the auctioneer's place. Figures on the last lines.
//!
//!   make bench-cell          as root, on a quiet machine; ONLY=start (or storm, thousand, logs) measures only that part
//!
//! The same program is what talks in containers: see `logs`.

#[path = "../garden/figures.rs"]
#[allow(dead_code)]
mod figures;
mod instances;
mod logs;
mod machine;
#[path = "../garden/memory.rs"]
mod memory;

use std::path::Path;

use anyhow::{Result, bail};
use figures::Report;
use machine::Machine;
use tokio::signal::unix::{SignalKind, signal};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["talk", lines_per_second, seconds] => logs::talk(lines_per_second.parse()?, seconds.parse()?),
        [bin] => {
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
            // Whoever is told to stop stops what it has started.
            runtime.block_on(async {
                let mut terminate = signal(SignalKind::terminate())?;
                let mut interrupt = signal(SignalKind::interrupt())?;
                tokio::select! {
                    measured = measure(Path::new(bin)) => measured,
                    _ = terminate.recv() => bail!("told to stop"),
                    _ = interrupt.recv() => bail!("told to stop"),
                }
            })
        }
        _ => bail!("usage: bench-cell BIN, where `make build` put the programs"),
    }
}

fn number(name: &str, otherwise: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

async fn measure(bin: &Path) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("containers are made by root");
    }
    let only = std::env::var("ONLY").unwrap_or_default();
    let wanted = |part: &str| only.is_empty() || only.split(',').any(|name| name == part);
    let mut report = Report::default();
    let mut machine = Machine::start(bin).await?;
    // What parts before it leave to the allocator is nothing that instances cost.
    let fresh_kib = memory::pss_kib(machine.cell_pid())?;
    if wanted("start") {
        instances::start(&machine, &mut report).await?;
    }
    if wanted("storm") {
        instances::storm(&machine, &mut report).await?;
    }
    if wanted("thousand") {
        instances::thousand(&machine, fresh_kib, &mut report).await?;
    }
    if wanted("logs") {
        logs::measure(&machine, &mut report).await?;
    }
    machine.stop()?;
    report.print();
    Ok(())
}
