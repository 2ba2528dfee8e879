//! The ssh proxy between OpenSSH's own clients and the daemon of a container, on the loopback interface. The BBS is
//! replaced by what the test says.

use std::{
    collections::HashMap,
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use brain::ssh_proxy::{self, Config, FindError, Found, Instances, SshRoute, Target, keys};
use diego_base::serve::Listen;
use tokio_util::sync::CancellationToken;

const PASSWORD: &str = "user:p@ss word";

struct Known(HashMap<(String, u32), Target>);

#[async_trait::async_trait]
impl Instances for Known {
    async fn find(&self, process_guid: &str, index: u32) -> Result<Found, FindError> {
        let target = self.0.get(&(process_guid.to_owned(), index)).cloned();
        let none = || FindError::NoInstance(process_guid.to_owned(), index);
        Ok(Found { target: target.ok_or_else(none)?, instance_guid: "instance".to_owned() })
    }
}

/// A daemon, a proxy that knows it as `diego:app/0`, and what clients need.
struct World {
    daemon: Child,
    proxy: SocketAddr,
    shutdown: CancellationToken,
    serving: Option<std::thread::JoinHandle<()>>,
    directory: tempfile::TempDir,
}

impl Drop for World {
    fn drop(&mut self) {
        self.shutdown.cancel();
        self.serving.take().unwrap().join().unwrap();
        self.daemon.kill().unwrap();
        self.daemon.wait().unwrap();
    }
}

/// The keys of a daemon, of those who may enter it, and of the proxy.
struct Keys {
    host_pem: String,
    host_fingerprint: String,
    user_pem: String,
    authorized_key: String,
    proxy_pem: Option<String>,
}

impl Keys {
    fn new() -> Keys {
        let (host, user) = (keys::generate().unwrap(), keys::generate().unwrap());
        Keys {
            host_pem: host.private_pem,
            host_fingerprint: host.fingerprint,
            user_pem: user.private_pem,
            authorized_key: user.authorized_key,
            proxy_pem: None,
        }
    }

    /// As deployments have had them for long: RSA in PEM, and the fingerprint in MD5.
    fn of_old() -> Keys {
        let directory = tempfile::tempdir().unwrap();
        let pem = |name: &str| {
            let path = directory.path().join(name);
            let mut command = Command::new("ssh-keygen");
            command.args(["-q", "-t", "rsa", "-b", "2048", "-m", "PEM", "-N", "", "-f"]).arg(&path);
            assert!(command.status().unwrap().success());
            fs::read_to_string(path).unwrap()
        };
        let [host_pem, user_pem, proxy_pem] = ["host", "user", "proxy"].map(pem);
        assert!(proxy_pem.starts_with("-----BEGIN RSA PRIVATE KEY-----"));
        let mut command = Command::new("ssh-keygen");
        let printed = command.args(["-l", "-E", "md5", "-f"]).arg(directory.path().join("host")).output();
        let printed = text(&printed.unwrap().stdout);
        let fingerprint = printed.split_whitespace().nth(1).unwrap().strip_prefix("MD5:").unwrap();
        Keys {
            host_pem,
            host_fingerprint: fingerprint.to_owned(),
            user_pem,
            authorized_key: fs::read_to_string(directory.path().join("user.pub")).unwrap(),
            proxy_pem: Some(proxy_pem),
        }
    }
}

/// The daemon's program, built beside this test's.
fn daemon_program() -> PathBuf {
    let here = std::env::current_exe().unwrap();
    here.parent().and_then(Path::parent).unwrap().join("diego-sshd")
}

fn world(test: &str, change: impl FnOnce(&mut Config)) -> Option<World> {
    world_with(test, Keys::new, change)
}

fn world_with(test: &str, keys: fn() -> Keys, change: impl FnOnce(&mut Config)) -> Option<World> {
    let program = daemon_program();
    if !program.exists() || !Path::new("/usr/bin/ssh").exists() {
        println!("SKIPPED {test}: no {} or no OpenSSH client", program.display());
        return None;
    }
    let keys = keys();
    let mut daemon = Command::new(program)
        .arg("-address=127.0.0.1:0")
        .arg(format!("-hostKey={}", keys.host_pem))
        .arg(format!("-authorizedKey={}", keys.authorized_key))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let port = started_port(&mut daemon);
    let route = SshRoute {
        container_port: 2222,
        host_fingerprint: keys.host_fingerprint,
        private_key: keys.user_pem,
        ..Default::default()
    };
    let target = Target { host: "127.0.0.1".into(), port, route };
    let mut wrong_host = target.clone();
    wrong_host.route.host_fingerprint = keys::generate().unwrap().fingerprint;
    let mut wrong_key = target.clone();
    wrong_key.route.private_key = keys.host_pem;
    let mut nobody = target.clone();
    nobody.port = 1;
    let instances =
        [("app", target), ("wrong-host", wrong_host), ("wrong-key", wrong_key), ("nobody", nobody)];
    let instances = instances.map(|(guid, target)| ((guid.to_owned(), 0), target));
    let (listen, proxy) = Listen::loopback().unwrap();
    let mut config = Config::new(listen, Arc::new(Known(instances.into())));
    config.diego_credentials = Some(PASSWORD.to_owned());
    config.host_key = keys.proxy_pem;
    change(&mut config);
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    let serving = std::thread::spawn(move || {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(ssh_proxy::run(config, stop)).unwrap();
    });
    let directory = tempfile::tempdir().unwrap();
    let ask = directory.path().join("ask");
    fs::write(&ask, "#!/bin/sh\nprintf '%s\\n' \"$PASSWORD\"\n").unwrap();
    fs::set_permissions(&ask, fs::Permissions::from_mode(0o755)).unwrap();
    Some(World { daemon, proxy, shutdown, serving: Some(serving), directory })
}

fn started_port(daemon: &mut Child) -> u16 {
    let mut line = String::new();
    let mut output = BufReader::new(daemon.stdout.take().unwrap());
    output.read_line(&mut line).unwrap();
    // The rest of the log must be read, or the daemon would one day wait for it to be.
    std::thread::spawn(move || std::io::copy(&mut output, &mut std::io::sink()));
    let started: serde_json::Value = serde_json::from_str(&line).unwrap();
    started["data"]["address"].as_str().unwrap().rsplit(':').next().unwrap().parse().unwrap()
}

impl World {
    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn client(&self, program: &str, password: &str) -> Command {
        let port = if program == "ssh" { "-p" } else { "-P" };
        let mut command = Command::new(program);
        command
            .args(["-F", "/dev/null", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"])
            .args([
                "-o",
                "LogLevel=ERROR",
                "-o",
                "NumberOfPasswordPrompts=1",
                "-o",
                "PubkeyAuthentication=no",
            ])
            .args([port, &self.proxy.port().to_string()])
            .env("SSH_ASKPASS", self.path("ask"))
            .env("SSH_ASKPASS_REQUIRE", "force")
            .env("PASSWORD", password);
        command
    }

    fn ssh_as(&self, user: &str, password: &str, words: &[&str]) -> Command {
        let options = words.iter().take_while(|word| word.starts_with('-')).count();
        let mut ssh = self.client("ssh", password);
        ssh.args(&words[..options]).args(["-l", user, "127.0.0.1"]).args(&words[options..]);
        ssh
    }

    fn ssh(&self, words: &[&str]) -> Command {
        self.ssh_as("diego:app/0", PASSWORD, words)
    }
}

fn run(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap()
}

fn run_with_input(command: &mut Command, input: &[u8]) -> Output {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    let feeding = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().unwrap();
    // A command that does not read all of its input is no failure of the test.
    let _ = feeding.join().unwrap();
    output
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn checked(command: &mut Command) -> Output {
    let output = run(command);
    assert!(output.status.success(), "{command:?}: {}", text(&output.stderr));
    output
}

#[test]
fn commands_and_shells_work_through_the_proxy() {
    let Some(world) = world("commands_and_shells_work_through_the_proxy", |_| {}) else {
        return;
    };
    let output = run(&mut world.ssh(&["echo out; echo err >&2; exit 7"]));
    assert_eq!(output.status.code(), Some(7), "{}", text(&output.stderr));
    assert_eq!((text(&output.stdout).as_str(), text(&output.stderr).as_str()), ("out\n", "err\n"));
    let output = run_with_input(&mut world.ssh(&["-tt"]), b"echo $((6*7)) $TERM; exit 3\n");
    assert!(text(&output.stdout).contains("\r42 "), "{:?}", text(&output.stdout));
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(run(&mut world.ssh(&["kill -KILL $$"])).status.code(), Some(255));
    let output = run(world.ssh(&["-oSendEnv=LC_MINE", "echo $LC_MINE"]).env("LC_MINE", "mine"));
    assert_eq!(text(&output.stdout), "mine\n");
}

#[test]
fn keys_of_long_ago_serve_clients_of_today() {
    let Some(world) = world_with("keys_of_long_ago_serve_clients_of_today", Keys::of_old, |_| {}) else {
        return;
    };
    assert_eq!(text(&checked(&mut world.ssh(&["echo in"])).stdout), "in\n");
    for algorithm in ["rsa-sha2-256", "rsa-sha2-512"] {
        let host = format!("-oHostKeyAlgorithms={algorithm}");
        assert_eq!(text(&checked(&mut world.ssh(&[&host, "echo in"])).stdout), "in\n");
    }
}

#[test]
fn data_passes_whole_in_both_directions() {
    let Some(world) = world("data_passes_whole_in_both_directions", |_| {}) else {
        return;
    };
    let input: Vec<u8> = (0..8_000_000u32).map(|n| ((n * 31) >> 3) as u8).collect();
    let output = run_with_input(&mut world.ssh(&["cat"]), &input);
    assert!(output.status.success());
    assert!(output.stdout == input, "{} of {} bytes", output.stdout.len(), input.len());
}

#[test]
fn files_are_copied_by_both_protocols() {
    let Some(world) = world("files_are_copied_by_both_protocols", |_| {}) else {
        return;
    };
    let local = world.path("local");
    fs::create_dir_all(local.join("d")).unwrap();
    fs::write(local.join("d/f"), vec![7; 300_000]).unwrap();
    for protocol in ["-O", "-s"] {
        let there = world.path(&format!("there{protocol}"));
        let back = world.path(&format!("back{protocol}"));
        // A user with a colon needs the URI form.
        let remote = |path: &Path| {
            format!("scp://diego%3Aapp%2F0@127.0.0.1:{}/{}", world.proxy.port(), path.display())
        };
        checked(world.client("scp", PASSWORD).args(["-r", protocol]).arg(&local).arg(remote(&there)));
        checked(world.client("scp", PASSWORD).args(["-r", protocol]).arg(remote(&there)).arg(&back));
        assert_eq!(fs::read(back.join("d/f")).unwrap(), vec![7; 300_000], "{protocol}");
    }
}

#[test]
fn a_reader_that_comes_late_gets_everything() {
    let Some(world) = world("a_reader_that_comes_late_gets_everything", |_| {}) else {
        return;
    };
    let data: Vec<u8> = (0..64_000_000u32).map(|n| ((n * 31) >> 3) as u8).collect();
    let mut ssh = world.ssh(&["cat"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut input = ssh.stdin.take().unwrap();
    let sent = data.clone();
    let fed = Arc::new(AtomicUsize::new(0));
    let count = fed.clone();
    let feeding = std::thread::spawn(move || {
        for piece in sent.chunks(100_000) {
            input.write_all(piece).unwrap();
            count.fetch_add(piece.len(), Ordering::Relaxed);
        }
    });
    stands_still(&fed);
    assert!(fed.load(Ordering::Relaxed) < data.len(), "nothing has stopped the sender");
    let mut back = Vec::new();
    ssh.stdout.take().unwrap().read_to_end(&mut back).unwrap();
    feeding.join().unwrap();
    assert!(back == data, "{} of {} bytes", back.len(), data.len());
    assert!(ssh.wait().unwrap().success());
}

/// Waits until a count that has begun does not change any more.
fn stands_still(count: &AtomicUsize) {
    let (mut seen, mut since) = (0, Instant::now());
    while seen == 0 || since.elapsed() < Duration::from_millis(500) {
        let now = count.load(Ordering::Relaxed);
        if now != seen {
            (seen, since) = (now, Instant::now());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn connect(port: u16) -> TcpStream {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match TcpStream::connect(("127.0.0.1", port)) {
            Ok(stream) => return stream,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Answers with its input; its port.
fn echo() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let mut back = stream.try_clone().unwrap();
                // Whoever leaves first ends it.
                let _ = std::io::copy(&mut stream, &mut back);
                let _ = back.shutdown(std::net::Shutdown::Write);
            });
        }
    });
    port
}

/// Takes connections and leaves them alone; its port.
fn silent() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || listener.incoming().map(Result::unwrap).collect::<Vec<_>>());
    port
}

/// How many bytes a connection has taken of those that are sent as long as it takes some.
fn flood(mut stream: TcpStream) -> Arc<AtomicUsize> {
    let sent = Arc::new(AtomicUsize::new(0));
    let count = sent.clone();
    std::thread::spawn(move || {
        while let Ok(length @ 1..) = stream.write(&[7; 32 * 1024]) {
            count.fetch_add(length, Ordering::Relaxed);
        }
    });
    sent
}

fn hear_hello(mut stream: TcpStream) {
    // A test that has failed ends.
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream.write_all(b"hello").unwrap();
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"hello");
}

#[test]
fn a_forwarded_port_that_nobody_reads_keeps_no_other_waiting() {
    let change = |config: &mut Config| config.stalled_timeout = Duration::from_secs(2);
    let Some(world) = world("a_forwarded_port_that_nobody_reads_keeps_no_other_waiting", change) else {
        return;
    };
    let (silent, echo) = (silent(), echo());
    for direction in ["-L", "-R"] {
        let (stalled, busy) = (free_port(), free_port());
        let forward = |port, target| format!("{direction}127.0.0.1:{port}:127.0.0.1:{target}");
        let words = ["-N", &forward(stalled, silent), &forward(busy, echo)];
        let mut ssh = world.ssh(&words).stdin(Stdio::null()).spawn().unwrap();
        let there_before = connect(busy);
        hear_hello(there_before.try_clone().unwrap());
        stands_still(&flood(connect(stalled)));
        hear_hello(there_before);
        hear_hello(connect(busy));
        ssh.kill().unwrap();
        ssh.wait().unwrap();
    }
}

#[test]
fn a_session_that_nobody_reads_keeps_no_other_waiting() {
    let Some(world) = world("a_session_that_nobody_reads_keeps_no_other_waiting", |_| {}) else {
        return;
    };
    let control = format!("-oControlPath={}", world.path("control").display());
    let mut master = world.ssh(&["-N", "-M", &control]).stdin(Stdio::null()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while !world.path("control").exists() {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut stalled =
        world.ssh(&[&control, "cat /dev/zero"]).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut first = [0];
    stalled.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    for n in 0..10 {
        let output = checked(&mut world.ssh(&[&control, &format!("echo {n}")]));
        assert_eq!(text(&output.stdout), format!("{n}\n"));
    }
    for process in [&mut stalled, &mut master] {
        process.kill().unwrap();
        process.wait().unwrap();
    }
}

#[test]
fn ports_are_forwarded_both_ways() {
    let Some(world) = world("ports_are_forwarded_both_ways", |_| {}) else {
        return;
    };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut input = Vec::new();
            stream.read_to_end(&mut input).unwrap();
            input.reverse();
            stream.write_all(&input).unwrap();
        }
    });
    for direction in ["-L", "-R"] {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let forward = format!("{direction}127.0.0.1:{port}:127.0.0.1:{target}");
        let mut ssh =
            world.ssh(&["-N", "-oExitOnForwardFailure=yes", &forward]).stdin(Stdio::null()).spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut stream = loop {
            match TcpStream::connect(("127.0.0.1", port)) {
                Ok(stream) => break stream,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        stream.write_all(b"hello").unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "olleh", "{direction}");
        ssh.kill().unwrap();
        ssh.wait().unwrap();
    }
}

#[test]
fn who_may_not_enter_is_refused() {
    let Some(world) = world("who_may_not_enter_is_refused", |_| {}) else {
        return;
    };
    let app = "cf:01234567-89ab-cdef-0123-456789abcdef/0";
    for (user, password) in [
        ("diego:app/0", "wrong"),
        ("diego:app/1", PASSWORD),
        ("diego:unknown/0", PASSWORD),
        ("vcap", PASSWORD),
        (app, PASSWORD),
    ] {
        let output = run(&mut world.ssh_as(user, password, &["true"]));
        assert_eq!(output.status.code(), Some(255), "{user}");
        assert!(text(&output.stderr).contains("Permission denied"), "{user}: {}", text(&output.stderr));
    }
}

#[test]
fn an_instance_that_cannot_be_entered_is_explained() {
    let Some(world) = world("an_instance_that_cannot_be_entered_is_explained", |_| {}) else {
        return;
    };
    for (guid, words) in [
        ("wrong-host", "Host fingerprint mismatch"),
        ("wrong-key", "refused the key of the routing info"),
        ("nobody", "cannot connect to the instance: Connection refused"),
    ] {
        let output = run(&mut world.ssh_as(&format!("diego:{guid}/0"), PASSWORD, &["true"]));
        assert_eq!(output.status.code(), Some(255), "{guid}");
        assert!(text(&output.stderr).contains(words), "{guid}: {}", text(&output.stderr));
    }
}

#[test]
fn an_idle_connection_is_closed_but_a_terminal_is_not() {
    let Some(world) = world("an_idle_connection_is_closed_but_a_terminal_is_not", |config| {
        config.idle_timeout = Duration::from_secs(1);
    }) else {
        return;
    };
    let started = Instant::now();
    let output = run(&mut world.ssh(&["sleep 20"]));
    assert_eq!(output.status.code(), Some(255));
    assert!(started.elapsed() < Duration::from_secs(15));
    checked(&mut world.ssh(&["-tt", "sleep 4"]));
}

#[test]
fn the_end_of_the_daemon_ends_the_connection() {
    let Some(mut world) = world("the_end_of_the_daemon_ends_the_connection", |_| {}) else {
        return;
    };
    let mut ssh =
        world.ssh(&["echo in; sleep 20"]).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(ssh.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let started = Instant::now();
    world.daemon.kill().unwrap();
    assert!(!ssh.wait().unwrap().success());
    assert!(started.elapsed() < Duration::from_secs(15));
}
