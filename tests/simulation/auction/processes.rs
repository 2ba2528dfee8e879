//! Auctions on reps that are processes of their own: the product's auctioneers ask them over HTTP what they have, and give
//! them work. Of the BBS only what auctioneers ask of it is there.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use auction::Lrp;
use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::post;
use bbs_client::BbsClient;
use bbs_models::{CellPresence, wire};
use brain::auctioneer;
use brain_client::{AuctioneerClient, LrpStartRequest};
use diego_base::serve::{Listen, Listener, serve};
use prost::Message;
use rep_client::{PlacementConstraint, RepClient, Resource};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::measure::Measured;
use crate::scenarios::Scenario;

const PROTOBUF: &str = "application/x-protobuf";
const DOMAIN: &str = "simulated";
const LOOK_EVERY: Duration = Duration::from_millis(10);
const PATIENCE: Duration = Duration::from_secs(30);

/// A rep until its input ends, which it does at the latest with the process that started it.
pub fn rep(index: i32, zone: &str) -> io::Result<()> {
    let stop = CancellationToken::new();
    let ends = stop.clone();
    std::thread::spawn(move || {
        let _ = io::stdin().read_to_end(&mut Vec::new());
        ends.cancel();
    });
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let (listen, address) = Listen::loopback()?;
        let listener = Listener::bind(listen).await.map_err(io::Error::other)?;
        println!("http://{address}");
        serve(listener, simulation::rep_router(index, zone), None, stop).await;
        Ok(())
    })
}

/// One of them for each cell.
struct Reps(Vec<(Child, CellPresence)>);

impl Reps {
    fn start(scenario: &Scenario) -> io::Result<Reps> {
        let program = std::env::current_exe()?;
        let mut reps = Reps(Vec::new());
        for cell in &scenario.cells {
            let mut command = Command::new(&program);
            command
                .args(["rep", &cell.index.to_string(), &cell.zone])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped());
            let mut child = command.spawn()?;
            let said = child.stdout.take();
            let presence =
                CellPresence { cell_id: cell.id.clone(), zone: cell.zone.clone(), ..CellPresence::default() };
            reps.0.push((child, presence));
            if let (Some(said), Some((_, presence))) = (said, reps.0.last_mut()) {
                BufReader::new(said).read_line(&mut presence.rep_url)?;
                presence.rep_url.truncate(presence.rep_url.trim_end().len());
            }
        }
        Ok(reps)
    }

    fn presences(&self) -> Vec<CellPresence> {
        self.0.iter().map(|(_, presence)| presence.clone()).collect()
    }
}

impl Drop for Reps {
    fn drop(&mut self) {
        for (child, _) in &mut self.0 {
            // One that has ended already is what it should be.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// What auctioneers ask of a BBS: which cells there are, and to note what could not be placed.
#[derive(Default)]
struct Board {
    auctions: AtomicUsize,
    failed: AtomicUsize,
}

impl Board {
    fn router(self: Arc<Self>, presences: Vec<CellPresence>) -> Router {
        let cells = presences.into_iter().map(Into::into).collect();
        let cells = wire::CellsResponse { error: None, cells }.encode_to_vec();
        let failing = self.clone();
        let list = move || async move {
            self.auctions.fetch_add(1, Ordering::SeqCst);
            ([(CONTENT_TYPE, PROTOBUF)], cells)
        };
        let fail = move || async move {
            failing.failed.fetch_add(1, Ordering::SeqCst);
            ([(CONTENT_TYPE, PROTOBUF)], wire::LifecycleResponse::default().encode_to_vec())
        };
        Router::new().route("/v1/cells/list.r1", post(list)).route("/v1/actual_lrps/fail", post(fail))
    }
}

/// Each of so many auctioneers gets its part of the work at the same time, and knows nothing of the others.
pub fn run(scenario: &Scenario, auctioneers: usize) -> io::Result<Measured> {
    let reps = Reps::start(scenario)?;
    tokio::runtime::Runtime::new()?.block_on(auction(scenario, &reps.presences(), auctioneers))
}

async fn auction(scenario: &Scenario, reps: &[CellPresence], auctioneers: usize) -> io::Result<Measured> {
    let stop = CancellationToken::new();
    let _stops = stop.clone().drop_guard();
    let http = diego_base::http::client(&Default::default()).map_err(io::Error::other)?;
    let board = Arc::new(Board::default());
    let (listen, address) = Listen::loopback()?;
    let listener = Listener::bind(listen).await.map_err(io::Error::other)?;
    tokio::spawn(serve(listener, board.clone().router(reps.to_vec()), None, stop.clone()));
    let bbs = BbsClient::new(&format!("http://{address}"), &Default::default()).map_err(io::Error::other)?;
    let mut clients = Vec::new();
    for _ in 0..auctioneers {
        let (listen, address) = Listen::loopback()?;
        let config = auctioneer::Config::new(listen, bbs.clone(), http.clone());
        tokio::spawn(auctioneer::run(config, stop.clone()));
        clients.push(AuctioneerClient::new(http.clone(), &format!("http://{address}")));
    }
    let began = Instant::now();
    let mut asked = JoinSet::new();
    for (client, part) in clients.into_iter().zip(parts(&scenario.lrps, auctioneers)) {
        asked.spawn(async move { client.request_lrp_auctions("", &part).await });
    }
    for asked in asked.join_all().await {
        asked.map_err(io::Error::other)?;
    }
    let clients: Vec<RepClient> = reps.iter().map(|rep| RepClient::new(http.clone(), &rep.rep_url)).collect();
    loop {
        let placed = held(scenario, &clients).await?;
        let took = began.elapsed();
        if placed.len() + board.failed.load(Ordering::SeqCst) == scenario.lrps.len() {
            return Ok(Measured::new(scenario, placed, board.auctions.load(Ordering::SeqCst), took));
        }
        if took > PATIENCE {
            let (held, auctions) = (placed.len(), board.auctions.load(Ordering::SeqCst));
            let of = scenario.lrps.len();
            let name = scenario.name;
            return Err(io::Error::other(format!(
                "{name}: {held} of {of} are placed after {auctions} auctions"
            )));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// LRP by LRP, in turns.
fn parts(lrps: &[Lrp], count: usize) -> Vec<Vec<LrpStartRequest>> {
    let mut parts = vec![Vec::new(); count];
    for (at, instances) in lrps.chunk_by(|a, b| a.process_guid == b.process_guid).enumerate() {
        let Lrp { process_guid, resource, constraint, .. } = &instances[0];
        let resource = Resource { memory_mb: resource.memory_mb, disk_mb: resource.disk_mb, max_pids: 0 };
        let constraint =
            PlacementConstraint { rootfs: constraint.rootfs.clone(), ..PlacementConstraint::default() };
        let indices = instances.iter().map(|lrp| lrp.index).collect();
        parts[at % count].push(LrpStartRequest::new(process_guid, DOMAIN, indices, resource, constraint));
    }
    parts
}

/// What the reps say that they have.
async fn held(scenario: &Scenario, reps: &[RepClient]) -> io::Result<Vec<(usize, Lrp)>> {
    let known: BTreeMap<(&str, i32), &Lrp> =
        scenario.lrps.iter().map(|lrp| ((lrp.process_guid.as_str(), lrp.index), lrp)).collect();
    let mut placed = Vec::new();
    for (at, rep) in reps.iter().enumerate() {
        let state = rep.state(PATIENCE).await.map_err(io::Error::other)?;
        let lrps = state.lrps.iter().filter_map(|lrp| known.get(&(lrp.process_guid.as_str(), lrp.index)));
        placed.extend(lrps.map(|lrp| (at, (*lrp).clone())));
    }
    Ok(placed)
}
