//! Networks of containers that are gone, taken away behind the answer.
//!
//! A link goes by itself, and with many others at once, soon after the last process of its network namespace; to delete
//! one costs the kernel ten times as much. So one thread gives links a moment to go, deletes those that stay, and
//! changes the firewall for all that left meanwhile in one transaction. Until then addresses and ports stay reserved,
//! so that nobody gets what still leads elsewhere. What cannot be taken away is tried again, and in the end it is for
//! the next garden, which begins with a clean table and sweeps links.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use garden_sys::netlink;
use garden_sys::netlink::route::Route;
use garden_sys::nftables::Owner;

use super::chosen::Chosen;
use super::plan::{Connection, Pool};
use super::{lock, rules};

/// What the kernel takes to clean a namespace up, mostly.
const LINGER: Duration = Duration::from_millis(100);
const LOOK_AGAIN: Duration = Duration::from_millis(2);
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// What is given back to when a network is gone.
#[derive(Debug)]
pub struct Reservations {
    pub table: String,
    /// Of the table.
    pub owner: Arc<Owner>,
    pub subnets: Mutex<Pool>,
    pub chosen: Mutex<Chosen>,
    pub ports: Mutex<Pool>,
}

impl Reservations {
    /// Of a container that is there already.
    pub fn take(&self, connection: &Connection) {
        lock(&self.subnets).take(connection.subnet);
        lock(&self.chosen).take(connection);
        let mut ports = lock(&self.ports);
        for port in &connection.mapped_ports {
            ports.take(port.host_port);
        }
    }

    pub fn release(&self, connection: &Connection) {
        let mut ports = lock(&self.ports);
        for port in &connection.mapped_ports {
            ports.release(port.host_port);
        }
        lock(&self.chosen).release(connection);
        lock(&self.subnets).release(connection.subnet);
    }
}

#[derive(Debug, Default)]
struct Queue {
    waiting: Vec<Connection>,
    under_way: usize,
    closed: bool,
}

#[derive(Debug)]
pub struct Departures(Arc<(Mutex<Queue>, Condvar)>);

fn queue(shared: &(Mutex<Queue>, Condvar)) -> MutexGuard<'_, Queue> {
    shared.0.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Departures {
    /// The thread works in the network namespace of the caller, and ends when this is dropped and all is done.
    pub fn start(reservations: Arc<Reservations>) -> std::io::Result<Self> {
        let shared = Arc::new((Mutex::new(Queue::default()), Condvar::new()));
        let of_thread = shared.clone();
        std::thread::Builder::new()
            .name("departures".into())
            .spawn(move || work(&of_thread, &reservations))?;
        Ok(Self(shared))
    }

    pub fn add(&self, connection: Connection) {
        queue(&self.0).waiting.push(connection);
        self.0.1.notify_all();
    }

    /// Waits until everything that left is gone; false if that took too long.
    pub fn settle(&self, patience: Duration) -> bool {
        let busy = |queue: &mut Queue| queue.under_way > 0 || !queue.waiting.is_empty();
        let waited = self.0.1.wait_timeout_while(queue(&self.0), patience, busy);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }
}

impl Drop for Departures {
    fn drop(&mut self) {
        queue(&self.0).closed = true;
        self.0.1.notify_all();
    }
}

fn work(shared: &(Mutex<Queue>, Condvar), reservations: &Reservations) {
    loop {
        let idle = |queue: &mut Queue| queue.waiting.is_empty() && !queue.closed;
        let waited = shared.1.wait_while(queue(shared), idle);
        let mut locked = waited.unwrap_or_else(PoisonError::into_inner);
        let leaving = std::mem::take(&mut locked.waiting);
        let closed = locked.closed;
        locked.under_way = leaving.len();
        drop(locked);
        if leaving.is_empty() {
            return;
        }
        let stuck = release(reservations, leaving);
        if !stuck.is_empty() && !closed {
            std::thread::sleep(TRY_AGAIN);
        }
        let mut locked = queue(shared);
        if !closed {
            locked.waiting.extend(stuck);
        }
        locked.under_way = 0;
        shared.1.notify_all();
    }
}

/// All at once, or else each by itself: one that cannot go holds up no other. Tells which cannot.
fn release(reservations: &Reservations, leaving: Vec<Connection>) -> Vec<Connection> {
    if let Err(error) = take_away(reservations, &leaving) {
        let count = leaving.len();
        tracing::error!(error = crate::chain(&error), count, "cannot take networks away");
        if let [_] = leaving[..] {
            return leaving;
        }
        let singly = leaving.into_iter().flat_map(|connection| release(reservations, vec![connection]));
        return singly.collect();
    }
    leaving.iter().for_each(|connection| reservations.release(connection));
    Vec::new()
}

fn take_away(reservations: &Reservations, leaving: &[Connection]) -> netlink::Result<()> {
    let detached = rules::detached(&reservations.table, leaving);
    reservations.owner.commit("remove containers from the firewall", detached)?;
    crate::milestone::passed();
    let host = Route::open()?;
    let started = Instant::now();
    let mut left: Vec<&str> = leaving.iter().map(|connection| connection.host_link.as_str()).collect();
    loop {
        let there = host.links()?;
        left.retain(|name| there.iter().any(|link| link.name == *name));
        if left.is_empty() || started.elapsed() > LINGER {
            break;
        }
        std::thread::sleep(LOOK_AGAIN);
    }
    for name in left {
        host.delete(name)?;
    }
    Ok(())
}
