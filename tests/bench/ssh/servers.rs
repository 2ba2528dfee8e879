//! What is measured: OpenSSH's server, and our proxy with a BBS and a daemon behind it. All on the loopback, as processes of
//! this machine.

use std::fs::{self, File, Permissions};
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bbs_client::{BbsClient, ClientConfig, StartedLrp};
use bbs_models::{
    Action, ActualLrpInstanceKey, ActualLrpKey, ActualLrpNetInfo, DesiredLrp, PortMapping, RunAction,
};

const PASSWORD: &str = "bench:secret";
const PROCESS_GUID: &str = "bench";
const PATIENCE: Duration = Duration::from_secs(30);

/// Whom a client can log in to.
pub trait Server {
    /// `ssh` or `scp` with all it needs to be let in at 127.0.0.1.
    fn client(&self, program: &str) -> Command;
}

fn client(program: &str, port: u16, user: &str) -> Command {
    let mut command = Command::new(program);
    command
        .args(["-F", "/dev/null", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"])
        .args(["-o", "LogLevel=ERROR", "-o", "IdentitiesOnly=yes"])
        .args(["-o", &format!("Port={port}"), "-o", &format!("User={user}")])
        .env("TERM", "xterm");
    command
}

/// Stopped with its owner.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // One that has ended is ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Process {
    fn resident_mib(&self) -> Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kib: f64 = line.split_whitespace().next().context("no number")?.parse()?;
        Ok(kib / 1024.0)
    }
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

fn until_listening(port: u16) -> Result<()> {
    let began = Instant::now();
    while let Err(error) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) {
        if began.elapsed() > PATIENCE {
            return Err(error).with_context(|| format!("nobody listens on port {port}"));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// A key pair of the kind that both servers and clients of today prefer; the path of its private half.
fn new_key(path: &Path) -> Result<PathBuf> {
    let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(path).status()?;
    if !made.success() {
        bail!("ssh-keygen ended with {made}");
    }
    Ok(path.to_owned())
}

pub struct Openssh {
    process: Process,
    port: u16,
    key: PathBuf,
}

impl Openssh {
    pub fn start(work: &Path) -> Result<Openssh> {
        // Where the server puts its unprivileged half.
        fs::create_dir_all("/run/sshd").context("cannot make /run/sshd")?;
        let (host_key, key) = (new_key(&work.join("openssh_host"))?, new_key(&work.join("openssh_user"))?);
        let port = free_port()?;
        let config = work.join("sshd_config");
        let text = [
            format!("ListenAddress 127.0.0.1:{port}"),
            format!("HostKey {}", host_key.display()),
            format!("AuthorizedKeysFile {}", key.with_extension("pub").display()),
            "StrictModes no\nUsePAM no\nPidFile none\nPrintMotd no\nPrintLastLog no".into(),
            "PermitRootLogin prohibit-password\nSubsystem sftp /usr/lib/openssh/sftp-server\n".into(),
        ];
        fs::write(&config, text.join("\n"))?;
        let mut command = Command::new("/usr/sbin/sshd");
        command.args(["-D", "-f"]).arg(&config).arg("-E").arg(work.join("openssh.log"));
        let process = Process(command.spawn().context("cannot start OpenSSH's server")?);
        until_listening(port)?;
        Ok(Openssh { process, port, key })
    }

    pub fn resident_mib(&self) -> Result<f64> {
        self.process.resident_mib()
    }
}

impl Server for Openssh {
    fn client(&self, program: &str) -> Command {
        let mut command = client(program, self.port, "root");
        command.arg("-i").arg(&self.key);
        command
    }
}

/// Processes are stopped in this order.
pub struct Ours {
    _proxy: Process,
    daemon: Process,
    _bbs: Process,
    port: u16,
    daemon_port: u16,
    key: PathBuf,
    ask: PathBuf,
}

impl Ours {
    pub fn start(bin: &Path, work: &Path) -> Result<Ours> {
        let (host_key, key) = (new_key(&work.join("host"))?, new_key(&work.join("user"))?);
        let (daemon, daemon_port) = daemon(bin, &host_key, &key)?;
        let path = |name: &str| work.join(name).display().to_string();
        let [bbs_port, locket_port, port] = [free_port()?, free_port()?, free_port()?];
        let at = |port: u16| format!("127.0.0.1:{port}");
        let bbs_url = format!("http://{}", at(bbs_port));
        let told = [
            format!("--listen={}", at(bbs_port)),
            format!("--locket-listen={}", at(locket_port)),
            format!("--database={}", path("bbs.sqlite")),
            format!("--locket-database={}", path("locket.sqlite")),
            // There is no cell, which must not be noticed.
            "--converge-repeat-interval=1h".into(),
        ];
        let bbs = component(bin, "bbs", &told, work)?;
        until_listening(bbs_port)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(enter(&bbs_url, daemon_port, &host_key, &key))?;
        let told = [
            format!("--listen={}", at(port)),
            format!("--bbs-url={bbs_url}"),
            format!("--diego-credentials={PASSWORD}"),
        ];
        let proxy = component(bin, "ssh-proxy", &told, work)?;
        until_listening(port)?;
        let ask = work.join("ask");
        fs::write(&ask, format!("#!/bin/sh\necho '{PASSWORD}'\n"))?;
        fs::set_permissions(&ask, Permissions::from_mode(0o755))?;
        Ok(Ours { _proxy: proxy, daemon, _bbs: bbs, port, daemon_port, key, ask })
    }

    pub fn daemon_mib(&self) -> Result<f64> {
        self.daemon.resident_mib()
    }

    /// With all that runs in its connections.
    pub fn daemons_and_shells_mib(&self) -> Result<f64> {
        Ok(crate::memory::pss_kib(self.daemon.0.id())? as f64 / 1024.0)
    }

    pub fn without_proxy(&self) -> Direct<'_> {
        Direct(self)
    }
}

impl Server for Ours {
    fn client(&self, program: &str) -> Command {
        let mut command = client(program, self.port, &format!("diego:{PROCESS_GUID}/0"));
        command
            .args(["-o", "PreferredAuthentications=password"])
            .env("SSH_ASKPASS", &self.ask)
            .env("SSH_ASKPASS_REQUIRE", "force");
        command
    }
}

/// The daemon alone.
pub struct Direct<'a>(&'a Ours);

impl Server for Direct<'_> {
    fn client(&self, program: &str) -> Command {
        let mut command = client(program, self.0.daemon_port, "vcap");
        command.arg("-i").arg(&self.0.key);
        command
    }
}

fn component(bin: &Path, name: &'static str, told: &[String], work: &Path) -> Result<Process> {
    let log = File::create(work.join(format!("{name}.log")))?;
    let mut command = Command::new(bin.join("diego"));
    command.arg(name).args(told).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    Ok(Process(command.spawn().with_context(|| format!("cannot start {name}"))?))
}

/// The daemon as it runs in a container, and its port.
fn daemon(bin: &Path, host_key: &Path, user_key: &Path) -> Result<(Process, u16)> {
    let authorized = fs::read_to_string(user_key.with_extension("pub"))?;
    let mut process = Command::new(bin.join("diego-sshd"))
        .args(["-address=127.0.0.1:0", "-inheritDaemonEnv"])
        .arg(format!("-hostKey={}", fs::read_to_string(host_key)?))
        .arg(format!("-authorizedKey={authorized}"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start the daemon")?;
    let mut output = BufReader::new(process.stdout.take().context("no output")?);
    let process = Process(process);
    let mut line = String::new();
    output.read_line(&mut line)?;
    let started: serde_json::Value = serde_json::from_str(&line).context("cannot read the daemon's log")?;
    let address = started["data"]["address"].as_str().context("the daemon names no address")?;
    let port = address.rsplit(':').next().unwrap_or_default().parse()?;
    // The rest of the log must be read, or the daemon would one day wait for it to be.
    std::thread::spawn(move || std::io::copy(&mut output, &mut std::io::sink()));
    Ok((process, port))
}

/// Makes the daemon's a RUNNING instance at the BBS.
async fn enter(bbs_url: &str, port: u16, host_key: &Path, user_key: &Path) -> Result<()> {
    let bbs = BbsClient::new(bbs_url, &ClientConfig::default())?;
    let fingerprint = Command::new("ssh-keygen").arg("-lf").arg(host_key).output()?.stdout;
    let fingerprint = String::from_utf8(fingerprint)?;
    let route = serde_json::json!({
        "container_port": 2222,
        "host_fingerprint": fingerprint.split_whitespace().nth(1).context("no fingerprint")?,
        "private_key": fs::read_to_string(user_key)?,
    });
    let action = RunAction { path: "/app".into(), user: "vcap".into(), ..RunAction::default() };
    let mut lrp = DesiredLrp::new(PROCESS_GUID, "bench", "preloaded:bench", Action::Run(action));
    lrp.instances = 1;
    lrp.routes.insert("diego-ssh", &route)?;
    bbs.desire_lrp(&lrp).await.context("cannot desire an LRP")?;
    let key = ActualLrpKey::new(PROCESS_GUID, 0, "bench");
    let instance = ActualLrpInstanceKey::new("bench-instance", "bench-cell");
    bbs.claim_actual_lrp(&key, &instance).await.context("cannot claim the instance")?;
    let mapping = PortMapping { container_port: 2222, host_port: port, ..PortMapping::default() };
    let net_info =
        ActualLrpNetInfo { address: "127.0.0.1".into(), ports: vec![mapping], ..ActualLrpNetInfo::default() };
    bbs.start_actual_lrp(&key, &instance, &StartedLrp { net_info, ..StartedLrp::default() })
        .await
        .context("cannot start the instance")
}
