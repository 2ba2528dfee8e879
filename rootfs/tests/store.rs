//! Images from layout directories and preloaded roots, pulled into a store and mounted. Needs root.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command;

use common::{BuiltImage, Entry, Mounted, Namespace, Tar, image};
use rootfs::gc::Collect;
use rootfs::{BaseIds, Config, DiskLimit, DiskScope, Error, ImageRef, Store};
use serde_json::json;

const NO_LIMIT: DiskLimit = DiskLimit { bytes: 0, inodes: 0, scope: DiskScope::Total };

/// A place for one test, or the reason why it is skipped.
fn scratch(test: &str) -> Option<(tempfile::TempDir, Store)> {
    if !common::is_root() {
        println!("SKIPPED {test}: needs root");
        return None;
    }
    let scratch = tempfile::tempdir().unwrap();
    let store = Store::open(&scratch.path().join("store"), Config::default()).unwrap();
    if let Some(reason) = store.unmountable() {
        println!("SKIPPED {test}: {reason}");
        return None;
    }
    Some((scratch, store))
}

async fn pull(store: &Store, built: &BuiltImage, path: &Path) -> rootfs::Image {
    built.write_layout(path, "v1");
    let uri: ImageRef = format!("oci://{}:v1", path.display()).parse().unwrap();
    store.pull(&uri, None, &|_| {}).await.unwrap()
}

fn two_layers() -> BuiltImage {
    let lower = Tar::default()
        .directory("etc/", 0o755)
        .file("etc/kept", "kept")
        .file("etc/gone", "gone")
        .directory("old/", 0o755)
        .file("old/hidden", "hidden")
        .directory("tmp/", 0o1777)
        .add(Entry { mode: 0o4755, ..Entry::file("etc/setuid", b"s") })
        .add(Entry { uid: 1000, ..Entry::file("etc/theirs", b"t") })
        .bytes();
    let upper = Tar::default()
        .file("etc/.wh.gone", "")
        .file("etc/new", "new")
        .file("old/.wh..wh..opq", "")
        .file("old/shown", "shown")
        .file("tmp/implied", "i")
        .bytes();
    image(&[lower, upper], json!({"Env": ["A=b"], "Cmd": ["/bin/x"], "ExposedPorts": {"8080/tcp": {}}}))
}

#[tokio::test]
async fn a_root_is_its_layers_seen_with_the_containers_ids() {
    let Some((scratch, store)) = scratch("a_root_is_its_layers_seen_with_the_containers_ids") else { return };
    let pulled = pull(&store, &two_layers(), &scratch.path().join("layout")).await;
    assert_eq!(pulled.config.cmd, ["/bin/x"]);
    assert_eq!(pulled.config.ports, [8080]);
    let base = 700_000;
    let namespace = Namespace::new(base);
    let ids = BaseIds { uid: base, gid: base };
    let mount = store.mount("a", &pulled, Some(namespace.user.as_fd()), ids, NO_LIMIT).unwrap();
    let root = scratch.path().join("root");
    let mounted = Mounted::on(&root, &mount);
    let read = |name: &str| fs::read_to_string(root.join(name)).unwrap();
    assert_eq!(
        (read("etc/kept"), read("etc/new"), read("old/shown")),
        ("kept".into(), "new".into(), "shown".into())
    );
    assert!(!root.join("etc/gone").exists() && !root.join("old/hidden").exists());
    let stat = |name: &str| fs::metadata(root.join(name)).unwrap();
    assert_eq!((stat("etc/setuid").mode() & 0o7777, stat("etc/setuid").uid()), (0o4755, base));
    assert_eq!(stat("etc/theirs").uid(), base + 1000);
    assert_eq!((stat("tmp").mode() & 0o7777, stat("tmp").uid()), (0o1777, base), "an implied directory");
    assert_eq!((stat("").uid(), stat("").mode() & 0o7777), (base, 0o755));
    assert_eq!(stat("etc/kept").mtime(), 1_000_000_000);
    drop(mounted);
}

/// Runs in the namespace, as its root, with the mount on `root` there.
fn run_inside(namespace: &Namespace, script: &str) -> String {
    let output = Command::new("nsenter")
        .args([
            "--target",
            &namespace.pid().to_string(),
            "--user",
            "--mount",
            "--setuid",
            "0",
            "--setgid",
            "0",
        ])
        .args(["/bin/sh", "-c", script])
        .output()
        .unwrap();
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[tokio::test]
async fn inside_the_namespace_root_owns_the_files_and_what_it_writes_lands_in_upper() {
    let name = "inside_the_namespace_root_owns_the_files_and_what_it_writes_lands_in_upper";
    let Some((scratch, store)) = scratch(name) else { return };
    let pulled = pull(&store, &two_layers(), &scratch.path().join("layout")).await;
    let base = 800_000;
    let root = scratch.path().join("root");
    fs::create_dir(&root).unwrap();
    fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o755)).unwrap();
    // Mounted before the namespace copies our mounts, as container processes see what their init put there.
    let mapper = Namespace::new(base);
    let ids = BaseIds { uid: base, gid: base };
    let mount = store.mount("a", &pulled, Some(mapper.user.as_fd()), ids, NO_LIMIT).unwrap();
    let mounted = Mounted::on(&root, &mount);
    let namespace = Namespace::new(base);
    let root_text = root.display();
    let script = format!(
        "stat -c '%n %u' {root_text}/etc/kept {root_text}/etc/theirs; echo more >> {root_text}/etc/kept; \
         rm {root_text}/etc/new; mkdir {root_text}/made; chown 5:5 {root_text}/made; stat -c %u {root_text}/made"
    );
    let shown = run_inside(&namespace, &script);
    assert_eq!(shown, format!("{root_text}/etc/kept 0\n{root_text}/etc/theirs 1000\n5\n"));
    let upper = |name: &str| fs::symlink_metadata(mount.upper.join(name)).unwrap();
    assert_eq!(upper("etc/kept").uid(), base);
    assert_eq!(upper("made").uid(), base + 5);
    assert_eq!(fs::read_to_string(mount.upper.join("etc/kept")).unwrap(), "keptmore\n");
    let usage = store.usage("a").unwrap();
    assert!(usage.exclusive_bytes > 0 && usage.total_bytes > usage.exclusive_bytes, "{usage:?}");
    drop((namespace, mapper));
    drop(mounted);
    drop(mount);
    store.unmount("a").unwrap();
    store.unmount("a").unwrap();
    store.settle();
    assert_eq!(fs::read_dir(scratch.path().join("store/roots")).unwrap().count(), 0);
    assert_eq!(
        fs::read_dir(scratch.path().join("store/tmp")).unwrap().count(),
        1,
        "only the probe's directory"
    );
}

#[tokio::test]
async fn a_hundred_layers_are_one_root() {
    let Some((scratch, store)) = scratch("a_hundred_layers_are_one_root") else { return };
    let layers: Vec<Vec<u8>> = (0..100)
        .map(|n| Tar::default().file(&format!("f{n}"), "x").file("last", &n.to_string()).bytes())
        .collect();
    let pulled = pull(&store, &image(&layers, json!({})), &scratch.path().join("layout")).await;
    let mount = store.mount("a", &pulled, None, BaseIds::default(), NO_LIMIT).unwrap();
    let root = scratch.path().join("root");
    let _mounted = Mounted::on(&root, &mount);
    assert_eq!(fs::read_to_string(root.join("last")).unwrap(), "99");
    assert!((0..100).all(|n| root.join(format!("f{n}")).exists()));
}

#[tokio::test]
async fn a_layer_listed_twice_and_an_image_without_layers_can_be_mounted() {
    let name = "a_layer_listed_twice_and_an_image_without_layers_can_be_mounted";
    let Some((scratch, store)) = scratch(name) else { return };
    let (a, b) = (Tar::default().file("f", "a").bytes(), Tar::default().file("f", "b").bytes());
    let twice = image(&[a.clone(), b, a], json!({}));
    let pulled = pull(&store, &twice, &scratch.path().join("twice")).await;
    let mount = store.mount("a", &pulled, None, BaseIds::default(), NO_LIMIT).unwrap();
    let root = scratch.path().join("root");
    let mounted = Mounted::on(&root, &mount);
    assert_eq!(fs::read_to_string(root.join("f")).unwrap(), "a");
    drop(mounted);
    let pulled = pull(&store, &image(&[], json!({})), &scratch.path().join("none")).await;
    let mount = store.mount("b", &pulled, None, BaseIds::default(), NO_LIMIT).unwrap();
    let mounted = Mounted::on(&root, &mount);
    assert_eq!(fs::read_dir(&root).unwrap().count(), 0);
    drop(mounted);
}

#[tokio::test]
async fn preloaded_directories_and_tars_are_roots() {
    let Some((scratch, _)) = scratch("preloaded_directories_and_tars_are_roots") else { return };
    let directory = scratch.path().join("stack");
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("name"), "directory").unwrap();
    let tar = scratch.path().join("stack.tar.gz");
    fs::write(&tar, common::gzip(&Tar::default().file("name", "tar").bytes())).unwrap();
    let preloaded = BTreeMap::from([("directory".into(), directory), ("tar".into(), tar)]);
    let store =
        Store::open(&scratch.path().join("other"), Config { preloaded, ..Config::default() }).unwrap();
    let root = scratch.path().join("root");
    for name in ["directory", "tar", "tar"] {
        let uri: ImageRef = format!("preloaded:{name}").parse().unwrap();
        let pulled = store.pull(&uri, None, &|_| {}).await.unwrap();
        let mount = store.mount(name, &pulled, None, BaseIds::default(), NO_LIMIT).unwrap();
        let mounted = Mounted::on(&root, &mount);
        assert_eq!(fs::read_to_string(root.join("name")).unwrap(), name);
        fs::write(root.join("name"), "changed").unwrap();
        drop(mounted);
        store.unmount(name).unwrap();
    }
    let error = store.pull(&"preloaded:none".parse().unwrap(), None, &|_| {}).await.unwrap_err();
    assert_eq!(error.to_string(), "there is no preloaded root filesystem 'none', only: directory, tar");
    assert_eq!(store.store_usage().unwrap().layers, 1);
}

#[tokio::test]
async fn a_restart_knows_the_roots_and_removes_the_dead_ones() {
    let Some((scratch, store)) = scratch("a_restart_knows_the_roots_and_removes_the_dead_ones") else {
        return;
    };
    let pulled = pull(&store, &two_layers(), &scratch.path().join("layout")).await;
    for handle in ["live", "dead"] {
        store.mount(handle, &pulled, None, BaseIds::default(), NO_LIMIT).unwrap();
    }
    let error = store.mount("live", &pulled, None, BaseIds::default(), NO_LIMIT).unwrap_err();
    assert_eq!(error.to_string(), "a root for 'live' exists already");
    let directory = scratch.path().join("store");
    let in_use = Store::open(&directory, Config::default()).err().unwrap();
    assert!(matches!(in_use, Error::InUse { .. }), "{in_use}");
    drop((store, pulled));
    fs::create_dir(directory.join("roots/killed-while-made")).unwrap();
    let store = Store::open(&directory, Config::default()).unwrap();
    assert_eq!(store.handles(), ["dead", "live"]);
    assert_eq!(store.recover(&BTreeSet::from(["live".to_string()])).unwrap(), ["dead"]);
    assert_eq!(store.handles(), ["live"]);
    // Its layers are needed, so the collector leaves them; once it is gone they may go.
    let all = Collect { bytes: u64::MAX, unused_for: std::time::Duration::ZERO };
    assert_eq!(store.collect(all).unwrap().layers, 0);
    store.unmount("live").unwrap();
    assert_eq!(store.store_usage().unwrap().unused_bytes, store.store_usage().unwrap().layer_bytes);
    assert_eq!(store.collect(all).unwrap().layers, 2);
    assert_eq!(fs::read_dir(directory.join("images")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_root_whose_record_cannot_be_read_is_not_taken_for_half_made() {
    let Some((scratch, store)) = scratch("a_root_whose_record_cannot_be_read_is_not_taken_for_half_made")
    else {
        return;
    };
    let directory = scratch.path().join("store");
    drop(store);
    let config = || {
        let mut config = Config::default();
        config.quota.backend = rootfs::quota::Backend::Plain;
        config
    };
    let root = directory.join("roots/root");
    let (upper, record) = (root.join("upper"), root.join("root.json"));
    fs::create_dir_all(&upper).unwrap();
    fs::create_dir(&record).unwrap();
    let refused = Store::open(&directory, config()).err().unwrap().to_string();
    assert!(refused.starts_with(&format!("cannot read {}: ", record.display())), "{refused}");
    fs::remove_dir(&record).unwrap();
    fs::write(&record, "{\"handle\": 5}").unwrap();
    let refused = Store::open(&directory, config()).err().unwrap().to_string();
    assert!(refused.starts_with(&format!("cannot read {}: ", record.display())), "{refused}");
    assert!(upper.exists());
    // Half made, and what a power cut leaves.
    fs::remove_dir(&upper).unwrap();
    drop(Store::open(&directory, config()).unwrap());
    assert!(!root.exists());
    fs::create_dir_all(&upper).unwrap();
    fs::write(&record, "").unwrap();
    drop(Store::open(&directory, config()).unwrap());
    assert!(!root.exists());
}

#[tokio::test]
async fn an_image_larger_than_its_limit_is_refused_with_the_figures() {
    let name = "an_image_larger_than_its_limit_is_refused_with_the_figures";
    let Some((scratch, store)) = scratch(name) else { return };
    let built = image(&[Tar::default().file("f", &"x".repeat(5000)).bytes()], json!({}));
    let pulled = pull(&store, &built, &scratch.path().join("layout")).await;
    let limit = |scope| DiskLimit { bytes: 4000, inodes: 0, scope };
    let error = store.mount("a", &pulled, None, BaseIds::default(), limit(DiskScope::Total)).unwrap_err();
    assert!(
        error
            .to_string()
            .contains(" takes 5000 bytes, more than the disk limit of 4000 bytes, and would need"),
        "{error}"
    );
    assert!(store.handles().is_empty());
    store.mount("a", &pulled, None, BaseIds::default(), limit(DiskScope::Exclusive)).unwrap();
    for handle in ["", "..", "a/b", ".x", "a\0"] {
        let error = store.mount(handle, &pulled, None, BaseIds::default(), NO_LIMIT).unwrap_err();
        assert!(matches!(error, Error::InvalidHandle { .. }), "{error}");
    }
}

#[tokio::test]
async fn a_droplet_is_a_layer_on_its_stack() {
    let Some((scratch, _)) = scratch("a_droplet_is_a_layer_on_its_stack") else { return };
    let stack = scratch.path().join("stack.tar");
    let theirs = Entry { uid: 2000, ..Entry::directory("home/vcap/", 0o750) };
    fs::write(&stack, Tar::default().directory("home/", 0o755).add(theirs).file("bin", "stack").bytes())
        .unwrap();
    let droplet = common::gzip(&Tar::default().directory("app/", 0o755).file("app/run", "droplet").bytes());
    let digest = rootfs::digest::Digest::of(&droplet);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = axum::Router::new().route("/droplet", axum::routing::get(move || async move { droplet }));
    let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    let preloaded = BTreeMap::from([("stack".to_string(), stack)]);
    let store =
        Store::open(&scratch.path().join("other"), Config { preloaded, ..Config::default() }).unwrap();
    let uri = |path: &str, digest: &str| -> ImageRef {
        format!(
            "preloaded+layer:stack?layer=http://{address}/{path}&layer_path=/home/vcap&layer_digest={digest}"
        )
        .parse()
        .unwrap()
    };
    let wrong = store.pull(&uri("droplet", &"0".repeat(64)), None, &|_| {}).await.unwrap_err().to_string();
    assert!(wrong.contains("cannot be used: its digest is"), "{wrong}");
    let absent = store.pull(&uri("nope", digest.hex()), None, &|_| {}).await.unwrap_err().to_string();
    assert_eq!(absent, format!("layer http://{address}/nope cannot be fetched: the server answers 404"));
    let pulled = store.pull(&uri("droplet", digest.hex()), None, &|_| {}).await.unwrap();
    server.abort();
    store.pull(&uri("droplet", digest.hex()), None, &|_| {}).await.unwrap();
    let mount = store.mount("a", &pulled, None, BaseIds::default(), NO_LIMIT).unwrap();
    let root = scratch.path().join("root");
    let _mounted = Mounted::on(&root, &mount);
    assert_eq!(fs::read_to_string(root.join("home/vcap/app/run")).unwrap(), "droplet");
    assert_eq!(fs::read_to_string(root.join("bin")).unwrap(), "stack");
    let home = fs::metadata(root.join("home/vcap")).unwrap();
    assert_eq!((home.uid(), home.mode() & 0o7777), (2000, 0o750), "the stack's own directory");
}

/// Not a bound: a figure to look at, on whatever machine this is.
#[tokio::test]
async fn a_warm_mount_takes_about_a_millisecond() {
    let Some((scratch, store)) = scratch("a_warm_mount_takes_about_a_millisecond") else { return };
    let pulled = pull(&store, &two_layers(), &scratch.path().join("layout")).await;
    let namespace = Namespace::new(700_000);
    let ids = BaseIds { uid: 700_000, gid: 700_000 };
    let mut times: Vec<(u128, u128)> = (0..200)
        .map(|n| {
            let handle = format!("h{n}");
            let began = std::time::Instant::now();
            let mount = store.mount(&handle, &pulled, Some(namespace.user.as_fd()), ids, NO_LIMIT).unwrap();
            let mounted = began.elapsed().as_micros();
            drop(mount);
            store.unmount(&handle).unwrap();
            (mounted, began.elapsed().as_micros())
        })
        .collect();
    times.sort();
    println!("mount: median {} us; 199th of 200 {} us", times[100].0, times[198].0);
    store.settle();
    assert!(times[100].0 < 50_000, "{:?}", times[100]);
}

#[tokio::test]
async fn a_preloaded_directory_counts_for_a_limit_that_counts_the_image() {
    let name = "a_preloaded_directory_counts_for_a_limit_that_counts_the_image";
    let Some((scratch, store)) = scratch(name) else { return };
    let directory = scratch.path().join("stack");
    fs::create_dir_all(directory.join("bin")).unwrap();
    fs::write(directory.join("bin/a"), vec![1; 6000]).unwrap();
    fs::hard_link(directory.join("bin/a"), directory.join("bin/b")).unwrap();
    let uri: ImageRef = format!("preloaded:{}", directory.display()).parse().unwrap();
    let pulled = store.pull(&uri, None, &|_| {}).await.unwrap();
    let limit = |bytes, scope| DiskLimit { bytes, inodes: 0, scope };
    let mount = |handle: &str, limit| store.mount(handle, &pulled, None, BaseIds::default(), limit);
    let refused = mount("a", limit(5000, DiskScope::Total)).unwrap_err().to_string();
    assert!(refused.starts_with("layers exceed disk quota 6000/5000 bytes: image preloaded:"), "{refused}");
    mount("exclusive", limit(5000, DiskScope::Exclusive)).unwrap();
    mount("total", limit(1 << 20, DiskScope::Total)).unwrap();
    for handle in ["exclusive", "total"] {
        let usage = store.usage(handle).unwrap();
        assert_eq!(usage.total_bytes - usage.exclusive_bytes, 6000, "{handle}");
    }
}
