//! A control plane around reps: the real BBS on a real file, the real auctioneer, and cells with a garden in memory.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bbs_client::{BbsClient, ClientConfig};
use bbs_models::{
    Action, ActualLrp, ActualLrpFilter, CellPresence, DesiredLrp, RunAction, Task, TaskDefinition,
};
use brain::auctioneer;
use brain_client::AuctioneerClient;
use diego_base::serve::Listen;
use executor::{CellResources, Executor};
use garden_client::memory::{MemoryGarden, Script};
use rep::{Identity, Stacks};
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

impl World {
    pub async fn new() -> World {
        let (auctioneer_listen, auctioneer_address) = Listen::loopback().unwrap();
        let (bbs_listen, bbs_address) = Listen::loopback().unwrap();
        let http = diego_base::http::client(&ClientConfig::default()).unwrap();
        let bbs = BbsClient::new(&format!("http://{bbs_address}"), &ClientConfig::default()).unwrap();
        let mut world = World {
            bbs: bbs.clone(),
            bbs_address,
            auctioneer_url: format!("http://{auctioneer_address}"),
            present: watch::channel(Vec::new()).0,
            http: http.clone(),
            state: TempDir::new().unwrap(),
            bbs_runs: None,
            stop: CancellationToken::new(),
        };
        world.start_bbs(bbs_listen);
        let config = auctioneer::Config::new(auctioneer_listen, bbs, http);
        tokio::spawn(auctioneer::run(config, world.stop.clone()));
        world
    }

    fn start_bbs(&mut self, listen: Listen) {
        let auctioneer = Arc::new(AuctioneerClient::new(self.http.clone(), &self.auctioneer_url));
        let database = self.state.path().join("bbs.sqlite");
        let config = bbs::Config::new(listen, database, auctioneer, self.present.subscribe()).unwrap();
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
        let mut config = rep::Config::new(identity, listen, self.bbs.clone(), Arc::new(self.present.clone()));
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
        self.until("the BBS answers", || async { self.bbs.ping().await.ok() }).await;
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
