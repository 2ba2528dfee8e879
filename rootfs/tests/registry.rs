//! Pulling from registries that are in all kinds of moods.

mod common;

use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use common::{BuiltImage, FakeRegistry, Login, Mood, Tar, USER, image};
use rootfs::registry::{Policy, Retry};
use rootfs::{Config, Credentials, Error, ImageRef, Progress, Store};
use serde_json::json;

fn skipped(test: &str) -> bool {
    if !common::is_root() {
        println!("SKIPPED {test}: needs root");
    }
    !common::is_root()
}

struct World {
    store: Store,
    registry: FakeRegistry,
    image: BuiltImage,
    /// Last, so that it goes when the store is closed.
    scratch: tempfile::TempDir,
}

impl World {
    async fn new(login: Login) -> World {
        let scratch = tempfile::tempdir().unwrap();
        let retry = Retry { first_wait: Duration::from_millis(10), ..Retry::default() };
        let registries = Policy { retry, stall_max: Duration::from_millis(500), ..Policy::default() };
        let config = Config { registries, ..Config::default() };
        let store = Store::open(&scratch.path().join("store"), config).unwrap();
        let registry = FakeRegistry::start(login).await;
        // Noise, so that compression leaves something to interrupt.
        let noise = |seed: u64| -> String {
            let mut state = seed;
            (0..200_000)
                .map(|_| {
                    state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    char::from(b'a' + (state >> 59) as u8)
                })
                .collect()
        };
        let layers =
            [Tar::default().file("a", &noise(1)).bytes(), Tar::default().file("b", &noise(2)).bytes()];
        let image = image(&layers, json!({"Cmd": ["/a"]}));
        registry.add("v1", &image);
        World { scratch, store, registry, image }
    }

    fn uri(&self, rest: &str) -> ImageRef {
        format!("docker://{}/app{rest}", self.registry.address).parse().unwrap()
    }

    async fn pull(&self) -> Result<rootfs::Image, Error> {
        self.store.pull(&self.uri(":v1"), None, &|_| {}).await
    }

    async fn error(&self) -> String {
        let error = self.pull().await.unwrap_err().to_string();
        self.assert_unchanged();
        error.replace(&self.registry.address.to_string(), "HOST")
    }

    /// Nothing of a failed pull is left.
    fn assert_unchanged(&self) {
        let count = |path: &Path| std::fs::read_dir(path).map_or(0, Iterator::count);
        let store = self.scratch.path().join("store");
        assert_eq!(count(&store.join("layers")) + count(&store.join("images")), 0);
        // Unpackers clean up on their own threads.
        let tmp = store.join("tmp");
        let half_done = || {
            let entries = std::fs::read_dir(&tmp).unwrap();
            entries
                .filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().starts_with("layer-"))
                .count()
        };
        for _ in 0..1000 {
            if half_done() == 0 {
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        panic!("{} half unpacked layers are left", half_done());
    }
}

#[tokio::test]
async fn an_image_is_pulled_once_and_told_about() {
    if skipped("an_image_is_pulled_once_and_told_about") {
        return;
    }
    let world = World::new(Login::None).await;
    let told = Mutex::new(Vec::new());
    let listener = |progress| told.lock().unwrap().push(progress);
    let uri = world.uri(":v1");
    let pulls = (0..20).map(|_| world.store.pull(&uri, None, &listener));
    for pulled in futures_util::future::join_all(pulls).await {
        assert_eq!(pulled.unwrap().digest, world.image.digest);
    }
    let seen = world.registry.seen();
    assert_eq!((seen.manifests, seen.blobs), (1, 3), "one manifest, one configuration, two layers");
    let told = told.into_inner().unwrap();
    let whole = |p: &&Progress| matches!(p, Progress::Layer { done, total, .. } if done == total);
    assert!(told.iter().any(|p| matches!(p, Progress::Resolved { layers, .. } if layers.len() == 2)));
    assert!(told.iter().filter(whole).count() >= 40);
    // By digest the registry is not asked any more, not even when it is gone.
    let pinned = world.uri(&format!("@{}", world.image.digest));
    world.registry.stop().await;
    let again = world.store.pull(&pinned, None, &|_| {}).await.unwrap();
    assert_eq!(again.config.cmd, ["/a"]);
}

#[tokio::test]
async fn refusals_name_what_to_do() {
    if skipped("refusals_name_what_to_do") {
        return;
    }
    let world = World::new(Login::None).await;
    let refuse = |status, after| (0..4).map(move |_| Mood::Refuse(status, after));
    let unknown = world.store.pull(&world.uri(":nope"), None, &|_| {}).await.unwrap_err().to_string();
    assert_eq!(unknown, format!("image {}/app:nope not found in its registry", world.registry.address));
    for (moods, expected) in [
        (refuse(500, None), "registry HOST fails (500) when asked for image HOST/app:v1: try again later"),
        (
            refuse(429, Some("100")),
            "registry HOST refuses image HOST/app:v1 for now, too many requests (429): try again in 100 s, or give credentials",
        ),
        (
            refuse(403, None),
            "registry HOST does not let anonymous users read image HOST/app:v1 (403): give a username and a password, or check the image's name",
        ),
        (refuse(418, None), "registry HOST answers 418 when asked for image HOST/app:v1"),
    ] {
        world.registry.next_manifests(moods);
        let error = world.error().await;
        assert_eq!(error, expected);
        while world.registry.take_manifest_mood().is_some() {}
    }
    for (mood, expected) in [
        (Mood::Lie, " where sha256:"),
        (Mood::Stall(10), "stopped in the middle of image HOST/app:v1: no answer in time"),
    ] {
        world.registry.next_manifests([mood]);
        let error = world.error().await;
        assert!(error.contains(expected), "{error}");
    }
}

#[tokio::test]
async fn a_registry_that_is_down_is_said_to_be() {
    if skipped("a_registry_that_is_down_is_said_to_be") {
        return;
    }
    let World { scratch, store, registry, .. } = World::new(Login::None).await;
    let uri: ImageRef = format!("docker://{}/app", registry.address).parse().unwrap();
    let host = registry.address;
    registry.stop().await;
    let error = store.pull(&uri, None, &|_| {}).await.unwrap_err().to_string();
    let expected = format!(
        "registry {host} cannot be reached for image {host}/app:latest: connection refused, nothing listens there"
    );
    assert_eq!(error, expected);
    drop(scratch);
}

#[tokio::test]
async fn passing_trouble_is_waited_out() {
    if skipped("passing_trouble_is_waited_out") {
        return;
    }
    let world = World::new(Login::None).await;
    world.registry.next_manifests([
        Mood::Refuse(503, None),
        Mood::Refuse(429, Some("0")),
        Mood::Refuse(500, None),
    ]);
    // The first blob is the configuration; the two layers are cut, refused, stalled, and cut again.
    let blobs =
        [Mood::Good, Mood::Break(1000), Mood::Refuse(503, None), Mood::Stall(5000), Mood::Break(2000)];
    world.registry.next_blobs(blobs);
    world.pull().await.unwrap();
}

#[tokio::test]
async fn an_interrupted_layer_goes_on_where_it_stopped() {
    if skipped("an_interrupted_layer_goes_on_where_it_stopped") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let world = World::new(Login::None).await;
    let (digest, blob) = &world.image.blobs[0];
    let reference = match world.uri(":v1") {
        ImageRef::Registry(reference) => reference,
        _ => unreachable!(),
    };
    let retry = Retry { first_wait: Duration::from_millis(10), ..Retry::default() };
    let policy = Policy { retry, stall_max: Duration::from_millis(300), ..Policy::default() };
    let client = rootfs::registry::Client::new(policy).unwrap();
    let access = client.access(&reference, None);
    let fetch = async || {
        let (sender, mut pieces) = tokio::sync::mpsc::channel(1000);
        let fetched = access.blob(digest, blob.len() as u64, &sender).await;
        drop(sender);
        let mut whole = Vec::new();
        while let Some(piece) = pieces.recv().await {
            whole.extend_from_slice(&piece);
        }
        fetched.map(|()| whole)
    };
    world.registry.next_blobs([Mood::Break(1000), Mood::Refuse(503, None)]);
    assert!(fetch().await.unwrap() == *blob);
    assert_eq!(world.registry.seen().ranges, ["bytes=1000-", "bytes=1000-"]);
    world.registry.next_blobs([Mood::Stall(50_000)]);
    assert!(fetch().await.unwrap() == *blob);
    assert_eq!(world.registry.seen().ranges, ["bytes=50000-"]);
    // A registry that knows no ranges sends all of it again.
    world.registry.next_blobs([Mood::Break(1000), Mood::Break(2000)]);
    assert!(fetch().await.unwrap() == *blob);
    assert_eq!(world.registry.seen().ranges, ["bytes=1000-", "bytes=2000-"]);
    // One that brings nothing is given up.
    world.registry.next_blobs((0..8).map(|_| Mood::Break(0)));
    let error = fetch().await.unwrap_err().to_string();
    assert!(error.contains("stopped in the middle of image"), "{error}");
    drop(scratch);
}

#[tokio::test]
async fn a_wrong_layer_is_never_seen() {
    if skipped("a_wrong_layer_is_never_seen") {
        return;
    }
    let world = World::new(Login::None).await;
    world.registry.next_blobs([Mood::Good, Mood::Lie, Mood::Lie]);
    assert!(world.error().await.contains("cannot be used: its digest is sha256:"));
    let mut broken = image(&[Tar::default().file("a", "x").bytes()], json!({}));
    let wrong = broken.blobs[0].1.len() / 2;
    broken.blobs[0].1[wrong] ^= 0xff;
    world.registry.add("v1", &broken);
    let error = world.error().await;
    assert!(error.contains("cannot be used: its digest is sha256:"), "{error}");
    let mut longer = image(&[Tar::default().file("a", "x").bytes()], json!({}));
    longer.blobs[0].1.push(0);
    world.registry.add("v1", &longer);
    let error = world.error().await;
    assert!(error.contains("bytes for layer sha256:") && error.contains("whose manifest says"), "{error}");
    let escaping = image(&[Tar::default().file("../evil", "x").bytes()], json!({}));
    world.registry.add("v1", &escaping);
    let error = world.error().await;
    assert!(error.contains("its entry '../evil' would be written outside of its root"), "{error}");
    world.registry.add_manifest("v1", "application/json", br#"{"schemaVersion": 1, "fsLayers": []}"#);
    assert!(world.error().await.contains("the old schema 1"), "{}", world.error().await);
    world.registry.add_manifest("v1", "application/json", &vec![b' '; 5 * 1024 * 1024]);
    assert!(world.error().await.contains("sends more than 4194304 bytes for the manifest"));
}

#[tokio::test]
async fn credentials_open_what_they_should_and_are_asked_for_by_name() {
    if skipped("credentials_open_what_they_should_and_are_asked_for_by_name") {
        return;
    }
    for login in [Login::Basic, Login::Token] {
        let world = World::new(login).await;
        let error = world.error().await;
        assert!(error.contains("does not let anonymous users read image HOST/app:v1 (401)"), "{error}");
        let wrong = Credentials::given(USER.0, "wrong");
        let refused = world.store.pull(&world.uri(":v1"), wrong, &|_| {}).await.unwrap_err().to_string();
        assert!(refused.contains("does not accept the credentials given"), "{refused}");
        assert!(!refused.contains("wrong"), "a password is in an error");
        let right = Credentials::given(USER.0, USER.1);
        world.store.pull(&world.uri(":v1"), right, &|_| {}).await.unwrap();
    }
}

#[tokio::test]
async fn the_image_for_this_platform_is_taken_from_an_index() {
    if skipped("the_image_for_this_platform_is_taken_from_an_index") {
        return;
    }
    let world = World::new(Login::None).await;
    let entry = |architecture: &str, digest: String| {
        json!({"mediaType": common::OCI_MANIFEST, "digest": digest, "size": 1,
            "platform": {"os": "linux", "architecture": architecture}})
    };
    let ours = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let absent = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855".to_string();
    let entries = [entry("s390x", absent.clone()), entry(ours, world.image.digest.to_string())];
    let index = json!({"schemaVersion": 2, "manifests": entries}).to_string();
    world.registry.add_manifest("multi", "application/vnd.oci.image.index.v1+json", index.as_bytes());
    let pulled = world.store.pull(&world.uri(":multi"), None, &|_| {}).await.unwrap();
    assert_eq!(pulled.digest, world.image.digest);
    let index = json!({"schemaVersion": 2, "manifests": [entry("s390x", absent)]}).to_string();
    world.registry.add_manifest("other", "application/vnd.oci.image.index.v1+json", index.as_bytes());
    let error = world.store.pull(&world.uri(":other"), None, &|_| {}).await.unwrap_err().to_string();
    assert!(
        error.contains("it is not there for linux/") && error.contains("only for linux/s390x"),
        "{error}"
    );
}

#[tokio::test]
async fn a_pull_that_nobody_waits_for_any_more_leaves_nothing() {
    if skipped("a_pull_that_nobody_waits_for_any_more_leaves_nothing") {
        return;
    }
    let world = World::new(Login::None).await;
    world.registry.next_blobs([Mood::Good, Mood::Stall(1000), Mood::Stall(1000)]);
    let given_up = tokio::time::timeout(Duration::from_millis(200), world.pull()).await;
    assert!(given_up.is_err());
    world.assert_unchanged();
}

/// Little is promised to roots, so that no disk is ever so full that layers are collected.
fn modest() -> Config {
    let mut config = Config::default();
    config.quota.image_bytes = Some(512 << 20);
    config
}

const CHILD: &str = "ROOTFS_TEST_PULLS_INTO";

/// Not a test by itself: what the next one starts as a process and kills.
#[tokio::test]
async fn pulls_until_killed() {
    let Ok(argument) = std::env::var(CHILD) else { return };
    let (directory, uri) = argument.split_once(' ').unwrap();
    let store = Store::open(Path::new(directory), modest()).unwrap();
    store.pull(&uri.parse().unwrap(), None, &|_| {}).await.unwrap();
}

#[tokio::test]
async fn killed_at_any_moment_the_next_start_is_clean() {
    if skipped("killed_at_any_moment_the_next_start_is_clean") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let registry = FakeRegistry::start(Login::None).await;
    let layers: Vec<Vec<u8>> = (0..4)
        .map(|layer| {
            let file = |n: usize| (format!("l{layer}-{n}"), format!("{layer} {n} ").repeat(1000));
            (0..200).map(file).fold(Tar::default(), |tar, (name, text)| tar.file(&name, &text)).bytes()
        })
        .collect();
    let image = image(&layers, json!({}));
    registry.add("v1", &image);
    let directory = scratch.path().join("store");
    let uri = format!("docker://{}/app:v1", registry.address);
    // Later each time, until one comes through: so the kills are spread over all of a pull, however fast this is.
    let mut wait = Duration::from_millis(20);
    for round in 1.. {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "pulls_until_killed"])
            .env(CHILD, format!("{} {uri}", directory.display()))
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        tokio::time::sleep(wait).await;
        wait = wait.mul_f64(1.25);
        child.kill().unwrap();
        let came_through = child.wait().unwrap().success();
        let store = Store::open(&directory, modest()).unwrap();
        let mut complete = 0;
        for entry in std::fs::read_dir(directory.join("layers")).unwrap() {
            let root = entry.unwrap().path().join("root");
            let files: Vec<_> = std::fs::read_dir(root).unwrap().collect();
            assert_eq!(files.len(), 200, "half a layer is visible");
            complete += 1;
        }
        let left = std::fs::read_dir(directory.join("tmp")).unwrap();
        let left = left.filter(|e| e.as_ref().unwrap().file_name() != "probe").count();
        assert_eq!(left, 0);
        drop(store);
        println!("killed after {wait:?}: {complete} of 4 layers are there");
        if came_through {
            assert!(round > 1 && complete == 4);
            break;
        }
    }
    let store = Store::open(&directory, modest()).unwrap();
    store.pull(&uri.parse().unwrap(), None, &|_| {}).await.unwrap();
    assert_eq!(store.store_usage().unwrap().layers, 4);
}
