//! Containers that an OCI runtime makes, here Debian's runc; and our own containers held against them.

use super::*;
use crate::containerizer::Runtime;

const RUNC: [&str; 2] = ["/usr/sbin/runc", "/usr/bin/runc"];

pub fn runc() -> Option<PathBuf> {
    RUNC.iter().map(PathBuf::from).find(|path| path.exists())
}

/// Runs `story` in a world with runc, or says why not.
fn with_runc<F: Future<Output = World>>(name: &str, story: impl FnOnce(World) -> F + Send) {
    let Some(program) = runc() else {
        println!("SKIPPED {name}: needs runc");
        return;
    };
    let configure = |config: &mut Config, _: &Path| {
        config.containerizer.oci = Some(Runtime { program, extra_args: Vec::new() });
    };
    in_a_world_of(name, configure, story);
}

pub fn by(runtime: &str, handle: &str) -> ContainerSpec {
    ContainerSpec { properties: [("garden.runtime".to_owned(), runtime.to_owned())].into(), ..named(handle) }
}

#[test]
fn a_container_of_an_oci_runtime_is_made_used_and_gone() {
    with_runc("a_container_of_an_oci_runtime_is_made_used_and_gone", async |mut world| {
        let shared = world.directory.path().join("shared");
        std::fs::write(&shared, "from the host").unwrap();
        let mount = |source: &Path, origin: u8| BindMount {
            src_path: source.display().to_string(),
            dst_path: "/mnt/shared".into(),
            origin,
            ..BindMount::default()
        };
        let mut spec = ContainerSpec {
            bind_mounts: vec![mount(&shared, 0)],
            net_in: vec![NetIn { host_port: 0, container_port: 8080 }],
            env: vec!["A=container".into()],
            ..by("oci", "h")
        };
        spec.limits.memory.limit_in_bytes = 32 << 20;
        spec.limits.pid.max = 30;
        world.create(spec).await;
        let garden = &world.gardener;
        let mut echo =
            shell("cat; echo $A; cat /mnt/shared; echo x > /mnt/shared; tail -n 1 /etc/hosts; exit 3");
        echo.env = vec!["B=process".into()];
        let (status, text) = run(garden, "h", echo, "input\n").await;
        assert_eq!(status, 3, "{text}");
        for part in ["input\ncontainer\nfrom the host", "Read-only file system", "10.254.0.2 h"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let user = ProcessSpec { user: "vcap".into(), ..shell("id -u; tty; stty size") };
        let tty = Some(TtySpec { window_size: Some(WindowSize { columns: 91, rows: 17 }) });
        let (_, text) = run(garden, "h", ProcessSpec { tty, ..user }, "").await;
        assert!(text.contains("2000") && text.contains("/dev/pts/0") && text.contains("17 91"), "{text}");
        let port = garden.info("h").await.unwrap().mapped_ports[0].host_port as u16;
        a_server_answers_by_its_port(&world, port).await;
        files_go_in_and_out(&world).await;

        let metrics = garden.metrics("h").await.unwrap();
        assert_eq!((metrics.memory.hierarchical_memory_limit, metrics.pid.max), (32 << 20, 30));
        let (status, _) = world.sh("h", "x=x; while true; do x=$x$x; done").await;
        assert_eq!(status, 137);
        assert_eq!(garden.info("h").await.unwrap().events, ["Out of memory"]);

        // Another garden takes it over, as it does every container.
        world.kill_and_start_again().await;
        assert_eq!(world.sh("h", "echo still here").await, (0, "still here\n".into()));
        let path = world.config.directory.join("depot/h");
        assert!(path.join("oci/bundle/config.json").exists());
        world.gardener.destroy("h").await.unwrap();
        assert!(!path.exists());

        let refused = ContainerSpec { bind_mounts: vec![mount(Path::new("/etc"), 1)], ..by("oci", "h") };
        let error = world.gardener.create(refused).await.unwrap_err().to_string();
        assert_eq!(error, "an OCI runtime cannot bind /etc of the container itself");
        let error = world.gardener.create(by("magic", "h")).await.unwrap_err().to_string();
        assert_eq!(error, "there is no runtime 'magic': it is oci or built-in");
        world.assert_nothing_left();
        world
    });
}

#[test]
fn a_runtime_that_fails_leaves_nothing() {
    let configure = |config: &mut Config, dir: &Path| {
        let script = dir.join("runtime.sh");
        std::fs::write(&script, "case \"$*\" in *create*) echo no luck >&2; exit 1;; esac\n").unwrap();
        let extra_args = vec![script.display().to_string()];
        config.containerizer.oci = Some(Runtime { program: "/bin/sh".into(), extra_args });
        config.oci_for_all = true;
    };
    in_a_world_of("a_runtime_that_fails_leaves_nothing", configure, async |world| {
        let error = world.gardener.create(named("h")).await.unwrap_err().to_string();
        assert_eq!(error, "/bin/sh create: no luck");
        world.assert_nothing_left();
        world.create(by("built-in", "h")).await;
        world.gardener.destroy("h").await.unwrap();
        world.assert_nothing_left();
        world
    });
}

/// What a process sees of how it is held.
const LOOK: &str = "grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status; cat /proc/self/uid_map /proc/self/gid_map; \
    hostname; ls /dev; cat /proc/self/cgroup | cut -d: -f3; ulimit -a; env; pwd; \
    cat /proc/keys 2>&1; ls /proc/acpi 2>&1; echo x 2>&1 > /proc/sys/kernel/hostname; \
    awk '{print $5, $6, $(NF-2)}' /proc/self/mountinfo 2>&1 || cut -d' ' -f5,6 /proc/self/mountinfo";

/// Whether a line may differ.
fn is_meant(line: &str) -> bool {
    // Where the runtime shows the pid 1 it is to start; ours needs no file.
    line.contains("garden-init")
        // A runtime mounts every controller of the machine, we those that are used, and below a read-only directory.
        || line.starts_with("/sys/fs/cgroup")
        // What masks a directory: ours is nosuid, nodev and noexec, too.
        || (line.starts_with(['/']) && line.ends_with(" tmpfs") && line.contains(" ro,"))
        // Each container's own, by number; a runtime leaves that of its own pid 1 in sight, too.
        || line.contains("keyring _ses")
}

#[test]
fn our_containers_are_held_as_those_of_runc_are() {
    with_runc("our_containers_are_held_as_those_of_runc_are", async |world| {
        let mut seen = Vec::new();
        for (runtime, privileged) in [("built-in", false), ("oci", false), ("built-in", true), ("oci", true)]
        {
            world.create(ContainerSpec { privileged, ..by(runtime, "h") }).await;
            let mut text = world.sh("h", LOOK).await.1;
            let user = ProcessSpec { user: "vcap".into(), ..shell("grep ^Cap /proc/self/status") };
            text += &run(&world.gardener, "h", user, "").await.1;
            let root = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
            seen.push(text.lines().map(root).collect::<std::collections::BTreeSet<_>>());
            world.gardener.destroy("h").await.unwrap();
        }
        for (kind, pair) in ["unprivileged", "privileged"].iter().zip(seen.chunks(2)) {
            let unmeant = |one: usize, other: usize| -> Vec<_> {
                pair[one].difference(&pair[other]).filter(|line| !is_meant(line)).cloned().collect()
            };
            assert_eq!(unmeant(0, 1), unmeant(1, 0), "{kind}: built-in on the left, runc on the right");
            assert!(pair[0].len() > 60, "much was looked at: {:?}", pair[0]);
        }
        world.assert_nothing_left();
        world
    });
}
