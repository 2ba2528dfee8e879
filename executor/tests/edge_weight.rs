//! What TLS before containers costs this process while nothing happens on it, and a crowd of connections that stay.
//!
//! Counted are the bytes that are allocated, by an allocator of this test's own: pages that a process holds on to depend on
//! what it did before, these do not. Clients and apps are processes of their own, in the container's network.

mod world;

use std::io::{BufRead, BufReader, Write};
use std::net::Ipv4Addr;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use cap::Cap;
use executor::*;
use garden_client::memory::Script;
use rustix::process::{Resource as Limit, Rlimit, getrlimit, setrlimit};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use world::certificates::{authority, trusting};
use world::network::Network;
use world::*;

#[global_allocator]
static ALLOCATED: Cap<std::alloc::System> = Cap::new(std::alloc::System, usize::MAX);

const APP: u16 = 8080;
const TLS: u16 = 61001;
/// Of each kind.
const CONTAINERS: usize = 8;
/// Beside what the agent has for it without TLS. Measured: 6.3 KiB.
const IDLE_CONTAINER_BYTES_MAX: usize = 16 * 1024;
const CONNECTIONS: usize = 1000;
/// Measured: 4.3 KiB.
const IDLE_CONNECTION_BYTES_MAX: usize = 8 * 1024;
/// Of the client, of the agent, of the app.
const DESCRIPTORS: u64 = 10_000;

/// False, with a line that says why, where there can be no such crowd.
fn may_open_many(test: &str) -> bool {
    let limit = getrlimit(Limit::Nofile);
    let many = limit.maximum.unwrap_or(u64::MAX).min(DESCRIPTORS);
    if many < DESCRIPTORS {
        println!("SKIPPED {test}: needs {DESCRIPTORS} descriptors, and may have {many}");
        return false;
    }
    setrlimit(Limit::Nofile, Rlimit { current: Some(many), maximum: limit.maximum }).unwrap();
    true
}

/// A cell with room for what is measured.
fn cell(authority: InstanceIdentity, connections_max: usize) -> World {
    let world = world_with(|config| {
        config.total = CellResources { memory_mb: 10_000, disk_mb: 10_000, containers: 100 };
        config.instance_identity = Some(authority);
        config.container_proxy = Some(ContainerProxy { connections_max, ..ContainerProxy::default() });
    });
    world.garden.set_container_ip(Ipv4Addr::LOCALHOST.into());
    world.garden.script("/app", Script::runs());
    world
}

/// Each in a network of its own, where that is needed.
async fn start(world: &mut World, guid: &str, network: Option<&Network>) {
    if let Some(network) = network {
        world.garden.set_network_namespace(network.at());
    }
    let ports = vec![PortMapping { container_port: APP, ..PortMapping::default() }];
    world.start(guid, RunInfo { ports, enable_container_proxy: network.is_some(), ..recipe("/app") });
    world.expect(&[&format!("Reserved {guid}"), &format!("Running {guid}")]).await;
}

/// Once what was allocated for a while only is gone: the least that is seen within a moment.
async fn allocated() -> usize {
    let mut least = ALLOCATED.allocated();
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        least = least.min(ALLOCATED.allocated());
    }
    least
}

/// What so many containers more take.
async fn weight_of_some(world: &mut World, name: &str, networks: &[Network]) -> usize {
    let before = allocated().await;
    for number in 0..CONTAINERS {
        start(world, &format!("{name}{number}"), networks.get(number)).await;
    }
    allocated().await.saturating_sub(before) / CONTAINERS
}

/// One after the other: they share what is counted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_on_which_nothing_happens_weighs_little_and_a_crowd_keeps_nobody_out() {
    let name = "tls_on_which_nothing_happens_weighs_little_and_a_crowd_keeps_nobody_out";
    if !may_open_many(name) {
        return;
    }
    let networks: Vec<_> = (0..2 * CONTAINERS).map_while(|_| Network::start(name)).collect();
    if networks.len() < 2 * CONTAINERS {
        return;
    }
    containers_weigh_little(&networks).await;
    a_crowd_keeps_nobody_out(&networks[0], &networks[1]).await;
}

async fn containers_weigh_little(networks: &[Network]) {
    let mut world = cell(authority(), 4096);
    let (first, second) = networks.split_at(CONTAINERS);
    // What is made once, for all.
    weight_of_some(&mut world, "first", first).await;
    let without = weight_of_some(&mut world, "plain", &[]).await;
    let with = weight_of_some(&mut world, "tls", second).await;
    println!("an idle container: {without} bytes without TLS, {with} with");
    assert!(with < without + IDLE_CONTAINER_BYTES_MAX, "{with} bytes with TLS, {without} without");
    for container in world.executor.list() {
        world.executor.delete(&container.guid).await.unwrap();
    }
}

async fn a_crowd_keeps_nobody_out(network: &Network, other: &Network) {
    let authority = authority();
    let mut world = cell(authority.clone(), CONNECTIONS);
    let pem = world.state.path().join("authority.pem");
    std::fs::write(&pem, &authority.ca_certificate_pem).unwrap();
    start(&mut world, "a", Some(network)).await;
    start(&mut world, "b", Some(other)).await;
    let connections = CONNECTIONS.to_string();
    let mut app = Party::start(network, "an_app", &[]);
    let mut other_app = Party::start(other, "an_app", &[]);
    let client = |network, number: &str| {
        Party::start(network, "clients", &[("NUMBER", number), ("AUTHORITY", pem.to_str().unwrap())])
    };
    let mut crowd = client(network, &connections);
    let with_all = allocated().await;
    // All places of this container are taken; another's are not.
    let began = Instant::now();
    let mut elsewhere = client(other, "1");
    assert_eq!(elsewhere.say_hello(), "1 alive");
    println!("another container's client is served after {:?}", began.elapsed());
    assert_eq!(crowd.say_hello(), format!("{CONNECTIONS} alive"));
    crowd.end();
    // When they are gone there is room again.
    let mut next = client(network, "1");
    assert_eq!(next.say_hello(), "1 alive");
    for party in [next, elsewhere] {
        party.end();
    }
    // Threads keep their buffers for the next.
    let each = with_all.saturating_sub(allocated().await) / CONNECTIONS;
    println!("an idle connection: {each} bytes");
    assert!(each < IDLE_CONNECTION_BYTES_MAX, "{each} bytes");
    app.ask("");
    other_app.ask("");
    world.executor.delete("a").await.unwrap();
    world.executor.delete("b").await.unwrap();
}

/// This program again, in the container's network; answers lines with lines.
struct Party {
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Party {
    /// Ready when this returns.
    fn start(network: &Network, part: &'static str, env: &[(&'static str, &str)]) -> Party {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--ignored", "--exact", part, "--nocapture"]).envs(env.iter().copied());
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = network.inside(move || command.spawn().unwrap()).join().unwrap();
        let (input, output) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
        let mut party = Party { process, input, output: BufReader::new(output) };
        assert_eq!(party.heard(), "ready");
        party
    }

    fn heard(&mut self) -> String {
        let mut line = String::new();
        loop {
            line.clear();
            assert!(self.output.read_line(&mut line).unwrap() > 0, "it has ended");
            // The test program says things of its own.
            if let Some((_, said)) = line.trim_end().split_once("party: ") {
                return said.to_owned();
            }
        }
    }

    fn ask(&mut self, line: &str) {
        writeln!(self.input, "{line}").unwrap();
    }

    fn say_hello(&mut self) -> String {
        self.ask("hello");
        self.heard()
    }

    fn end(mut self) {
        drop(self.input);
        assert!(self.process.wait().unwrap().success());
    }
}

fn tell(text: &str) {
    println!("party: {text}");
}

/// The next line from whoever started this; `None` when there are no more.
async fn asked() -> Option<String> {
    let read = || std::io::stdin().lines().next().map(Result::unwrap);
    tokio::task::spawn_blocking(read).await.unwrap()
}

#[tokio::test]
#[ignore = "a part of the story above"]
async fn an_app() {
    assert!(may_open_many("an_app"));
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, APP)).await.unwrap();
    tell("ready");
    let serve = async {
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let (mut reader, mut writer) = client.split();
                tokio::io::copy(&mut reader, &mut writer).await
            });
        }
    };
    tokio::select! {
        () = serve => {}
        _ = asked() => {}
    }
}

#[tokio::test]
#[ignore = "a part of the story above"]
async fn clients() {
    assert!(may_open_many("clients"));
    let number: usize = std::env::var("NUMBER").unwrap().parse().unwrap();
    let authority = std::fs::read_to_string(std::env::var("AUTHORITY").unwrap()).unwrap();
    let connector = TlsConnector::from(trusting(&authority));
    let mut connections = Vec::new();
    for _ in 0..number {
        // By the name of whoever is there: either container.
        connections.push(connect(&connector).await);
    }
    tell("ready");
    while asked().await.is_some() {
        let mut alive = 0;
        for connection in &mut connections {
            say(connection).await;
            alive += 1;
        }
        tell(&format!("{alive} alive"));
    }
}

async fn connect(connector: &TlsConnector) -> TlsStream<TcpStream> {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, TLS)).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let mut connection =
        tokio::time::timeout(PATIENCE, connector.connect(name, stream)).await.unwrap().unwrap();
    say(&mut connection).await;
    connection
}

async fn say(connection: &mut TlsStream<TcpStream>) {
    connection.write_all(b"hello").await.unwrap();
    let mut heard = [0; 5];
    tokio::time::timeout(PATIENCE, connection.read_exact(&mut heard)).await.unwrap().unwrap();
    assert_eq!(&heard, b"hello");
}
