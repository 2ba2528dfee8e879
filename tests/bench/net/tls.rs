//! TLS at the edge of containers: this process is the agent that serves it, by its executor.
//!
//! One connection through the mapped port of one container, in turns without and with TLS; over the loopback, and over a link
//! of 10 Gbit/s, as cells have it. A busy connection keeps its app, the agent and its client busy, each a processor: on fewer
//! the ratio is less than the work of each would have it. So the same is measured with a far client, which leaves what comes
//! sealed, and with an app that ends its TLS itself, without any agent; and all is told with what each party worked for it.

use std::path::Path;

use anyhow::{Result, bail};

use super::agent::{Agent, Fetched, OWN_TLS_PORT, PORT, Target, Way, names};
use super::app::cpu_seconds;
use super::figures::Report;
use super::link::Link;
use super::{Garden, number};

const WAYS: [(Way, &str); 4] = [
    (Way::Plain, "plain"),
    (Way::Tls, "TLS"),
    (Way::Far, "TLS, far client"),
    (Way::AppsTls, "TLS that the app ends itself"),
];

pub async fn measure(garden: &Garden, work: &Path, report: &mut Report) -> Result<()> {
    let agent = Agent::start(garden, &work.join("busy"))?;
    let measured = throughput(&agent, report).await;
    agent.end().await?;
    measured
}

async fn throughput(agent: &Agent, report: &mut Report) -> Result<()> {
    let guids = names("busy", 1);
    agent.run(&guids, &[PORT, OWN_TLS_PORT], true).await?;
    let loopback = Target { guid: &guids[0], over: None };
    let [plain, tls, far, apps] = in_turns(agent, &loopback, "over the loopback", report).await?;
    report.figure("tls_proxy_mb_s", tls.mb_s, "MB/s");
    report.figure("tls_proxy_throughput_ratio", tls.mb_s / plain.mb_s, "TLS/plain");
    report.figure("tls_proxy_far_client_ratio", far.mb_s / plain.mb_s, "TLS/plain");
    report.figure("tls_proxy_vs_apps_tls", tls.mb_s / apps.mb_s, "TLS/app's TLS");
    report.figure("tls_proxy_agent_cpu_s_per_gb", tls.each_gb.agent, "s");
    let link = Link::new()?;
    let over_link = Target { over: Some(&link), ..loopback };
    let [plain, tls, far, apps] = in_turns(agent, &over_link, "over 10 Gbit/s", report).await?;
    report.figure("tls_proxy_10g_mb_s", tls.mb_s, "MB/s");
    report.figure("tls_proxy_10g_ratio", tls.mb_s / plain.mb_s, "TLS/plain");
    report.figure("tls_proxy_10g_far_client_ratio", far.mb_s / plain.mb_s, "TLS/plain");
    report.figure("tls_proxy_10g_vs_apps_tls", tls.mb_s / apps.mb_s, "TLS/app's TLS");
    agent.remove(&guids).await
}

/// Medians of some rounds.
struct Speed {
    mb_s: f64,
    best_mb_s: f64,
    /// Seconds of a processor.
    each_gb: Fetched,
}

async fn in_turns(
    agent: &Agent,
    target: &Target<'_>,
    place: &str,
    report: &mut Report,
) -> Result<[Speed; 4]> {
    let bytes = (number("MIB", 2000) << 20) as u64;
    let app = app_process()?;
    let mut rounds: [Vec<Fetched>; 4] = Default::default();
    for _ in 0..number("ROUNDS", 7) {
        for ((way, _), rounds) in WAYS.iter().zip(&mut rounds) {
            let before = cpu_seconds(&app)?;
            let fetched = agent.fetch(target, bytes, *way).await?;
            rounds.push(Fetched { app: cpu_seconds(&app)? - before, ..fetched });
        }
    }
    let speeds = rounds.map(|rounds| speed(&rounds, bytes));
    for ((_, way), Speed { mb_s, best_mb_s, each_gb }) in WAYS.iter().zip(&speeds) {
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
