//! Desire, claim, start, crash, remove: by 16 clients, each with a connection of its own, and by 64 for the tail.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bbs_client::{BbsClient, StartedLrp};
use bbs_models::{
    Action, ActualLrpInstanceKey, ActualLrpKey, ActualLrpNetInfo, DesiredLrp, EnvironmentVariable, RunAction,
};
use diego_base::tls::Files;

use super::figures::{Report, Times};
use super::number;
use super::served::{self, Served};

pub const DOMAIN: &str = "bench";
const CLIENTS: usize = 16;
const MANY_CLIENTS: usize = 64;
/// With what is around it a DesiredLRP of 7.2 kB on the wire, as the peer was measured with.
const ENVIRONMENT_BYTES: usize = 6_900;

pub async fn measure(report: &mut Report) -> Result<()> {
    let served = Served::start(None, 1).await?;
    one(report, "sqlite", &|| served.client()).await?;
    drop(served);
    match std::env::var("DATABASE") {
        Err(_) => println!("SKIPPED a server's database: DATABASE is not given"),
        Ok(database) => {
            let kind = database.split(':').next().unwrap_or_default().to_string();
            let served = Served::start(Some(database), 1).await?;
            one(report, &kind, &|| served.client()).await?;
        }
    }
    match std::env::var("PEER_BBS") {
        Err(_) => println!("SKIPPED the existing BBS: PEER_BBS is not given"),
        Ok(url) => one(report, "peer", &|| served::client(&url, peers_files()?)).await?,
    }
    Ok(())
}

fn peers_files() -> Result<Files> {
    let path = |name| std::env::var_os(name).with_context(|| format!("{name} is not given"));
    let (cert, key, ca) = (path("PEER_CERT")?.into(), path("PEER_KEY")?.into(), path("PEER_CA")?.into());
    Ok(Files { cert, key, ca: Some(ca) })
}

pub fn desired(guid: &str, instances: u32, environment_bytes: usize) -> DesiredLrp {
    let action = Action::Run(RunAction { path: "/app".into(), user: "vcap".into(), ..RunAction::default() });
    let value = "x".repeat(environment_bytes);
    DesiredLrp {
        instances,
        memory_mb: 128,
        environment_variables: vec![EnvironmentVariable { name: "VCAP_APPLICATION".into(), value }],
        ..DesiredLrp::new(guid, DOMAIN, "preloaded:cflinuxfs4", action)
    }
}

pub fn key(guid: &str, index: u32) -> ActualLrpKey {
    ActualLrpKey::new(guid, index, DOMAIN)
}

pub fn started() -> StartedLrp {
    StartedLrp {
        net_info: ActualLrpNetInfo { address: "10.0.0.1".into(), ..ActualLrpNetInfo::default() },
        internal_routes: Vec::new(),
        metric_tags: Default::default(),
        routable: true,
        availability_zone: "z1".into(),
    }
}

#[derive(Clone, Copy)]
enum Operation {
    Desire,
    Claim,
    Start,
    Crash,
    Remove,
}

const OPERATIONS: [(Operation, &str); 5] = [
    (Operation::Desire, "desire"),
    (Operation::Claim, "claim"),
    (Operation::Start, "start"),
    (Operation::Crash, "crash"),
    (Operation::Remove, "remove"),
];

async fn one(report: &mut Report, kind: &str, client: &dyn Fn() -> Result<BbsClient>) -> Result<()> {
    let operations = number("OPERATIONS", 8_000);
    for (clients, named) in [(CLIENTS, true), (MANY_CLIENTS, false)] {
        let all: Vec<BbsClient> = (0..clients).map(|_| client()).collect::<Result<_>>()?;
        // Connections are made before anything is measured.
        for client in &all {
            client.domains().await?;
        }
        let mut slowest = 0.0_f64;
        for (operation, name) in OPERATIONS {
            let (took, times) = run(&all, operation, operations).await?;
            let rate = operations as f64 / took.as_secs_f64();
            report.times(&format!("{name}, {clients} clients, {kind}: {rate:.0} a second"), &times);
            slowest = slowest.max(times.percentile_ms(99));
            if named {
                report.figure(&format!("bbs_{name}_s_{kind}"), rate, "per second");
            }
        }
        report.figure(&format!("bbs_p99_{clients}_clients_ms_{kind}"), slowest, "ms");
    }
    Ok(())
}

/// `count` of them, shared out among the clients.
async fn run(clients: &[BbsClient], operation: Operation, count: usize) -> Result<(Duration, Times)> {
    let began = Instant::now();
    let mut running = tokio::task::JoinSet::new();
    for (first, client) in clients.iter().enumerate() {
        let (client, step) = (client.clone(), clients.len());
        running.spawn(async move {
            let mut times = Vec::new();
            for number in (first..count).step_by(step) {
                let began = Instant::now();
                perform(&client, operation, &format!("lrp-{number}")).await?;
                times.push(began.elapsed());
            }
            anyhow::Ok(times)
        });
    }
    let mut times = Times::default();
    while let Some(done) = running.join_next().await {
        done??.into_iter().for_each(|time| times.add(time));
    }
    Ok((began.elapsed(), times))
}

async fn perform(bbs: &BbsClient, operation: Operation, guid: &str) -> Result<()> {
    let (key, instance) = (key(guid, 0), ActualLrpInstanceKey::new(format!("i-{guid}"), "cell-0"));
    match operation {
        Operation::Desire => bbs.desire_lrp(&desired(guid, 1, ENVIRONMENT_BYTES)).await?,
        Operation::Claim => bbs.claim_actual_lrp(&key, &instance).await?,
        Operation::Start => bbs.start_actual_lrp(&key, &instance, &started()).await?,
        Operation::Crash => bbs.crash_actual_lrp(&key, &instance, "it crashed").await?,
        Operation::Remove => bbs.remove_desired_lrp(guid).await?,
    }
    Ok(())
}
