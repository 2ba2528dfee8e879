//! Limits of roots in a filesystem of our own, enforced by the kernel. Needs root, btrfs and mkfs.btrfs. In the machine that
//! `tests/vm` boots, whose kernel has project quotas, it is an ext4.

mod common;
#[path = "common/limited.rs"]
mod limited;
#[path = "common/other.rs"]
mod other;
#[path = "common/writes.rs"]
mod writes;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Mounted, Namespace, Tar, image};
use limited::{MIB, ROOTS_BYTES, SLACK, World, config, pull};
use other::Other;
use rootfs::quota::Backend;
use rootfs::{BaseIds, DiskLimit, DiskScope, Image, Store};
use serde_json::json;
use writes::{exclusive, fill, is_free_again, until};

fn backend() -> Backend {
    if std::env::var_os("IN_VM").is_some() { Backend::Ext4 } else { Backend::Btrfs }
}

fn world(test: &str) -> Option<World> {
    World::new(test, backend())
}

impl World {
    fn written(&self, handle: &str) -> u64 {
        self.store.usage(handle).unwrap().exclusive_bytes
    }

    fn image_file(&self) -> PathBuf {
        image_file(&self.path("store"))
    }
}

fn image_file(store: &Path) -> PathBuf {
    let paths = fs::read_dir(store).unwrap().map(|entry| entry.unwrap().path());
    let is_image = |path: &PathBuf| path.extension().is_some_and(|kind| kind == "btrfs" || kind == "ext4");
    let mut images: Vec<PathBuf> = paths.filter(is_image).collect();
    assert_eq!(images.len(), 1, "{images:?}");
    images.remove(0)
}

fn behind_a_loop_device(file: &Path) -> bool {
    garden_sys::loop_device::find(&File::open(file).unwrap()).unwrap().is_some()
}

#[tokio::test]
async fn a_write_beyond_the_limit_is_refused_and_nobody_else_notices() {
    let Some(world) = world("a_write_beyond_the_limit_is_refused_and_nobody_else_notices") else {
        return;
    };
    assert!(world.store.enforces_limits());
    let image = world.image().await;
    let (root, other) = (world.path("root"), world.path("other"));
    let mount = world.mount("a", &image, exclusive(10 * MIB));
    let other_mount = world.mount("b", &image, exclusive(100 * MIB));
    let (_root, _other) = (Mounted::on(&root, &mount), Mounted::on(&other, &other_mount));
    let (taken, refused) = fill(&root.join("big"), 20 * MIB);
    assert_eq!(refused, Some(io::ErrorKind::QuotaExceeded), "after {taken}");
    assert!(taken <= 10 * MIB && taken > 10 * MIB - SLACK, "{taken}");
    assert!(world.written("a") >= taken && world.written("a") <= 10 * MIB, "known without a commit");
    assert_eq!(world.store.usage("a").unwrap().total_bytes, world.written("a") + 3 * MIB);
    assert_eq!(fill(&other.join("big"), 30 * MIB), (30 * MIB, None));
    // Room that is given back can be had again, and what is there can be written again in place.
    fs::remove_file(root.join("big")).unwrap();
    is_free_again(|| fill(&root.join("again"), 8 * MIB) == (8 * MIB, None));
    let mut file = File::options().write(true).open(root.join("again")).unwrap();
    file.write_all(&vec![8; 8 << 20]).unwrap();
    // A file of the image counts once it is changed.
    let copied = File::options().append(true).open(root.join("lower")).and_then(|mut f| f.write_all(b"more"));
    assert_eq!(copied.unwrap_err().kind(), io::ErrorKind::QuotaExceeded);
}

#[tokio::test]
async fn root_of_a_container_is_held_to_the_limit_as_anybody() {
    let Some(world) = world("root_of_a_container_is_held_to_the_limit_as_anybody") else { return };
    let image = world.image().await;
    let base = 900_000;
    let mapper = Namespace::new(base);
    let ids = BaseIds { uid: base, gid: base };
    let limit = DiskLimit { bytes: 13 * MIB, inodes: 0, scope: DiskScope::Total };
    let mount = world.store.mount("a", &image, Some(mapper.user.as_fd()), ids, limit).unwrap();
    let root = world.path("root");
    let _root = Mounted::on(&root, &mount);
    let namespace = Namespace::new(base);
    let target = namespace.pid().to_string();
    let script = format!("dd if=/dev/zero of={0}/big bs=1M count=20; stat -c %s {0}/big", root.display());
    let output = Command::new("nsenter")
        .args([
            "--target", &target, "--user", "--mount", "--setuid", "0", "--setgid", "0", "sh", "-c", &script,
        ])
        .output()
        .unwrap();
    let (said, size) = (String::from_utf8_lossy(&output.stderr), String::from_utf8_lossy(&output.stdout));
    assert!(said.contains("Disk quota exceeded"), "{said}");
    let size: u64 = size.trim().parse().unwrap();
    assert!(size <= 10 * MIB && size > 10 * MIB - SLACK, "the image's 3 MiB count: {size}");
}

#[tokio::test]
async fn files_beside_the_image_count_too() {
    let Some(world) = world("files_beside_the_image_count_too") else { return };
    let _mount = world.mount("a", &world.image().await, exclusive(MIB));
    let files = world.store.files("a").unwrap();
    assert_eq!(world.store.files("a").unwrap(), files);
    let (taken, refused) = fill(&files.join("hosts"), 2 * MIB);
    assert_eq!(refused, Some(io::ErrorKind::QuotaExceeded), "after {taken}");
    let clone = garden_sys::mount::clone_mount(&files.join("hosts"), false).unwrap();
    drop(clone);
    world.store.unmount("a").unwrap();
    assert!(!files.exists());
}

#[tokio::test]
async fn files_of_an_image_and_new_ones_are_told_apart_by_number() {
    let Some(world) = world("files_of_an_image_and_new_ones_are_told_apart_by_number") else { return };
    let names: Vec<String> = (0..300).map(|n| format!("lower{n}")).collect();
    let tar = names.iter().fold(Tar::default(), |tar, name| tar.file(name, "x"));
    let built = image(&[tar.bytes()], json!({}));
    built.write_layout(&world.path("many"), "v1");
    let uri = format!("oci://{}:v1", world.path("many").display());
    let image = world.store.pull(&uri.parse().unwrap(), None, &|_| {}).await.unwrap();
    let root = world.path("root");
    let mount = world.mount("a", &image, exclusive(0));
    let _root = Mounted::on(&root, &mount);
    for n in 0..300 {
        fs::write(root.join(format!("upper{n}")), "y").unwrap();
    }
    let seen: Vec<(u64, u64)> = fs::read_dir(&root)
        .unwrap()
        .map(|entry| entry.unwrap().metadata().unwrap())
        .map(|metadata| (metadata.dev(), metadata.ino()))
        .collect();
    assert_eq!(seen.len(), 600);
    assert_eq!(seen.iter().collect::<BTreeSet<_>>().len(), 600, "each has its own");
    assert_eq!(seen.iter().map(|(dev, _)| dev).collect::<BTreeSet<_>>().len(), 1, "one filesystem");
}

#[tokio::test]
async fn a_limit_that_the_image_exceeds_is_refused_by_name() {
    let Some(world) = world("a_limit_that_the_image_exceeds_is_refused_by_name") else { return };
    let image = world.image().await;
    let limit = DiskLimit { bytes: MIB, inodes: 0, scope: DiskScope::Total };
    let error = world.store.mount("a", &image, None, BaseIds::default(), limit).unwrap_err().to_string();
    assert!(error.starts_with("layers exceed disk quota 3145728/1048576 bytes: image oci://"), "{error}");
    assert!(world.store.handles().is_empty());
    // With nothing left for it a container still starts; it cannot write much.
    let limit = DiskLimit { bytes: 3 * MIB, inodes: 0, scope: DiskScope::Total };
    let mount = world.store.mount("a", &image, None, BaseIds::default(), limit).unwrap();
    let root = world.path("root");
    let _root = Mounted::on(&root, &mount);
    fs::create_dir(root.join("proc")).unwrap();
    assert!(fill(&root.join("big"), MIB).1.is_some());
}

/// Without limits of their own they are bounded together, and the filesystem is not filled to the brim.
#[tokio::test]
async fn roots_without_a_limit_leave_the_machine_its_disk() {
    let Some(world) = world("roots_without_a_limit_leave_the_machine_its_disk") else { return };
    let image = world.image().await;
    let mount = world.mount("a", &image, exclusive(0));
    let root = world.path("root");
    let mounted = Mounted::on(&root, &mount);
    let (taken, refused) = fill(&root.join("big"), 2 * ROOTS_BYTES);
    assert_eq!(refused, Some(io::ErrorKind::QuotaExceeded), "after {taken}");
    assert!(taken > ROOTS_BYTES / 10 * 8 && taken < ROOTS_BYTES, "{taken}");
    fs::write(world.path("elsewhere"), vec![1; 1 << 20]).unwrap();
    drop(mounted);
    drop(mount);
    world.store.unmount("a").unwrap();
    // The next one has the room again, and what the file took of the host's disk comes back, too.
    let mount = world.mount("b", &image, exclusive(0));
    let mounted = Mounted::on(&root, &mount);
    until("there is room", || fill(&root.join("big"), ROOTS_BYTES / 2).1.is_none());
    drop(mounted);
    drop(mount);
    world.store.unmount("b").unwrap();
    let file = world.image_file();
    until("the host has its room back", || {
        rustix::fs::syncfs(File::open(&file).unwrap()).unwrap();
        fs::metadata(&file).unwrap().blocks() * 512 < ROOTS_BYTES / 10
    });
}

#[tokio::test]
async fn a_hundred_roots_leave_nothing() {
    let Some(world) = world("a_hundred_roots_leave_nothing") else { return };
    let image = world.image().await;
    let file = world.image_file();
    let groups = world.store.quota_groups().unwrap();
    for n in 0..100 {
        let handle = format!("h{n}");
        let mount = world.mount(&handle, &image, exclusive(10 * MIB));
        fs::write(mount.upper.join("file"), vec![1; 100_000]).unwrap();
        drop(mount);
        world.store.unmount(&handle).unwrap();
        world.store.unmount(&handle).unwrap();
    }
    assert!(world.store.handles().is_empty());
    until("all groups are gone", || world.store.quota_groups().unwrap() == groups);
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains("btrfs"), "nothing shows on the host: {mounts}");
    assert!(behind_a_loop_device(&file));
    let World { directory, store } = world;
    drop((image, store));
    until("the device is gone", || !behind_a_loop_device(&file));
    drop(directory);
}

const KILLED: &str = "ROOTFS_TEST_KILLED";

/// Not a test: the process that the next one kills, and whose child outlives it.
#[expect(clippy::zombie_processes)]
#[tokio::test]
async fn a_process_that_will_be_killed() {
    let Some(directory) = std::env::var_os(KILLED).map(PathBuf::from) else { return };
    let store = Store::open(&directory.join("store"), config(backend())).unwrap();
    let image = pull(&store, &directory).await;
    let root = directory.join("root");
    // Seen by a container alone, as its init would mount it.
    garden_sys::process::unshare(garden_sys::process::namespaces::MOUNT).unwrap();
    let mount = store.mount("living", &image, None, BaseIds::default(), exclusive(10 * MIB)).unwrap();
    let _root = Mounted::on(&root, &mount);
    let living = Command::new("sleep").arg("600").current_dir(&root).stdin(Stdio::null()).spawn().unwrap();
    for n in 0.. {
        let handle = format!("dead{n}");
        let mount = store.mount(&handle, &image, None, BaseIds::default(), exclusive(10 * MIB)).unwrap();
        fs::write(mount.upper.join("file"), vec![1; 100_000]).unwrap();
        drop(mount);
        if n == 20 {
            println!("ready {}", living.id());
        }
        if n % 2 == 0 {
            store.unmount(&handle).unwrap();
        }
    }
}

fn killed_in_the_middle(directory: &Path) -> rustix::process::Pid {
    let mut process = Other::start("a_process_that_will_be_killed", KILLED, directory);
    let pid = process.ready().parse().unwrap();
    rustix::process::Pid::from_raw(pid).unwrap()
}

#[tokio::test]
async fn a_store_whose_process_was_killed_is_opened_beside_its_living_containers() {
    let name = "a_store_whose_process_was_killed_is_opened_beside_its_living_containers";
    let Some(world) = world(name) else { return };
    let World { directory, store } = world;
    drop(store);
    let living = killed_in_the_middle(directory.path());
    let kill = scopeguard(move || _ = rustix::process::kill_process(living, rustix::process::Signal::KILL));
    let file = image_file(&directory.path().join("store"));
    assert!(behind_a_loop_device(&file), "the living container holds it");
    let store = Store::open(&directory.path().join("store"), config(backend())).unwrap();
    assert!(store.handles().contains(&"living".to_string()));
    store.recover(&BTreeSet::from(["living".to_string()])).unwrap();
    assert_eq!(store.handles(), ["living"]);
    let inside = PathBuf::from(format!("/proc/{}/cwd", living.as_raw_nonzero()));
    let (taken, refused) = fill(&inside.join("big"), 20 * MIB);
    assert_eq!(refused, Some(io::ErrorKind::QuotaExceeded), "still held to its limit, after {taken}");
    assert!(store.usage("living").unwrap().exclusive_bytes >= taken);
    let image = pull(&store, directory.path()).await;
    drop(store.mount("new", &image, None, BaseIds::default(), exclusive(MIB)).unwrap());
    drop((image, store));
    let plain = Store::open(&directory.path().join("store"), config(Backend::Plain)).unwrap();
    assert_eq!(plain.handles(), ["living", "new"], "known whatever new roots are made of");
    drop(plain);
    // And once more, with nobody living: then the device goes with the last process.
    drop(kill);
    until("the device is gone", || !behind_a_loop_device(&file));
    let store = Store::open(&directory.path().join("store"), config(backend())).unwrap();
    assert_eq!(store.recover(&BTreeSet::new()).unwrap(), ["living", "new"]);
}

struct Guard<F: FnMut()>(F);

fn scopeguard<F: FnMut()>(act: F) -> Guard<F> {
    Guard(act)
}

impl<F: FnMut()> Drop for Guard<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

#[tokio::test]
async fn a_filesystem_that_cannot_be_mounted_is_made_anew() {
    let Some(world) = world("a_filesystem_that_cannot_be_mounted_is_made_anew") else { return };
    let file = world.image_file();
    let World { directory, store } = world;
    drop(store);
    until("the device is gone", || !behind_a_loop_device(&file));
    File::options().write(true).open(&file).unwrap().write_all(&vec![0; 1 << 20]).unwrap();
    fs::write(directory.path().join("store/roots-earlier.btrfs"), "of an earlier run").unwrap();
    let store = Store::open(&directory.path().join("store"), config(backend())).unwrap();
    let image = pull(&store, directory.path()).await;
    store.mount("a", &image, None, BaseIds::default(), exclusive(MIB)).unwrap();
    image_file(&directory.path().join("store"));
}

#[tokio::test]
async fn a_filesystem_that_containers_may_live_on_is_never_made_anew() {
    let Some(world) = world("a_filesystem_that_containers_may_live_on_is_never_made_anew") else {
        return;
    };
    let file = world.image_file();
    let World { directory, store } = world;
    drop(store);
    until("the device is gone", || !behind_a_loop_device(&file));
    let mut broken = File::options().read(true).write(true).open(&file).unwrap();
    broken.write_all(&vec![0; 1 << 20]).unwrap();
    let device = garden_sys::loop_device::attach(&broken, false).unwrap();
    for backend in [Backend::Auto, backend(), Backend::Plain] {
        let refused = Store::open(&directory.path().join("store"), config(backend)).err().expect("no store");
        let said = refused.to_string();
        assert!(said.starts_with("containers may live on the filesystem for roots"), "{said}");
        assert!(said.contains(file.to_str().unwrap()), "{said}");
        assert_eq!(fs::metadata(&file).unwrap().ino(), broken.metadata().unwrap().ino(), "the same file");
    }
    drop(device);
    until("the device is gone", || !behind_a_loop_device(&file));
    Store::open(&directory.path().join("store"), config(backend())).unwrap();
    assert_ne!(fs::metadata(&file).unwrap().ino(), broken.metadata().unwrap().ino(), "a new one");
}

#[tokio::test]
async fn roots_of_a_store_without_limits_are_known_to_one_with() {
    let Some(world) = world("roots_of_a_store_without_limits_are_known_to_one_with") else { return };
    let World { directory, store } = world;
    drop(store);
    let plain = Store::open(&directory.path().join("store"), config(Backend::Plain)).unwrap();
    assert!(!plain.enforces_limits());
    let image = pull(&plain, directory.path()).await;
    let mount = plain.mount("plain", &image, None, BaseIds::default(), exclusive(MIB)).unwrap();
    fs::write(mount.upper.join("file"), vec![1; 2 << 20]).unwrap();
    drop((mount, image, plain));
    let store = Store::open(&directory.path().join("store"), config(backend())).unwrap();
    assert_eq!(store.handles(), ["plain"]);
    assert!(store.usage("plain").unwrap().exclusive_bytes >= 2 * MIB);
    store.unmount("plain").unwrap();
    assert!(store.handles().is_empty());
}

/// As metrics of a full cell ask for it.
#[tokio::test]
async fn usage_of_250_roots_takes_no_walk() {
    let Some(world) = world("usage_of_250_roots_takes_no_walk") else { return };
    let image = world.image().await;
    for n in 0..250 {
        let mount = world.mount(&format!("h{n}"), &image, exclusive(10 * MIB));
        (0..20).for_each(|n| fs::write(mount.upper.join(format!("f{n}")), "x").unwrap());
    }
    let handles = world.store.handles();
    let mut times: Vec<Duration> = (0..5)
        .map(|_| {
            let began = Instant::now();
            handles.iter().for_each(|handle| _ = world.store.usage(handle).unwrap());
            began.elapsed()
        })
        .collect();
    times.sort();
    println!("usage of 250 roots: {:?}", times[2]);
    assert!(times[0] < Duration::from_millis(100), "{times:?}");
}

/// A disk of its own for a store.
struct SmallDisk {
    path: PathBuf,
}

const DISK_BYTES: u64 = 400 * MIB;

impl SmallDisk {
    fn new(file: &Path) -> Result<SmallDisk, String> {
        let disk = File::options().read(true).write(true).create_new(true).open(file).unwrap();
        disk.set_len(DISK_BYTES).unwrap();
        let made = Command::new("mkfs.ext4").args(["-q", "-m", "0"]).arg(file).status();
        if !made.as_ref().is_ok_and(|status| status.success()) {
            return Err(format!("mkfs.ext4: {made:?}"));
        }
        let device = garden_sys::loop_device::attach(&disk, false).map_err(|error| error.to_string())?;
        let ext4 = garden_sys::mount::Filesystem::open("ext4").map_err(|error| error.to_string())?;
        ext4.set_path("source", &device.path).unwrap();
        ext4.create().unwrap();
        let mount = ext4.mount(garden_sys::mount::MountAttrFlags::empty()).unwrap();
        let path = file.with_extension("mounted");
        fs::create_dir(&path).unwrap();
        garden_sys::mount::move_mount(mount.as_fd(), &path).unwrap();
        Ok(SmallDisk { path })
    }

    fn free(&self) -> u64 {
        let disk = rustix::fs::statvfs(&self.path).unwrap();
        disk.f_bavail * disk.f_frsize
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        garden_sys::mount::unmount(&self.path).unwrap();
    }
}

/// One layer of so many bytes that cannot be compressed, or can be very well.
async fn try_pull(
    store: &Store,
    directory: &Path,
    seed: u8,
    bytes: u64,
    dense: bool,
) -> Result<Image, rootfs::Error> {
    let mut state = u64::from(seed) + 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        // Letters, for the file is text here.
        if dense { b'a' + (state % 26) as u8 } else { b'x' }
    };
    let block: String = (0..4 << 20).map(|_| char::from(next())).collect();
    let content = block.repeat((bytes >> 22) as usize);
    let built = image(&[Tar::default().file("file", &content).bytes()], json!({}));
    let layout = directory.join(format!("layout{seed}"));
    built.write_layout(&layout, "v1");
    let pulled = store.pull(&format!("oci://{}:v1", layout.display()).parse().unwrap(), None, &|_| {}).await;
    fs::remove_dir_all(layout).unwrap();
    pulled
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_too_small_for_all_images_keeps_those_in_use_and_never_fills_up() {
    let name = "a_disk_too_small_for_all_images_keeps_those_in_use_and_never_fills_up";
    if world(name).is_none() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let disk = match SmallDisk::new(&directory.path().join("disk")) {
        Ok(disk) => disk,
        Err(reason) => return println!("SKIPPED {name}: {reason}"),
    };
    let mut config = config(backend());
    config.quota.image_bytes = Some(256 * MIB);
    let store = Store::open(&disk.path.join("store"), config).unwrap();
    let room = store.store_usage().unwrap().room_bytes;
    assert!(room > 60 * MIB && room < DISK_BYTES - 256 * MIB, "{room}");
    // More than fits, one after the other: the longest unused make place.
    for seed in 0..7 {
        try_pull(&store, directory.path(), seed, 20 * MIB, true).await.unwrap();
    }
    let kept = store.store_usage().unwrap();
    assert!(kept.layers < 7 && kept.layers > 0, "{kept:?}");
    // In use, none may go; then there is an end.
    let mut in_use = Vec::new();
    let refused = loop {
        match try_pull(&store, directory.path(), 10 + in_use.len() as u8, 20 * MIB, true).await {
            Ok(image) => in_use.push(image),
            Err(error) => break error.to_string(),
        }
        assert!(in_use.len() < 10);
    };
    assert!(refused.contains("no room for"), "{refused}");
    assert!(in_use.len() >= 3, "{}: {refused}", in_use.len());
    // What was promised to containers is theirs still, and more than that is left.
    let mount = store.mount("a", &in_use[0], None, BaseIds::default(), exclusive(0)).unwrap();
    let root = directory.path().join("root");
    let mounted = Mounted::on(&root, &mount);
    assert_eq!(fill(&root.join("big"), 150 * MIB), (150 * MIB, None));
    drop(mounted);
    assert!(disk.free() > DISK_BYTES / 20, "{}", disk.free());
    // A layer that nobody could foresee to be so large is stopped on its way.
    let bomb = try_pull(&store, directory.path(), 30, 200 * MIB, false).await.unwrap_err().to_string();
    assert!(bomb.contains("there is no room for its entry 'file' of 209715200 bytes"), "{bomb}");
    assert!(disk.free() > DISK_BYTES / 20, "{}", disk.free());
    // Room comes back with those who held it.
    drop((mount, in_use));
    store.unmount("a").unwrap();
    try_pull(&store, directory.path(), 40, 20 * MIB, true).await.unwrap();
}
