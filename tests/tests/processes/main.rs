//! Each component as a process of its own, started under its established name, and all of them together a Diego that is
//! spoken to through `cfdot`.

// For what deployments render.
#![recursion_limit = "256"]

mod edge;
mod forward;
mod survival;
mod volumes;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tests::{Answer, Footprint, busybox_image, diego, require_root};

const STOP_TIME: Duration = Duration::from_secs(40);
const PATIENCE: Duration = Duration::from_secs(30);
/// In this order they are stopped: the cell first, so that what becomes of its containers is still told.
const NAMES: [&str; 7] = ["cell", "rep", "gdn", "auctioneer", "bbs", "locket", "file-server"];
/// What no other Diego on this machine uses.
const GARDEN_APART: &[&str] = &[
    "--tag=prc",
    "--uid-map-start=3758096384",
    "--network-pool=10.254.240.0/24",
    "--port-pool-start=59500",
    "--port-pool-size=100",
    "--external-ip=127.0.0.1",
];

/// Two stories at once would find one another's traces.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A directory with a link under each name, an address for each, and those that run.
struct Processes {
    dir: tempfile::TempDir,
    addresses: BTreeMap<&'static str, SocketAddr>,
    running: BTreeMap<&'static str, Child>,
    /// All but garden and the file server, which know none, speak TLS and believe only certificates of one authority.
    tls: bool,
    /// What only some cells are told.
    rep_flags: Vec<String>,
    /// The cell is told in a file, as deployments do it.
    rep_in_file: bool,
    garden_flags: Vec<String>,
    /// The rep and garden are one process.
    one_cell: bool,
    /// The cell's programs are where they can be exchanged for others.
    apart: bool,
}

impl Processes {
    fn over_tls() -> Processes {
        let mut processes = Processes::new();
        processes.tls = true;
        certify(processes.dir.path());
        processes
    }

    fn new() -> Processes {
        let dir = tempfile::tempdir().unwrap();
        for name in NAMES.iter().chain(&["cfdot"]) {
            symlink(diego(dir.path()).get_program(), dir.path().join(name)).unwrap();
        }
        let held =
            ["locket", "bbs", "auctioneer", "rep", "rep-admin", "rep-debug", "file-server", "forwarder"]
                .map(|name| (name, TcpListener::bind("127.0.0.1:0").unwrap()));
        let addresses = held.iter().map(|(name, socket)| (*name, socket.local_addr().unwrap())).collect();
        Processes {
            dir,
            addresses,
            running: BTreeMap::new(),
            tls: false,
            rep_flags: Vec::new(),
            rep_in_file: false,
            garden_flags: vec!["--destroy-containers-on-stop".into()],
            one_cell: false,
            apart: false,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn flag(&self, flag: &str, value: impl AsRef<Path>) -> String {
        format!("--{flag}={}", value.as_ref().display())
    }

    fn address(&self, flag: &str, name: &str) -> String {
        format!("--{flag}={}", self.addresses[name])
    }

    fn url(&self, name: &str) -> String {
        format!("{}://{}", if self.tls { "https" } else { "http" }, self.addresses[name])
    }

    fn start(&mut self, name: &'static str, flags: &[String]) {
        let log = self.path(&format!("{name}.log"));
        let log = std::fs::File::options().create(true).append(true).open(log).unwrap();
        let mut command = Command::new(self.path(name));
        if name == "cell" {
            command = diego(self.dir.path());
            if self.apart {
                command = Command::new(self.path("programs/diego"));
            }
            command.arg(name);
        }
        let told_in_file = name == "rep" && self.rep_in_file;
        if self.tls && !told_in_file && !["gdn", "file-server"].contains(&name) {
            command.args(
                ["cert", "key", "ca-cert"].map(|what| self.flag(&format!("{what}-file"), self.path(what))),
            );
        }
        command.args(flags).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.running.insert(name, command.spawn().unwrap());
    }

    fn told_garden(&self) -> Vec<String> {
        let mut flags: Vec<String> = GARDEN_APART.iter().map(|flag| (*flag).to_owned()).collect();
        flags.push(self.flag("bind-socket", self.path("garden.sock")));
        flags.push(self.flag("depot", self.path("garden")));
        flags.extend_from_slice(&self.garden_flags);
        flags
    }

    fn start_garden(&mut self) {
        self.start("gdn", &self.told_garden());
    }

    fn start_bbs(&mut self) {
        let flags = [
            self.address("listen", "bbs"),
            self.address("locket", "locket"),
            self.flag("database", self.path("bbs.sqlite")),
            format!("--auctioneer-url={}", self.url("auctioneer")),
        ];
        self.start("bbs", &flags);
    }

    /// In the form in which deployments render it, with keys that mean nothing here.
    fn rep_file(&self) -> Value {
        let path = |name: &str| self.path(name).display().to_string();
        json!({
            "cell_id": "cell-1", "zone": "z1", "cell_index": 7, "session_name": "rep", "log_level": "info",
            "listen_addr": self.addresses["rep-admin"], "listen_addr_securable": self.addresses["rep"],
            "bbs_address": self.url("bbs"), "locket_address": self.addresses["locket"],
            "ca_cert_file": path("ca-cert"), "cert_file": path("cert"), "key_file": path("key"),
            "locket_ca_cert_file": path("ca-cert"), "locket_client_cert_file": path("cert"),
            "locket_client_key_file": path("key"), "path_to_tls_cert": path("cert"),
            "path_to_tls_key": path("key"), "path_to_tls_ca_cert": path("ca-cert"),
            "garden_network": "unix", "garden_addr": path("garden.sock"), "cache_path": path("rep-cache"),
            "temp_dir": path("of-many"), "preloaded_root_fs": [format!("busybox:{}", path("busybox.tar"))],
            "supported_providers": ["docker"], "placement_tags": [], "optional_placement_tags": null,
            "memory_mb": "auto", "disk_mb": "1024", "container_owner_name": "rep", "set_cpu_weight": true,
            "evacuation_timeout": "10m0s", "polling_interval": "30s", "layering_mode": "single-layer",
            "garden_healthcheck_process_path": "/bin/sh",
            "garden_healthcheck_process_args": ["-c", "exit 0"], "lock_ttl": "15s", "post_setup_hook": "",
            "enable_container_proxy": false, "enable_unproxied_port_mappings": true, "proxy_enable_http2": true,
            "loggregator": { "loggregator_api_port": 3458, "loggregator_ca_path": "" },
        })
    }

    fn start_rep(&mut self) {
        if self.rep_in_file {
            std::fs::create_dir_all(self.path("of-many/others")).unwrap();
            std::fs::write(self.path("rep.json"), self.rep_file().to_string()).unwrap();
            return self.start("rep", &["-config".into(), self.path("rep.json").display().to_string()]);
        }
        let mut flags = self.told_rep();
        flags.push(self.flag("garden", self.path("garden.sock")));
        flags.push("--disk-mb=1024".into());
        self.start("rep", &flags);
    }

    fn start_cell(&mut self) {
        self.start("cell", &[self.told_rep(), self.told_garden()].concat());
    }

    fn told_rep(&self) -> Vec<String> {
        let mut flags = vec![
            "--cell-id=cell-1".into(),
            self.address("listen", "rep"),
            self.address("admin-listen", "rep-admin"),
            self.address("locket", "locket"),
            self.flag("state-dir", self.path("rep-state")),
            format!("--bbs-url={}", self.url("bbs")),
            format!("--stack=busybox={}", self.path("busybox.tar").display()),
            "--memory-mb=512".into(),
        ];
        flags.extend_from_slice(&self.rep_flags);
        flags
    }

    /// The rep first: it waits for those it needs.
    fn start_all(&mut self) {
        if self.one_cell {
            self.start_cell();
        } else {
            self.start_rep();
            self.start_garden();
        }
        self.start_bbs();
        let locket = [self.address("listen", "locket"), self.flag("database", self.path("locket.sqlite"))];
        self.start("locket", &locket);
        let auctioneer = [
            self.address("listen", "auctioneer"),
            self.address("locket", "locket"),
            format!("--bbs-url={}", self.url("bbs")),
        ];
        self.start("auctioneer", &auctioneer);
        let files = [self.address("listen", "file-server"), self.flag("static-dir", self.path("static"))];
        std::fs::create_dir(self.path("static")).unwrap();
        self.start("file-server", &files);
    }

    fn cfdot(&self, arguments: &[&str]) -> Answer {
        let mut command = Command::new(self.path("cfdot"));
        command.env("BBS_URL", self.url("bbs"));
        command.env("LOCKET_API_LOCATION", self.addresses["locket"].to_string());
        if self.tls {
            command.env("CLIENT_CERT_FILE", self.path("cert")).env("CLIENT_KEY_FILE", self.path("key"));
            command.env("CA_CERT_FILE", self.path("ca-cert"));
        }
        Answer::of(command.args(arguments).stdin(Stdio::null()))
    }

    /// What a command lists, one value a line; nothing if it failed.
    fn listed(&self, arguments: &[&str]) -> Vec<Value> {
        let answer = self.cfdot(arguments);
        answer.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn until<T>(&mut self, what: &str, found: impl FnMut(&Processes) -> Option<T>) -> T {
        self.until_within(PATIENCE, what, found)
    }

    fn until_within<T>(
        &mut self,
        limit: Duration,
        what: &str,
        mut found: impl FnMut(&Processes) -> Option<T>,
    ) -> T {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(found) = found(self) {
                return found;
            }
            let mut ended = self.running.iter_mut().map(|(name, child)| (name, child.try_wait().unwrap()));
            let ended = ended.find(|(_, status)| status.is_some());
            let ended = ended.map(|(name, status)| format!("{name} ended with {status:?}"));
            assert_eq!(ended, None, "{}", self.ends_of_logs());
            assert!(Instant::now() < deadline, "not within {limit:?}: {what}\n{}", self.ends_of_logs());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The one instance, once it runs.
    fn running_instance(&mut self) -> Value {
        self.running_instance_of("web", "")
    }

    /// But not this one.
    fn running_instance_of(&mut self, process: &str, but: &str) -> Value {
        self.until("the instance runs", |processes| {
            let lrps = processes.listed(&["actual-lrps", "-p", process]);
            lrps.into_iter().find(|lrp| lrp["state"] == "RUNNING" && lrp["instance_guid"] != but)
        })
    }

    fn ends_of_logs(&self) -> String {
        let mut said = String::new();
        for name in NAMES {
            let log = std::fs::read_to_string(self.path(&format!("{name}.log"))).unwrap_or_default();
            let lines: Vec<_> = log.lines().collect();
            said += &format!("--- {name}\n{}\n", lines[lines.len().saturating_sub(15)..].join("\n"));
        }
        said
    }

    fn kill(&mut self, name: &str) {
        let mut child = self.running.remove(name).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// SIGTERM, and the exit code.
    fn stop(&mut self, name: &str) -> Option<i32> {
        let mut child = self.running.remove(name)?;
        let _ = kill_process(Pid::from_child(&child), Signal::TERM);
        let deadline = Instant::now() + STOP_TIME;
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return status.code();
            }
            if Instant::now() > deadline {
                let _ = child.kill();
                let _ = child.wait();
                return None;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        for name in NAMES {
            self.stop(name);
        }
    }
}

/// An authority, and one certificate of it for every client and server of 127.0.0.1.
fn certify(dir: &Path) {
    certify_for(dir, "127.0.0.1");
}

/// Or of another name.
fn certify_for(dir: &Path, name: &str) {
    let authority_key = KeyPair::generate().unwrap();
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    std::fs::write(dir.join("ca-cert"), authority.self_signed(&authority_key).unwrap().pem()).unwrap();
    let issuer = Issuer::new(authority, authority_key);
    let key = KeyPair::generate().unwrap();
    let mut all = CertificateParams::new([name.to_owned()]).unwrap();
    all.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    std::fs::write(dir.join("cert"), all.signed_by(&key, &issuer).unwrap().pem()).unwrap();
    std::fs::write(dir.join("key"), key.serialize_pem()).unwrap();
}

/// A root filesystem as a cell has it on its disk: a tar.
fn busybox_stack(dir: &Path) {
    let image = busybox_image(&[]);
    let mut tar = Vec::new();
    flate2::read::GzDecoder::new(&image.layer[..]).read_to_end(&mut tar).unwrap();
    std::fs::write(dir.join("busybox.tar"), tar).unwrap();
}

fn web() -> Value {
    let serve = "echo hello > /tmp/index.html; exec httpd -f -p 8080 -h /tmp";
    json!({
        "process_guid": "web", "domain": "stories", "log_guid": "web", "log_source": "WEB",
        "rootfs": "preloaded:busybox", "instances": 1, "memory_mb": 64, "disk_mb": 64, "ports": [8080],
        "env": [{ "name": "PATH", "value": "/bin" }],
        "action": { "run": { "path": "/bin/sh", "args": ["-c", serve], "user": "root" } },
        "unknown_field": "is nobody's business",
    })
}

/// What a server answers, however long it takes to come up.
fn get(address: SocketAddr, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

fn answers(processes: &mut Processes, instance: &Value) {
    let port = instance["ports"][0]["host_port"].as_u64().unwrap();
    let address = SocketAddr::from(([127, 0, 0, 1], u16::try_from(port).unwrap()));
    processes.until("the instance answers", |_| get(address, "/").filter(|answer| answer.contains("hello")));
}

/// A whole Diego and an instance in it that answers; after the story nothing is left of it.
fn in_six_processes(
    test: &str,
    processes: impl FnOnce() -> Processes,
    story: impl FnOnce(&mut Processes, &Value),
) {
    if !require_root(test) {
        return;
    }
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let before = Footprint::take();
    let mut processes = processes();
    busybox_stack(processes.dir.path());
    processes.start_all();
    processes.until("the cell is there", |processes| processes.listed(&["cells"]).pop());
    // It tries again to get its lock after some seconds; what it was not there to hear comes with convergence only.
    processes.until("the auctioneer listens", |processes| {
        TcpStream::connect(processes.addresses["auctioneer"]).ok()
    });
    std::fs::write(processes.path("web.json"), web().to_string()).unwrap();
    let spec = format!("@{}", processes.path("web.json").display());
    processes.cfdot(&["set-domain", "stories", "--ttl", "1h"]).worked();
    processes.cfdot(&["create-desired-lrp", &spec]).worked();
    let instance = processes.running_instance();
    // Where its own port is closed, the story knows how else.
    if instance["ports"][0]["host_port"].as_u64() > Some(0) {
        answers(&mut processes, &instance);
    }
    story(&mut processes, &instance);
    for name in NAMES.into_iter().filter(|name| processes.running.contains_key(name)).collect::<Vec<_>>() {
        assert_eq!(processes.stop(name), Some(0), "{name}\n{}", processes.ends_of_logs());
    }
    assert_eq!(Footprint::take(), before, "{test} left something");
}

#[test]
fn six_processes_are_a_diego() {
    in_six_processes("six_processes_are_a_diego", Processes::new, |processes, _| {
        what_operators_ask_is_answered(processes);
    });
}

#[test]
fn a_killed_bbs_comes_back_to_what_it_knew() {
    in_six_processes("a_killed_bbs_comes_back_to_what_it_knew", Processes::new, |processes, instance| {
        processes.kill("bbs");
        processes.start_bbs();
        let after = processes.running_instance();
        assert_eq!(after["instance_guid"], instance["instance_guid"], "it is the same container");
        answers(processes, &after);
        let desired = processes.cfdot(&["desired-lrp", "web"]).worked();
        assert_eq!(serde_json::from_str::<Value>(&desired.stdout).unwrap()["process_guid"], "web");
    });
}

#[test]
fn processes_with_certificates_believe_no_others() {
    in_six_processes("processes_with_certificates_believe_no_others", Processes::over_tls, |processes, _| {
        assert_eq!(processes.listed(&["cell-states"])[0]["LRPs"][0]["process_guid"], "web");
        assert_eq!(processes.listed(&["presences"])[0]["key"], "cell-1");
        let strangers = tempfile::tempdir().unwrap();
        certify(strangers.path());
        let stranger = |what: &str| strangers.path().join(what).display().to_string();
        let (cert, key) = (stranger("cert"), stranger("key"));
        let as_stranger = ["cells", "--clientCertFile", &cert, "--clientKeyFile", &key];
        assert_ne!(processes.cfdot(&as_stranger).code, 0, "a client with another authority's certificate");
        let authority = stranger("ca-cert");
        let of_stranger = ["cells", "--caCertFile", &authority];
        assert_ne!(processes.cfdot(&of_stranger).code, 0, "a server with another authority's certificate");
        processes.cfdot(&[&of_stranger[..], &["--skipCertVerify"]].concat()).worked();
        processes.cfdot(&["delete-desired-lrp", "web"]).worked();
        processes.until("the instance is gone", |processes| {
            processes.listed(&["actual-lrps"]).is_empty().then_some(())
        });
    });
}

fn over_tls_by_file() -> Processes {
    let mut processes = Processes::over_tls();
    processes.rep_in_file = true;
    processes
}

#[test]
fn a_cell_is_started_as_deployments_start_it() {
    in_six_processes("a_cell_is_started_as_deployments_start_it", over_tls_by_file, |processes, _| {
        let cell = &processes.listed(&["cell", "cell-1"])[0];
        assert_eq!((&cell["zone"], &cell["capacity"]["disk_mb"]), (&json!("z1"), &json!(1024)), "{cell}");
        processes.until("garden is checked by a container that is made and destroyed", |processes| {
            let log = std::fs::read_to_string(processes.path("gdn.log")).unwrap();
            let destroyed =
                |line: &str| line.contains("guardian.destroyed") && line.contains(r#""handle":"check-"#);
            log.lines().any(destroyed).then_some(())
        });
        let log = std::fs::read_to_string(processes.path("rep.log")).unwrap();
        assert!(!log.contains("without effect"), "{log}");
        assert!(!log.contains("failed-health-check"), "{log}");
        assert!(log.contains(r#""message":"rep.started""#), "{log}");
        assert_eq!(processes.listed(&["cell-states"])[0]["cell_index"], 7);
        // As the scripts that drain a cell call it.
        let admin = processes.addresses["rep-admin"];
        let mut curl = Command::new("curl");
        curl.args(["-sS", "--fail", "--insecure", "--cert"]).arg(processes.path("cert"));
        curl.arg("--key").arg(processes.path("key"));
        Answer::of(curl.arg(format!("https://{admin}/ping"))).worked();
        let plain =
            Answer::of(Command::new("curl").args(["-sS", "--fail"]).arg(format!("http://{admin}/ping")));
        assert_ne!(plain.code, 0, "{plain:?}");
        a_task_runs(processes);
        assert!(processes.path("of-many/others").exists(), "a directory for everybody stays everybody's");
    });
}

fn what_operators_ask_is_answered(processes: &mut Processes) {
    assert_eq!(processes.listed(&["domains"]), [json!("stories")]);
    assert_eq!(processes.listed(&["cell", "cell-1"])[0]["zone"], "z1");
    let state = &processes.listed(&["cell-states"])[0];
    assert_eq!(state["LRPs"][0]["process_guid"], "web", "{state}");
    assert_eq!(processes.listed(&["presences"])[0]["key"], "cell-1");
    assert_eq!(processes.listed(&["locks"])[0]["key"], "auctioneer");
    assert_eq!(processes.listed(&["desired-lrp-scheduling-infos"])[0]["instances"], 1);
    processes.cfdot(&["claim-lock", "-k", "mine", "-o", "me", "-v", "x", "-t", "60"]).worked();
    processes.cfdot(&["claim-lock", "-k", "mine", "-o", "other", "-t", "60"]).refused(4, &["lock-collision"]);
    processes.cfdot(&["release-lock", "-k", "mine", "-o", "me"]).worked();
    processes.cfdot(&["create-desired-lrp", &web().to_string()]).refused(4, &["Message: "]);
    processes.cfdot(&["task", "nothing"]).refused(4, &["Message: "]);
    a_task_runs(processes);
    std::fs::write(processes.path("static/file"), "of the file server").unwrap();
    let file = get(processes.addresses["file-server"], "/v1/static/file").unwrap();
    assert!(file.ends_with("of the file server"), "{file}");
}

fn a_task_runs(processes: &mut Processes) {
    let task = json!({
        "task_guid": "once", "domain": "stories", "rootfs": "preloaded:busybox", "log_guid": "once",
        "memory_mb": 64, "disk_mb": 64, "result_file": "/tmp/result",
        "action": { "run": { "path": "/bin/sh", "args": ["-c", "echo done > /tmp/result"], "user": "root" } },
    });
    processes.cfdot(&["create-task", &task.to_string()]).worked();
    let ended = processes.until("the Task is completed", |processes| {
        processes.listed(&["tasks", "-d", "stories"]).into_iter().find(|task| task["state"] == "Completed")
    });
    assert_eq!((&ended["failed"], &ended["result"]), (&json!(false), &json!("done\n")), "{ended}");
    processes.cfdot(&["delete-task", "once"]).worked();
    assert_eq!(processes.listed(&["tasks"]), Vec::<Value>::new());
}

#[test]
fn a_process_that_cannot_start_says_why_in_one_line() {
    if !require_root("a_process_that_cannot_start_says_why_in_one_line") {
        return;
    }
    let processes = Processes::new();
    let refused = |name: &str, flags: &[&str], says: &[&str]| {
        let answer = Answer::of(Command::new(processes.path(name)).args(flags).stdin(Stdio::null()));
        answer.refused(1, &[&format!("{name}: ")]);
        answer.refused(1, says);
        assert_eq!(answer.stderr.lines().count(), 1, "{answer:?}");
    };
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = format!("--listen={}", taken.local_addr().unwrap());
    let database = processes.flag("database", processes.path("locket.sqlite"));
    refused("locket", &[&taken, &database], &["another process listens there"]);
    refused("locket", &["--listen=127.0.0.1:0", "--database=/proc/nowhere/x"], &["/proc/nowhere/x"]);
    refused("auctioneer", &["--listen=127.0.0.1:0", "--bbs-url=nowhere"], &["http://"]);
    let pair = ["--cert-file=/nowhere/cert", "--key-file=/nowhere/key"];
    refused("auctioneer", &pair, &["/nowhere/"]);
    refused("file-server", &["--static-dir=/nowhere"], &["/nowhere"]);
}

#[test]
fn cfdot_ends_with_the_codes_that_scripts_know() {
    if !require_root("cfdot_ends_with_the_codes_that_scripts_know") {
        return;
    }
    let processes = Processes::new();
    let plain = |arguments: &[&str]| {
        Answer::of(Command::new(processes.path("cfdot")).args(arguments).env_remove("BBS_URL"))
    };
    plain(&["cells"]).explained(3, &["BBS URL not set", "--bbsURL", "BBS_URL"]);
    plain(&["locks"]).explained(3, &["Locket API Location not set"]);
    plain(&["cells", "--bbsURL", "bbs:8889"]).explained(3, &["'bbs:8889' does not have an 'https' scheme"]);
    plain(&["cells", "--bbsURL", "127.0.0.1:8889"])
        .explained(3, &["'127.0.0.1:8889' is not a valid BBS URL"]);
    plain(&["cells", "--bbsURL", "https://bbs:8889"]).explained(3, &["--caCertFile must be specified"]);
    plain(&["create-desired-lrp", "{", "--bbsURL", "http://bbs:8889"]).explained(3, &["Invalid JSON"]);
    plain(&["no-such-command"])
        .explained(255, &["Error: unknown command \"no-such-command\" for \"cfdot\"", "Usage:"]);
    plain(&["cells", "--no-such-flag"]).explained(255, &["Error: unknown flag: --no-such-flag"]);
    plain(&["cell"]).explained(3, &["Error: Missing arguments", "cfdot cell CELL_ID [flags]"]);
    plain(&["help", "no-such-command"]).explained(3, &["'no-such-command' is not a valid command"]);
    plain(&["actual-lrp-groups"]).explained(3, &["Command \"actual-lrp-groups\" is deprecated"]);
    for asked in [&["--help"] as &[&str], &[], &["help", "locks"]] {
        let answer = plain(asked).worked();
        assert!(answer.stderr.is_empty() && answer.stdout.contains("Usage:\n  cfdot "), "{answer:?}");
    }
    let told = |name: &str, value: &str| {
        let mut command = Command::new(processes.path("cfdot"));
        Answer::of(command.args(["cells", "--bbsURL", "https://bbs:8889"]).env(name, value))
    };
    told("SKIP_CERT_VERIFY", "maybe").explained(3, &["'maybe' is not a valid value for SKIP_CERT_VERIFY"]);
    told("CFDOT_TIMEOUT", "soon").explained(255, &["CFDOT_TIMEOUT"]);
    processes.cfdot(&["cells"]).explained(5, &["cannot reach the BBS"]);
    processes.cfdot(&["cell-states"]).explained(4, &["BBS error: Failed to get cell registrations from BBS"]);
    processes.cfdot(&["task-events"]).explained(4, &["BBS error\nType 0: UnknownError"]);
    processes.cfdot(&["claim-lock"]).explained(3, &["key cannot be empty"]);
    processes.cfdot(&["locks"]).explained(4, &["context deadline exceeded: cannot reach Locket"]);
}
