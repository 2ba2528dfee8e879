//! Others who change the kernel's networks under garden's feet.

use super::*;

fn nft(arguments: &[&str]) {
    let done = std::process::Command::new("nft").args(arguments).output().unwrap();
    assert!(done.status.success(), "nft {arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
}

/// As with kernels that keep no table for its owner.
fn anybodys_table(config: &mut Config, _: &Path) {
    config.networker.owns_table = false;
}

fn served(handle: &str) -> ContainerSpec {
    ContainerSpec { net_in: vec![NetIn { host_port: 0, container_port: 8080 }], ..named(handle) }
}

/// Long before anybody looks without having heard of it.
const HEARD_WITHIN: Duration = Duration::from_secs(30);

async fn is_as_it_was(world: &World, handle: &str, when: &str) {
    let began = Instant::now();
    eventually(&format!("{when}: the network of '{handle}' is as it was"), async || {
        let networker = &world.gardener.0.networker;
        let connection = world.gardener.entry(handle).unwrap().record().connection.unwrap();
        let seen = networker.look().unwrap()?;
        networker.lacks(&seen, handle, &connection).is_empty().then_some(())
    })
    .await;
    assert!(began.elapsed() < HEARD_WITHIN, "{when}: after {:?}", began.elapsed());
}

#[test]
fn a_firewall_that_others_flush_or_change_is_made_again_as_soon_as_it_is_heard() {
    let name = "a_firewall_that_others_flush_or_change_is_made_again_as_soon_as_it_is_heard";
    in_a_world_of(name, anybodys_table, async |world| {
        let garden = &world.gardener;
        let spec = ContainerSpec { net_out: vec![NetOutRule::default()], ..served("h") };
        let handle = world.create(spec).await;
        let port = garden.info(&handle).await.unwrap().mapped_ports[0].host_port as u16;
        a_server_answers_by_its_port(&world, port).await;
        let table = &world.config.networker.table;
        let own = format!("egress-{}", garden.entry("h").unwrap().record().connection.unwrap().container_ip);
        for act in [
            // As a reload of nftables' own service does it.
            "flush ruleset".into(),
            format!("delete table ip {table}"),
            format!("flush table ip {table}"),
            format!("flush chain ip {table} guard"),
            format!("flush chain ip {table} {own}"),
            format!("delete element ip {table} ports {{ {port} }}"),
            format!("insert rule ip {table} forward accept"),
        ] {
            nft(&[&act]);
            is_as_it_was(&world, "h", &act).await;
        }
        a_server_answers_by_its_port(&world, port).await;
        world
    });
}

#[test]
fn what_drifts_unheard_is_told_and_put_right() {
    in_a_world_of("what_drifts_unheard_is_told_and_put_right", anybodys_table, async |world| {
        world.create(served("a")).await;
        world.create(served("b")).await;
        let gardener = &world.gardener;
        let look = || {
            let gardener = gardener.clone();
            tokio::task::spawn_blocking(move || gardener.repair_networks().unwrap())
        };
        let nothing: Vec<String> = Vec::new();
        assert_eq!(look().await.unwrap(), nothing);
        let b = gardener.entry("b").unwrap().record().connection.unwrap();
        let (link, address) = (&b.host_link, b.host_ip);
        let mut flush = std::process::Command::new("/bin/busybox");
        assert!(flush.args(["ip", "address", "flush", "dev", link]).status().unwrap().success());
        let told = format!("container 'b' had no address {address} of its link");
        assert_eq!(look().await.unwrap(), [told]);
        assert_eq!(look().await.unwrap(), nothing);
        world
    });
}
