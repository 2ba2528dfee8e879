//! A BBS on a free port, with an auctioneer and reps that write down what they are told, and a clock turned by hand.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bbs::{Auctioneer, Config, Error, Intervals, Location, Reps, Witness};
use bbs_client::BbsClient;
use bbs_models::{
    Action, ActualLrp, ActualLrpFilter, ActualLrpInstanceKey, ActualLrpKey, ActualLrpNetInfo, CellPresence,
    DesiredLrp, Presence, RunAction, TaskDefinition,
};
use brain_client::{LrpStartRequest, TaskStartRequest};
use diego_base::clock::ManualClock;
use diego_base::serve::Listen;
use rep_client::LrpUpdate;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::servers;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// How long something that must happen may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Default)]
pub struct Peers {
    /// `lrp guid/0,1` and `task guid`, in order.
    auctions: Mutex<Vec<String>>,
    /// `stop cell instance`, `cancel cell task`, `update cell instance`, in order.
    told: Mutex<Vec<String>>,
    /// `started cell`, `ended cell`, `failed cell`: what is counted of Tasks, in order.
    counted: Mutex<Vec<String>>,
}

impl Witness for Peers {
    fn task_started(&self, cell_id: &str) {
        self.counted.lock().unwrap().push(format!("started {cell_id}"));
    }

    fn task_ended(&self, cell_id: &str, failed: bool) {
        let how = if failed { "failed" } else { "ended" };
        self.counted.lock().unwrap().push(format!("{how} {cell_id}"));
    }
}

#[async_trait]
impl Auctioneer for Peers {
    async fn request_lrp_auctions(&self, _: &str, starts: &[LrpStartRequest]) -> Result<(), Failure> {
        for start in starts {
            let indices: Vec<String> = start.indices.iter().map(i32::to_string).collect();
            self.auctions.lock().unwrap().push(format!("lrp {}/{}", start.process_guid, indices.join(",")));
        }
        Ok(())
    }

    async fn request_task_auctions(&self, _: &str, starts: &[TaskStartRequest]) -> Result<(), Failure> {
        let tasks = starts.iter().map(|start| format!("task {}", start.0.task_guid));
        self.auctions.lock().unwrap().extend(tasks);
        Ok(())
    }
}

#[async_trait]
impl Reps for Peers {
    async fn stop(
        &self,
        cell: &CellPresence,
        _: &str,
        _: &ActualLrpKey,
        instance: &ActualLrpInstanceKey,
    ) -> Result<(), Failure> {
        self.told.lock().unwrap().push(format!("stop {} {}", cell.cell_id, instance.instance_guid));
        Ok(())
    }

    async fn cancel(&self, cell: &CellPresence, _: &str, task_guid: &str) -> Result<(), Failure> {
        self.told.lock().unwrap().push(format!("cancel {} {task_guid}", cell.cell_id));
        Ok(())
    }

    async fn update(&self, cell: &CellPresence, _: &str, update: &LrpUpdate) -> Result<(), Failure> {
        self.told.lock().unwrap().push(format!("update {} {}", cell.cell_id, update.instance_guid));
        Ok(())
    }
}

pub struct World {
    every: Duration,
    _folder: Option<tempfile::TempDir>,
    database: Location,
    pub peers: Arc<Peers>,
    pub clock: Arc<ManualClock>,
    pub cells: watch::Sender<Vec<CellPresence>>,
    /// Labels of the keys that records are sealed with; the first is the active one.
    pub keys: Vec<&'static str>,
    running: Option<Running>,
}

struct Running {
    client: BbsClient,
    url: String,
    shutdown: CancellationToken,
    ended: JoinHandle<Result<(), Error>>,
}

impl World {
    pub async fn new() -> World {
        World::with_convergence_every(Duration::from_millis(50)).await
    }

    pub async fn with_convergence_every(every: Duration) -> World {
        match servers::shared() {
            Some(server) => World::with(every, server.database().await, None).await,
            None => {
                let folder = tempfile::tempdir().unwrap();
                World::with(every, folder.path().join("bbs.db").into(), Some(folder)).await
            }
        }
    }

    #[allow(dead_code)]
    pub async fn on(database: Location) -> World {
        World::with(Duration::from_millis(50), database, None).await
    }

    async fn with(every: Duration, database: Location, folder: Option<tempfile::TempDir>) -> World {
        let mut world = World { _folder: folder, ..World::idle(every, database) };
        world.start().await;
        world
    }

    /// Without a BBS.
    pub fn idle(every: Duration, database: Location) -> World {
        World {
            every,
            _folder: None,
            database,
            peers: Arc::default(),
            clock: Arc::new(ManualClock::at(1_700_000_000_000_000_000)),
            cells: watch::Sender::new(Vec::new()),
            keys: Vec::new(),
            running: None,
        }
    }

    pub fn database(&self) -> &Location {
        &self.database
    }

    pub fn config(&self, listen: Listen, database: &Location) -> Config {
        let mut config =
            Config::new(listen, database.clone(), self.peers.clone(), self.cells.subscribe()).unwrap();
        config.reps = self.peers.clone();
        config.witness = self.peers.clone();
        let phrase = |label: &&str| (label.to_string(), format!("phrase of {label}"));
        config.keys = self
            .keys
            .first()
            .map(|active| bbs::EncryptionKeys::new(active, self.keys.iter().map(phrase)).expect("keys"));
        config.clock = self.clock.clone();
        config.intervals =
            Intervals { every: self.every, cells_settle: Duration::ZERO, ..Intervals::default() };
        config
    }

    pub async fn start(&mut self) {
        let (listen, address) = Listen::loopback().unwrap();
        let shutdown = CancellationToken::new();
        let config = self.config(listen, self.database());
        let ended = tokio::spawn(bbs::run(config, shutdown.clone()));
        let url = format!("http://{address}");
        let client = BbsClient::new(&url, &Default::default()).unwrap();
        let running = Running { client, url, shutdown, ended };
        eventually("the BBS answers", async || running.client.ping().await.is_ok()).await;
        self.running = Some(running);
    }

    pub async fn stop(&mut self) {
        self.stopped().await.unwrap();
    }

    /// What it ended with.
    pub async fn stopped(&mut self) -> Result<(), Error> {
        let running = self.running.take().expect("a running BBS");
        running.shutdown.cancel();
        tokio::time::timeout(PATIENCE, running.ended).await.expect("an end in time").unwrap()
    }

    /// What it ends with by itself.
    #[allow(dead_code)]
    pub async fn ended(&mut self) -> Result<(), Error> {
        let running = self.running.take().expect("a running BBS");
        tokio::time::timeout(PATIENCE, running.ended).await.expect("an end in time").unwrap()
    }

    pub fn bbs(&self) -> &BbsClient {
        &self.running.as_ref().expect("a running BBS").client
    }

    pub fn url(&self) -> &str {
        &self.running.as_ref().expect("a running BBS").url
    }

    pub fn set_cells(&self, ids: &[&str]) {
        let cell = |id: &&str| CellPresence {
            cell_id: id.to_string(),
            rep_url: format!("http://{id}.test"),
            ..CellPresence::default()
        };
        self.cells.send_replace(ids.iter().map(cell).collect());
    }

    pub fn advance(&self, seconds: u64) {
        self.clock.advance(Duration::from_secs(seconds));
    }

    pub fn take_auctions(&self) -> Vec<String> {
        std::mem::take(&mut *self.peers.auctions.lock().unwrap())
    }

    pub fn counted(&self) -> Vec<String> {
        self.peers.counted.lock().unwrap().clone()
    }

    /// What was auctioned since this was asked last, once it is `expected`.
    pub async fn auctioned(&self, expected: &[&str]) {
        let mut all = Vec::new();
        eventually(&format!("auctions {expected:?}"), async || {
            all.append(&mut self.take_auctions());
            all == expected
        })
        .await;
    }

    /// What reps were told since this was asked last, in any order, once it is `expected`.
    pub async fn told(&self, expected: &[&str]) {
        let expected: BTreeSet<String> = expected.iter().map(|text| text.to_string()).collect();
        let mut all = BTreeSet::new();
        eventually(&format!("reps told {expected:?}"), async || {
            all.append(&mut std::mem::take(&mut *self.peers.told.lock().unwrap()).into_iter().collect());
            all == expected
        })
        .await;
    }

    pub async fn lrps(&self, process_guid: &str) -> Vec<ActualLrp> {
        let filter = ActualLrpFilter { process_guid: process_guid.into(), ..Default::default() };
        let mut lrps = self.bbs().actual_lrps(&filter).await.unwrap();
        lrps.sort_by_key(|lrp| (lrp.key.index, lrp.presence));
        lrps
    }

    /// Such as `0:RUNNING@cell-1 0:RUNNING@cell-2/suspect 1:UNCLAIMED`.
    pub async fn picture(&self, process_guid: &str) -> String {
        let lrps = self.lrps(process_guid).await;
        lrps.iter().map(picture).collect::<Vec<_>>().join(" ")
    }

    pub async fn becomes(&self, process_guid: &str, expected: &str) {
        let what = format!("{process_guid} is {expected}");
        eventually(&what, async || self.picture(process_guid).await == expected).await;
    }
}

fn picture(lrp: &ActualLrp) -> String {
    let cell = lrp.cell_id().map(|cell| format!("@{cell}")).unwrap_or_default();
    let presence = match lrp.presence {
        Presence::Ordinary => "",
        Presence::Evacuating => "/evacuating",
        Presence::Suspect => "/suspect",
    };
    format!("{}:{}{cell}{presence}", lrp.key.index, lrp.state)
}

pub async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !holds().await {
        assert!(tokio::time::Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub fn lrp(process_guid: &str, instances: u32) -> DesiredLrp {
    DesiredLrp { instances, ..DesiredLrp::new(process_guid, "tests", "preloaded:some-stack", run()) }
}

pub fn run() -> Action {
    Action::Run(RunAction { path: "/bin/true".into(), user: "nobody".into(), ..RunAction::default() })
}

pub fn task_definition() -> TaskDefinition {
    TaskDefinition::new("preloaded:some-stack", run())
}

pub fn key(process_guid: &str, index: u32) -> ActualLrpKey {
    ActualLrpKey::new(process_guid, index, "tests")
}

pub fn on(cell_id: &str, instance_guid: &str) -> ActualLrpInstanceKey {
    ActualLrpInstanceKey::new(instance_guid, cell_id)
}

pub fn started() -> bbs_client::StartedLrp {
    bbs_client::StartedLrp {
        net_info: ActualLrpNetInfo { address: "10.0.0.1".into(), ..Default::default() },
        routable: true,
        ..Default::default()
    }
}
