//! A cell: the rep as the product has it, on a simulated machine.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use bbs_client::BbsClient;
use bbs_models::PreferredAddress;
use rep::auction_cell::AuctionCell;
use rep::evacuation::{self, Evacuation};
use rep::harmonizer::{self, Surrounded};
use rep::http::{Api, network_router};
use rep::recipe::Surroundings;
use rep::trace::Traces;
use rep::usage::Usage;
use rep::{Containers, Identity, LayeringMode, SharedContainers, Stacks, presence};

use crate::chance::Chance;
use crate::ledger::Ledger;
use crate::locket::Locket;
use crate::machine::{Machine, TOTAL};
use crate::network::{Network, Station};
use crate::plane::BBS_URL;
use crate::sabotage::Sabotage;

/// Short, so that a simulation sees the end of some evacuations that cannot be finished.
const EVACUATION: evacuation::Times = evacuation::Times {
    timeout: Duration::from_secs(120),
    polling_interval: Duration::from_secs(10),
    graceful_shutdown_interval: Duration::from_secs(10),
};

/// What all cells are part of.
#[derive(Clone)]
pub struct Cluster {
    pub chance: Chance,
    pub ledger: Ledger,
    pub network: Network,
    pub locket: Locket,
    pub sabotage: Sabotage,
}

pub struct Cell {
    pub id: String,
    zone: String,
    index: i32,
    cluster: Cluster,
    machine: Option<Machine>,
    rep: Option<(Station, Evacuation)>,
}

impl Cell {
    pub fn new(index: i32, cluster: Cluster) -> Cell {
        let (id, zone) = (cell_id(index), format!("z{}", index % 2));
        Cell { id, zone, index, cluster, machine: None, rep: None }
    }

    /// Whether its rep runs.
    pub fn is_up(&self) -> bool {
        self.rep.as_ref().is_some_and(|(station, _)| !station.life.is_cancelled())
    }

    pub fn is_evacuating(&self) -> bool {
        self.rep.as_ref().is_some_and(|(_, evacuation)| evacuation.has_begun())
    }

    pub fn set_crashes(&self, probability: f64) {
        self.machine.iter().for_each(|machine| machine.set_crashes(probability));
    }

    /// The machine, if it is not there, and the rep on it.
    pub fn start(&mut self) {
        self.cluster.ledger.disturb(format!("{} starts", self.id));
        let Cluster { chance, ledger, network, .. } = &self.cluster;
        let fresh = || Machine::new(&self.id, chance.clone(), ledger.clone(), self.cluster.sabotage);
        let machine = self.machine.take().unwrap_or_else(fresh);
        let station = network.station(&self.id);
        let evacuation = Evacuation::default();
        self.run(&station, &evacuation, Arc::new(machine.for_rep(station.life.clone())));
        self.machine = Some(machine);
        self.rep = Some((station, evacuation));
    }

    /// The rep's process ends at once, containers run on.
    pub fn kill_rep(&mut self) {
        self.cluster.ledger.disturb(format!("the rep of {} is killed", self.id));
        self.rep.iter().for_each(|(station, _)| station.life.cancel());
    }

    pub fn power_off(&mut self) {
        self.cluster.ledger.disturb(format!("{} loses power", self.id));
        self.rep.take().iter().for_each(|(station, _)| station.life.cancel());
        self.machine.take().iter().for_each(Machine::power_off);
    }

    pub fn evacuate(&self) {
        self.cluster.ledger.disturb(format!("{} is evacuated", self.id));
        self.rep.iter().for_each(|(_, evacuation)| evacuation.begin());
    }

    fn run(&self, station: &Station, evacuation: &Evacuation, containers: SharedContainers) {
        let (identity, traces) = (identity(self.index, &self.zone), Traces::default());
        let bbs = BbsClient::by(station.way(), BBS_URL);
        let around = Surrounded {
            cell_id: self.id.clone(),
            zone: self.zone.clone(),
            preferred_address: PreferredAddress::Host,
            recipes: Surroundings { stacks: identity.stacks.clone(), layering_mode: LayeringMode::default() },
            bbs: bbs.clone(),
            executor: containers.clone(),
            evacuation: evacuation.clone(),
            traces: traces.clone(),
            replaced: Mutex::default(),
            witness: Arc::new(()),
        };
        let api = api(&identity, &containers, evacuation, traces);
        let presence = presence::of(&identity, &identity.rep_url, TOTAL);
        let (locket, network) = (self.cluster.locket.clone(), self.cluster.network.clone());
        tokio::spawn(harmonizer::run(around, harmonizer::Intervals::default(), station.life.clone()));
        tokio::spawn(locket.clone().keep(station.clone(), presence));
        let (name, at) = (self.id.clone(), station.clone());
        tokio::spawn(async move {
            network.serve(&name, &at, network_router(Arc::new(api), Arc::new(()))).await;
        });
        tokio::spawn(leave(self.cluster.clone(), station.clone(), evacuation.clone(), bbs, containers));
    }
}

fn cell_id(index: i32) -> String {
    format!("cell-{index}")
}

fn identity(index: i32, zone: &str) -> Identity {
    Identity {
        cell_id: cell_id(index),
        cell_index: index,
        rep_url: format!("http://{}", cell_id(index)),
        zone: zone.into(),
        stacks: Stacks(BTreeMap::from([("linux".into(), "/linux.tar".into())])),
        ..Identity::default()
    }
}

fn api(identity: &Identity, containers: &SharedContainers, evacuation: &Evacuation, traces: Traces) -> Api {
    let (identity, executor) = (identity.clone(), containers.clone());
    Api {
        cell_id: identity.cell_id.clone(),
        auction_cell: AuctionCell::new(identity, executor, evacuation.clone(), traces.clone()),
        traces,
        usage: Arc::new(Usage::default()),
        executor: containers.clone(),
        logs: executor::logs::Logs::default(),
    }
}

/// The API of a rep that only takes work, on a machine of its own: what it takes stays reserved.
pub fn rep_router(index: i32, zone: &str) -> Router {
    let machine = Machine::new(&cell_id(index), Chance::new(0), Ledger::new(), Sabotage::None);
    let containers: SharedContainers = Arc::new(machine);
    let api = api(&identity(index, zone), &containers, &Evacuation::default(), Traces::default());
    network_router(Arc::new(api), Arc::new(()))
}

/// A cell that is empty has nothing left to do.
async fn leave(
    cluster: Cluster,
    station: Station,
    evacuation: Evacuation,
    bbs: BbsClient,
    containers: Arc<dyn Containers>,
) {
    tokio::select! {
        biased;
        () = station.life.cancelled() => {}
        _ = evacuation::run(&evacuation, EVACUATION, &station.machine, &bbs, &*containers) => {
            cluster.ledger.disturb(format!("{} is evacuated, and leaves", station.machine));
            station.life.cancel();
            cluster.locket.release(&station.machine);
        }
    }
}
