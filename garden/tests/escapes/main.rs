//! The published escapes of container runtimes, each as a class of attack tried on us, and what `docs/THREATS.md`
//! promises, tried from inside as root. Needs what `containers` needs.
//!
//! Every test says what the flaw would have let happen. Where nothing is seen to happen when all is well, a control shows
//! that the attack was really under way.

#[allow(dead_code)]
#[macro_use]
#[path = "../world/mod.rs"]
mod world;

mod attacker;
mod promises;

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use attacker::attack;
use garden::containerizer::{Container, Spec};
use garden_client::{BindMount, ProcessIo, ProcessSpec, TtySpec};
use world::{World, sh, user_sh};

const ENOENT: &str = "No such file";

impl World {
    /// A directory of the host that containers may share.
    fn volume(&self) -> std::path::PathBuf {
        let volume = self.outside.join("volume");
        std::fs::create_dir_all(&volume).unwrap();
        std::fs::set_permissions(&volume, PermissionsExt::from_mode(0o777)).unwrap();
        volume
    }

    /// That masks and read-only places are where they belong, whatever was led where.
    async fn is_walled_in(&self, container: &Container, story: &str) {
        let script = "cd /proc; for f in kcore keys timer_list interrupts; do
                [ ! -e $f ] || stat -c '%t %T' $f
            done | sort -u; cd /; stat -f -c %t /proc /proc/sys;
            ls /sys/firmware | wc -l; (echo x > /proc/sysrq-trigger) 2>/dev/null && echo open;
            (echo x > /proc/sys/kernel/core_pattern) 2>/dev/null && echo open; true";
        let done = self.run(container, &sh(script)).await;
        assert_eq!(done.stdout, "1 3\n9fa0\n9fa0\n0\n", "{story}: {done:?}");
    }
}

fn bind(source: &Path, destination: &str) -> BindMount {
    BindMount { src_path: source.to_str().unwrap().into(), dst_path: destination.into(), mode: 1, origin: 0 }
}

fn named(handle: &str, bind_mounts: Vec<BindMount>) -> Spec {
    Spec { handle: handle.into(), bind_mounts, ..Spec::default() }
}

/// What a write gone astray would change.
fn host_switches() -> Vec<String> {
    ["kernel/core_pattern", "kernel/modprobe", "kernel/panic", "net/ipv4/tcp_keepalive_time"]
        .map(|name| std::fs::read_to_string(format!("/proc/sys/{name}")).unwrap_or_default())
        .into()
}

/// CVE-2019-5736. With the flaw the container's root writes to the program that garden runs next, as root of the host.
#[tokio::test(flavor = "multi_thread")]
async fn the_runtimes_own_program_cannot_be_written_through_proc_self_exe() {
    let world = world!("the_runtimes_own_program_cannot_be_written_through_proc_self_exe");
    world.bring_attacker();
    let script = world.root.join("bin/script");
    std::fs::write(&script, "#!/proc/self/exe\n").unwrap();
    std::fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).unwrap();
    let program = world.init_program();
    let before = std::fs::read(program).unwrap();
    let container = world.start(world.spec()).await;
    let hunt = async { world.attack(&container, "hunt").await };
    let bait = async {
        for _ in 0..30 {
            for path in ["/proc/self/exe", "/bin/script", "/proc/1/exe"] {
                let spec = ProcessSpec { path: path.into(), ..ProcessSpec::default() };
                if let Ok(process) = container.run(&spec, ProcessIo::default()).await {
                    let _ = process.wait().await;
                }
            }
            world.run(&container, &sh("sleep 0.02")).await;
            let _ = container.stream_out("", "/etc").await;
        }
    };
    let (results, ()) = tokio::join!(hunt, bait);
    let outcome =
        |name: &str| results.iter().find(|(other, _)| other == name).map(|(_, outcome)| &outcome[..]);
    assert_eq!(outcome("wrote"), Some("ok 0"), "{results:?}");
    assert_ne!(outcome("opened"), Some("ok 0"), "the hunter saw programs run: {results:?}");
    assert!(std::fs::read(program).unwrap() == before);
    // And what garden itself runs from memory still is what it was.
    let next = world.start(named("next", Vec::new())).await;
    assert_eq!(world.run(&next, &sh("exit 4")).await.status, 4);
    next.destroy().await.unwrap();
    world.end(container).await;
}

/// CVE-2021-30465. With the flaw a mount is made where the link leads in the host, while one container swaps what another
/// is being created with.
#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_changes_while_a_container_is_made_leads_no_mount_astray() {
    let world = world!("a_volume_that_changes_while_a_container_is_made_leads_no_mount_astray");
    world.bring_attacker();
    let volume = world.volume();
    let data = world.outside.join("data");
    std::fs::create_dir(&data).unwrap();
    std::fs::write(data.join("canary"), "from the host\n").unwrap();
    let before = (std::fs::read_to_string("/proc/self/mountinfo").unwrap(), host_switches());
    let container = world.start(named("swapper", vec![bind(&volume, "/vol")])).await;
    let race = async { world.attack(&container, "swap").await };
    let creations = async {
        world::until("the volume is being changed", || volume.join("link5").exists()).await;
        let (mut started, mut refused) = (0, 0);
        for number in 0..40 {
            let place = ["/vol/place", "/vol/place/made", "/vol/place/a/b"][number % 3];
            match world.try_start(named("victim", vec![bind(&volume, "/vol"), bind(&data, place)])).await {
                Ok(victim) => {
                    started += 1;
                    world.is_walled_in(&victim, place).await;
                    victim.destroy().await.unwrap();
                }
                Err(error) => {
                    refused += 1;
                    assert!(!error.to_string().contains("longer than"), "{error}");
                }
            }
        }
        std::fs::write(volume.join("stop"), "").unwrap();
        (started, refused)
    };
    let (results, (started, refused)) = tokio::join!(race, creations);
    println!("{started} started, {refused} were refused, {results:?}");
    assert!(results.iter().any(|(name, outcome)| name == "exchanged" && outcome.len() > "ok 100".len()));
    assert!(started > 0, "nobody is kept from starting");
    world.end(container).await;
    assert_eq!((std::fs::read_to_string("/proc/self/mountinfo").unwrap(), host_switches()), before);
    for made in ["/made", "/a/b", "/canary"] {
        assert!(!Path::new(made).exists(), "{made} in the root of the host");
    }
    assert_eq!(std::fs::read_to_string(data.join("canary")).unwrap(), "from the host\n");
}

/// CVE-2024-21626. With the flaw a working directory, or a descriptor left open, lies in the host's file system, and
/// `..` leads on from there.
#[tokio::test(flavor = "multi_thread")]
async fn no_directory_and_no_descriptor_of_the_host_is_left_to_a_process() {
    let world = world!("no_directory_and_no_descriptor_of_the_host_is_left_to_a_process");
    symlink("/proc/self/fd/7", world.root.join("seven")).unwrap();
    let passwd = (0..12)
        .map(|number| format!("u{number}:x:{}:1::/proc/self/fd/{number}:/bin/sh\n", 2000 + number))
        .collect::<String>();
    std::fs::write(world.root.join("etc/passwd"), format!("root:x:0:0::/root:/bin/sh\n{passwd}")).unwrap();
    let container = world.start(world.spec()).await;
    let climb =
        "cd -P . 2>/dev/null; /bin/stat -c %d:%i / ../../../../../../../..; /bin/readlink /proc/self/cwd";
    let mut places: Vec<(String, String)> =
        (0..40).map(|number| ("root".to_string(), format!("/proc/self/fd/{number}"))).collect();
    places.extend((0..12).map(|number| (format!("u{number}"), String::new())));
    places.extend((3..12).map(|number| ("root".into(), format!("/proc/self/fd/{number}/../../../.."))));
    for place in
        ["/seven", "/proc/1/root/..", "/proc/1/cwd", "/proc/self/root/..", "/proc/thread-self/cwd/.."]
    {
        places.push(("root".into(), place.into()));
    }
    let mut entered = 0;
    for (user, dir) in places {
        let spec = ProcessSpec { dir: dir.clone(), path: "/bin/sh".into(), ..user_sh(&user, climb) };
        let (mut out, stdout) = tokio::io::duplex(1 << 16);
        let io = ProcessIo { stdout: Some(Box::new(stdout)), ..ProcessIo::default() };
        // What is no directory is refused, which is as good.
        let Ok(process) = container.run(&spec, io).await else { continue };
        process.wait().await.unwrap();
        drop(process);
        let mut text = String::new();
        tokio::io::AsyncReadExt::read_to_string(&mut out, &mut text).await.unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], lines[1], "{user} {dir}: {text}");
        assert!(!lines[2].contains("unreachable"), "{user} {dir}: {text}");
        entered += 1;
    }
    assert!(entered > 0, "some were entered");
    let terminal = ProcessSpec { tty: Some(TtySpec::default()), ..sh("ls /proc/self/fd | tr '\\n' ' '") };
    for spec in
        [sh("ls /proc/self/fd | tr '\\n' ' '"), user_sh("u1", "ls /proc/self/fd | tr '\\n' ' '"), terminal]
    {
        let spec = ProcessSpec { dir: "/".into(), ..spec };
        let open = world.run(&container, &spec).await.stdout;
        // The shell's end of its pipe is 1, and 3 is the directory itself.
        assert_eq!(open.split_whitespace().collect::<Vec<_>>(), ["0", "1", "2", "3"]);
    }
    world.end(container).await;
}

async fn streamed_out(container: &Container, user: &str, path: &str) -> Option<Vec<u8>> {
    let mut tar = container.stream_out(user, path).await.ok()?;
    let mut bytes = Vec::new();
    tokio::io::AsyncReadExt::read_to_end(&mut tar, &mut bytes).await.ok()?;
    Some(bytes)
}

/// The same of tar streams. With the flaw a path through `/proc/self/fd` is packed, or unpacked into, with what pid 1 has
/// open: other processes' streams, its door to garden.
#[tokio::test(flavor = "multi_thread")]
async fn a_tar_stream_has_nothing_of_pid_1_and_the_rights_of_its_user() {
    let world = world!("a_tar_stream_has_nothing_of_pid_1_and_the_rights_of_its_user");
    symlink("/root/kept", world.root.join("tmp/link")).unwrap();
    symlink("/proc/self/fd", world.root.join("tmp/descriptors")).unwrap();
    let container = world.start(world.spec()).await;
    world
        .run(&container, &sh("mkdir -p -m 700 /root /root/kept; echo x > /root/kept/secret; chmod 700 /root"))
        .await;
    let sleeper = container.run(&sh("sleep 60"), ProcessIo::default()).await.unwrap();
    for path in ["/proc/self/fd/", "/tmp/descriptors/", "/proc/thread-self/fd/."] {
        let tar = streamed_out(&container, "", path).await.unwrap();
        let names = world::names(&tar);
        let known = |name: &str| ["./", "./0", "./1", "./2", "./3"].contains(&name);
        assert!(names.contains("./0") && names.split(' ').all(known), "{path}: {names}");
    }
    // Root may, the user may not: the control is the same stream.
    for (path, entry) in [("/tmp/link/", "./secret"), ("/root/kept", "kept/secret")] {
        assert!(world::names(&streamed_out(&container, "", path).await.unwrap()).contains(entry));
        assert!(streamed_out(&container, "alice", path).await.is_none(), "{path}");
        let tar = world::tar(|builder| world::add(builder, "new", b"x"));
        assert!(
            container.stream_in("alice", path, Box::new(std::io::Cursor::new(tar))).await.is_err(),
            "{path}"
        );
    }
    for path in ["/proc/1/root/", "/proc/1/fd/", "/proc/1/cwd/"] {
        assert!(streamed_out(&container, "", path).await.is_none(), "{path}");
    }
    for path in
        ["/proc/self/fd/4", "/proc/self/fd/5", "/proc/self/map_files", "/proc/sys/kernel", "/proc/1/cwd"]
    {
        let tar = world::tar(|builder| world::add(builder, "core_pattern", b"|/bin/owned"));
        assert!(container.stream_in("", path, Box::new(std::io::Cursor::new(tar))).await.is_err(), "{path}");
    }
    assert_eq!(world.output(&container, "ls /root/kept").await, "secret\n");
    container.stop(true).await.unwrap();
    sleeper.wait().await.unwrap();
    world.end(container).await;
}

/// A directory made for a user is made, and given away, by root. With the flaw the user swaps a link for it in between,
/// and is given what that leads to.
#[tokio::test(flavor = "multi_thread")]
async fn a_directory_made_for_a_user_gives_away_nothing_else() {
    let world = world!("a_directory_made_for_a_user_gives_away_nothing_else");
    world.bring_attacker();
    let container = world.start(world.spec()).await;
    let swapper = ProcessSpec { user: "alice".into(), ..attack("chown") };
    let swap = async { world.run(&container, &swapper).await };
    let bait = async {
        for _ in 0..300 {
            let spec = ProcessSpec { dir: "/home/alice/new/deep".into(), ..user_sh("alice", "true") };
            if let Ok(process) = container.run(&spec, ProcessIo::default()).await {
                let _ = process.wait().await;
            }
        }
        world.run(&container, &sh("touch /home/alice/stop")).await
    };
    let (done, _) = tokio::join!(swap, bait);
    assert!(done.stdout.contains("swapped: ok") && !done.stdout.contains("swapped: ok 0"), "{done:?}");
    assert_eq!(world.output(&container, "stat -c %u /etc /etc/group /etc/passwd").await, "0\n0\n0\n");
    world.end(container).await;
}

/// CVE-2025-31133. With the flaw masked paths are covered with what the image has put in the place of `/dev/null`: they
/// stay readable, or something else becomes writable.
#[tokio::test(flavor = "multi_thread")]
async fn masks_are_made_of_the_hosts_null_device_whatever_dev_holds() {
    let world = world!("masks_are_made_of_the_hosts_null_device_whatever_dev_holds");
    let volume = world.volume();
    for (name, target) in [("null", "/proc/uptime"), ("zero", "/proc/kcore"), ("pts", "/proc")] {
        symlink(target, volume.join(name)).unwrap();
        symlink(target, world.root.join("dev").join(name)).unwrap();
    }
    let file = world.outside.join("file");
    std::fs::write(&file, "kept").unwrap();
    for binds in [
        vec![],
        vec![bind(&volume, "/dev")],
        vec![bind(&file, "/dev/null")],
        vec![bind(&volume, "/dev"), bind(&file, "/dev/fresh")],
    ] {
        let container = world.start(named("masked", binds.clone())).await;
        world.is_walled_in(&container, &format!("{binds:?}")).await;
        world.end(container).await;
    }
    // `/dev/null` of the volume leads into /proc: a mount that follows it is none at all.
    let error = world.try_start(named("led", vec![bind(&volume, "/dev"), bind(&file, "/dev/null")])).await;
    assert!(error.err().unwrap().to_string().contains("/dev/null, which leads into /proc"));
    assert_eq!(std::fs::read_to_string(file).unwrap(), "kept");
}

/// CVE-2025-52565. With the flaw a terminal is bound over where the image's `/dev/console` leads, before anything is masked.
#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_is_bound_over_nothing_and_opened_by_no_name() {
    let world = world!("a_terminal_is_bound_over_nothing_and_opened_by_no_name");
    let volume = world.volume();
    for (name, target) in [
        ("console", "/proc/sys/kernel/core_pattern"),
        ("ptmx", "/etc/passwd"),
        ("pts", "/etc"),
        ("tty", "/etc/group"),
    ] {
        symlink(target, volume.join(name)).unwrap();
        symlink(target, world.root.join("dev").join(name)).unwrap();
    }
    let before = host_switches();
    for binds in [vec![], vec![bind(&volume, "/dev")]] {
        let container = world.start(named("terminal", binds)).await;
        let script =
            "rm -f /dev/ptmx /dev/console; ln -s /etc/passwd /dev/ptmx; ln -s /etc/passwd /dev/console
            stat -L -c '%t' /proc/self/fd/0; echo owned > /proc/self/fd/0";
        let spec = ProcessSpec { tty: Some(TtySpec::default()), ..sh(script) };
        for _ in 0..3 {
            let done = world.run(&container, &spec).await;
            assert!(done.stdout.starts_with("88\r\n"), "major number 136: {done:?}");
        }
        world.is_walled_in(&container, "terminals").await;
        let passwd = world.output(&container, "cat /etc/passwd").await;
        assert!(!passwd.contains("owned"), "{passwd}");
        world.end(container).await;
    }
    assert_eq!(host_switches(), before);
}

/// CVE-2025-52881. With the flaw what the runtime writes to one file of /proc, a sysctl or a label, lands in another, of the
/// host, or in none at all.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_to_proc_lands_there_and_nowhere_else() {
    let world = world!(
        "what_is_written_to_proc_lands_there_and_nowhere_else",
        |config: &mut garden::containerizer::Config| {
            config.sysctls = vec![("net.ipv4.ip_default_ttl".into(), "77".into())];
        }
    );
    let volume = world.volume();
    let target = world.outside.join("target");
    std::fs::write(&target, "kept").unwrap();
    symlink(&target, volume.join("ip_default_ttl")).unwrap();
    std::fs::create_dir_all(volume.join("self/attr")).unwrap();
    symlink(&target, volume.join("self/attr/exec")).unwrap();
    let before = (host_switches(), std::fs::read_to_string("/proc/sys/net/ipv4/ip_default_ttl").unwrap());
    for link in
        ["/proc/sys/net/ipv4", "/proc", "/proc/self", "/sys/kernel", "/dev/pts", "proc/sys", "../proc/1"]
    {
        symlink(link, world.root.join("data")).unwrap();
        let error = world.try_start(named("led", vec![bind(&volume, "/data")])).await.err();
        let error = error.map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains("leads into /proc or /sys") || error.contains(ENOENT), "{link}: {error}");
        world.nothing_left().await;
        std::fs::remove_file(world.root.join("data")).unwrap();
    }
    // The control: without a link both are done.
    let container = world.start(named("straight", vec![bind(&volume, "/data")])).await;
    assert_eq!(world.output(&container, "cat /proc/sys/net/ipv4/ip_default_ttl").await, "77\n");
    world.end(container).await;
    assert_eq!(std::fs::read_to_string(target).unwrap(), "kept");
    assert_eq!(
        (host_switches(), std::fs::read_to_string("/proc/sys/net/ipv4/ip_default_ttl").unwrap()),
        before
    );
}

/// Of the same family: with the flaw a bind mount of the container's own `/data`, a link to `/proc`, shows that once more,
/// with no path of it masked.
#[tokio::test(flavor = "multi_thread")]
async fn a_bind_mount_inside_shows_no_second_proc_without_masks() {
    let world = world!("a_bind_mount_inside_shows_no_second_proc_without_masks");
    std::fs::create_dir(world.root.join("plain")).unwrap();
    std::fs::write(world.root.join("plain/file"), "seen\n").unwrap();
    symlink("/proc", world.root.join("data")).unwrap();
    let inside =
        |source: &str, destination: &str| BindMount { origin: 1, ..bind(source.as_ref(), destination) };
    let binds = vec![inside("/data", "/x"), inside("/", "/y"), inside("/sys", "/z"), inside("/plain", "/w")];
    let container = world.start(named("twice", binds)).await;
    world.is_walled_in(&container, "once").await;
    assert_eq!(
        world.output(&container, "ls /x /y/proc /y/sys /z | grep -v : | tr -d '\\n'; cat /w/file").await,
        "seen\n"
    );
    world.end(container).await;
}
