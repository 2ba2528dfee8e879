//! What a process spec may say, part by part, as a process in a container finds it: needs what `containers` needs.

#[allow(dead_code)]
#[macro_use]
mod world;

use garden_client::{ProcessIo, ProcessSpec, ResourceLimits, TtySpec};
use garden_sys::process::ResourceLimit;
use tokio::io::AsyncReadExt;
use world::{sh, user_sh};

/// Name in `/proc/self/limits`, soft and hard.
fn limits(text: &str) -> Vec<(String, String, String)> {
    let column =
        |line: &str, from: usize, to: usize| line.get(from..to).unwrap_or_default().trim().to_owned();
    text.lines()
        .skip(1)
        .map(|line| (column(line, 0, 26), column(line, 26, 47), column(line, 47, 68)))
        .collect()
}

fn has_capability(number: u32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
    u64::from_str_radix(line.trim(), 16).unwrap() & (1 << number) != 0
}

const LIMITS: &str = "cat /proc/self/limits";

#[tokio::test(flavor = "multi_thread")]
async fn every_resource_limit_holds_soft_and_hard_even_beyond_gardens_own() {
    let world = world!("every_resource_limit_holds_soft_and_hard_even_beyond_gardens_own");
    let container = world.start(world.spec()).await;
    let rlimits = ResourceLimits {
        address_space: Some(1 << 40),
        core: Some(24),
        cpu: Some(36),
        data: Some(1 << 36),
        fsize: Some(1 << 20),
        locks: Some(111),
        memlock: Some(1 << 41),
        msgqueue: Some(1 << 30),
        nice: Some(33),
        nofile: Some(222),
        nproc: Some(1 << 22),
        rss: Some(888),
        rtprio: Some(77),
        sigpending: Some(1 << 21),
        stack: Some(1 << 23),
    };
    // Root alone is not enough for it: where its power is cut, limits are held to garden's own.
    let may_raise = has_capability(24);
    if !may_raise {
        println!("SKIPPED the part beyond garden's own: needs CAP_SYS_RESOURCE");
    }
    let own = limits(&std::fs::read_to_string("/proc/self/limits").unwrap());
    let own_hard = |name: &str| {
        let found = own.iter().find(|(other, _, _)| other == name);
        found.and_then(|(_, _, hard)| hard.parse().ok()).unwrap_or(u64::MAX)
    };
    for user in ["root", "alice"] {
        let got = world.run(&container, &ProcessSpec { rlimits, ..user_sh(user, LIMITS) }).await;
        let got = limits(&got.stdout);
        for (name, expected) in [
            ("Max address space", 1_u64 << 40),
            ("Max core file size", 24),
            ("Max cpu time", 36),
            ("Max data size", 1 << 36),
            ("Max file size", 1 << 20),
            ("Max file locks", 111),
            ("Max locked memory", 1 << 41),
            ("Max msgqueue size", 1 << 30),
            ("Max nice priority", 33),
            ("Max open files", 222),
            ("Max processes", 1 << 22),
            ("Max resident set", 888),
            ("Max realtime priority", 77),
            ("Max pending signals", 1 << 21),
            ("Max stack size", 1 << 23),
        ] {
            let expected = if may_raise { expected } else { expected.min(own_hard(name)) }.to_string();
            let found = got.iter().find(|(other, _, _)| other == name);
            let (_, soft, hard) = found.unwrap_or_else(|| panic!("{name}: {got:?}"));
            assert_eq!((soft, hard), (&expected, &expected), "{user}: {name}");
        }
    }
    world.end(container).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_asks_for_no_limit_has_gardens_own() {
    let world = world!("a_process_that_asks_for_no_limit_has_gardens_own");
    let container = world.start(world.spec()).await;
    let own = limits(&std::fs::read_to_string("/proc/self/limits").unwrap());
    let inside = limits(&world.output(&container, LIMITS).await);
    assert_eq!(own.len(), inside.len());
    for (own, inside) in own.into_iter().zip(inside) {
        if own.0 == "Max open files" {
            assert_eq!(inside.1, inside.2);
        } else {
            assert_eq!(own, inside);
        }
    }
    let raise = "ulimit -H -l unlimited; ulimit -H -r 50";
    if ResourceLimit::get(libc::RLIMIT_RTPRIO as u32).unwrap().hard == 0 {
        assert_ne!(world.run(&container, &sh(raise)).await.status, 0, "nor can it raise it");
    }
    world.end(container).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_is_a_name_or_numbers_looked_up_inside() {
    let world = world!("a_user_is_a_name_or_numbers_looked_up_inside");
    let container = world.start(world.spec()).await;
    for (user, expected) in [
        ("", "0 0 0"),
        ("root", "0 0 0"),
        ("alice", "1000 1001 1001 7"),
        ("1000", "1000 1001 1001 7"),
        ("alice:seven", "1000 7 7"),
        ("alice:9", "1000 9 9"),
        ("1000:1000", "1000 1000 1000"),
        ("5:6", "5 6 6"),
        ("65534", "65534 0 0"),
    ] {
        let got = world.run(&container, &user_sh(user, "echo $(id -u) $(id -g) $(id -G)")).await;
        assert_eq!(got.stdout.trim(), expected, "{user}");
    }
    for (user, message) in [
        ("bob", "unable to find user bob: no matching entries in passwd file"),
        ("alice:nine", "unable to find group nine: no matching entries in group file"),
        ("-5", "unable to find user -5"),
        ("70000", "cannot become user 70000"),
    ] {
        let error = container.run(&user_sh(user, "true"), ProcessIo::default()).await.err().unwrap();
        assert!(error.to_string().contains(message), "{user}: {error}");
    }
    world.end(container).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_of_the_user_come_from_the_nearest_that_says_them() {
    let world = world!("names_of_the_user_come_from_the_nearest_that_says_them");
    let mut spec = world.spec();
    spec.env = vec!["USER=ppp".into(), "HOME=/home/ppp".into()];
    let container = world.start(spec).await;
    let show = "echo $USER $HOME $PATH";
    let check = async |user: &str, env: &[&str], expected: &str| {
        let env = env.iter().map(|entry| entry.to_string()).collect();
        let got = world.run(&container, &ProcessSpec { env, ..user_sh(user, show) }).await.stdout;
        assert!(got.starts_with(expected), "{user}: {got}");
    };
    check("", &[], "ppp /home/ppp /usr/local/sbin:").await;
    check("alice", &[], "ppp /home/ppp /usr/local/bin:").await;
    check("", &["USER=x"], "x /home/ppp").await;
    check("alice", &["USER=bob", "HOME=/b", "PATH=/bin:/x"], "bob /b /bin:/x").await;
    check("alice", &["NOT_USER=bob", "APATH=/x"], "ppp /home/ppp /usr/local/bin:/usr/bin:/bin").await;
    world.end(container).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_is_made_where_the_container_would_find_it() {
    let world = world!("a_directory_is_made_where_the_container_would_find_it");
    let outside = world.outside.join("target");
    std::fs::create_dir(&outside).unwrap();
    std::os::unix::fs::symlink(&outside, world.root.join("out")).unwrap();
    std::os::unix::fs::symlink("/tmp", world.root.join("in")).unwrap();
    let container = world.start(world.spec()).await;
    let at = |user: &str, dir: &str| ProcessSpec {
        dir: dir.into(),
        ..user_sh(user, "pwd -P; stat -c '%u %g %a' .")
    };
    for (user, dir, expected) in [
        ("alice", "", "/home/alice\n1000 1001"),
        ("root", "/", "/\n"),
        ("alice", "/made/by/alice", "/made/by/alice\n1000 1001 755"),
        ("root", "/made/by/root", "/made/by/root\n0 0 755"),
        ("alice", "relative/one", "/relative/one\n1000 1001 755"),
        ("alice", "/in/deep", "/tmp/deep\n1000 1001 755"),
    ] {
        let got = world.run(&container, &at(user, dir)).await;
        assert!(got.stdout.starts_with(expected), "{user} {dir}: {got:?}");
    }
    for dir in ["/out/foo/bar", "/etc/passwd", "/etc/passwd/x", "/proc/x"] {
        assert!(container.run(&at("alice", dir), ProcessIo::default()).await.is_err(), "{dir}");
    }
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
    world.end(container).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_names_one_running_process() {
    let world = world!("an_id_names_one_running_process");
    let container = world.start(world.spec()).await;
    let named = |id: &str, script: &str| ProcessSpec { id: id.into(), ..sh(script) };
    let wait = named("an id / with: anything ü", "sleep 1000");
    let at_once = futures_util::future::join_all((0..20).map(|_| container.run(&wait, ProcessIo::default())));
    let (started, refused): (Vec<_>, Vec<_>) = at_once.await.into_iter().partition(Result::is_ok);
    assert_eq!((started.len(), refused.len()), (1, 19));
    for error in refused.into_iter().filter_map(Result::err) {
        assert_eq!(error.to_string(), format!("process ID '{}' already in use", wait.id));
    }
    let attached = container.attach(&wait.id, ProcessIo::default()).unwrap();
    attached.signal(garden_client::Signal::Kill).await.unwrap();
    assert_eq!(attached.wait().await.unwrap(), 137);
    // A signal to what has ended is no error, and reaches nobody else.
    attached.signal(garden_client::Signal::Kill).await.unwrap();
    for status in [3, 4] {
        assert_eq!(world.run(&container, &named(&wait.id, &format!("exit {status}"))).await.status, status);
    }
    let first = container.run(&sh("true"), ProcessIo::default()).await.unwrap();
    let second = container.run(&sh("true"), ProcessIo::default()).await.unwrap();
    assert!(!first.id().is_empty() && first.id() != second.id());
    let error: garden_client::Error = container.attach("none", ProcessIo::default()).err().unwrap().into();
    assert_eq!(error, garden_client::Error::ProcessNotFound { process_id: "none".into() });
    world.end(container).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_who_are_attached_hear_the_same() {
    let world = world!("all_who_are_attached_hear_the_same");
    let container = world.start(world.spec()).await;
    let (mut first, stdout) = tokio::io::duplex(1 << 16);
    let (stdin, process_stdin) = tokio::io::duplex(64);
    let io = ProcessIo { stdin: Some(Box::new(process_stdin)), stdout: Some(Box::new(stdout)), stderr: None };
    let process = container.run(&sh("read go; echo out; echo err >&2; exit 6"), io).await.unwrap();
    let (mut second, stdout) = tokio::io::duplex(1 << 16);
    let (mut errors, stderr) = tokio::io::duplex(1 << 16);
    let io = ProcessIo { stdin: None, stdout: Some(Box::new(stdout)), stderr: Some(Box::new(stderr)) };
    let attached = container.attach(process.id(), io).unwrap();
    let mut stdin = stdin;
    tokio::io::AsyncWriteExt::write_all(&mut stdin, b"go\n").await.unwrap();
    assert_eq!((process.wait().await.unwrap(), attached.wait().await.unwrap()), (6, 6));
    let mut heard = [String::new(), String::new(), String::new()];
    first.read_to_string(&mut heard[0]).await.unwrap();
    second.read_to_string(&mut heard[1]).await.unwrap();
    errors.read_to_string(&mut heard[2]).await.unwrap();
    assert_eq!(heard, ["out\n", "out\n", "err\n"]);
    let late = container.attach(process.id(), ProcessIo::default()).unwrap();
    assert_eq!(late.wait().await.unwrap(), 6);
    world.end(container).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_without_input_finds_its_end_and_a_terminal_has_a_size() {
    let world = world!("a_process_without_input_finds_its_end_and_a_terminal_has_a_size");
    let container = world.start(world.spec()).await;
    assert_eq!(world.run(&container, &sh("cat; exit 2")).await.status, 2);
    assert_eq!(world.run(&container, &sh("test -t 0 || test -t 1 || test -t 2")).await.status, 1);
    let tty = ProcessSpec {
        tty: Some(TtySpec::default()),
        ..sh("test -t 0 && test -t 1 && test -t 2 && stty size")
    };
    let done = world.run(&container, &tty).await;
    assert_eq!((done.status, &done.stdout[..]), (0, "24 80\r\n"));
    // Its own session: the terminal is its, and what it starts in the background hears when it hangs up.
    let tty = ProcessSpec {
        tty: Some(TtySpec::default()),
        ..sh("echo here > /dev/tty; ps -o pid,sid | grep -q \"$$ *$$\"")
    };
    assert_eq!(world.run(&container, &tty).await.stdout, "here\r\n");
    world.end(container).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_begins_with_no_signal_blocked_or_ignored() {
    let world = world!("a_process_begins_with_no_signal_blocked_or_ignored");
    let container = world.start(world.spec()).await;
    let status = world.output(&container, "exec cat /proc/self/status").await;
    for name in ["SigBlk", "SigIgn", "SigPnd"] {
        assert!(status.contains(&format!("{name}:\t0000000000000000")), "{name} in {status}");
    }
    world.end(container).await;
}
