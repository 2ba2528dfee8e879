//! The processes that are measured, and those they need: a Locket, a BBS, and an auctioneer that does nothing.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use axum::Router;
use axum::http::StatusCode;
use bbs_client::{BbsClient, ClientConfig};
use diego_base::serve::{Listen, Listener, serve};
use rep_client::RepClient;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::logs::Collector;

pub const CELL: &str = "bench-cell";
/// No part takes so long, on whatever machine.
const PATIENCE: Duration = Duration::from_secs(120);

pub struct Machine {
    /// The cell last: it is stopped first.
    processes: Vec<(&'static str, Child)>,
    pub bbs: BbsClient,
    pub rep: RepClient,
    pub collector: Collector,
    debug: SocketAddr,
    work: TempDir,
    _stop: tokio_util::sync::DropGuard,
}

impl Machine {
    pub async fn start(bin: &Path) -> Result<Machine> {
        let work = tempfile::Builder::new().prefix("diego-bench-").tempdir()?;
        // Users of containers must be able to walk down to their root.
        std::fs::set_permissions(work.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        let root = tests::userland(work.path())?;
        std::fs::copy(std::env::current_exe()?, root.join("bin/bench-cell"))
            .context("cannot copy this program")?;
        let stop = CancellationToken::new();
        let auctioneer = nothing(&stop).await?;
        let collector = Collector::start(&stop).await?;
        let [locket, bbs, rep, admin, debug] = free()?;
        let path = |name: &str| work.path().join(name).display().to_string();
        let told = |flags: &[(&str, String)]| -> Vec<String> {
            flags.iter().map(|(name, value)| format!("--{name}={value}")).collect()
        };
        let told_locket = told(&[("listen", locket.to_string()), ("database", path("locket.sqlite"))]);
        let told_bbs = told(&[
            ("listen", bbs.to_string()),
            ("locket", locket.to_string()),
            ("database", path("bbs.sqlite")),
            ("auctioneer-url", format!("http://{auctioneer}")),
        ]);
        let mut told_cell = told(&[
            ("cell-id", CELL.into()),
            ("listen", rep.to_string()),
            ("admin-listen", admin.to_string()),
            ("debug-listen", debug.to_string()),
            ("locket", locket.to_string()),
            ("bbs-url", format!("http://{bbs}")),
            ("state-dir", path("rep")),
            ("stack", format!("bench={}", root.display())),
            ("memory-mb", "1000000".into()),
            ("loggregator", collector.address.to_string()),
            ("bind-socket", path("garden.sock")),
            ("depot", path("garden")),
            ("tag", "bc".into()),
            ("uid-map-start", "2684354560".into()),
            ("network-pool", "10.243.0.0/16".into()),
            ("external-ip", "127.0.0.1".into()),
            ("port-pool-start", "40000".into()),
            ("port-pool-size", "8000".into()),
            ("max-containers", "1100".into()),
        ]);
        told_cell.push("--destroy-containers-on-stop".into());
        let config = ClientConfig::default();
        let mut machine = Machine {
            processes: Vec::new(),
            bbs: BbsClient::new(&format!("http://{bbs}"), &config)?,
            rep: RepClient::new(diego_base::http::client(&config)?, &format!("http://{rep}")),
            collector,
            debug,
            work,
            _stop: stop.drop_guard(),
        };
        for (name, flags) in [("locket", told_locket), ("bbs", told_bbs), ("cell", told_cell)] {
            machine.begin(bin, name, &flags)?;
        }
        machine
            .until("the BBS knows the cell", async || anyhow::Ok(!machine.bbs.cells().await?.is_empty()))
            .await?;
        Ok(machine)
    }

    fn begin(&mut self, bin: &Path, name: &'static str, flags: &[String]) -> Result<()> {
        let log = std::fs::File::create(self.work.path().join(format!("{name}.log")))?;
        let mut command = Command::new(bin.join("diego"));
        command.arg(name).args(flags).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.processes.push((name, command.spawn().with_context(|| format!("cannot start {name}"))?));
        Ok(())
    }

    pub fn cell_pid(&self) -> u32 {
        self.processes.iter().find(|(name, _)| *name == "cell").map_or(0, |(_, process)| process.id())
    }

    /// User and system, of the cell's process alone.
    pub fn cell_cpu(&self) -> Result<Duration> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.cell_pid()))?;
        let fields: Vec<&str> = stat.rsplit_once(')').context("no process")?.1.split_whitespace().collect();
        let ticks = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
        Ok(Duration::from_millis(ticks * 10))
    }

    /// What the cell tells Prometheus, by the whole text before the value.
    pub async fn metrics(&self) -> Result<HashMap<String, f64>> {
        let http = diego_base::http::client(&ClientConfig::default())?;
        let page = http.get(format!("http://{}/metrics", self.debug)).send().await?.text().await?;
        let line = |line: &str| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        };
        Ok(page.lines().filter(|line| !line.starts_with('#')).filter_map(line).collect())
    }

    /// Whoever cannot be asked is asked again.
    pub async fn until(&self, what: &str, ask: impl AsyncFn() -> Result<bool>) -> Result<()> {
        let began = Instant::now();
        loop {
            match ask().await {
                Ok(true) => return Ok(()),
                answer if began.elapsed() > PATIENCE => {
                    let log = std::fs::read_to_string(self.work.path().join("cell.log")).unwrap_or_default();
                    let tail: Vec<&str> = log.lines().rev().take(20).collect();
                    bail!("in vain: {what} ({answer:?}); the cell's last words, newest first: {tail:#?}");
                }
                _ => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// All of them, also when one does not end well; the first of these is told.
    pub fn stop(&mut self) -> Result<()> {
        let mut all = Ok(());
        while let Some((name, process)) = self.processes.pop() {
            all = all.and(end(name, process));
        }
        all
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!("cannot stop what was measured: {error:#}");
        }
    }
}

fn end(name: &str, mut process: Child) -> Result<()> {
    let pid = rustix::process::Pid::from_child(&process);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
    let status = process.wait()?;
    if !status.success() {
        bail!("{name} ended with {status}");
    }
    Ok(())
}

/// An auctioneer that takes what it is told: work comes from the measurements.
async fn nothing(stop: &CancellationToken) -> Result<SocketAddr> {
    let (listen, address) = Listen::loopback()?;
    let router = Router::new().fallback(|| async { StatusCode::ACCEPTED });
    tokio::spawn(serve(Listener::bind(listen).await?, router, None, stop.clone()));
    Ok(address)
}

/// Ports that nobody has.
fn free<const COUNT: usize>() -> Result<[SocketAddr; COUNT]> {
    let mut held = Vec::new();
    for _ in 0..COUNT {
        held.push(std::net::TcpListener::bind("127.0.0.1:0")?);
    }
    let addresses: std::io::Result<Vec<_>> = held.iter().map(std::net::TcpListener::local_addr).collect();
    addresses?.try_into().ok().context("no addresses")
}
