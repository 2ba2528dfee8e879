//! Containers whose specs name their network, against this kernel.

use super::*;
use crate::networker::chosen::Refused;

fn container(networker: &Networker, handle: &str, network: &str) -> Result<Container> {
    let namespace = new_namespace().unwrap();
    let mut connection = networker.reserve_addresses(networker.wanted(network)?)?;
    networker.reserve_ports(&mut connection, &[APP])?;
    networker.connect(handle, &connection, namespace.as_fd())?;
    Ok(Container { namespace, connection })
}

#[test]
fn a_chosen_network_is_fenced_as_those_of_the_pool_are() {
    in_a_host_of_its_own(
        "a_chosen_network_is_fenced_as_those_of_the_pool_are",
        Config::default(),
        |networker, world| {
            let bare = networker.look().unwrap().unwrap();
            let before = ruleset();
            let first = container(networker, "a", "10.77.0.0/24").unwrap();
            let second = container(networker, "b", "10.77.0.9/24").unwrap();
            let pooled = Container::new(networker, "c", &[APP], &[]);
            assert_eq!((first.ip(), second.ip()), ([10, 77, 0, 2].into(), [10, 77, 0, 9].into()));
            for one in [&first, &second] {
                assert_eq!(one.connection.host_ip, Ipv4Addr::new(10, 77, 0, 1));
                serve(&one.namespace, any(8080));
            }
            serve(&pooled.namespace, any(8080));
            serve(world, any(80));
            assert_eq!(
                call_from(&first.namespace, (WORLD, 80)).unwrap(),
                HOST.to_string(),
                "by the host's address"
            );
            let port = |of: &Container| of.connection.mapped_ports[0].host_port as u16;
            assert_eq!(call_from(world, (HOST, port(&second))).unwrap(), WORLD.to_string());
            call((first.ip(), 8080)).expect("the host by the address");
            call_from(&first.namespace, (HOST, port(&first))).expect("itself by its mapped port");
            call_from(&first.namespace, (HOST, port(&second))).expect("another by its mapped port");
            for (from, to) in [(&first, &second), (&first, &pooled), (&pooled, &first)] {
                call_from(&from.namespace, (to.ip(), 8080)).expect_err("another by its address");
            }
            let inside = Route::open_in(first.namespace.as_fd()).unwrap();
            inside.add_address(inside.index("eth0").unwrap(), second.ip(), 32).unwrap();
            let spoofed =
                in_namespace(first.namespace.as_fd(), || send_from(second.ip(), (WORLD, 80).into()));
            spoofed.unwrap().expect_err("another's address");

            let seen = networker.look().unwrap().unwrap();
            assert_eq!(networker.lacks(&seen, "a", &first.connection), Vec::<String>::new());
            let lacking = networker.lacks(&bare, "a", &first.connection);
            assert!(lacking.iter().any(|lack| lack == "element of 'chosen'"), "{lacking:?}");
            for gone in [first, second, pooled] {
                networker.disconnect(gone.connection);
            }
            networker.settle();
            assert_eq!(ruleset(), before);
            container(networker, "d", "10.77.0.9/24").expect("it is free again");
        },
    );
}

#[test]
fn a_chosen_network_that_others_have_is_refused_and_costs_no_place() {
    let name = "a_chosen_network_that_others_have_is_refused_and_costs_no_place";
    in_a_host_of_its_own(name, Config::default(), |networker, _| {
        let _kept = container(networker, "a", "10.77.0.0/30").unwrap();
        let free = networker.free_addresses();
        let pool = networker.config.pool;
        let rows = [
            ("10.77.0.0/30", "insufficient IPs remaining in the pool".to_owned()),
            ("192.0.2.0/30", "the requested subnet (192.0.2.0/30) overlaps an existing subnet (that of up0, which has 192.0.2.1)".into()),
            ("nonsense", "\"nonsense/30\" is not an IPv4 network such as 10.254.0.0/18".into()),
            (&*pool.to_string(), format!("the requested subnet ({pool}) overlaps the dynamic allocation range ({pool})")),
        ];
        for (network, why) in rows {
            assert_eq!(container(networker, "b", network).err().unwrap().to_string(), why);
        }
        assert_eq!(networker.free_addresses(), free);
    });
}

#[test]
fn a_chosen_network_is_kept_for_who_had_it_in_an_earlier_life() {
    let name = "a_chosen_network_is_kept_for_who_had_it_in_an_earlier_life";
    in_a_host_of_its_own(name, Config::default(), |networker, world| {
        let mut kept = container(networker, "a", "10.77.0.0/30").unwrap();
        serve(world, any(80));
        let recorded = serde_json::to_string(&kept.connection).unwrap();
        kept.connection = serde_json::from_str(&recorded).unwrap();
        // One of another name, for the first lives on.
        let config =
            Config { table: "second".into(), link_prefix: "second-".into(), ..networker.config.clone() };
        let pool = Config { pool: "10.253.0.0/24".parse().unwrap(), ..config };
        let second = Networker::start(pool, &[("a", &kept.connection)]).unwrap();
        assert!(matches!(
            second.reserve_addresses(second.wanted("10.77.0.2/30").unwrap()),
            Err(Error::Chosen(Refused::Host { .. } | Refused::Taken))
        ));
        let seen = second.look().unwrap().unwrap();
        assert_eq!(second.lacks(&seen, "a", &kept.connection), Vec::<String>::new());
        call_from(&kept.namespace, (WORLD, 80)).unwrap();
        second.remove_table().unwrap();
    });
}

#[test]
fn a_pool_that_overlaps_what_is_attached_to_the_host_is_refused() {
    let name = "a_pool_that_overlaps_what_is_attached_to_the_host_is_refused";
    in_a_host_of_its_own(name, Config::default(), |networker, _| {
        let pool = "192.0.0.0/16".parse().unwrap();
        let config = Config {
            table: "second".into(),
            link_prefix: "second-".into(),
            pool,
            ..networker.config.clone()
        };
        let refused = Networker::start(config, &[]).unwrap_err().to_string();
        let why =
            "the pool of container networks 192.0.0.0/16 overlaps the network of up0, which has 192.0.2.1";
        assert_eq!(refused, why);
    });
}
