//! What a hostile process in a container, and a hostile image, try on the cell: needs what `containers` needs.
//!
//! Attacks that no shell has words for are made by this test program itself: it is static, put into the container and
//! started there with [`ATTACK`] in its environment.

#[allow(dead_code)]
#[macro_use]
mod world;

use garden_client::{BindMount, ProcessSpec};
use world::{World, sh};

/// Set inside of a container only.
const ATTACK: &str = "ATTACK";

impl World {
    /// This program, where a container finds it.
    fn bring_attacker(&self) {
        std::fs::copy(std::env::current_exe().unwrap(), self.root.join("bin/attacker")).unwrap();
    }
}

fn attack() -> ProcessSpec {
    let args = ["--exact", "the_attack_itself", "--nocapture", "--test-threads=1"];
    ProcessSpec {
        path: "/bin/attacker".into(),
        args: args.map(String::from).into(),
        env: vec![format!("{ATTACK}=1")],
        ..ProcessSpec::default()
    }
}

/// Runs in a container, started by the tests below; its output is what succeeded.
#[test]
fn the_attack_itself() {
    use rustix::net::{AddressFamily, SocketType, socket};
    use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
    if std::env::var_os(ATTACK).is_none() {
        return;
    }
    let nothing = Rlimit { current: Some(0), maximum: getrlimit(Resource::Nofile).maximum };
    let succeeded = [
        ("limit pid 1", prlimit(Some(Pid::INIT), Resource::Nofile, nothing).is_ok()),
        ("vsock", socket(AddressFamily::VSOCK, SocketType::STREAM, None).is_ok()),
        ("alg", socket(AddressFamily::from_raw(libc::AF_ALG as u16), SocketType::SEQPACKET, None).is_ok()),
        ("inet", socket(AddressFamily::INET, SocketType::STREAM, None).is_ok()),
    ];
    for (name, _) in succeeded.iter().filter(|(_, succeeded)| *succeeded) {
        println!("succeeded: {name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pid_1_keeps_its_limits_and_no_socket_reaches_the_machine_below() {
    let world = world!("pid_1_keeps_its_limits_and_no_socket_reaches_the_machine_below");
    world.bring_attacker();
    let container = world.start(world.spec()).await;
    let done = world.run(&container, &attack()).await;
    let succeeded: Vec<_> =
        done.stdout.lines().filter_map(|line| line.split_once("succeeded: ")).map(|(_, name)| name).collect();
    assert_eq!(succeeded, ["inet"], "{done:?}");
    assert_eq!(world.run(&container, &sh("exit 5")).await.status, 5, "pid 1 still works");
    world.end(container).await;
}

fn bind(source: &str, destination: &str) -> BindMount {
    BindMount { src_path: source.into(), dst_path: destination.into(), mode: 1, origin: 0 }
}

/// What an image may hold in the places that are mounted over.
#[tokio::test(flavor = "multi_thread")]
async fn links_in_an_image_lead_no_mount_out_of_it() {
    let world = world!("links_in_an_image_lead_no_mount_out_of_it");
    let hosts = world.outside.join("hosts");
    std::fs::write(&hosts, "bound\n").unwrap();
    let outside = world.outside.join("untouched");
    std::fs::create_dir(&outside).unwrap();
    let before = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let up = format!("../../../../../../../..{}", outside.display());
    for (place, target) in [
        ("etc", &up[..]),
        ("etc", "/proc/1/root/etc"),
        ("etc", "/proc/self/cwd"),
        ("etc", "/proc/sys"),
        ("etc", "/dev/shm"),
        ("etc", "etc"),
        ("etc/hosts", &up[..]),
        ("etc/hosts", "/proc/sysrq-trigger"),
        ("etc/hosts", "/proc/self/fd/0"),
        ("proc", "/tmp"),
        ("proc", &up[..]),
        ("sys", &up[..]),
        ("dev", &up[..]),
        ("dev", "proc"),
    ] {
        let path = world.root.join(place);
        let aside = world.root.join("aside");
        let there = std::fs::symlink_metadata(&path).is_ok();
        if there {
            std::fs::rename(&path, &aside).unwrap();
        }
        std::os::unix::fs::symlink(target, &path).unwrap();
        let mut spec = world.spec();
        spec.bind_mounts = vec![bind(hosts.to_str().unwrap(), "/etc/hosts")];
        // Whether it starts is not the question here.
        if let Ok(container) = world.try_start(spec).await {
            for path in ["/proc/kcore", "/proc/keys", "/proc/timer_list"] {
                let script = format!("cat {path} 2>/dev/null | wc -c");
                assert_eq!(
                    world.output(&container, &script).await.trim(),
                    "0",
                    "{place} -> {target}: {path}"
                );
            }
            for script in ["echo x > /proc/sysrq-trigger", "echo 1 > /proc/sys/kernel/panic"] {
                assert_ne!(
                    world.run(&container, &sh(script)).await.status,
                    0,
                    "{place} -> {target}: {script}"
                );
            }
            world.end(container).await;
        }
        world.nothing_left().await;
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0, "{place} -> {target}");
        assert_eq!(std::fs::read_to_string("/proc/self/mountinfo").unwrap(), before, "{place} -> {target}");
        std::fs::remove_file(&path).unwrap();
        if there {
            std::fs::rename(&aside, &path).unwrap();
        }
    }
}

/// As images made from whole machines have them.
#[tokio::test(flavor = "multi_thread")]
async fn a_link_to_nothing_is_followed_inside_to_where_the_mount_belongs() {
    let world = world!("a_link_to_nothing_is_followed_inside_to_where_the_mount_belongs");
    let hosts = world.outside.join("hosts");
    std::fs::write(&hosts, "bound\n").unwrap();
    for (place, target, real) in [
        ("etc/one", "/run/names/one", "run/names/one"),
        ("etc/two", "../run/names/two", "run/names/two"),
        ("etc/three", "../../../../../etc/elsewhere", "etc/elsewhere"),
    ] {
        std::os::unix::fs::symlink(target, world.root.join(place)).unwrap();
        let mut spec = world.spec();
        spec.bind_mounts = vec![bind(hosts.to_str().unwrap(), &format!("/{place}"))];
        let container = world.start(spec).await;
        assert_eq!(
            world.output(&container, &format!("cat /{place} /{real}")).await,
            "bound\nbound\n",
            "{place}"
        );
        assert!(world.root.join(real).exists(), "made inside");
        world.end(container).await;
    }
    let outside = world.outside.join("made");
    std::os::unix::fs::symlink(&outside, world.root.join("etc/four")).unwrap();
    let mut spec = world.spec();
    spec.bind_mounts = vec![bind(hosts.to_str().unwrap(), "/etc/four")];
    let container = world.start(spec).await;
    assert!(!outside.exists(), "a path of the host is only a path of the container");
    world.end(container).await;
}
