//! Limits of roots by project quotas: of the store's own filesystem, and of the ext4 that the store makes itself where its
//! own has none. XFS and ext4 with them are mounted on `/mnt/xfs` and `/mnt/ext4` of the machine that `tests/vm` boots;
//! elsewhere an ext4 in a file is tried.

mod common;
#[path = "common/writes.rs"]
mod writes;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Mounted, Namespace, Tar, image};
use garden_sys::mount::{self, Filesystem, MountAttrFlags};
use rootfs::{BaseIds, Config, DiskLimit, DiskScope, Image, Store};
use serde_json::json;
use writes::{exclusive, fill, is_free_again};

const MIB: u64 = 1 << 20;
/// Of directories that we make ourselves, and what a filesystem reserves ahead of a write.
const SLACK: u64 = 128 << 10;

/// A directory on a filesystem that has them.
struct Disk {
    name: &'static str,
    directory: tempfile::TempDir,
    mounted: Option<PathBuf>,
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Some(path) = &self.mounted {
            mount::unmount(path).unwrap();
        }
    }
}

fn disks(test: &str) -> Vec<Disk> {
    if !common::is_root() {
        println!("SKIPPED {test}: needs root");
        return Vec::new();
    }
    let in_vm = ["xfs", "ext4"].into_iter().filter(|_| std::env::var_os("IN_VM").is_some());
    let mut disks: Vec<Disk> = in_vm
        .filter_map(|name| {
            let path = Path::new("/mnt").join(name);
            path.exists().then(|| Disk {
                name,
                directory: tempfile::tempdir_in(path).unwrap(),
                mounted: None,
            })
        })
        .collect();
    if disks.is_empty() {
        match in_a_file() {
            Ok(disk) => disks.push(disk),
            Err(reason) => {
                println!("SKIPPED {test}: {reason}");
                return disks;
            }
        }
    }
    disks.push(Disk { name: OUR_OWN, directory: tempfile::tempdir().unwrap(), mounted: None });
    for disk in &disks {
        fs::set_permissions(disk.directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    }
    disks
}

/// A store on a filesystem without them.
const OUR_OWN: &str = "ext4 of our own";
const OUR_OWN_BYTES: u64 = 300 * MIB;

fn in_a_file() -> Result<Disk, String> {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("disk");
    let disk = File::options().read(true).write(true).create_new(true).open(&file).unwrap();
    disk.set_len(300 * MIB).unwrap();
    let made = Command::new("mkfs.ext4").args(["-q", "-O", "project,quota"]).arg(&file).status();
    if !made.as_ref().is_ok_and(|status| status.success()) {
        return Err(format!("mkfs.ext4: {made:?}"));
    }
    let device = garden_sys::loop_device::attach(&disk, false).map_err(|error| error.to_string())?;
    let ext4 = Filesystem::open("ext4").map_err(|error| error.to_string())?;
    ext4.set_path("source", &device.path).unwrap();
    ext4.set_flag("prjquota").and_then(|()| ext4.create()).map_err(|error| error.to_string())?;
    let mounted = ext4.mount(MountAttrFlags::empty()).unwrap();
    let path = directory.path().join("mounted");
    fs::create_dir(&path).unwrap();
    mount::move_mount(mounted.as_fd(), &path).unwrap();
    Ok(Disk { name: "ext4", directory, mounted: Some(path) })
}

impl Disk {
    fn store(&self) -> Store {
        let mut config = Config::default();
        config.quota.image_bytes = Some(if self.is_our_own() { OUR_OWN_BYTES } else { 100 * MIB });
        let store = Store::open(&self.path("store"), config).unwrap();
        assert!(store.enforces_limits(), "{}", self.name);
        let own = fs::read_dir(self.path("store"))
            .unwrap()
            .any(|entry| entry.unwrap().path().extension().is_some_and(|extension| extension == "ext4"));
        assert_eq!(own, self.is_our_own(), "{}", self.name);
        assert!(!fs::read_dir(self.path("store")).unwrap().any(|entry| {
            entry.unwrap().path().extension().is_some_and(|extension| extension == "btrfs")
        }));
        store
    }

    fn is_our_own(&self) -> bool {
        self.name == OUR_OWN
    }

    fn path(&self, name: &str) -> PathBuf {
        self.mounted.as_deref().unwrap_or(self.directory.path()).join(name)
    }

    async fn image(&self, store: &Store) -> Image {
        let tar = Tar::default().file("lower", &"x".repeat(3 << 20)).file("b", "").file("c", "");
        image(&[tar.bytes()], json!({})).write_layout(&self.path("layout"), "v1");
        let uri = format!("oci://{}:v1", self.path("layout").display());
        store.pull(&uri.parse().unwrap(), None, &|_| {}).await.unwrap()
    }
}

fn limit(bytes: u64, inodes: u64, scope: DiskScope) -> DiskLimit {
    DiskLimit { bytes, inodes, scope }
}

/// XFS says the disk is full.
fn is_refused(kind: io::ErrorKind) -> bool {
    matches!(kind, io::ErrorKind::QuotaExceeded | io::ErrorKind::StorageFull)
}

#[tokio::test]
async fn a_write_beyond_the_limit_is_refused_and_nobody_else_notices() {
    for disk in disks("a_write_beyond_the_limit_is_refused_and_nobody_else_notices") {
        let store = disk.store();
        let image = disk.image(&store).await;
        let (root, other) = (disk.path("root"), disk.path("other"));
        let mount = store.mount("a", &image, None, BaseIds::default(), exclusive(10 * MIB)).unwrap();
        let other_mount = store.mount("b", &image, None, BaseIds::default(), exclusive(40 * MIB)).unwrap();
        let (_root, _other) = (Mounted::on(&root, &mount), Mounted::on(&other, &other_mount));
        let (taken, refused) = fill(&root.join("big"), 20 * MIB);
        assert!(refused.is_some_and(is_refused), "{}: {refused:?} after {taken}", disk.name);
        assert!(taken <= 10 * MIB && taken > 10 * MIB - SLACK, "{}: {taken}", disk.name);
        let used = store.usage("a").unwrap();
        assert!(used.exclusive_bytes >= taken && used.exclusive_bytes <= 10 * MIB, "{}: {used:?}", disk.name);
        assert_eq!(used.total_bytes, used.exclusive_bytes + 3 * MIB);
        assert_eq!(fill(&other.join("big"), 30 * MIB), (30 * MIB, None));
        fs::remove_file(root.join("big")).unwrap();
        is_free_again(|| fill(&root.join("again"), 8 * MIB) == (8 * MIB, None));
        // A file of the image counts once it is changed.
        let copied = File::options()
            .append(true)
            .open(root.join("lower"))
            .and_then(|mut file| file.write_all(b"more"));
        assert!(is_refused(copied.unwrap_err().kind()), "{}", disk.name);
        let beside = store.files("b").unwrap();
        assert_eq!(store.files("b").unwrap(), beside);
        assert!(beside.starts_with(disk.path("store")) || disk.is_our_own());
    }
}

#[tokio::test]
async fn root_of_a_container_is_held_to_bytes_and_inodes_as_anybody() {
    for disk in disks("root_of_a_container_is_held_to_bytes_and_inodes_as_anybody") {
        let store = disk.store();
        let image = disk.image(&store).await;
        let base = 900_000;
        let mapper = Namespace::new(base);
        let ids = BaseIds { uid: base, gid: base };
        let limits = limit(13 * MIB, 103, DiskScope::Total);
        let mount = store.mount("a", &image, Some(mapper.user.as_fd()), ids, limits).unwrap();
        let root = disk.path("root");
        let _root = Mounted::on(&root, &mount);
        let namespace = Namespace::new(base);
        // A file that is removed may count for a moment longer.
        let script = format!(
            "cd {}; dd if=/dev/zero of=big bs=1024k count=20; stat -c %s big; rm big; n=0; \
             while [ $n -lt 300 ] && {{ touch f$n || {{ sleep 1; touch f$n; }}; }}; do n=$((n+1)); done; echo $n",
            root.display()
        );
        let target = namespace.pid().to_string();
        let enter = ["--target", &target, "--user", "--mount", "--setuid", "0", "--setgid", "0"];
        let output = Command::new("nsenter").args(enter).args(["/bin/sh", "-c", &script]).output().unwrap();
        let (said, counted) =
            (String::from_utf8_lossy(&output.stderr), String::from_utf8_lossy(&output.stdout));
        assert!(said.contains("uota exceeded") || said.contains("No space left"), "{}: {said}", disk.name);
        let counted: Vec<u64> = counted.split_whitespace().map(|number| number.parse().unwrap()).collect();
        assert!(counted[0] <= 10 * MIB && counted[0] > 10 * MIB - SLACK, "{}: {counted:?} {said}", disk.name);
        assert_eq!(counted[1], 100, "{}: the image's three files count", disk.name);
        let used = store.usage("a").unwrap();
        assert_eq!(used.total_inodes, used.exclusive_inodes + 3);
    }
}

#[tokio::test]
async fn an_image_with_more_than_its_limit_is_refused_by_name() {
    for disk in disks("an_image_with_more_than_its_limit_is_refused_by_name") {
        let store = disk.store();
        let image = disk.image(&store).await;
        let refused =
            |limits| store.mount("a", &image, None, BaseIds::default(), limits).unwrap_err().to_string();
        let bytes = refused(limit(MIB, 0, DiskScope::Total));
        assert!(bytes.starts_with("layers exceed disk quota 3145728/1048576 bytes: image oci://"), "{bytes}");
        let inodes = refused(limit(0, 2, DiskScope::Total));
        assert!(inodes.starts_with("layers exceed disk quota 3/2 inodes: image oci://"), "{inodes}");
        assert!(store.handles().is_empty());
        store.mount("a", &image, None, BaseIds::default(), limit(MIB, 2, DiskScope::Exclusive)).unwrap();
    }
}

#[tokio::test]
async fn roots_are_known_to_the_next_start_and_leave_nothing() {
    for disk in disks("roots_are_known_to_the_next_start_and_leave_nothing") {
        let store = disk.store();
        let image = disk.image(&store).await;
        for handle in ["living", "dead"] {
            let mount = store.mount(handle, &image, None, BaseIds::default(), exclusive(10 * MIB)).unwrap();
            fs::write(mount.upper.join("file"), vec![1; 2 << 20]).unwrap();
        }
        let capacity = store.capacity().unwrap();
        match disk.is_our_own() {
            true => assert!(capacity > OUR_OWN_BYTES * 8 / 10 && capacity < OUR_OWN_BYTES, "{capacity}"),
            false => assert_eq!(capacity, 100 * MIB, "{}", disk.name),
        }
        let before = store.usage("living").unwrap();
        drop((image, store));
        let store = disk.store();
        assert_eq!(store.recover(&BTreeSet::from(["living".to_string()])).unwrap(), ["dead"]);
        assert_eq!(store.usage("living").unwrap().exclusive_bytes, before.exclusive_bytes, "{}", disk.name);
        assert_eq!(store.quota_groups().unwrap(), 1);
        // A new root has a project of its own, not one whose files are still being removed.
        let image = disk.image(&store).await;
        store.mount("dead", &image, None, BaseIds::default(), exclusive(10 * MIB)).unwrap();
        assert!(store.usage("dead").unwrap().exclusive_bytes < MIB, "{}", disk.name);
        store.unmount("living").unwrap();
        store.unmount("dead").unwrap();
        store.settle();
        assert_eq!(store.quota_groups().unwrap(), 0);
        assert_eq!(fs::read_dir(disk.path("store/roots")).unwrap().count(), 0);
    }
}
