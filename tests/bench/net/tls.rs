//! TLS at the edge of containers: this process is the agent that serves it, by its executor.
//!
//! Throughput: one connection through the mapped port of one container, in turns without and with TLS; over the loopback,
//! and over a link of 10 Gbit/s, as cells have it. A busy connection keeps its app, the agent and its client busy, each a
//! processor: on fewer the ratio is less than the work of each would have it. So the same is measured with a far client,
//! which leaves what comes sealed, and all is told with what each party worked for it.
//! Idle: what so many containers more weigh with TLS than without.

use std::net::{Ipv4Addr, SocketAddr};
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

use super::app::cpu_seconds;
use super::figures::Report;
use super::link::{self, Link};
use super::{Garden, memory, number};

const PATIENCE: Duration = Duration::from_secs(120);
const PORT: u16 = 8080;
/// Of which the second half counts.
const IDLE_ROUNDS: usize = 12;

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

/// Seconds that so many bytes took, and what each party worked for them.
#[derive(Debug, Clone, Copy, Default)]
struct Fetched {
    seconds: f64,
    client: f64,
    agent: f64,
    app: f64,
}

/// With a client in a process of its own.
async fn fetch(from: &Target<'_>, bytes: u64, way: Way<'_>) -> Result<Fetched> {
    let container = from.executor.get(from.guid)?;
    let port = container.ports.first().context("no port is mapped")?;
    let port = if matches!(way, Way::Plain) { port.host_port } else { port.host_tls_proxy_port };
    let address = SocketAddr::from((from.over.map_or(Ipv4Addr::LOCALHOST, |_| link::CELL), port));
    let mut client = Command::new(std::env::current_exe()?);
    client.arg("client").arg(address.to_string()).arg(bytes.to_string());
    match way {
        Way::Plain => {}
        Way::Tls(authority) => drop(client.arg("near").arg(authority).arg(from.guid)),
        Way::Far(authority) => drop(client.arg("far").arg(authority).arg(from.guid)),
    }
    let agent = cpu_seconds("self")?;
    let output = match from.over {
        None => tokio::task::spawn_blocking(move || client.output()).await??,
        Some(link) => tokio::task::block_in_place(|| link.outside(|| client.output()))??,
    };
    if !output.status.success() {
        bail!("a client failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    let told = String::from_utf8(output.stdout)?;
    let (seconds, client) = told.trim().split_once(' ').context("a client that does not tell its figures")?;
    let agent = cpu_seconds("self")? - agent;
    Ok(Fetched { seconds: seconds.parse()?, client: client.parse()?, agent, app: 0.0 })
}

/// A container, and the way there: without a link, over the loopback.
struct Target<'a> {
    executor: &'a Executor,
    guid: &'a str,
    over: Option<&'a Link>,
}

async fn throughput(
    executor: &Executor,
    garden: &Garden,
    authority: &Path,
    report: &mut Report,
) -> Result<()> {
    let guids = names("busy", 1);
    start(executor, garden, &guids, true).await?;
    let loopback = Target { executor, guid: &guids[0], over: None };
    let [plain, tls, far] = in_turns(&loopback, authority, "over the loopback", report).await?;
    report.figure("tls_proxy_mb_s", tls.mb_s, "MB/s");
    report.figure("tls_proxy_throughput_ratio", tls.mb_s / plain.mb_s, "TLS/plain");
    report.figure("tls_proxy_far_client_ratio", far.mb_s / plain.mb_s, "TLS/plain");
    report.figure("tls_proxy_agent_cpu_s_per_gb", tls.each_gb.agent, "s");
    let link = Link::new()?;
    let over_link = Target { over: Some(&link), ..loopback };
    let [plain, tls, far] = in_turns(&over_link, authority, "over 10 Gbit/s", report).await?;
    report.figure("tls_proxy_10g_mb_s", tls.mb_s, "MB/s");
    report.figure("tls_proxy_10g_ratio", tls.mb_s / plain.mb_s, "TLS/plain");
    report.figure("tls_proxy_10g_far_client_ratio", far.mb_s / plain.mb_s, "TLS/plain");
    remove(executor, &guids).await
}

/// Medians of some rounds.
struct Speed {
    mb_s: f64,
    best_mb_s: f64,
    /// Seconds of a processor.
    each_gb: Fetched,
}

/// Plain, with TLS, and to a far client.
async fn in_turns(
    target: &Target<'_>,
    authority: &Path,
    place: &str,
    report: &mut Report,
) -> Result<[Speed; 3]> {
    let bytes = (number("MIB", 2000) << 20) as u64;
    let app = app_process()?;
    let mut rounds: [Vec<Fetched>; 3] = Default::default();
    for _ in 0..number("ROUNDS", 7) {
        for (way, rounds) in
            [Way::Plain, Way::Tls(authority), Way::Far(authority)].into_iter().zip(&mut rounds)
        {
            let before = cpu_seconds(&app)?;
            let fetched = fetch(target, bytes, way).await?;
            rounds.push(Fetched { app: cpu_seconds(&app)? - before, ..fetched });
        }
    }
    let speeds = rounds.map(|rounds| speed(&rounds, bytes));
    for (way, Speed { mb_s, best_mb_s, each_gb }) in ["plain", "TLS", "TLS, far client"].iter().zip(&speeds) {
        let Fetched { app, agent, client, .. } = each_gb;
        report.note(&format!(
            "one connection {place}, {way}: {mb_s:.0} MB/s (best {best_mb_s:.0}); of a processor for a GB: app {app:.2} s, \
             agent {agent:.2} s, client {client:.2} s"
        ));
    }
    Ok(speeds)
}

fn speed(rounds: &[Fetched], bytes: u64) -> Speed {
    let gb = bytes as f64 / 1e9;
    let sorted = |of: fn(&Fetched) -> f64| {
        let mut values: Vec<_> = rounds.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values
    };
    let median = |of: fn(&Fetched) -> f64| sorted(of)[rounds.len() / 2];
    let seconds = sorted(|fetched| fetched.seconds);
    let each_gb = Fetched {
        seconds: median(|fetched| fetched.seconds) / gb,
        client: median(|fetched| fetched.client) / gb,
        agent: median(|fetched| fetched.agent) / gb,
        app: median(|fetched| fetched.app) / gb,
    };
    Speed { mb_s: 1e3 / each_gb.seconds, best_mb_s: 1e3 * gb / seconds[0], each_gb }
}

/// The app of the only container that there is.
fn app_process() -> Result<String> {
    for process in std::fs::read_dir("/proc")? {
        let process = process?;
        // One that ends meanwhile is not the app.
        let line = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        if line.starts_with(b"/bin/bench-net\0source\0") {
            return Ok(process.file_name().to_string_lossy().into_owned());
        }
    }
    bail!("no container runs the app")
}

async fn idle(executor: &Executor, garden: &Garden, authority: &Path, report: &mut Report) -> Result<()> {
    let count = number("IDLE", 100);
    let weight = || memory::pss_of(std::process::id());
    // As many as are measured: what so many at once cost once and for all, the allocator keeps for the next.
    let first = names("first", count);
    start(executor, garden, &first, true).await?;
    let mut guids = first;
    let mut weights = [0, 0];
    // In turns, a few of each: the first of them live in what the allocator had left, and are not counted.
    for round in 0..IDLE_ROUNDS {
        for with in [round % 2 == 0, round % 2 != 0] {
            let some = names(&format!("{round}-{with}"), (count / (IDLE_ROUNDS / 2)).max(1));
            let before = weight()?;
            start(executor, garden, &some, with).await?;
            for guid in some.iter().filter(|_| with) {
                fetch(&Target { executor, guid, over: None }, 1000, Way::Tls(authority)).await?;
            }
            if round >= IDLE_ROUNDS / 2 {
                weights[usize::from(with)] += weight()? - before;
            }
            guids.extend(some);
        }
    }
    remove(executor, &guids).await?;
    let [plain, tls] = weights.map(|kib: i64| kib as f64 / count as f64);
    report.note(&format!("an idle container in the agent: {plain:.1} KiB without TLS, {tls:.1} KiB with"));
    report.figure("tls_proxy_idle_kib", (tls - plain).max(0.0), "KiB");
    Ok(())
}
