//! The connections to one instance's daemon. Each carries one channel at a time: a client that does not read one of its
//! channels then keeps the daemon from filling that channel alone. Ports forwarded to the client share one of their own, which
//! the daemon gives its channels.

use std::{
    mem,
    sync::{Arc, Mutex, PoisonError},
};

use russh::{Disconnect, server};
use tokio::sync::OnceCell;

use super::{
    backend::{self, Backend, BackendError, Purpose},
    connection::Life,
    instances::Target,
};

/// Kept for channels to come; a connection costs the daemon a handshake.
const IDLE_MAX: usize = 8;

pub struct Backends {
    target: Target,
    client: server::Handle,
    connections: Mutex<Connections>,
    forwarding: OnceCell<Arc<Backend>>,
}

struct Connections {
    /// Of these, some carry a channel; the first was opened when the client logged in.
    open: Vec<Arc<Backend>>,
    idle: Vec<Arc<Backend>>,
    ended: bool,
}

impl Backends {
    /// Opens the first one, with which the others stand and fall.
    pub async fn open(
        target: Target,
        client: server::Handle,
        life: &Arc<Life>,
    ) -> Result<Backends, BackendError> {
        let first = backend::connect(&target, client.clone(), life.clone(), Purpose::First).await?;
        let first = Arc::new(first);
        let connections = Connections { open: vec![first.clone()], idle: vec![first], ended: false };
        Ok(Backends { target, client, connections: Mutex::new(connections), forwarding: OnceCell::new() })
    }

    fn connections(&self) -> std::sync::MutexGuard<'_, Connections> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One that carries no channel.
    pub async fn take(&self, life: &Arc<Life>) -> Result<Arc<Backend>, BackendError> {
        let idle = self.connections().idle.pop();
        match idle {
            Some(idle) if !idle.is_closed() => Ok(idle),
            _ => self.connect(life, Purpose::Channels).await,
        }
    }

    /// The channel it carried is closed.
    pub async fn give_back(&self, backend: Arc<Backend>) {
        let superfluous = {
            let mut connections = self.connections();
            connections.open.retain(|open| !open.is_closed());
            let is_first = connections.open.first().is_some_and(|first| Arc::ptr_eq(first, &backend));
            let keep = is_first || (connections.idle.len() < IDLE_MAX && !connections.ended);
            match keep {
                true => connections.idle.push(backend.clone()),
                false => connections.open.retain(|open| !Arc::ptr_eq(open, &backend)),
            }
            !keep
        };
        if superfluous {
            leave(&backend).await;
        }
    }

    /// The one for ports forwarded to the client.
    pub async fn forwarding(&self, life: &Arc<Life>) -> Result<&Arc<Backend>, BackendError> {
        self.forwarding.get_or_try_init(|| self.connect(life, Purpose::Forwarding)).await
    }

    async fn connect(&self, life: &Arc<Life>, purpose: Purpose) -> Result<Arc<Backend>, BackendError> {
        let backend =
            Arc::new(backend::connect(&self.target, self.client.clone(), life.clone(), purpose).await?);
        let ended = {
            let mut connections = self.connections();
            connections.open.push(backend.clone());
            connections.ended
        };
        if ended {
            leave(&backend).await;
        }
        Ok(backend)
    }

    /// Leaves the daemon.
    pub async fn end(&self) {
        let open = {
            let mut connections = self.connections();
            connections.ended = true;
            connections.idle.clear();
            mem::take(&mut connections.open)
        };
        for backend in open {
            leave(&backend).await;
        }
    }
}

async fn leave(backend: &Backend) {
    // A daemon that has gone before is left as well.
    let _ = backend.disconnect(Disconnect::ByApplication, "the client has left", "").await;
}
