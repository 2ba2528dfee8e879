//! A control plane around reps: the real BBS on a real file, the real auctioneer, and cells with a garden in memory.

// Not every story needs all of it.
#![allow(dead_code)]

pub mod gate;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bbs::locket::Locket;
use bbs_client::{BbsClient, ClientConfig, LocketClient, watch_cells};
use bbs_models::{
    Action, ActualLrp, ActualLrpFilter, CellPresence, DesiredLrp, RunAction, Task, TaskDefinition,
};
use brain::auctioneer;
use brain_client::AuctioneerClient;
use diego_base::serve::Listen;
use executor::{CellResources, Executor};
use garden_client::memory::{MemoryGarden, Script};
use rep::{Identity, LocketPresences, PresenceTimes, Presences, Stacks};
use rep_client::RepClient;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

pub struct World {
    pub bbs: BbsClient,
    bbs_address: SocketAddr,
    auctioneer_url: String,
    present: watch::Sender<Vec<CellPresence>>,
    locket: Option<LocketHouse>,
    http: reqwest::Client,
    state: TempDir,
    bbs_runs: Option<(CancellationToken, JoinHandle<Result<(), bbs::Error>>)>,
    stop: CancellationToken,
}

pub struct Cell {
    pub garden: MemoryGarden,
    pub rep: RepClient,
    pub admin: RepClient,
    pub runs: JoinHandle<Result<(), rep::Error>>,
    stop: CancellationToken,
    process: Process,
}

/// What a cell's tasks are in, so that all of them end at once when it is killed.
struct Process(Option<Runtime>);

impl Drop for Process {
    fn drop(&mut self) {
        self.0.take().into_iter().for_each(Runtime::shutdown_background);
    }
}

/// A Locket and where it remembers what it knows.
struct LocketHouse {
    address: SocketAddr,
    runs: Option<(CancellationToken, JoinHandle<()>)>,
}

/// By which a cell reaches the others.
pub struct Ways {
    pub bbs: BbsClient,
    pub presences: Arc<dyn Presences>,
}

/// Of presences and their renewals here, so that nobody has to wait for long.
pub const TTL: Duration = Duration::from_secs(1);
const RENEWAL: Duration = Duration::from_millis(200);

impl World {
    /// Whose cells are known in the process itself.
    pub async fn new() -> World {
        World::begin(false).await
    }

    /// Whose cells are known by a Locket.
    pub async fn with_locket() -> World {
        World::begin(true).await
    }

    async fn begin(with_locket: bool) -> World {
        let (auctioneer_listen, auctioneer_address) = Listen::loopback().unwrap();
        let (bbs_listen, bbs_address) = Listen::loopback().unwrap();
        let http = diego_base::http::client(&ClientConfig::default()).unwrap();
        let bbs = BbsClient::new(&format!("http://{bbs_address}"), &ClientConfig::default()).unwrap();
        let mut world = World {
            bbs: bbs.clone(),
            bbs_address,
            auctioneer_url: format!("http://{auctioneer_address}"),
            present: watch::channel(Vec::new()).0,
            locket: None,
            http: http.clone(),
            state: TempDir::new().unwrap(),
            bbs_runs: None,
            stop: CancellationToken::new(),
        };
        if with_locket {
            let (listen, address) = Listen::loopback().unwrap();
            world.locket = Some(LocketHouse { address, runs: None });
            world.start_locket(listen).await;
        }
        world.start_bbs(bbs_listen);
        if with_locket {
            // Not earlier: it ends when nobody wants to know.
            let (known, stop) = (world.present.clone(), world.stop.clone());
            tokio::spawn(watch_cells(world.locket_at(world.locket_address()), RENEWAL, known, stop));
        }
        let config = auctioneer::Config::new(auctioneer_listen, bbs, http);
        tokio::spawn(auctioneer::run(config, world.stop.clone()));
        world
    }

    pub fn locket_at(&self, address: SocketAddr) -> LocketClient {
        LocketClient::new(&address.to_string(), &ClientConfig::default()).unwrap()
    }

    pub fn locket_address(&self) -> SocketAddr {
        self.locket.as_ref().unwrap().address
    }

    pub fn bbs_address(&self) -> SocketAddr {
        self.bbs_address
    }

    /// By those who place instances.
    pub async fn until_known(&self, cell_id: &str) {
        let known = || async {
            let cells = self.bbs.cells().await.ok()?;
            cells.iter().any(|cell| cell.cell_id == cell_id).then_some(())
        };
        self.until(&format!("{cell_id} is known"), known).await;
    }

    async fn start_locket(&mut self, listen: Listen) {
        let stop = self.stop.child_token();
        let (locket, owner) =
            Locket::open(Some(self.state.path().join("locket.sqlite")), stop.clone()).await.unwrap();
        let config = bbs::locket::Config { listen, tls: None };
        let until = stop.clone();
        let runs = tokio::spawn(async move {
            let (served, ()) = tokio::join!(bbs::locket::run(config, locket, until), owner);
            served.unwrap();
        });
        self.locket.as_mut().unwrap().runs = Some((stop, runs));
    }

    pub async fn stop_locket(&mut self) {
        let (stop, runs) = self.locket.as_mut().unwrap().runs.take().unwrap();
        stop.cancel();
        runs.await.unwrap();
    }

    /// With what it knew, or with nothing.
    pub async fn start_locket_again(&mut self, remembers: bool) {
        if !remembers {
            for file in ["locket.sqlite", "locket.sqlite-wal", "locket.sqlite-shm"] {
                _ = std::fs::remove_file(self.state.path().join(file));
            }
        }
        self.start_locket(Listen::Tcp(self.locket_address())).await;
    }

    fn start_bbs(&mut self, listen: Listen) {
        let auctioneer = Arc::new(AuctioneerClient::new(self.http.clone(), &self.auctioneer_url));
        let database = self.state.path().join("bbs.sqlite");
        let mut config = bbs::Config::new(listen, database, auctioneer, self.present.subscribe()).unwrap();
        if self.locket.is_some() {
            config.intervals.every = Duration::from_secs(1);
            config.intervals.cells_settle = Duration::ZERO;
        }
        let stop = self.stop.child_token();
        self.bbs_runs = Some((stop.clone(), tokio::spawn(bbs::run(config, stop))));
    }

    pub async fn stop_bbs(&mut self) {
        let (stop, runs) = self.bbs_runs.take().unwrap();
        stop.cancel();
        runs.await.unwrap().unwrap();
    }

    pub fn start_bbs_again(&mut self) {
        self.start_bbs(Listen::Tcp(self.bbs_address));
    }

    pub fn cell(&self, cell_id: &str) -> Cell {
        self.cell_in(cell_id, MemoryGarden::new())
    }

    /// A cell on a garden that may have a past.
    pub fn cell_in(&self, cell_id: &str, garden: MemoryGarden) -> Cell {
        self.cell_with(cell_id, garden, |_| {})
    }

    pub fn cell_with(
        &self,
        cell_id: &str,
        garden: MemoryGarden,
        change: impl FnOnce(&mut executor::Config),
    ) -> Cell {
        self.cell_by(cell_id, garden, self.ways(cell_id, None), change)
    }

    /// With Locket elsewhere than it is, if that is said.
    pub fn ways(&self, cell_id: &str, locket: Option<SocketAddr>) -> Ways {
        let presences: Arc<dyn Presences> = match &self.locket {
            None => Arc::new(self.present.clone()),
            Some(house) => Arc::new(LocketPresences {
                locket: self.locket_at(locket.unwrap_or(house.address)),
                owner: format!("owner of {cell_id}"),
                times: PresenceTimes { ttl: TTL, renewal: RENEWAL },
            }),
        };
        Ways { bbs: self.bbs.clone(), presences }
    }

    pub fn cell_by(
        &self,
        cell_id: &str,
        garden: MemoryGarden,
        ways: Ways,
        change: impl FnOnce(&mut executor::Config),
    ) -> Cell {
        garden.script("/app", Script::runs().out("hello\n"));
        garden.script("/fails", Script::exits(3));
        let total = CellResources { memory_mb: 1024, disk_mb: 4096, containers: 20 };
        let state: PathBuf = self.state.path().join(cell_id);
        let process = Runtime::new().unwrap();
        let _inside = process.enter();
        let mut config = executor::Config::new(cell_id, total, state, self.http.clone());
        config.graceful_shutdown_interval = Duration::from_millis(200);
        change(&mut config);
        let executor = executor(config, &garden);
        let (listen, address) = Listen::loopback().unwrap();
        let (admin_listen, admin_address) = Listen::loopback().unwrap();
        let identity = Identity {
            cell_id: cell_id.into(),
            rep_url: format!("http://{address}"),
            zone: "z1".into(),
            stacks: Stacks(BTreeMap::from([("linux".into(), "/linux.tar".into())])),
            rootfs_schemes: vec!["docker".into()],
            ..Identity::default()
        };
        let mut config = rep::Config::new(identity, listen, ways.bbs, ways.presences);
        config.admin_listen = Some(admin_listen);
        config.evacuation.polling_interval = Duration::from_millis(100);
        config.intervals.sync = Duration::from_secs(1);
        config.intervals.sync_while_evacuating = Duration::from_millis(500);
        config.usage_interval = Duration::from_millis(200);
        let stop = self.stop.child_token();
        Cell {
            garden,
            rep: RepClient::new(self.http.clone(), &format!("http://{address}")),
            admin: RepClient::new(self.http.clone(), &format!("http://{admin_address}")),
            runs: process.spawn(rep::run(config, executor, stop.clone())),
            stop,
            process: Process(Some(process)),
        }
    }

    pub async fn desire(&self, process_guid: &str, instances: u32, change: impl FnOnce(&mut DesiredLrp)) {
        let mut lrp = DesiredLrp::new(process_guid, "domain", "preloaded:linux", run("/app"));
        lrp.instances = instances;
        lrp.memory_mb = 64;
        lrp.disk_mb = 128;
        lrp.ports = vec![8080];
        lrp.log_guid = process_guid.into();
        lrp.log_source = "APP".into();
        change(&mut lrp);
        self.until("the BBS answers", || async { self.bbs.ping().await.ok() }).await;
        self.bbs.desire_lrp(&lrp).await.unwrap();
    }

    pub async fn desire_task(&self, guid: &str, path: &str, change: impl FnOnce(&mut TaskDefinition)) {
        let mut definition = TaskDefinition::new("docker:///busybox", run(path));
        definition.memory_mb = 64;
        change(&mut definition);
        // One that nobody could take at once would be offered again after half a minute only.
        let known = || async { self.bbs.cells().await.ok().filter(|cells| !cells.is_empty()) };
        self.until("a cell is known", known).await;
        self.bbs.desire_task(guid, "domain", &definition).await.unwrap();
    }

    pub async fn lrps(&self) -> Vec<ActualLrp> {
        let mut lrps = self.bbs.actual_lrps(&ActualLrpFilter::default()).await.unwrap_or_default();
        lrps.sort_by_key(|lrp| lrp.key.index);
        lrps
    }

    /// Waits until all instances are as wished.
    pub async fn until_lrps(&self, what: &str, wished: impl Fn(&[ActualLrp]) -> bool) -> Vec<ActualLrp> {
        self.until(what, || async { Some(self.lrps().await).filter(|lrps| wished(lrps)) }).await
    }

    pub async fn until_running(&self, instances: usize) -> Vec<ActualLrp> {
        let all = |lrps: &[ActualLrp]| lrps.len() == instances && lrps.iter().all(ActualLrp::is_running);
        self.until_lrps("all instances run", all).await
    }

    pub async fn until_task(&self, guid: &str, wished: impl Fn(&Task) -> bool) -> Task {
        let task = || async { self.bbs.task_by_guid(guid).await.ok().filter(|task| wished(task)) };
        self.until("the Task is as wished", task).await
    }

    /// Asks again and again; fails with `what` and how things stand when the patience is over.
    pub async fn until<T, F: Future<Output = Option<T>>>(&self, what: &str, mut ask: impl FnMut() -> F) -> T {
        let asking = async {
            loop {
                if let Some(answer) = ask().await {
                    return answer;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        match tokio::time::timeout(PATIENCE, asking).await {
            Ok(answer) => answer,
            Err(_) => panic!("in vain: {what}; {:#?}", self.lrps().await),
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Waits for the end of an earlier one: the tasks of one that was killed go one by one.
fn executor(config: executor::Config, garden: &MemoryGarden) -> Executor {
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        let garden = Arc::new(garden.clone());
        match Executor::new(config.clone(), garden, executor::logs::Logs::default()) {
            Err(executor::StartError::InUse(_)) if std::time::Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(10));
            }
            made => return made.unwrap(),
        }
    }
}

impl Cell {
    /// As the machine's administrator would.
    pub async fn stop(self) {
        self.stop.cancel();
        self.runs.await.unwrap().unwrap();
    }

    /// Its process dies: nothing is said to anyone.
    pub fn kill(self) -> MemoryGarden {
        drop(self.process);
        self.garden
    }
}

pub fn run(path: &str) -> Action {
    Action::Run(RunAction { path: path.into(), user: "vcap".into(), ..RunAction::default() })
}
