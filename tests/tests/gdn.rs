//! Garden under its established name: started by the file and the flags that deployments render, asked over its socket
//! and at its debug address.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tests::{Footprint, busybox_image, diego, require_root};

const PATIENCE: Duration = Duration::from_secs(30);
const TAG: &str = "gdn";

/// Two stories at once would find one another's traces.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A directory with the program under its name, a root filesystem, and a configuration.
struct Gdn {
    dir: tempfile::TempDir,
    debug_port: u16,
    running: Option<Child>,
}

impl Gdn {
    fn new() -> Gdn {
        let dir = tempfile::tempdir().unwrap();
        symlink(diego(dir.path()).get_program(), dir.path().join("gdn")).unwrap();
        let debug_port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let gdn = Gdn { dir, debug_port, running: None };
        let mut tar = Vec::new();
        flate2::read::GzDecoder::new(&busybox_image(&[]).layer[..]).read_to_end(&mut tar).unwrap();
        std::fs::write(gdn.path("busybox.tar"), tar).unwrap();
        gdn.configure(&gdn.rendered());
        gdn
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn configure(&self, text: &str) {
        std::fs::write(self.path("config.ini"), text).unwrap();
    }

    /// As the release renders it, but for names, pools and ports of our own.
    fn rendered(&self) -> String {
        let dir = self.dir.path().display();
        let debug_port = self.debug_port;
        format!(
            "\n\n[server]\n; apparmor\n\n; binaries\n  iptables-bin = /var/vcap/packages/iptables/sbin/iptables\n\
             \x20 init-bin = /var/vcap/data/garden/bin/init\n  dadoo-bin = /var/vcap/packages/guardian/bin/dadoo\n\n\
             ; containers\n  default-grace-time = 0\n  destroy-containers-on-startup = true\n  max-containers = 250\n\n\
             ; image and rootfs\n  default-rootfs = {dir}/busybox.tar\n  no-image-plugin = true\n\n\
             ; network\n  mtu = 0\n  network-pool = 10.254.241.0/24\n  deny-network = 10.0.0.0/8\n\
             \x20 additional-host-entry = \"1.2.3.4 far.away\"\n  port-pool-start = 59700\n  port-pool-size = 100\n\n\
             ; properties\n  properties-path = /var/vcap/data/garden/props.json\n\n\
             ; resource limiting\n  default-container-blockio-weight = 0\n  enable-cpu-throttling = false\n\
             \x20 cpu-throttling-check-interval = 15\n\n\
             ; server\n  bind-socket = {dir}/garden.sock\n  debug-bind-ip = 127.0.0.1\n  debug-bind-port = {debug_port}\n\
             \x20 log-level = info\n  time-format = unix-epoch\n  skip-setup = true\n  depot = {dir}/depot\n\
             \x20 runtime-plugin=/var/vcap/packages/runc/bin/runc\n  read-header-timeout = 30s\n\n\
             ; containerd\n  containerd-socket = /var/vcap/sys/run/containerd/containerd.sock\n"
        )
    }

    fn command(&self, command: &str) -> Command {
        let mut gdn = Command::new(self.path("gdn"));
        gdn.arg("--config").arg(self.path("config.ini")).arg(command);
        gdn.arg(format!("--tag={TAG}")).args(["--uid-map-start=3489660928", "--gid-map-start=3489660928"]);
        gdn.stdin(Stdio::null());
        gdn
    }

    fn start(&mut self) {
        let log = std::fs::File::options().create(true).append(true).open(self.path("log")).unwrap();
        let mut command = self.command("server");
        self.running = Some(command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap());
        self.until("it has started", |log| log.contains("\"guardian.started\""));
    }

    #[track_caller]
    fn until(&self, what: &str, holds: impl Fn(&str) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let log = std::fs::read_to_string(self.path("log")).unwrap_or_default();
            if holds(&log) {
                return;
            }
            assert!(Instant::now() < deadline, "never: {what}\n{log}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// SIGTERM, and the exit code.
    fn stop(&mut self) -> Option<i32> {
        let mut child = self.running.take()?;
        let _ = kill_process(Pid::from_child(&child), Signal::TERM);
        child.wait().unwrap().code()
    }

    /// The exit code of `diego net`, and all it says.
    fn net(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let mut net = diego(self.dir.path());
        let shown = net.arg("net").arg("--depot").arg(self.path("depot")).args(arguments).output().unwrap();
        let text = [shown.stdout, shown.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
        (shown.status.code(), text)
    }

    fn ask(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let stream = UnixStream::connect(self.path("garden.sock")).unwrap();
        let (status, text) = exchange(stream, method, path, &body.to_string());
        (status, serde_json::from_str(&text).unwrap_or(Value::Null))
    }

    fn debug(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        exchange(TcpStream::connect(("127.0.0.1", self.debug_port)).unwrap(), method, path, body)
    }

    fn kill(&mut self) {
        let mut child = self.running.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

impl Drop for Gdn {
    fn drop(&mut self) {
        self.stop();
        let _ = self.command("cleanup").stdout(Stdio::null()).status();
    }
}

/// One request of HTTP/1.0: the end of the answer is the end of the connection.
fn exchange(mut stream: impl Read + Write, method: &str, path: &str, body: &str) -> (u16, String) {
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: garden\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\n\r\n{body}"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    (status, answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
}

/// What is there by our tag's names; others may be at work on this machine.
fn traces() -> Vec<String> {
    let now = Footprint::take();
    let names = [now.cgroups, now.links, now.tables];
    names
        .into_iter()
        .flatten()
        .filter(|name| name.contains(&format!("diego-{TAG}")) || name.contains(&format!("dgo{TAG}-")))
        .collect()
}

#[test]
fn gdn_serves_what_a_deployment_renders() {
    if !require_root("gdn_serves_what_a_deployment_renders") {
        return;
    }
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let mut gdn = Gdn::new();
    gdn.start();
    gdn.until("flags without effect are told of, once each", |log| {
        ["iptables-bin", "dadoo-bin", "properties-path", "runtime-plugin", "containerd-socket", "skip-setup"]
            .iter()
            .all(|flag| log.matches(&format!("\"flag\":\"{flag}\"")).count() == 1)
    });
    let log = std::fs::read_to_string(gdn.path("log")).unwrap();
    let started: Value = log
        .lines()
        .find(|line| line.contains("guardian.started"))
        .map(serde_json::from_str)
        .unwrap()
        .unwrap();
    assert_eq!((&started["source"], &started["log_level"]), (&json!("guardian"), &json!(1)));
    assert_eq!(started["data"]["network"], "unix");
    assert!(started["timestamp"].as_str().unwrap().parse::<f64>().unwrap() > 1.7e9, "{started}");

    let (status, answer) = gdn.ask("POST", "/containers", &json!({ "handle": "h" }));
    assert_eq!((status, &answer["Handle"]), (200, &json!("h")), "{answer}");
    let (_, info) = gdn.ask("GET", "/containers/h/info", &json!({}));
    assert!(info["ContainerIP"].as_str().unwrap().starts_with("10.254.241."), "{info}");
    let record: Value =
        serde_json::from_slice(&std::fs::read(gdn.path("depot/depot/h/container.json")).unwrap()).unwrap();
    let hosts = format!("/proc/{}/root/etc/hosts", record["container"]["init"]["pid"]);
    assert!(std::fs::read_to_string(hosts).unwrap().contains("1.2.3.4 far.away"));
    let (_, capacity) = gdn.ask("GET", "/capacity", &json!({}));
    assert_eq!(capacity["max_containers"], 64, "{capacity}");

    let (status, vars) = gdn.debug("GET", "/debug/vars", "");
    let vars: Value = serde_json::from_str(&vars).unwrap();
    assert_eq!((status, &vars["depotDirs"], &vars["UnkillableContainers"]), (200, &json!(1), &json!(0)));
    assert!(vars["memstats"]["Sys"].as_u64().unwrap() > 1 << 20, "{vars}");

    assert_eq!(gdn.debug("POST", "/log-level", "loud").0, 400);
    assert_eq!(gdn.debug("GET", "/log-level", "debug").0, 400);
    assert_eq!(
        gdn.debug("POST", "/log-level", "error"),
        (200, "/log-level was invoked with Level: error\n".into())
    );
    gdn.ask("POST", "/containers", &json!({ "handle": "quiet" }));
    assert_eq!(gdn.debug("POST", "/log-level", "1").0, 200);
    gdn.ask("POST", "/containers", &json!({ "handle": "loud" }));
    gdn.until("it speaks again", |log| log.contains("\"loud\""));
    assert!(!std::fs::read_to_string(gdn.path("log")).unwrap().contains("\"quiet\""));
    assert_eq!(gdn.stop(), Some(0));

    assert!(!traces().is_empty(), "containers outlive their garden");
    assert!(gdn.command("cleanup").status().unwrap().success());
    assert_eq!(traces(), [] as [&str; 0]);
}

#[test]
fn gdn_cleanup_takes_away_what_a_killed_server_left() {
    if !require_root("gdn_cleanup_takes_away_what_a_killed_server_left") {
        return;
    }
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let mut gdn = Gdn::new();
    gdn.start();
    assert_eq!(gdn.ask("POST", "/containers", &json!({ "handle": "h" })).0, 200);
    gdn.kill();
    assert!(!traces().is_empty());
    assert!(gdn.command("cleanup").status().unwrap().success());
    assert_eq!(traces(), [] as [&str; 0]);
    assert_eq!(directories(&gdn.path("depot/depot")), 0);
}

fn directories(dir: &Path) -> usize {
    std::fs::read_dir(dir).unwrap().filter(|entry| entry.as_ref().unwrap().path().is_dir()).count()
}

/// Whether or not garden answers: it reads what is on disk, and asks the kernel.
#[test]
fn diego_net_shows_what_holds_for_a_container_and_why() {
    if !require_root("diego_net_shows_what_holds_for_a_container_and_why") {
        return;
    }
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let mut gdn = Gdn::new();
    let (code, said) = gdn.net(&[]);
    assert!(code == Some(3) && said.contains("no garden has made networks with"), "{said}");
    gdn.start();
    let web = json!({"handle": "web", "netin": [{"host_port": 0, "container_port": 8080}],
        "netout_rules": [{"protocol": 1, "networks": [{"start": "10.1.2.3"}], "ports": [{"start": 443, "end": 443}]}]});
    for spec in [web, json!({"handle": "other"})] {
        assert_eq!(gdn.ask("POST", "/containers", &spec).0, 200);
    }
    let (code, listed) = gdn.net(&[]);
    let web = listed.lines().find(|line| line.starts_with("web")).unwrap_or_default();
    assert!(code == Some(0) && web.contains("59700->8080") && web.ends_with("as recorded"), "{listed}");
    let (_, described) = gdn.net(&["web"]);
    assert!(described.contains("tcp to 10.1.2.3 port 443: passes"), "{described}");
    for (packet, code, expected) in [
        ("tcp://10.1.2.3:443", 0, "passes: egress rule 1 allows it: tcp to 10.1.2.3 port 443"),
        (
            "tcp://10.1.2.3:80",
            1,
            "is refused: the network 10.0.0.0/8 is denied to all containers (deny-network)",
        ),
        ("tcp://192.0.2.1:80", 0, "passes: no rule is about it"),
    ] {
        let (exit, said) = gdn.net(&["web", "--to", packet]);
        assert!(exit == Some(code) && said.starts_with(expected), "{packet}: {exit:?} {said}");
    }
    assert_eq!(gdn.net(&["nobody"]).0, Some(4));
    let (code, said) = gdn.net(&["web", "--to", "web"]);
    assert!(code == Some(2) && said.contains("is not a packet such as"), "{said}");
    for handle in ["web", "other"] {
        assert_eq!(gdn.ask("DELETE", &format!("/containers/{handle}"), &Value::Null).0, 200);
    }
    assert_eq!(gdn.stop(), Some(0));
}

#[test]
fn gdn_says_by_line_what_is_wrong_with_its_file() {
    if !require_root("gdn_says_by_line_what_is_wrong_with_its_file") {
        return;
    }
    let gdn = Gdn::new();
    gdn.configure("[server]\nmtu = 0\nno-such-flag = 1\n");
    let output = gdn.command("server").output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("config.ini:3: unknown option 'no-such-flag'"), "{said}");
    let output = Command::new(gdn.path("gdn")).args(["server", "--no-such-flag"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let output = Command::new(gdn.path("gdn")).args(["server", "--help"]).output().unwrap();
    assert!(output.status.success() && String::from_utf8_lossy(&output.stdout).contains("--network-plugin"));
    let output = Command::new(gdn.path("gdn")).args(["setup", "--time-format=rfc3339"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}
