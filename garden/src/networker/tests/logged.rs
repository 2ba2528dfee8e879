//! What is written of packets that a rule lets out and wants logged: whose they were, and no more than is bearable.

use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::time::Instant;

use rustix::fs::{OFlags, SeekFrom, seek};

use super::*;

/// Of rules.rs.
const LINES_PER_SECOND: u64 = 100;
const PACKETS: u64 = 400;
const ALL_NETWORKS_ARE_LOGGED: &str = "/proc/sys/net/netfilter/nf_log_all_netns";

/// As many flows as there are ports, all heard by the world; in how much time.
fn send_to_many_ports(container: &Container, world: &OwnedFd) -> Duration {
    let ports = 20_000..20_000 + PACKETS as u16;
    let ears: Vec<_> = in_namespace(world.as_fd(), || {
        ports.clone().map(|port| UdpSocket::bind((WORLD, port)).unwrap()).collect()
    })
    .unwrap();
    let began = Instant::now();
    in_namespace(container.namespace.as_fd(), || {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        ports.for_each(|port| _ = socket.send_to(b"hello", (WORLD, port)).unwrap());
    })
    .unwrap();
    for ear in ears {
        ear.set_read_timeout(Some(TIMEOUT)).unwrap();
        ear.recv_from(&mut [0; 16]).expect("the limit is one of lines, not of packets");
    }
    began.elapsed()
}

/// A second's worth at once, and what came in meanwhile.
fn assert_limited(lines: u64, elapsed: Duration) {
    let most = LINES_PER_SECOND + (LINES_PER_SECOND as f64 * elapsed.as_secs_f64()) as u64 + 1;
    assert!((LINES_PER_SECOND..=most).contains(&lines), "{lines} lines in {elapsed:?}");
}

fn logged(networker: &Networker, handle: &str) -> Container {
    Container::new(networker, handle, &[], &rules(r#"[{"protocol":2,"log":true}]"#))
}

#[test]
fn a_container_that_sends_much_is_let_through_and_logged_at_its_own_rate() {
    let name = "a_container_that_sends_much_is_let_through_and_logged_at_its_own_rate";
    in_a_host_of_its_own(name, Config::default(), |networker, world| {
        let (loud, other) = (logged(networker, "loud"), logged(networker, "other"));
        let lines = |container: &Container| {
            let listed = std::process::Command::new("nft")
                .args(["list", "chain", "ip", "diego", &format!("logged-{}", container.ip())])
                .output()
                .ok()?;
            let listed = String::from_utf8(listed.stdout).unwrap();
            let (_, counted) = listed.split_once("counter packets ")?;
            Some(counted.split_once(' ')?.0.parse::<u64>().unwrap())
        };
        let Some(0) = lines(&loud) else { return println!("SKIPPED {name}: no nft") };
        let elapsed = send_to_many_ports(&loud, world);
        assert_limited(lines(&loud).unwrap(), elapsed);
        assert_eq!(lines(&other), Some(0));
        let elapsed = send_to_many_ports(&other, world);
        assert_limited(lines(&other).unwrap(), elapsed);
    });
}

/// Where the kernel writes what happens in network namespaces: on a machine that was told to, or one that is the tests' own.
#[test]
fn the_kernels_log_says_whose_packet_it_was() {
    let name = "the_kernels_log_says_whose_packet_it_was";
    if std::env::var_os("IN_VM").is_some() {
        _ = std::fs::write(ALL_NETWORKS_ARE_LOGGED, "1");
    }
    if std::fs::read_to_string(ALL_NETWORKS_ARE_LOGGED).ok().is_none_or(|value| value.trim() != "1") {
        return println!("SKIPPED {name}: {ALL_NETWORKS_ARE_LOGGED} is not 1");
    }
    in_a_host_of_its_own(name, Config::default(), |networker, world| {
        let flags = OFlags::NONBLOCK.bits() as i32;
        let log = std::fs::OpenOptions::new().read(true).custom_flags(flags).open("/dev/kmsg");
        let mut log = match log {
            Ok(log) => log,
            Err(error) => return println!("SKIPPED {name}: cannot read /dev/kmsg: {error}"),
        };
        seek(&log, SeekFrom::End(0)).unwrap();
        let handle = "6f1a2b3c-0000-4a5b-8c7d-9e0f1a2b3c4d";
        let container = logged(networker, handle);
        let elapsed = send_to_many_ports(&container, world);
        let (mut lines, mut record) = (0, [0; 8192]);
        while let Ok(bytes) = log.read(&mut record) {
            let line = String::from_utf8_lossy(&record[..bytes]);
            let ours = format!(";{} IN={} OUT=up0", &handle[..28], container.connection.host_link);
            let told = format!("SRC={} DST={WORLD}", container.ip());
            lines += u64::from(line.contains(&ours) && line.contains(&told));
        }
        assert_limited(lines, elapsed);
    });
}
