//! Namespaces with their network, made before anybody asks for a container.
//!
//! A [`Place`] belongs to no container and stands in no record: its child waits for a plan and ends when garden does,
//! and with it go its namespaces and its link. So a garden that is killed leaves none behind, and creating a container
//! begins with what already exists.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use garden_client::{Error, Result};
use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;

use super::{Gardener, blocking, chain};
use crate::containerizer::Blank;
use crate::networker::{Connection, Networker, Wanted};

/// After a failure: what one create is told of need not fill the log.
const TRY_AGAIN: Duration = Duration::from_secs(5);

/// Where a container can be: namespaces, with a link to the host that the firewall does not open yet.
pub struct Place {
    pub blank: Blank,
    /// `None`: a plugin will make the network.
    pub connection: Option<Connection>,
}

#[derive(Default)]
struct Ready {
    places: VecDeque<Place>,
    closed: bool,
}

pub struct Warm {
    size: usize,
    ready: Mutex<Ready>,
    taken: Notify,
    /// Held while a place is made ahead.
    making: tokio::sync::Mutex<()>,
}

impl Warm {
    pub fn new(size: usize) -> Self {
        Self { size, ready: Mutex::default(), taken: Notify::new(), making: tokio::sync::Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Ready> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Option<Place> {
        let place = self.lock().places.pop_front();
        self.taken.notify_one();
        place
    }

    /// Gives the place back if nobody wants it any more.
    fn add(&self, place: Place) -> Option<Place> {
        let mut ready = self.lock();
        if ready.closed {
            return Some(place);
        }
        ready.places.push_back(place);
        None
    }

    fn lacks(&self) -> bool {
        let ready = self.lock();
        !ready.closed && ready.places.len() < self.size
    }

    /// Nothing is kept any more, nor made: what is under way is waited for and given back.
    pub async fn close(&self, networker: &Networker) {
        let places = {
            let mut ready = self.lock();
            ready.closed = true;
            std::mem::take(&mut ready.places)
        };
        places.into_iter().for_each(|place| place.give_back(networker));
        drop(self.making.lock().await);
    }
}

impl Place {
    /// Its child ends at once, its network goes behind that.
    pub fn give_back(self, networker: &Networker) {
        drop(self.blank);
        if let Some(connection) = self.connection {
            networker.disconnect(connection);
        }
    }
}

impl Gardener {
    /// One that is ready, or a new one.
    pub(super) async fn place(&self, privileged: bool, wanted: Option<Wanted>) -> Result<Place> {
        if !privileged
            && wanted.is_none()
            && let Some(place) = self.0.warm.take()
        {
            return Ok(place);
        }
        let gardener = self.clone();
        let (give, given) = oneshot::channel();
        tokio::spawn(async move {
            let made = gardener.make_place(privileged, wanted).await;
            // Nobody waits for it any more.
            if let Err(Ok(place)) = give.send(made) {
                place.give_back(&gardener.0.networker);
            }
        });
        let deadline = self.0.config.step_deadline;
        let late = |_| Error::Other(format!("cannot make namespaces and their network in {deadline:?}"));
        tokio::time::timeout(deadline, given)
            .await
            .map_err(late)?
            .unwrap_or_else(|_| Err(Error::Other("interrupted: no namespaces were made".into())))
    }

    async fn make_place(&self, privileged: bool, wanted: Option<Wanted>) -> Result<Place> {
        if self.plugin().is_some() {
            return Ok(Place { blank: self.0.containerizer.blank(privileged).await?, connection: None });
        }
        let connection =
            self.0.networker.reserve_addresses(wanted).map_err(|error| Error::Other(chain(&error)))?;
        let blank = match self.0.containerizer.blank(privileged).await {
            Ok(blank) => Arc::new(blank),
            Err(error) => {
                self.0.networker.disconnect(connection);
                return Err(error.into());
            }
        };
        let (gardener, namespaces, wanted) = (self.clone(), blank.clone(), connection.clone());
        let linked =
            blocking(move || gardener.0.networker.link(&wanted, namespaces.network_namespace())).await;
        match (linked, Arc::into_inner(blank)) {
            (Ok(()), Some(blank)) => Ok(Place { blank, connection: Some(connection) }),
            (linked, _) => {
                self.0.networker.disconnect(connection);
                linked.and(Err(Error::Other("the blank is still in use".into())))
            }
        }
    }
}

impl Gardener {
    /// To its end, also when garden is to stop: half a place would be nobody's.
    async fn make_ahead(&self) -> Result<()> {
        let _making = self.0.warm.making.lock().await;
        if !self.0.warm.lacks() {
            return Ok(());
        }
        let place = self.make_place(false, None).await?;
        if let Some(unwanted) = self.0.warm.add(place) {
            unwanted.give_back(&self.0.networker);
        }
        Ok(())
    }
}

/// Keeps as many places ready as are wished for, but never the last addresses.
pub async fn keep_warm(gardener: Gardener, shutdown: CancellationToken) {
    let warm = &gardener.0.warm;
    loop {
        while warm.lacks() && gardener.0.networker.free_addresses() > warm.size as u64 {
            if let Err(error) = gardener.make_ahead().await {
                tracing::warn!(%error, "cannot make a place for a container ahead");
                if shutdown.run_until_cancelled(tokio::time::sleep(TRY_AGAIN)).await.is_none() {
                    return;
                }
            }
        }
        if shutdown.run_until_cancelled(warm.taken.notified()).await.is_none() {
            return;
        }
    }
}
