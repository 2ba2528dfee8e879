//! Registries that lie, stall, trickle or lead astray: each ends in an error that says which, in bounded time and
//! memory, and leaves the store as it was.

mod common;

use std::time::{Duration, Instant};

use common::{BuiltImage, FakeRegistry, Login, Mood, Tar, image};
use rootfs::digest::Digest;
use rootfs::registry::{Policy, Retry};
use rootfs::{Config, Store};
use serde_json::{Value, json};

const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// More than any of these takes where nothing is bounded, less than a minute.
const PATIENCE: Duration = Duration::from_secs(50);

struct World {
    store: Store,
    registry: FakeRegistry,
    image: BuiltImage,
    scratch: tempfile::TempDir,
}

impl World {
    async fn new(test: &str) -> Option<World> {
        if !common::is_root() {
            println!("SKIPPED {test}: needs root");
            return None;
        }
        let scratch = tempfile::tempdir().unwrap();
        let retry = Retry { first_wait: Duration::from_millis(5), tries_max: 3, ..Retry::default() };
        let registries = Policy { retry, stall_max: Duration::from_millis(300), ..Policy::default() };
        let mut config = Config { registries, ..Config::default() };
        config.quota.image_bytes = Some(512 << 20);
        let store = Store::open(&scratch.path().join("store"), config).unwrap();
        let registry = FakeRegistry::start(Login::None).await;
        let image = image(&[Tar::default().file("a", &"a".repeat(50_000)).bytes()], json!({}));
        registry.add("v1", &image);
        Some(World { store, registry, image, scratch })
    }

    /// How pulling fails, with the store as it was.
    async fn error(&self) -> String {
        let uri = format!("docker://{}/app:v1", self.registry.address).parse().unwrap();
        let began = Instant::now();
        let error = self.store.pull(&uri, None, &|_| {}).await.unwrap_err().to_string();
        assert!(began.elapsed() < PATIENCE, "{error}");
        assert!(error.len() < 2000, "an error is no place for all that was sent");
        for directory in ["layers", "images"] {
            let path = self.scratch.path().join("store").join(directory);
            assert_eq!(std::fs::read_dir(path).unwrap().count(), 0, "{directory} after: {error}");
        }
        error.replace(&self.registry.address.to_string(), "HOST")
    }

    fn manifest(&self, change: impl FnOnce(&mut Value)) {
        let mut manifest: Value = serde_json::from_slice(&self.image.manifest).unwrap();
        change(&mut manifest);
        self.registry.add_manifest("v1", common::OCI_MANIFEST, manifest.to_string().as_bytes());
    }
}

#[tokio::test]
async fn manifests_that_cannot_be() {
    let Some(world) = World::new("manifests_that_cannot_be").await else { return };
    let layer = |digest: &str, size: u64| json!({"mediaType": LAYER, "digest": digest, "size": size});
    let digest = Digest::of(b"x").to_string();
    let many: Vec<Value> = (0..10_000).map(|_| layer(&digest, 1)).collect();
    world.manifest(|manifest| manifest["layers"] = json!(many));
    assert!(world.error().await.ends_with("it has 10000 layers, more than the 500 that can be mounted"));
    world.manifest(|manifest| manifest["layers"] = json!([layer(&digest, u64::MAX)]));
    assert!(world.error().await.contains("is said to have 18446744073709551615 bytes, more than any may"));
    world.manifest(|manifest| manifest["layers"] = json!([layer(&digest, 1 << 40)]));
    let error = world.error().await;
    assert!(error.contains(&digest) && error.contains("room"), "{error}");
    world.manifest(|manifest| manifest["layers"] = json!([layer("sha256:../../../../etc/passwd", 1)]));
    assert!(world.error().await.contains("is not a digest"), "{}", world.error().await);
    world.manifest(|manifest| manifest["config"]["size"] = json!(1_u64 << 40));
    assert!(world.error().await.contains("a configuration of 1099511627776 bytes"));
    world.manifest(|manifest| manifest["config"]["mediaType"] = json!("application/x-other"));
    assert!(world.error().await.ends_with("it is not a container image but 'application/x-other'"));
    let foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
    world.manifest(|manifest| manifest["layers"][0]["mediaType"] = json!(foreign));
    assert!(world.error().await.contains("is a foreign one"));
    // An index that leads to itself cannot be made; one in another is as far as it goes.
    let inner = json!({"schemaVersion": 2, "manifests": []}).to_string();
    let media_type = "application/vnd.oci.image.index.v1+json";
    world.registry.add_manifest("inner", media_type, inner.as_bytes());
    let outer = json!({"schemaVersion": 2, "manifests": [
        {"mediaType": media_type, "digest": Digest::of(inner.as_bytes()), "size": inner.len()}]});
    world.registry.add_manifest("v1", media_type, outer.to_string().as_bytes());
    assert!(world.error().await.ends_with("an index in an index"), "{}", world.error().await);
    world.registry.next_manifests([Mood::Vast]);
    let error = world.error().await;
    assert!(
        error.ends_with("sends more than 4194304 bytes for the manifest of image HOST/app:v1"),
        "{error}"
    );
}

#[tokio::test]
async fn configurations_that_lie() {
    let Some(world) = World::new("configurations_that_lie").await else { return };
    let config = |value: Value| {
        let bytes = value.to_string().into_bytes();
        let descriptor = json!({"mediaType": CONFIG, "digest": Digest::of(&bytes), "size": bytes.len()});
        let image = BuiltImage { blobs: vec![(Digest::of(&bytes), bytes)], ..common::image(&[], json!({})) };
        world.registry.add("config", &image);
        world.manifest(|manifest| manifest["config"] = descriptor);
    };
    config(json!({"rootfs": {"diff_ids": []}}));
    assert!(world.error().await.ends_with("its configuration names 0 layers, its manifest 1"));
    config(json!({"rootfs": {"diff_ids": [Digest::of(b"something else")]}}));
    let error = world.error().await;
    assert!(error.contains("its uncompressed content has the digest sha256:"), "{error}");
    config(json!("text"));
    assert!(world.error().await.contains("its configuration: "), "{}", world.error().await);
}

#[tokio::test]
async fn answers_that_never_end_or_never_come() {
    let Some(world) = World::new("answers_that_never_end_or_never_come").await else { return };
    let again = |mood: Mood| std::iter::repeat_n(mood, 20);
    let forget = || {
        while world.registry.take_manifest_mood().is_some() {}
        while world.registry.take_blob_mood().is_some() {}
    };
    let image = "image HOST/app:v1";
    for (mood, of_manifest, of_config) in [
        (
            Mood::Trickle,
            format!("registry HOST stopped in the middle of {image}: it sends next to nothing"),
            "it sends next to nothing",
        ),
        (
            Mood::Endless,
            format!("registry HOST sends more than 4194304 bytes for the manifest of {image}"),
            "more than",
        ),
        (
            Mood::Redirect,
            format!("registry HOST leads astray when asked for {image}: it redirects without end"),
            "it redirects without end",
        ),
        (
            Mood::Stall(10),
            format!("registry HOST stopped in the middle of {image}: no answer in time"),
            "no answer in time",
        ),
    ] {
        world.registry.next_manifests(again(mood.clone()));
        assert_eq!(world.error().await, of_manifest);
        forget();
        world.registry.next_blobs(again(mood));
        let error = world.error().await;
        assert!(error.contains(of_config), "{error}");
        forget();
    }
    // Now the layers: the configuration is the first blob.
    for (mood, expected) in [
        (Mood::Trickle, "it sends next to nothing"),
        (Mood::Endless, "whose manifest says"),
        (Mood::Redirect, "it redirects without end"),
        (Mood::Stall(10), "no answer in time"),
        (Mood::Break(10), "stopped in the middle"),
        (Mood::Longer, "whose manifest says"),
        (Mood::Lie, "its digest is sha256:"),
    ] {
        world.registry.next_blobs([Mood::Good].into_iter().chain(again(mood.clone())));
        let error = world.error().await;
        assert!(error.contains(expected), "{mood:?}: {error}");
        forget();
    }
    world.registry.seen();
    let uri = format!("docker://{}/app:v1", world.registry.address).parse().unwrap();
    world.store.pull(&uri, None, &|_| {}).await.unwrap();
}
