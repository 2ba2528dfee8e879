//! Containers that use more CPU than they are entitled to.

use super::*;

/// What a container weighs, in the kernel's own measure.
fn weight(world: &World, handle: &str) -> u64 {
    let root = Path::new("/sys/fs/cgroup");
    let (v1, v2) = (root.join("cpu"), root.to_owned());
    let file = [(v1, "cpu.shares"), (v2, "cpu.weight")]
        .map(|(root, file)| root.join(&world.cgroup_parent).join(handle).join(file));
    let text = file.iter().find_map(|file| std::fs::read_to_string(file).ok()).unwrap();
    text.trim().parse().unwrap()
}

#[test]
fn who_uses_more_cpu_than_its_share_makes_way_for_those_that_do_not() {
    let configure = |config: &mut Config, _: &Path| {
        config.cpu_throttling = Some(Duration::from_millis(50));
        config.cpu_entitlement_per_share = Some(0.02);
    };
    let name = "who_uses_more_cpu_than_its_share_makes_way_for_those_that_do_not";
    in_a_world_of(name, configure, async |mut world| {
        for handle in ["hog", "modest"] {
            let limits = garden_client::Limits {
                cpu: garden_client::CpuLimits { weight: 100, ..Default::default() },
                ..Default::default()
            };
            world.create(ContainerSpec { limits, ..named(handle) }).await;
        }
        let given = weight(&world, "hog");
        let hog =
            world.gardener.run("hog", shell("while :; do :; done"), ProcessIo::default()).await.unwrap();
        eventually("the modest one weighs what the hog does not", async || {
            (weight(&world, "modest") > 10 * given.max(weight(&world, "hog"))).then_some(())
        })
        .await;
        let metrics = world.gardener.metrics("hog").await.unwrap();
        assert!(metrics.cpu.usage > metrics.cpu_entitlement, "{metrics:?}");
        drop(hog);
        world.kill_and_start_again().await;
        eventually("a next garden knows what they were given", async || {
            (weight(&world, "modest") > 10 * given.max(weight(&world, "hog"))).then_some(())
        })
        .await;
        world.gardener.destroy("hog").await.unwrap();
        eventually("there is nobody to be protected from", async || {
            (weight(&world, "modest") == given).then_some(())
        })
        .await;
        world
    });
}
