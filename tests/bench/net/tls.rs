//! TLS at the edge of containers: this process is the agent that serves it, by its executor.
//!
//! Throughput: one connection through the mapped port of one container, in turns without and with TLS. A busy connection
//! keeps its app, the agent and its client busy, each a processor: on fewer the ratio is less than the work of each would
//! have it. So the same is measured with a far client, which leaves what comes sealed, and what the agent's own work is.
//! Idle: what so many containers more weigh with TLS than without.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use executor::logs::Logs;
use executor::*;
use garden_client::{Address, HttpGarden};
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
use tokio_util::sync::CancellationToken;

use super::figures::Report;
use super::{Garden, memory, number};

const PATIENCE: Duration = Duration::from_secs(120);
const PORT: u16 = 8080;
/// Of the kernel's accounts of processes, on every machine.
const TICKS_PER_SECOND: f64 = 100.0;

pub async fn measure(garden: &Garden, work: &Path, report: &mut Report) -> Result<()> {
    let authority = work.join("authority.pem");
    let executor = agent(garden, work, &authority)?;
    let stop = CancellationToken::new();
    let running = tokio::spawn({
        let (executor, stop) = (executor.clone(), stop.clone());
        async move { executor.run(stop).await }
    });
    let measured = async {
        throughput(&executor, garden, &authority, report).await?;
        idle(&executor, garden, &authority, report).await
    };
    let measured = measured.await;
    stop.cancel();
    running.await?;
    measured
}

fn agent(garden: &Garden, work: &Path, authority: &Path) -> Result<Executor> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let certificate = params.self_signed(&key)?.pem();
    std::fs::write(authority, &certificate)?;
    let total = CellResources { memory_mb: 1 << 20, disk_mb: 1 << 20, containers: 10_000 };
    let http = diego_base::http::client(&Default::default())?;
    let mut config = Config::new("bench", total, work.join("agent"), http);
    config.instance_identity = Some(InstanceIdentity {
        ca_certificate_pem: certificate,
        ca_private_key_pem: key.serialize_pem(),
        validity: Duration::from_secs(86_400),
    });
    config.container_proxy = Some(ContainerProxy::default());
    let garden = HttpGarden::new(Address::Unix(garden.socket.clone()));
    Ok(Executor::new(config, Arc::new(garden), Logs::default())?)
}

/// Runs containers, all at once, and waits until all run.
async fn start(executor: &Executor, garden: &Garden, guids: &[String], tls: bool) -> Result<()> {
    let mut events = executor.subscribe();
    let resource = Resource { memory_mb: 64, disk_mb: 64, max_pids: 0 };
    let wish = |guid: &String| AllocationRequest { guid: guid.clone(), resource, tags: Tags::new() };
    let refused = executor.allocate(guids.iter().map(wish).collect());
    if let Some(refused) = refused.first() {
        bail!("not allocated: {refused:?}");
    }
    let action = bbs_models::RunAction {
        path: "/bin/bench-net".into(),
        args: vec!["source".into(), PORT.to_string()],
        user: "root".into(),
        ..Default::default()
    };
    let run_info = RunInfo {
        rootfs: garden.root.clone(),
        action: Some(bbs_models::Action::Run(action)),
        ports: vec![PortMapping { container_port: PORT, ..PortMapping::default() }],
        check_definition: Some(bbs_models::CheckDefinition {
            checks: vec![bbs_models::Check::Tcp {
                port: PORT,
                connect_timeout_ms: 0,
                interval_ms: 3_600_000,
            }],
            ..Default::default()
        }),
        log_rate_limit_bytes_per_second: -1,
        enable_container_proxy: tls,
        ..RunInfo::default()
    };
    for guid in guids {
        executor.run_container(RunRequest {
            guid: guid.clone(),
            run_info: run_info.clone(),
            tags: Tags::new(),
        })?;
    }
    let mut left = guids.len();
    while left > 0 {
        let heard = tokio::time::timeout(PATIENCE, events.next()).await.context("containers do not run")?;
        match heard.context("no more events")? {
            Heard::Event(Event::Running(_)) => left -= 1,
            Heard::Event(Event::Completed(container)) => bail!("{:?}", container.state),
            _ => {}
        }
    }
    Ok(())
}

async fn remove(executor: &Executor, guids: &[String]) -> Result<()> {
    for guid in guids {
        executor.delete(guid).await?;
    }
    Ok(())
}

fn names(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{prefix}-{number}")).collect()
}

/// How a client comes.
#[derive(Clone, Copy)]
enum Way<'a> {
    Plain,
    Tls(&'a Path),
    /// See [`super::app::Tls`].
    Far(&'a Path),
}

/// Seconds that a client in a process of its own needs.
async fn fetch(executor: &Executor, guid: &str, bytes: u64, way: Way<'_>) -> Result<f64> {
    let container = executor.get(guid)?;
    let port = container.ports.first().context("no port is mapped")?;
    let port = if matches!(way, Way::Plain) { port.host_port } else { port.host_tls_proxy_port };
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let mut client = Command::new(std::env::current_exe()?);
    client.arg("client").arg(address.to_string()).arg(bytes.to_string());
    match way {
        Way::Plain => {}
        Way::Tls(authority) => drop(client.arg("near").arg(authority).arg(guid)),
        Way::Far(authority) => drop(client.arg("far").arg(authority).arg(guid)),
    }
    let output = tokio::task::spawn_blocking(move || client.output()).await??;
    if !output.status.success() {
        bail!("a client failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8(output.stdout)?.trim().parse()?)
}

async fn throughput(
    executor: &Executor,
    garden: &Garden,
    authority: &Path,
    report: &mut Report,
) -> Result<()> {
    let guids = names("busy", 1);
    start(executor, garden, &guids, true).await?;
    let bytes = (number("MIB", 2000) << 20) as u64;
    let (mut plain, mut tls, mut far) = (Vec::new(), Vec::new(), Vec::new());
    let mut agent_seconds = Vec::new();
    for _ in 0..number("ROUNDS", 7) {
        plain.push(fetch(executor, &guids[0], bytes, Way::Plain).await?);
        let before = agent_cpu_seconds()?;
        tls.push(fetch(executor, &guids[0], bytes, Way::Tls(authority)).await?);
        agent_seconds.push(agent_cpu_seconds()? - before);
        far.push(fetch(executor, &guids[0], bytes, Way::Far(authority)).await?);
    }
    remove(executor, &guids).await?;
    let [(plain, plain_best), (tls, tls_best), (far, far_best)] = [plain, tls, far].map(|mut seconds| {
        seconds.sort_by(f64::total_cmp);
        let of = |seconds: f64| bytes as f64 / 1e6 / seconds;
        (of(seconds[seconds.len() / 2]), of(seconds[0]))
    });
    agent_seconds.sort_by(f64::total_cmp);
    report.note(&format!(
        "one connection, median (best): plain {plain:.0} ({plain_best:.0}) MB/s, TLS {tls:.0} ({tls_best:.0}) MB/s, \
         to a far client {far:.0} ({far_best:.0}) MB/s"
    ));
    report.figure("tls_proxy_mb_s", tls, "MB/s");
    report.figure("tls_proxy_throughput_ratio", tls / plain, "TLS/plain");
    report.figure("tls_proxy_far_client_ratio", far / plain, "TLS/plain");
    let each_gb = agent_seconds[agent_seconds.len() / 2] * 1e9 / bytes as f64;
    report.figure("tls_proxy_agent_cpu_s_per_gb", each_gb, "s");
    Ok(())
}

/// Of this process, in user's and in kernel's mode.
fn agent_cpu_seconds() -> Result<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<_> = stat.rsplit_once(')').context("no fields")?.1.split_whitespace().collect();
    let ticks: f64 = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
    Ok(ticks / TICKS_PER_SECOND)
}

async fn idle(executor: &Executor, garden: &Garden, authority: &Path, report: &mut Report) -> Result<()> {
    let count = number("IDLE", 100);
    let weight = || memory::pss_of(std::process::id());
    // As many as are measured: what so many at once cost once and for all, the allocator keeps for the next.
    let first = names("first", count);
    start(executor, garden, &first, true).await?;
    let before = weight()?;
    let without = names("without", count);
    start(executor, garden, &without, false).await?;
    let between = weight()?;
    let with = names("with", count);
    start(executor, garden, &with, true).await?;
    for guid in &with {
        fetch(executor, guid, 1000, Way::Tls(authority)).await?;
    }
    let after = weight()?;
    for guids in [first, without, with] {
        remove(executor, &guids).await?;
    }
    let each = |kib: i64| kib as f64 / count as f64;
    let (plain, tls) = (each(between - before), each(after - between));
    report.note(&format!("an idle container in the agent: {plain:.1} KiB without TLS, {tls:.1} KiB with"));
    report.figure("tls_proxy_idle_kib", (tls - plain).max(0.0), "KiB");
    Ok(())
}
