//! Other firewalls on the host that containers are on: each in force before our eyes and set up again, in the network
//! namespace of the test. Theirs is what they are, their own programs.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};

use garden_sys::netlink::route::Veth;

use super::*;

/// A first packet that is lost is sent again after a second.
const TIMEOUT: Duration = Duration::from_secs(3);
/// How long to wait for an answer that must not come.
const SILENCE: Duration = Duration::from_millis(400);
const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const FAR: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
/// Which the operator denies to containers.
const DENIED: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 3);

/// What Docker asks of iptables when it starts.
const DOCKER: &str = "*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A DOCKER -i docker0 -j RETURN
COMMIT
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:DOCKER - [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
:DOCKER-ISOLATION-STAGE-2 - [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-ISOLATION-STAGE-1
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o docker0 -j DOCKER
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A FORWARD -i docker0 -o docker0 -j ACCEPT
-A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-1 -j RETURN
-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
-A DOCKER-ISOLATION-STAGE-2 -j RETURN
-A DOCKER-USER -j RETURN
COMMIT
";

/// Answers every caller, from inside the namespace, until the test ends.
fn serve(namespace: &OwnedFd, address: impl Into<SocketAddr>) {
    let address = address.into();
    let listener = in_namespace(namespace.as_fd(), || TcpListener::bind(address)).unwrap().unwrap();
    std::thread::spawn(move || {
        while let Ok((mut caller, _)) = listener.accept() {
            _ = caller.write_all(b"hello");
        }
    });
}

fn reaches(from: &OwnedFd, to: (Ipv4Addr, u16), within: Duration) -> bool {
    let call = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&to.into(), within)?;
        stream.set_read_timeout(Some(within))?;
        let mut text = String::new();
        stream.read_to_string(&mut text).map(|_| text)
    };
    in_namespace(from.as_fd(), call).unwrap().is_ok_and(|text| text == "hello")
}

/// Two containers, the first with a server that has a port, and a machine elsewhere.
struct Neighbours {
    far: OwnedFd,
    a: OwnedFd,
    b: OwnedFd,
    a_ip: Ipv4Addr,
    port: u16,
}

impl Neighbours {
    async fn new(world: &World) -> Self {
        let far = new_namespace().unwrap();
        let host = Route::open().unwrap();
        host.create_veth(&Veth { name: "up0", peer_name: "eth0", peer_namespace: far.as_fd(), mtu: 1500 })
            .unwrap();
        let there = Route::open_in(far.as_fd()).unwrap();
        for (links, link, address) in [(&host, "up0", HOST), (&there, "eth0", FAR), (&there, "eth0", DENIED)]
        {
            let index = links.index(link).unwrap();
            links.add_address(index, address, 24).unwrap();
            links.bring_up(index).unwrap();
        }
        // It could find its way to containers, if it were let in.
        there.add_default_route(HOST).unwrap();
        for handle in ["a", "b"] {
            let port = NetIn { host_port: 0, container_port: 8080 };
            world.create(ContainerSpec { net_in: vec![port], ..named(handle) }).await;
        }
        let namespace = |handle| {
            let pid = world.gardener.entry(handle).unwrap().known_container().unwrap().pid();
            OwnedFd::from(File::open(format!("/proc/{pid}/ns/net")).unwrap())
        };
        let connection = world.gardener.entry("a").unwrap().record().connection.unwrap();
        let (a, b) = (namespace("a"), namespace("b"));
        serve(&a, (Ipv4Addr::UNSPECIFIED, 8080));
        serve(&far, (Ipv4Addr::UNSPECIFIED, 80));
        Self { far, a, b, a_ip: connection.container_ip, port: connection.mapped_ports[0].host_port as u16 }
    }

    /// Sooner or later. Who is reached by a mapped port has our table, which is made in one step.
    async fn are_connected(&self, when: &str) {
        eventually(&format!("{when}: the world and the container reach one another"), async || {
            let out = reaches(&self.b, (FAR, 80), TIMEOUT);
            (out && reaches(&self.far, (HOST, self.port), TIMEOUT)).then_some(())
        })
        .await;
        self.are_fenced(when);
    }

    fn are_fenced(&self, when: &str) {
        assert!(!reaches(&self.b, (self.a_ip, 8080), SILENCE), "{when}: another container is reached");
        assert!(!reaches(&self.a, (DENIED, 80), SILENCE), "{when}: what is denied is reached");
        assert!(!reaches(&self.far, (self.a_ip, 8080), SILENCE), "{when}: the world reaches in");
    }
}

fn done(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn iptables_restore(rules: &str) {
    let mut restore = Command::new("iptables-nft-restore").stdin(Stdio::piped()).spawn().unwrap();
    restore.stdin.take().unwrap().write_all(rules.as_bytes()).unwrap();
    assert!(restore.wait().unwrap().success());
}

fn in_a_world_beside(name: &str, programs: &str, story: impl AsyncFnOnce(&World, &Neighbours) + Send) {
    let look = format!("for program in {programs} nft ip; do command -v $program || exit 1; done");
    if !Command::new("sh").args(["-c", &look]).output().unwrap().status.success() {
        return println!("SKIPPED {name}: not all of these are installed: {programs} nft ip");
    }
    let denied = |config: &mut Config, _: &Path| {
        config.networker.deny_networks = vec![format!("{DENIED}/32").parse().unwrap()];
        // All that others flush is flushed, as with older kernels.
        config.networker.owns_table = false;
    };
    in_a_world_of(name, denied, async |world| {
        let neighbours = Neighbours::new(&world).await;
        neighbours.are_connected("before").await;
        story(&world, &neighbours).await;
        done(Command::new("nft").args(["flush", "ruleset"]));
        neighbours.are_connected("after all").await;
        drop(neighbours);
        done(Command::new("ip").args(["link", "delete", "up0"]));
        world
    });
}

#[test]
fn containers_are_neither_cut_off_nor_opened_by_docker_however_often_it_starts() {
    let name = "containers_are_neither_cut_off_nor_opened_by_docker_however_often_it_starts";
    in_a_world_beside(name, "iptables-nft-restore", async |_, neighbours| {
        iptables_restore(DOCKER);
        neighbours.are_connected("beside Docker").await;
        iptables_restore(DOCKER);
        neighbours.are_connected("Docker has started again").await;
        // What the operator says where Docker leaves room for it holds for our containers too.
        done(Command::new("iptables-nft").args(["-I", "DOCKER-USER", "-d", "192.0.2.2", "-j", "DROP"]));
        assert!(!reaches(&neighbours.b, (FAR, 80), SILENCE));
        done(Command::new("iptables-nft").args(["-D", "DOCKER-USER", "-d", "192.0.2.2", "-j", "DROP"]));
        neighbours.are_connected("the operator thought better of it").await;
        done(Command::new("nft").args(["flush", "ruleset"]));
        iptables_restore(DOCKER);
        neighbours.are_connected("all rules were flushed, and Docker has started again").await;
    });
}

/// With settings of the test's own instead of the machine's.
fn ufw(world: &World, arguments: &[&str]) {
    const IN_ITS_OWN_ETC: &str = "set -e; state=$1; shift
        [ -d $state ] || { mkdir $state; cp -a /etc/ufw $state/ufw; cp /etc/default/ufw $state/default; }
        mount --bind $state/ufw /etc/ufw; mount --bind $state/default /etc/default/ufw; mount -t tmpfs tmpfs /run
        exec ufw \"$@\"";
    let state = world.directory.path().join("ufw");
    let mut command = Command::new("unshare");
    done(command.args(["-m", "sh", "-c", IN_ITS_OWN_ETC, "sh"]).arg(state).args(arguments));
}

#[test]
fn containers_are_neither_cut_off_nor_opened_by_ufw_and_its_reloads() {
    let name = "containers_are_neither_cut_off_nor_opened_by_ufw_and_its_reloads";
    in_a_world_beside(name, "ufw", async |world, neighbours| {
        ufw(world, &["--force", "enable"]);
        neighbours.are_connected("beside ufw").await;
        ufw(world, &["reload"]);
        neighbours.are_connected("ufw has reloaded").await;
        ufw(world, &["default", "reject", "routed"]);
        ufw(world, &["reload"]);
        neighbours.are_connected("ufw rejects what is routed").await;
        // What the operator says about the routed holds for our containers too.
        ufw(world, &["route", "deny", "to", "192.0.2.2"]);
        assert!(!reaches(&neighbours.b, (FAR, 80), SILENCE));
        ufw(world, &["route", "delete", "deny", "to", "192.0.2.2"]);
        neighbours.are_connected("the operator thought better of it").await;
        ufw(world, &["--force", "disable"]);
        neighbours.are_connected("ufw is off").await;
    });
}

/// It and its bus, ended by closing what they read.
struct Firewalld(Child);

impl Firewalld {
    /// With a bus and settings of its own instead of the machine's. Commands come by its standard input.
    fn start() -> Self {
        const IN_ITS_OWN_RUN: &str = "set -e; mount -t tmpfs tmpfs /run; mkdir -p /run/dbus /run/firewalld
            trap 'kill $daemon $bus; wait $daemon $bus || true' EXIT
            cp -a /etc/firewalld /run/settings; mount --bind /run/settings /etc/firewalld
            dbus-daemon --system --nofork --nopidfile --nosyslog </dev/null >/dev/null 2>&1 & bus=$!
            while ! [ -S /run/dbus/system_bus_socket ]; do sleep 0.05; done
            firewalld --nofork --nopid </dev/null >/dev/null 2>&1 & daemon=$!
            until firewall-cmd --state >/dev/null 2>&1; do kill -0 $daemon; sleep 0.1; done
            echo started
            while read -r line; do firewall-cmd $line >/dev/null 2>&1 && echo success || echo failure; done";
        let child = Command::new("unshare")
            .args(["-m", "sh", "-c", IN_ITS_OWN_RUN])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let mut started = Self(child.unwrap());
        assert_eq!(started.line(), "started");
        started
    }

    fn line(&mut self) -> String {
        let mut line = Vec::new();
        let mut byte = [0];
        while self.0.stdout.as_mut().unwrap().read(&mut byte).unwrap() == 1 && byte != *b"\n" {
            line.extend(byte);
        }
        String::from_utf8(line).unwrap()
    }

    fn command(&mut self, arguments: &str) {
        writeln!(self.0.stdin.as_mut().unwrap(), "{arguments}").unwrap();
        assert_eq!(self.line(), "success", "{arguments}");
    }
}

impl Drop for Firewalld {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        _ = self.0.wait();
    }
}

#[test]
fn containers_are_neither_cut_off_nor_opened_by_firewalld_and_its_reloads() {
    let name = "containers_are_neither_cut_off_nor_opened_by_firewalld_and_its_reloads";
    in_a_world_beside(name, "firewalld dbus-daemon", async |_, neighbours| {
        let mut firewalld = Firewalld::start();
        neighbours.are_connected("beside firewalld").await;
        firewalld.command("--reload");
        neighbours.are_connected("firewalld has reloaded").await;
        firewalld.command("--complete-reload");
        neighbours.are_connected("firewalld has reloaded all").await;
        drop(firewalld);
        neighbours.are_connected("firewalld is gone").await;
    });
}
