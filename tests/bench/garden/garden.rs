//! Our side: a garden in a process of its own, driven through its API.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use garden_client::{
    Address, ContainerSpec, CpuLimits, DiskLimits, Garden, HttpGarden, ImageRef, IpRange, Limits,
    MemoryLimits, NetIn, NetOutRule, PidLimits, PortRange, ProcessIo, ProcessSpec, Properties,
};

#[derive(Clone)]
pub struct Server {
    pub api: HttpGarden,
    process: Arc<Running>,
    root: String,
}

/// Told to stop when nobody needs it any more, whatever became of the measurements.
struct Running(Mutex<Child>);

impl Running {
    fn stop(&self) -> Result<()> {
        let Ok(mut process) = self.0.lock() else { bail!("a measurement failed") };
        if let Some(status) = process.try_wait()? {
            return if status.success() {
                Ok(())
            } else {
                Err(anyhow::anyhow!("garden ended with {status}"))
            };
        }
        let pid = rustix::process::Pid::from_raw(process.id() as i32).context("no process")?;
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        let status = process.wait()?;
        if !status.success() {
            bail!("garden ended with {status}");
        }
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!("cannot stop garden: {error:#}");
        }
    }
}

/// How much memory and disk a container may have.
#[derive(Clone, Copy)]
pub enum Room {
    Narrow,
    Ample,
}

pub struct Cycle {
    pub create: Duration,
    pub run: Duration,
    pub destroy: Duration,
}

const MIB: u64 = 1 << 20;
/// Creates that are under way at once where their number is not what is measured.
const AT_ONCE: usize = 8;

impl Server {
    pub fn start(bin: &Path, work: &Path, root: &Path) -> Result<Server> {
        let socket = work.join("garden.sock");
        let log = std::fs::File::create(work.join("garden.log"))?;
        let process = Command::new(bin.join("diego"))
            .arg("garden")
            .args([Path::new("--bind-socket"), &socket, Path::new("--depot"), &work.join("garden")])
            .args(["--tag", "b", "--uid-map-start", "1879048192", "--destroy-containers-on-stop"])
            .args([
                "--network-pool",
                "10.244.0.0/16",
                "--port-pool-start",
                "40000",
                "--port-pool-size",
                "8000",
            ])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start garden")?;
        super::wait_until("garden", || std::os::unix::net::UnixStream::connect(&socket).is_ok())?;
        let api = HttpGarden::new(Address::Unix(socket));
        let root = root.to_string_lossy().into_owned();
        Ok(Server { api, process: Arc::new(Running(Mutex::new(process))), root })
    }

    pub fn pid(&self) -> u32 {
        self.process.0.lock().map(|process| process.id()).unwrap_or_default()
    }

    pub fn stop(&self) -> Result<()> {
        self.process.stop()
    }

    /// All that a cell asks for: limits, disk quota, a mapped port, egress rules, properties.
    fn spec(&self, handle: &str, room: Room) -> ContainerSpec {
        let (memory, disk) = match room {
            Room::Narrow => (64 * MIB, 128 * MIB),
            Room::Ample => (1024 * MIB, 1024 * MIB),
        };
        let everywhere = NetOutRule {
            protocol: 1,
            networks: vec![IpRange { start: "192.0.2.0".parse().ok(), end: "192.0.2.255".parse().ok() }],
            ports: vec![PortRange { start: 443, end: 443 }],
            ..NetOutRule::default()
        };
        ContainerSpec {
            handle: handle.into(),
            image: ImageRef { uri: self.root.clone(), ..ImageRef::default() },
            env: vec!["LANG=C".into()],
            properties: Properties::from([("owner".into(), "bench".into())]),
            limits: Limits {
                memory: MemoryLimits { limit_in_bytes: memory },
                cpu: CpuLimits { weight: 512, limit_in_shares: 0 },
                pid: PidLimits { max: 128 },
                disk: DiskLimits { byte_hard: disk, scope: 1, ..DiskLimits::default() },
                ..Limits::default()
            },
            net_in: vec![NetIn { host_port: 0, container_port: 8080 }],
            net_out: vec![everywhere],
            ..ContainerSpec::default()
        }
    }

    pub async fn create(&self, handle: &str) -> Result<()> {
        self.create_with(handle, Room::Narrow).await
    }

    pub async fn create_with(&self, handle: &str, room: Room) -> Result<()> {
        let spec = self.spec(handle, room);
        self.api.create(spec).await.with_context(|| format!("cannot create {handle}"))?;
        Ok(())
    }

    pub async fn destroy(&self, handle: &str) -> Result<()> {
        self.api.destroy(handle).await.with_context(|| format!("cannot destroy {handle}"))
    }

    pub async fn run_true(&self, handle: &str) -> Result<Duration> {
        let began = Instant::now();
        let spec = ProcessSpec { path: "/bin/true".into(), ..ProcessSpec::default() };
        let process = self.api.run(handle, spec, ProcessIo::default()).await?;
        let status = process.wait().await?;
        if status != 0 {
            bail!("true is {status} in {handle}");
        }
        Ok(began.elapsed())
    }

    pub async fn cycle(&self, handle: &str) -> Result<Cycle> {
        let began = Instant::now();
        self.create(handle).await?;
        let create = began.elapsed();
        let run = self.run_true(handle).await?;
        let began = Instant::now();
        self.destroy(handle).await?;
        Ok(Cycle { create, run, destroy: began.elapsed() })
    }

    pub async fn create_all(&self, handles: impl IntoIterator<Item = String>) -> Result<()> {
        self.each(handles, async |server, handle| server.create(&handle).await).await
    }

    pub async fn destroy_all(&self, handles: impl IntoIterator<Item = String>) -> Result<()> {
        self.each(handles, async |server, handle| server.destroy(&handle).await).await
    }

    /// Each runs something, and each is active.
    pub async fn check_all(&self, handles: &[String]) -> Result<()> {
        self.each(handles.to_vec(), async |server, handle| server.run_true(&handle).await.map(drop)).await?;
        for (handle, info) in self.api.bulk_info(handles).await? {
            let info = info?;
            if info.state != "active" || info.container_ip.is_empty() {
                bail!("{handle} is {}", info.state);
            }
        }
        Ok(())
    }

    async fn each<F>(&self, handles: impl IntoIterator<Item = String>, act: F) -> Result<()>
    where
        F: AsyncFn(Server, String) -> Result<()>,
    {
        let waiting: Vec<String> = handles.into_iter().collect();
        for some in waiting.chunks(AT_ONCE) {
            let acting = some.iter().map(|handle| act(self.clone(), handle.clone()));
            futures_util::future::try_join_all(acting).await?;
        }
        Ok(())
    }

    pub async fn bulk_metrics(&self, handles: &[String]) -> Result<Duration> {
        let began = Instant::now();
        let metrics = self.api.bulk_metrics(handles).await?;
        let took = began.elapsed();
        for (handle, metrics) in metrics {
            metrics.with_context(|| format!("no metrics of {handle}"))?;
        }
        Ok(took)
    }

    pub async fn handles(&self) -> Result<Vec<String>> {
        Ok(self.api.containers(&Properties::new()).await?)
    }
}
