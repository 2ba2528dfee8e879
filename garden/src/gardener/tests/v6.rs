//! Containers with IPv6 beside IPv4, as those who use garden see them.

use super::*;
use crate::networker::Network;

const POOL: &str = "fd00:d1e9::/112";

#[test]
fn a_container_speaks_ipv6_and_keeps_it() {
    let name = "a_container_speaks_ipv6_and_keeps_it";
    if !Path::new("/proc/net/if_inet6").exists() {
        println!("SKIPPED {name}: this kernel has no IPv6");
        return;
    }
    let dual = |config: &mut Config, _: &Path| config.networker.pool_v6 = POOL.parse().ok();
    in_a_world_of(name, dual, async |mut world| {
        let spec = ContainerSpec { net_in: vec![NetIn { host_port: 0, container_port: 8080 }], ..named("h") };
        world.create(spec).await;
        let info = world.gardener.info("h").await.unwrap();
        assert_eq!((&*info.container_ip, &*info.container_ipv6), ("10.254.0.2", "fd00:d1e9::2"));
        let hosts = "127.0.0.1 localhost\n::1 localhost\n10.254.0.2 h\nfd00:d1e9::2 h\n";
        assert_eq!(world.sh("h", "cat /etc/hosts").await, (0, hosts.into()));
        answers_over_ipv6(&world, &info.container_ipv6).await;

        world.kill_and_start_again().await;
        let again = world.gardener.info("h").await.unwrap();
        assert_eq!((&again.container_ipv6, &again.mapped_ports), (&info.container_ipv6, &info.mapped_ports));
        answers_over_ipv6(&world, &info.container_ipv6).await;
        let asks = ContainerSpec { network: "fd00:d1e9::40/126".into(), ..named("next") };
        let refused = world.gardener.create(asks.clone()).await.unwrap_err().to_string();
        assert!(
            refused.ends_with("containers are given their IPv6 networks from fd00:d1e9::/112"),
            "{refused}"
        );
        world.create(named("next")).await;
        assert_eq!(world.gardener.info("next").await.unwrap().container_ipv6, "fd00:d1e9::6");

        // Without the pool nothing would fence it: it goes, and one that never had IPv6 stays.
        world.config.networker.pool_v6 = None;
        world.kill_and_start_again().await;
        assert_eq!(world.gardener.containers(&all()).await.unwrap(), [] as [&str; 0]);
        let refused = world.gardener.create(asks).await.unwrap_err().to_string();
        let why = "the network fd00:d1e9::40/126 is asked for, and containers of this garden have no IPv6";
        assert_eq!(refused, why);
        world.create(named("plain")).await;
        assert_eq!(world.gardener.info("plain").await.unwrap().container_ipv6, "");
        world.config.networker.pool_v6 = POOL.parse::<Network<_>>().ok();
        world.kill_and_start_again().await;
        assert_eq!(world.gardener.containers(&all()).await.unwrap(), ["plain"]);
        assert_eq!(world.sh("plain", "grep -c : /etc/hosts").await, (1, "0\n".into()));
        world
    });
}

async fn answers_over_ipv6(world: &World, address: &str) {
    let server = ProcessSpec { id: "server".into(), ..shell("echo hello | nc -l -p 8080") };
    let process = world.gardener.run("h", server, ProcessIo::default()).await.unwrap();
    let answer = eventually("an answer", async || {
        let mut stream = tokio::net::TcpStream::connect((address, 8080)).await.ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await.ok()?;
        (!text.is_empty()).then_some(text)
    });
    assert_eq!(answer.await, "hello\n");
    assert_eq!(process.wait().await, Ok(0));
}
