//! One life of a control plane: people who want things, everything that may go wrong, and the quiet after it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bbs_client::{BbsClient, ClientConfig};
use bbs_models::{
    Action, DesiredLrp, DesiredLrpUpdate, ErrorKind, RunAction, TaskDefinition, UpdateStrategy,
};
use tokio::time::Instant;

use crate::cells::{Cell, Cluster};
use crate::chance::Chance;
use crate::ledger::Ledger;
use crate::locket::{self, Locket};
use crate::network::{Network, Weather};
use crate::plane::{BBS_URL, FORSAKEN_FOR, Plane, Trouble};
use crate::sabotage::Sabotage;

/// Once nothing is disturbed, everything is as desired after this long at the latest: a presence runs out (15 s), the
/// BBS looks at everything (30 s), an instance that waits is auctioned again (30 s), what runs is compared (30 s), and each
/// of these may begin just before the one ahead of it ends.
pub const PROMISE: Duration = Duration::from_secs(180);
/// And stays so.
const STAYS_FOR: Duration = Duration::from_secs(90);
pub const DOMAIN: &str = "simulated";
const LRPS_MAX: usize = 6;
const INSTANCES_MAX: u64 = 5;
const MEMORY_MB: u32 = 128;

pub struct World {
    pub chance: Chance,
    pub ledger: Ledger,
    network: Network,
    pub bbs: BbsClient,
    plane: Plane,
    cells: Vec<Cell>,
    /// How many instances of each LRP may be desired, as far as answers told; `None`: it is not desired.
    pub wanted: BTreeMap<String, BTreeSet<Option<u32>>>,
    tasks_desired: u32,
}

impl World {
    pub fn new(chance: Chance, ledger: Ledger, sabotage: Sabotage) -> World {
        let client = diego_base::http::client(&ClientConfig::default()).expect("a client that is never used");
        let network = Network::new(chance.clone(), ledger.clone(), client.clone());
        let locket = Locket::default();
        tokio::spawn(locket.clone().run(network.clone()));
        let cluster = Cluster {
            chance: chance.clone(),
            ledger: ledger.clone(),
            network: network.clone(),
            locket,
            sabotage,
        };
        let cells = 2 + i32::try_from(chance.below(4)).unwrap_or(0);
        let mut person = network.station("person");
        person.repeats = false;
        World {
            bbs: BbsClient::by(person.way(), BBS_URL),
            plane: Plane::new(cluster.clone(), client),
            cells: (0..cells).map(|index| Cell::new(index, cluster.clone())).collect(),
            chance,
            ledger,
            network,
            wanted: BTreeMap::new(),
            tasks_desired: 0,
        }
    }

    pub fn commits(&self) -> u64 {
        self.plane.disk.commits()
    }

    /// From the first start to the last look; how long it took to settle, if it did.
    pub async fn live(&mut self) -> Option<Duration> {
        self.plane.tend();
        self.cells.iter_mut().for_each(Cell::start);
        tokio::spawn(keep_fresh(self.bbs.clone()));
        let until = Instant::now() + self.chance.duration(60_000..360_000);
        while Instant::now() < until && self.ledger.violations().is_empty() {
            self.plane.tend();
            self.act().await;
            tokio::time::sleep(self.chance.duration(100..6_000)).await;
        }
        self.calm_down();
        tokio::time::sleep(FORSAKEN_FOR).await;
        self.settle().await
    }

    async fn act(&mut self) {
        match self.chance.below(24) {
            0..=3 => self.desire_lrp().await,
            4..=5 => self.scale_lrp().await,
            6 => self.remove_lrp().await,
            7..=10 => self.desire_task().await,
            11..=12 => self.strike_cell(),
            13 => self.evacuate(),
            14..=15 => self.cut(),
            16 => self.network.heal(),
            17..=18 => self.network.set_weather(self.weather()),
            19 => self.plane.kill_bbs(),
            20 => self.plane.forsake_bbs(),
            21 => self.plane.kill_auctioneer(),
            22 => self.jump(),
            _ => self.trouble(),
        }
    }

    fn weather(&self) -> Weather {
        let one = |choices: [f64; 3]| choices[self.chance.index(3)];
        Weather {
            loss: one([0.0, 0.01, 0.1]),
            repeats: one([0.0, 0.02, 0.2]),
            delay_max_ms: [5, 100, 2_000][self.chance.index(3)],
        }
    }

    fn strike_cell(&mut self) {
        let at = self.chance.index(self.cells.len());
        let harsh = self.chance.happens(0.5);
        let crashes = [0.0, 0.01, 0.1][self.chance.index(3)];
        let cell = &mut self.cells[at];
        match (cell.is_up(), harsh) {
            (false, _) => cell.start(),
            (true, true) => cell.power_off(),
            (true, false) => {
                cell.kill_rep();
                cell.start();
            }
        }
        cell.set_crashes(crashes);
    }

    /// One at a time, as operators do.
    fn evacuate(&mut self) {
        let at = self.chance.index(self.cells.len());
        if !self.cells.iter().any(|cell| cell.is_up() && cell.is_evacuating()) && self.cells[at].is_up() {
            self.cells[at].evacuate();
        }
    }

    fn cut(&mut self) {
        let mut machines = self.plane.machines();
        machines.push(locket::MACHINE.into());
        let one = &machines[self.chance.index(machines.len())];
        let cell = &self.cells[self.chance.index(self.cells.len())].id;
        self.network.cut(one, cell);
    }

    fn jump(&mut self) {
        let by_s = [-3_600, -60, 60, 3_600][self.chance.index(4)];
        self.ledger.disturb(format!("the clock jumps by {by_s} s"));
        self.plane.clock.jump(by_s);
    }

    fn trouble(&mut self) {
        let one = |choices: [f64; 2]| choices[self.chance.index(2)];
        self.plane.set_trouble(Trouble { refused: one([0.0, 0.05]), lost: one([0.0, 0.01]) });
    }

    async fn desire_lrp(&mut self) {
        if self.wanted.len() >= LRPS_MAX {
            return;
        }
        let guid = format!("lrp-{}", self.wanted.len());
        let instances = 1 + u32::try_from(self.chance.below(INSTANCES_MAX)).unwrap_or(0);
        let recreate = self.chance.happens(0.2);
        let lrp = DesiredLrp {
            instances,
            memory_mb: MEMORY_MB,
            update_strategy: if recreate { UpdateStrategy::Recreate } else { UpdateStrategy::Rolling },
            ..DesiredLrp::new(&guid, DOMAIN, "preloaded:linux", run())
        };
        // That it is there already says that an earlier attempt has worked.
        let desired = self.bbs.desire_lrp(&lrp).await;
        let certain = match &desired {
            Ok(()) => true,
            Err(error) => error.kind() == Some(ErrorKind::ResourceExists),
        };
        self.note("desire", &guid, &desired);
        if certain && !self.plane.disk.desired_lrps().contains(&guid) {
            self.ledger.violate(format!("{guid} was acknowledged and is not written down"));
        }
        let possible = if certain { vec![Some(instances)] } else { vec![None, Some(instances)] };
        self.wanted.insert(guid, possible.into_iter().collect());
    }

    fn some_lrp(&self) -> Option<String> {
        let guids: Vec<&String> = self.wanted.keys().collect();
        (!guids.is_empty()).then(|| guids[self.chance.index(guids.len())].clone())
    }

    async fn scale_lrp(&mut self) {
        let Some(guid) = self.some_lrp() else { return };
        let instances = u32::try_from(self.chance.below(INSTANCES_MAX + 1)).unwrap_or(0);
        let update = DesiredLrpUpdate { instances: Some(instances), ..DesiredLrpUpdate::default() };
        let updated = self.bbs.update_desired_lrp(&guid, &update).await;
        self.note(&format!("scale to {instances}"), &guid, &updated);
        let possible = self.wanted.entry(guid.clone()).or_default();
        match updated {
            Ok(()) => *possible = BTreeSet::from([Some(instances)]),
            Err(error) if error.is_not_found() => {
                if !possible.contains(&None) {
                    self.ledger.violate(format!("{guid} was acknowledged and is not known"));
                }
                possible.retain(Option::is_none);
            }
            Err(_) if possible.contains(&None) && possible.len() == 1 => {}
            Err(_) => drop(possible.insert(Some(instances))),
        }
    }

    async fn remove_lrp(&mut self) {
        let Some(guid) = self.some_lrp() else { return };
        let removed = self.bbs.remove_desired_lrp(&guid).await;
        self.note("remove", &guid, &removed);
        let possible = self.wanted.entry(guid).or_default();
        match removed {
            Ok(()) => *possible = BTreeSet::from([None]),
            Err(error) if error.is_not_found() => *possible = BTreeSet::from([None]),
            Err(_) => drop(possible.insert(None)),
        }
    }

    async fn desire_task(&mut self) {
        self.tasks_desired += 1;
        let guid = format!("task-{}", self.tasks_desired);
        let definition =
            TaskDefinition { memory_mb: MEMORY_MB, ..TaskDefinition::new("preloaded:linux", run()) };
        let desired = self.bbs.desire_task(&guid, DOMAIN, &definition).await;
        self.note("desire", &guid, &desired);
        if desired.is_ok() && !self.plane.disk.tasks().contains(&guid) {
            self.ledger.violate(format!("{guid} was acknowledged and is not written down"));
        }
    }

    fn note(&self, act: &str, guid: &str, answer: &Result<(), bbs_client::Error>) {
        let answer = answer.as_ref().err().map_or_else(|| "done".into(), ToString::to_string);
        self.ledger.note(format!("person: {act} {guid}: {answer}"));
    }

    /// Nothing goes wrong any more.
    fn calm_down(&mut self) {
        self.network.heal();
        self.network.set_weather(Weather::CALM);
        self.plane.set_trouble(Trouble::default());
        for cell in &mut self.cells {
            if !cell.is_up() {
                cell.start();
            }
            cell.set_crashes(0.0);
        }
    }

    /// Starts again whoever has left, which is no disturbance that anybody has to get over.
    fn tend(&mut self) {
        self.plane.tend();
        self.cells.iter_mut().filter(|cell| !cell.is_up()).for_each(Cell::start);
    }

    async fn settle(&mut self) -> Option<Duration> {
        let calm = Instant::now();
        let mut until = calm + PROMISE;
        let (settled_after, crashed) = loop {
            self.tend();
            if self.cells.iter().any(|cell| cell.is_up() && cell.is_evacuating()) {
                // The promise begins when it has left.
                until = Instant::now() + PROMISE;
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
            match self.is_settled().await {
                Ok(crashed) => break (calm.elapsed(), crashed),
                Err(why) if Instant::now() > until => {
                    self.ledger.violate(format!("not as it should be after {PROMISE:?}: {why}"));
                    return None;
                }
                Err(_) => tokio::time::sleep(Duration::from_secs(1)).await,
            }
        };
        // Where some have crashed, their restarts are still to come.
        let until = Instant::now() + if crashed == 0 { STAYS_FOR } else { Duration::ZERO };
        while Instant::now() < until {
            tokio::time::sleep(Duration::from_secs(5)).await;
            if let Err(why) = self.is_settled().await {
                self.ledger.violate(format!("it did not stay as it should be: {why}"));
                return None;
            }
        }
        Some(settled_after)
    }
}

pub fn run() -> Action {
    Action::Run(RunAction { path: "/app".into(), user: "vcap".into(), ..RunAction::default() })
}

/// Says that the domain is complete.
async fn keep_fresh(bbs: BbsClient) {
    loop {
        // The next one comes soon.
        let _ = bbs.upsert_domain(DOMAIN, Some(Duration::from_secs(120))).await;
        tokio::time::sleep(Duration::from_secs(20)).await;
    }
}
