//! The existing BBS, told by a file as deployments render it, and those whom it cannot do without: a Locket, which is
//! ours, and an auctioneer that accepts all requests and does nothing.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use axum::Router;
use axum::http::StatusCode;
use bbs::Location;
use bbs::locket::{self, Locket};
use bbs_client::BbsClient;
use bbs_models::CellPresence;
use diego_base::serve::{Listen, Listener, serve};
use diego_base::tls::ServerTls;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::served;

/// Longer than anything here lasts.
const PRESENT_FOR: Duration = Duration::from_secs(24 * 60 * 60);

/// Its URL. It is there as long as the runtime is.
pub async fn auctioneer() -> Result<String> {
    let (listen, address) = Listen::loopback()?;
    let listener = Listener::bind(listen).await?;
    let router = Router::new().fallback(async || StatusCode::ACCEPTED);
    tokio::spawn(serve(listener, router, None, CancellationToken::new()));
    Ok(format!("http://{address}"))
}

/// Its address. One cell is present, for as long as the runtime is there.
async fn locket(tls: ServerTls) -> Result<String> {
    let (table, owner) = Locket::open(None::<Location>, CancellationToken::new()).await?;
    tokio::spawn(owner);
    let cell = CellPresence { cell_id: served::cell_id(0), ..CellPresence::default() };
    table.lock(cell.to_resource("bench")?, PRESENT_FOR).await?;
    let (listen, address) = Listen::loopback()?;
    let config = locket::Config { listen, tls: Some(tls) };
    tokio::spawn(locket::run(config, table, CancellationToken::new()));
    Ok(address.to_string())
}

/// What the deployment is free to choose is what it chooses by default.
fn config(files: &Path, address: &str, database: &str, locket: &str, auctioneer: &str) -> Result<Value> {
    let tls = served::certificates(files, "server");
    let (label, phrase) = served::KEY;
    Ok(json!({
        "listen_address": address,
        "health_address": format!("127.0.0.1:{}", served::free_port()?),
        "uuid": "bench",
        "log_level": "info",
        "active_key_label": label,
        "encryption_keys": { label: phrase },
        "ca_file": tls.ca,
        "cert_file": tls.cert,
        "key_file": tls.key,
        "require_ssl": true,
        "locket_address": locket,
        "locket_ca_cert_file": tls.ca,
        "locket_client_cert_file": tls.cert,
        "locket_client_key_file": tls.key,
        "auctioneer_address": auctioneer,
        "rep_ca_cert": tls.ca,
        "rep_client_cert": tls.cert,
        "rep_client_key": tls.key,
        "database_driver": "postgres",
        "database_connection_string": database,
        "max_open_database_connections": 200,
        "max_idle_database_connections": 200,
        "communication_timeout": "10s",
        "converge_repeat_interval": "30s",
        "desired_lrp_creation_timeout": "1m",
        "expire_completed_task_duration": "2m",
        "expire_pending_task_duration": "30m",
        "kick_task_duration": "30s",
        "lock_ttl": "15s",
        "lock_retry_interval": "5s",
        "report_interval": "1m",
        "convergence_workers": 20,
        "update_workers": 1000,
        "task_callback_workers": 1000,
        "max_task_retries": 3,
    }))
}

pub struct Peer {
    process: Child,
    files: TempDir,
    url: String,
}

impl Peer {
    pub async fn start(program: &str, database: &str, auctioneer: &str) -> Result<Peer> {
        let files = served::folder("bench-peer-")?;
        served::certify(files.path())?;
        let locket = locket(ServerTls::load(&served::certificates(files.path(), "server"))?).await?;
        let address = format!("127.0.0.1:{}", served::free_port()?);
        let config = config(files.path(), &address, database, &locket, auctioneer)?;
        let file = files.path().join("bbs.json");
        std::fs::write(&file, config.to_string())?;
        let process = Command::new(program)
            .arg("-config")
            .arg(file)
            .stdin(Stdio::null())
            .stdout(std::fs::File::create(files.path().join(served::LOG))?)
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {program}"))?;
        let peer = Peer { process, files, url: format!("https://{address}") };
        served::answers(&peer.client()?, peer.files.path()).await?;
        Ok(peer)
    }

    /// With connections of its own.
    pub fn client(&self) -> Result<BbsClient> {
        served::client(&self.url, served::certificates(self.files.path(), "client"))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        served::end(&mut self.process);
    }
}
