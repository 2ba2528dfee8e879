//! What it costs to give containers networks: in a network namespace of the benchmark's own as the host, and another as
//! the world. Containers are namespaces without processes, as those are that wait in garden's pool.

use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use garden::networker::{Config, Connection, Networker};
use garden_client::{IpRange, NetIn, NetOutRule, PortRange};
use garden_sys::netlink::route::{Route, Veth};
use garden_sys::netlink::{in_namespace, new_namespace};

use crate::figures::{Report, Times};
use crate::packets::{self, FIRST_PORT};

const ONE_BY_ONE: usize = 100;
const AT_ONCE: usize = 50;
const EGRESS_RULES: u16 = 50;
const MANY: usize = 1000;
/// Of the first and the last of many, as many as make a median.
const COMPARED: usize = 25;

const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub const WORLD: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

pub fn measure(report: &mut Report) -> Result<()> {
    let (quiet, crowded) = (Host::new(false)?, Host::new(false)?);
    let alone = quiet.act(|networker| {
        let times = one_by_one(networker)?;
        times.report("", report);
        report.figure("net_connect_ms", times.connects.median_ms(), "ms");
        report.figure("net_disconnect_ms", times.disconnects.median_ms(), "ms");
        at_once(networker, report)?;
        let mut place = place(networker)?;
        connect(networker, "alone", &mut place.connection)?;
        Ok(place)
    })?;
    let among = crowded.act(|networker| among_many(networker, report))?;
    let one = &among[MANY / 2];
    packets::compare(&alone.namespace, &one.namespace, MANY, report)?;
    quiet.end(vec![alone])?;
    crowded.end(among)?;
    let dual = Host::new(true)?;
    let times = dual.act(one_by_one)?;
    times.report(", with IPv6", report);
    report.figure("net_connect_dual_ms", times.connects.median_ms(), "ms");
    dual.end(Vec::new())
}

/// A network namespace as the host, and another as the world, which hears what containers send.
struct Host {
    namespace: OwnedFd,
    networker: Networker,
    _world: OwnedFd,
    _ears: Vec<UdpSocket>,
}

impl Host {
    fn new(dual: bool) -> Result<Host> {
        let (namespace, world) = (new_namespace()?, new_namespace()?);
        let networker = in_namespace(namespace.as_fd(), || {
            plug_in(&world)?;
            let config = Config {
                pool: "10.244.0.0/16".parse()?,
                pool_v6: if dual { Some("fd00:d1e9::/112".parse()?) } else { None },
                port_pool_start: 40_000,
                port_pool_size: 8_000,
                mtu: Some(1500),
                external_ip: Some(HOST.into()),
                ..Config::default()
            };
            anyhow::Ok(Networker::start(config, &[])?)
        })??;
        let ears = packets::listen(&world)?;
        Ok(Host { namespace, networker, _world: world, _ears: ears })
    }

    fn act<T: Send>(&self, act: impl FnOnce(&Networker) -> Result<T> + Send) -> Result<T> {
        in_namespace(self.namespace.as_fd(), || act(&self.networker))?
    }

    fn end(&self, places: Vec<Place>) -> Result<()> {
        for Place { namespace, connection } in places {
            drop(namespace);
            self.networker.disconnect(connection);
        }
        self.networker.settle();
        self.act(|networker| Ok(networker.remove_table()?))
    }
}

fn plug_in(world: &OwnedFd) -> Result<()> {
    let host = Route::open()?;
    host.bring_up(host.index("lo")?)?;
    host.create_veth(&Veth { name: "up0", peer_name: "eth0", peer_namespace: world.as_fd(), mtu: 1500 })?;
    let far = Route::open_in(world.as_fd())?;
    for (links, name, address) in [(&host, "up0", HOST), (&far, "eth0", WORLD)] {
        let index = links.index(name)?;
        links.add_address(index, address, 24)?;
        links.bring_up(index)?;
    }
    Ok(())
}

fn ports() -> [NetIn; 1] {
    [NetIn { host_port: 0, container_port: 8080 }]
}

/// Each about another address and another port: none says what a second does. The last lets the benchmark's packets through.
fn egress() -> Vec<NetOutRule> {
    let rule = |number| {
        let last = number == EGRESS_RULES;
        let address = Some(Ipv4Addr::new(198, 51, 100, number as u8).into());
        let networks = vec![IpRange { start: address, end: address }];
        let ports = PortRange { start: 1000 + number, end: 1000 + number };
        NetOutRule {
            networks: if last { Vec::new() } else { networks },
            ports: vec![if last { PortRange { start: FIRST_PORT, end: u16::MAX } } else { ports }],
            protocol: 2,
            ..NetOutRule::default()
        }
    };
    (1..=EGRESS_RULES).map(rule).collect()
}

/// A place as garden's pool has it ready: a namespace with its link.
struct Place {
    namespace: OwnedFd,
    connection: Connection,
}

fn place(networker: &Networker) -> Result<Place> {
    let (namespace, connection) = (new_namespace()?, networker.reserve_addresses(None)?);
    networker.link(&connection, namespace.as_fd())?;
    Ok(Place { namespace, connection })
}

/// What is left for a create: ports, and the firewall.
fn connect(networker: &Networker, handle: &str, connection: &mut Connection) -> Result<()> {
    networker.reserve_ports(connection, &ports())?;
    connection.net_out = egress();
    networker.open_firewall(handle, connection).context("cannot open the firewall")
}

#[derive(Default)]
struct OneByOne {
    links: Times,
    connects: Times,
    disconnects: Times,
}

impl OneByOne {
    fn report(&self, what: &str, report: &mut Report) {
        report.times(&format!("a namespace with its link, made ahead{what}"), &self.links);
        let rules = format!("connect: a port and {EGRESS_RULES} egress rules{what}");
        report.times(&rules, &self.connects);
        report.times(&format!("disconnect, as a destroy waits for it{what}"), &self.disconnects);
    }
}

fn one_by_one(networker: &Networker) -> Result<OneByOne> {
    let mut times = OneByOne::default();
    for number in 0..ONE_BY_ONE {
        let began = Instant::now();
        let Place { namespace, mut connection } = place(networker)?;
        times.links.add(began.elapsed());
        let began = Instant::now();
        connect(networker, &format!("c{number}"), &mut connection)?;
        times.connects.add(began.elapsed());
        drop(namespace);
        let began = Instant::now();
        networker.disconnect(connection);
        times.disconnects.add(began.elapsed());
        networker.settle();
    }
    Ok(times)
}

fn at_once(networker: &Networker, report: &mut Report) -> Result<()> {
    let places = (0..AT_ONCE).map(|_| place(networker)).collect::<Result<Vec<_>>>()?;
    let began = Instant::now();
    let here = std::fs::File::open("/proc/thread-self/ns/net")?;
    let connected = std::thread::scope(|scope| {
        let one = |place: Place| {
            let here = here.as_fd();
            scope.spawn(move || {
                let Place { namespace, mut connection } = place;
                in_namespace(here, || connect(networker, "at once", &mut connection))??;
                anyhow::Ok((namespace, connection))
            })
        };
        let threads: Vec<_> = places.into_iter().map(one).collect();
        let joined =
            threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| anyhow::bail!("it panicked")));
        joined.collect::<Result<Vec<_>>>()
    })?;
    let made = began.elapsed();
    let began = Instant::now();
    for (namespace, connection) in connected {
        drop(namespace);
        networker.disconnect(connection);
    }
    networker.settle();
    let each = |time: Duration| time.as_secs_f64() * 1e3 / AT_ONCE as f64;
    report.note(&format!(
        "{AT_ONCE} at once: {:.2} ms each to connect, {:.2} ms each until all is gone",
        each(made),
        each(began.elapsed())
    ));
    Ok(())
}

fn among_many(networker: &Networker, report: &mut Report) -> Result<Vec<Place>> {
    let (mut places, mut connects, mut made) = (Ends::default(), Ends::default(), Vec::new());
    for number in 0..MANY {
        let began = Instant::now();
        let mut place = place(networker)?;
        places.add(number, began.elapsed());
        let began = Instant::now();
        connect(networker, &format!("m{number}"), &mut place.connection)?;
        connects.add(number, began.elapsed());
        made.push(place);
    }
    places.report(report, "a place made ahead");
    connects.report(report, "connect");
    report.figure("net_rules_1000th_vs_1st", connects.last.median_ms() / connects.first.median_ms(), "ratio");
    Ok(made)
}

/// Of what is done for many, one after the other.
#[derive(Default)]
struct Ends {
    first: Times,
    last: Times,
}

impl Ends {
    fn add(&mut self, number: usize, time: Duration) {
        if number < COMPARED {
            self.first.add(time);
        } else if number >= MANY - COMPARED {
            self.last.add(time);
        }
    }

    fn report(&self, report: &mut Report, act: &str) {
        report.times(&format!("{act}, the first of many"), &self.first);
        report.times(&format!("{act}, the {MANY}th"), &self.last);
    }
}
