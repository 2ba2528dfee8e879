//! Others on the same host: who flushes all rules, and who uses the older iptables.

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::*;

/// `None` where the program is missing.
fn run(program: &str, arguments: &str) -> Option<bool> {
    Some(Command::new(program).args(arguments.split(' ')).output().ok()?.status.success())
}

#[test]
fn who_flushes_all_rules_opens_no_container_for_a_moment() {
    let name = "who_flushes_all_rules_opens_no_container_for_a_moment";
    in_a_host_of_its_own(name, Config::default(), |networker, world| {
        if networker.changed == Changed::ByAnybody {
            return println!("SKIPPED {name}: this kernel keeps no table for its owner");
        }
        let (a, b) = (Container::new(networker, "a", &[APP], &[]), Container::new(networker, "b", &[], &[]));
        serve(&a.namespace, any(8080));
        serve(world, any(80));
        let of_the_host = TcpListener::bind(any(81)).unwrap();
        answer(of_the_host);
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let calling = [(a.ip(), 8080), (HOST, 81), (a.connection.host_ip, 81)].map(|address| {
                let (namespace, over) = (&b.namespace, &over);
                scope.spawn(move || {
                    let call_now = || call_within(Duration::from_millis(5), address);
                    let until_over = || {
                        let mut calls = 0;
                        while !over.load(Ordering::Relaxed) {
                            assert!(call_now().is_err(), "{address:?} was reached by call {calls}");
                            calls += 1;
                        }
                        calls
                    };
                    in_namespace(namespace.as_fd(), until_over).unwrap()
                })
            });
            let mut flushed = Some(true);
            for _ in 0..50 {
                flushed = flushed.and(run("nft", "flush ruleset"));
            }
            over.store(true, Ordering::Relaxed);
            let calls = calling.map(|thread| thread.join().unwrap());
            match flushed {
                Some(true) => assert!(calls.iter().all(|calls| *calls > 0), "{calls:?}"),
                _ => println!("SKIPPED {name}: no nft"),
            }
        });
        assert!(networker.look().unwrap().is_some(), "the table is as it was made");
        call_from(world, (HOST, 61001)).unwrap();
        call_from(&b.namespace, (WORLD, 80)).unwrap();
        assert_ne!(run("nft", "delete table ip diego"), Some(true), "it is not anybody's");
    });
}

#[test]
fn a_table_is_anybodys_once_its_garden_is_gone_and_the_next_gardens_then() {
    let name = "a_table_is_anybodys_once_its_garden_is_gone_and_the_next_gardens_then";
    if !rustix::process::geteuid().is_root() {
        return println!("SKIPPED {name}: needs root");
    }
    let namespace = new_namespace().unwrap();
    in_namespace(namespace.as_fd(), || {
        let start = |owns_table| {
            let config = Config { owns_table, mtu: Some(1400), ..Config::default() };
            Networker::start(config, &[]).unwrap()
        };
        let foreign = || rules::removed("diego", [Family::Ipv4]).commit("play another");
        let first = start(true);
        if first.changed == Changed::ByAnybody {
            return println!("SKIPPED {name}: this kernel keeps no table for its owner");
        }
        foreign().expect_err("it is the first one's");
        first.settle();
        drop(first);
        // Whatever it was to the one before, it is made anew for the next.
        for owns_table in [true, false, true, true] {
            let next = start(owns_table);
            assert!(next.look().unwrap().is_some());
            assert_eq!(foreign().is_err(), owns_table);
            next.settle();
            drop(next);
        }
        let began = Instant::now();
        while let Err(error) = foreign() {
            assert!(began.elapsed() < TIMEOUT, "it is somebody's still: {error}");
            std::thread::sleep(Duration::from_millis(5));
        }
    })
    .unwrap();
}

#[test]
fn tables_of_the_older_iptables_are_told_by_name() {
    let name = "tables_of_the_older_iptables_are_told_by_name";
    if !rustix::process::geteuid().is_root() {
        return println!("SKIPPED {name}: needs root");
    }
    let namespace = new_namespace().unwrap();
    in_namespace(namespace.as_fd(), || {
        assert_eq!(older_tables().unwrap(), [""; 0], "of this network alone");
        if run("iptables-legacy", "-t nat -A POSTROUTING -j RETURN") != Some(true) {
            return println!("SKIPPED {name}: no iptables-legacy, or a kernel without it");
        }
        assert_eq!(older_tables().unwrap(), ["ip nat"]);
        if run("ip6tables-legacy", "-A FORWARD -j ACCEPT") == Some(true) {
            assert_eq!(older_tables().unwrap(), ["ip nat", "ip6 filter"]);
        }
    })
    .unwrap();
}
