//! A small disk filled to its brim by everybody at once, and processes killed while they fill it. Needs root and ext4.

mod common;
#[path = "common/other.rs"]
mod other;
#[path = "common/cache.rs"]
mod serving;
#[path = "common/disk.rs"]
mod small;
#[path = "common/writes.rs"]
mod writes;

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use common::{Tar, image};
use other::Other;
use rootfs::admin::PullRequest;
use rootfs::ledger::{Ledger, Marks, Space};
use rootfs::quota::Backend;
use rootfs::unpack::Room;
use rootfs::{BaseIds, Config, Image, Store};
use serde_json::json;
use serving::Cache;
use small::SmallDisk;
use tokio_util::sync::CancellationToken;
use writes::{dense, dense_layout, exclusive, plain_store, until};

const MIB: u64 = 1 << 20;
const ROOTS_BYTES: u64 = 256 * MIB;

fn store(disk: &Path, ledger: Option<&Ledger>) -> Store {
    let mut config = Config::default();
    config.quota.image_bytes = Some(ROOTS_BYTES);
    config.quota.backend = Backend::Auto;
    config.ledger = ledger.cloned();
    Store::open(&disk.join("store"), config).unwrap()
}

async fn pull(store: &Store, uri: &str) -> Result<Image, rootfs::Error> {
    store.pull(&uri.parse().unwrap(), None, &|_| {}).await
}

/// What everybody has come to.
#[derive(Default)]
struct Outcomes {
    done: AtomicUsize,
    refused: AtomicUsize,
}

impl Outcomes {
    /// Whatever fails fails for want of room, and says so.
    fn note<T>(&self, what: &str, outcome: Result<T, String>) -> Option<T> {
        match outcome {
            Ok(value) => {
                self.done.fetch_add(1, Ordering::SeqCst);
                Some(value)
            }
            Err(error) => {
                assert!(error.contains("no room for") || error.contains("507"), "{what}: {error}");
                self.refused.fetch_add(1, Ordering::SeqCst);
                None
            }
        }
    }
}

/// Pulls, containers that write all they may, pushes to the registry cache, downloads and a stranger's log, all on one disk
/// that cannot hold a third of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_disk_that_everybody_fills_at_once_is_never_full() {
    let name = "a_disk_that_everybody_fills_at_once_is_never_full";
    let Some(disk) = SmallDisk::new(name) else { return };
    let layouts = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(&disk.path).unwrap();
    let store = store(&disk.path, Some(&ledger));
    let caching = Cache::start_on(&ledger, &disk.path.join("cache"));
    let (pulls, pushes, writes) = (Outcomes::default(), Outcomes::default(), Outcomes::default());
    let over = Arc::new(AtomicBool::new(false));
    let brim = Marks::of(disk.space().total).brim;
    let watching = {
        let (over, path) = (over.clone(), disk.path.clone());
        // Also what the filesystem takes beside the files themselves is taken of what is kept.
        std::thread::spawn(move || {
            let mut least = u64::MAX;
            while !over.load(Ordering::SeqCst) {
                least = least.min(Space::of(&path).unwrap().free);
                std::thread::sleep(Duration::from_millis(2));
            }
            least
        })
    };
    let pulling = async {
        for seed in 0..16 {
            let uri = dense_layout(layouts.path(), seed, 24 << 20);
            let pulled = pulls.note("pull", pull(&store, &uri).await.map_err(|error| error.to_string()));
            if let (Some(image), 0) = (pulled, seed % 4) {
                let handle = format!("h{seed}");
                let mounted = store.mount(&handle, &image, None, BaseIds::default(), exclusive(32 * MIB));
                let upper = mounted.unwrap().upper;
                let _ = tokio::task::spawn_blocking(move || {
                    let mut file = File::create(upper.join("big")).unwrap();
                    let block = vec![3; 1 << 20];
                    (0..64).take_while(|_| file.write_all(&block).is_ok()).count()
                })
                .await;
            }
        }
    };
    let pushing = async {
        let http = reqwest::Client::new();
        for seed in 100..112 {
            let (status, said) = caching.push(&http, dense(seed, 20 << 20)).await;
            let outcome = if status == 201 { Ok(()) } else { Err(format!("{status} {said}")) };
            pushes.note("push", outcome);
        }
    };
    let downloading = async {
        for number in 0..20_u64 {
            let (ledger, path) = (ledger.clone(), disk.path.join(format!("download{number}")));
            let written = tokio::task::spawn_blocking(move || {
                let mut room = ledger.claim("a download", 0).map_err(|error| error.to_string())?;
                let mut file = File::create(&path).unwrap();
                let block = vec![5; 1 << 20];
                for _ in 0..16 {
                    Room::take(&mut room, MIB)?;
                    file.write_all(&block).unwrap();
                }
                // Used by nobody any more.
                fs::remove_file(path).map_err(|error| error.to_string())
            });
            writes.note("download", written.await.unwrap());
        }
    };
    let stranger = async {
        let mut log = File::create(disk.path.join("log")).unwrap();
        for _ in 0..30 {
            log.write_all(&vec![1; 1 << 20]).unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::join!(pulling, pushing, downloading, stranger);
    over.store(true, Ordering::SeqCst);
    let least = watching.join().unwrap();
    assert!(least > 4 * MIB, "{least} bytes were free at the least, {} are kept", disk.space().total - brim);
    let done = |outcomes: &Outcomes| outcomes.done.load(Ordering::SeqCst);
    println!(
        "done: {} pulls, {} pushes, {} downloads; least free {least}",
        done(&pulls),
        done(&pushes),
        done(&writes)
    );
    assert!(done(&pulls) >= 4 && done(&writes) >= 1, "and it went on");
    assert!(ledger.report().unwrap().collected.bytes > 0, "something had to go");
    // Containers found all that they were promised.
    for handle in store.handles() {
        let written = store.usage(&handle).unwrap().exclusive_bytes;
        assert!(written > 31 * MIB, "{handle}: {written}");
        store.unmount(&handle).unwrap();
    }
    assert!(
        !fs::read_dir(disk.path.join("store/tmp"))
            .unwrap()
            .any(|entry| { entry.unwrap().file_name().to_string_lossy().starts_with("layer-") })
    );
    // It recovers: with the log gone a pull succeeds again.
    fs::remove_file(disk.path.join("log")).unwrap();
    pull(&store, &dense_layout(layouts.path(), 999, 24 << 20)).await.unwrap();
    caching.stop().await;
}

/// What a cell advertises is this, see the executor.
#[tokio::test]
async fn roots_are_offered_what_the_disk_has_at_the_moment() {
    let name = "roots_are_offered_what_the_disk_has_at_the_moment";
    let Some(disk) = SmallDisk::new(name) else { return };
    let layouts = tempfile::tempdir().unwrap();
    let store = store(&disk.path, None);
    drop(pull(&store, &dense_layout(layouts.path(), 1, 24 << 20)).await.unwrap());
    let all = store.capacity().unwrap();
    assert!(all > 128 * MIB, "{all}");
    // All but a little is taken by somebody who asks nobody, and the layer that nobody uses cannot make up for it.
    let log = File::create(disk.path.join("log")).unwrap();
    let bytes = disk.space().free - 64 * MIB;
    rustix::fs::fallocate(&log, rustix::fs::FallocateFlags::empty(), 0, bytes).unwrap();
    let left = store.capacity().unwrap();
    assert!(left < 96 * MIB, "{left} of {all}");
    let refused = pull(&store, &dense_layout(layouts.path(), 2, 100 << 20)).await.unwrap_err().to_string();
    assert!(refused.contains("no room for"), "{refused}");
    drop(log);
    fs::remove_file(disk.path.join("log")).unwrap();
    until("all is offered again", || store.capacity().unwrap() >= all);
}

const FILLS: &str = "FILLS_A_DISK_WITH_OTHERS";

/// Started by the test below as a process of its own: claims and writes until it is refused.
#[test]
fn a_process_that_fills_a_disk_with_others() {
    let Some(disk) = std::env::var_os(FILLS).map(PathBuf::from) else { return };
    let ledger = Ledger::open_in_common(&disk, &disk.join("accounts")).unwrap();
    println!("ready");
    let block = vec![9; 1 << 20];
    for number in 0.. {
        let Ok(mut claim) = ledger.claim("a file", 24 * MIB) else { return };
        let path = disk.join(format!("written-{}-{number}", std::process::id()));
        let mut file = File::create(path).unwrap();
        for _ in 0..24 {
            claim.take(MIB).unwrap();
            file.write_all(&block).expect("what was claimed can be written");
        }
    }
}

/// As `gdn`, `rep`, a file server and a registry cache do on one machine.
#[tokio::test]
async fn processes_that_fill_one_disk_leave_what_others_were_promised() {
    let name = "processes_that_fill_one_disk_leave_what_others_were_promised";
    let Some(disk) = SmallDisk::new(name) else { return };
    let ledger = Ledger::open_in_common(&disk.path, &disk.path.join("accounts")).unwrap();
    let store = store(&disk.path, Some(&ledger));
    let start = || {
        let mut other = Other::start("a_process_that_fills_a_disk_with_others", FILLS, &disk.path);
        other.ready();
        other
    };
    // One is killed with a claim in its hand, which is nobody's then.
    let mut others = [start(), start(), start(), start()];
    others[0].kill();
    for other in &mut others {
        let status = other.wait();
        assert!(status.success() || status.code().is_none(), "{status}");
    }
    assert_eq!(ledger.elsewhere().unwrap(), 0, "they are gone, and so are their words");
    let (space, promised) = (disk.space(), store.disk().unwrap().tenants["roots"].promised_bytes);
    let kept = space.total - Marks::of(space.total).brim;
    assert!(promised > 200 * MIB, "{promised}");
    // But for what the filesystem itself needs to keep so many files.
    assert!(space.free + MIB >= kept + promised, "{} are free, {promised} promised, {kept} kept", space.free);
    assert!(space.free < kept + promised + 64 * MIB, "and the rest was given: {}", space.free);
}

const PULLS: &str = "PULLS_UNTIL_IT_IS_KILLED";

/// Started by the test below as a process of its own.
#[tokio::test]
async fn a_process_that_pulls_until_it_is_killed() {
    let Some(directory) = std::env::var_os(PULLS).map(PathBuf::from) else { return };
    let store = plain_store(&directory, None);
    println!("ready");
    for _ in 0..1000 {
        for seed in 0..3 {
            let uri = format!("oci://{}:v1", directory.join(format!("layout{seed}")).display());
            pull(&store, &uri).await.unwrap();
        }
        store.ledger().collect(u64::MAX, Duration::ZERO);
    }
}

#[tokio::test]
async fn a_store_whose_process_is_killed_at_any_moment_has_whole_layers_only() {
    let name = "a_store_whose_process_is_killed_at_any_moment_has_whole_layers_only";
    if !common::is_root() {
        return println!("SKIPPED {name}: needs root");
    }
    let directory = tempfile::tempdir().unwrap();
    for seed in 0..3 {
        let files: Vec<(String, Vec<u8>)> =
            (0..40).map(|n| (format!("d{}/f{n}", n % 5), dense(seed * 100 + n, 20_000))).collect();
        let tar = files
            .iter()
            .fold(Tar::default(), |tar, (path, content)| tar.add(common::Entry::file(path, content)));
        image(&[tar.bytes()], json!({})).write_layout(&directory.path().join(format!("layout{seed}")), "v1");
    }
    for round in 0..25_u64 {
        let mut other = Other::start("a_process_that_pulls_until_it_is_killed", PULLS, directory.path());
        other.ready();
        // Each round a little later than the one before.
        std::thread::sleep(Duration::from_micros(round * 1700));
        drop(other);
        let store = plain_store(directory.path(), None);
        let layers = directory.path().join("store/layers");
        for entry in fs::read_dir(&layers).unwrap() {
            let root = entry.unwrap().path().join("root");
            let files: usize =
                (0..5).map(|n| fs::read_dir(root.join(format!("d{n}"))).unwrap().count()).sum();
            assert_eq!(files, 40, "round {round}");
            for n in 0..40 {
                let length = fs::metadata(root.join(format!("d{}/f{n}", n % 5))).unwrap().len();
                assert_eq!(length, 20_000, "round {round}");
            }
        }
        let left: Vec<_> = fs::read_dir(directory.path().join("store/tmp")).unwrap().flatten().collect();
        assert!(left.iter().all(|entry| entry.file_name() == "probe"), "round {round}: {left:?}");
        for image in store.images().unwrap() {
            assert_eq!((image.layers, image.bytes), (1, 800_000), "round {round}: {image:?}");
        }
    }
}

#[tokio::test]
async fn operators_list_pull_and_remove_images_and_see_the_disk() {
    let directory = tempfile::tempdir().unwrap();
    let name = "operators_list_pull_and_remove_images_and_see_the_disk";
    if !common::is_root() {
        return println!("SKIPPED {name}: needs root");
    }
    let store = plain_store(directory.path(), None);
    let shutdown = CancellationToken::new();
    let serving = tokio::spawn(store.clone().serve_admin(shutdown.clone()));
    let socket = rootfs::admin::socket(&directory.path().join("store"));
    while !socket.exists() {
        tokio::task::yield_now().await;
    }
    diego_base::tls::install_provider();
    let http = reqwest::Client::builder().unix_socket(socket).build().unwrap();
    let uri = dense_layout(directory.path(), 1, 100_000);
    let request = PullRequest { image: uri.clone(), ..PullRequest::default() };
    let said = http.post("http://store/v1/images").json(&request).send().await.unwrap().text().await.unwrap();
    let last: serde_json::Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    assert_eq!(last["bytes"], 100_000, "{said}");
    let rows: serde_json::Value = get(&http, "images").await;
    assert_eq!((&rows[0]["name"], &rows[0]["in_use"]), (&json!(uri), &json!(false)), "{rows}");
    assert_eq!(rows[0]["digest"], last["digest"]);
    let disk = get(&http, "disk").await;
    assert_eq!(
        disk["tenants"]["layers"],
        json!({"bytes": 100_000, "evictable_bytes": 100_000, "promised_bytes": 0})
    );
    assert!(disk["high_mark_bytes"].as_u64() < disk["total_bytes"].as_u64());
    // One that is in use is forgotten, and its layer stays as long as it is.
    let held = pull(&store, &uri).await.unwrap();
    assert_eq!((store.pull_figures().hits, store.pull_figures().misses), (1, 1));
    let url = format!("http://store/v1/images/{}", rows[0]["digest"].as_str().unwrap());
    assert_eq!(http.delete(&url).send().await.unwrap().status(), 204);
    assert_eq!(http.delete(&url).send().await.unwrap().status(), 404);
    assert_eq!((get(&http, "images").await, store.store_usage().unwrap().layers), (json!([]), 1));
    drop(held);
    let freed = http.post("http://store/v1/collect").json(&json!({})).send().await.unwrap();
    assert_eq!(freed.json::<serde_json::Value>().await.unwrap(), json!({"things": 1, "bytes": 100_000}));
    let bad = PullRequest { image: "docker://".into(), ..PullRequest::default() };
    assert_eq!(http.post("http://store/v1/images").json(&bad).send().await.unwrap().status(), 400);
    shutdown.cancel();
    serving.await.unwrap();
}

async fn get(http: &reqwest::Client, what: &str) -> serde_json::Value {
    http.get(format!("http://store/v1/{what}")).send().await.unwrap().json().await.unwrap()
}
