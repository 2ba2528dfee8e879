//! Limits of inodes where the filesystem of all roots counts none: each root that has one is a filesystem of its own. Needs
//! root, loop devices and mkfs.ext4.

mod common;
#[path = "common/limited.rs"]
mod limited;
#[path = "common/other.rs"]
mod other;
#[path = "common/writes.rs"]
mod writes;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::{Mounted, Namespace, Tar};
use limited::{MIB, SLACK, World, config, pull};
use other::Other;
use rootfs::quota::Backend;
use rootfs::{BaseIds, DiskLimit, DiskScope, Image, Store};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use writes::{fill, is_free_again, until};

/// Beside a btrfs, and alone.
fn both(test: &str) -> impl Iterator<Item = World> {
    [Backend::Btrfs, Backend::Disks].into_iter().filter_map(move |backend| World::new(test, backend))
}

impl World {
    /// Bytes and inodes.
    fn written(&self, handle: &str) -> (u64, u64) {
        let used = self.store.usage(handle).unwrap();
        (used.exclusive_bytes, used.exclusive_inodes)
    }
}

fn limit(bytes: u64, inodes: u64) -> DiskLimit {
    DiskLimit { bytes, inodes, scope: DiskScope::Exclusive }
}

/// Loop devices whose files lie, or lay, below a directory.
fn devices(directory: &Path) -> usize {
    let blocks = fs::read_dir("/sys/block").unwrap().flatten();
    let files = blocks.filter_map(|entry| fs::read_to_string(entry.path().join("loop/backing_file")).ok());
    files.filter(|file| file.starts_with(directory.to_str().unwrap())).count()
}

/// Files that are made, empty, until one is refused.
fn touch(directory: &Path, most: u64) -> (u64, Option<io::ErrorKind>) {
    for number in 0..most {
        if let Err(error) = File::create(directory.join(format!("f{number}"))) {
            return (number, Some(error.kind()));
        }
    }
    (most, None)
}

#[tokio::test]
async fn a_container_gets_exactly_the_inodes_and_bytes_of_its_limit() {
    for world in both("a_container_gets_exactly_the_inodes_and_bytes_of_its_limit") {
        let (image, root) = (world.image().await, world.path("root"));
        for (inodes, bytes) in [(16, MIB), (1000, 10 * MIB), (10_000, 80 * MIB)] {
            let handle = format!("h{inodes}");
            let mount = world.mount(&handle, &image, limit(bytes, inodes));
            let files = world.store.files(&handle).unwrap();
            for file in ["hosts", "resolv.conf"] {
                fs::write(files.join(file), "x").unwrap();
            }
            assert_eq!(world.store.files(&handle).unwrap(), files);
            assert_eq!(world.written(&handle), (0, 0), "what we make ourselves is not the container's");
            let _root = Mounted::on(&root, &mount);
            let full = Some(io::ErrorKind::StorageFull);
            assert_eq!(touch(&root, inodes + 10), (inodes, full));
            assert_eq!(world.written(&handle).1, inodes);
            // A second name is no second file, and what goes makes room at once.
            fs::hard_link(root.join("f0"), root.join("g0")).unwrap();
            fs::remove_file(root.join("f1")).unwrap();
            is_free_again(|| world.written(&handle).1 == inodes - 1);
            fs::create_dir(root.join("directory")).unwrap();
            assert_eq!(File::create(root.join("f1")).unwrap_err().kind(), io::ErrorKind::StorageFull);
            // A file of the image takes one once it is changed.
            assert!(File::options().append(true).open(root.join("lower")).is_err());
            fs::remove_dir(root.join("directory")).unwrap();
            (2..inodes).for_each(|number| fs::remove_file(root.join(format!("f{number}"))).unwrap());
            is_free_again(|| world.written(&handle).1 == 1);
            let (before, _) = world.written(&handle);
            let (taken, refused) = fill(&root.join("big"), bytes + MIB);
            assert_eq!(refused, full);
            assert!(taken <= bytes - before && taken + SLACK >= bytes - before, "{bytes}: {before} {taken}");
            assert!(world.written(&handle).0 + SLACK >= bytes && world.written(&handle).0 <= bytes);
            fs::remove_file(root.join("big")).unwrap();
            is_free_again(|| fill(&root.join("again"), bytes / 2) == (bytes / 2, None));
        }
    }
}

#[tokio::test]
async fn directories_that_an_upper_layer_only_implies_are_the_images_however_many() {
    const DIRECTORIES: usize = 300;
    let name = "directories_that_an_upper_layer_only_implies_are_the_images_however_many";
    let Some(world) = World::new(name, Backend::Disks) else { return };
    let (mut below, mut above) = (Tar::default(), Tar::default());
    for number in 0..DIRECTORIES {
        below = below.directory(&format!("d{number}"), 0o750);
        above = above.file(&format!("d{number}/file"), "x");
    }
    let built = common::image(&[below.bytes(), above.bytes()], json!({}));
    built.write_layout(&world.path("implied"), "v1");
    let uri = format!("oci://{}:v1", world.path("implied").display());
    let image = world.store.pull(&uri.parse().unwrap(), None, &|_| {}).await.unwrap();
    let root = world.path("root");
    let mount = world.mount("a", &image, limit(MIB, 20));
    let _root = Mounted::on(&root, &mount);
    let mode = |number| fs::metadata(root.join(format!("d{number}"))).unwrap().mode() & 0o7777;
    assert!((0..DIRECTORIES).all(|number| mode(number) == 0o750));
    assert_eq!(fs::read_dir(&mount.upper).unwrap().count(), DIRECTORIES, "each had to be made for it");
    assert_eq!(world.written("a"), (0, 0));
    assert_eq!(touch(&root, 100), (20, Some(io::ErrorKind::StorageFull)));
}

/// As a deployed rep asks for it with each of its containers.
#[tokio::test]
async fn two_hundred_thousand_inodes_are_told_from_one_less() {
    let name = "two_hundred_thousand_inodes_are_told_from_one_less";
    let Some(world) = World::new(name, Backend::Disks) else { return };
    let (image, root) = (world.image().await, world.path("root"));
    let mount = world.mount("a", &image, limit(1 << 30, 200_000));
    let _root = Mounted::on(&root, &mount);
    let seen = rustix::fs::statvfs(&root).unwrap();
    assert_eq!((seen.f_ffree, seen.f_bavail * seen.f_frsize), (200_000, 1 << 30), "it sees what it has");
    let directory = root.join("d");
    fs::create_dir(&directory).unwrap();
    assert_eq!(touch(&directory, 3000), (3000, None));
    assert_eq!(world.written("a").1, 3001);
    assert_eq!(rustix::fs::statvfs(&root).unwrap().f_ffree, 200_000 - 3001);
}

#[tokio::test]
async fn root_of_a_user_namespace_is_held_to_both_limits_and_the_image_counts() {
    for world in both("root_of_a_user_namespace_is_held_to_both_limits_and_the_image_counts") {
        let image = world.image().await;
        let base = 900_000;
        let mapper = Namespace::new(base);
        let limits = DiskLimit { bytes: 13 * MIB, inodes: 103, scope: DiskScope::Total };
        let ids = BaseIds { uid: base, gid: base };
        let mount = world.store.mount("a", &image, Some(mapper.user.as_fd()), ids, limits).unwrap();
        let root = world.path("root");
        let _root = Mounted::on(&root, &mount);
        let namespace = Namespace::new(base);
        let script = format!(
            "cd {}; stat -c %u lower; dd if=/dev/zero of=big bs=1024k count=20; stat -c %s big; rm big; n=0; \
             while [ $n -lt 300 ] && touch f$n; do n=$((n+1)); done; echo $n",
            root.display()
        );
        let target = namespace.pid().to_string();
        let enter = ["--target", &target, "--user", "--mount", "--setuid", "0", "--setgid", "0"];
        let output = Command::new("nsenter").args(enter).args(["/bin/sh", "-c", &script]).output().unwrap();
        let (said, counted) =
            (String::from_utf8_lossy(&output.stderr), String::from_utf8_lossy(&output.stdout));
        assert_eq!(said.matches("No space left").count(), 2, "{said}");
        let counted: Vec<u64> = counted.split_whitespace().map(|number| number.parse().unwrap()).collect();
        assert_eq!(counted[0], 0, "the image's files are its root's");
        assert!(counted[1] <= 10 * MIB && counted[1] > 10 * MIB - SLACK, "{counted:?}");
        assert_eq!(counted[2], 101, "two are the image's: {said}");
        assert_eq!(fs::metadata(root.join("f0")).unwrap().uid(), base);
        // What is removed of the image takes one inode, whatever was removed: the whiteout, which all share.
        fs::remove_file(root.join("f0")).unwrap();
        fs::remove_file(root.join("lower")).unwrap();
        assert!(mount.upper.join("lower").symlink_metadata().unwrap().file_type().is_char_device());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_at_once_are_each_held_to_their_own_and_leave_nothing() {
    const ROOTS: usize = 24;
    for world in both("many_at_once_are_each_held_to_their_own_and_leave_nothing") {
        let image = world.image().await;
        std::thread::scope(|threads| {
            for thread in 0..4 {
                let (world, image) = (&world, &image);
                threads.spawn(move || {
                    for number in 0..ROOTS / 4 {
                        let (handle, inodes) = (format!("h{thread}-{number}"), 20 + number as u64);
                        let mount = world.mount(&handle, image, limit(MIB, inodes));
                        let root = world.path(&handle);
                        let _root = Mounted::on(&root, &mount);
                        assert_eq!(touch(&root, 1000).0, inodes);
                        let taken = (0..10).map(|_| fill(&root.join("f0"), 2 * MIB).0).max().unwrap();
                        assert!(taken <= MIB && taken + SLACK >= MIB, "{taken}");
                        if number % 2 == 0 {
                            world.store.unmount(&handle).unwrap();
                        }
                    }
                });
            }
        });
        assert_eq!(world.store.handles().len(), ROOTS / 2);
        let shown = on_the_host(world.directory.path());
        assert!(shown.is_empty() || !are_hidden(), "{shown:?}");
        for handle in world.store.handles() {
            assert!(world.written(&handle).0 + SLACK >= MIB);
            world.store.unmount(&handle).unwrap();
            world.store.unmount(&handle).unwrap();
        }
        let left = |part: &str| fs::read_dir(disks_in(&world.path("store")).join(part)).unwrap().count();
        assert_eq!(left("roots"), 0);
        // Those that are made ahead go, too, as other shapes are asked for.
        until("all is removed", || left("trash") == 0);
        let World { directory, store } = world;
        drop((image, store));
        until("no device is left", || devices(directory.path()) == 0);
        assert_eq!(on_the_host(directory.path()), [] as [&str; 0]);
        assert_eq!(fs::read_dir(disks_in(&directory.path().join("store")).join("ready")).unwrap().count(), 0);
    }
}

/// Mounts below a directory that the host's mount table shows.
fn on_the_host(directory: &Path) -> Vec<String> {
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    let below = |line: &&str| line.contains(directory.to_str().unwrap()) && line.contains("/inside");
    mounts.lines().filter(below).map(String::from).collect()
}

/// Whether this kernel can mount where no table shows it: what is cloned of a clone can be hung into it.
fn are_hidden() -> bool {
    let tree = garden_sys::mount::clone_mount(Path::new("/tmp"), false).unwrap();
    garden_sys::mount::clone_mount_of(&tree, false).is_ok()
}

fn disks_in(store: &Path) -> PathBuf {
    let named = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().starts_with("disks-");
    fs::read_dir(store).unwrap().flatten().find(named).unwrap().path()
}

const KILLED: &str = "ROOTFS_TEST_KILLED";

/// Not a test: the process that the next one kills, and whose child outlives it.
#[expect(clippy::zombie_processes)]
#[tokio::test]
async fn a_process_that_will_be_killed() {
    let Some(directory) = std::env::var_os(KILLED).map(PathBuf::from) else { return };
    // What is mounted is seen by a container alone, as its init would mount it.
    garden_sys::process::unshare(garden_sys::process::namespaces::MOUNT).unwrap();
    let store = Store::open(&directory.join("store"), config(Backend::Disks)).unwrap();
    let image = pull(&store, &directory).await;
    let root = directory.join("root");
    let mount = |handle: &str, inodes| {
        store.mount(handle, &image, None, BaseIds::default(), limit(10 * MIB, inodes)).unwrap()
    };
    let living = mount("living", 50);
    let _root = Mounted::on(&root, &living);
    let process = Command::new("sleep").arg("600").current_dir(&root).stdin(Stdio::null()).spawn().unwrap();
    println!("ready {}", process.id());
    // Other shapes, too, so that it is killed in whatever there is to be done.
    for number in 0.. {
        let handle = format!("dead{number}");
        drop(mount(&handle, 20 + number / 4));
        if number % 2 == 0 {
            store.unmount(&handle).unwrap();
        }
    }
}

struct Living(Pid);

impl Drop for Living {
    fn drop(&mut self) {
        _ = kill_process(self.0, Signal::KILL);
    }
}

/// Killed `after` milliseconds of making and destroying.
fn killed_in_the_middle(directory: &Path, after: u64) -> Living {
    let mut process = Other::start("a_process_that_will_be_killed", KILLED, directory);
    let pid = process.ready().parse().unwrap();
    let living = Living(Pid::from_raw(pid).unwrap());
    std::thread::sleep(std::time::Duration::from_millis(after));
    drop(process);
    living
}

#[tokio::test]
async fn whenever_its_process_is_killed_the_next_finds_the_living_and_removes_the_rest() {
    let name = "whenever_its_process_is_killed_the_next_finds_the_living_and_removes_the_rest";
    let Some(world) = World::new(name, Backend::Disks) else { return };
    let World { directory, store } = world;
    drop(store);
    if !are_hidden() {
        // Its child would hold the whole table, as no container does.
        return println!("SKIPPED {name}: mounts are in the mount table before Linux 6.15");
    }
    let open = |backend| Store::open(&directory.path().join("store"), config(backend)).unwrap();
    for after in [0, 3, 10, 25, 60, 200] {
        until("no device is left", || devices(directory.path()) == 0);
        let living = killed_in_the_middle(directory.path(), after);
        until("only the living one holds a device", || devices(directory.path()) == 1);
        let store = open(Backend::Disks);
        assert!(store.handles().contains(&"living".into()));
        let before = store.usage("living").unwrap();
        assert_eq!((before.exclusive_bytes, before.exclusive_inodes), (0, 0));
        store.recover(&BTreeSet::from(["living".to_string()])).unwrap();
        let inside = PathBuf::from(format!("/proc/{}/cwd", living.0.as_raw_nonzero()));
        assert_eq!(touch(&inside, 60), (50, Some(io::ErrorKind::StorageFull)), "still held to its limit");
        assert_eq!(store.usage("living").unwrap().exclusive_inodes, 50);
        let image = pull(&store, directory.path()).await;
        drop(store.mount("new", &image, None, BaseIds::default(), limit(MIB, 30)).unwrap());
        drop((image, store));
        // Known whatever new roots are made of.
        let plain = open(Backend::Plain);
        assert_eq!(plain.handles(), ["living", "new"]);
        assert_eq!(plain.usage("living").unwrap().exclusive_inodes, 50);
        drop(plain);
        // And once more with nobody living: then the device went with the last process.
        drop(living);
        until("no device is left", || devices(directory.path()) == 0);
        let store = open(Backend::Disks);
        assert_eq!(store.recover(&BTreeSet::new()).unwrap(), ["living", "new"]);
        let parts = ["roots", "trash"].map(|part| disks_in(&directory.path().join("store")).join(part));
        until("all is removed", || parts.iter().all(|part| fs::read_dir(part).unwrap().count() == 0));
    }
}

#[tokio::test]
async fn what_an_earlier_run_of_the_machine_left_is_gone_and_so_is_what_was_half_done() {
    let name = "what_an_earlier_run_of_the_machine_left_is_gone_and_so_is_what_was_half_done";
    let Some(world) = World::new(name, Backend::Disks) else { return };
    let World { directory, store } = world;
    drop(store);
    let store = directory.path().join("store");
    let disks = disks_in(&store);
    fs::create_dir_all(store.join("disks-earlier/roots/a/inside")).unwrap();
    fs::write(store.join("disks-earlier/roots/a/disk-1-2"), "").unwrap();
    for half in ["templates/disk-5-6.new", "ready/a/disk-5-6", "trash/a/disk-5-6", "roots/a/disk-5-6"] {
        fs::create_dir_all(disks.join(half).parent().unwrap()).unwrap();
        fs::write(disks.join(half), "").unwrap();
    }
    let opened = Store::open(&store, config(Backend::Disks)).unwrap();
    assert!(opened.handles().is_empty());
    opened.settle();
    assert!(!store.join("disks-earlier").exists());
    let left = ["templates/disk-5-6.new", "ready/a", "trash/a", "roots/a"];
    assert!(left.iter().all(|path| !disks.join(path).exists()), "{left:?}");
}

#[tokio::test]
async fn where_limits_of_inodes_are_to_be_ignored_no_filesystem_is_made_for_them() {
    let name = "where_limits_of_inodes_are_to_be_ignored_no_filesystem_is_made_for_them";
    let Some(world) = World::new(name, Backend::Btrfs) else { return };
    let World { directory, store } = world;
    drop(store);
    until("no device is left", || devices(directory.path()) == 0);
    let mut config = config(Backend::Btrfs);
    config.quota.ignore_inode_limits = true;
    let store = Store::open(&directory.path().join("store"), config).unwrap();
    let image = pull(&store, directory.path()).await;
    let mount = store.mount("a", &image, None, BaseIds::default(), limit(10 * MIB, 20)).unwrap();
    let root = directory.path().join("root");
    let _root = Mounted::on(&root, &mount);
    assert_eq!(touch(&root, 100), (100, None));
    assert_eq!(fill(&root.join("f0"), 20 * MIB).1, Some(io::ErrorKind::QuotaExceeded), "bytes are");
}

/// For this thread, and what it starts from now on: as in a container that was given none.
fn lose_loop_devices() {
    let done = Command::new("mount").args(["--bind", "/dev/null", "/dev/loop-control"]).status();
    assert!(done.unwrap().success());
}

/// In a mount namespace of this thread's own.
fn alone() {
    garden_sys::process::unshare(garden_sys::process::namespaces::MOUNT).unwrap();
    assert!(Command::new("mount").args(["--make-rprivate", "/"]).status().unwrap().success());
}

#[test]
fn without_a_loop_device_bytes_are_limited_or_the_create_fails_by_name_and_nothing_is_left() {
    let name = "without_a_loop_device_bytes_are_limited_or_the_create_fails_by_name_and_nothing_is_left";
    if common::is_root() {
        alone();
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _entered = runtime.enter();
    let worlds: Vec<World> = both(name).collect();
    let images: Vec<Image> = worlds.iter().map(|world| runtime.block_on(world.image())).collect();
    if !worlds.is_empty() {
        lose_loop_devices();
    }
    for (world, image) in worlds.iter().zip(&images) {
        let mounted = world.store.mount("a", image, None, BaseIds::default(), limit(10 * MIB, 20));
        let disks = disks_in(&world.path("store"));
        let left = |part: &str| fs::read_dir(disks.join(part)).unwrap().count();
        assert_eq!((left("roots"), left("ready")), (0, 0));
        until("what was half made is removed", || left("trash") == 0);
        let in_store = fs::read_dir(world.path("store")).unwrap().flatten();
        let is_btrfs = |entry: &fs::DirEntry| entry.path().extension().is_some_and(|kind| kind == "btrfs");
        if in_store.into_iter().any(|entry| is_btrfs(&entry)) {
            // Quota groups hold the bytes.
            let root = world.path("root");
            let _root = Mounted::on(&root, &mounted.unwrap());
            assert_eq!(touch(&root, 100), (100, None), "of inodes there is no limit but that of bytes");
            let (taken, refused) = fill(&root.join("f0"), 20 * MIB);
            assert_eq!(refused, Some(io::ErrorKind::QuotaExceeded), "after {taken}");
            world.store.unmount("a").unwrap();
        } else {
            let said = error_chain(&mounted.unwrap_err());
            assert!(said.contains("cannot make a loop device of"), "{said}");
        }
        assert!(world.store.handles().is_empty());
    }
}

fn error_chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |said, cause| format!("{said}: {cause}"))
}
