//! What garden has decided for the networks of all containers, on disk for `diego net` to read.

use std::io;
use std::net::IpAddr;
use std::path::Path;

use garden_sys::netlink::route::Route;
use serde::{Deserialize, Serialize};

use super::plan::Connection;
use super::rules::Policy;
use super::{Error, Result, drift};

const FILE: &str = "network.json";

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Published {
    pub table: String,
    pub policy: Policy,
}

impl Published {
    /// In garden's directory. Replaces what an earlier garden wrote.
    pub fn write(&self, directory: &Path) -> Result<()> {
        let (path, new) = (directory.join(FILE), directory.join("network.json.new"));
        let failed = |source| Error::File { act: "write", path: path.clone(), source };
        let bytes = serde_json::to_vec(self).map_err(io::Error::other).map_err(failed)?;
        std::fs::write(&new, bytes).and_then(|()| std::fs::rename(&new, &path)).map_err(failed)
    }

    /// When another makes the networks.
    pub fn remove(directory: &Path) -> Result<()> {
        let path = directory.join(FILE);
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(Error::File { act: "remove", path, source })
            }
            _ => Ok(()),
        }
    }

    /// `None`: no garden has made networks with this directory.
    pub fn read(directory: &Path) -> Result<Option<Self>> {
        let path = directory.join(FILE);
        let failed = |source| Error::File { act: "read", path: path.clone(), source };
        match std::fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            read => {
                serde_json::from_slice(&read.map_err(failed)?).map(Some).map_err(|error| failed(error.into()))
            }
        }
    }

    /// What the kernel lacks of each of these, in words. In the network namespace of the calling thread.
    pub fn lacks(&self, connections: &[(&str, &Connection)]) -> Result<Vec<Vec<String>>> {
        let seen = drift::look(&self.table, &self.policy)?;
        let lacks = connections.iter().map(|(handle, connection)| match &seen {
            Some(seen) => seen.lacks(&self.table, handle, connection),
            None => vec![format!("firewall table {} as it should be", self.table)],
        });
        Ok(lacks.collect())
    }
}

/// Of all links, in the network namespace of the calling thread.
pub fn host_addresses() -> Result<Vec<IpAddr>> {
    let addresses = || Route::open()?.addresses();
    let addresses = addresses().map_err(Error::netlink("list the host's addresses"))?;
    Ok(addresses.into_iter().map(|(_, address)| address).collect())
}
