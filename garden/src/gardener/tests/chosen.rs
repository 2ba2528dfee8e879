//! Containers whose specs name their network, as those who use garden see them.

use super::*;

#[test]
fn a_container_has_the_network_that_its_spec_names_and_keeps_it() {
    let name = "a_container_has_the_network_that_its_spec_names_and_keeps_it";
    in_a_world_of(
        name,
        |config, _| config.warm_places = 1,
        async |mut world| {
            let spec = |handle, network: &str| ContainerSpec { network: network.into(), ..named(handle) };
            world.create(spec("h", "10.77.0.0/24")).await;
            world.create(spec("i", "10.77.0.200/24")).await;
            let addresses = async |world: &World, handle| {
                let info = world.gardener.info(handle).await.unwrap();
                (info.host_ip, info.container_ip)
            };
            let of = |container: &str| ("10.77.0.1".to_owned(), container.to_owned());
            assert_eq!(addresses(&world, "h").await, of("10.77.0.2"));
            assert_eq!(addresses(&world, "i").await, of("10.77.0.200"));
            assert_eq!(world.sh("h", "tail -n1 /etc/hosts").await, (0, "10.77.0.2 h\n".into()));
            let (_, told) = world.sh("h", "ip route").await;
            assert!(told.contains("default via 10.77.0.1"), "{told}");

            world.kill_and_start_again().await;
            assert_eq!(addresses(&world, "h").await, of("10.77.0.2"));
            let refused =
                world.gardener.create(spec("next", "10.77.0.200/24")).await.unwrap_err().to_string();
            assert_eq!(refused, "the requested IP is already allocated");
            let refused = world.gardener.create(spec("next", "10.77.0.0/25")).await.unwrap_err().to_string();
            assert_eq!(
                refused,
                "the requested subnet (10.77.0.0/25) overlaps an existing subnet (10.77.0.0/24)"
            );
            world.gardener.destroy("i").await.unwrap();
            world.gardener.0.networker.settle();
            world.create(spec("next", "10.77.0.200/24")).await;
            world.create(named("pooled")).await;
            assert!(addresses(&world, "pooled").await.1.starts_with("10.254.0."));
            world
        },
    );
}
