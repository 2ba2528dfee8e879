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

#[test]
fn a_firewall_that_others_flush_is_made_again() {
    let name = "a_firewall_that_others_flush_is_made_again";
    in_a_world_of(name, anybodys_table, async |world| {
        let garden = &world.gardener;
        let handle = world.create(served("h")).await;
        let port = garden.info(&handle).await.unwrap().mapped_ports[0].host_port as u16;
        a_server_answers_by_its_port(&world, port).await;
        let table = world.config.networker.table.clone();
        // As a reload of nftables' own service does it.
        nft(&["flush", "ruleset"]);
        eventually("the table is there again", async || {
            let look = std::process::Command::new("nft").args(["list", "table", "ip", &table]).output();
            look.ok().filter(|look| look.status.success()).map(|_| ())
        })
        .await;
        a_server_answers_by_its_port(&world, port).await;
        world
    });
}

#[test]
fn what_drifts_is_told_and_put_right() {
    in_a_world_of("what_drifts_is_told_and_put_right", anybodys_table, async |world| {
        let spec = ContainerSpec { net_out: vec![NetOutRule::default()], ..served("a") };
        world.create(spec).await;
        world.create(served("b")).await;
        let gardener = &world.gardener;
        let look = || {
            let gardener = gardener.clone();
            tokio::task::spawn_blocking(move || gardener.repair_networks().unwrap())
        };
        let nothing: Vec<String> = Vec::new();
        assert_eq!(look().await.unwrap(), nothing);
        let connection = |handle| gardener.entry(handle).unwrap().record().connection.unwrap();
        let (table, a, b) = (&world.config.networker.table, connection("a"), connection("b"));
        let port = b.mapped_ports[0].host_port.to_string();
        nft(&["flush", "chain", "ip", table, &format!("egress-{}", a.container_ip)]);
        nft(&["delete", "element", "ip", table, "ports", &format!("{{ {port} }}")]);
        let told = look().await.unwrap();
        assert_eq!(
            told,
            ["container 'a' had no egress rules (0 of 1)", "container 'b' had no element of 'ports'"]
        );
        assert_eq!(look().await.unwrap(), nothing);
        nft(&["flush", "chain", "ip", table, "guard"]);
        assert_eq!(look().await.unwrap(), ["the firewall's table was not as it was made"]);
        assert_eq!(look().await.unwrap(), nothing);
        world
    });
}
