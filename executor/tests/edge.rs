//! What containers show of themselves: certificates are replaced before they end, in the files a container reads and for
//! who connects to it. And what becomes of a cell that cannot serve TLS.

mod world;

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bbs_models::{Check, CheckDefinition};
use diego_base::clock::{Clock, ManualClock, SystemClock};
use executor::*;
use garden_client::memory::Script;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use world::certificates::{authority, trusting};
use world::network::Network;
use world::*;

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// The certificate in the files of a container, which fits the key beside it.
fn on_disk(state: &Path) -> CertificateDer<'static> {
    let read = |name| fs::read(state.join("executor-work/credentials/a").join(name)).unwrap();
    let (chain, key) = (read("instance.crt"), read("instance.key"));
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&chain).map(Result::unwrap).collect();
    assert_eq!(chain.len(), 2);
    let key = PrivateKeyDer::from_pem_slice(&key).unwrap();
    CertifiedKey::from_der(chain.clone(), key, &ring::default_provider()).unwrap();
    chain[0].clone()
}

#[tokio::test(start_paused = true)]
async fn a_container_that_takes_days_to_become_healthy_has_a_certificate_that_is_good_all_the_time() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let world = world_with(|config| {
        config.clock = Arc::new(PausedClock::start());
        config.instance_identity = Some(authority());
        config.unhealthy_monitoring_interval = HOUR;
    });
    world.garden.script("/app", Script::runs());
    let check = Check::Tcp { port: nobody.port(), connect_timeout_ms: 0, interval_ms: 0 };
    let check_definition = Some(CheckDefinition { checks: vec![check], ..Default::default() });
    world.start("a", RunInfo { check_definition, ..recipe("/app") });
    tokio::time::sleep(HOUR).await;
    let mut seen = vec![(Duration::ZERO, on_disk(world.state.path()))];
    let began = tokio::time::Instant::now() - HOUR;
    while began.elapsed() < 4 * DAY {
        tokio::time::sleep(HOUR / 12).await;
        let (now, certificate) = (began.elapsed(), on_disk(world.state.path()));
        let (since, last) = seen.last().unwrap();
        if &certificate != last {
            seen.push((now, certificate));
        } else {
            assert!(now - *since < DAY, "{now:?}: it has ended");
        }
    }
    assert_eq!(seen.len(), 5, "one for each day less half an hour");
    assert_eq!(world.executor.get("a").unwrap().state, State::Created);
    world.executor.delete("a").await.unwrap();
}

/// Says again what it is told, to everybody; ends with the test.
fn echo(listener: TcpListener) {
    while let Ok((mut client, _)) = listener.accept() {
        thread::spawn(move || {
            let mut said = [0; 64];
            while let Ok(length @ 1..) = client.read(&mut said) {
                if client.write_all(&said[..length]).is_err() {
                    break;
                }
            }
        });
    }
}

type Connection = StreamOwned<ClientConnection, TcpStream>;

/// To be called inside. Whom it meets must have a certificate of the authority that is good now.
fn connect(port: u16, config: &Arc<ClientConfig>) -> Connection {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let name = ServerName::try_from("a").unwrap();
    let mut connection = StreamOwned::new(ClientConnection::new(config.clone(), name).unwrap(), stream);
    say(&mut connection, "hello");
    connection
}

fn say(connection: &mut Connection, text: &str) {
    connection.write_all(text.as_bytes()).unwrap();
    let mut heard = vec![0; text.len()];
    connection.read_exact(&mut heard).unwrap();
    assert_eq!(heard, text.as_bytes());
}

fn shown(connection: &Connection) -> CertificateDer<'static> {
    connection.conn.peer_certificates().unwrap()[0].clone().into_owned()
}

/// Connections one after the other, of which one is made before this returns and the last after `stop`; what each was
/// shown.
fn keep_connecting(
    network: &Network,
    port: u16,
    config: &Arc<ClientConfig>,
    stop: &Arc<AtomicBool>,
) -> thread::JoinHandle<Vec<CertificateDer<'static>>> {
    let (config, stop) = (config.clone(), stop.clone());
    let (begun, has_begun) = std::sync::mpsc::channel();
    let connecting = network.inside(move || {
        let mut all = vec![shown(&connect(port, &config))];
        begun.send(()).unwrap();
        loop {
            let is_last = stop.load(Ordering::SeqCst);
            let one = shown(&connect(port, &config));
            if all.last() != Some(&one) {
                all.push(one);
            }
            if is_last {
                return all;
            }
        }
    });
    has_begun.recv().unwrap();
    connecting
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_is_replaced_under_way_and_no_connection_fails_for_it() {
    let Some(network) = Network::start("a_certificate_is_replaced_under_way_and_no_connection_fails_for_it")
    else {
        return;
    };
    // The first one ends soon, and neither is of tomorrow for clients, whose clock is the machine's.
    let clock = Arc::new(ManualClock::at(SystemClock.now_ns() - 23 * 3_600_000_000_000 - 2_400_000_000_000));
    let identity = authority();
    let client = trusting(&identity.ca_certificate_pem);
    let mut world = world_with(|config| {
        config.clock = clock.clone();
        config.clock_look_period = Duration::from_millis(100);
        config.instance_identity = Some(identity);
        config.container_proxy = Some(ContainerProxy::default());
    });
    world.garden.set_container_ip(Ipv4Addr::LOCALHOST.into());
    world.garden.set_network_namespace(network.at());
    world.garden.script("/app", Script::runs());
    network
        .inside(|| {
            TcpListener::bind("0.0.0.0:8080").map(|listener| thread::spawn(|| echo(listener))).unwrap()
        })
        .join()
        .unwrap();
    let ports = vec![PortMapping { container_port: 8080, ..PortMapping::default() }];
    world.start("a", RunInfo { ports, enable_container_proxy: true, ..recipe("/app") });
    world.expect(&["Reserved a", "Running a"]).await;

    let state = world.state.path().to_path_buf();
    let config = client.clone();
    let mut old = network.inside(move || connect(61001, &config)).join().unwrap();
    assert_eq!(shown(&old), on_disk(&state));
    let config = client.clone();
    let between = network.inside(move || shown(&connect(61443, &config))).join().unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let connecting = [61001, 61443].map(|port| keep_connecting(&network, port, &client, &stop));
    clock.advance(Duration::from_secs(23 * 3600 + 1800));
    let chain = || fs::read_to_string(state.join("executor-work/credentials/a/instance.crt")).unwrap();
    let (first, deadline) = (chain(), Instant::now() + PATIENCE);
    loop {
        let now = chain();
        assert!(now.ends_with("-----END CERTIFICATE-----\n"), "half a file: {now}");
        if now != first {
            break;
        }
        assert!(Instant::now() < deadline, "it is not replaced");
    }
    // Shown as well, to routers and to other containers.
    let met = [(61001, shown(&old)), (61443, between)].map(|(port, old)| {
        let config = client.clone();
        let new = network.inside(move || {
            loop {
                let one = shown(&connect(port, &config));
                if one != old || Instant::now() > deadline {
                    break one;
                }
            }
        });
        new.join().unwrap()
    });
    assert_eq!(met[0], on_disk(&state));
    stop.store(true, Ordering::SeqCst);
    let [to_routers, to_containers] = connecting.map(|connecting| connecting.join().unwrap());
    assert_eq!(to_routers, [shown(&old), met[0].clone()], "one, then the other");
    assert_eq!((to_containers.len(), &to_containers[1]), (2, &met[1]));
    say(&mut old, "who has seen the old one goes on");
    world.executor.delete("a").await.unwrap();
    world.nothing_is_left().await;
}

/// A cell on a garden that does not tell where containers' networks are.
fn outside(unproxied_port_mappings: bool) -> World {
    let world = world_with(|config| {
        config.instance_identity = Some(authority());
        config.container_proxy = Some(ContainerProxy { unproxied_port_mappings, ..Default::default() });
    });
    world.garden.script("/app", Script::runs());
    let ports = vec![PortMapping { container_port: 8080, ..PortMapping::default() }];
    world.start("a", RunInfo { ports, enable_container_proxy: true, ..recipe("/app") });
    world
}

#[tokio::test(start_paused = true)]
async fn a_garden_that_does_not_tell_where_networks_are_has_containers_without_tls() {
    let mut world = outside(true);
    world.expect(&["Reserved a", "Running a"]).await;
    let ports = world.executor.get("a").unwrap().ports;
    let [port] = &ports[..] else { panic!("{ports:?}") };
    assert_eq!((port.container_port, port.container_tls_proxy_port, port.host_tls_proxy_port), (8080, 0, 0));
    assert!(port.host_port > 0, "it is reached as without TLS");
    on_disk(world.state.path());
    world.executor.delete("a").await.unwrap();
    world.nothing_is_left().await;
}

#[tokio::test(start_paused = true)]
async fn a_container_that_nobody_could_reach_is_not_started() {
    let mut world = outside(false);
    let failed = "Failed a: failed to create container: garden does not tell where containers' networks are, and their \
                  ports are not to be reached without TLS (retryable)";
    world.expect(&["Reserved a", failed]).await;
    world.executor.delete("a").await.unwrap();
    world.nothing_is_left().await;
}
