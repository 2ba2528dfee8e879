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
