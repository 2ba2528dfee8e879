//! The others, each with its own state below one directory: skopeo with umoci, containerd, Docker; and the registry
//! that all pull from.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Somebody who pulls images.
pub trait Peer {
    fn name(&self) -> &'static str;
    /// From nothing to files on the disk.
    fn pull(&self, image: &str) -> Result<Duration>;
    /// Back to nothing.
    fn forget(&self, image: &str) -> Result<()>;
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn run(command: &mut Command) -> Result<Duration> {
    let began = Instant::now();
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {command:?}"))?;
    let time = began.elapsed();
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        bail!("{command:?}: {}: {}", output.status, error.trim());
    }
    Ok(time)
}

fn remove(directory: &Path) -> Result<()> {
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

/// A process that goes with its owner.
struct Daemon(Child);

impl Daemon {
    fn start(command: &mut Command, log: &Path) -> Result<Daemon> {
        let log = std::fs::File::create(log)?;
        let child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn();
        Ok(Daemon(child.with_context(|| format!("cannot start {command:?}"))?))
    }

    fn wait_until(&mut self, what: &str, ready: impl Fn() -> bool) -> Result<()> {
        for _ in 0..1500 {
            if ready() {
                return Ok(());
            }
            if let Some(status) = self.0.try_wait()? {
                bail!("{what} ended: {status}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        bail!("waited too long for {what}")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Asked first: Docker has a containerd of its own to stop.
        let pid = rustix::process::Pid::from_child(&self.0);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        for _ in 0..500 {
            if !matches!(self.0.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub struct Registry {
    _daemon: Daemon,
    pub address: String,
    policy: PathBuf,
}

impl Registry {
    pub fn start(work: &Path) -> Result<Registry> {
        let address = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let directory = work.join("registry");
        std::fs::create_dir_all(&directory)?;
        let config = directory.join("config.yml");
        let data = text(&directory.join("data"));
        let config_text = format!(
            "version: 0.1\nlog:\n  level: error\n  accesslog:\n    disabled: true\nstorage:\n  filesystem:\n    \
             rootdirectory: {data}\nhttp:\n  addr: {address}\n"
        );
        std::fs::write(&config, config_text)?;
        let mut command = Command::new("docker-registry");
        let mut daemon = Daemon::start(command.arg("serve").arg(&config), &directory.join("log"))?;
        daemon.wait_until("docker-registry", || std::net::TcpStream::connect(&address).is_ok())?;
        let policy = work.join("policy.json");
        std::fs::write(&policy, r#"{"default": [{"type": "insecureAcceptAnything"}]}"#)?;
        Ok(Registry { _daemon: daemon, address, policy })
    }

    /// Copies an image layout here; its name afterwards.
    pub fn push(&self, layout: &Path, name: &str) -> Result<String> {
        let image = format!("{}/bench/{name}:1", self.address);
        let from = format!("oci:{}:1", text(layout));
        let mut command = Command::new("skopeo");
        command.arg("--policy").arg(&self.policy).args(["copy", "-q", "--dest-tls-verify=false"]);
        run(command.args([from, format!("docker://{image}")]))?;
        Ok(image)
    }
}

/// skopeo copies to a layout, umoci unpacks it.
pub struct Umoci {
    policy: PathBuf,
    directory: PathBuf,
}

impl Umoci {
    pub fn new(work: &Path, registry: &Registry) -> Result<Umoci> {
        run(Command::new("umoci").arg("--version"))?;
        Ok(Umoci { policy: registry.policy.clone(), directory: work.join("umoci") })
    }
}

impl Peer for Umoci {
    fn name(&self) -> &'static str {
        "skopeo copy, umoci unpack"
    }

    fn pull(&self, image: &str) -> Result<Duration> {
        std::fs::create_dir_all(&self.directory)?;
        let layout = text(&self.directory.join("layout"));
        let mut copy = Command::new("skopeo");
        copy.arg("--policy").arg(&self.policy).args(["copy", "-q", "--src-tls-verify=false"]);
        let copied = run(copy.args([format!("docker://{image}"), format!("oci:{layout}:1")]))?;
        let mut unpack = Command::new("umoci");
        unpack.args(["unpack", "--image", &format!("{layout}:1"), &text(&self.directory.join("bundle"))]);
        Ok(copied + run(&mut unpack)?)
    }

    fn forget(&self, _: &str) -> Result<()> {
        remove(&self.directory)
    }
}

pub struct Containerd {
    _daemon: Daemon,
    socket: String,
}

impl Containerd {
    pub fn start(work: &Path) -> Result<Containerd> {
        let directory = work.join("containerd");
        std::fs::create_dir_all(&directory)?;
        let socket = text(&directory.join("socket"));
        let config = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = {socket:?}\n",
            text(&directory.join("root")),
            text(&directory.join("state")),
        );
        let path = directory.join("config.toml");
        std::fs::write(&path, config)?;
        let mut command = Command::new("containerd");
        let mut daemon = Daemon::start(command.arg("--config").arg(path), &directory.join("log"))?;
        daemon.wait_until("containerd", || ctr(&socket, &["version"]).is_ok())?;
        Ok(Containerd { _daemon: daemon, socket })
    }
}

fn ctr(socket: &str, arguments: &[&str]) -> Result<Duration> {
    run(Command::new("ctr").args(["--address", socket]).args(arguments))
}

impl Peer for Containerd {
    fn name(&self) -> &'static str {
        "containerd, ctr image pull"
    }

    fn pull(&self, image: &str) -> Result<Duration> {
        ctr(&self.socket, &["image", "pull", "--plain-http", image])
    }

    fn forget(&self, image: &str) -> Result<()> {
        ctr(&self.socket, &["image", "rm", "--sync", image])?;
        Ok(())
    }
}

pub struct Docker {
    _daemon: Daemon,
    program: &'static str,
    host: String,
}

impl Docker {
    pub fn start(work: &Path) -> Result<Docker> {
        let directory = work.join("docker");
        std::fs::create_dir_all(&directory)?;
        let at = |name: &str| text(&directory.join(name));
        let host = format!("unix://{}", at("socket"));
        let mut command = Command::new("dockerd");
        command.args(["--data-root", &at("data"), "--exec-root", &at("exec"), "--pidfile", &at("pid")]);
        command.args([
            "--host",
            &host,
            "--bridge=none",
            "--iptables=false",
            "--ip6tables=false",
            "-l",
            "warn",
        ]);
        let mut daemon = Daemon::start(&mut command, &directory.join("log"))?;
        // The client of the same package, where another lies before it.
        let program = if Path::new("/usr/bin/docker").exists() { "/usr/bin/docker" } else { "docker" };
        let version = || run(Command::new(program).args(["--host", &host, "version"])).is_ok();
        let log = directory.join("log");
        daemon.wait_until("dockerd", version).with_context(|| last_line(&log))?;
        Ok(Docker { _daemon: daemon, program, host })
    }

    fn docker(&self, arguments: &[&str]) -> Result<Duration> {
        run(Command::new(self.program).args(["--host", &self.host]).args(arguments))
    }
}

fn last_line(log: &Path) -> String {
    let log = std::fs::read_to_string(log).unwrap_or_default();
    log.lines().last().unwrap_or_default().to_string()
}

impl Peer for Docker {
    fn name(&self) -> &'static str {
        "docker pull"
    }

    fn pull(&self, image: &str) -> Result<Duration> {
        self.docker(&["pull", "-q", image])
    }

    fn forget(&self, image: &str) -> Result<()> {
        self.docker(&["image", "rm", "-f", image])?;
        Ok(())
    }
}
