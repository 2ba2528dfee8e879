//! What a container's network costs. Each part has its file; figures on the last lines.
//!
//!   make bench-net           as root, on a quiet machine; ONLY=tls (or idle, connect) measures only that part
//!
//! The same program is the app in the containers and the client outside of them: see `app`.

mod agent;
mod app;
mod connect;
#[path = "../garden/figures.rs"]
#[allow(dead_code)]
mod figures;
mod idle;
mod link;
#[path = "../garden/memory.rs"]
#[allow(dead_code)]
mod memory;
mod packets;
mod tls;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use figures::Report;

/// As in the agent that is measured, and counted.
#[global_allocator]
static ALLOCATOR: cap::Cap<mimalloc::MiMalloc> = cap::Cap::new(mimalloc::MiMalloc, usize::MAX);

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["app", port] => app::serve_http(port.parse()?),
        ["source", port, own_tls] => app::serve_bytes(port.parse()?, own_tls.parse()?),
        ["client", address, bytes] => app::fetch(address, bytes.parse()?, None),
        ["client", address, bytes, end, authority, name] => {
            let tls = app::Tls { authority, name, is_far: end == "far" };
            app::fetch(address, bytes.parse()?, Some(tls))
        }
        ["weigh", kind, root, socket, directory] => {
            runtime()?.block_on(idle::weigh(kind, root, socket, directory))
        }
        [bin] => runtime()?.block_on(measure(Path::new(bin))),
        _ => bail!("usage: bench-net BIN, where `make build` put the programs"),
    }
}

/// As the agent has it on two processors.
fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?)
}

fn number(name: &str, otherwise: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

async fn measure(bin: &Path) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("containers are made by root");
    }
    let work = tempfile::Builder::new().prefix("diego-bench-").tempdir()?;
    // Users of containers must be able to walk down to their root.
    std::fs::set_permissions(work.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let only = std::env::var("ONLY").unwrap_or_default();
    let wanted = |part: &str| only.is_empty() || only.split(',').any(|name| name == part);
    let mut report = Report::default();
    if wanted("connect") {
        connect::measure(&mut report)?;
    }
    if wanted("tls") || wanted("idle") {
        let running = Running::start(bin, work.path())?;
        if wanted("tls") {
            tls::measure(&running.garden, work.path(), &mut report).await?;
        }
        if wanted("idle") {
            idle::measure(&running.garden, work.path(), &mut report)?;
        }
    }
    report.print();
    Ok(())
}

/// A garden to be asked.
pub struct Garden {
    pub socket: PathBuf,
    /// A root file system with the userland and this program in it.
    pub root: String,
}

/// One in a process of its own, told to stop when nobody needs it any more.
struct Running {
    process: Child,
    garden: Garden,
}

impl Running {
    fn start(bin: &Path, work: &Path) -> Result<Running> {
        let root = tests::userland(work)?;
        std::fs::copy(std::env::current_exe()?, root.join("bin/bench-net"))
            .context("cannot copy this program")?;
        let socket = work.join("garden.sock");
        let log = std::fs::File::create(work.join("garden.log"))?;
        let process = Command::new(bin.join("diego"))
            .arg("garden")
            .args([Path::new("--bind-socket"), &socket, Path::new("--depot"), &work.join("garden")])
            .args(["--tag", "n", "--uid-map-start", "1879048192", "--destroy-containers-on-stop"])
            .args(["--network-pool", "10.245.0.0/16", "--external-ip", "127.0.0.1"])
            .args(["--port-pool-start", "48000", "--port-pool-size", "8000"])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start garden")?;
        let garden = Garden { socket, root: root.to_string_lossy().into_owned() };
        let running = Running { process, garden };
        let began = Instant::now();
        while std::os::unix::net::UnixStream::connect(&running.garden.socket).is_err() {
            if began.elapsed() > Duration::from_secs(30) {
                bail!("garden does not come: {}", std::fs::read_to_string(work.join("garden.log"))?);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(running)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.process);
        let stopped = rustix::process::kill_process(pid, rustix::process::Signal::TERM)
            .map_err(std::io::Error::from)
            .and_then(|()| self.process.wait());
        if let Err(error) = stopped {
            eprintln!("cannot stop garden: {error}");
        }
    }
}
