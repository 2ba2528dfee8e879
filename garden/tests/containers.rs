//! Containers for real, on this machine's kernel: needs root, a static busybox, and `garden-init` beside the tests.
//!
//! No network and no image store: the root is a plain directory, bound. Each test has its own control-group parent and
//! asks at its end that nothing is left of it.

#[allow(dead_code)]
#[macro_use]
mod world;

use garden_client::{
    BindMount, Limits, MemoryLimits, PidLimits, ProcessIo, ProcessSpec, Signal, TtySpec, WindowSize,
};
use tokio::io::AsyncReadExt;
use world::{sh, user_sh};

#[tokio::test(flavor = "multi_thread")]
async fn a_process_says_how_it_ended() {
    let world = world!("a_process_says_how_it_ended");
    let container = world.start(world.spec()).await;
    for (script, expected) in [("exit 0", 0), ("exit 3", 3), ("kill -9 $$", 137), ("kill -15 $$", 143)] {
        assert_eq!(world.run(&container, &sh(script)).await.status, expected, "{script}");
    }
    world.end(container).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_streams_are_kept_apart() {
    let world = world!("the_streams_are_kept_apart");
    let container = world.start(world.spec()).await;
    let done = world.run_with(&container, &sh("cat; echo err >&2; echo more > /dev/stdout"), "in\n").await;
    assert_eq!((&done.stdout[..], &done.stderr[..], done.status), ("in\nmore\n", "err\n", 0));
    let done = world.run(&container, &user_sh("alice", "cat; echo mine > /dev/stderr")).await;
    assert_eq!((&done.stdout[..], &done.stderr[..], done.status), ("", "mine\n", 0));
    world.end(container).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_new_and_the_host_is_out_of_sight() {
    let world = world!("everything_is_new_and_the_host_is_out_of_sight");
    let container = world.start(world.spec()).await;
    for kind in ["user", "pid", "mnt", "ipc", "uts", "net", "cgroup"] {
        let inside = world.output(&container, &format!("readlink /proc/self/ns/{kind}")).await;
        let outside = std::fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
        assert_ne!(inside.trim(), outside.to_str().unwrap(), "{kind}");
    }
    let map = world.output(&container, "cat /proc/self/uid_map").await;
    assert_eq!(
        map.split_whitespace().collect::<Vec<_>>(),
        ["0", &world.base(&container).to_string(), "65536"]
    );
    assert_eq!(world.output(&container, "hostname").await.trim(), "the-handle");
    let processes = world.output(&container, "echo /proc/[0-9]*").await;
    assert_eq!(processes.split_whitespace().count(), 2, "pid 1 and the shell: {processes}");
    let mounts = world.output(&container, "cat /proc/self/mountinfo").await;
    assert!(!mounts.contains("/old") && mounts.lines().count() < 50, "{mounts}");
    assert_eq!(
        world
            .output(&container, "cat /proc/sys/kernel/random/boot_id > /dev/null; ls /dev")
            .await
            .split_whitespace()
            .collect::<Vec<_>>(),
        [
            "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout",
            "tty", "urandom", "zero"
        ]
    );
    assert_eq!(
        world
            .output(
                &container,
                "cat /sys/fs/cgroup/memory/cgroup.procs /sys/fs/cgroup/cgroup.procs 2>/dev/null | head -1"
            )
            .await
            .trim(),
        "1"
    );
    assert_eq!(
        world.output(&container, "ip -o link 2>/dev/null | grep -c 'lo:.*LOWER_UP'").await.trim(),
        "1"
    );
    world.end(container).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn power_is_given_up() {
    let world = world!("power_is_given_up");
    let container = world.start(world.spec()).await;
    let status = world.output(&container, "cat /proc/self/status").await;
    for line in
        ["CapBnd:\t00000000a80425fb", "CapEff:\t00000000a80425fb", "CapInh:\t0000000000000000", "Seccomp:\t2"]
    {
        assert!(status.contains(line), "{line} in {status}");
    }
    let status = world.run(&container, &user_sh("alice", "cat /proc/self/status; id")).await.stdout;
    for line in
        ["CapBnd:\t00000000a80425fb", "CapEff:\t0000000000000000", "uid=1000(alice) gid=1001 groups=7(seven)"]
    {
        assert!(status.contains(line), "{line} in {status}");
    }
    for script in [
        "mount -t tmpfs none /tmp",
        "umount /proc/kcore",
        "unshare -m true",
        "mount -o remount,rw /sys",
        "hostname x",
        "mknod /tmp/n b 8 0 && head -c1 /tmp/n",
    ] {
        assert_ne!(world.run(&container, &sh(script)).await.status, 0, "{script}");
    }
    world.end(container).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_tells_of_the_host_is_masked() {
    let world = world!("what_tells_of_the_host_is_masked");
    let container = world.start(world.spec()).await;
    for path in ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/interrupts"] {
        assert_eq!(
            world.output(&container, &format!("cat {path} 2>/dev/null | wc -c")).await.trim(),
            "0",
            "{path}"
        );
    }
    for path in ["/proc/scsi", "/proc/acpi", "/sys/firmware"] {
        assert_eq!(
            world.output(&container, &format!("ls {path} 2>/dev/null | wc -l")).await.trim(),
            "0",
            "{path}"
        );
    }
    for script in [
        "echo h > /proc/sysrq-trigger",
        "echo 1 > /proc/sys/kernel/panic",
        "touch /sys/x",
        "touch /sys/fs/cgroup/x",
        "echo > /proc/kcore && false",
    ] {
        assert_ne!(world.run(&container, &sh(script)).await.status, 0, "{script}");
    }
    world.end(container).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pid_1_can_be_neither_read_nor_overwritten_nor_killed() {
    let world = world!("pid_1_can_be_neither_read_nor_overwritten_nor_killed");
    let container = world.start(world.spec()).await;
    for script in [
        "readlink /proc/1/exe",
        "cat /proc/1/environ",
        "ls /proc/1/fd/",
        "cat /proc/1/exe > /tmp/stolen",
        "echo x > /proc/1/exe",
        "cat /proc/1/mem",
        "ls /proc/1/root/",
        "ls /proc/1/cwd/",
    ] {
        assert_ne!(world.run(&container, &sh(script)).await.status, 0, "{script}");
    }
    world.run(&container, &sh("kill -9 1; kill -STOP 1; kill -TERM 1; kill -INT 1; kill -SEGV 1")).await;
    assert_eq!(world.run(&container, &sh("exit 5")).await.status, 5);
    let descriptors = world.output(&container, "ls /proc/self/fd").await;
    assert_eq!(
        descriptors.split_whitespace().collect::<Vec<_>>(),
        ["0", "1", "2", "3"],
        "3 is the directory itself"
    );
    world.end(container).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_run_says_why() {
    let world = world!("what_cannot_be_run_says_why");
    let container = world.start(world.spec()).await;
    let check = async |spec: ProcessSpec, not_found: bool, message: &str| {
        let error: garden_client::Error =
            container.run(&spec, ProcessIo::default()).await.err().expect("an error").into();
        assert_eq!(matches!(error, garden_client::Error::ExecutableNotFound(_)), not_found, "{error}");
        assert!(error.to_string().contains(message), "{error}");
    };
    let path = |path: &str| ProcessSpec { path: path.into(), ..ProcessSpec::default() };
    check(path("no-such"), true, "exec: \"no-such\": executable file not found in $PATH").await;
    check(path("/bin/no-such"), true, "exec: \"/bin/no-such\": stat /bin/no-such: no such file or directory")
        .await;
    check(path("/etc/passwd"), false, "Permission denied").await;
    check(
        ProcessSpec { user: "bob".into(), ..sh("true") },
        false,
        "unable to find user bob: no matching entries in passwd file",
    )
    .await;
    check(ProcessSpec { dir: "/etc/passwd".into(), ..sh("true") }, false, "/etc/passwd").await;
    let same = ProcessSpec { id: "same".into(), ..sh("sleep 100") };
    container.run(&same, ProcessIo::default()).await.unwrap();
    check(same.clone(), false, "process ID 'same' already in use").await;
    world.end(container).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn environment_directory_and_limits_are_as_asked() {
    let world = world!("environment_directory_and_limits_are_as_asked");
    let mut spec = world.spec();
    spec.env = vec!["A=container".into(), "B=container".into()];
    let container = world.start(spec).await;
    let env = world
        .run(
            &container,
            &ProcessSpec { env: vec!["B=process".into()], ..user_sh("alice", "env | sort; pwd") },
        )
        .await
        .stdout;
    for line in [
        "A=container",
        "B=process",
        "HOME=/home/alice",
        "PATH=/usr/local/bin:/usr/bin:/bin",
        "USER=alice",
        "/home/alice",
    ] {
        assert!(env.lines().any(|other| other == line), "{line} in {env}");
    }
    let made =
        ProcessSpec { dir: "/made/deep".into(), ..user_sh("alice", "pwd; stat -c %u . ..; ulimit -n") };
    let mut made = made;
    made.rlimits.nofile = Some(77);
    assert_eq!(
        world.run(&container, &made).await.stdout.lines().collect::<Vec<_>>(),
        ["/made/deep", "1000", "1000", "77"]
    );
    made.rlimits.nofile = Some(u64::from(u32::MAX));
    assert_eq!(
        world.run(&container, &made).await.status,
        0,
        "a limit that cannot be raised is held to the hard one"
    );
    world.end(container).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_is_one() {
    let world = world!("a_terminal_is_one");
    let container = world.start(world.spec()).await;
    let size = WindowSize { columns: 99, rows: 33 };
    let script = "tty; stty size; read line; echo got $line; trap 'stty size; exit 4' WINCH; echo ready; while true; do sleep 0.1; done";
    let spec = ProcessSpec { tty: Some(TtySpec { window_size: Some(size) }), ..user_sh("alice", script) };
    let (mut input, stdin) = tokio::io::duplex(1024);
    let (mut output, stdout) = tokio::io::duplex(1 << 16);
    let io = ProcessIo { stdin: Some(Box::new(stdin)), stdout: Some(Box::new(stdout)), stderr: None };
    let process = container.run(&spec, io).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut input, b"hello\n").await.unwrap();
    let mut seen = String::new();
    while !seen.contains("ready") {
        let mut chunk = [0; 256];
        let length = output.read(&mut chunk).await.unwrap();
        assert!(length > 0, "{seen}");
        seen.push_str(&String::from_utf8_lossy(&chunk[..length]));
    }
    for part in ["/dev/pts/0\r\n", "33 99\r\n", "got hello\r\n"] {
        assert!(seen.contains(part), "{part:?} in {seen:?}");
    }
    process.set_window_size(WindowSize { columns: 50, rows: 20 }).await.unwrap();
    assert_eq!(process.wait().await.unwrap(), 4);
    let mut rest = String::new();
    output.read_to_string(&mut rest).await.unwrap();
    assert!(rest.contains("20 50"), "{rest}");
    world.end(container).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn signals_reach_the_process_and_stop_reaches_all() {
    let world = world!("signals_reach_the_process_and_stop_reaches_all");
    let container = world.start(world.spec()).await;
    let trapping = sh("trap 'exit 42' TERM; touch /tmp/trapping; while true; do sleep 0.05; done");
    let process = container.run(&trapping, ProcessIo::default()).await.unwrap();
    world.run(&container, &sh("until [ -e /tmp/trapping ]; do sleep 0.05; done")).await;
    process.signal(Signal::Terminate).await.unwrap();
    assert_eq!(process.wait().await.unwrap(), 42);
    let process = container
        .run(&sh("trap '' TERM; while true; do sleep 0.05; done"), ProcessIo::default())
        .await
        .unwrap();
    process.signal(Signal::Kill).await.unwrap();
    assert_eq!(process.wait().await.unwrap(), 137);
    let first = container.run(&sh("sleep 1000"), ProcessIo::default()).await.unwrap();
    let second = container.run(&sh("sleep 1000"), ProcessIo::default()).await.unwrap();
    container.stop(true).await.unwrap();
    assert_eq!((first.wait().await.unwrap(), second.wait().await.unwrap()), (137, 137));
    assert!(container.process_ids().is_empty());
    assert_eq!(container.attach(first.id(), ProcessIo::default()).unwrap().wait().await.unwrap(), 137);
    world.end(container).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_ends_ends_its_processes() {
    let world = world!("a_container_that_ends_ends_its_processes");
    let container = world.start(world.spec()).await;
    let process = container.run(&sh("sleep 1000"), ProcessIo::default()).await.unwrap();
    container.destroy().await.unwrap();
    container.destroy().await.unwrap();
    assert_eq!(process.wait().await.unwrap(), 137);
    let error = container.run(&sh("true"), ProcessIo::default()).await.err().unwrap();
    assert_eq!(error.to_string(), "the container has ended");
    world.end(container).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_beyond_the_limit_is_refused_and_told() {
    let world = world!("memory_beyond_the_limit_is_refused_and_told");
    let mut spec = world.spec();
    spec.limits = Limits { memory: MemoryLimits { limit_in_bytes: 24 << 20 }, ..Limits::default() };
    let container = world.start(spec).await;
    assert!(!container.out_of_memory().unwrap());
    let hog = "dd if=/dev/zero of=/dev/null bs=100M count=1";
    assert_ne!(world.run(&container, &sh(hog)).await.status, 0);
    assert!(container.out_of_memory().unwrap());
    world.run(&container, &sh("dd if=/dev/zero of=/dev/shm/kept bs=1M count=4")).await;
    let usage = container.usage().unwrap();
    assert_eq!(usage.memory.hierarchical_memory_limit, 24 << 20);
    assert!(usage.cpu.usage > 0 && usage.pid.current >= 1, "{usage:?}");
    // Pid 1 alone takes next to nothing, and the kernel counts small amounts only every other second.
    container
        .run(&sh("x=$(head -c 1000000 /dev/zero | tr '\\0' x); sleep 1000"), ProcessIo::default())
        .await
        .unwrap();
    world::until("memory in use is told", || {
        container.usage().unwrap().memory.total_usage_toward_limit > 500_000
    })
    .await;
    assert_eq!(world.run(&container, &sh("exit 0")).await.status, 0, "pid 1 is still there");
    world.end(container).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_beyond_the_limit_are_refused() {
    let world = world!("processes_beyond_the_limit_are_refused");
    let mut spec = world.spec();
    spec.limits = Limits { pid: PidLimits { max: 10 }, ..Limits::default() };
    let container = world.start(spec).await;
    let done = world
        .run(&container, &sh("for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 5 & done; echo started all"))
        .await;
    assert!(done.stderr.contains("fork") && !done.stdout.contains("all"), "{done:?}");
    container.stop(true).await.unwrap();
    assert_eq!(container.usage().unwrap().pid.max, 10);
    world.end(container).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tar_goes_in_and_out() {
    let world = world!("tar_goes_in_and_out");
    let container = world.start(world.spec()).await;
    let tar = world::tar(|builder| {
        world::add(builder, "dir/file", b"content");
        world::add_link(builder, "dir/link", "file");
    });
    container.stream_in("alice", "/home/alice/new/place", Box::new(std::io::Cursor::new(tar))).await.unwrap();
    let listed = world
        .output(&container, "cd /home/alice/new/place/dir; cat link; stat -c ' %u %a' file; stat -c %u ../..")
        .await;
    assert_eq!(listed, "content 1000 644\n1000\n");
    for (path, expected) in [
        ("/home/alice/new/place/dir", "dir/ dir/file dir/link"),
        ("/home/alice/new/place/dir/", "./ ./file ./link"),
        ("new/place/dir/.", "./ ./file ./link"),
        ("/home/alice/new/place/dir/file", "file"),
    ] {
        let mut out = Vec::new();
        container.stream_out("alice", path).await.unwrap().read_to_end(&mut out).await.unwrap();
        assert_eq!(world::names(&out), expected, "{path}");
    }
    let missing = container.stream_out("alice", "/no/such").await.err().unwrap().to_string();
    assert!(missing.contains("/no/such") && missing.contains("No such file"), "{missing}");
    let unknown = container.stream_out("bob", "/etc").await.err().unwrap().to_string();
    assert!(unknown.contains("unable to find user bob"), "{unknown}");
    world.end(container).await;
}

/// What an archive says of its entries' extended attributes.
fn attributes(tar: &[u8]) -> Vec<String> {
    let (mut archive, mut found) = (tar::Archive::new(tar), Vec::new());
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let Some(records) = entry.pax_extensions().unwrap() else { continue };
        found.extend(records.map(|record| format!("{name} {}", record.unwrap().key().unwrap())));
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn extended_attributes_come_and_go_as_far_as_the_user_may_give_them() {
    let world = world!("extended_attributes_come_and_go_as_far_as_the_user_may_give_them");
    let container = world.start(world.spec()).await;
    let tar = world::tar(|builder| {
        let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let records: [(&str, &[u8]); 3] = [
            ("SCHILY.xattr.user.kind", b"a file"),
            ("SCHILY.xattr.security.capability", &capability),
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
        ];
        builder.append_pax_extensions(records).unwrap();
        world::add(builder, "file", b"content");
    });
    for (user, path, kept) in [
        ("", "/tmp/root", &["./file SCHILY.xattr.security.capability", "./file SCHILY.xattr.user.kind"][..]),
        ("alice", "/tmp/alice", &["./file SCHILY.xattr.user.kind"]),
    ] {
        container.stream_in(user, path, Box::new(std::io::Cursor::new(tar.clone()))).await.unwrap();
        let mut out = Vec::new();
        let contents = format!("{path}/");
        container.stream_out(user, &contents).await.unwrap().read_to_end(&mut out).await.unwrap();
        let mut found = attributes(&out);
        found.sort();
        assert_eq!(found, kept, "{user}");
    }
    world.end(container).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_nobody_reads_holds_no_input_open() {
    let world = world!("a_stream_that_nobody_reads_holds_no_input_open");
    let container = world.start(world.spec()).await;
    world.output(&container, "dd if=/dev/zero of=/tmp/much bs=1M count=4").await;
    let (input, stdin) = tokio::io::duplex(64);
    let io = ProcessIo { stdin: Some(Box::new(stdin)), ..ProcessIo::default() };
    let cat = container.run(&sh("exec cat"), io).await.unwrap();
    let stalled = container.stream_out("alice", "/tmp/much").await.unwrap();
    drop(input);
    let ended = tokio::time::timeout(std::time::Duration::from_secs(20), cat.wait()).await;
    assert_eq!(ended.expect("its input has ended").unwrap(), 0);
    drop(stalled);
    world.end(container).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_archive_stays_inside() {
    let world = world!("a_hostile_archive_stays_inside");
    let container = world.start(world.spec()).await;
    let target = world.outside.join("victim");
    let tar = world::tar(|builder| {
        world::add_link(builder, "out", world.outside.to_str().unwrap());
        world::add(builder, "out/victim", b"owned");
        world::add_raw(builder, "../../../../../../victim", b"owned");
    });
    let outcome = container.stream_in("", "/tmp/x", Box::new(std::io::Cursor::new(tar))).await;
    assert!(!target.exists(), "{outcome:?}");
    let denied = world::tar(|builder| world::add(builder, "passwd", b"root::0:0::/:/bin/sh"));
    let error = container
        .stream_in("alice", "/etc", Box::new(std::io::Cursor::new(denied)))
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("Permission denied"), "{error}");
    assert!(
        container
            .stream_in("", "/tmp/y", Box::new(std::io::Cursor::new(b"no tar at all".repeat(100))))
            .await
            .is_err()
    );
    // The host's names for it lead nowhere inside.
    std::os::unix::fs::symlink(&world.outside, world.root.join("host")).unwrap();
    std::fs::write(world.outside.join("secret"), "x").unwrap();
    assert!(container.stream_out("", "/host/secret").await.is_err());
    world.end(container).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn paths_of_the_host_are_bound_as_asked() {
    let world = world!("paths_of_the_host_are_bound_as_asked");
    std::fs::write(world.outside.join("file"), "from the host").unwrap();
    // The image tries to lead the mount out of its root.
    std::os::unix::fs::symlink("/../../../../..", world.root.join("up")).unwrap();
    let mut spec = world.spec();
    let bind = |src: &std::path::Path, dst: &str, mode: u8| BindMount {
        src_path: src.to_str().unwrap().into(),
        dst_path: dst.into(),
        mode,
        origin: 0,
    };
    spec.bind_mounts = vec![
        bind(&world.outside, "/ro", 0),
        bind(&world.outside, "/deep/rw", 1),
        bind(&world.outside.join("file"), "/etc/one", 0),
        bind(&world.outside, "/up/led", 0),
    ];
    let container = world.start(spec).await;
    assert_eq!(
        world.output(&container, "cat /ro/file /etc/one /deep/rw/file /led/file").await,
        "from the host".repeat(4)
    );
    assert_ne!(world.run(&container, &sh("touch /ro/x")).await.status, 0);
    assert_ne!(world.run(&container, &sh("echo x > /etc/one")).await.status, 0);
    assert_ne!(world.run(&container, &sh("mount -o remount,bind,rw /ro")).await.status, 0);
    world.end(container).await;
    let mut spec = world.spec();
    spec.bind_mounts = vec![bind(&world.outside.join("missing"), "/x", 0)];
    let error = world.try_start(spec).await.err().unwrap().to_string();
    assert!(error.contains("missing"), "{error}");
    world.nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_that_fails_leaves_nothing() {
    let world = world!("a_plan_that_fails_leaves_nothing");
    std::fs::remove_dir(world.root.join("proc")).unwrap();
    std::os::unix::fs::symlink("/tmp", world.root.join("proc")).unwrap();
    let error = world.try_start(world.spec()).await.err().unwrap().to_string();
    assert!(error.contains("open /proc, which must be a directory"), "{error}");
    world.nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_privileged_container_is_nearly_the_host() {
    let world = world!("a_privileged_container_is_nearly_the_host");
    let mut spec = world.spec();
    spec.privileged = true;
    let container = world.start(spec).await;
    assert_eq!(
        world.output(&container, "readlink /proc/self/ns/user").await.trim(),
        std::fs::read_link("/proc/self/ns/user").unwrap().to_str().unwrap()
    );
    assert_eq!(world.run(&container, &sh("mkdir -p /tmp/m && mount -t tmpfs none /tmp/m")).await.status, 0);
    assert!(
        world.output(&container, "grep CapEff /proc/self/status").await.contains("3f"),
        "all capabilities that the host gives"
    );
    assert_eq!(world.output(&container, "ls /dev/fuse").await.trim(), "/dev/fuse");
    world.end(container).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_outlives_its_garden_and_its_record_ends_it() {
    let world = world!("a_container_outlives_its_garden_and_its_record_ends_it");
    let mut spec = world.spec();
    spec.socket = Some(world.outside.join("init.sock"));
    let (record, blank_pid) = {
        let blank = world.containerizer.blank(false).await.unwrap();
        let unused = world.containerizer.blank(false).await.unwrap();
        let record = blank.record(&spec).unwrap();
        let root = world.root_mount(blank.user_namespace());
        let container = blank.start(spec, root).await.unwrap();
        container.run(&sh("sleep 1000"), ProcessIo::default()).await.unwrap();
        (record, unused.pid())
    };
    world::until("the unused blank is gone", || !world::exists(blank_pid)).await;
    assert!(world::exists(record.init.pid));
    garden::containerizer::clean_up(&record).unwrap();
    garden::containerizer::clean_up(&record).unwrap();
    assert!(!world::exists(record.init.pid) && !world.outside.join("init.sock").exists());
    world.nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_at_once_do_not_get_in_one_anothers_way() {
    let world = world!("many_at_once_do_not_get_in_one_anothers_way");
    let containers = futures_util::future::join_all((0..12).map(|number| {
        let spec = garden::containerizer::Spec { handle: format!("many-{number}"), ..world.spec() };
        world.start(spec)
    }))
    .await;
    let script = "echo out; echo $(hostname) >&2; exit 7";
    let process = sh(script);
    let runs =
        containers.iter().flat_map(|one| std::iter::repeat_n(one, 5)).map(|one| world.run(one, &process));
    let done = futures_util::future::join_all(runs);
    for (index, done) in done.await.into_iter().enumerate() {
        let expected = format!("many-{}\n", index / 5);
        assert_eq!((&done.stdout[..], &done.stderr[..], done.status), ("out\n", &expected[..], 7));
    }
    let pss: u64 = containers.iter().map(|one| world::pss_kib(one.pid())).sum();
    println!("pss of {} idle containers: {pss} KiB", containers.len());
    let ended = futures_util::future::join_all(containers.iter().map(|one| one.destroy())).await;
    assert!(ended.iter().all(Result::is_ok), "{ended:?}");
    world.nothing_left().await;
}

/// More than fit in the socket between garden and pid 1, in either direction.
#[tokio::test(flavor = "multi_thread")]
async fn hundreds_of_processes_at_once_all_end() {
    let world = world!("hundreds_of_processes_at_once_all_end");
    let container = world.start(world.spec()).await;
    let process = sh("exit 7");
    let done = futures_util::future::join_all((0..600).map(|_| world.run(&container, &process))).await;
    assert!(done.iter().all(|done| done.status == 7));
    world.end(container).await;
}

/// Not a test of anything but patience: prints what the steps cost.
#[tokio::test(flavor = "multi_thread")]
async fn what_it_costs() {
    let world = world!("what_it_costs");
    let mut times: [Vec<f64>; 5] = Default::default();
    for round in 0..40 {
        let started = std::time::Instant::now();
        let mut lap = started;
        let mut mark = |index: usize| {
            let now = std::time::Instant::now();
            if round > 5 {
                times[index].push((now - lap).as_secs_f64() * 1e3);
            }
            lap = now;
        };
        let blank = world.containerizer.blank(false).await.unwrap();
        mark(0);
        let root = world.root_mount(blank.user_namespace());
        let container = blank.start(world.spec(), root).await.unwrap();
        mark(1);
        let process = container
            .run(&ProcessSpec { path: "/bin/true".into(), ..ProcessSpec::default() }, ProcessIo::default())
            .await
            .unwrap();
        process.wait().await.unwrap();
        mark(2);
        if round == 20 {
            println!("pss {} KiB", world::pss_kib(container.pid()));
        }
        lap = std::time::Instant::now();
        container.destroy().await.unwrap();
        if round > 5 {
            times[3].push(lap.elapsed().as_secs_f64() * 1e3);
            times[4].push(started.elapsed().as_secs_f64() * 1e3);
        }
    }
    for (name, mut values) in ["blank", "start", "run true", "destroy", "all"].into_iter().zip(times) {
        values.sort_by(f64::total_cmp);
        println!("{name}: min {:.2} median {:.2} ms", values[0], values[values.len() / 2]);
    }
    world.nothing_left().await;
}
