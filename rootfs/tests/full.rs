//! A disk that somebody else fills to its last byte in the middle of what we do, and what goes first from one that several
//! share. Needs root and ext4.

mod common;
#[path = "common/disk.rs"]
mod small;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path as UrlPath, State};
use axum::response::IntoResponse as _;
use axum::routing::get;
use common::{BuiltImage, Entry, Tar, image};
use futures_util::StreamExt as _;
use rootfs::digest::Digest;
use rootfs::ledger::Ledger;
use rootfs::quota::Backend;
use rootfs::registry::cache;
use rootfs::{Config, Store};
use serde_json::json;
use small::SmallDisk;
use tokio::sync::watch;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

const MIB: usize = 1 << 20;
const DEADLINE: Duration = Duration::from_secs(60);

/// Bytes that cannot be compressed.
fn dense(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let word = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    std::iter::repeat_with(word).flat_map(u64::to_le_bytes).take(bytes).collect()
}

/// Takes all that is free, to the last block.
fn fill(path: &Path) {
    let file = File::create(path).unwrap();
    let mut at = 0;
    for piece in (12..30).rev().map(|power| 1_u64 << power) {
        while rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), at, piece).is_ok() {
            at += piece;
        }
    }
    let more = File::create(path.with_extension("more")).and_then(|mut file| file.write_all(&[1; 4096]));
    assert_eq!(more.unwrap_err().kind(), io::ErrorKind::StorageFull);
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < DEADLINE, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn bytes_below(directory: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(directory) else { return 0 };
    let size = |entry: fs::DirEntry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => bytes_below(&entry.path()),
        Ok(_) => entry.metadata().map_or(0, |metadata| metadata.len()),
        Err(_) => 0,
    };
    entries.flatten().map(size).sum()
}

/// A registry that gives the first half of each blob, and the rest when it is told to.
struct Halting {
    image: BuiltImage,
    go_on: watch::Receiver<bool>,
}

async fn serve(registry: Halting) -> std::net::SocketAddr {
    async fn manifest(State(registry): State<Arc<Halting>>) -> impl axum::response::IntoResponse {
        ([("content-type", common::OCI_MANIFEST)], registry.image.manifest.clone())
    }
    async fn blob(
        State(registry): State<Arc<Halting>>,
        UrlPath(digest): UrlPath<String>,
    ) -> axum::response::Response {
        let blob =
            registry.image.blobs.iter().find(|(known, _)| known.to_string() == digest).unwrap().1.clone();
        let (length, mut go_on) = (blob.len(), registry.go_on.clone());
        let (first, rest) =
            (Bytes::copy_from_slice(&blob[..length / 2]), Bytes::copy_from_slice(&blob[length / 2..]));
        // A configuration is small and comes at once.
        let rest = async move {
            if length > MIB {
                go_on.wait_for(|go_on| *go_on).await.unwrap();
            }
            Ok::<_, io::Error>(rest)
        };
        let body = futures_util::stream::iter([Ok(first)]).chain(futures_util::stream::once(rest));
        ([("content-length", length.to_string())], Body::from_stream(body)).into_response()
    }
    let router = Router::new()
        .route("/v2/", get(async || "{}"))
        .route("/v2/app/manifests/{reference}", get(manifest))
        .route("/v2/app/blobs/{digest}", get(blob))
        .with_state(Arc::new(registry));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

fn open(disk: &Path, ledger: &Ledger) -> Store {
    let mut config = Config::default();
    config.quota.backend = Backend::Plain;
    config.ledger = Some(ledger.clone());
    Store::open(&disk.join("store"), config).unwrap()
}

struct Served {
    address: std::net::SocketAddr,
    shutdown: CancellationToken,
    serving: tokio::task::JoinHandle<Result<(), cache::Error>>,
}

async fn registry_cache(directory: PathBuf, ledger: &Ledger) -> Served {
    let (listen, address) = diego_base::serve::Listen::loopback().unwrap();
    let mut config = cache::Config::new(listen, directory);
    config.ledger = Some(ledger.clone());
    let shutdown = CancellationToken::new();
    let serving = tokio::spawn(cache::run(config, shutdown.clone()));
    Served { address, shutdown, serving }
}

impl Served {
    async fn stop(self) {
        self.shutdown.cancel();
        self.serving.await.unwrap().unwrap();
    }

    async fn push(&self, http: &reqwest::Client, blob: Vec<u8>) {
        let url = format!("http://{}/v2/team/app/blobs/uploads/?digest={}", self.address, Digest::of(&blob));
        let answer = http.post(url).body(blob).send().await.unwrap();
        assert_eq!(answer.status(), 201, "{}", answer.text().await.unwrap());
    }
}

/// Both are past every look at how much room there is: only the disk itself refuses.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_suddenly_full_fails_what_is_under_way_clearly_and_leaves_nothing() {
    let name = "a_disk_that_is_suddenly_full_fails_what_is_under_way_clearly_and_leaves_nothing";
    let Some(disk) = SmallDisk::new(name) else { return };
    diego_base::tls::install_provider();
    let http = reqwest::Client::new();
    let ledger = Ledger::open(&disk.path).unwrap();
    let store = open(&disk.path, &ledger);
    let caching = registry_cache(disk.path.join("cache"), &ledger).await;
    let (tell, go_on) = watch::channel(false);
    let built = image(&[Tar::default().add(Entry::file("file", &dense(1, 24 * MIB))).bytes()], json!({}));
    let address = serve(Halting { image: built, go_on }).await;
    let uri: rootfs::ImageRef = format!("docker://{address}/app:v1").parse().unwrap();
    let pulling = tokio::spawn({
        let (store, uri) = (store.clone(), uri.clone());
        async move { store.pull(&uri, None, &|_| {}).await.map(drop).map_err(|error| error.to_string()) }
    });
    // An upload by pieces: the first has come, the second is under way.
    let blob = dense(2, 6 * MIB);
    let begun =
        http.post(format!("http://{}/v2/team/app/blobs/uploads/", caching.address)).send().await.unwrap();
    let location = begun.headers()["location"].to_str().unwrap().to_string();
    let upload = format!("http://{}{location}", caching.address);
    let (pieces, body) = tokio::sync::mpsc::channel::<io::Result<Bytes>>(1);
    let pushing =
        tokio::spawn(http.patch(&upload).body(reqwest::Body::wrap_stream(ReceiverStream::new(body))).send());
    pieces.send(Ok(Bytes::copy_from_slice(&blob[..MIB]))).await.unwrap();
    let (store_tmp, cache_tmp) = (disk.path.join("store/tmp"), disk.path.join("cache/tmp"));
    until("both are under way", || {
        bytes_below(&store_tmp) >= 4 * MIB as u64 && bytes_below(&cache_tmp) >= MIB as u64
    })
    .await;
    fill(&disk.path.join("log"));
    // A download of an executor stands for whoever asks first: he is told.
    let refused = ledger.claim("a download", 1).unwrap_err().to_string();
    assert!(refused.contains("has no room for a download"), "{refused}");
    for piece in blob[MIB..].chunks(MIB) {
        if pieces.send(Ok(Bytes::copy_from_slice(piece))).await.is_err() {
            break;
        }
    }
    drop(pieces);
    // The connection may end before the answer is read: not all of the request is wanted any more.
    if let Ok(answer) = pushing.await.unwrap() {
        let (status, said) = (answer.status(), answer.text().await.unwrap());
        assert!(status == 507 && said.contains("the disk is full"), "{status} {said}");
    }
    // What the upload gave back is less than the rest of the layer.
    tell.send(true).unwrap();
    let pulled = pulling.await.unwrap().unwrap_err();
    assert!(pulled.contains("No space left on device") || pulled.contains("no room for"), "{pulled}");
    until("nothing half done is left", || bytes_below(&store_tmp) == 0 && bytes_below(&cache_tmp) == 0).await;
    assert!(store.images().unwrap().is_empty() && store.store_usage().unwrap().layers == 0);
    // Nobody goes on with an upload of which a piece is missing.
    assert_eq!(http.get(&upload).send().await.unwrap().status(), 404);
    fs::remove_file(disk.path.join("log")).unwrap();
    fs::remove_file(disk.path.join("log.more")).unwrap();
    store.pull(&uri, None, &|_| {}).await.unwrap();
    caching.push(&http, blob.clone()).await;
    let url = format!("http://{}/v2/team/app/blobs/{}", caching.address, Digest::of(&blob));
    assert!(http.get(url).send().await.unwrap().bytes().await.unwrap() == blob);
    caching.stop().await;
}

fn age(path: &Path, hours: u64) {
    let file = File::options().append(true).open(path).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(hours * 3600)).unwrap();
}

#[tokio::test]
async fn of_layers_and_blobs_the_longest_unused_goes_first_whoevers_it_is() {
    let name = "of_layers_and_blobs_the_longest_unused_goes_first_whoevers_it_is";
    let Some(disk) = SmallDisk::new(name) else { return };
    diego_base::tls::install_provider();
    let http = reqwest::Client::new();
    let ledger = Ledger::open(&disk.path).unwrap();
    let store = open(&disk.path, &ledger);
    let caching = registry_cache(disk.path.join("cache"), &ledger).await;
    let layouts = tempfile::tempdir().unwrap();
    let mut held = Vec::new();
    // One is in use, however long nobody has asked for it.
    for (number, hours) in [(0, 24 * 100), (1, 24 * 40), (2, 24 * 3), (3, 2)] {
        let path = layouts.path().join(number.to_string());
        image(&[Tar::default().add(Entry::file("file", &dense(number, 4 * MIB))).bytes()], json!({}))
            .write_layout(&path, "v1");
        let uri = format!("oci://{}:v1", path.display());
        let known: BTreeSet<_> =
            fs::read_dir(disk.path.join("store/layers")).unwrap().flatten().map(|e| e.path()).collect();
        let image = store.pull(&uri.parse().unwrap(), None, &|_| {}).await.unwrap();
        store.settle();
        let layers = fs::read_dir(disk.path.join("store/layers")).unwrap().flatten().map(|e| e.path());
        let new: Vec<_> = layers.filter(|path| !known.contains(path)).collect();
        age(&new[0].join("layer.json"), hours);
        held.extend((number == 0).then_some(image));
    }
    let blobs = [(10, 24 * 10), (11, 4)].map(|(seed, hours)| (dense(seed, 4 * MIB), hours));
    for (blob, hours) in &blobs {
        caching.push(&http, blob.clone()).await;
        age(&disk.path.join("cache/blobs").join(Digest::of(blob).hex()), *hours);
    }
    let names = || {
        let mut names: Vec<String> = store.images().unwrap().into_iter().map(|image| image.name).collect();
        names.sort();
        names
            .iter()
            .map(|name| name.trim_end_matches(":v1").rsplit('/').next().unwrap().to_string())
            .collect::<Vec<_>>()
    };
    let cached = || {
        blobs
            .iter()
            .map(|(b, _)| disk.path.join("cache/blobs").join(Digest::of(b).hex()).exists())
            .collect::<Vec<_>>()
    };
    assert_eq!((names(), cached()), (vec!["0".into(), "1".into(), "2".into(), "3".into()], vec![true, true]));
    // One at a time: of the store, of the cache, of the store, of the cache, of the store.
    for (left, blobs_left) in [
        (vec!["0", "2", "3"], [true, true]),
        (vec!["0", "2", "3"], [false, true]),
        (vec!["0", "3"], [false, true]),
        (vec!["0", "3"], [false, false]),
        (vec!["0"], [false, false]),
        (vec!["0"], [false, false]),
    ] {
        ledger.collect(1, Duration::ZERO);
        assert_eq!((names(), cached()), (left.into_iter().map(String::from).collect(), blobs_left.to_vec()));
    }
    drop(held);
    ledger.collect(1, Duration::ZERO);
    assert!(names().is_empty(), "used by nobody it goes, too");
    caching.stop().await;
}
