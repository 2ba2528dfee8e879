//! Disk limits of containers, as their processes meet them.

use std::fs::File;
use std::io::Write;

use garden_client::DiskLimits;
use garden_sys::mount::{self, Filesystem, MountAttrFlags};

use super::*;

const MIB: u64 = 1 << 20;
/// The image does not count.
const EXCLUSIVE: u8 = 1;

fn limited(handle: &str, bytes: u64) -> ContainerSpec {
    let disk = DiskLimits { byte_hard: bytes, scope: EXCLUSIVE, ..DiskLimits::default() };
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

#[test]
fn a_container_gets_exactly_the_inodes_of_its_limit_and_keeps_it_when_garden_starts_again() {
    let name = "a_container_gets_exactly_the_inodes_of_its_limit_and_keeps_it_when_garden_starts_again";
    in_a_world(name, async |mut world| {
        if !world.gardener.store().enforces_limits() {
            println!("SKIPPED {name}: limits are not enforced here");
            return world;
        }
        let with_inodes = |handle: &str, inodes| {
            let mut spec = limited(handle, 10 * MIB);
            spec.limits.disk.inode_hard = inodes;
            spec
        };
        world.create(with_inodes("small", 50)).await;
        world.create(ContainerSpec { privileged: true, ..with_inodes("privileged", 50) }).await;
        world.create(with_inodes("large", 200_000)).await;
        let touch =
            "cd /tmp; n=0; while [ $n -lt 99 ] && touch f$n 2>/dev/null; do n=$((n+1)); done; echo $n";
        let (_, many) = world.sh("large", touch).await;
        assert_eq!(many, "99\n");
        // Where the image lacks what something is mounted on; and its directory that is written to is one more.
        let before = world.gardener.metrics("small").await.unwrap().disk.exclusive_inodes_used + 1;
        let (_, few) = world.sh("small", touch).await;
        let used = world.gardener.metrics("small").await.unwrap().disk.exclusive_inodes_used;
        if few == many && used == 0 {
            println!("SKIPPED {name}: nothing counts inodes here");
            return world;
        }
        assert_eq!(world.sh("privileged", touch).await.1, few);
        assert!(before < 6, "{before}");
        assert_eq!(few, format!("{}\n", 50 - before));
        assert_eq!(used, 50);
        assert_eq!(world.sh("small", "touch /tmp/more 2>&1 || rm /tmp/f1 && touch /tmp/new").await.0, 0);
        world.kill_and_start_again().await;
        assert_ne!(world.sh("small", "touch /tmp/more 2>&1").await.0, 0, "still held");
        assert_eq!(world.gardener.metrics("small").await.unwrap().disk.exclusive_inodes_used, 50);
        world.create(with_inodes("after", 50)).await;
        assert_eq!(world.sh("after", touch).await.1, few);
        for handle in ["small", "privileged", "large", "after"] {
            world.gardener.destroy(handle).await.unwrap();
        }
        assert_eq!(world.gardener.store().handles(), [] as [&str; 0]);
        world
    });
}

/// A small disk of its own for the records of containers; gone with the answer.
struct DepotDisk {
    path: PathBuf,
    garden: tempfile::TempDir,
}

impl DepotDisk {
    fn new() -> DepotDisk {
        let garden = tempfile::tempdir().unwrap();
        let path = garden.path().join("depot");
        std::fs::create_dir(&path).unwrap();
        let tmpfs = Filesystem::open("tmpfs").unwrap();
        tmpfs.set_string("size", "256k").unwrap();
        tmpfs.create().unwrap();
        let disk = tmpfs.mount(MountAttrFlags::empty()).unwrap();
        mount::move_mount(disk.as_fd(), &path).unwrap();
        DepotDisk { path, garden }
    }

    fn filler(&self) -> PathBuf {
        self.path.join("filler")
    }

    fn fill(&self) {
        let mut file = File::create(self.filler()).unwrap();
        while file.write(&[1; 512]).is_ok() {}
    }
}

impl Drop for DepotDisk {
    fn drop(&mut self) {
        mount::unmount(&self.path).unwrap();
    }
}

#[test]
fn on_a_full_disk_a_creation_fails_and_leaves_nothing_and_a_destruction_succeeds() {
    let name = "on_a_full_disk_a_creation_fails_and_leaves_nothing_and_a_destruction_succeeds";
    let disk = std::sync::OnceLock::new();
    let disk = &disk;
    in_a_world_of(
        name,
        |config, _| {
            config.directory = disk.get_or_init(DepotDisk::new).garden.path().into();
        },
        async |world| {
            let disk = disk.get().unwrap();
            world.create(named("before")).await;
            disk.fill();
            let refused = world.gardener.create(named("full")).await.unwrap_err().to_string();
            assert!(refused.contains("No space left on device"), "{refused}");
            assert_eq!(world.gardener.containers(&all()).await.unwrap(), ["before"]);
            assert_eq!(world.gardener.counts().1, 0, "none is broken");
            // Where there is no room for a mark either, a container can be destroyed nevertheless.
            world.gardener.destroy("before").await.unwrap();
            assert!(directories(&disk.path).is_empty(), "{:?}", names(&disk.path));
            std::fs::remove_file(disk.filler()).unwrap();
            world.create(named("full")).await;
            assert_eq!(world.sh("full", "echo lives").await, (0, "lives\n".into()));
            world
        },
    );
}
