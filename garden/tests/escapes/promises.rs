//! What `docs/THREATS.md` promises, tried from inside as the container's root.

use garden::containerizer::{Config, IdPool, IdRange};
use garden_client::ProcessIo;
use garden_client::{Limits, PidLimits};

use crate::world::{World, sh, user_sh};
use crate::{attacker, bind, named};

const EPERM: &str = "1";
const ENOSYS: &str = "38";

/// With the flaw pid 1's memory, descriptors and root, which are garden's doing, are at the mercy of the container.
#[tokio::test(flavor = "multi_thread")]
async fn pid_1_is_out_of_reach_of_its_own_root() {
    let world = world!("pid_1_is_out_of_reach_of_its_own_root");
    world.bring_attacker();
    let container = world.start(world.spec()).await;
    let results = world.attack(&container, "pid 1").await;
    assert!(results.len() > 20, "{results:?}");
    for (name, outcome) in &results {
        assert!(!outcome.starts_with("ok"), "{name}: {outcome}");
    }
    for signal in
        ["KILL", "STOP", "TSTP", "TERM", "INT", "QUIT", "SEGV", "HUP", "USR1", "PIPE", "CHLD", "ABRT"]
    {
        world.run(&container, &sh(&format!("kill -{signal} 1"))).await;
        assert_eq!(world.run(&container, &sh("exit 5")).await.status, 5, "pid 1 works after SIG{signal}");
    }
    // The control: of a process of its own, all of this can be had.
    let script = "sleep 9 & sleep 0.1; readlink /proc/$!/exe; readlink /proc/$!/root; kill -9 $!";
    let own = world.output(&container, script).await;
    assert_eq!(own, "/bin/busybox\n/\n");
    world.end(container).await;
}

/// With the flaw one more call of the kernel's is one more way out.
#[tokio::test(flavor = "multi_thread")]
async fn calls_that_no_application_needs_are_refused_by_name() {
    let world = world!("calls_that_no_application_needs_are_refused_by_name");
    world.bring_attacker();
    let container = world.start(world.spec()).await;
    let results = world.attack(&container, "calls").await;
    assert!(results.len() > 30, "{results:?}");
    for (name, outcome) in &results {
        let expected = match &name[..] {
            "clone3" | "unknown" => ENOSYS,
            "getpid" => {
                assert!(outcome.starts_with("ok"), "the control: {outcome}");
                continue;
            }
            _ => EPERM,
        };
        assert_eq!(outcome, expected, "{name}");
    }
    let done =
        world.run(&container, &sh("busybox dmesg; busybox unshare -U true || busybox unshare -r true")).await;
    assert!(done.stdout.is_empty() && done.status != 0, "{done:?}");
    world.end(container).await;
}

/// What a process is told of, from outside of its container: nothing but the places of its own mounts.
#[tokio::test(flavor = "multi_thread")]
async fn environment_mounts_and_devices_tell_nothing_of_the_host() {
    let world = world!("environment_mounts_and_devices_tell_nothing_of_the_host");
    let container = world.start(world.spec()).await;
    let env = world.output(&container, "exec /bin/env").await;
    let mut names: Vec<_> = env.lines().filter_map(|line| Some(line.split_once('=')?.0)).collect();
    names.sort_unstable();
    names.retain(|name| !["PWD", "SHLVL", "OLDPWD"].contains(name));
    assert_eq!(names, ["HOME", "PATH", "USER"], "{env}");
    let mountinfo = world.output(&container, "cat /proc/self/mountinfo").await;
    for line in mountinfo.lines() {
        let fields: Vec<_> = line.split(' ').collect();
        let (root, place) = (fields[3], fields[4]);
        let known = place == "/"
            || ["/proc", "/sys", "/dev"]
                .iter()
                .any(|own| place == *own || place.starts_with(&format!("{own}/")));
        assert!(known, "{line}");
        // Control groups are shown from a namespace, devices from the host's /dev.
        assert!(place == "/" || !root.contains("diego") && !root.contains("garden"), "{line}");
        assert!(!line.contains("shared:") && !line.contains("master:"), "{line}");
    }
    let devices = world
        .output(
            &container,
            "cd /dev; for d in *; do [ -c $d ] && echo $d $(stat -L -c '%t:%T' $d); done; find . -type b",
        )
        .await;
    let expected = "full 1:7\nnull 1:3\nptmx 5:2\nrandom 1:8\ntty 5:0\nurandom 1:9\nzero 1:5\n";
    assert_eq!(devices, expected);
    world.end(container).await;
}

/// With the flaw root inside reads of, or changes, the host what is not in any namespace.
#[tokio::test(flavor = "multi_thread")]
async fn every_masked_path_is_empty_and_every_read_only_one_stays_as_it_is() {
    let world = world!("every_masked_path_is_empty_and_every_read_only_one_stays_as_it_is");
    world.bring_attacker();
    let container = world.start(world.spec()).await;
    for path in [
        "/proc/acpi",
        "/proc/asound",
        "/proc/interrupts",
        "/proc/kcore",
        "/proc/keys",
        "/proc/latency_stats",
        "/proc/sched_debug",
        "/proc/scsi",
        "/proc/timer_list",
        "/proc/timer_stats",
        "/sys/firmware",
        "/sys/devices/virtual/powercap",
        "/sys/kernel/debug",
        "/sys/kernel/security",
    ] {
        let script = format!(
            "(cat {path}; ls -A {path}/) 2>/dev/null | wc -c; umount {path} 2>/dev/null && echo bare"
        );
        assert_eq!(world.output(&container, &script).await, "0\n", "{path}");
    }
    // Those that show nothing of the host are masked with its null device, which takes anything.
    let results = world.attack(&container, "write").await;
    let (opened, tried): (Vec<_>, Vec<_>) = results.iter().partition(|(name, _)| name != "tried");
    assert!(opened.is_empty(), "{opened:?}");
    assert_ne!(tried[0].1, "ok 0", "the control: there was something to open");
    assert_eq!(
        world.output(&container, "mkdir /sys/fs/cgroup/x /sys/fs/cgroup/*/x 2>/dev/null && echo made").await,
        ""
    );
    world.end(container).await;
}

/// Its limits are files of its control group. With the flaw root inside writes to them, or leaves the group.
#[tokio::test(flavor = "multi_thread")]
async fn a_container_cannot_change_its_own_limits() {
    let world = world!("a_container_cannot_change_its_own_limits");
    let mut spec = world.spec();
    spec.limits = Limits { pid: PidLimits { max: 30 }, ..Limits::default() };
    let container = world.start(spec).await;
    let limit = || world.cgroup_file(&container, "pids", "pids.max");
    assert_eq!(limit().as_deref(), Some("30"));
    for script in [
        "for f in $(busybox find /sys/fs/cgroup -name pids.max); do echo max > $f; done",
        "for f in $(busybox find /sys/fs/cgroup -name cgroup.procs); do echo $$ > $f; done",
        "mount -t cgroup -o pids none /tmp; mount -t cgroup2 none /tmp; mount -o remount,rw /sys/fs/cgroup",
        "mkdir /sys/fs/cgroup/out /sys/fs/cgroup/pids/out",
        "i=0; while [ $i -lt 60 ]; do sleep 1 & i=$((i+1)); done; wait",
    ] {
        let done = world.run(&container, &sh(script)).await;
        assert!(!done.stderr.is_empty(), "{script}: {done:?}");
        assert_eq!(limit().as_deref(), Some("30"), "{script}");
    }
    world.end(container).await;
}

/// With the flaw two containers find one another by what has no file.
#[tokio::test(flavor = "multi_thread")]
async fn containers_meet_neither_by_sockets_nor_by_memory_nor_by_ids() {
    let world = world!("containers_meet_neither_by_sockets_nor_by_memory_nor_by_ids");
    world.bring_attacker();
    let one = world.start(named("one", Vec::new())).await;
    let other = world.start(named("other", Vec::new())).await;
    let traces = one.run(&attacker::attack("meet"), ProcessIo::default()).await.unwrap();
    let found = |results: &[(String, String)], what: &str| {
        results.iter().any(|(name, outcome)| name == what && outcome.starts_with("ok"))
    };
    // The control: whoever shares the container does find them, sooner or later.
    let began = std::time::Instant::now();
    loop {
        let results = world.attack(&one, "visit").await;
        if found(&results, "socket") && found(&results, "shared memory") {
            break;
        }
        assert!(began.elapsed().as_secs() < 20, "{results:?}");
    }
    let results = world.attack(&other, "visit").await;
    assert!(!found(&results, "socket") && !found(&results, "shared memory"), "{results:?}");
    assert_eq!(world.output(&other, "ps -o args | grep -c '[/]bin/attacker'").await, "0\n");
    let first_id = async |container| {
        let map = world.output(container, "cat /proc/self/uid_map /proc/self/gid_map").await;
        let numbers: Vec<u64> = map.split_whitespace().map(|number| number.parse().unwrap()).collect();
        assert_eq!((numbers.len(), numbers[0], numbers[2]), (6, 0, 65_536), "{map}");
        assert_eq!(numbers[..3], numbers[3..]);
        numbers[1]
    };
    let (first, second) = (first_id(&one).await, first_id(&other).await);
    assert!(first.abs_diff(second) >= 65_536 && first > 100_000 && second > 100_000, "{first} {second}");
    world.run(&one, &sh("touch /tmp/stop")).await;
    traces.wait().await.unwrap();
    one.destroy().await.unwrap();
    world.end(other).await;
}

/// As image stores of old want it.
#[tokio::test(flavor = "multi_thread")]
async fn one_range_of_ids_is_shared_when_the_operator_says_so() {
    let range = IdRange { base: 0x3f00_0000, count: 70_000, root: None };
    let world = world!("one_range_of_ids_is_shared_when_the_operator_says_so", |config: &mut Config| {
        config.ids = IdPool::Shared(range);
    });
    let (one, other) =
        (world.start(named("one", Vec::new())).await, world.start(named("other", Vec::new())).await);
    for container in [&one, &other] {
        let map = world.output(container, "cat /proc/self/uid_map").await;
        assert_eq!(map.split_whitespace().collect::<Vec<_>>(), ["0", &range.base.to_string(), "70000"]);
    }
    let sleeper = other.run(&sh("sleep 1; exit 7"), ProcessIo::default()).await.unwrap();
    assert_eq!(
        world.run(&one, &sh("sleep 60 & kill -9 -1; wait $!")).await.status,
        137,
        "its own it may end"
    );
    assert_eq!(sleeper.wait().await.unwrap(), 7);
    one.destroy().await.unwrap();
    world.end(other).await;
}

/// With the flaw a program with the set-user-id bit makes root of a user.
#[tokio::test(flavor = "multi_thread")]
async fn no_program_gives_new_privileges_when_the_operator_forbids_it() {
    for forbidden in [true, false] {
        let world =
            world!("no_program_gives_new_privileges_when_the_operator_forbids_it", |config: &mut Config| {
                config.no_new_privileges = forbidden;
            });
        world.bring_attacker();
        let container = world.start(world.spec()).await;
        world.run(&container, &sh("chmod 4755 /bin/attacker")).await;
        let who = garden_client::ProcessSpec { user: "alice".into(), ..attacker::attack("who") };
        let done = world.run(&container, &who).await;
        let expected = if forbidden { "user: ok 1000" } else { "user: ok 0" };
        assert!(done.stdout.contains(expected), "{done:?}");
        let status =
            world.run(&container, &user_sh("alice", "grep NoNewPrivs /proc/self/status")).await.stdout;
        assert_eq!(status, format!("NoNewPrivs:\t{}\n", u8::from(forbidden)));
        world.end(container).await;
    }
}

/// With the flaw what a privileged container mounts in a volume appears on the host, where that volume's mount is shared.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_is_mounted_inside_appears_on_the_host() {
    let world = world!("nothing_that_is_mounted_inside_appears_on_the_host");
    let shared = Shared::new(&world);
    let mut spec = named("mounter", vec![bind(&shared.0, "/vol")]);
    spec.privileged = true;
    let container = world.start(spec).await;
    let done =
        world.run(&container, &sh("mkdir /vol/in && mount -t tmpfs none /vol/in && touch /vol/in/x")).await;
    assert_eq!(done.status, 0, "{done:?}");
    assert!(shared.0.join("in").is_dir(), "the control: it is the same volume");
    assert!(!shared.0.join("in/x").exists());
    container.destroy().await.unwrap();
    drop(shared);
    world.nothing_left().await;
}

/// A mount of the host that tells its peers of what is mounted below it, for as long as the test lasts.
struct Shared(std::path::PathBuf);

impl Shared {
    fn new(world: &World) -> Self {
        let place = world.outside.join("shared");
        std::fs::create_dir(&place).unwrap();
        rustix::mount::mount("none", &place, "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
        let shared = Self(place);
        rustix::mount::mount_change(&shared.0, rustix::mount::MountPropagationFlags::SHARED).unwrap();
        shared
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

/// A profile that is not there is better refused at once than at each process. Where the kernel has AppArmor, see
/// `apparmor` below.
#[tokio::test(flavor = "multi_thread")]
async fn an_apparmor_profile_that_cannot_be_set_is_refused_when_garden_starts() {
    let configure = |config: &mut Config| config.apparmor = Some("garden-no-such-profile".into());
    let _world = world!("an_apparmor_profile_that_cannot_be_set_is_refused_when_garden_starts");
    let error = World::with("apparmor", configure).err().unwrap();
    assert!(error.contains("cannot use the AppArmor profile \"garden-no-such-profile\""), "{error}");
}

const PROFILE: &str = "profile garden-test flags=(attach_disconnected,mediate_deleted) {
  capability, network, file, mount, pivot_root, ptrace, signal, unix, umount,
  deny /tmp/forbidden/** rw,
  deny /etc/secret r,
}
";

/// With the flaw a process runs unconfined though a profile was asked for.
#[tokio::test(flavor = "multi_thread")]
async fn every_process_runs_under_the_apparmor_profile() {
    let name = "every_process_runs_under_the_apparmor_profile";
    let enabled = std::fs::read_to_string("/sys/module/apparmor/parameters/enabled").unwrap_or_default();
    if enabled.trim() != "Y" {
        println!("SKIPPED {name}: this kernel has no AppArmor");
        return;
    }
    let profile = std::env::temp_dir().join("garden-test.profile");
    std::fs::write(&profile, PROFILE).unwrap();
    let loaded = std::process::Command::new("apparmor_parser").args(["-r", "-K"]).arg(&profile).output();
    match loaded {
        Ok(done) if done.status.success() => {}
        other => {
            println!("SKIPPED {name}: cannot load a profile: {other:?}");
            assert!(std::env::var_os("IN_VM").is_none(), "{other:?}");
            return;
        }
    }
    let world = world!("every_process_runs_under_the_apparmor_profile", |config: &mut Config| {
        config.apparmor = Some("garden-test".into());
        config.no_new_privileges = true;
    });
    std::fs::write(world.root.join("etc/secret"), "x").unwrap();
    let container = world.start(world.spec()).await;
    for user in ["root", "alice"] {
        let script = "cat /proc/self/attr/current; cat /etc/secret; cat /etc/passwd | head -1";
        let done = world.run(&container, &user_sh(user, script)).await;
        assert_eq!(done.stdout, "garden-test (enforce)\nroot:x:0:0:root:/root:/bin/sh\n", "{done:?}");
        assert!(done.stderr.contains("Permission denied"), "{done:?}");
    }
    // Those who pack and unpack are held to it, too.
    assert!(crate::streamed_out(&container, "", "/etc/passwd").await.is_some());
    assert!(crate::streamed_out(&container, "", "/etc/secret").await.is_none());
    // A profile that goes while containers live: no process starts without it.
    let removed = std::process::Command::new("apparmor_parser").arg("-R").arg(&profile).status().unwrap();
    assert!(removed.success());
    let refused = container.run(&sh("true"), ProcessIo::default()).await.err().unwrap().to_string();
    assert!(
        refused.contains("cannot set the AppArmor profile \"garden-test\": it is not loaded"),
        "{refused}"
    );
    world.end(container).await;
}
