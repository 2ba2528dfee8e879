//! Who changes tables of its own, by one socket: that is how the kernel knows it.

use std::sync::{Mutex, PoisonError};

use super::{Transaction, send_by};
use crate::netlink::{Protocol, Result, Socket};

/// Of the network namespace in which it commits first. Its tables are anybody's once it is dropped, or its process has ended.
#[derive(Debug, Default)]
pub struct Owner(Mutex<Option<Socket>>);

impl Owner {
    /// One after the other, as the kernel takes them anyway.
    pub fn commit(&self, act: &str, change: Transaction) -> Result<()> {
        let mut socket = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let socket = match &mut *socket {
            Some(socket) => socket,
            none => none.insert(Socket::open(Protocol::Netfilter)?),
        };
        send_by(socket, act, change.messages)
    }

    /// By which its changes are told from others'; `None` before the first.
    pub(super) fn port(&self) -> Result<Option<u32>> {
        let socket = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        socket.as_ref().map(Socket::port).transpose()
    }
}
