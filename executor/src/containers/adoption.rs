//! From a container that an earlier executor has created to one that this one holds: what the earlier one had of it
//! outside garden is made again. What runs in it is its steps' affair.

use garden_client::{ContainerInfo, ProcessIo, Signal};

use super::creation::{Addresses, Held, Order};
use super::store::{MISSING, failure};
use crate::cache::Fetched;
use crate::garden::patiently;
use crate::steps::UNRECORDED;
use crate::{Container, RunResult};

impl Order<'_> {
    pub async fn adopt(&self, held: &mut Held, downloads: Vec<Fetched>) -> Result<Container, RunResult> {
        held.dependencies = downloads;
        let lost = |error: String| {
            tracing::error!(guid = self.guid, error, "executor.cannot-take-container-over");
            failure(&error, false)
        };
        let info = match patiently(|| self.shared.garden.info(self.guid)).await {
            Ok(info) => info,
            Err(garden_client::Error::ContainerNotFound { .. }) => {
                return Err(lost(MISSING.to_string()));
            }
            Err(error) => return Err(lost(format!("cannot take the container over: {error}"))),
        };
        self.end_checks(&info).await;
        held.edge = self.open_edge_again(&info).await.map_err(lost)?;
        tracing::info!(guid = self.guid, "executor.took-container-over");
        self.shared.store.get(self.guid).ok_or_else(|| lost("container not found".to_string()))
    }

    /// With certificates of its own: what the earlier one showed, it had in its memory.
    async fn open_edge_again(&self, info: &ContainerInfo) -> Result<Option<crate::edge::Edge>, String> {
        let (fronts, addresses) = (self.fronts()?, Addresses::of(info));
        match self.identity(&addresses)? {
            Some(identity) => self.open_edge(&fronts, info, &addresses, &identity).await,
            None => Ok(None),
        }
    }

    /// Processes of checks that nobody waits for any more; others are made in their stead.
    async fn end_checks(&self, info: &ContainerInfo) {
        for id in info.process_ids.iter().filter(|id| id.starts_with(UNRECORDED)) {
            let io = ProcessIo {
                stdin: None,
                stdout: Some(Box::new(tokio::io::sink())),
                stderr: Some(Box::new(tokio::io::sink())),
            };
            let ended = match self.shared.garden.attach(self.guid, id, io).await {
                Ok(process) => process.signal(Signal::Kill).await,
                Err(error) => Err(error),
            };
            if let Err(error) = ended {
                tracing::warn!(guid = self.guid, process = id, %error, "executor.cannot-end-check");
            }
        }
    }
}
