//! Who is there: presences that run out unless they are renewed. Each BBS that can be reached is told.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bbs_models::CellPresence;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::network::{Network, Station};

pub const MACHINE: &str = "locket";
const TTL: Duration = Duration::from_secs(15);
const RENEWED_EVERY: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(500);

#[derive(Clone, Default)]
pub struct Locket(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    presences: BTreeMap<String, (CellPresence, Instant)>,
    readers: Vec<(Station, watch::Sender<Vec<CellPresence>>)>,
}

impl Locket {
    /// Tells of expiries, until the simulation is over.
    pub async fn run(self, network: Network) {
        loop {
            tokio::time::sleep(LOOK).await;
            let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            inner.presences.retain(|_, (_, until)| *until > now);
            let present: Vec<CellPresence> =
                inner.presences.values().map(|(presence, _)| presence.clone()).collect();
            inner.readers.retain(|(station, _)| !station.life.is_cancelled());
            for (station, reader) in &inner.readers {
                if !network.is_cut(&station.machine, MACHINE) {
                    reader.send_if_modified(|known| {
                        let changed = *known != present;
                        known.clone_from(&present);
                        changed
                    });
                }
            }
        }
    }

    /// The presences as a BBS knows them.
    pub fn read_by(&self, station: &Station) -> watch::Receiver<Vec<CellPresence>> {
        let (sender, receiver) = watch::channel(Vec::new());
        self.0.lock().unwrap_or_else(PoisonError::into_inner).readers.push((station.clone(), sender));
        receiver
    }

    /// Renews a presence until its process ends.
    pub async fn keep(self, station: Station, presence: CellPresence) {
        while !station.life.is_cancelled() {
            if station.network.reach(&station, MACHINE).await {
                let until = Instant::now() + TTL;
                let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
                inner.presences.insert(presence.cell_id.clone(), (presence.clone(), until));
            }
            tokio::time::sleep(RENEWED_EVERY).await;
        }
    }

    pub fn release(&self, cell_id: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).presences.remove(cell_id);
    }
}
