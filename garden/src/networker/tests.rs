//! The networker against this kernel, in network namespaces that the tests make: the machine's own is not touched.

mod beside;
mod chosen;
mod logged;
mod v6;

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use garden_client::{BandwidthLimits, MappedPort};
use garden_sys::netlink::route::{Route, Veth};
use garden_sys::netlink::{in_namespace, new_namespace};
use garden_sys::nftables::Family;

use super::*;

/// Long enough for a first packet that is lost while a link comes up: it is sent again after a second.
const TIMEOUT: Duration = Duration::from_secs(4);
/// How long to wait for an answer that must not come.
const SILENCE: Duration = Duration::from_millis(400);
/// Stands for an address elsewhere: the world lives in a namespace of its own.
const WORLD: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// Runs `story` on a thread that has a network namespace to itself, as the host of a networker; `world` is a second
/// one, by a link.
fn in_a_host_of_its_own(name: &str, config: Config, story: impl FnOnce(&Networker, &OwnedFd) + Send) {
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED {name}: needs root");
        return;
    }
    let namespace = new_namespace().unwrap();
    in_namespace(namespace.as_fd(), || {
        let host = Route::open().unwrap();
        host.bring_up(host.index("lo").unwrap()).unwrap();
        let world = new_namespace().unwrap();
        let veth = Veth { name: "up0", peer_name: "eth0", peer_namespace: world.as_fd(), mtu: 1400 };
        host.create_veth(&veth).unwrap();
        let index = host.index("up0").unwrap();
        host.add_address(index, HOST, 24).unwrap();
        host.bring_up(index).unwrap();
        let far = Route::open_in(world.as_fd()).unwrap();
        let index = far.index("eth0").unwrap();
        far.add_address(index, WORLD, 24).unwrap();
        far.bring_up(index).unwrap();
        let networker =
            Networker::start(Config { mtu: Some(1400), external_ip: Some(HOST.into()), ..config }, &[])
                .unwrap();
        story(&networker, &world);
        networker.remove_table().unwrap();
    })
    .unwrap();
}

/// A container without a process: a namespace and its connection.
struct Container {
    namespace: OwnedFd,
    connection: Connection,
}

impl Container {
    fn new(networker: &Networker, handle: &str, net_in: &[NetIn], net_out: &[NetOutRule]) -> Self {
        let namespace = new_namespace().unwrap();
        let connection = networker.reserve(net_in, net_out).unwrap();
        networker.connect(handle, &connection, namespace.as_fd()).unwrap();
        Self { namespace, connection }
    }

    fn ip(&self) -> Ipv4Addr {
        self.connection.container_ip
    }
}

const APP: NetIn = NetIn { host_port: 0, container_port: 8080 };

/// Answers every caller with the address it sees, from inside `namespace`, until the test ends.
fn serve(namespace: &OwnedFd, address: impl Into<SocketAddr>) {
    let address = address.into();
    let listener = in_namespace(namespace.as_fd(), || TcpListener::bind(address)).unwrap().unwrap();
    answer(listener);
}

fn answer(listener: TcpListener) {
    std::thread::spawn(move || {
        while let Ok((mut caller, address)) = listener.accept() {
            _ = caller.write_all(address.ip().to_string().as_bytes());
        }
    });
}

fn call(address: impl Into<SocketAddr>) -> io::Result<String> {
    call_within(TIMEOUT, address)
}

fn call_within(timeout: Duration, address: impl Into<SocketAddr>) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address.into(), timeout)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

fn call_from(namespace: &OwnedFd, address: impl Into<SocketAddr> + Send) -> io::Result<String> {
    in_namespace(namespace.as_fd(), || call(address)).unwrap()
}

fn any(port: u16) -> SocketAddr {
    (Ipv4Addr::UNSPECIFIED, port).into()
}

fn rules(json: &str) -> Vec<NetOutRule> {
    serde_json::from_str(json).unwrap()
}

#[test]
fn a_mapped_port_answers_wherever_the_caller_is() {
    in_a_host_of_its_own(
        "a_mapped_port_answers_wherever_the_caller_is",
        Config::default(),
        |networker, world| {
            let container = Container::new(networker, "a", &[APP], &[]);
            serve(&container.namespace, any(8080));
            assert_eq!(
                container.connection.mapped_ports,
                [MappedPort { host_port: 61001, container_port: 8080 }]
            );
            assert_eq!(call((Ipv4Addr::LOCALHOST, 61001)).unwrap(), container.connection.host_ip.to_string());
            assert_eq!(call((HOST, 61001)).unwrap(), HOST.to_string());
            assert_eq!(call((container.ip(), 8080)).unwrap(), container.connection.host_ip.to_string());
            assert_eq!(call_from(world, (HOST, 61001)).unwrap(), WORLD.to_string());
            let own = call_from(&container.namespace, (HOST, 61001)).unwrap();
            assert_eq!(
                own,
                container.connection.host_ip.to_string(),
                "a container reaches itself by its mapped port"
            );

            let later = networker.net_in(&container.connection, 7000, 0).unwrap();
            assert_eq!(later, MappedPort { host_port: 7000, container_port: 7000 });
            serve(&container.namespace, any(7000));
            call((Ipv4Addr::LOCALHOST, 7000)).unwrap();
            let traffic = networker.traffic().unwrap()[&container.connection.host_link];
            assert!(traffic.rx_bytes > 100 && traffic.tx_bytes > 100, "{traffic:?}");
        },
    );
}

#[test]
fn a_container_reaches_the_world_but_neither_the_host_nor_another_container() {
    let name = "a_container_reaches_the_world_but_neither_the_host_nor_another_container";
    in_a_host_of_its_own(name, Config::default(), |networker, world| {
        let a = Container::new(networker, "a", &[APP], &[]);
        let b = Container::new(networker, "b", &[APP], &[]);
        serve(&b.namespace, any(8080));
        serve(world, any(80));
        answer(TcpListener::bind(any(22)).unwrap());

        assert_eq!(call_from(&a.namespace, (WORLD, 80)).unwrap(), HOST.to_string(), "by the host's address");
        call_from(&a.namespace, (b.ip(), 8080)).expect_err("another container by its address");
        let b_port = b.connection.mapped_ports[0].host_port as u16;
        call_from(&a.namespace, (HOST, b_port)).expect("another container by its mapped port");
        call_from(&a.namespace, (a.connection.host_ip, 22)).expect_err("the host by the link");
        call_from(&a.namespace, (HOST, 22)).expect_err("the host by its address");
        call((HOST, 22)).expect("the host itself");
        let by_address = in_namespace(world.as_fd(), || call_within(SILENCE, (b.ip(), 8080)));
        by_address.unwrap().expect_err("the world cannot address containers");
    });
}

#[test]
fn host_access_does_not_include_the_loopback_of_the_host() {
    let config = Config { allow_host_access: true, ..Config::default() };
    in_a_host_of_its_own("host_access_does_not_include_the_loopback_of_the_host", config, |networker, _| {
        let container = Container::new(networker, "a", &[], &[]);
        answer(TcpListener::bind(any(22)).unwrap());
        call_from(&container.namespace, (container.connection.host_ip, 22)).expect("the host by the link");
        answer(TcpListener::bind((Ipv4Addr::LOCALHOST, 2222)).unwrap());
        loopback_of_the_host_is_out_of_reach(&container);
    });
}

/// Even if it sends packets for 127.0.0.1 to the gateway, whose link would let them in for the sake of mapped ports.
fn loopback_of_the_host_is_out_of_reach(container: &Container) {
    let answer = in_namespace(container.namespace.as_fd(), || {
        std::fs::write("/proc/sys/net/ipv4/conf/eth0/route_localnet", "1").unwrap();
        let lo_down = std::process::Command::new("ip").args(["link", "set", "lo", "down"]).status();
        lo_down
            .is_ok_and(|status| status.success())
            .then(|| send_from(container.ip(), (Ipv4Addr::LOCALHOST, 2222).into()))
    });
    match answer.unwrap() {
        Some(answer) => _ = answer.expect_err("the host's loopback"),
        None => println!("SKIPPED a look at the host's loopback: no ip tool"),
    }
}

#[test]
fn what_the_operator_denies_only_a_rule_opens() {
    let config = Config { deny_networks: vec!["0.0.0.0/0".parse().unwrap()], ..Config::default() };
    in_a_host_of_its_own("what_the_operator_denies_only_a_rule_opens", config, |networker, world| {
        for port in [80, 81, 443] {
            serve(world, any(port));
        }
        let open = rules(
            r#"[{"protocol":1,"networks":[{"start":"192.0.2.0","end":"192.0.2.255"}],
            "ports":[{"start":80,"end":81}],"log":true}]"#,
        );
        let container = Container::new(networker, "a", &[APP], &open);
        let from = &container.namespace;
        call_from(from, (WORLD, 80)).unwrap();
        call_from(from, (WORLD, 81)).unwrap();
        call_from(from, (WORLD, 443)).expect_err("not of the rule");
        let more = rules(r#"[{"networks":[{"start":"192.0.2.2"}]}]"#);
        networker.bulk_net_out("a", &container.connection, &more).unwrap();
        call_from(from, (WORLD, 443)).unwrap();

        let closed = Container::new(networker, "b", &[APP], &[]);
        call_from(&closed.namespace, (WORLD, 80)).expect_err("no rule at all");
        serve(&closed.namespace, any(8080));
        call_from(world, (HOST, closed.connection.mapped_ports[0].host_port as u16))
            .expect("ingress is not egress");
    });
}

/// So many that the kernel holds them in a set.
fn many_rules(more: &str) -> Vec<NetOutRule> {
    let rule = |number: u16| {
        format!(
            r#"{{"protocol":1,"networks":[{{"start":"192.0.2.0","end":"192.0.2.9"}},{{"start":"198.51.100.{number}"}}],
                "ports":[{{"start":{},"end":{}}}]}}"#,
            1000 + 10 * number,
            1004 + 10 * number
        )
    };
    let all: Vec<_> = (0..200).map(rule).collect();
    rules(&format!("[{}{more}]", all.join(",")))
}

#[test]
fn many_rules_open_what_each_of_them_says_and_nothing_else() {
    let name = "many_rules_open_what_each_of_them_says_and_nothing_else";
    let config = Config { deny_networks: vec!["0.0.0.0/0".parse().unwrap()], ..Config::default() };
    in_a_host_of_its_own(name, config, |networker, world| {
        for port in [80, 1000, 1004, 1005, 2994, 2995] {
            serve(world, any(port));
        }
        let container = Container::new(networker, "a", &[APP], &many_rules(""));
        let from = &container.namespace;
        for port in [1000, 1004, 2994] {
            call_from(from, (WORLD, port)).unwrap_or_else(|error| panic!("{port}: {error}"));
        }
        for port in [80, 1005, 2995] {
            call_from(from, (WORLD, port)).expect_err("between the rules");
        }
        heard(from, world, 1000, false);
        let listed = ruleset();
        // The protocol by its name or its number, as /etc/protocols is there or not.
        let told = [" . 192.0.2.0-192.0.2.9 . 1000-1004", " . 198.51.100.7 . 1070-1074"];
        assert!(listed.is_empty() || told.iter().all(|told| listed.contains(told)), "{listed}");

        let more = rules(
            r#"[{"protocol":2,"networks":[{"start":"192.0.2.2"}]},{"protocol":1,"ports":[{"start":1,"end":1005}]}]"#,
        );
        networker.bulk_net_out("a", &container.connection, &more).unwrap();
        for port in [80, 1000, 1005] {
            call_from(from, (WORLD, port)).unwrap_or_else(|error| panic!("{port}: {error}"));
        }
        call_from(from, (WORLD, 2995)).expect_err("of no rule still");
        heard(from, world, 1000, true);
        networker.undo_bulk_net_out("a", &container.connection);
        call_from(from, (WORLD, 80)).expect_err("taken back");
        call_from(from, (WORLD, 1000)).unwrap();
    });
}

#[test]
fn what_others_do_to_a_containers_rules_is_found_and_undone() {
    let name = "what_others_do_to_a_containers_rules_is_found_and_undone";
    in_a_host_of_its_own(name, Config { owns_table: false, ..Config::default() }, |networker, _| {
        let container =
            Container::new(networker, "a", &[APP], &many_rules(r#",{"protocol":2,"log":true},{}"#));
        let own = rules::own(&container.connection);
        let lacks = || {
            let seen = networker.look().unwrap().expect("the table is as it was made");
            networker.lacks(&seen, "a", &container.connection)
        };
        assert_eq!(lacks(), [""; 0]);
        if ruleset().is_empty() {
            return println!("SKIPPED {name}: no nft");
        }
        let (element, set) = ("tcp . 198.51.100.7 . 1070-1074", format!("ip diego {own}"));
        let other = format!("ip diego logged-{}", container.ip());
        for act in [
            format!("delete element {set} {{ {element} }}"),
            format!("add element {set} {{ udp . 198.51.100.7 . 1070-1074 }}"),
            format!("flush set {set}"),
            format!("flush chain {set}"),
            format!("flush chain {other}"),
            format!("add rule {set} accept"),
            format!("delete element ip diego egress {{ {} }}", container.ip()),
            "flush set ip diego sources".into(),
        ] {
            let status = std::process::Command::new("nft").args(act.split(' ')).status();
            assert!(status.unwrap().success(), "{act}");
            assert_ne!(lacks(), [""; 0], "{act}");
            networker.open_firewall_again("a", &container.connection).unwrap();
            assert_eq!(lacks(), [""; 0], "{act}");
        }
    });
}

#[test]
fn a_place_whose_preparations_were_flushed_can_still_be_given() {
    let name = "a_place_whose_preparations_were_flushed_can_still_be_given";
    in_a_host_of_its_own(name, Config::default(), |networker, world| {
        serve(world, any(80));
        let namespace = new_namespace().unwrap();
        let connection = networker.reserve(&[APP], &[]).unwrap();
        networker.link(&connection, namespace.as_fd()).unwrap();
        let closed = in_namespace(namespace.as_fd(), || call_within(SILENCE, (WORLD, 80))).unwrap();
        closed.expect_err("it is nobody's yet");
        assert!(networker.make_firewall_again(&[]).unwrap());
        networker.open_firewall("a", &connection).unwrap();
        call_from(&namespace, (WORLD, 80)).unwrap();
    });
}

#[test]
fn another_firewall_that_drops_the_unknown_is_told_once_and_told_again_when_garden_ends() {
    let name = "another_firewall_that_drops_the_unknown_is_told_once_and_told_again_when_garden_ends";
    in_a_host_of_its_own(name, Config::default(), |networker, world| {
        serve(world, any(80));
        let container = Container::new(networker, "a", &[APP], &[]);
        call_from(&container.namespace, (WORLD, 80)).unwrap();
        let iptables = |arguments: &str| {
            let status = std::process::Command::new("iptables-nft").args(arguments.split(' ')).status();
            status.map(|status| assert!(status.success(), "{arguments}"))
        };
        if iptables("-P FORWARD DROP").is_err() {
            return println!("SKIPPED {name}: no iptables-nft");
        }
        let closed =
            || in_namespace(container.namespace.as_fd(), || call_within(SILENCE, (WORLD, 80))).unwrap();
        closed().expect_err("all that is forwarded is dropped");
        assert_eq!(networker.pass_others().unwrap(), ["FORWARD of table filter"]);
        call_from(&container.namespace, (WORLD, 80)).unwrap();
        assert_eq!(networker.pass_others().unwrap(), [""; 0]);
        iptables("-I FORWARD -p tcp --dport 80 -j DROP").unwrap();
        closed().expect_err("an operator's rule holds");
        assert_eq!(networker.pass_others().unwrap(), [""; 0]);
        iptables("-F FORWARD").unwrap();
        closed().expect_err("it has forgotten");
        assert_eq!(networker.pass_others().unwrap().len(), 1);
        call_from(&container.namespace, (WORLD, 80)).unwrap();
        let told = |ruleset: String| ruleset.matches("judged by table diego").count();
        assert_eq!(told(ruleset()), 2);
        networker.remove_table().unwrap();
        assert_eq!(told(ruleset()), 0);
        assert_eq!(networker.pass_others().unwrap(), [""; 0], "garden has ended");
    });
}

/// Whether the world hears a datagram of the container.
fn heard(container: &OwnedFd, world: &OwnedFd, port: u16, expected: bool) {
    let ear = in_namespace(world.as_fd(), || UdpSocket::bind((WORLD, port))).unwrap().unwrap();
    ear.set_read_timeout(Some(if expected { TIMEOUT } else { SILENCE })).unwrap();
    let sent = in_namespace(container.as_fd(), || {
        UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?.send_to(b"hello", (WORLD, port))
    });
    sent.unwrap().unwrap();
    assert_eq!(ear.recv_from(&mut [0; 16]).is_ok(), expected, "udp port {port}");
}

#[test]
fn a_false_source_address_goes_nowhere() {
    in_a_host_of_its_own("a_false_source_address_goes_nowhere", Config::default(), |networker, world| {
        let container = Container::new(networker, "a", &[], &[]);
        let other = Container::new(networker, "b", &[], &[]);
        serve(world, any(80));
        call_from(&container.namespace, (WORLD, 80)).unwrap();
        let inside = Route::open_in(container.namespace.as_fd()).unwrap();
        inside.add_address(inside.index("eth0").unwrap(), other.ip(), 32).unwrap();
        let spoofed = in_namespace(container.namespace.as_fd(), || send_from(other.ip(), (WORLD, 80).into()));
        spoofed.unwrap().expect_err("another's address");
    });
}

fn send_from(source: Ipv4Addr, to: SocketAddr) -> io::Result<()> {
    use rustix::net::{AddressFamily, SocketType, bind, connect, socket, sockopt};
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None)?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(SILENCE))?;
    bind(&socket, &SocketAddr::from((source, 0)))?;
    Ok(connect(&socket, &to)?)
}

#[test]
fn disconnecting_leaves_nothing_and_twice_is_no_harm() {
    in_a_host_of_its_own(
        "disconnecting_leaves_nothing_and_twice_is_no_harm",
        Config::default(),
        |networker, _| {
            let before = ruleset();
            let container = Container::new(networker, "a", &[APP, APP], &rules(r#"[{"protocol":2}]"#));
            assert_ne!(ruleset(), before);
            let Container { connection, namespace } = container;
            drop(namespace);
            networker.disconnect(connection.clone());
            networker.settle();
            assert_eq!(ruleset(), before);
            networker.disconnect(connection);
            networker.settle();
            assert_eq!(ruleset(), before);
            assert_eq!(networker.traffic().unwrap().len(), 0);

            let reserved = networker.reserve(&[APP], &[]).unwrap();
            networker.disconnect(reserved);
            networker.settle();
            let pinned = Container::new(networker, "pinned", &[], &[]);
            networker.disconnect(pinned.connection.clone());
            networker.settle();
            assert_eq!(networker.traffic().unwrap().len(), 0, "though its namespace lives on");
            networker.remove_table().unwrap();
            networker.remove_table().unwrap();
            assert_eq!(ruleset(), "");
        },
    );
}

#[test]
fn what_could_not_be_recorded_is_undone() {
    in_a_host_of_its_own("what_could_not_be_recorded_is_undone", Config::default(), |networker, _| {
        let container = Container::new(networker, "a", &[APP], &rules(r#"[{"protocol":2}]"#));
        let before = ruleset();
        let port = networker.net_in(&container.connection, 7000, 80).unwrap();
        networker.bulk_net_out("a", &container.connection, &rules(r#"[{"protocol":1}]"#)).unwrap();
        assert_ne!(ruleset(), before);
        networker.undo_net_in(&container.connection, port);
        networker.undo_bulk_net_out("a", &container.connection);
        assert_eq!(ruleset(), before);
        networker.net_in(&container.connection, 7000, 80).expect("it is free again");
    });
}

#[test]
fn a_network_that_cannot_be_taken_away_holds_up_no_other() {
    let name = "a_network_that_cannot_be_taken_away_holds_up_no_other";
    let config = Config { pool: "10.254.0.0/28".parse().unwrap(), ..Config::default() };
    in_a_host_of_its_own(name, config, |networker, _| {
        let living = Container::new(networker, "living", &[APP], &[]);
        serve(&living.namespace, any(8080));
        let port = living.connection.mapped_ports[0];
        // As a record says that is older than the port's owner.
        let mut stale = networker.reserve(&[], &[]).unwrap();
        stale.mapped_ports.push(port);
        let leaving = Container::new(networker, "leaving", &[APP], &[]);
        assert_eq!(networker.free_addresses(), 1);
        networker.disconnect(stale);
        networker.disconnect(leaving.connection.clone());
        drop(leaving.namespace);
        let begun = std::time::Instant::now();
        while networker.free_addresses() < 2 {
            assert!(begun.elapsed() < TIMEOUT * 2, "it is held up");
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(networker.free_addresses(), 2, "what is stuck stays reserved");
        call((HOST, port.host_port as u16)).expect("the port is still its owner's");
    });
}

/// By the `nft` tool, as an oracle.
fn ruleset() -> String {
    let list = std::process::Command::new("nft").args(["list", "ruleset"]).output();
    list.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_else(|error| {
        println!("SKIPPED a look by nft: {error}");
        String::new()
    })
}

#[test]
fn links_of_an_earlier_life_are_swept() {
    in_a_host_of_its_own("links_of_an_earlier_life_are_swept", Config::default(), |networker, _| {
        let kept = Container::new(networker, "kept", &[], &[]);
        let _stray = Container::new(networker, "stray", &[], &[]);
        networker.delete_stray_links(&[&kept.connection]).unwrap();
        let left: Vec<_> = networker.traffic().unwrap().into_keys().collect();
        assert_eq!(left, std::slice::from_ref(&kept.connection.host_link));
    });
}

#[test]
fn pools_end_and_ports_in_use_are_refused() {
    let config = Config { pool: "10.254.0.0/29".parse().unwrap(), port_pool_size: 2, ..Config::default() };
    in_a_host_of_its_own("pools_end_and_ports_in_use_are_refused", config, |networker, _| {
        let _busy = TcpListener::bind(any(61001)).unwrap();
        assert_eq!(networker.capacity(), 2);
        let first = networker.reserve(&[APP], &[]).unwrap();
        assert_eq!(first.mapped_ports[0].host_port, 61002, "a port that somebody listens on is passed over");
        let refused = |host_port, expected: &str| {
            let port = NetIn { host_port, container_port: 1 };
            assert_eq!(networker.reserve(&[port], &[]).unwrap_err().to_string(), expected);
        };
        refused(61001, "host port 61001 is in use");
        refused(61002, "host port 61002 is in use");
        refused(70000, "port 70000 does not exist");
        refused(0, "port pool is exhausted");
        networker.reserve(&[], &[]).expect("what was refused has given its addresses back");
        let error = networker.reserve(&[], &[]).unwrap_err();
        assert_eq!(error.to_string(), "the pool of container networks 10.254.0.0/29 is used up");
    });
}

#[test]
fn a_second_garden_with_the_same_names_is_refused_before_it_does_harm() {
    let name = "a_second_garden_with_the_same_names_is_refused_before_it_does_harm";
    in_a_host_of_its_own(name, Config::default(), |networker, _| {
        let _container = Container::new(networker, "a", &[APP], &[]);
        let before = ruleset();
        let refused = |config: Config| Networker::start(config, &[]).unwrap_err().to_string();
        assert_eq!(refused(Config::default()), "another garden on this host uses the table 'diego'");
        let other_table = Config { table: "other".into(), ..Config::default() };
        assert_eq!(refused(other_table.clone()), "another garden on this host uses the links 'diego-'");
        assert_eq!(ruleset(), before);
        let pool = "10.253.0.0/24".parse().unwrap();
        let other = Config { link_prefix: "other-".into(), pool, ..other_table };
        let other = Networker::start(other, &[]).unwrap();
        other.remove_table().unwrap();
    });
}

/// Reads all that `from` has to say, and how long it took.
fn seconds_to_read(from: TcpStream, bytes: usize) -> f64 {
    let began = std::time::Instant::now();
    let read = io::copy(&mut from.take(bytes as u64), &mut io::sink()).unwrap();
    assert_eq!(read, bytes as u64);
    began.elapsed().as_secs_f64()
}

fn flood(listener: TcpListener) {
    std::thread::spawn(move || {
        while let Ok((mut caller, _)) = listener.accept() {
            std::thread::spawn(move || while caller.write_all(&[0; 1 << 16]).is_ok() {});
        }
    });
}

#[test]
fn a_limited_container_neither_sends_nor_receives_faster() {
    let name = "a_limited_container_neither_sends_nor_receives_faster";
    in_a_host_of_its_own(name, Config::default(), |networker, world| {
        const RATE: usize = 2 << 20;
        let container = Container::new(networker, "a", &[APP], &[]);
        let limits = BandwidthLimits { rate_in_bytes_per_second: RATE as u64, ..Default::default() };
        let free = Container::new(networker, "b", &[APP], &[]);
        networker.shape(&container.connection, container.namespace.as_fd(), limits).unwrap();
        for namespace in [&container.namespace, &free.namespace, world] {
            flood(in_namespace(namespace.as_fd(), || TcpListener::bind(any(8080))).unwrap().unwrap());
        }
        let by_host = |container: &Container| {
            TcpStream::connect_timeout(&(container.ip(), 8080).into(), TIMEOUT).unwrap()
        };
        // What is in flight or in the bucket when the clock starts is a tenth at most.
        let sent = seconds_to_read(by_host(&container), 2 * RATE);
        assert!(sent > 1.6, "{sent} s to send what takes two seconds");
        let far = (WORLD, 8080).into();
        let from_world = |namespace: &OwnedFd| {
            in_namespace(namespace.as_fd(), || TcpStream::connect_timeout(&far, TIMEOUT)).unwrap().unwrap()
        };
        let received = seconds_to_read(from_world(&container.namespace), 2 * RATE);
        assert!(received > 1.6, "{received} s to receive what takes two seconds");
        // The other is not held to it: it could not move as much in the time that the limited one takes.
        for stream in [by_host(&free), from_world(&free.namespace)] {
            let elapsed = seconds_to_read(stream, 2 * RATE);
            assert!(elapsed < 1.6, "{elapsed} s without a limit");
        }
    });
}

/// Whether a call gets through, and what we say about it.
#[test]
fn what_is_explained_is_what_the_kernel_does() {
    use explain::{Host, Packet, Protocol};
    let config = Config { deny_networks: vec!["192.0.2.0/24".parse().unwrap()], ..Config::default() };
    in_a_host_of_its_own("what_is_explained_is_what_the_kernel_does", config, |networker, world| {
        let open = rules(
            r#"[{"protocol":1,"networks":[{"start":"192.0.2.2"}],"ports":[{"start":8080,"end":8081}]}]"#,
        );
        let to_pool = rules(r#"[{"networks":[{"start":"10.254.0.0","end":"10.254.63.255"}]}]"#);
        let free = Container::new(networker, "free", &[APP], &open);
        let held = Container::new(networker, "held", &[APP], &[]);
        let bold = Container::new(networker, "bold", &[], &to_pool);
        for port in [8080, 8081, 8082] {
            serve(world, any(port));
        }
        for container in [&free, &held] {
            serve(&container.namespace, any(8080));
        }
        answer(TcpListener::bind(any(9000)).unwrap());
        let connections =
            [("free", &free.connection), ("held", &held.connection), ("bold", &bold.connection)];
        let addresses = published::host_addresses().unwrap();
        let host = Host { addresses: &addresses, containers: &connections };
        let mapped = held.connection.mapped_ports[0].host_port as u16;
        let calls = [
            (WORLD, 8080),
            (WORLD, 8081),
            (WORLD, 8082),
            (HOST, 9000),
            (HOST, mapped),
            (held.connection.host_ip, 9000),
            (held.ip(), 8080),
        ];
        for (name, from) in [("free", &free), ("held", &held), ("bold", &bold)] {
            for (to, port) in calls {
                let verdict = explain::sent(
                    &networker.policy(),
                    &host,
                    &from.connection,
                    Packet { protocol: Protocol::Tcp, to: to.into(), port },
                );
                let called =
                    in_namespace(from.namespace.as_fd(), || call_within(Duration::from_secs(2), (to, port)));
                assert_eq!(called.unwrap().is_ok(), verdict.passes, "{name} to {to}:{port} {verdict}");
            }
        }
    });
}
