//! A cell agent, whose executor is in this process: its containers, each with the app in it, and clients that come to them.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use executor::logs::Logs;
use executor::*;
use garden_client::{Address, HttpGarden};
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::Garden;
use super::app::cpu_seconds;
use super::link::{self, Link};

const PATIENCE: Duration = Duration::from_secs(120);
/// Of the app.
pub const PORT: u16 = 8080;
/// Of the app, which speaks TLS there by itself.
pub const OWN_TLS_PORT: u16 = 8443;

pub struct Agent {
    executor: Executor,
    root: String,
    /// Whom its clients trust, in a file.
    authority: PathBuf,
    stop: CancellationToken,
    running: JoinHandle<()>,
}

impl Agent {
    /// With a directory of its own.
    pub fn start(garden: &Garden, directory: &Path) -> Result<Agent> {
        std::fs::create_dir_all(directory)?;
        let authority = directory.join("authority.pem");
        let executor = executor(garden, directory, &authority)?;
        let stop = CancellationToken::new();
        let running = tokio::spawn({
            let (executor, stop) = (executor.clone(), stop.clone());
            async move { executor.run(stop).await }
        });
        Ok(Agent { executor, root: garden.root.clone(), authority, stop, running })
    }

    pub async fn end(self) -> Result<()> {
        self.stop.cancel();
        Ok(self.running.await?)
    }

    /// Runs containers, all at once, and waits until all run.
    pub async fn run(&self, guids: &[String], ports: &[u16], tls: bool) -> Result<()> {
        let executor = &self.executor;
        let mut events = executor.subscribe();
        let resource = Resource { memory_mb: 64, disk_mb: 64, max_pids: 0 };
        let wish = |guid: &String| AllocationRequest { guid: guid.clone(), resource, tags: Tags::new() };
        let refused = executor.allocate(guids.iter().map(wish).collect());
        if let Some(refused) = refused.first() {
            bail!("not allocated: {refused:?}");
        }
        let run_info = recipe(&self.root, ports, tls);
        for guid in guids {
            let (guid, run_info) = (guid.clone(), run_info.clone());
            executor.run_container(RunRequest { guid, run_info, tags: Tags::new() })?;
        }
        let mut left = guids.len();
        while left > 0 {
            let heard =
                tokio::time::timeout(PATIENCE, events.next()).await.context("containers do not run")?;
            match heard.context("no more events")? {
                Heard::Event(Event::Running(_)) => left -= 1,
                Heard::Event(Event::Completed(container)) => bail!("{:?}", container.state),
                _ => {}
            }
        }
        Ok(())
    }

    pub async fn remove(&self, guids: &[String]) -> Result<()> {
        for guid in guids {
            self.executor.delete(guid).await?;
        }
        Ok(())
    }

    /// By a client in a process of its own.
    pub async fn fetch(&self, from: &Target<'_>, bytes: u64, way: Way) -> Result<Fetched> {
        let container = self.executor.get(from.guid)?;
        let own = |port: u16| container.ports.iter().find(|mapped| mapped.container_port == port);
        let port = match way {
            Way::Plain => own(PORT).map(|port| port.host_port),
            Way::Tls | Way::Far => own(PORT).map(|port| port.host_tls_proxy_port),
            Way::AppsTls => own(OWN_TLS_PORT).map(|port| port.host_port),
        };
        let port = port.context("no port is mapped")?;
        let address = SocketAddr::from((from.over.map_or(Ipv4Addr::LOCALHOST, |_| link::CELL), port));
        let mut client = Command::new(std::env::current_exe()?);
        client.arg("client").arg(address.to_string()).arg(bytes.to_string());
        if let Some(end) = way.end_of_tls() {
            client.arg(end).arg(&self.authority).arg(from.guid);
        }
        let agent = cpu_seconds("self")?;
        let output = match from.over {
            None => tokio::task::spawn_blocking(move || client.output()).await??,
            Some(link) => tokio::task::block_in_place(|| link.outside(|| client.output()))??,
        };
        if !output.status.success() {
            bail!("a client failed: {}", String::from_utf8_lossy(&output.stderr));
        }
        let told = String::from_utf8(output.stdout)?;
        let (seconds, client) =
            told.trim().split_once(' ').context("a client that does not tell its figures")?;
        let agent = cpu_seconds("self")? - agent;
        Ok(Fetched { seconds: seconds.parse()?, client: client.parse()?, agent, app: 0.0 })
    }
}

fn executor(garden: &Garden, directory: &Path, authority: &Path) -> Result<Executor> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let certificate = params.self_signed(&key)?.pem();
    std::fs::write(authority, &certificate)?;
    let total = CellResources { memory_mb: 1 << 20, disk_mb: 1 << 20, containers: 10_000 };
    let http = diego_base::http::client(&Default::default())?;
    let mut config = Config::new("bench", total, directory.join("agent"), http);
    config.instance_identity = Some(InstanceIdentity {
        ca_certificate_pem: certificate,
        ca_private_key_pem: key.serialize_pem(),
        validity: Duration::from_secs(86_400),
    });
    config.container_proxy = Some(ContainerProxy::default());
    let garden = HttpGarden::new(Address::Unix(garden.socket.clone()));
    Ok(Executor::new(config, Arc::new(garden), Logs::default())?)
}

fn recipe(root: &str, ports: &[u16], tls: bool) -> RunInfo {
    let action = bbs_models::RunAction {
        path: "/bin/bench-net".into(),
        args: vec!["source".into(), PORT.to_string(), OWN_TLS_PORT.to_string()],
        user: "root".into(),
        ..Default::default()
    };
    let mapping = |container_port| PortMapping { container_port, ..PortMapping::default() };
    let check = bbs_models::Check::Tcp { port: PORT, connect_timeout_ms: 0, interval_ms: 3_600_000 };
    RunInfo {
        rootfs: root.into(),
        action: Some(bbs_models::Action::Run(action)),
        ports: ports.iter().map(|port| mapping(*port)).collect(),
        check_definition: Some(bbs_models::CheckDefinition { checks: vec![check], ..Default::default() }),
        log_rate_limit_bytes_per_second: -1,
        enable_container_proxy: tls,
        ..RunInfo::default()
    }
}

pub fn names(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{prefix}-{number}")).collect()
}

/// How a client comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Plain,
    /// Which the agent ends.
    Tls,
    /// The same, by a client that leaves it: see [`super::app::Tls`].
    Far,
    /// Which the app ends itself.
    AppsTls,
}

impl Way {
    fn end_of_tls(self) -> Option<&'static str> {
        match self {
            Way::Plain => None,
            Way::Far => Some("far"),
            Way::Tls | Way::AppsTls => Some("near"),
        }
    }
}

/// A container, and the way there: without a link, over the loopback.
pub struct Target<'a> {
    pub guid: &'a str,
    pub over: Option<&'a Link>,
}

/// Seconds that so many bytes took, and what each party worked for them.
#[derive(Debug, Clone, Copy, Default)]
pub struct Fetched {
    pub seconds: f64,
    pub client: f64,
    pub agent: f64,
    pub app: f64,
}
