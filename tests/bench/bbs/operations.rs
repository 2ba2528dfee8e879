//! Desire, claim, start, crash, remove: by 16 clients, each with a connection of its own, and by 64 for the tail.

use std::time::Instant;

use anyhow::Result;
use bbs_client::{BbsClient, StartedLrp};
use bbs_models::{
    Action, ActualLrpInstanceKey, ActualLrpKey, ActualLrpNetInfo, DesiredLrp, EnvironmentVariable,
    MetricTagValue, RunAction,
};

use super::figures::{Report, Times};
use super::number;
use super::peer::{self, Peer};
use super::postgres::Postgres;
use super::served::Served;

pub const DOMAIN: &str = "bench";
const CLIENTS: usize = 16;
const MANY_CLIENTS: usize = 64;
/// With what is around it a DesiredLRP of 7.2 kB on the wire, as the peer was measured with.
const ENVIRONMENT_BYTES: usize = 6_900;

pub async fn measure(report: &mut Report) -> Result<()> {
    let served = Served::start(None, 1).await?;
    alone(report, "sqlite", &|| served.client()).await?;
    drop(served);
    if let Ok(database) = std::env::var("DATABASE") {
        let kind = database.split(':').next().unwrap_or_default().to_string();
        let served = Served::start(Some(database), 1).await?;
        alone(report, &kind, &|| served.client()).await?;
    }
    if let Some(postgres) = Postgres::start()? {
        return on_postgres(report, &postgres).await;
    }
    println!("SKIPPED operations on PostgreSQL: it is not installed");
    Ok(())
}

async fn on_postgres(report: &mut Report, postgres: &Postgres) -> Result<()> {
    let auctioneer = peer::auctioneer().await?;
    let served = Served::start_with(Some(postgres.database("ours")?), 1, Some(auctioneer.clone())).await?;
    alone(report, "postgres", &|| served.client()).await?;
    if let Ok(program) = std::env::var("PEER_BBS") {
        let peer = Peer::start(&program, &postgres.database("peers")?, &auctioneer).await?;
        return in_turns(report, &served, &peer).await;
    }
    println!("SKIPPED the existing BBS: PEER_BBS does not name its program");
    Ok(())
}

pub fn desired(guid: &str, instances: u32, environment_bytes: usize) -> DesiredLrp {
    let action = Action::Run(RunAction { path: "/app".into(), user: "vcap".into(), ..RunAction::default() });
    let value = "x".repeat(environment_bytes);
    DesiredLrp {
        instances,
        memory_mb: 128,
        environment_variables: vec![EnvironmentVariable { name: "VCAP_APPLICATION".into(), value }],
        // The existing BBS takes none without tags.
        metric_tags: [("source_id".to_string(), MetricTagValue::Static(guid.into()))].into(),
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

async fn alone(report: &mut Report, kind: &str, client: &dyn Fn() -> Result<BbsClient>) -> Result<()> {
    let operations = number("OPERATIONS", 8_000);
    for (clients, named) in [(CLIENTS, true), (MANY_CLIENTS, false)] {
        let all = connected(clients, client).await?;
        let mut slowest = 0.0_f64;
        for (operation, name) in OPERATIONS {
            let (rate, times) = run(&all, operation, operations).await?;
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

/// On the same PostgreSQL, each in a database of its own, with the same auctioneer: one works while the other waits.
async fn in_turns(report: &mut Report, ours: &Served, peer: &Peer) -> Result<()> {
    let (operations, rounds) = (number("OPERATIONS", 8_000) / 4, number("ROUNDS", 3));
    let both = [connected(CLIENTS, &|| ours.client()).await?, connected(CLIENTS, &|| peer.client()).await?];
    // Whose they are, and of which operation.
    let mut rates: [[Vec<f64>; OPERATIONS.len()]; 2] = Default::default();
    for _ in 0..rounds {
        for (clients, rates) in both.iter().zip(&mut rates) {
            for ((operation, _), rates) in OPERATIONS.into_iter().zip(rates) {
                rates.push(run(clients, operation, operations).await?.0);
            }
        }
    }
    let [ours, peers] = rates.map(|rates| rates.map(median));
    for (((_, name), ours), peers) in OPERATIONS.into_iter().zip(ours).zip(peers) {
        report.note(&format!("{name}, in turns with the existing BBS: {ours:.0} and {peers:.0} a second"));
        report.figure(&format!("peer_bbs_{name}_s_postgres"), peers, "per second");
        report.figure(&format!("bbs_{name}_vs_peer_postgres"), ours / peers, "ratio");
    }
    Ok(())
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

/// Connections are made before anything is measured.
async fn connected(count: usize, client: &dyn Fn() -> Result<BbsClient>) -> Result<Vec<BbsClient>> {
    let clients: Vec<BbsClient> = (0..count).map(|_| client()).collect::<Result<_>>()?;
    for client in &clients {
        client.domains().await?;
    }
    Ok(clients)
}

/// `count` of them, shared out among the clients: how many a second, and how long each took.
async fn run(clients: &[BbsClient], operation: Operation, count: usize) -> Result<(f64, Times)> {
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
    Ok((count as f64 / began.elapsed().as_secs_f64(), times))
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
