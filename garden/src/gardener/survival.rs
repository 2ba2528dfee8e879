//! Gardens that are killed, as processes of their own: this test program started once more, with [`GARDEN`] in its
//! environment. What they leave, and what the next one makes of it.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use garden_client::{Address, BindMount, HttpGarden, MemoryLimits, NetIn, TtySpec, Writer};
use garden_sys::netlink::route::Route;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;

use super::tests::{
    PATIENCE, all, directories, eventually, in_a_network, lines, make_root, named, names, run, shell, sink,
};
use super::*;

mod oci;
mod peas;

/// What a garden in a process of its own is to be.
const GARDEN: &str = "GARDEN_OF_ITS_OWN";

#[derive(Serialize, Deserialize, Clone)]
struct Settings {
    init: PathBuf,
    directory: PathBuf,
    rootfs: PathBuf,
    socket: PathBuf,
    cgroup_parent: String,
    /// Where the kernel has IPv6.
    network_pool_v6: Option<String>,
    warm_places: usize,
    /// A program that makes containers of those who ask for it.
    oci: Option<PathBuf>,
    /// Ends itself by SIGKILL at this step, counted from the first of its life.
    dies_at: Option<usize>,
}

#[test]
fn a_garden_in_a_process_of_its_own() {
    let Some(settings) = std::env::var_os(GARDEN) else { return };
    let settings: Settings = serde_json::from_slice(settings.as_encoded_bytes()).unwrap();
    crate::milestone::die_at(settings.dies_at.unwrap_or(usize::MAX));
    let mut gardener = Config::new(settings.directory);
    gardener.containerizer.init = settings.init;
    gardener.containerizer.cgroup_parent = settings.cgroup_parent;
    gardener.networker.pool_v6 = settings.network_pool_v6.map(|pool| pool.parse().unwrap());
    gardener.warm_places = settings.warm_places;
    let runtime = |program| crate::containerizer::Runtime { program, extra_args: Vec::new() };
    gardener.containerizer.oci = settings.oci.map(runtime);
    gardener.default_rootfs = format!("preloaded:{}", settings.rootfs.display());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let listen = diego_base::serve::Listen::Unix(settings.socket);
    let ended = runtime
        .block_on(crate::run(crate::Config { listen, debug: None, gardener }, CancellationToken::new()));
    ended.unwrap_or_else(|error| panic!("{}", chain(&error)));
}

/// Of the pools, but not them.
fn is_of_pools(line: &str) -> bool {
    let without = line.replace("10.254.0.0/18", "").replace("fd00:d1e9::/112", "");
    without.contains("10.254.") || without.contains("fd00:d1e9:")
}

/// A place for gardens, one after the other, and everything they may touch.
struct Place {
    directory: tempfile::TempDir,
    settings: Settings,
    running: Option<Child>,
    /// Their process ids, which are their process groups.
    gardens: Vec<u32>,
    client: HttpGarden,
}

static PLACES: AtomicUsize = AtomicUsize::new(0);

/// Runs `story` with every thread and every garden in a network namespace of its own.
fn in_a_place<F>(name: &str, story: impl FnOnce(Place) -> F + Send)
where
    F: Future<Output = Place>,
{
    in_a_network(name, async |init| story(Place::new(init)).await.end().await);
}

impl Place {
    fn new(init: PathBuf) -> Place {
        let directory = tempfile::tempdir().unwrap();
        make_root(&directory.path().join("rootfs"));
        std::fs::create_dir(directory.path().join("shared")).unwrap();
        // Longer than what the address of a socket holds.
        let long = directory.path().join("a-directory-with-a-long-name".repeat(4));
        let number = PLACES.fetch_add(1, Ordering::Relaxed);
        let settings = Settings {
            init,
            directory: long.join("garden"),
            rootfs: directory.path().join("rootfs"),
            socket: directory.path().join("garden.sock"),
            cgroup_parent: format!("diego-test-survival-{}-{number}", std::process::id()),
            network_pool_v6: Path::new("/proc/net/if_inet6").exists().then(|| "fd00:d1e9::/112".into()),
            warm_places: 0,
            oci: None,
            dies_at: None,
        };
        let client = HttpGarden::new(Address::Unix(settings.socket.clone()));
        Place { directory, settings, running: None, gardens: Vec::new(), client }
    }

    fn shared(&self) -> PathBuf {
        self.directory.path().join("shared")
    }

    /// A garden, not heard of yet.
    fn begin(&mut self) {
        assert!(self.running.is_none());
        let garden = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "gardener::survival::a_garden_in_a_process_of_its_own", "--nocapture"])
            .env(GARDEN, serde_json::to_string(&self.settings).unwrap())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap();
        self.gardens.push(garden.id());
        self.running = Some(garden);
    }

    async fn start(&mut self) {
        self.begin();
        let started = Instant::now();
        while self.client.ping().await.is_err() {
            assert!(started.elapsed() < PATIENCE, "the garden does not answer");
            assert!(self.running.as_mut().unwrap().try_wait().unwrap().is_none(), "the garden has ended");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Whether a garden that dies by itself has done what was asked for first.
    async fn lives_through(&mut self, dies_at: usize, asked: impl AsyncFnOnce(&HttpGarden) -> bool) -> bool {
        self.settings.dies_at = Some(dies_at);
        self.begin();
        self.settings.dies_at = None;
        let started = Instant::now();
        while self.client.ping().await.is_err() {
            assert!(started.elapsed() < PATIENCE, "the garden does not answer");
            if self.running.as_mut().unwrap().try_wait().unwrap().is_some() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let client = HttpGarden::new(Address::Unix(self.settings.socket.clone()));
        let done = asked(&client).await;
        // What it does behind the answer can be its end, too.
        tokio::time::sleep(Duration::from_millis(if done { 150 } else { 0 })).await;
        let lives = self.running.as_mut().unwrap().try_wait().unwrap().is_none();
        self.kill();
        done && lives
    }

    /// A garden that begins now finds the container whole, or not at all.
    async fn whole_or_gone(&mut self, when: &str) {
        self.start().await;
        if self.client.containers(&all()).await.unwrap() == ["h"] {
            assert_eq!(
                run(&self.client, "h", shell("echo whole"), "").await,
                (0, "whole\n".into()),
                "{when}"
            );
            self.client.destroy("h").await.unwrap();
        }
        self.assert_nothing_left(when).await;
        self.kill();
    }

    fn kill(&mut self) {
        let mut garden = self.running.take().unwrap();
        garden.kill().unwrap();
        garden.wait().unwrap();
    }

    /// Everything that containers could leave, but for what garden needs itself.
    fn left(&self) -> BTreeMap<&'static str, Vec<String>> {
        let mounts = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let ours = self.directory.path().to_string_lossy().into_owned();
        let groups = names(Path::new("/sys/fs/cgroup"))
            .into_iter()
            .map(|name| Path::new("/sys/fs/cgroup").join(name).join(&self.settings.cgroup_parent))
            .flat_map(|parent| directories(&parent));
        let links = Route::open().unwrap().links().unwrap().into_iter().map(|link| link.name);
        let nft = Command::new("nft").args(["list", "ruleset"]).output();
        let elements = nft.map(|output| lines(&output.stdout)).unwrap_or_default().into_iter();
        BTreeMap::from([
            ("records", directories(&self.settings.directory.join("depot"))),
            ("roots", names(&self.settings.directory.join("store/roots"))),
            ("links", links.filter(|name| name != "lo").collect()),
            ("firewall", elements.filter(|line| is_of_pools(line)).collect()),
            ("groups", groups.collect()),
            ("mounts", mounts.lines().filter(|line| line.contains(&ours)).map(str::to_owned).collect()),
            ("processes", self.processes()),
        ])
    }

    /// Of containers, by their control groups; of gardens that were killed, and blanks, by the process group that each garden
    /// has. The garden that runs has its nursery.
    fn processes(&self) -> Vec<String> {
        let garden = self.running.as_ref().map_or(0, Child::id).to_string();
        let ours = |pid: &String| {
            let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let mut fields = stat.rsplit_once(") ").map_or("", |(_, rest)| rest).split(' ').skip(1);
            let (parent, group) = (fields.next().unwrap_or_default(), fields.next().unwrap_or_default());
            let of_a_garden = self.gardens.iter().any(|garden| garden.to_string() == group);
            groups.contains(&self.settings.cgroup_parent)
                || of_a_garden && *pid != garden && (parent != garden || garden == "0")
        };
        names(Path::new("/proc"))
            .into_iter()
            .filter(|name| name.parse::<u32>().is_ok())
            .filter(ours)
            .collect()
    }

    async fn assert_nothing_left(&self, when: &str) {
        let nothing: BTreeMap<&str, Vec<String>> =
            self.left().into_keys().map(|what| (what, vec![])).collect();
        let started = Instant::now();
        while self.left() != nothing {
            assert!(started.elapsed() < PATIENCE, "{when}: {:#?}", self.left());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn end(mut self) {
        if self.running.is_none() {
            self.start().await;
        }
        for handle in self.client.containers(&all()).await.unwrap() {
            self.client.destroy(&handle).await.unwrap();
        }
        self.assert_nothing_left("at the end").await;
    }
}

impl Drop for Place {
    /// After a failed test, too: whatever is in our groups is ours.
    fn drop(&mut self) {
        if self.running.is_some() {
            self.kill();
        }
        let Ok(hierarchies) = garden_sys::cgroup::Hierarchies::probe(Path::new("/sys/fs/cgroup")) else {
            return;
        };
        let parent = &self.settings.cgroup_parent;
        for name in hierarchies.names(parent).unwrap_or_default() {
            _ = hierarchies.cgroup(parent, &name).remove();
        }
        _ = hierarchies.remove_parent(parent);
        // An OCI runtime makes groups in hierarchies that we do not use.
        let root = Path::new("/sys/fs/cgroup");
        for hierarchy in names(root) {
            _ = std::fs::remove_dir(root.join(hierarchy).join(parent));
        }
    }
}

/// What one client hears of a process.
struct Heard {
    process: Box<dyn Process>,
    stdout: tokio::task::JoinHandle<String>,
    stderr: tokio::task::JoinHandle<String>,
}

impl Heard {
    async fn attach(client: &HttpGarden, id: &str, stdin: Option<Reader>) -> Heard {
        let ((stdout, out), (stderr, err)) = (sink(), sink());
        let io = ProcessIo { stdin, stdout: Some(stdout), stderr: Some(stderr) };
        let process = client.attach("h", id, io).await.unwrap();
        Heard { process, stdout: out, stderr: err }
    }

    async fn all(self) -> (i32, String, String) {
        let status = tokio::time::timeout(PATIENCE, self.process.wait()).await.expect("it ends").unwrap();
        drop(self.process);
        (status, self.stdout.await.unwrap(), self.stderr.await.unwrap())
    }
}

fn process(id: &str, script: &str) -> ProcessSpec {
    ProcessSpec { id: id.into(), ..shell(script) }
}

/// A listener whose text can be looked at while it grows.
fn page() -> (Writer, Arc<Mutex<String>>) {
    let (write, mut read) = tokio::io::duplex(1024);
    let text = Arc::new(Mutex::new(String::new()));
    let page = text.clone();
    tokio::spawn(async move {
        let mut chunk = [0; 1024];
        while let Ok(length @ 1..) = tokio::io::AsyncReadExt::read(&mut read, &mut chunk).await {
            page.lock().unwrap().push_str(&String::from_utf8_lossy(&chunk[..length]));
        }
    });
    (Box::new(write), text)
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    eventually(what, async || condition().then_some(())).await;
}

fn full_spec(place: &Place) -> ContainerSpec {
    let shared = BindMount {
        src_path: place.shared().display().to_string(),
        dst_path: "/shared".into(),
        mode: 1,
        ..BindMount::default()
    };
    ContainerSpec {
        env: vec!["KEPT=yes".into()],
        grace_time: 3_600_000_000_000,
        properties: [("a".to_owned(), "b".to_owned())].into(),
        net_in: vec![NetIn { host_port: 0, container_port: 8080 }],
        bind_mounts: vec![shared],
        limits: Limits { memory: MemoryLimits { limit_in_bytes: 64 << 20 }, ..Limits::default() },
        ..named("h")
    }
}

const WAIT: &str = "while [ ! -e /shared/go ]; do sleep 0.02; done; ";

#[test]
fn a_killed_garden_is_not_missed() {
    in_a_place("a_killed_garden_is_not_missed", async |mut place| {
        place.start().await;
        std::fs::set_permissions(place.shared(), std::os::unix::fs::PermissionsExt::from_mode(0o777))
            .unwrap();
        let client = HttpGarden::new(Address::Unix(place.settings.socket.clone()));
        client.create(full_spec(&place)).await.unwrap();
        client.create(ContainerSpec { privileged: true, ..named("p") }).await.unwrap();
        client.net_in("h", 0, 9090).await.unwrap();
        client.set_property("h", "c", "d").await.unwrap();
        let (info, limits) = (client.info("h").await.unwrap(), client.current_limits("h").await.unwrap());

        // A process of every kind, and a connection by the mapped port.
        let io = || ProcessIo { stdin: Some(Box::new(tokio::io::empty())), ..ProcessIo::default() };
        let ender = process(
            "ender",
            &format!("{WAIT} echo last words; echo complaint >&2; touch /shared/ended; exit 7"),
        );
        client.run("h", ender, io()).await.unwrap();
        let flood = process(
            "flood",
            &format!("{WAIT} dd if=/dev/zero bs=1000 count=900 2>/dev/null | tr '\\0' x; exit 3"),
        );
        client.run("h", flood, io()).await.unwrap();
        let silent = process("silent", &format!("{WAIT} exit 9"));
        client.run("h", silent, io()).await.unwrap();
        let (mut words, stdin) = tokio::io::duplex(64);
        let (stdout, text) = page();
        let reader = process("reader", "while read line; do echo got $line; done; echo over; exit 4");
        let reading = ProcessIo { stdin: Some(Box::new(stdin)), stdout: Some(stdout), stderr: None };
        let first = client.run("h", reader, reading).await.unwrap();
        words.write_all(b"one\n").await.unwrap();
        until("the first line", || text.lock().unwrap().as_str() == "got one\n").await;
        let tty = ProcessSpec {
            tty: Some(TtySpec { window_size: Some(WindowSize { columns: 91, rows: 17 }) }),
            ..process("terminal", "read line; stty size; echo got $line; exit 5")
        };
        client.run("h", tty, ProcessIo::default()).await.unwrap();
        client.run("h", process("server", "nc -l -p 8080 -e cat"), io()).await.unwrap();
        let port = info.mapped_ports[0].host_port as u16;
        let mut connection =
            eventually("a connection", async || std::net::TcpStream::connect(("127.0.0.1", port)).ok()).await;
        connection.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut say = |word: &[u8; 4]| {
            connection.write_all(word).unwrap();
            let mut answer = [0; 4];
            connection.read_exact(&mut answer).unwrap();
            assert_eq!(&answer, word);
        };
        say(b"then");
        let traffic = client.metrics("h").await.unwrap().network.unwrap();

        place.kill();
        drop(first);
        std::fs::write(place.shared().join("go"), "").unwrap();
        until("the end of a process without a garden", || place.shared().join("ended").exists()).await;
        say(b"dead");
        place.start().await;
        say(b"here");

        // All is as it was.
        let mut handles = client.containers(&all()).await.unwrap();
        handles.sort();
        assert_eq!(handles, ["h", "p"]);
        let now = client.info("h").await.unwrap();
        assert_eq!(
            (now.state.as_str(), &now.mapped_ports, &now.properties),
            (
                "active",
                &{
                    let mut ports = info.mapped_ports.clone();
                    ports.extend(now.mapped_ports.get(ports.len()..).unwrap_or_default().to_vec());
                    ports
                },
                &info.properties
            )
        );
        assert_eq!((&now.container_ip, &now.host_ip), (&info.container_ip, &info.host_ip));
        assert_eq!(now.container_ipv6, info.container_ipv6);
        assert_eq!(now.container_ipv6.is_empty(), place.settings.network_pool_v6.is_none());
        assert_eq!(now.mapped_ports[1].container_port, 9090);
        assert_eq!(client.current_limits("h").await.unwrap(), limits);
        let metrics = client.metrics("h").await.unwrap();
        assert_eq!(metrics.memory.hierarchical_memory_limit, 64 << 20);
        assert!(metrics.network.unwrap().rx_bytes > traffic.rx_bytes);
        assert_eq!(run(&client, "h", shell("echo $KEPT"), "").await, (0, "yes\n".into()));
        assert_eq!(run(&client, "p", shell("echo p"), "").await, (0, "p\n".into()));

        // Nothing was lost, and it goes on.
        let ender = Heard::attach(&client, "ender", None).await;
        assert_eq!(ender.all().await, (7, "last words\n".into(), "complaint\n".into()));
        let (status, text, _) = Heard::attach(&client, "flood", None).await.all().await;
        assert_eq!((status, text.len()), (3, 900_000));
        assert_eq!(Heard::attach(&client, "silent", None).await.all().await.0, 9);
        let (mut words, stdin) = tokio::io::duplex(64);
        let reader = Heard::attach(&client, "reader", Some(Box::new(stdin))).await;
        words.write_all(b"two\n").await.unwrap();
        drop(words);
        assert_eq!(reader.all().await, (4, "got two\nover\n".into(), String::new()));
        let (mut keys, stdin) = tokio::io::duplex(64);
        let terminal = Heard::attach(&client, "terminal", Some(Box::new(stdin))).await;
        terminal.process.set_window_size(WindowSize { columns: 92, rows: 18 }).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        keys.write_all(b"hello\n").await.unwrap();
        let (status, text, _) = terminal.all().await;
        assert!(status == 5 && text.contains("18 92") && text.contains("got hello"), "{status} {text}");

        // Nobody gets what they have.
        client.create(named("new")).await.unwrap();
        let new = client.info("new").await.unwrap();
        assert_ne!(new.container_ip, info.container_ip);
        let ids = |handle: &str| {
            let handle = handle.to_owned();
            let client = &client;
            async move { run(client, &handle, shell("cat /proc/self/uid_map"), "").await.1 }
        };
        assert_ne!(ids("new").await, ids("h").await);
        let taken = client.net_in("new", u32::from(port), 1).await.unwrap_err().to_string();
        assert!(taken.contains("is in use"), "{taken}");

        // What has been told once is still known to the next one.
        place.kill();
        place.start().await;
        assert_eq!(Heard::attach(&client, "ender", None).await.all().await.0, 7);
        assert_eq!(Heard::attach(&client, "reader", None).await.all().await.0, 4);
        let server = Heard::attach(&client, "server", None).await;
        server.process.signal(Signal::Kill).await.unwrap();
        assert_eq!(server.all().await.0, 137);
        client.stop("h", true).await.unwrap();
        place.kill();
        place.start().await;
        assert_eq!(client.info("h").await.unwrap().state, "stopped");
        place
    });
}

/// More than there are, by far.
const MILESTONES_MAX: usize = 200;

#[test]
fn a_garden_that_dies_while_it_creates_leaves_all_or_nothing() {
    let name = "a_garden_that_dies_while_it_creates_leaves_all_or_nothing";
    in_a_place(name, async |mut place| {
        let spec = full_spec(&place);
        let mut deaths = 0;
        while !place.lives_through(deaths + 1, async |client| client.create(spec.clone()).await.is_ok()).await
        {
            deaths += 1;
            assert!(deaths < MILESTONES_MAX);
            place.whole_or_gone(&format!("killed at {deaths} while creating")).await;
        }
        assert!(deaths > 10, "{deaths}");
        println!("died {deaths} times");
        place.whole_or_gone("killed after creating").await;
        place
    });
}

#[test]
fn a_garden_that_dies_while_it_destroys_leaves_all_or_nothing() {
    let name = "a_garden_that_dies_while_it_destroys_leaves_all_or_nothing";
    in_a_place(name, async |mut place| {
        let spec = full_spec(&place);
        let mut deaths = 0;
        loop {
            place.start().await;
            place.client.create(spec.clone()).await.unwrap();
            let sleeper = process("sleeper", "sleep 1000 & sleep 1000");
            place.client.run("h", sleeper, ProcessIo::default()).await.unwrap();
            place.kill();
            if place.lives_through(deaths + 1, async |client| client.destroy("h").await.is_ok()).await {
                break;
            }
            deaths += 1;
            assert!(deaths < MILESTONES_MAX);
            place.whole_or_gone(&format!("killed at {deaths} while destroying")).await;
        }
        assert!(deaths > 10, "{deaths}");
        println!("died {deaths} times");
        place
    });
}

/// Of pid 1, as the record knows it.
fn pid_of(place: &Place, handle: &str) -> rustix::process::Pid {
    let path = place.settings.directory.join("depot").join(handle).join("container.json");
    let record: depot::Record = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    rustix::process::Pid::from_raw(record.container.unwrap().init.pid).unwrap()
}

#[test]
fn a_container_whose_record_cannot_be_read_lives_until_a_client_destroys_it() {
    let name = "a_container_whose_record_cannot_be_read_lives_until_a_client_destroys_it";
    in_a_place(name, async |mut place| {
        use rustix::process::test_kill_process;
        let handles = ["garbage", "newer", "whole"];
        place.start().await;
        for handle in handles {
            place
                .client
                .create(ContainerSpec { net_in: vec![NetIn::default()], ..named(handle) })
                .await
                .unwrap();
        }
        place.kill();
        let pids = handles.map(|handle| pid_of(&place, handle));
        let path = |handle| place.settings.directory.join("depot").join(handle).join("container.json");
        let newer =
            std::fs::read_to_string(path("newer")).unwrap().replace("\"stopped\":false", "\"stopped\":{}");
        std::fs::write(path("newer"), newer).unwrap();
        std::fs::write(path("garbage"), "{\"handle\":").unwrap();
        // Nor is what was changed since taken for half made.
        for again in [false, true] {
            place.start().await;
            let mut known = place.client.containers(&all()).await.unwrap();
            known.sort();
            assert_eq!(known, handles);
            assert!(pids.iter().all(|pid| test_kill_process(*pid).is_ok()), "{again}");
            let error = place.client.run("newer", shell("true"), ProcessIo::default()).await.err().unwrap();
            assert!(error.to_string().ends_with("is broken and can only be destroyed"), "{error}");
            assert_eq!(run(&place.client, "whole", shell("echo fine"), "").await, (0, "fine\n".into()));
            if !again {
                place.client.set_property("garbage", "a", "b").await.unwrap();
                place.kill();
            }
        }
        for handle in handles {
            place.client.destroy(handle).await.unwrap();
        }
        place.assert_nothing_left("destroyed").await;
        // The machine's pid 1, whose children they became, reaps them when it gets to it.
        until("the ends of all", || pids.iter().all(|pid| test_kill_process(*pid).is_err())).await;
        place
    });
}

#[test]
fn a_container_that_does_not_answer_the_next_garden_is_broken_until_it_does() {
    let name = "a_container_that_does_not_answer_the_next_garden_is_broken_until_it_does";
    in_a_place(name, async |mut place| {
        use rustix::process::{Signal, kill_process};
        place.start().await;
        for handle in ["dead", "stuck", "h"] {
            place.client.create(named(handle)).await.unwrap();
        }
        place.kill();
        let stuck = pid_of(&place, "stuck");
        // Else the kernel may wake it with others of garden's session that end.
        assert_eq!(rustix::process::getsid(Some(stuck)).unwrap(), stuck);
        kill_process(stuck, Signal::STOP).unwrap();
        kill_process(pid_of(&place, "dead"), Signal::KILL).unwrap();
        place.start().await;
        let mut handles = place.client.containers(&all()).await.unwrap();
        handles.sort();
        assert_eq!(handles, ["dead", "h", "stuck"]);
        for broken in ["dead", "stuck"] {
            let error = place.client.run(broken, shell("true"), ProcessIo::default()).await.err().unwrap();
            assert!(error.to_string().ends_with("is broken and can only be destroyed"), "{error}");
        }
        assert_eq!(place.client.info("dead").await.unwrap().state, "stopped");
        assert_eq!(run(&place.client, "h", shell("echo fine"), "").await, (0, "fine\n".into()));
        // Late is better than never.
        kill_process(stuck, Signal::CONT).unwrap();
        eventually("it answers", async || {
            place.client.run("stuck", shell("true"), ProcessIo::default()).await.ok()
        })
        .await;
        place.client.destroy("dead").await.unwrap();
        kill_process(stuck, Signal::STOP).unwrap();
        place.kill();
        place.start().await;
        place.client.destroy("stuck").await.unwrap();
        place
    });
}
