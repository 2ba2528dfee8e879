//! Processes with a root of their own, in containers with a network, from images that are directories of the test.

use std::os::unix::fs::symlink;

use garden_client::{CpuLimits, ProcessLimits};

use super::*;

impl World {
    /// An image of its own, with a file `/pea` to know it by.
    fn image(&self, name: &str) -> PathBuf {
        let root = self.directory.path().join(name);
        make_root(&root);
        std::fs::write(root.join("pea"), "a pea's own\n").unwrap();
        std::fs::write(root.join("etc/passwd"), "root:x:0:0::/:/bin/sh\npod:x:700:701::/home:/bin/sh\n")
            .unwrap();
        root
    }

    /// Nothing but the containers, and for each what one without peas has.
    async fn without_peas(&self) -> BTreeMap<&'static str, Vec<String>> {
        eventually("no process runs", async || {
            let info = self.gardener.info("h").await.unwrap();
            info.process_ids.is_empty().then_some(())
        })
        .await;
        self.left()
    }

    async fn settled(&self, clean: &BTreeMap<&'static str, Vec<String>>) {
        eventually("no pea is left", async || {
            let nested: Vec<String> =
                self.groups().iter().flat_map(|group| directories(Path::new(group))).collect();
            (self.left() == *clean && nested.is_empty()).then_some(())
        })
        .await;
    }
}

fn pea(image: &Path, command: &str) -> ProcessSpec {
    let image = ImageRef { uri: format!("preloaded:{}", image.display()), ..ImageRef::default() };
    ProcessSpec { image, ..shell(command) }
}

async fn refusal(garden: &dyn Garden, spec: ProcessSpec) -> Error {
    match garden.run("h", spec, ProcessIo::default()).await {
        Ok(process) => panic!("{} was started", process.id()),
        Err(error) => error,
    }
}

#[test]
fn a_pea_has_a_root_of_its_own_and_shares_the_rest() {
    in_a_world("a_pea_has_a_root_of_its_own_and_shares_the_rest", async |world| {
        let image = world.image("pea");
        let spec = ContainerSpec { env: vec!["A=container".into()], ..named("h") };
        world.create(spec).await;
        let clean = world.without_peas().await;
        for kind in ["user", "pid", "net", "ipc", "uts", "mnt"] {
            let link = format!("ls -l /proc/self/ns/{kind}");
            let own = |line: String| line.rsplit(' ').next().map(str::to_owned);
            let of_container = own(world.sh("h", &link).await.1);
            let of_pea = own(run(&world.gardener, "h", pea(&image, &link), "").await.1);
            assert_eq!(of_container == of_pea, kind != "mnt", "{kind}");
        }
        let mut first = pea(
            &image,
            "cat /pea; cat; id -u; pwd; env; cat /etc/hosts; echo x > /etc/hosts; echo x > /mine; exit 7",
        );
        first.env = vec!["B=process".into()];
        let (status, text) = run(&world.gardener, "h", first, "input\n").await;
        assert_eq!(status, 7, "{text}");
        assert!(text.starts_with("a pea's own\ninput\n0\n/\n"), "{text}");
        for part in ["B=process", "USER=root", "PATH=/usr/local/sbin", "10.254.0.2 h"] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(!text.contains("A=container"), "its environment is of another image: {text}");
        assert_eq!(world.sh("h", "cat /etc/hosts").await.1, "x\n", "one file for all of a container");
        assert!(
            !image.join("mine").exists() && !image.join("etc/hosts").exists(),
            "the image stays as it was"
        );
        assert_ne!(world.sh("h", "ls /mine /pea").await.0, 0, "the container has a root of its own");
        assert_eq!(run(&world.gardener, "h", pea(&image, "ls /mine 2>/dev/null"), "").await.1, "");
        world.settled(&clean).await;
        world.gardener.destroy("h").await.unwrap();
        world.assert_nothing_left();
        world
    });
}

#[test]
fn a_pea_is_held_as_its_container_is() {
    in_a_world("a_pea_is_held_as_its_container_is", async |world| {
        let image = world.image("pea");
        for handle in ["h", "privileged"] {
            world.create(ContainerSpec { privileged: handle == "privileged", ..named(handle) }).await;
            let script = "grep -E '^(Cap|Seccomp:|NoNewPrivs)' /proc/self/status; ls /dev; ls -ld /proc/sys | head -c 4; \
                cat /proc/kcore 2>/dev/null | head -c 1 | wc -c; mount 2>/dev/null | wc -l; echo > /proc/sysrq-trigger && echo open";
            let script = if handle == "h" {
                script.into()
            } else {
                script.replace("echo > /proc/sysrq-trigger && echo open", "true")
            };
            let of_container = world.sh(handle, &script).await.1;
            let of_pea = run(&world.gardener, handle, pea(&image, &script), "").await.1;
            assert_eq!(of_container, of_pea, "{handle}");
        }
        let owner = "ls -nd /made | head -c 60; ls -n /proc/1/exe";
        let mut with_user = pea(&image, &format!("id; pwd; {owner}"));
        (with_user.user, with_user.dir) = ("pod".into(), "/made/deep".into());
        let (_, text) = run(&world.gardener, "h", with_user, "").await;
        assert!(text.starts_with("uid=700(pod) gid=701") && text.contains("/made/deep\n"), "{text}");
        assert!(text.contains(" 700      701 ") && text.contains("ermission denied"), "{text}");
        // Others in the container see its init, and can do no more with it than end it.
        let process = pea(&image, "sleep 1000");
        let process = world.gardener.run("h", process, ProcessIo::default()).await.unwrap();
        let script = "for p in /proc/[0-9]*; do cat $p/environ > /dev/null 2>&1 || echo ${p#/proc/}; done";
        let (_, inits) = world.sh("h", script).await;
        let init = inits.lines().find(|pid| *pid != "1").unwrap_or_else(|| panic!("{inits}")).to_owned();
        for attempt in [
            "cat /proc/P/environ",
            "ls /proc/P/fd/",
            "ls /proc/P/root/",
            "cat /proc/P/mem",
            "cat /proc/P/exe",
        ] {
            assert_ne!(world.sh("h", &attempt.replace('P', &init)).await.0, 0, "{attempt}");
        }
        world.sh("h", &format!("kill -TERM {init}; kill -INT {init}; kill -HUP {init}")).await;
        assert_eq!(world.gardener.info("h").await.unwrap().process_ids, [process.id()]);
        world.sh("h", &format!("kill -KILL {init}")).await;
        assert_eq!(process.wait().await.unwrap(), 137);
        drop(process);
        for handle in ["h", "privileged"] {
            world.gardener.destroy(handle).await.unwrap();
        }
        world.assert_nothing_left();
        world
    });
}

#[test]
fn a_pea_is_a_process_like_others_to_clients() {
    in_a_world("a_pea_is_a_process_like_others_to_clients", async |world| {
        let (image, garden) = (world.image("pea"), &world.gardener);
        world.create(named("h")).await;
        let clean = world.without_peas().await;
        let mut tty = pea(&image, "stty size; test -t 0 && echo terminal");
        tty.tty = Some(TtySpec { window_size: Some(WindowSize { columns: 99, rows: 33 }) });
        assert_eq!(run(garden, "h", tty, "").await, (0, "33 99\r\nterminal\r\n".into()));
        let named_pea = |command: &str| ProcessSpec { id: "the-pea".into(), ..pea(&image, command) };
        let trap = named_pea("trap 'exit 42' TERM; echo ready; while true; do sleep 0.05; done");
        let process = garden.run("h", trap.clone(), ProcessIo::default()).await.unwrap();
        assert_eq!(
            (process.id(), garden.info("h").await.unwrap().process_ids),
            ("the-pea", vec!["the-pea".into()])
        );
        for spec in [trap, ProcessSpec { id: "the-pea".into(), ..shell("true") }] {
            assert_eq!(refusal(garden, spec).await.to_string(), "process ID 'the-pea' already in use");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        let attached = garden.attach("h", "the-pea", ProcessIo::default()).await.unwrap();
        attached.signal(Signal::Terminate).await.unwrap();
        assert_eq!((attached.wait().await.unwrap(), process.wait().await.unwrap()), (42, 42));
        // Its id is free as soon as its end is known.
        let (status, _) = run(garden, "h", named_pea("exit 5"), "").await;
        assert_eq!(status, 5);
        assert_eq!(
            garden.attach("h", "the-pea", ProcessIo::default()).await.unwrap().wait().await.unwrap(),
            5
        );
        let process =
            garden.run("h", named_pea("trap '' TERM; sleep 1000"), ProcessIo::default()).await.unwrap();
        process.signal(Signal::Kill).await.unwrap();
        assert_eq!(process.wait().await.unwrap(), 137);
        // What it leaves behind ends with it.
        run(garden, "h", pea(&image, "sleep 4711 & exit 0"), "").await;
        world.settled(&clean).await;
        assert_ne!(world.sh("h", "cat /proc/[0-9]*/cmdline | grep -q [4]711").await.0, 0);
        let running: Vec<_> = [pea(&image, "sleep 1000"), shell("sleep 1000")].into();
        let mut processes = Vec::new();
        for spec in running {
            processes.push(garden.run("h", spec, ProcessIo::default()).await.unwrap());
        }
        garden.stop("h", true).await.unwrap();
        for process in &processes {
            assert_eq!(process.wait().await.unwrap(), 137);
        }
        drop((processes, process, attached));
        world.settled(&clean).await;
        world
    });
}

#[test]
fn a_pea_that_cannot_be_leaves_nothing() {
    in_a_world("a_pea_that_cannot_be_leaves_nothing", async |world| {
        let (image, garden) = (world.image("pea"), &world.gardener);
        world.create(named("h")).await;
        let clean = world.without_peas().await;
        let check = async |spec: ProcessSpec, part: &str| {
            let error = refusal(garden, spec).await;
            assert!(error.to_string().contains(part), "{part:?} in {error}");
            world.settled(&clean).await;
            error
        };
        let unknown = ProcessSpec { user: "vcap".into(), ..pea(&image, "true") };
        check(unknown, "unable to find user vcap: no matching entries in passwd file").await;
        let missing = ProcessSpec { path: "no-such".into(), ..pea(&image, "") };
        let error = check(missing, "executable file not found in $PATH").await;
        assert!(matches!(error, Error::ExecutableNotFound(_)), "{error:?}");
        check(pea(Path::new("/no/such/image"), "true"), "/no/such/image").await;
        let registry = ImageRef { uri: "docker://127.0.0.1:1/none".into(), ..ImageRef::default() };
        check(ProcessSpec { image: registry, ..shell("true") }, "127.0.0.1:1").await;
        let bind = |src: &str, dst: &str| BindMount {
            src_path: src.into(),
            dst_path: dst.into(),
            ..BindMount::default()
        };
        let bound = |mount| ProcessSpec { bind_mounts: vec![mount], ..pea(&image, "true") };
        check(bound(bind("/no/such/file", "/x")), "/no/such/file").await;
        check(bound(bind("/etc", "/proc/x")), "belongs to the container").await;
        let without = ProcessSpec { bind_mounts: vec![bind("/etc", "/x")], ..shell("true") };
        let error = check(without, "").await.to_string();
        assert_eq!(error, "Running a process with bind mounts and no image provided is not allowed");
        world
    });
}

#[test]
fn a_pea_has_the_mounts_of_its_spec_and_none_of_the_containers() {
    in_a_world("a_pea_has_the_mounts_of_its_spec_and_none_of_the_containers", async |world| {
        let (image, garden) = (world.image("pea"), &world.gardener);
        let shared = world.directory.path().join("shared");
        std::fs::create_dir(&shared).unwrap();
        std::fs::write(shared.join("file"), "from the host").unwrap();
        let mount = |dst: &str, mode: u8| BindMount {
            src_path: shared.display().to_string(),
            dst_path: dst.into(),
            mode,
            origin: 0,
        };
        world.create(ContainerSpec { bind_mounts: vec![mount("/of-container", 0)], ..named("h") }).await;
        let mut spec = pea(
            &image,
            "cat /etc/deep/ro/file; ls /of-container; echo x > /etc/deep/ro/new; echo y > /rw/new; exit 3",
        );
        spec.bind_mounts = vec![mount("/etc/deep/ro", 0), mount("/rw", 1)];
        std::fs::set_permissions(&shared, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        let (status, text) = run(garden, "h", spec, "").await;
        assert_eq!(status, 3);
        for part in ["from the host", "/of-container: No such file", "Read-only file system"] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert_eq!(std::fs::read_to_string(shared.join("new")).unwrap(), "y\n");
        world
    });
}

#[test]
fn limits_of_a_pea_are_its_own_or_its_containers() {
    in_a_world("limits_of_a_pea_are_its_own_or_its_containers", async |world| {
        let (image, garden) = (world.image("pea"), &world.gardener);
        let limits = Limits {
            memory: MemoryLimits { limit_in_bytes: 64 << 20 },
            pid: PidLimits { max: 40 },
            ..Limits::default()
        };
        world.create(ContainerSpec { limits, ..named("h") }).await;
        let clean = world.without_peas().await;
        let group = |controller: &str, file: &str| {
            let v1 = format!("cat /sys/fs/cgroup/{controller}/{file}");
            format!("{v1} 2>/dev/null")
        };
        let v1 = Path::new("/sys/fs/cgroup/memory/tasks").exists();
        let (memory, shares) = match v1 {
            true => (
                group("memory", "memory.limit_in_bytes"),
                group("cpu,cpuacct", "cpu.shares") + " || cat /sys/fs/cgroup/cpu/cpu.shares",
            ),
            false => (group("", "memory.max"), group("", "cpu.weight")),
        };
        let script = format!("{memory}; {shares}");
        if v1 {
            assert_eq!(run(garden, "h", pea(&image, &script), "").await.1.lines().next(), Some("67108864"));
        }
        let own = ProcessLimits {
            memory_limits: MemoryLimits { limit_in_bytes: 32 << 20 },
            cpu_limits: CpuLimits { weight: 0, limit_in_shares: 128 },
        };
        let mut limited = pea(&image, &script);
        limited.override_container_limits = Some(own);
        let (_, text) = run(garden, "h", limited, "").await;
        assert_eq!(text.lines().collect::<Vec<_>>(), ["33554432", if v1 { "128" } else { "5" }]);
        // None given is none: more than the container may take, which does not notice.
        let mut unlimited =
            pea(&image, "dd if=/dev/zero of=/dev/null bs=90000000 count=1 2>/dev/null && echo 90000000; cat");
        std::os::unix::fs::symlink("busybox", image.join("bin/dd")).unwrap();
        unlimited.override_container_limits = Some(ProcessLimits::default());
        let (status, text) = run(garden, "h", unlimited.clone(), "").await;
        assert_eq!((status, text.trim()), (0, "90000000"));
        unlimited.override_container_limits = None;
        assert_ne!(run(garden, "h", unlimited, "").await.1.trim(), "90000000");
        assert_eq!(garden.info("h").await.unwrap().events, ["Out of memory"], "it is the container's memory");
        let bomb = pea(&image, "for i in $(cat /proc/meminfo); do sleep 5 & done; true");
        let (_, text) = run(garden, "h", bomb, "").await;
        assert!(text.contains("fork"), "{text}");
        world.settled(&clean).await;
        let busy = pea(&image, "i=0; while [ $i -lt 50000 ]; do i=$((i+1)); done");
        let before = garden.metrics("h").await.unwrap().cpu.usage;
        run(garden, "h", busy, "").await;
        assert!(
            garden.metrics("h").await.unwrap().cpu.usage > before + 1_000_000,
            "it counts as its container's"
        );
        world
    });
}

#[test]
fn images_without_anything_or_with_traps_hurt_nobody() {
    in_a_world("images_without_anything_or_with_traps_hurt_nobody", async |world| {
        let garden = &world.gardener;
        world.create(named("h")).await;
        let clean = world.without_peas().await;
        let bare = world.directory.path().join("bare");
        std::fs::create_dir_all(bare.join("bin")).unwrap();
        std::fs::copy("/bin/busybox", bare.join("bin/sh")).unwrap();
        let (status, text) = run(
            garden,
            "h",
            pea(
                &bare,
                "read x < /proc/self/comm; echo $x > /dev/null; read h < /etc/hosts; echo $x $h $HOME",
            ),
            "",
        )
        .await;
        assert_eq!((status, text.contains("sh 127.0.0.1") && text.ends_with(" /\n")), (0, true), "{text}");
        let by_number = ProcessSpec { user: "5:6".into(), ..pea(&bare, "exit 0") };
        assert_eq!(run(garden, "h", by_number, "").await.0, 0);
        let outside = world.directory.path().join("untouched");
        std::fs::create_dir(&outside).unwrap();
        let up = format!("../../../../../..{}", outside.display());
        for (number, (place, target)) in [
            ("etc", &up[..]),
            ("etc", "/proc/1/root/etc"),
            ("etc", "/proc/sys"),
            ("proc", &up[..]),
            ("proc", "/tmp"),
            ("dev", &up[..]),
            ("sys", &up[..]),
            ("dev", "proc"),
            ("etc/hosts", &up[..]),
            ("etc/passwd", "/dev/zero"),
        ]
        .into_iter()
        .enumerate()
        {
            let image = world.image(&format!("trap-{number}"));
            let path = image.join(place);
            match path.is_dir() {
                true => std::fs::remove_dir_all(&path).unwrap(),
                false => drop(std::fs::remove_file(&path)),
            }
            symlink(target, &path).unwrap();
            // Whether it starts is not the question here.
            if let Ok(process) = garden
                .run(
                    "h",
                    pea(&image, "cat /proc/kcore; echo x > /etc/hosts; echo x > /etc/x"),
                    ProcessIo::default(),
                )
                .await
            {
                tokio::time::timeout(PATIENCE, process.wait()).await.unwrap().unwrap();
            }
            assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0, "{place} -> {target}");
            world.settled(&clean).await;
        }
        world
    });
}

#[test]
fn many_peas_at_once_go_with_their_container() {
    in_a_world("many_peas_at_once_go_with_their_container", async |world| {
        const PEAS: usize = 50;
        let (image, garden) = (world.image("pea"), &world.gardener);
        world.create(named("h")).await;
        let clean = world.without_peas().await;
        let started = Instant::now();
        let specs = (0..PEAS).map(|number| pea(&image, &format!("echo {number}; exit {number}")));
        let done = futures_util::future::join_all(specs.map(|spec| run(garden, "h", spec, ""))).await;
        println!("{PEAS} peas at once: {:.1} ms", started.elapsed().as_secs_f64() * 1e3);
        for (number, done) in done.into_iter().enumerate() {
            assert_eq!(done, (number as i32, format!("{number}\n")));
        }
        world.settled(&clean).await;
        let mut limited = pea(&image, "sleep 1000");
        limited.override_container_limits = Some(ProcessLimits::default());
        let specs =
            (0..PEAS).map(|number| if number % 2 == 0 { pea(&image, "sleep 1000") } else { limited.clone() });
        let started =
            futures_util::future::join_all(specs.map(|spec| garden.run("h", spec, ProcessIo::default())))
                .await;
        assert_eq!(garden.info("h").await.unwrap().process_ids.len(), PEAS);
        // Some more that are still being started.
        let more = futures_util::future::join_all(
            (0..10).map(|_| garden.run("h", pea(&image, "sleep 1000"), ProcessIo::default())),
        );
        let (destroyed, _) = tokio::join!(garden.destroy("h"), more);
        destroyed.unwrap();
        world.assert_nothing_left();
        for process in started {
            assert_eq!(process.unwrap().wait().await.unwrap(), 137);
        }
        world
    });
}

/// Not a test of anything but patience: prints what a pea costs.
#[test]
fn what_a_pea_costs() {
    in_a_world("what_a_pea_costs", async |world| {
        let (image, garden) = (world.image("pea"), &world.gardener);
        world.create(named("h")).await;
        for (name, limits) in
            [("in its container's limits", None), ("with its own", Some(ProcessLimits::default()))]
        {
            let mut times: Vec<f64> = Vec::new();
            for _ in 0..40 {
                let mut spec = ProcessSpec { path: "/bin/true".into(), args: Vec::new(), ..pea(&image, "") };
                spec.override_container_limits = limits.clone();
                let started = Instant::now();
                garden.run("h", spec, ProcessIo::default()).await.unwrap().wait().await.unwrap();
                times.push(started.elapsed().as_secs_f64() * 1e3);
            }
            times.sort_by(f64::total_cmp);
            println!("a pea {name}: min {:.2} median {:.2} ms", times[0], times[times.len() / 2]);
        }
        world
    });
}
