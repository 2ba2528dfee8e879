//! A disk that somebody else fills to its last byte in the middle of what we do, and what goes first from one that several
//! share. Needs root and ext4.

mod common;
#[path = "common/cache.rs"]
mod serving;
#[path = "common/disk.rs"]
mod small;
#[path = "common/writes.rs"]
mod writes;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path as UrlPath, State};
use axum::response::IntoResponse as _;
use axum::routing::get;
use common::BuiltImage;
use futures_util::StreamExt as _;
use rootfs::digest::Digest;
use rootfs::ledger::Ledger;
use serving::Cache;
use small::SmallDisk;
use tokio::sync::watch;
use tokio_stream::wrappers::ReceiverStream;
use writes::{dense, dense_image, dense_layout, plain_store};

const MIB: usize = 1 << 20;
const DEADLINE: Duration = Duration::from_secs(60);

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

/// Both are past every look at how much room there is: only the disk itself refuses.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_suddenly_full_fails_what_is_under_way_clearly_and_leaves_nothing() {
    let name = "a_disk_that_is_suddenly_full_fails_what_is_under_way_clearly_and_leaves_nothing";
    let Some(disk) = SmallDisk::new(name) else { return };
    diego_base::tls::install_provider();
    let http = reqwest::Client::new();
    let ledger = Ledger::open(&disk.path).unwrap();
    let store = plain_store(&disk.path, Some(&ledger));
    let caching = Cache::start_on(&ledger, &disk.path.join("cache"));
    let (tell, go_on) = watch::channel(false);
    let built = dense_image(1, 24 * MIB);
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
    assert_eq!(caching.push(&http, blob.clone()).await.0, 201);
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
    let store = plain_store(&disk.path, Some(&ledger));
    let caching = Cache::start_on(&ledger, &disk.path.join("cache"));
    let layouts = tempfile::tempdir().unwrap();
    let mut held = Vec::new();
    // One is in use, however long nobody has asked for it.
    for (number, hours) in [(0, 24 * 100), (1, 24 * 40), (2, 24 * 3), (3, 2)] {
        let uri = dense_layout(layouts.path(), number, 4 * MIB);
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
        assert_eq!(caching.push(&http, blob.clone()).await.0, 201);
        age(&disk.path.join("cache/blobs").join(Digest::of(blob).hex()), *hours);
    }
    let names = || {
        let mut names: Vec<String> = store.images().unwrap().into_iter().map(|image| image.name).collect();
        names.sort();
        names
            .iter()
            .map(|name| name.trim_end_matches(":v1").rsplit("layout").next().unwrap().to_string())
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
