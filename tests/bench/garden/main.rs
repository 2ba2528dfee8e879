//! What garden costs, beside what others cost: one run, same machine, same root file system, taken in turns.
//!
//!   make bench-garden        as root, on a quiet machine; ROUNDS, IDLE and CONTAINERS make it longer or shorter, ONLY=storm
//!                            (or cycles, execs, throughput, archives, bulk, idle; several with commas) measures only that
//!
//! A table for people, then `figure NAME VALUE UNIT`, one a line. Ratios are of medians taken in the same rounds; the
//! least of each is printed as well, because other work on a machine only ever adds.

mod archives;
mod figures;
mod garden;
mod memory;
mod peers;
mod throughput;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use figures::{Report, Times};
use garden::Server;
use peers::{Crun, Ctr, Runc};

struct Sizes {
    rounds: usize,
    /// containerd takes a tenth of a second each time.
    slow_rounds: usize,
    containers: usize,
    idle: usize,
}

/// Clients that create at once, and how many each.
const STORM: (usize, usize) = (5, 40);

fn main() -> Result<()> {
    // The same program times a peer that must see control groups in another way: see `peers`.
    if std::env::args().nth(1).as_deref() == Some(peers::RUNNER) {
        return peers::serve();
    }
    let bin =
        std::env::args().nth(1).context("usage: bench-garden BIN, where `make build` put the programs")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(measure(Path::new(&bin)))
}

fn number(name: &str, otherwise: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

async fn measure(bin: &Path) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("containers are made by root");
    }
    let sizes = Sizes {
        rounds: number("ROUNDS", 40),
        slow_rounds: number("SLOW_ROUNDS", 5),
        containers: number("CONTAINERS", 250),
        idle: number("IDLE", 1000),
    };
    let work = tempfile::Builder::new().prefix("diego-bench-").tempdir()?;
    // Users of containers must be able to walk down to their root.
    std::fs::set_permissions(work.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let root = tests::userland(work.path())?;
    let mut report = Report::default();
    let server = Server::start(bin, work.path(), &root)?;
    let only = std::env::var("ONLY").unwrap_or_default();
    let wanted = |part: &str| only.is_empty() || only.split(',').any(|name| name == part);
    if wanted("cycles") {
        cycles(&server, &sizes, &root, work.path(), &mut report).await?;
    }
    if wanted("execs") {
        execs(&server, &sizes, &root, work.path(), &mut report).await?;
    }
    if wanted("storm") {
        storm(&server, &mut report).await?;
    }
    if wanted("throughput") {
        throughput::measure(&server, &mut report).await?;
    }
    if wanted("archives") {
        archives::measure(&server, &mut report).await?;
    }
    if wanted("bulk") {
        bulk_metrics(&server, &sizes, &mut report).await?;
    }
    if wanted("idle") {
        idle(&server, &sizes, &mut report).await?;
    }
    server.stop()?;
    report.print();
    Ok(())
}

/// Create, run /bin/true, destroy.
async fn cycles(server: &Server, sizes: &Sizes, root: &Path, work: &Path, report: &mut Report) -> Result<()> {
    let mut crun = Crun::new(work, root)?;
    let runc = Runc::new(work, root)?;
    let ctr = Ctr::start(work);
    let (mut ours, mut of_crun, mut of_runc, mut of_ctr) = Default::default();
    let (mut creates, mut runs, mut destroys) = (Times::default(), Times::default(), Times::default());
    for round in 0..sizes.rounds + 1 {
        let cycle = server.cycle(&format!("cycle-{round}")).await?;
        let peers = (crun.cycle(round)?, runc.cycle(round)?);
        if round == 0 {
            continue;
        }
        Times::add(&mut ours, cycle.create + cycle.run + cycle.destroy);
        creates.add(cycle.create);
        runs.add(cycle.run);
        destroys.add(cycle.destroy);
        Times::add(&mut of_crun, peers.0);
        Times::add(&mut of_runc, peers.1);
        if let Ok(ctr) = &ctr
            && round <= sizes.slow_rounds
        {
            Times::add(&mut of_ctr, ctr.cycle(round)?);
        }
    }
    if let Err(why) = &ctr {
        println!("SKIPPED containerd: {why:#}");
    }
    report.times("create, run true, destroy: garden, whole", &ours);
    report.times("  create", &creates);
    report.times("  run true and wait", &runs);
    report.times("  destroy", &destroys);
    report.times("crun run, bare bundle with user and network namespace", &of_crun);
    report.times("runc run, the same", &of_runc);
    report.times("ctr run --rm", &of_ctr);
    report.figure("garden_cycle_ms", ours.median_ms(), "ms");
    report.figure("garden_cycle_vs_crun", ours.median_ms() / of_crun.median_ms(), "ours/crun");
    Ok(())
}

/// /bin/true in a container that is there.
async fn execs(server: &Server, sizes: &Sizes, root: &Path, work: &Path, report: &mut Report) -> Result<()> {
    let runc = Runc::new(work, root)?;
    let running = runc.running("bench-exec")?;
    server.create("exec").await?;
    let (mut ours, mut of_runc) = (Times::default(), Times::default());
    for round in 0..sizes.rounds + 1 {
        let (mine, theirs) = (server.run_true("exec").await?, running.exec()?);
        if round > 0 {
            ours.add(mine);
            of_runc.add(theirs);
        }
    }
    server.destroy("exec").await?;
    report.times("run true and wait, existing container: garden", &ours);
    report.times("runc exec", &of_runc);
    report.figure("garden_exec_ms", ours.median_ms(), "ms");
    report.figure("garden_exec_vs_runc", of_runc.median_ms() / ours.median_ms(), "runc/ours");
    Ok(())
}

/// Many clients create at once.
async fn storm(server: &Server, report: &mut Report) -> Result<()> {
    let (clients, each) = STORM;
    let began = Instant::now();
    let storming = (0..clients).map(|client| {
        let server = server.clone();
        tokio::spawn(async move {
            let mut times = Vec::new();
            for number in 0..each {
                let began = Instant::now();
                server.create(&format!("storm-{client}-{number}")).await?;
                times.push(began.elapsed());
            }
            Ok::<_, anyhow::Error>(times)
        })
    });
    let mut times = Times::default();
    for client in storming.collect::<Vec<_>>() {
        client.await??.into_iter().for_each(|time| times.add(time));
    }
    let wall = began.elapsed();
    server
        .destroy_all((0..clients).flat_map(|client| (0..each).map(move |n| format!("storm-{client}-{n}"))))
        .await?;
    report.times(&format!("{clients} clients, {each} creates each ({} ms in all)", wall.as_millis()), &times);
    report.figure("garden_storm_mean_ms", times.mean_ms(), "ms");
    report.figure("garden_storm_p99_ms", times.percentile_ms(99), "ms");
    Ok(())
}

async fn bulk_metrics(server: &Server, sizes: &Sizes, report: &mut Report) -> Result<()> {
    let handles: Vec<String> = (0..sizes.containers).map(|number| format!("bulk-{number}")).collect();
    server.create_all(handles.iter().cloned()).await?;
    let mut times = Times::default();
    for _ in 0..11 {
        times.add(server.bulk_metrics(&handles).await?);
    }
    server.destroy_all(handles).await?;
    report.times(&format!("bulk metrics of {}", sizes.containers), &times);
    report.figure(&format!("garden_bulk_metrics_{}_ms", sizes.containers), times.median_ms(), "ms");
    Ok(())
}

/// As many containers as the machine is asked to hold, each made, used once, looked at and destroyed.
async fn idle(server: &Server, sizes: &Sizes, report: &mut Report) -> Result<()> {
    let handles: Vec<String> = (0..sizes.idle).map(|number| format!("idle-{number}")).collect();
    let before = memory::pss_kib(server.pid())?;
    let began = Instant::now();
    server.create_all(handles.iter().cloned()).await?;
    let created = began.elapsed();
    server.check_all(&handles).await?;
    let after = memory::pss_kib(server.pid())?;
    let began = Instant::now();
    server.destroy_all(handles).await?;
    let destroyed = began.elapsed();
    let left = server.handles().await?.len();
    if left > 0 {
        bail!("{left} containers are left");
    }
    report.note(&format!(
        "{} idle containers: created in {:.1} s, destroyed in {:.1} s",
        sizes.idle,
        created.as_secs_f64(),
        destroyed.as_secs_f64()
    ));
    report.figure("garden_idle_pss_kib", (after - before) as f64 / sizes.idle as f64, "KiB");
    report.figure("garden_idle_containers", sizes.idle as f64, "containers");
    Ok(())
}

/// Until it holds or the time is over.
fn wait_until(what: &str, holds: impl Fn() -> bool) -> Result<()> {
    let began = Instant::now();
    while !holds() {
        if began.elapsed() > Duration::from_secs(30) {
            bail!("waited too long for {what}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
