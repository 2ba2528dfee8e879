//! The ssh daemon against OpenSSH's own clients, on the loopback interface.

use rustix::{
    process::{Pid, Signal, kill_process},
    pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt},
    termios::{Winsize, tcsetwinsize},
};
use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

struct Daemon {
    process: Child,
    port: u16,
    directory: tempfile::TempDir,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

/// Whether OpenSSH's clients are there; says so when not.
fn clients(test: &str) -> bool {
    let there =
        ["ssh", "scp", "sftp", "ssh-keygen"].iter().all(|name| Path::new("/usr/bin").join(name).exists());
    if !there {
        println!("SKIPPED {test}: no OpenSSH client");
    }
    there
}

/// A key pair; `kind` is what `ssh-keygen` is told of it.
fn new_key(kind: &[&str], path: &Path) {
    let made = Command::new("ssh-keygen").arg("-q").args(kind).args(["-N", "", "-f"]).arg(path).status();
    assert!(made.unwrap().success());
}

impl Daemon {
    fn start(flags: &[&str]) -> Daemon {
        let directory = tempfile::tempdir().unwrap();
        new_key(&["-t", "ed25519"], &directory.path().join("key"));
        Daemon::start_in(directory, flags)
    }

    /// Lets the key in the directory in.
    fn start_in(directory: tempfile::TempDir, flags: &[&str]) -> Daemon {
        let authorized = fs::read_to_string(directory.path().join("key.pub")).unwrap();
        let mut process = Command::new(env!("CARGO_BIN_EXE_diego-sshd"))
            .args(["-address=127.0.0.1:0", &format!("-authorizedKey={authorized}")])
            .args(flags)
            .env("HOME", directory.path())
            .env("USER", "vcap")
            .env("FROM_DAEMON", "yes")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut output = BufReader::new(process.stdout.take().unwrap());
        output.read_line(&mut line).unwrap();
        // The rest of the log must be read, or the daemon would one day wait for it to be.
        std::thread::spawn(move || std::io::copy(&mut output, &mut std::io::sink()));
        let started: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(started["message"], "sshd.started", "{line}");
        let address = started["data"]["address"].as_str().unwrap();
        let port = address.rsplit(':').next().unwrap().parse().unwrap();
        Daemon { process, port, directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A client's command, with the options all of them take.
    fn client(&self, program: &str) -> Command {
        let port = if program == "ssh" { "-p" } else { "-P" };
        let mut command = Command::new(program);
        command
            .args(["-F", "/dev/null", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"])
            .args(["-o", "LogLevel=ERROR", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-i"])
            .arg(self.path("key"))
            .args([port, &self.port.to_string()]);
        command
    }

    fn ssh(&self, words: &[&str]) -> Command {
        let (options, command) =
            words.split_at(words.iter().take_while(|word| word.starts_with('-')).count());
        let mut ssh = self.client("ssh");
        ssh.args(options).arg("vcap@127.0.0.1").args(command);
        ssh
    }
}

fn run(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
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

fn checked(command: &mut Command) -> Output {
    let output = run(command);
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

#[test]
fn a_command_gives_its_output_and_exit_code() {
    if !clients("a_command_gives_its_output_and_exit_code") {
        return;
    }
    let daemon = Daemon::start(&[]);
    let output = run(&mut daemon.ssh(&["echo out; echo err >&2; exit 7"]));
    assert_eq!(output.status.code(), Some(7));
    assert_eq!(stdout(&output), "out\n");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "err\n");
    assert!(run(&mut daemon.ssh(&["true"])).status.success());
    // A command killed by a signal: the client shows 255.
    assert_eq!(run(&mut daemon.ssh(&["kill -TERM $$"])).status.code(), Some(255));
}

#[test]
fn the_environment_is_the_daemons_only_when_inherited() {
    if !clients("the_environment_is_the_daemons_only_when_inherited") {
        return;
    }
    let show = "echo $HOME $USER $FROM_DAEMON $LC_MINE $PATH $SSHD_HOSTKEY $SSHD_AUTHKEY";
    for (flags, inherited) in [(&[][..], ""), (&["-inheritDaemonEnv"][..], "yes ")] {
        let daemon = Daemon::start(flags);
        let output = checked(daemon.ssh(&["-oSendEnv=LC_MINE", show]).env("LC_MINE", "mine"));
        let expected = format!("{} vcap {inherited}mine /bin:/usr/bin\n", daemon.directory.path().display());
        assert_eq!(stdout(&output), expected);
    }
}

#[test]
fn keys_are_not_shown_in_the_process_list() {
    if !clients("keys_are_not_shown_in_the_process_list") {
        return;
    }
    let daemon = Daemon::start(&[]);
    let line = fs::read_to_string(format!("/proc/{}/cmdline", daemon.process.id())).unwrap();
    assert!(!line.contains("Key=") && line.contains("--address=127.0.0.1:0"), "{line}");
}

#[test]
fn only_the_authorized_key_opens() {
    if !clients("only_the_authorized_key_opens") {
        return;
    }
    let daemon = Daemon::start(&[]);
    let other = daemon.path("other");
    new_key(&["-t", "ed25519"], &other);
    fs::rename(&other, daemon.path("key")).unwrap();
    let output = run(&mut daemon.ssh(&["true"]));
    assert_eq!(output.status.code(), Some(255));
    assert!(String::from_utf8_lossy(&output.stderr).contains("Permission denied"));
}

#[test]
fn rsa_keys_serve_as_clients_of_today_use_them() {
    if !clients("rsa_keys_serve_as_clients_of_today_use_them") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let host = directory.path().join("host");
    let pem = ["-t", "rsa", "-b", "2048", "-m", "PEM"];
    new_key(&pem, &host);
    new_key(&pem, &directory.path().join("key"));
    let host = fs::read_to_string(host).unwrap();
    assert!(host.starts_with("-----BEGIN RSA PRIVATE KEY-----"));
    let daemon = Daemon::start_in(directory, &[&format!("-hostKey={host}")]);
    checked(&mut daemon.ssh(&["true"]));
    for algorithm in ["rsa-sha2-256", "rsa-sha2-512"] {
        let host = format!("-oHostKeyAlgorithms={algorithm}");
        let user = format!("-oPubkeyAcceptedAlgorithms={algorithm}");
        checked(&mut daemon.ssh(&[&host, &user, "true"]));
    }
}

#[test]
fn input_is_carried_whole_and_in_order() {
    if !clients("input_is_carried_whole_and_in_order") {
        return;
    }
    let daemon = Daemon::start(&[]);
    let input: Vec<u8> = (0..8_000_000u32).map(|n| ((n * 31) >> 3) as u8).collect();
    let output = run_with_input(&mut daemon.ssh(&["cat"]), &input);
    assert!(output.status.success());
    assert!(output.stdout == input, "{} of {} bytes", output.stdout.len(), input.len());
}

#[test]
fn a_terminal_is_given_when_asked_for() {
    if !clients("a_terminal_is_given_when_asked_for") {
        return;
    }
    let daemon = Daemon::start(&[]);
    let output =
        checked(daemon.ssh(&["-tt", "tty; echo $TERM; ps -o tpgid= -o pgid= -p $$"]).env("TERM", "vt220"));
    let text = stdout(&output);
    assert!(text.starts_with("/dev/pts/"), "{text:?}");
    assert!(text.contains("\r\nvt220\r\n"), "{text:?}");
    let output = run(&mut daemon.ssh(&["-T", "tty"]));
    assert_eq!(stdout(&output), "not a tty\n");
    let output = run(&mut daemon.ssh(&["-tt", "exit 9"]));
    assert_eq!(output.status.code(), Some(9));
}

#[test]
fn a_shell_runs_what_is_typed() {
    if !clients("a_shell_runs_what_is_typed") {
        return;
    }
    let daemon = Daemon::start(&[]);
    let output = run_with_input(&mut daemon.ssh(&["-tt"]), b"echo $((6*7)); exit 3\n");
    assert!(stdout(&output).contains("\r42\r\n"), "{:?}", stdout(&output));
    assert_eq!(output.status.code(), Some(3));
    let output = run_with_input(&mut daemon.ssh(&["-T"]), b"echo plain\nexit 4\n");
    assert_eq!((stdout(&output).as_str(), output.status.code()), ("plain\n", Some(4)));
}

#[test]
fn a_background_process_does_not_hold_a_terminal_open() {
    if !clients("a_background_process_does_not_hold_a_terminal_open") {
        return;
    }
    let daemon = Daemon::start(&[]);
    let started = Instant::now();
    checked(&mut daemon.ssh(&["-tt", "trap '' HUP; sleep 20 & echo started"]));
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
}

#[test]
fn a_terminal_follows_the_clients_size() {
    if !clients("a_terminal_follows_the_clients_size") {
        return;
    }
    let daemon = Daemon::start(&[]);
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY;
    let terminal = openpt(flags).unwrap();
    unlockpt(&terminal).unwrap();
    let resize = |ws_row, ws_col| {
        let size = Winsize { ws_row, ws_col, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&terminal, size).unwrap();
    };
    resize(24, 80);
    let peer = ioctl_tiocgptpeer(&terminal, flags).unwrap();
    let wait = "stty size; while [ \"$(stty size)\" = '24 80' ]; do sleep 0.05; done; stty size";
    let mut ssh = daemon.ssh(&["-tt", wait]).stdin(peer).stdout(Stdio::piped()).spawn().unwrap();
    let mut output = BufReader::new(ssh.stdout.take().unwrap());
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    assert_eq!(line.trim_end(), "24 80");
    resize(50, 132);
    kill_process(Pid::from_child(&ssh), Signal::WINCH).unwrap();
    line.clear();
    output.read_line(&mut line).unwrap();
    assert_eq!(line.trim_end(), "50 132");
    assert!(ssh.wait().unwrap().success());
}

#[test]
fn keepalives_are_answered_while_nothing_else_passes() {
    if !clients("keepalives_are_answered_while_nothing_else_passes") {
        return;
    }
    let daemon = Daemon::start(&[]);
    // A client that gets no answer leaves after two seconds.
    let often = ["-oServerAliveInterval=1", "-oServerAliveCountMax=1", "sleep 4; echo there"];
    assert_eq!(stdout(&checked(&mut daemon.ssh(&often))), "there\n");
}

fn tree(root: &Path) {
    fs::create_dir_all(root.join("d/e")).unwrap();
    fs::write(root.join("a"), vec![7; 300_000]).unwrap();
    fs::write(root.join("d/b c"), "text").unwrap();
    fs::set_permissions(root.join("d/b c"), fs::Permissions::from_mode(0o640)).unwrap();
    fs::write(root.join("d/e/empty"), "").unwrap();
}

fn same(one: &Path, other: &Path) {
    let output = checked(Command::new("diff").arg("-r").args([one, other]));
    assert_eq!(stdout(&output), "");
    let mode = |root: &Path| root.join("d/b c").metadata().unwrap().permissions().mode();
    assert_eq!(mode(one), mode(other));
}

#[test]
fn files_are_copied_both_ways_by_both_protocols() {
    if !clients("files_are_copied_both_ways_by_both_protocols") {
        return;
    }
    let daemon = Daemon::start(&[]);
    let local = daemon.path("local");
    tree(&local);
    for protocol in ["-O", "-s"] {
        let there = daemon.path(&format!("there{protocol}"));
        let back = daemon.path(&format!("back{protocol}"));
        let remote = |path: &Path| format!("vcap@127.0.0.1:{}", path.display());
        checked(daemon.client("scp").args(["-r", "-p", protocol]).arg(&local).arg(remote(&there)));
        same(&local, &there);
        checked(daemon.client("scp").args(["-r", "-p", protocol]).arg(remote(&there)).arg(&back));
        same(&local, &back);
        let missing = run(daemon.client("scp").arg(protocol).arg(remote(&daemon.path("none"))).arg(&back));
        assert!(!missing.status.success());
        assert!(String::from_utf8_lossy(&missing.stderr).contains("No such file or directory"));
    }
    // A pattern is the daemon's to expand.
    let picked = daemon.path("picked");
    fs::create_dir(&picked).unwrap();
    checked(
        daemon.client("scp").args(["-O", &format!("vcap@127.0.0.1:{}/[a]*", local.display())]).arg(&picked),
    );
    assert_eq!(fs::read(picked.join("a")).unwrap().len(), 300_000);
}

#[test]
fn rsync_copies_both_ways() {
    if !clients("rsync_copies_both_ways") {
        return;
    }
    if !Path::new("/usr/bin/rsync").exists() {
        println!("SKIPPED rsync_copies_both_ways: no rsync");
        return;
    }
    let daemon = Daemon::start(&[]);
    let [local, there, back] = ["local", "there", "back"].map(|name| daemon.path(name));
    tree(&local);
    let shell = daemon.client("ssh");
    let words = shell.get_args().map(|word| word.to_str().unwrap()).collect::<Vec<_>>().join(" ");
    let contents = |root: &Path| format!("{}/", root.display());
    let remote = |root: &Path| format!("vcap@127.0.0.1:{}/", root.display());
    let rsync = |from: &str, to: &str| {
        checked(Command::new("rsync").args(["-az", "-e", &format!("ssh {words}"), from, to]));
    };
    rsync(&contents(&local), &remote(&there));
    same(&local, &there);
    // What has changed alone is sent, to the same end.
    fs::write(local.join("a"), vec![8; 300_001]).unwrap();
    rsync(&contents(&local), &remote(&there));
    rsync(&remote(&there), &contents(&back));
    same(&local, &back);
}

#[test]
fn sftp_works_as_people_use_it() {
    if !clients("sftp_works_as_people_use_it") {
        return;
    }
    let daemon = Daemon::start(&[]);
    tree(&daemon.path("local"));
    let batch = format!(
        "cd {0}/local\nls -l\nmkdir new\nput {0}/key.pub new/k\nrename new/k new/l\nln -s l new/m\nchmod 600 new/l\nget new/l {0}/fetched\nrm new/m\ndf -h .\npwd\nrm new/l\nrmdir new\n",
        daemon.directory.path().display()
    );
    let batch = batch.replace("df -h .\n", "");
    let output = run_with_input(daemon.client("sftp").args(["-b", "-", "vcap@127.0.0.1"]), batch.as_bytes());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(fs::read(daemon.path("fetched")).unwrap(), fs::read(daemon.path("key.pub")).unwrap());
    assert!(!daemon.path("local/new").exists());
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
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

/// Answers one connection with its own input, upside down.
fn echo_server() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut input = Vec::new();
            stream.read_to_end(&mut input).unwrap();
            input.reverse();
            stream.write_all(&input).unwrap();
        }
    });
    port
}

fn ask(port: u16) -> String {
    let mut stream = connect(port);
    stream.write_all(b"hello").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn ports_are_forwarded_both_ways() {
    if !clients("ports_are_forwarded_both_ways") {
        return;
    }
    let daemon = Daemon::start(&[]);
    let target = echo_server();
    for direction in ["-L", "-R"] {
        let port = free_port();
        let forward = format!("{direction}127.0.0.1:{port}:127.0.0.1:{target}");
        let mut ssh =
            daemon.ssh(&["-N", "-oExitOnForwardFailure=yes", &forward]).stdin(Stdio::null()).spawn().unwrap();
        assert_eq!(ask(port), "olleh", "{direction}");
        assert_eq!(ask(port), "olleh", "{direction}");
        ssh.kill().unwrap();
        ssh.wait().unwrap();
    }
}

/// Asks a SOCKS proxy for a port of this machine.
fn socks(proxy: u16, port: u16) -> TcpStream {
    let mut stream = connect(proxy);
    stream.write_all(&[5, 1, 0]).unwrap();
    let mut method = [0; 2];
    stream.read_exact(&mut method).unwrap();
    assert_eq!(method, [5, 0]);
    let [high, low] = port.to_be_bytes();
    stream.write_all(&[5, 1, 0, 1, 127, 0, 0, 1, high, low]).unwrap();
    let mut answer = [0; 10];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(answer[..2], [5, 0]);
    stream
}

#[test]
fn a_dynamic_forward_leads_where_each_connection_wants() {
    if !clients("a_dynamic_forward_leads_where_each_connection_wants") {
        return;
    }
    let daemon = Daemon::start(&[]);
    let port = free_port();
    let mut ssh = daemon.ssh(&["-N", &format!("-D127.0.0.1:{port}")]).stdin(Stdio::null()).spawn().unwrap();
    for target in [echo_server(), echo_server()] {
        let mut stream = socks(port, target);
        stream.write_all(b"hello").unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "olleh");
    }
    ssh.kill().unwrap();
    ssh.wait().unwrap();
}

#[test]
fn a_forwarded_connection_carries_much_both_ways_at_once() {
    if !clients("a_forwarded_connection_carries_much_both_ways_at_once") {
        return;
    }
    let daemon = Daemon::start(&[]);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut same = stream.try_clone().unwrap();
        std::io::copy(&mut stream, &mut same).unwrap();
        same.shutdown(std::net::Shutdown::Write).unwrap();
    });
    let port = free_port();
    let forward = format!("-L127.0.0.1:{port}:127.0.0.1:{target}");
    let mut ssh = daemon.ssh(&["-N", &forward]).stdin(Stdio::null()).spawn().unwrap();
    let mut stream = connect(port);
    let data: Vec<u8> = (0..16_000_000u32).map(|n| ((n * 31) >> 3) as u8).collect();
    let (mut sending, sent) = (stream.try_clone().unwrap(), data.clone());
    let feeding = std::thread::spawn(move || {
        sending.write_all(&sent).unwrap();
        sending.shutdown(std::net::Shutdown::Write).unwrap();
    });
    let mut back = Vec::new();
    stream.read_to_end(&mut back).unwrap();
    feeding.join().unwrap();
    assert!(back == data, "{} of {} bytes", back.len(), data.len());
    ssh.kill().unwrap();
    ssh.wait().unwrap();
}

#[test]
fn one_connection_carries_many_sessions() {
    if !clients("one_connection_carries_many_sessions") {
        return;
    }
    let daemon = Daemon::start(&[]);
    let control = format!("-oControlPath={}", daemon.path("control").display());
    let mut master = daemon.ssh(&["-N", "-M", &control]).stdin(Stdio::null()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while !daemon.path("control").exists() {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(20));
    }
    // One session whose output nobody reads must not keep the others waiting.
    let mut stalled =
        daemon.ssh(&[&control, "cat /dev/zero"]).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    for n in 0..10 {
        let output = checked(&mut daemon.ssh(&[&control, &format!("echo {n}")]));
        assert_eq!(stdout(&output), format!("{n}\n"));
    }
    stalled.kill().unwrap();
    stalled.wait().unwrap();
    master.kill().unwrap();
    master.wait().unwrap();
}
