//! The BBS and the auctioneer as the product has them, each a process that can be killed or left alone in the dark.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use auction::Weights;
use bbs::memory::{Disk, Fate};
use bbs::{Intervals, Peers, RepClients};
use bbs_client::BbsClient;
use brain::auctioneer;
use brain_client::AuctioneerClient;
use diego_base::clock::Clock;
use tokio::time::Instant;

use crate::cells::Cluster;
use crate::network::Station;
use crate::sabotage::Sabotage;

pub const BBS: &str = "bbs";
pub const BBS_URL: &str = "http://bbs";
const AUCTIONEER: &str = "auctioneer";
const AUCTIONEER_URL: &str = "http://auctioneer";
/// A BBS without Locket knows that its lock is lost after this long.
pub const FORSAKEN_FOR: Duration = Duration::from_secs(15);
/// 2026-01-01.
const EPOCH_NS: i64 = 1_767_225_600_000_000_000;
const CELL_STATE_TIMEOUT: Duration = Duration::from_secs(1);

/// The wall's clock of the BBS: it may jump.
pub struct WallClock {
    began: Instant,
    offset_ns: AtomicI64,
}

impl WallClock {
    pub fn new() -> WallClock {
        WallClock { began: Instant::now(), offset_ns: AtomicI64::new(0) }
    }

    pub fn jump(&self, by_s: i64) {
        self.offset_ns.fetch_add(by_s * 1_000_000_000, Ordering::SeqCst);
    }
}

impl Clock for WallClock {
    fn now_ns(&self) -> i64 {
        let elapsed_ns = i64::try_from(self.began.elapsed().as_nanos()).unwrap_or(i64::MAX);
        EPOCH_NS + elapsed_ns + self.offset_ns.load(Ordering::SeqCst)
    }
}

/// How often commits go wrong: refused, or the connection lost.
#[derive(Debug, Clone, Copy, Default)]
pub struct Trouble {
    pub refused: f64,
    pub lost: f64,
}

pub struct Plane {
    cluster: Cluster,
    pub disk: Disk,
    pub clock: Arc<WallClock>,
    pub trouble: Arc<Mutex<Trouble>>,
    client: reqwest::Client,
    started: u32,
    bbs: Option<(Station, Arc<AtomicBool>)>,
    auctioneer: Option<Station>,
}

impl Plane {
    pub fn new(cluster: Cluster, client: reqwest::Client) -> Plane {
        Plane {
            cluster,
            client,
            disk: Disk::default(),
            clock: Arc::new(WallClock::new()),
            trouble: Arc::default(),
            started: 0,
            bbs: None,
            auctioneer: None,
        }
    }

    fn machine(&mut self, name: &str) -> Station {
        self.started += 1;
        self.cluster.network.station(&format!("{name}-{}", self.started))
    }

    pub fn set_trouble(&self, trouble: Trouble) {
        self.cluster.ledger.disturb(format!("{trouble:?}"));
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }

    /// Whoever ended by itself is started again.
    pub fn tend(&mut self) {
        if self.bbs.as_ref().is_none_or(|(_, ended)| ended.load(Ordering::SeqCst)) {
            self.start_bbs();
        }
        if self.auctioneer.as_ref().is_none_or(|station| station.life.is_cancelled()) {
            self.start_auctioneer();
        }
    }

    pub fn kill_bbs(&mut self) {
        if let Some((station, _)) = self.bbs.take() {
            self.cluster.ledger.disturb(format!("{} is killed", station.machine));
            station.life.cancel();
        }
    }

    /// It lives on without Locket, and believes that it is the one; another takes its place.
    pub fn forsake_bbs(&mut self) {
        let Some((station, _)) = self.bbs.take() else { return };
        self.cluster.network.cut(&station.machine, crate::locket::MACHINE);
        self.start_bbs();
        let ledger = self.cluster.ledger.clone();
        tokio::spawn(async move {
            tokio::time::sleep(FORSAKEN_FOR).await;
            ledger.disturb(format!("{} has lost its lock", station.machine));
            station.life.cancel();
        });
    }

    pub fn kill_auctioneer(&mut self) {
        if let Some(station) = self.auctioneer.take() {
            self.cluster.ledger.disturb(format!("{} is killed", station.machine));
            station.life.cancel();
        }
    }

    pub fn machines(&self) -> Vec<String> {
        let bbs = self.bbs.iter().map(|(station, _)| station.machine.clone());
        bbs.chain(self.auctioneer.iter().map(|station| station.machine.clone())).collect()
    }

    fn start_bbs(&mut self) {
        let station = self.machine(BBS);
        self.cluster.ledger.disturb(format!("{} starts", station.machine));
        let way = station.way();
        let peers = Peers {
            auctioneer: Arc::new(AuctioneerClient::new(way.clone(), AUCTIONEER_URL)),
            reps: Arc::new(RepClients(way)),
            cells: self.cluster.locket.read_by(&station),
            callbacks: self.client.clone(),
        };
        let rows = Box::new(self.disk.open(self.fates()));
        let (network, at, life) = (self.cluster.network.clone(), station.clone(), station.life.clone());
        let door = move |router| async move { network.serve(BBS, &at, router).await };
        let runs = bbs::run_behind(rows, self.clock.clone(), peers, Intervals::default(), door, life.clone());
        let (ledger, name, ended) =
            (self.cluster.ledger.clone(), station.machine.clone(), Arc::new(AtomicBool::new(false)));
        let tells = ended.clone();
        tokio::spawn(async move {
            if let Err(error) = runs.await {
                ledger.disturb(format!("{name} ends: {error}"));
            }
            life.cancel();
            tells.store(true, Ordering::SeqCst);
        });
        self.bbs = Some((station, ended));
    }

    fn fates(&self) -> bbs::memory::Fates {
        let (chance, trouble) = (self.cluster.chance.clone(), self.trouble.clone());
        let forgets = self.cluster.sabotage == Sabotage::CommitsForgotten;
        Arc::new(move || {
            let Trouble { refused, lost } = *trouble.lock().unwrap_or_else(PoisonError::into_inner);
            let takes = chance.duration(0..20);
            let fate = match () {
                () if forgets && chance.happens(0.1) => Fate::Forgotten,
                () if chance.happens(refused) => Fate::Refused,
                () if chance.happens(lost) => Fate::Lost { written: chance.happens(0.5) },
                () => Fate::Written,
            };
            (takes, fate)
        })
    }

    fn start_auctioneer(&mut self) {
        let station = self.machine(AUCTIONEER);
        self.cluster.ledger.disturb(format!("{} starts", station.machine));
        if self.cluster.sabotage != Sabotage::NoAuctions {
            let bbs = BbsClient::by(station.way(), BBS_URL);
            let (network, at, life) = (self.cluster.network.clone(), station.clone(), station.life.clone());
            let door = move |router| async move { network.serve(AUCTIONEER, &at, router).await };
            let (way, weights) = (station.way(), Weights::default());
            tokio::spawn(auctioneer::work_behind(bbs, way, weights, CELL_STATE_TIMEOUT, door, life));
        }
        self.auctioneer = Some(station);
    }
}
