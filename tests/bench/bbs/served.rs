//! A BBS in a process of its own, which is this program again.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use bbs::{Auctioneer, Config, EncryptionKeys, Location, Reps};
use bbs_client::{BbsClient, ClientConfig};
use bbs_models::{ActualLrpInstanceKey, ActualLrpKey, CellPresence};
use brain_client::{AuctioneerClient, LrpStartRequest, TaskStartRequest};
use diego_base::http;
use diego_base::serve::Listen;
use diego_base::tls::{Files, ServerTls};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rep_client::LrpUpdate;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(120);
/// Short, so that the pass over everything is seen soon.
const CONVERGENCE_INTERVAL: Duration = Duration::from_secs(5);
pub const LOG: &str = "bbs.log";
/// What records are sealed with, after its label.
pub const KEY: (&str, &str) = ("bench", "a phrase for benchmarks");

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Takes all requests, and does nothing.
struct Nobody;

#[async_trait]
impl Auctioneer for Nobody {
    async fn request_lrp_auctions(&self, _: &str, _: &[LrpStartRequest]) -> Result<(), Failure> {
        Ok(())
    }

    async fn request_task_auctions(&self, _: &str, _: &[TaskStartRequest]) -> Result<(), Failure> {
        Ok(())
    }
}

#[async_trait]
impl Reps for Nobody {
    async fn stop(
        &self,
        _: &CellPresence,
        _: &str,
        _: &ActualLrpKey,
        _: &ActualLrpInstanceKey,
    ) -> Result<(), Failure> {
        Ok(())
    }

    async fn cancel(&self, _: &CellPresence, _: &str, _: &str) -> Result<(), Failure> {
        Ok(())
    }

    async fn update(&self, _: &CellPresence, _: &str, _: &LrpUpdate) -> Result<(), Failure> {
        Ok(())
    }
}

pub fn cell_id(index: usize) -> String {
    format!("cell-{index}")
}

/// Until killed. Without the URL of an auctioneer it is nobody.
pub async fn serve(
    address: &str,
    database: &str,
    cells: usize,
    files: &Path,
    auctioneer: Option<&str>,
) -> Result<()> {
    diego_base::telemetry::init("info", Box::new(std::io::stderr()));
    let location: Location = database.parse().context("cannot tell what database that is")?;
    let present =
        (0..cells).map(|index| CellPresence { cell_id: cell_id(index), ..CellPresence::default() }).collect();
    let (_keeps, cells) = tokio::sync::watch::channel(present);
    let address: SocketAddr = address.parse()?;
    let auctioneer: Arc<dyn Auctioneer> = match auctioneer {
        Some(url) => Arc::new(AuctioneerClient::new(http::client(&http::ClientConfig::default())?, url)),
        None => Arc::new(Nobody),
    };
    let mut config = Config::new(Listen::Tcp(address), location, auctioneer, cells)?;
    config.reps = Arc::new(Nobody);
    let (label, phrase) = KEY;
    config.keys = Some(EncryptionKeys::new(label, [(label.to_string(), phrase.to_string())])?);
    config.tls = Some(ServerTls::load(&certificates(files, "server"))?);
    config.intervals.every = CONVERGENCE_INTERVAL;
    // Upstream's never runs without.
    config.keys = Some(EncryptionKeys::new("bench", [("bench".into(), "a passphrase".into())])?);
    Ok(bbs::run(config, CancellationToken::new()).await?)
}

pub fn certificates(files: &Path, name: &str) -> Files {
    Files {
        cert: files.join(format!("{name}.crt")),
        key: files.join(format!("{name}.key")),
        ca: Some(files.join("ca.crt")),
    }
}

pub fn certify(files: &Path) -> Result<()> {
    let authority = KeyPair::generate()?;
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    std::fs::write(files.join("ca.crt"), params.self_signed(&authority)?.pem())?;
    let issuer = Issuer::new(params, authority);
    for name in ["server", "client"] {
        let key = KeyPair::generate()?;
        let params = CertificateParams::new(vec!["localhost".into(), "127.0.0.1".into()])?;
        std::fs::write(files.join(format!("{name}.crt")), params.signed_by(&key, &issuer)?.pem())?;
        std::fs::write(files.join(format!("{name}.key")), key.serialize_pem())?;
    }
    Ok(())
}

/// Not where a filesystem in memory may be: what is measured writes to a disk.
pub fn folder(prefix: &str) -> Result<TempDir> {
    let folder = std::env::var_os("BENCH_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    std::fs::create_dir_all(&folder)?;
    Ok(TempDir::with_prefix_in(prefix, std::fs::canonicalize(folder)?)?)
}

pub fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// The process, what it keeps and who may speak with it.
pub struct Served {
    process: Child,
    files: TempDir,
    database: String,
    cells: usize,
    auctioneer: Option<String>,
    url: String,
}

impl Served {
    /// On a database that is given, or on a file of its own.
    pub async fn start(database: Option<String>, cells: usize) -> Result<Served> {
        Served::start_with(database, cells, None).await
    }

    /// With an auctioneer at that URL.
    pub async fn start_with(
        database: Option<String>,
        cells: usize,
        auctioneer: Option<String>,
    ) -> Result<Served> {
        let files = folder("bench-bbs-")?;
        certify(files.path())?;
        let file = || files.path().join("bbs.sqlite").to_string_lossy().into_owned();
        let database = database.unwrap_or_else(file);
        let port = free_port()?;
        let url = format!("https://127.0.0.1:{port}");
        let process = spawn(files.path(), &database, cells, port, auctioneer.as_deref())?;
        let served = Served { process, files, database, cells, auctioneer, url };
        answers(&served.client()?, served.files.path()).await?;
        Ok(served)
    }

    /// Killed as by a lost power supply, and started on the same database; how long nobody answered.
    pub async fn fail_over(&mut self) -> Result<Duration> {
        self.process.kill()?;
        self.process.wait()?;
        let began = Instant::now();
        let port = self.url.rsplit(':').next().unwrap_or_default().parse()?;
        let (files, auctioneer) = (self.files.path(), self.auctioneer.as_deref());
        self.process = spawn(files, &self.database, self.cells, port, auctioneer)?;
        answers(&self.client()?, self.files.path()).await?;
        Ok(began.elapsed())
    }

    /// With connections of its own.
    pub fn client(&self) -> Result<BbsClient> {
        client(&self.url, certificates(self.files.path(), "client"))
    }

    pub fn log(&self) -> Result<String> {
        Ok(std::fs::read_to_string(self.files.path().join(LOG))?)
    }

    pub fn resident_mib(&self) -> Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        end(&mut self.process);
    }
}

pub fn end(process: &mut Child) {
    let ended = process.kill().and_then(|()| process.wait());
    ended.map(drop).unwrap_or_else(|error| eprintln!("cannot end the BBS: {error}"));
}

/// As soon as it does; its log is in `files`.
pub async fn answers(client: &BbsClient, files: &Path) -> Result<()> {
    let began = Instant::now();
    while client.domains().await.is_err() {
        if began.elapsed() > PATIENCE {
            bail!("the BBS does not come: {}", std::fs::read_to_string(files.join(LOG))?);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

fn spawn(files: &Path, database: &str, cells: usize, port: u16, auctioneer: Option<&str>) -> Result<Child> {
    let log = std::fs::File::options().create(true).append(true).open(files.join(LOG))?;
    Command::new(std::env::current_exe()?)
        .args(["serve", &format!("127.0.0.1:{port}"), database, &cells.to_string()])
        .arg(files)
        .args(auctioneer)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .context("cannot start the BBS")
}

pub fn client(url: &str, files: Files) -> Result<BbsClient> {
    let config = ClientConfig { tls: Some(files), timeout: Some(PATIENCE), ..ClientConfig::default() };
    Ok(BbsClient::new(url, &config)?)
}
