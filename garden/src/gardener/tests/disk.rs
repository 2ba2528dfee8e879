//! Disk limits of containers, as their processes meet them.

use garden_client::DiskLimits;

use super::*;

const MIB: u64 = 1 << 20;

fn limited(handle: &str, bytes: u64) -> ContainerSpec {
    let disk = DiskLimits { byte_hard: bytes, ..DiskLimits::default() };
    ContainerSpec { limits: garden_client::Limits { disk, ..Default::default() }, ..named(handle) }
}

#[test]
fn a_container_cannot_write_more_than_its_disk_limit_and_others_go_on() {
    let name = "a_container_cannot_write_more_than_its_disk_limit_and_others_go_on";
    in_a_world(name, async |world| {
        if !world.gardener.store().enforces_limits() {
            println!("SKIPPED {name}: limits are not enforced here");
            return world;
        }
        world.create(limited("small", 10 * MIB)).await;
        world.create(ContainerSpec { privileged: true, ..limited("privileged", 10 * MIB) }).await;
        world.create(limited("large", 100 * MIB)).await;
        for handle in ["small", "privileged"] {
            let write = "dd if=/dev/zero of=/tmp/big bs=1024k count=20 2>&1; stat -c %s /tmp/big";
            let (_, said) = world.sh(handle, write).await;
            assert!(said.contains("uota exceeded"), "{handle}: {said}");
            let size: u64 = said.lines().last().unwrap().parse().unwrap();
            assert!(size > 9 * MIB && size <= 10 * MIB, "{handle}: {said}");
        }
        let write = "dd if=/dev/zero of=/tmp/big bs=1024k count=20 2>/dev/null && stat -c %s /tmp/big";
        assert_eq!(world.sh("large", write).await, (0, format!("{}\n", 20 * MIB)));
        let hosts = "dd if=/dev/zero of=/etc/hosts bs=1024k count=20 2>&1";
        assert!(world.sh("small", hosts).await.1.contains("uota exceeded"), "files of the network count too");
        let used = world.gardener.metrics("small").await.unwrap().disk;
        assert!(used.exclusive_bytes_used > 9 * MIB && used.total_bytes_used >= used.exclusive_bytes_used);
        // What is removed can be written again.
        let again = "rm /tmp/big && dd if=/dev/zero of=/tmp/again bs=1024k count=8 2>&1 && echo written";
        assert!(world.sh("small", again).await.1.ends_with("written\n"));
        for handle in ["small", "privileged", "large"] {
            world.gardener.destroy(handle).await.unwrap();
        }
        assert_eq!(world.gardener.store().handles(), [] as [&str; 0]);
        let capacity = world.gardener.capacity().await.unwrap().disk_in_bytes;
        assert!(capacity < 1 << 30 && capacity > 800 * MIB, "{capacity}");
        world
    });
}
