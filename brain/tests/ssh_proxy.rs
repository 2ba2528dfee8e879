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
    sync::Arc,
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

/// The daemon's program, built beside this test's.
fn daemon_program() -> PathBuf {
    let here = std::env::current_exe().unwrap();
    here.parent().and_then(Path::parent).unwrap().join("diego-sshd")
}

fn world(test: &str, change: impl FnOnce(&mut Config)) -> Option<World> {
    let program = daemon_program();
    if !program.exists() || !Path::new("/usr/bin/ssh").exists() {
        println!("SKIPPED {test}: no {} or no OpenSSH client", program.display());
        return None;
    }
    let host = keys::generate().unwrap();
    let user = keys::generate().unwrap();
    let mut daemon = Command::new(program)
        .arg("-address=127.0.0.1:0")
        .arg(format!("-hostKey={}", host.private_pem))
        .arg(format!("-authorizedKey={}", user.authorized_key))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let port = started_port(&mut daemon);
    let route = SshRoute {
        container_port: 2222,
        host_fingerprint: host.fingerprint,
        private_key: user.private_pem.clone(),
        ..Default::default()
    };
    let target = Target { host: "127.0.0.1".into(), port, route };
    let mut wrong_host = target.clone();
    wrong_host.route.host_fingerprint = user.fingerprint;
    let mut wrong_key = target.clone();
    wrong_key.route.private_key = host.private_pem;
    let mut nobody = target.clone();
    nobody.port = 1;
    let instances =
        [("app", target), ("wrong-host", wrong_host), ("wrong-key", wrong_key), ("nobody", nobody)];
    let instances = instances.map(|(guid, target)| ((guid.to_owned(), 0), target));
    let (listen, proxy) = Listen::loopback().unwrap();
    let mut config = Config::new(listen, Arc::new(Known(instances.into())));
    config.diego_credentials = Some(PASSWORD.to_owned());
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
