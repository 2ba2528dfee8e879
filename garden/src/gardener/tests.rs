//! The whole of garden on this kernel: containers out of a directory with busybox in it, in a network namespace of the
//! test's own, their control groups under a parent of the test's own.

use std::collections::BTreeMap;
use std::future::Future;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use diego_base::clock::SystemClock;
use garden_client::{
    BindMount, ImageRef, MemoryLimits, NETWORK_NAMESPACE_PROPERTY, NetIn, NetworkNamespace, PidLimits,
    TtySpec, Writer,
};
use garden_sys::netlink::route::Route;
use garden_sys::netlink::{in_namespace, new_namespace};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

mod chosen;
mod dead_mount;
mod disk;
mod drift;
pub(super) mod oci;
mod others;
mod peas;
mod plugins;
mod throttling;
mod v6;

pub(super) const PATIENCE: Duration = Duration::from_secs(60);
static WORLDS: AtomicUsize = AtomicUsize::new(0);

/// One garden and everything it may touch.
struct World {
    directory: tempfile::TempDir,
    cgroup_parent: String,
    config: Config,
    gardener: Gardener,
    shutdown: CancellationToken,
    clean: BTreeMap<&'static str, Vec<String>>,
}

/// Runs `story` with every thread of its runtime in a network namespace of its own.
fn in_a_world<F>(name: &str, story: impl FnOnce(World) -> F + Send)
where
    F: Future<Output = World>,
{
    in_a_world_of(name, |_, _| {}, story);
}

/// The same with a garden that is not as usual; what it is made of may lie in the directory.
fn in_a_world_of<F>(
    name: &str,
    configure: impl FnOnce(&mut Config, &Path) + Send,
    story: impl FnOnce(World) -> F + Send,
) where
    F: Future<Output = World>,
{
    in_a_network(name, async |init| story(World::new(&init, configure).await).await.end().await);
}

/// Runs `story` with garden's init, and with every thread of its runtime in a network namespace of its own, or says why
/// not.
pub(super) fn in_a_network(name: &str, story: impl AsyncFnOnce(PathBuf) + Send) {
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED {name}: needs root");
        return;
    }
    let (Some(init), true) = (init(), Path::new("/bin/busybox").exists()) else {
        println!(
            "SKIPPED {name}: needs /bin/busybox, and garden-init beside the tests or named by GARDEN_INIT"
        );
        return;
    };
    let namespace = new_namespace().unwrap();
    in_namespace(namespace.as_fd(), || {
        let host = Route::open().unwrap();
        host.bring_up(host.index("lo").unwrap()).unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(story(init));
    })
    .unwrap();
}

/// Said by the environment, or built beside the tests.
pub(crate) fn init() -> Option<PathBuf> {
    let said = std::env::var_os("GARDEN_INIT").map(PathBuf::from);
    let beside =
        || std::env::current_exe().ok()?.ancestors().nth(2).map(|directory| directory.join("garden-init"));
    said.or_else(beside).filter(|program| program.exists())
}

impl World {
    async fn new(init: &Path, configure: impl FnOnce(&mut Config, &Path)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let number = WORLDS.fetch_add(1, Ordering::Relaxed);
        let cgroup_parent = format!("diego-test-garden-{}-{number}", std::process::id());
        make_root(&directory.path().join("rootfs"));
        let mut config = Config::new(directory.path().join("garden"));
        config.containerizer.init = init.to_owned();
        config.containerizer.cgroup_parent = cgroup_parent.clone();
        // What is ready for later would change what is counted.
        config.warm_places = 0;
        config.rootfs.quota.image_bytes = Some(1 << 30);
        config.default_rootfs = format!("preloaded:{}", directory.path().join("rootfs").display());
        configure(&mut config, directory.path());
        let shutdown = CancellationToken::new();
        let gardener = start(&config, &shutdown).await;
        let mut world = Self { directory, cgroup_parent, config, gardener, shutdown, clean: BTreeMap::new() };
        world.clean = world.left();
        world
    }

    /// Everything that containers could leave.
    fn left(&self) -> BTreeMap<&'static str, Vec<String>> {
        self.gardener.store().settle();
        self.gardener.0.networker.settle();
        let garden = &self.config.directory;
        let mounts = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let ours = self.directory.path().to_string_lossy().into_owned();
        let nft = std::process::Command::new("nft").args(["list", "ruleset"]).output();
        BTreeMap::from([
            ("records", directories(&garden.join("depot"))),
            ("roots", names(&garden.join("store/roots"))),
            ("links", Route::open().unwrap().links().unwrap().into_iter().map(|link| link.name).collect()),
            ("firewall", nft.map(|output| lines(&output.stdout)).unwrap_or_default()),
            ("groups", self.groups()),
            ("mounts", mounts.lines().filter(|line| line.contains(&ours)).map(str::to_owned).collect()),
            ("known", self.gardener.entries().keys().cloned().collect()),
        ])
    }

    fn groups(&self) -> Vec<String> {
        self.group_parents().into_iter().flat_map(|parent| directories(&parent)).collect()
    }

    /// In each hierarchy of version 1, or the one of version 2.
    fn group_parents(&self) -> Vec<PathBuf> {
        let root = Path::new("/sys/fs/cgroup");
        let hierarchies = names(root).into_iter().map(|name| root.join(name)).chain([root.to_owned()]);
        hierarchies.map(|path| path.join(&self.cgroup_parent)).filter(|path| path.is_dir()).collect()
    }

    fn assert_nothing_left(&self) {
        assert_eq!(self.left(), self.clean);
    }

    /// Another garden on the same directory, as after a kill: nothing of the first is told.
    async fn kill_and_start_again(&mut self) {
        self.shutdown.cancel();
        self.shutdown = CancellationToken::new();
        let config = self.config.clone();
        let old = std::mem::replace(&mut self.gardener, placeholder(&config).await);
        drop(old);
        // The reaper of the old one holds it for a moment.
        let deadline = Instant::now() + PATIENCE;
        loop {
            match Gardener::start(config.clone(), Arc::new(SystemClock), self.shutdown.clone()).await {
                Ok(gardener) => {
                    self.gardener = gardener;
                    return;
                }
                Err(
                    StartError::Store(rootfs::store::Error::InUse { .. })
                    | StartError::Networker(networker::Error::InUse { .. })
                    | StartError::Containerizer(containerizer::Error::InUse { .. }),
                ) if Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(error) => panic!("{}", chain(&error)),
            }
        }
    }

    async fn end(self) {
        for handle in self.gardener.containers(&all()).await.unwrap() {
            self.gardener.destroy(&handle).await.unwrap();
        }
        self.gardener.shut_down().await;
        self.shutdown.cancel();
        let firewall = std::process::Command::new("nft").args(["list", "ruleset"]).output();
        assert_eq!(firewall.map(|output| lines(&output.stdout)).unwrap_or_default(), [] as [&str; 0]);
        assert_eq!(self.group_parents(), [] as [PathBuf; 0]);
    }

    async fn create(&self, spec: ContainerSpec) -> String {
        self.gardener.create(spec).await.unwrap()
    }

    /// What a shell command prints, and its status.
    async fn sh(&self, handle: &str, command: &str) -> (i32, String) {
        run(&self.gardener, handle, shell(command), "").await
    }
}

/// On a directory of its own; only there to be replaced.
async fn placeholder(config: &Config) -> Gardener {
    let mut config = config.clone();
    config.directory = config.directory.join(format!("placeholder-{}", uuid::Uuid::new_v4()));
    config.networker.table = format!("placeholder-{}", WORLDS.fetch_add(1, Ordering::Relaxed));
    config.networker.link_prefix = format!("p{}-", WORLDS.fetch_add(1, Ordering::Relaxed));
    config.networker.pool = "10.253.0.0/24".parse().unwrap();
    config.warm_places = 0;
    config.containerizer.cgroup_parent += &format!("-{}", WORLDS.fetch_add(1, Ordering::Relaxed));
    let gardener = start(&config, &CancellationToken::new()).await;
    gardener.0.networker.remove_table().unwrap();
    gardener.0.containerizer.remove_cgroup_parent().unwrap();
    gardener
}

async fn start(config: &Config, shutdown: &CancellationToken) -> Gardener {
    let started = Gardener::start(config.clone(), Arc::new(SystemClock), shutdown.clone()).await;
    started.unwrap_or_else(|error| panic!("{}", chain(&error)))
}

pub(super) fn make_root(root: &Path) {
    for directory in ["bin", "etc", "tmp", "home", "proc", "sys", "dev"] {
        std::fs::create_dir_all(root.join(directory)).unwrap();
    }
    std::fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    for applet in ["sh", "cat", "sleep", "nc", "ls", "wget", "id", "true", "stty", "env"] {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    std::fs::write(root.join("etc/passwd"), "root:x:0:0::/:/bin/sh\nvcap:x:2000:2000::/home:/bin/sh\n")
        .unwrap();
    std::fs::write(root.join("etc/group"), "root:x:0:\nvcap:x:2000:\n").unwrap();
}

pub(super) fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

pub(super) fn directories(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter(|entry| entry.path().is_dir()).map(|entry| entry.path().display().to_string()).collect()
}

pub(super) fn lines(bytes: &[u8]) -> Vec<String> {
    String::from_utf8_lossy(bytes).lines().map(str::to_owned).collect()
}

pub(super) fn all() -> Properties {
    [("garden.state".to_owned(), "all".to_owned())].into()
}

pub(super) fn named(handle: &str) -> ContainerSpec {
    ContainerSpec { handle: handle.into(), ..ContainerSpec::default() }
}

pub(super) fn shell(command: &str) -> ProcessSpec {
    ProcessSpec { path: "sh".into(), args: vec!["-c".into(), command.into()], ..ProcessSpec::default() }
}

/// Keeps what is written to it.
pub(super) fn sink() -> (Writer, tokio::task::JoinHandle<String>) {
    let (write, mut read) = tokio::io::duplex(1024);
    let text = tokio::spawn(async move {
        let mut text = String::new();
        read.read_to_string(&mut text).await.unwrap();
        text
    });
    (Box::new(write), text)
}

pub(super) async fn run(garden: &dyn Garden, handle: &str, spec: ProcessSpec, stdin: &str) -> (i32, String) {
    let ((stdout, out), (stderr, err)) = (sink(), sink());
    let stdin: Reader = Box::new(std::io::Cursor::new(stdin.as_bytes().to_vec()));
    let io = ProcessIo { stdin: Some(stdin), stdout: Some(stdout), stderr: Some(stderr) };
    let process = garden.run(handle, spec, io).await.unwrap();
    let status = tokio::time::timeout(PATIENCE, process.wait()).await.unwrap().unwrap();
    drop(process);
    (status, out.await.unwrap() + &err.await.unwrap())
}

pub(super) async fn eventually<T>(what: &str, mut check: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = check().await {
            return value;
        }
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[test]
fn a_container_is_made_used_and_gone() {
    in_a_world("a_container_is_made_used_and_gone", async |world| {
        let garden = &world.gardener;
        let host_file = world.directory.path().join("shared");
        std::fs::write(&host_file, "from the host").unwrap();
        let spec = ContainerSpec {
            env: vec!["A=container".into(), "B=container".into()],
            properties: [("tag", "x"), (NETWORK_NAMESPACE_PROPERTY, "1:1")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
            net_in: vec![NetIn { host_port: 0, container_port: 8080 }],
            bind_mounts: vec![BindMount {
                src_path: host_file.display().to_string(),
                dst_path: "/mnt/shared".into(),
                ..BindMount::default()
            }],
            limits: Limits {
                memory: MemoryLimits { limit_in_bytes: 64 << 20 },
                pid: PidLimits { max: 50 },
                ..Limits::default()
            },
            ..named("h")
        };
        world.create(spec.clone()).await;
        assert_eq!(garden.current_limits("h").await.unwrap(), spec.limits);

        let info = garden.info("h").await.unwrap();
        assert_eq!((info.state.as_str(), info.container_ip.as_str()), ("active", "10.254.0.2"));
        assert_eq!((info.host_ip.as_str(), info.mapped_ports.len()), ("10.254.0.1", 1));
        let namespace = &info.properties[NETWORK_NAMESPACE_PROPERTY];
        let namespace: NetworkNamespace = namespace.parse().unwrap();
        let known = garden_sys::process::start_time(Path::new("/proc"), namespace.pid).unwrap();
        assert_eq!(known, Some(namespace.started), "whoever serves its network finds it");

        let mut echo = shell("cat; echo \"$A $B\"; cat /mnt/shared /etc/hosts; exit 3");
        echo.env = vec!["B=process".into()];
        let (status, text) = run(garden, "h", echo, "input\n").await;
        assert_eq!(status, 3, "{text}");
        for part in ["input\n", "container process", "from the host", "10.254.0.2 h"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let mut by_user = shell("id -u; echo >> /etc/hosts");
        by_user.user = "vcap".into();
        let (status, text) = run(garden, "h", by_user, "").await;
        assert!(status != 0 && text.starts_with("2000\n"), "{text}");
        assert_eq!(world.sh("h", "echo '10.0.0.9 other' >> /etc/hosts").await, (0, String::new()));

        a_server_answers_by_its_port(&world, info.mapped_ports[0].host_port as u16).await;
        files_go_in_and_out(&world).await;
        let metrics = garden.metrics("h").await.unwrap();
        assert!(metrics.cpu.usage > 0 && metrics.age > 0 && metrics.pid.current > 0, "{metrics:?}");
        assert_eq!(metrics.memory.hierarchical_memory_limit, 64 << 20);
        assert!(
            metrics.network.unwrap().rx_bytes > 0 && metrics.disk.exclusive_bytes_used > 0,
            "{metrics:?}"
        );

        assert_eq!(garden.containers(&[("tag".to_owned(), "x".to_owned())].into()).await.unwrap(), ["h"]);
        garden.set_property("h", "tag", "y").await.unwrap();
        assert_eq!(
            garden.containers(&[("tag".to_owned(), "x".to_owned())].into()).await.unwrap(),
            [] as [&str; 0]
        );
        let missing = garden.property("h", "none").await.unwrap_err();
        assert_eq!(missing.to_string(), "property does not exist: none");

        garden.stop("h", false).await.unwrap();
        assert_eq!(garden.info("h").await.unwrap().state, "stopped");
        garden.destroy("h").await.unwrap();
        assert_eq!(garden.destroy("h").await, Err(Error::ContainerNotFound { handle: "h".into() }));
        world.assert_nothing_left();
        world
    });
}

#[test]
fn a_container_moves_into_a_place_that_was_ready() {
    in_a_world("a_container_moves_into_a_place_that_was_ready", async |mut world| {
        let links = || Route::open().unwrap().links().unwrap().into_iter().map(|link| link.name);
        let ready = async |links_wanted: usize| {
            eventually("places", async || (links().count() == 1 + links_wanted).then_some(())).await;
        };
        world.config.warm_places = 2;
        world.config.destroy_containers_on_start = true;
        world.kill_and_start_again().await;
        ready(2).await;
        let waiting: Vec<String> = links().collect();
        world
            .create(ContainerSpec {
                net_in: vec![NetIn { host_port: 0, container_port: 8080 }],
                ..named("h")
            })
            .await;
        let connection =
            world.gardener.entries()["h"].with_record(|record| record.connection.clone()).unwrap();
        assert!(waiting.contains(&connection.host_link), "{waiting:?}");
        ready(3).await;
        let port = world.gardener.info("h").await.unwrap().mapped_ports[0].host_port as u16;
        a_server_answers_by_its_port(&world, port).await;

        // A killed garden leaves no place behind, and neither does one that is told to stop.
        world.kill_and_start_again().await;
        ready(2).await;
        world.gardener.shut_down().await;
        assert_eq!(links().count(), 1);
        for moment in 0..20 {
            world.kill_and_start_again().await;
            tokio::time::sleep(Duration::from_millis(moment)).await;
            world.gardener.shut_down().await;
            assert_eq!(links().collect::<Vec<_>>(), ["lo"], "told to stop {moment} ms after its start");
        }
        world
    });
}

async fn a_server_answers_by_its_port(world: &World, port: u16) {
    let server =
        ProcessSpec { id: "server".into(), ..shell("while true; do echo hello | nc -l -p 8080; done") };
    let process = world.gardener.run("h", server, ProcessIo::default()).await.unwrap();
    assert_eq!(world.gardener.info("h").await.unwrap().process_ids, ["server"]);
    let answer = eventually("an answer", async || {
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await.ok()?;
        (!text.is_empty()).then_some(text)
    });
    assert_eq!(answer.await, "hello\n");
    let attached = world.gardener.attach("h", "server", ProcessIo::default()).await.unwrap();
    attached.signal(Signal::Kill).await.unwrap();
    assert_eq!((process.wait().await, attached.wait().await), (Ok(137), Ok(137)));
    let none = world.gardener.attach("h", "none", ProcessIo::default()).await.err();
    assert_eq!(none, Some(Error::ProcessNotFound { process_id: "none".into() }));
}

async fn files_go_in_and_out(world: &World) {
    world.sh("h", "mkdir -p /home/a && echo content > /home/a/file").await;
    let tar = world.gardener.stream_out("h", "", "/home/a/").await.unwrap();
    world.gardener.stream_in("h", "vcap", "/tmp/b", tar).await.unwrap();
    assert_eq!(world.sh("h", "cat /tmp/b/file").await, (0, "content\n".into()));
    assert!(world.gardener.stream_out("h", "", "/none").await.is_err());
}

#[test]
fn a_creation_that_fails_leaves_nothing_whatever_the_step() {
    in_a_world("a_creation_that_fails_leaves_nothing_whatever_the_step", async |world| {
        for step in create::Step::ALL {
            *world.gardener.0.fail_after.lock().unwrap() = Some(step);
            let spec =
                ContainerSpec { net_in: vec![NetIn { host_port: 7000, container_port: 1 }], ..named("h") };
            let error = world.gardener.create(spec).await.unwrap_err();
            assert_eq!(error.to_string(), format!("failed after {step:?}"));
            world.assert_nothing_left();
        }
        *world.gardener.0.fail_after.lock().unwrap() = None;
        // The handle and the port are free again.
        let spec = ContainerSpec { net_in: vec![NetIn { host_port: 7000, container_port: 1 }], ..named("h") };
        world.create(spec).await;
        world
    });
}

#[test]
fn what_cannot_be_made_is_refused_with_a_reason() {
    in_a_world("what_cannot_be_made_is_refused_with_a_reason", async |mut world| {
        world.shutdown.cancel();
        let refused = async |spec: ContainerSpec, part: &str| {
            let error = world.gardener.create(spec).await.unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
            world.assert_nothing_left();
        };
        refused(named("a/b"), "is no handle").await;
        let image = |uri: &str| ContainerSpec {
            image: ImageRef { uri: uri.into(), ..Default::default() },
            ..named("h")
        };
        refused(image("preloaded:none"), "no preloaded root filesystem 'none'").await;
        refused(image("nonsense://x"), "names no image").await;
        let bind =
            BindMount { src_path: "/does/not/exist".into(), dst_path: "/x".into(), ..Default::default() };
        refused(ContainerSpec { bind_mounts: vec![bind], ..named("h") }, "/does/not/exist").await;
        let bind = BindMount { src_path: "/tmp".into(), dst_path: "/proc/x".into(), ..Default::default() };
        refused(ContainerSpec { bind_mounts: vec![bind], ..named("h") }, "/proc/x").await;
        let port = NetIn { host_port: 70_000, container_port: 1 };
        refused(ContainerSpec { net_in: vec![port], ..named("h") }, "port 70000 does not exist").await;

        world.create(named("h")).await;
        let error = world.gardener.create(named("h")).await.unwrap_err();
        assert_eq!(error.to_string(), "Handle 'h' already in use");
        let (status, _) = world.sh("h", "true").await;
        assert_eq!(status, 0, "the first is none the worse for it");
        let missing = world.gardener.run(
            "h",
            ProcessSpec { path: "/none".into(), ..Default::default() },
            ProcessIo::default(),
        );
        let missing = missing.await.err();
        assert!(matches!(missing, Some(Error::ExecutableNotFound(_))), "{missing:?}");
        world.gardener.destroy("h").await.unwrap();
        let image = garden_client::ImageRef { uri: "/b".into(), ..Default::default() };
        let both = ContainerSpec { rootfs_path: "/a".into(), image, ..named("b") };
        let error = world.gardener.create(both).await.unwrap_err();
        assert_eq!(error.to_string(), "Cannot provide both Image.URI and RootFSPath");

        world.config.max_containers = 1;
        world.config.allow_privileged = false;
        world.kill_and_start_again().await;
        let privileged = ContainerSpec { privileged: true, ..named("p") };
        let error = world.gardener.create(privileged).await.unwrap_err();
        assert_eq!(error.to_string(), "privileged container creation is disabled");
        world.create(named("h")).await;
        assert_eq!(
            world.gardener.create(named("i")).await.unwrap_err().to_string(),
            "max containers reached"
        );
        assert_eq!(world.gardener.capacity().await.unwrap().max_containers, 1);
        world
    });
}

#[test]
fn containers_do_not_wait_for_one_another() {
    in_a_world("containers_do_not_wait_for_one_another", async |world| {
        let handles: Vec<String> = (0..12).map(|number| format!("c{number}")).collect();
        let creating = handles.iter().map(|handle| world.gardener.create(named(handle)));
        for created in futures_util::future::join_all(creating).await {
            created.unwrap();
        }
        let infos = world.gardener.bulk_info(&handles).await.unwrap();
        let addresses: std::collections::BTreeSet<_> =
            infos.values().map(|info| info.as_ref().unwrap().container_ip.clone()).collect();
        assert_eq!(addresses.len(), handles.len());
        let metrics = world.gardener.bulk_metrics(&handles).await.unwrap();
        assert!(metrics.values().all(Result::is_ok), "{metrics:?}");

        // Each twice at once: one of the two does it, the other is told so.
        let twice = handles.iter().chain(&handles).map(|handle| world.gardener.destroy(handle));
        let results = futures_util::future::join_all(twice).await;
        assert_eq!(results.iter().filter(|result| result.is_ok()).count(), handles.len());
        for error in results.into_iter().filter_map(Result::err) {
            let text = error.to_string();
            assert!(
                text == "container already being destroyed" || text.starts_with("unknown handle"),
                "{text}"
            );
        }
        world.assert_nothing_left();
        world
    });
}

#[test]
fn a_garden_that_is_to_begin_clean_takes_away_what_a_killed_one_left() {
    let name = "a_garden_that_is_to_begin_clean_takes_away_what_a_killed_one_left";
    in_a_world(name, async |mut world| {
        for handle in ["a", "b"] {
            world.create(ContainerSpec { net_in: vec![NetIn::default()], ..named(handle) }).await;
            let io = ProcessIo::default();
            world.gardener.run(handle, shell("sleep 1000"), io).await.unwrap();
        }
        assert!(world.left() != world.clean);
        std::fs::create_dir(world.config.directory.join("depot/half")).unwrap();
        world.config.destroy_containers_on_start = true;
        world.kill_and_start_again().await;
        world.assert_nothing_left();
        world.create(named("a")).await;
        world
    });
}

#[test]
fn a_container_nobody_uses_is_reaped_after_its_grace_time() {
    in_a_world("a_container_nobody_uses_is_reaped_after_its_grace_time", async |world| {
        let short = Duration::from_millis(300);
        world.create(named("without")).await;
        world.create(ContainerSpec { grace_time: short.as_nanos() as u64, ..named("used") }).await;
        let process = world.gardener.run("used", shell("sleep 1000"), ProcessIo::default()).await.unwrap();
        world.create(ContainerSpec { grace_time: short.as_nanos() as u64, ..named("unused") }).await;
        let gone = async |handle: &str| {
            let handle = handle.to_owned();
            eventually("reaped", async || {
                (!world.gardener.containers(&all()).await.unwrap().contains(&handle)).then_some(())
            })
            .await;
        };
        gone("unused").await;
        assert_eq!(world.gardener.containers(&all()).await.unwrap(), ["used", "without"]);
        drop(process);
        gone("used").await;
        world.gardener.set_grace_time("without", short).await.unwrap();
        gone("without").await;
        world.assert_nothing_left();
        world
    });
}

#[test]
fn real_containers_answer_over_http() {
    in_a_world("real_containers_answer_over_http", async |world| {
        let socket = world.directory.path().join("garden.sock");
        let listener =
            diego_base::serve::Listener::bind(diego_base::serve::Listen::Unix(socket.clone())).await.unwrap();
        let garden: Arc<dyn Garden> = Arc::new(world.gardener.clone());
        let serving = tokio::spawn(crate::http::serve(listener, garden, world.shutdown.clone()));
        let client = garden_client::HttpGarden::new(garden_client::Address::Unix(socket));
        client.create(named("h")).await.unwrap();

        let (status, text) = run(&client, "h", shell("cat >&2; echo done; exit 7"), "grüße\n").await;
        assert_eq!((status, text.as_str()), (7, "done\ngrüße\n"));
        let big = "x".repeat(3 << 20);
        let (status, text) = run(&client, "h", shell("cat"), &big).await;
        assert_eq!((status, text.len()), (0, big.len()));

        let tar = client.stream_out("h", "", "/etc/passwd").await.unwrap();
        client.stream_in("h", "", "/tmp/in", tar).await.unwrap();
        let (_, text) = run(&client, "h", shell("cat /tmp/in/passwd"), "").await;
        assert!(text.contains("vcap"), "{text}");

        let tty = ProcessSpec {
            tty: Some(TtySpec { window_size: Some(WindowSize { columns: 91, rows: 17 }) }),
            ..shell("read line; stty size; echo got $line")
        };
        let (mut keyboard, stdin) = tokio::io::duplex(64);
        let (stdout, out) = sink();
        let io = ProcessIo { stdin: Some(Box::new(stdin)), stdout: Some(stdout), stderr: None };
        let process = client.run("h", tty, io).await.unwrap();
        process.set_window_size(WindowSize { columns: 92, rows: 18 }).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        keyboard.write_all(b"hello\n").await.unwrap();
        assert_eq!(process.wait().await, Ok(0));
        let text = out.await.unwrap();
        assert!(text.contains("18 92") && text.contains("got hello"), "{text}");

        let sleeper = client.run("h", shell("sleep 1000"), ProcessIo::default()).await.unwrap();
        sleeper.signal(Signal::Terminate).await.unwrap();
        assert_eq!(sleeper.wait().await, Ok(143));
        client.destroy("h").await.unwrap();
        world.shutdown.cancel();
        serving.await.unwrap();
        world.assert_nothing_left();
        world
    });
}
