//! Where the Diego is that a command speaks to: the endpoints file that `diego dev` leaves in its state directory.

use std::path::Path;

use anyhow::Context;
use bbs_client::BbsClient;
use bbs_models::{ActualLrp, ActualLrpFilter, DesiredLrp};
use serde::{Deserialize, Serialize};

use super::Failure;
use super::Global;

pub const ENDPOINTS_FILE: &str = "endpoints.json";

/// What a client of this machine's Diego must know. Readable by root alone: it holds the ssh password.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Endpoints {
    /// Of the process that serves them.
    pub pid: u32,
    pub bbs_url: String,
    pub router_address: String,
    /// Apps answer under `NAME.<domain>`.
    pub domain: String,
    pub ssh_address: String,
    /// `user:password` of the ssh proxy's `diego:` realm.
    pub ssh_credentials: String,
    pub file_server_url: String,
    pub registry_cache_url: String,
    /// Names of the preloaded root filesystems, the default one first.
    pub preloaded: Vec<String>,
}

/// A Diego that answered.
pub struct Target {
    pub endpoints: Endpoints,
    pub bbs: BbsClient,
    /// For everything but the BBS; without a time-out, for some of it streams.
    pub http: reqwest::Client,
}

impl Target {
    pub async fn reach(global: &Global) -> Result<Target, Failure> {
        let endpoints = read(&global.state)?;
        let streams = diego_base::http::ClientConfig { timeout: None, ..Default::default() };
        let http = diego_base::http::client(&streams).context("cannot reach Diego")?;
        let bbs = BbsClient::new(&endpoints.bbs_url, &Default::default()).context("cannot reach the BBS")?;
        if bbs.ping().await.is_err() {
            return Err(Failure::Unreachable(format!(
                "no Diego answers at {}; start one with: diego dev --state {}",
                endpoints.bbs_url,
                global.state.display()
            )));
        }
        Ok(Target { endpoints, bbs, http })
    }
}

fn read(state: &Path) -> Result<Endpoints, Failure> {
    let path = state.join(ENDPOINTS_FILE);
    let text = std::fs::read_to_string(&path).map_err(|error| match error.kind() {
        std::io::ErrorKind::PermissionDenied => {
            Failure::Unreachable(format!("cannot read {}: try as root", path.display()))
        }
        _ => Failure::Unreachable(format!(
            "no Diego runs with the state directory {0}; start one with: diego dev --state {0}",
            state.display()
        )),
    })?;
    let endpoints = serde_json::from_str(&text).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(endpoints)
}

impl Target {
    /// An app's instances, by index. Empty if there are none.
    pub async fn instances(&self, name: &str) -> Result<Vec<ActualLrp>, Failure> {
        let filter = ActualLrpFilter { process_guid: name.into(), ..Default::default() };
        let mut found = self.bbs.actual_lrps(&filter).await.context("cannot list the instances")?;
        found.sort_by_key(|lrp| (lrp.key.index, lrp.presence));
        Ok(found)
    }

    pub async fn app(&self, name: &str) -> Result<DesiredLrp, Failure> {
        match self.bbs.desired_lrp_by_process_guid(name).await {
            Ok(lrp) => Ok(lrp),
            Err(error) if error.is_not_found() => {
                Err(Failure::Unknown(format!("there is no app {name}; see: diego ps")))
            }
            Err(error) => Err(anyhow::Error::new(error).context(format!("cannot look up {name}")).into()),
        }
    }

    /// Desires an app, or changes one that is there: a name stands for one app, so the new one takes its place.
    pub async fn desire(&self, lrp: &DesiredLrp) -> Result<(), Failure> {
        self.bbs.upsert_domain(&lrp.domain, None).await.context("cannot keep the CLI's domain fresh")?;
        if self.bbs.desired_lrp_by_process_guid(&lrp.process_guid).await.is_ok() {
            return Err(Failure::Unsuccessful(format!(
                "an app {0} exists already; delete it first: diego delete {0}",
                lrp.process_guid
            )));
        }
        self.bbs.desire_lrp(lrp).await.with_context(|| format!("cannot run {}", lrp.process_guid))?;
        Ok(())
    }

    pub fn hostname(&self, name: &str) -> String {
        format!("{name}.{}", self.endpoints.domain)
    }

    /// `http://NAME.localhost:8080`
    pub fn url(&self, hostname: &str) -> String {
        let port = self.endpoints.router_address.rsplit(':').next().unwrap_or_default();
        format!("http://{hostname}:{port}")
    }
}
