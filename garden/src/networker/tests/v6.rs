//! The networker with an IPv6 pool, against this kernel.

use super::*;

const POOL: &str = "fd00:d1e9::/112";
const WORLD_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);
const HOST_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

fn dual_stack() -> Config {
    Config { pool_v6: POOL.parse().ok(), ..Config::default() }
}

/// As [`in_a_host_of_its_own`], with IPv6 as far as the world.
fn in_a_dual_host(name: &str, config: Config, story: impl FnOnce(&Networker, &OwnedFd) + Send) {
    if !host::has_ipv6() {
        println!("SKIPPED {name}: this kernel has no IPv6");
        return;
    }
    in_a_host_of_its_own(name, config, |networker, world| {
        let far = Route::open_in(world.as_fd()).unwrap();
        for (links, link, address) in [(&Route::open().unwrap(), "up0", HOST_V6), (&far, "eth0", WORLD_V6)] {
            links.add_address(links.index(link).unwrap(), address, 64).unwrap();
        }
        story(networker, world);
    });
}

fn any_v6(port: u16) -> SocketAddr {
    (Ipv6Addr::UNSPECIFIED, port).into()
}

fn v6(container: &Container) -> Ipv6Addr {
    container.connection.container_ipv6().unwrap()
}

fn host_v6(container: &Container) -> Ipv6Addr {
    container.connection.v6.unwrap().host_ip
}

fn setting(name: &str) -> String {
    std::fs::read_to_string(format!("/proc/sys/net/ipv6/conf/{name}")).unwrap().trim().to_owned()
}

#[test]
fn a_container_has_its_ipv6_addresses_at_once_and_no_others() {
    let name = "a_container_has_its_ipv6_addresses_at_once_and_no_others";
    in_a_dual_host(name, dual_stack(), |networker, _| {
        let container = Container::new(networker, "a", &[], &[]);
        assert_eq!(v6(&container).to_string(), "fd00:d1e9::2");
        serve(&container.namespace, any_v6(8080));
        let seen = call((v6(&container), 8080)).expect("the host reaches it");
        assert_eq!(seen, host_v6(&container).to_string());

        let inside = Route::open_in(container.namespace.as_fd()).unwrap();
        let eth0 = inside.index("eth0").unwrap();
        let ipv6_of = |links: &Route, index: u32| {
            let all = links
                .addresses()
                .unwrap()
                .into_iter()
                .filter(|(of, address)| *of == index && address.is_ipv6());
            all.map(|(_, address)| address.to_string()).collect::<std::collections::BTreeSet<_>>()
        };
        assert_eq!(ipv6_of(&inside, eth0), ["fd00:d1e9::2", "fe80::2"].map(String::from).into());
        let link = &container.connection.host_link;
        let host = Route::open().unwrap();
        let expected = ["fd00:d1e9::1", "fe80::1"].map(String::from).into();
        assert_eq!(ipv6_of(&host, host.index(link).unwrap()), expected);
        assert_eq!(setting(&format!("{link}/accept_ra")), "0");
        let believes = in_namespace(container.namespace.as_fd(), || setting("eth0/accept_ra"));
        assert_eq!(believes.unwrap(), "0");
    });
}

fn answer_on_loopback(port: u16) {
    answer(TcpListener::bind((Ipv6Addr::LOCALHOST, port)).unwrap());
}

#[test]
fn a_mapped_port_answers_over_ipv6_wherever_the_caller_is() {
    let name = "a_mapped_port_answers_over_ipv6_wherever_the_caller_is";
    in_a_dual_host(name, dual_stack(), |networker, world| {
        let container = Container::new(networker, "a", &[APP], &[]);
        let other = Container::new(networker, "b", &[], &[]);
        serve(&container.namespace, any_v6(8080));
        let port = container.connection.mapped_ports[0].host_port as u16;
        assert_eq!(call((HOST_V6, port)).unwrap(), HOST_V6.to_string());
        assert_eq!(call((host_v6(&container), port)).unwrap(), host_v6(&container).to_string());
        assert_eq!(call_from(world, (HOST_V6, port)).unwrap(), WORLD_V6.to_string());
        let own = call_from(&container.namespace, (HOST_V6, port)).unwrap();
        assert_eq!(own, host_v6(&container).to_string(), "a container reaches itself by its mapped port");
        call_from(&other.namespace, (HOST_V6, port)).expect("and so does another");
        assert_eq!(call((Ipv6Addr::LOCALHOST, port)).unwrap(), host_v6(&container).to_string());
        serve(&other.namespace, any_v6(8080));
        let of_other = networker.net_in(&other.connection, 7001, 8080).unwrap();
        let answer = call((Ipv6Addr::LOCALHOST, 7001)).expect("by the other's link, too");
        assert_eq!(answer, host_v6(&other).to_string());
        networker.undo_net_in(&other.connection, of_other);
        // What the host serves for itself alone stays its own, though that way is open for answers.
        answer_on_loopback(2222);
        call((Ipv6Addr::LOCALHOST, 2222)).unwrap();
        let inside = |address: Ipv6Addr| call_from(&other.namespace, (address, 2222));
        inside(Ipv6Addr::LOCALHOST).expect_err("the container's own loopback");
        inside(HOST_V6).expect_err("it is not served there");
        call((HOST, port)).expect("over IPv4 as ever");

        let later = networker.net_in(&container.connection, 7000, 8080).unwrap();
        call_from(world, (HOST_V6, 7000)).unwrap();
        networker.undo_net_in(&container.connection, later);
        call_from(world, (HOST_V6, 7000)).expect_err("it is unmapped");
    });
}

#[test]
fn a_port_that_somebody_serves_over_ipv6_alone_is_passed_over() {
    let name = "a_port_that_somebody_serves_over_ipv6_alone_is_passed_over";
    in_a_dual_host(name, dual_stack(), |networker, _| {
        let _busy = TcpListener::bind((HOST_V6, 61001)).unwrap();
        let connection = networker.reserve(&[APP], &[]).unwrap();
        assert_eq!(connection.mapped_ports[0].host_port, 61002);
        let given = NetIn { host_port: 61001, container_port: 1 };
        let refused = networker.reserve(&[given], &[]).unwrap_err();
        assert_eq!(refused.to_string(), "host port 61001 is in use");
    });
}

#[test]
fn over_ipv6_too_a_container_reaches_the_world_but_neither_the_host_nor_another_container() {
    let name = "over_ipv6_too_a_container_reaches_the_world_but_neither_the_host_nor_another_container";
    in_a_dual_host(name, dual_stack(), |networker, world| {
        let a = Container::new(networker, "a", &[APP], &[]);
        let b = Container::new(networker, "b", &[APP], &[]);
        serve(&b.namespace, any_v6(8080));
        serve(world, any_v6(80));
        answer(TcpListener::bind(any_v6(22)).unwrap());
        let seen = call_from(&a.namespace, (WORLD_V6, 80)).unwrap();
        assert_eq!(seen, HOST_V6.to_string(), "by the host's address");
        call_from(&a.namespace, (v6(&b), 8080)).expect_err("another container by its address");
        call_from(&a.namespace, (host_v6(&a), 22)).expect_err("the host by the link");
        call_from(&a.namespace, (HOST_V6, 22)).expect_err("the host by its address");
        call((HOST_V6, 22)).expect("the host itself");
        let route = Route::open_in(world.as_fd()).unwrap();
        route.add_default_route(HOST_V6).unwrap();
        let by_address = in_namespace(world.as_fd(), || call_within(SILENCE, (v6(&b), 8080)));
        by_address.unwrap().expect_err("the world cannot address containers, even if it knows the way");
    });
}

#[test]
fn host_access_is_of_both_families() {
    let config = Config { allow_host_access: true, ..dual_stack() };
    in_a_dual_host("host_access_is_of_both_families", config, |networker, _| {
        let container = Container::new(networker, "a", &[], &[]);
        answer(TcpListener::bind(any_v6(22)).unwrap());
        call_from(&container.namespace, (host_v6(&container), 22)).expect("the host by the link");
        call_from(&container.namespace, (HOST_V6, 22)).expect("the host by its address");
    });
}

/// Whether an answer to an ICMPv6 echo comes.
fn ping(from: &OwnedFd, to: Ipv6Addr) -> bool {
    use rustix::net::{
        AddressFamily, RecvFlags, SendFlags, SocketType, ipproto, recv, sendto, socket, sockopt,
    };
    const ECHO_REQUEST: u8 = 128;
    const ECHO_REPLY: u8 = 129;
    let ask = || -> io::Result<bool> {
        let socket = socket(AddressFamily::INET6, SocketType::RAW, Some(ipproto::ICMPV6))?;
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(SILENCE))?;
        // A refusal that the host answers with is the socket's error, at the one call or the other.
        let message = [ECHO_REQUEST, 0, 0, 0, 0, 1, 0, 1];
        sendto(&socket, &message, SendFlags::empty(), &SocketAddr::from((to, 0)))?;
        let began = std::time::Instant::now();
        while began.elapsed() < TIMEOUT {
            let mut answer = [0; 64];
            // What neighbours say comes here, too.
            let (length, _) = recv(&socket, &mut answer[..], RecvFlags::empty())?;
            if length > 0 && answer[0] == ECHO_REPLY {
                return Ok(true);
            }
        }
        Ok(false)
    };
    in_namespace(from.as_fd(), ask).unwrap().unwrap_or(false)
}

#[test]
fn rules_of_ipv6_open_what_they_say_and_who_denies_everything_denies_ipv6() {
    let name = "rules_of_ipv6_open_what_they_say_and_who_denies_everything_denies_ipv6";
    let deny_networks = vec!["0.0.0.0/0".parse().unwrap()];
    let config = Config { deny_networks, dns_servers: vec![WORLD_V6.into()], ..dual_stack() };
    in_a_dual_host(name, config, |networker, world| {
        for port in [53, 80, 81, 443] {
            serve(world, any_v6(port));
        }
        let closed = Container::new(
            networker,
            "closed",
            &[APP],
            &rules(r#"[{"networks":[{"start":"0.0.0.0","end":"255.255.255.255"}]}]"#),
        );
        call_from(&closed.namespace, (WORLD_V6, 80)).expect_err("its rule is of IPv4");
        call_from(&closed.namespace, (WORLD_V6, 53)).expect("the DNS server of all");
        assert!(!ping(&closed.namespace, WORLD_V6));

        let some = r#"[{"protocol":1,"networks":[{"start":"2001:db8::","end":"2001:db8::ff"}],
            "ports":[{"start":80,"end":81}],"log":true},{"protocol":4,"icmps":{"type":128,"code":0}}]"#;
        let open = Container::new(networker, "open", &[], &rules(some));
        for port in [80, 81] {
            call_from(&open.namespace, (WORLD_V6, port)).unwrap();
        }
        call_from(&open.namespace, (WORLD_V6, 443)).expect_err("not of the rule");
        assert!(ping(&open.namespace, WORLD_V6), "of the rule of ICMPv6");
        let more = rules(r#"[{"networks":[{"start":"2001:db8::2"}]}]"#);
        networker.bulk_net_out("open", &open.connection, &more).unwrap();
        call_from(&open.namespace, (WORLD_V6, 443)).unwrap();
        networker.undo_bulk_net_out("open", &open.connection);
        call_from(&open.namespace, (WORLD_V6, 443)).expect_err("taken back");
    });
}

#[test]
fn many_rules_of_ipv6_are_held_in_a_set() {
    let config = Config { deny_networks: vec!["::/0".parse().unwrap()], ..dual_stack() };
    in_a_dual_host("many_rules_of_ipv6_are_held_in_a_set", config, |networker, world| {
        for port in [1000, 1005, 2990] {
            serve(world, any_v6(port));
        }
        let rule = |number: u16| {
            let (from, to) = (1000 + 10 * number, 1004 + 10 * number);
            format!(
                r#"{{"protocol":1,"networks":[{{"start":"2001:db8::","end":"2001:db8::9"}},{{"start":"fd00:{number}::"}}],
                "ports":[{{"start":{from},"end":{to}}}]}}"#
            )
        };
        let many: Vec<_> = (0..200).map(rule).collect();
        let container = Container::new(networker, "a", &[], &rules(&format!("[{}]", many.join(","))));
        call_from(&container.namespace, (WORLD_V6, 1000)).unwrap();
        call_from(&container.namespace, (WORLD_V6, 2990)).unwrap();
        call_from(&container.namespace, (WORLD_V6, 1005)).expect_err("between the rules");
    });
}

#[test]
fn a_false_ipv6_source_goes_nowhere_though_neighbours_find_one_another() {
    let name = "a_false_ipv6_source_goes_nowhere_though_neighbours_find_one_another";
    in_a_dual_host(name, Config { allow_host_access: true, ..dual_stack() }, |networker, world| {
        let container = Container::new(networker, "a", &[], &[]);
        let other = Container::new(networker, "b", &[], &[]);
        let foreign = Ipv6Addr::new(0x2001, 0xdb8, 0xbad, 0, 0, 0, 0, 1);
        let inside = Route::open_in(container.namespace.as_fd()).unwrap();
        for source in [v6(&other), foreign] {
            inside.add_address(inside.index("eth0").unwrap(), source, 128).unwrap();
        }
        let hears = |ear: &OwnedFd, to: Ipv6Addr, source: Ipv6Addr, expected: bool| {
            let ear = in_namespace(ear.as_fd(), || UdpSocket::bind((to, 9000))).unwrap().unwrap();
            ear.set_read_timeout(Some(if expected { TIMEOUT } else { SILENCE })).unwrap();
            let sent = in_namespace(container.namespace.as_fd(), || {
                UdpSocket::bind((source, 0))?.send_to(b"hello", (to, 9000))
            });
            sent.unwrap().unwrap();
            assert_eq!(ear.recv_from(&mut [0; 16]).is_ok(), expected, "from {source} to {to}");
        };
        let here: OwnedFd = std::fs::File::open("/proc/thread-self/ns/net").unwrap().into();
        for (ear, to) in [(world, WORLD_V6), (&here, host_v6(&container))] {
            for source in [v6(&other), foreign] {
                hears(ear, to, source, false);
            }
            hears(ear, to, v6(&container), true);
        }
    });
}

#[test]
fn disconnecting_leaves_nothing_of_ipv6_either() {
    in_a_dual_host("disconnecting_leaves_nothing_of_ipv6_either", dual_stack(), |networker, _| {
        let before = ruleset();
        let container = Container::new(networker, "a", &[APP, APP], &rules(r#"[{"protocol":2,"log":true}]"#));
        assert!(before.is_empty() || ruleset() != before);
        let Container { connection, namespace } = container;
        drop(namespace);
        networker.disconnect(connection.clone());
        networker.settle();
        assert_eq!(ruleset(), before);
        networker.disconnect(connection);
        networker.settle();
        assert_eq!(ruleset(), before);
        networker.remove_table().unwrap();
        networker.remove_table().unwrap();
        assert_eq!(ruleset(), "");
    });
}

#[test]
fn what_has_drifted_of_ipv6_is_found_and_put_right() {
    let name = "what_has_drifted_of_ipv6_is_found_and_put_right";
    in_a_dual_host(name, Config { owns_table: false, ..dual_stack() }, |networker, world| {
        let container = Container::new(networker, "a", &[APP], &[]);
        serve(&container.namespace, any_v6(8080));
        let port = container.connection.mapped_ports[0].host_port as u16;
        let connection = &container.connection;
        let lacks = || {
            let seen = networker.look().unwrap().expect("the tables are there");
            networker.lacks(&seen, "a", connection)
        };
        assert_eq!(lacks(), [""; 0]);
        // As a reload of settings does, or somebody who thinks that the machine needs no IPv6.
        let setting = format!("/proc/sys/net/ipv6/conf/{}/disable_ipv6", connection.host_link);
        std::fs::write(setting, "1").unwrap();
        assert_eq!(lacks(), ["address fe80::1 of its link", "address fd00:d1e9::1 of its link"]);
        networker.repair("a", connection).unwrap();
        assert_eq!(lacks(), [""; 0]);
        call_from(world, (HOST_V6, port)).expect("it is reached again");

        std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "0").unwrap();
        networker.forward_packets().unwrap();
        call_from(world, (HOST_V6, port)).expect("packets are forwarded again");

        rules::removed("diego", [Family::Ipv6]).commit("play the firewall that reloads").unwrap();
        assert!(networker.look().unwrap().is_none(), "half a firewall is none");
        networker.make_firewall_again(&[("a", connection)]).unwrap();
        assert_eq!(lacks(), [""; 0]);
        call_from(world, (HOST_V6, port)).unwrap();
    });
}

#[test]
fn connections_over_ipv6_outlive_the_garden_that_made_them() {
    let name = "connections_over_ipv6_outlive_the_garden_that_made_them";
    if !rustix::process::geteuid().is_root() || !host::has_ipv6() {
        println!("SKIPPED {name}: needs root and IPv6");
        return;
    }
    let namespace = new_namespace().unwrap();
    in_namespace(namespace.as_fd(), || {
        let host = Route::open().unwrap();
        host.bring_up(host.index("lo").unwrap()).unwrap();
        let config = |v6: bool| Config {
            pool_v6: POOL.parse().ok().filter(|_| v6),
            mtu: Some(1500),
            ..Config::default()
        };
        // One that knew no IPv6, and then one that does.
        let first = Networker::start(config(false), &[]).unwrap();
        let old = Container::new(&first, "old", &[APP], &[]);
        drop(first);
        let second = Networker::start(config(true), &[("old", &old.connection)]).unwrap();
        let new = Container::new(&second, "new", &[APP], &[]);
        assert_eq!((old.connection.v6, new.connection.subnet), (None, 1));
        let listener =
            in_namespace(new.namespace.as_fd(), || TcpListener::bind(any_v6(8080))).unwrap().unwrap();
        let mut caller = TcpStream::connect_timeout(&(v6(&new), 8080).into(), TIMEOUT).unwrap();
        let (mut called, _) = listener.accept().unwrap();
        // Killed: nothing is taken away.
        drop(second);
        let kept = [("old", &old.connection), ("new", &new.connection)];
        let third = Networker::start(config(true), &kept).unwrap();
        called.write_all(b"still here").unwrap();
        drop(called);
        let mut text = String::new();
        caller.set_read_timeout(Some(TIMEOUT)).unwrap();
        caller.read_to_string(&mut text).unwrap();
        assert_eq!(text, "still here");
        let seen = third.look().unwrap().unwrap();
        for (handle, connection) in kept {
            assert_eq!(third.lacks(&seen, handle, connection), [""; 0], "{handle}");
        }
        assert_eq!(third.reserve_addresses(None).unwrap().subnet, 2, "theirs are nobody else's");
        third.disconnect(old.connection.clone());
        third.disconnect(new.connection.clone());
        drop((old.namespace, new.namespace));
        third.settle();
        drop(third);
        // And back to one without: it leaves no table that nobody looks after.
        let last = Networker::start(config(false), &[]).unwrap();
        assert!(!ruleset().contains("table ip6"));
        last.remove_table().unwrap();
    })
    .unwrap();
}

#[test]
fn what_is_explained_of_ipv6_is_what_the_kernel_does() {
    use explain::{Host, Packet, Protocol};
    let config = Config { deny_networks: vec!["2001:db8::/64".parse().unwrap()], ..dual_stack() };
    in_a_dual_host("what_is_explained_of_ipv6_is_what_the_kernel_does", config, |networker, world| {
        let open = rules(
            r#"[{"protocol":1,"networks":[{"start":"2001:db8::2"}],"ports":[{"start":8080,"end":8081}]},
            {"protocol":4}]"#,
        );
        let to_pool = rules(r#"[{"networks":[{"start":"fd00:d1e9::","end":"fd00:d1e9::ffff"}]}]"#);
        let free = Container::new(networker, "free", &[APP], &open);
        let held =
            Container::new(networker, "held", &[APP], &rules(r#"[{"networks":[{"start":"192.0.2.2"}]}]"#));
        let bold = Container::new(networker, "bold", &[], &to_pool);
        for port in [8080, 8082] {
            serve(world, any_v6(port));
        }
        for container in [&free, &held] {
            serve(&container.namespace, any_v6(8080));
        }
        answer(TcpListener::bind(any_v6(9000)).unwrap());
        let connections =
            [("free", &free.connection), ("held", &held.connection), ("bold", &bold.connection)];
        let addresses = published::host_addresses().unwrap();
        let host = Host { addresses: &addresses, containers: &connections };
        let mapped = held.connection.mapped_ports[0].host_port as u16;
        let calls = [
            (WORLD_V6, 8080),
            (WORLD_V6, 8082),
            (HOST_V6, 9000),
            (HOST_V6, mapped),
            (host_v6(&held), 9000),
            (v6(&held), 8080),
        ];
        for (name, from) in [("free", &free), ("held", &held), ("bold", &bold)] {
            let explain = |protocol, to: Ipv6Addr, port| {
                explain::sent(
                    &networker.policy(),
                    &host,
                    &from.connection,
                    Packet { protocol, to: to.into(), port },
                )
            };
            for (to, port) in calls {
                let verdict = explain(Protocol::Tcp, to, port);
                let called =
                    in_namespace(from.namespace.as_fd(), || call_within(Duration::from_secs(2), (to, port)));
                assert_eq!(called.unwrap().is_ok(), verdict.passes, "{name} to [{to}]:{port} {verdict}");
            }
            let verdict = explain(Protocol::Icmp, WORLD_V6, 0);
            assert_eq!(ping(&from.namespace, WORLD_V6), verdict.passes, "{name} pings the world: {verdict}");
        }
        let mut single = held.connection.clone();
        single.v6 = None;
        let packet = Packet { protocol: Protocol::Tcp, to: WORLD_V6.into(), port: 8080 };
        let verdict = explain::sent(&networker.policy(), &host, &single, packet);
        assert_eq!(verdict.to_string(), "is refused: the container has no IPv6");
    });
}

#[test]
fn a_host_that_begins_to_forward_goes_on_believing_its_routers() {
    if !rustix::process::geteuid().is_root() || !host::has_ipv6() {
        println!("SKIPPED a_host_that_begins_to_forward_goes_on_believing_its_routers: needs root and IPv6");
        return;
    }
    let namespace = new_namespace().unwrap();
    let told = in_namespace(namespace.as_fd(), || {
        let other = new_namespace().unwrap();
        let host = Route::open().unwrap();
        for name in ["believes", "deaf"] {
            let veth = Veth { name, peer_name: name, peer_namespace: other.as_fd(), mtu: 1500 };
            host.create_veth(&veth).unwrap();
        }
        std::fs::write("/proc/sys/net/ipv6/conf/deaf/accept_ra", "0").unwrap();
        host::forward_packets(false).unwrap();
        assert_eq!(setting("all/forwarding"), "0", "not without a pool");
        host::forward_packets(true).unwrap();
        ["all/forwarding", "believes/accept_ra", "deaf/accept_ra", "default/accept_ra"].map(setting)
    });
    assert_eq!(told.unwrap(), ["1", "2", "0", "1"]);
}

#[test]
fn a_pool_that_cannot_be_had_is_refused_by_name() {
    let refused = |config: Config| Networker::start(config, &[]).map(drop).unwrap_err();
    let with = |pool: &str| Config { pool_v6: pool.parse().ok(), ..Config::default() };
    let small = crate::chain(&refused(with("fd00:1::/120")));
    assert_eq!(
        small,
        "cannot use the IPv6 pool fd00:1::/120: it has room for 64 containers, and the IPv4 pool for 4096: a /114 would do"
    );
    if host::has_ipv6() {
        let narrow = Config { mtu: Some(1200), ..with("fd00:1::/112") };
        assert_eq!(
            refused(narrow).to_string(),
            "links of 1200 bytes a packet carry no IPv6, which the pool fd00:1::/112 needs: 1280 is the least"
        );
    } else {
        assert!(matches!(refused(with("fd00:1::/112")), Error::NoIpv6(_)));
    }
}

#[test]
fn a_connection_without_ipv6_stays_when_the_pool_comes_and_one_with_goes_with_it() {
    let (single, dual) = (Config::default(), dual_stack());
    let of = |config: &Config| Connection::new(config.pool, config.pool_v6, 3, &config.link_prefix);
    assert!(single.could_have_made(&of(&single)) && dual.could_have_made(&of(&dual)));
    assert!(dual.could_have_made(&of(&single)));
    assert!(!single.could_have_made(&of(&dual)), "nothing would fence it");
    let other = Config { pool_v6: "fd00:2::/112".parse().ok(), ..Config::default() };
    assert!(!other.could_have_made(&of(&dual)));
}
