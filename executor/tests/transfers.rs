//! Downloads, cached dependencies and uploads, from and to an HTTP server of the test's own.

mod world;

use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bbs_models::{Action, DownloadAction, UploadAction};
use executor::*;
use garden_client::memory::{Call, Script};
use tokio_util::sync::CancellationToken;
use world::*;

/// What the server has, and what was asked of it.
#[derive(Default)]
struct Shelf {
    content: Mutex<Vec<u8>>,
    etag: Mutex<String>,
    served: AtomicUsize,
    asked: AtomicUsize,
    uploads: Mutex<Vec<(HeaderMap, Bytes)>>,
}

async fn serve(shelf: Arc<Shelf>) -> String {
    let routes = axum::Router::new()
        .route("/app", get(give))
        .route(
            "/plain",
            get(|State(shelf): State<Arc<Shelf>>| async move { shelf.content.lock().unwrap().clone() }),
        )
        .route("/missing", get(|| async { StatusCode::NOT_FOUND }))
        .route("/hangs", get(hang))
        .route("/upload", post(take))
        .route("/full", post(|| async { StatusCode::INSUFFICIENT_STORAGE }))
        .with_state(shelf);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, routes).await });
    url
}

async fn give(State(shelf): State<Arc<Shelf>>, headers: HeaderMap) -> Response {
    shelf.asked.fetch_add(1, Ordering::SeqCst);
    let etag = shelf.etag.lock().unwrap().clone();
    if headers.get("if-none-match").is_some_and(|value| value.as_bytes() == etag.as_bytes()) {
        return StatusCode::NOT_MODIFIED.into_response();
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    shelf.served.fetch_add(1, Ordering::SeqCst);
    ([("etag", etag)], shelf.content.lock().unwrap().clone()).into_response()
}

async fn hang(State(shelf): State<Arc<Shelf>>) -> Response {
    shelf.asked.fetch_add(1, Ordering::SeqCst);
    Body::from_stream(futures_util::stream::pending::<Result<Bytes, std::io::Error>>()).into_response()
}

async fn take(State(shelf): State<Arc<Shelf>>, headers: HeaderMap, body: Bytes) {
    shelf.uploads.lock().unwrap().push((headers, body));
}

fn shelf(content: Vec<u8>) -> Arc<Shelf> {
    Arc::new(Shelf { content: Mutex::new(content), etag: Mutex::new("v1".into()), ..Shelf::default() })
}

fn tar(text: &str) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o755);
    header.set_size(text.len() as u64);
    tar.append_data(&mut header, "bin/app", text.as_bytes()).unwrap();
    tar.into_inner().unwrap()
}

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

fn zip(text: &str) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let options = zip::write::SimpleFileOptions::default().unix_permissions(0o755);
    zip.add_directory("bin/", options).unwrap();
    zip.start_file("bin/app", options).unwrap();
    zip.write_all(text.as_bytes()).unwrap();
    zip.finish().unwrap().into_inner()
}

fn serial(actions: Vec<Action>) -> Option<Action> {
    Some(Action::Serial(bbs_models::ManyActions { actions, log_source: String::new() }))
}

#[tokio::test]
async fn every_kind_of_archive_arrives_in_the_container() {
    let mut world = world();
    world.garden.script("/app", Script::runs());
    for (guid, content) in [
        ("tar", tar("hello")),
        ("gzip", gzip(&tar("hello"))),
        ("zstd", zstd::encode_all(&tar("hello")[..], 1).unwrap()),
        ("zip", zip("hello")),
    ] {
        let url = serve(shelf(content)).await;
        let setup = Some(download(&format!("{url}/app"), guid));
        world.start(guid, RunInfo { setup, ..recipe("/app") });
        world.expect(&[&format!("Reserved {guid}"), &format!("Running {guid}")]).await;
        let seen = world.garden.seen(guid).unwrap();
        assert_eq!(seen.files["/home/vcap/bin/app"], b"hello", "{guid}");
        assert_eq!(seen.stream_users, ["vcap"]);
    }
    let said = world.said();
    assert!(said.contains(&"APP: Downloading the app...".to_string()), "{said:?}");
    assert!(said.contains(&"APP: Downloaded the app (2K)".to_string()), "{said:?}");
}

#[tokio::test]
async fn what_is_cached_is_asked_for_but_not_sent_again() {
    let mut world = world();
    world.garden.script("/app", Script::exits(0));
    let shelf = shelf(tar("one"));
    let url = serve(shelf.clone()).await;
    let mut number = 0;
    for (content, etag, served) in [("one", "v1", 1), ("one", "v1", 1), ("two", "v2", 2)] {
        *shelf.content.lock().unwrap() = tar(content);
        *shelf.etag.lock().unwrap() = etag.into();
        number += 1;
        let guid = number.to_string();
        world.start(&guid, RunInfo { setup: Some(download(&format!("{url}/app"), "key")), ..recipe("/app") });
        let events = [format!("Reserved {guid}"), format!("Running {guid}"), format!("Completed {guid}: ")];
        world.expect(&events.each_ref().map(String::as_str)).await;
        assert_eq!(shelf.served.load(Ordering::SeqCst), served);
        let seen = world.garden.seen(&guid).unwrap();
        assert_eq!(seen.files["/home/vcap/bin/app"], content.as_bytes());
    }
    assert_eq!(shelf.asked.load(Ordering::SeqCst), 3);
    assert!(world.said().contains(&"APP: Downloaded the app".to_string()));
    // What was replaced is gone from the disk.
    until(|| files_in(&world.state.path().join("executor-cache")) == 1).await;
}

#[tokio::test]
async fn downloads_that_fail_name_the_artifact_and_nothing_of_the_url() {
    let mut world = world();
    world.garden.script("/app", Script::runs());
    let url = serve(shelf(b"this is no archive".to_vec())).await;
    let cases = ["/missing?secret", "/app?secret", "no url"];
    for (guid, case) in ["a", "b", "c"].iter().zip(cases) {
        let from = if case.starts_with('/') { format!("{url}{case}") } else { case.to_string() };
        world.start(guid, RunInfo { setup: Some(download(&from, "")), ..recipe("/app") });
        let failed = format!("Failed {guid}: Downloading the app failed");
        world.expect(&[&format!("Reserved {guid}"), &failed]).await;
    }
    assert!(!world.said().iter().any(|line| line.contains("secret")));
    until(|| files_in(&world.state.path().join("executor-cache")) == 0).await;
}

#[tokio::test]
async fn a_wrong_checksum_is_not_unpacked() {
    let mut world = world();
    world.garden.script("/app", Script::runs());
    let url = serve(shelf(tar("hello"))).await;
    let with = |algorithm: &str, value: &str| {
        Action::Download(DownloadAction {
            from: format!("{url}/app"),
            to: "/".into(),
            checksum_algorithm: algorithm.into(),
            checksum_value: value.into(),
            ..DownloadAction::default()
        })
    };
    let wrong = with("sha1", "aaf4c61ddcc5e8a2dabede0f3b482cd9aea9434d");
    world.start("a", RunInfo { setup: Some(wrong), ..recipe("/app") });
    world.expect(&["Reserved a", "Failed a: Downloading failed"]).await;
    assert!(world.garden.seen("a").unwrap().files.is_empty());
    let right = format!("{:x}", md5::compute(tar("hello")));
    world.start("b", RunInfo { setup: Some(with("md5", &right)), ..recipe("/app") });
    world.expect(&["Reserved b", "Running b"]).await;
}

#[tokio::test]
async fn an_archive_that_breaks_off_is_a_failure_not_a_short_file() {
    let mut world = world();
    world.garden.script("/app", Script::runs());
    let mut content = gzip(&tar(&"hello ".repeat(10_000)));
    content.truncate(content.len() / 2);
    let url = serve(shelf(content)).await;
    world.start("a", RunInfo { setup: Some(download(&format!("{url}/app"), "")), ..recipe("/app") });
    world.expect(&["Reserved a"]).await;
    let failed = world.event().await;
    assert!(failed.starts_with("Failed a: Copying the app into the container failed: "), "{failed}");
}

#[tokio::test]
async fn a_stop_ends_a_download_that_hangs() {
    let mut world = world();
    world.garden.script("/app", Script::runs());
    let shelf = shelf(Vec::new());
    let url = serve(shelf.clone()).await;
    let setup = serial(vec![download(&format!("{url}/hangs"), "key")]);
    world.start("a", RunInfo { setup, ..recipe("/app") });
    until(|| shelf.asked.load(Ordering::SeqCst) == 1).await;
    let started = std::time::Instant::now();
    world.executor.delete("a").await.unwrap();
    assert!(started.elapsed() < Duration::from_secs(5));
    world.expect(&["Reserved a", "Failed a: cancelled (stopped)"]).await;
    world.nothing_is_left().await;
    assert_eq!(files_in(&world.state.path().join("executor-cache")), 0);
}

#[tokio::test]
async fn a_stop_ends_a_stream_into_the_container() {
    let mut world = world();
    world.garden.script("/app", Script::runs());
    let url = serve(shelf(tar("hello"))).await;
    world.garden.hold(Call::StreamIn);
    world.start("a", RunInfo { setup: Some(download(&format!("{url}/app"), "")), ..recipe("/app") });
    until(|| world.garden.calls().iter().any(|call| call.starts_with("stream-in"))).await;
    world.executor.stop("a").await.unwrap();
    world.garden.release(Call::StreamIn);
    world.expect(&["Reserved a", "Failed a: cancelled (stopped)"]).await;
    assert!(world.garden.seen("a").unwrap().files.is_empty());
}

fn dependency(url: &str, key: &str) -> CachedDependency {
    CachedDependency {
        name: "buildpack".into(),
        from: url.into(),
        to: "/tmp/buildpack".into(),
        cache_key: key.into(),
        log_source: "STG".into(),
        ..CachedDependency::default()
    }
}

#[tokio::test]
async fn a_cached_dependency_is_fetched_once_and_shared_read_only() {
    let mut world = world();
    world.garden.script("/app", Script::runs());
    let shelf = shelf(gzip(&tar("shared")));
    let url = format!("{}/app", serve(shelf.clone()).await);
    for guid in ["a", "b", "c"] {
        let dependencies = vec![dependency(&url, "key")];
        world.start(guid, RunInfo { cached_dependencies: dependencies, ..recipe("/app") });
    }
    let mut running = 0;
    while running < 3 {
        running += usize::from(world.event().await.starts_with("Running"));
    }
    assert_eq!(shelf.served.load(Ordering::SeqCst), 1, "one download for all who wait");
    let mounts = ["a", "b", "c"].map(|guid| world.garden.seen(guid).unwrap().spec.bind_mounts.remove(0));
    assert!(mounts.iter().all(|mount| mount.mode == 0 && mount.dst_path == "/tmp/buildpack"));
    assert_eq!(mounts[0].src_path, mounts[1].src_path);
    let file = std::path::Path::new(&mounts[0].src_path).join("bin/app");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "shared");
    assert!(world.said().contains(&"STG: Downloading buildpack...".to_string()));
    // A new version is unpacked beside the old one, which stays as long as it is used.
    *shelf.content.lock().unwrap() = gzip(&tar("new"));
    *shelf.etag.lock().unwrap() = "v2".into();
    let run_info = RunInfo { cached_dependencies: vec![dependency(&url, "key")], ..recipe("/app") };
    world.start("d", run_info);
    world.expect(&["Reserved d", "Running d"]).await;
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "shared");
    for guid in ["a", "b", "c", "d"] {
        world.executor.delete(guid).await.unwrap();
    }
    until(|| !file.exists()).await;
    world.nothing_is_left().await;
}

#[tokio::test]
async fn a_dependency_that_cannot_be_had_fails_the_container() {
    let mut world = world();
    world.garden.script("/app", Script::runs());
    let url = serve(shelf(tar("x"))).await;
    let dependencies =
        vec![dependency(&format!("{url}/app"), "key"), dependency(&format!("{url}/missing"), "other")];
    world.start("a", RunInfo { cached_dependencies: dependencies, ..recipe("/app") });
    world.expect(&["Reserved a", "Failed a: failed to download cached artifacts (retryable)"]).await;
    assert!(world.garden.handles().is_empty());
    assert!(world.said().contains(&"STG: Downloading buildpack failed".to_string()));
    world.executor.delete("a").await.unwrap();
    world.nothing_is_left().await;
}

#[tokio::test]
async fn the_cache_survives_a_restart_and_forgets_what_it_does_not_know() {
    let shelf = shelf(tar("hello"));
    let url = format!("{}/app", serve(shelf.clone()).await);
    let mut world = world();
    let state = world.state.path().to_path_buf();
    let cache = state.join("executor-cache");
    world.garden.script("/app", Script::runs());
    let cached_dependencies = vec![dependency(&url, "k"), dependency(&url, "")];
    world.start("a", RunInfo { cached_dependencies, ..recipe("/app") });
    world.expect(&["Reserved a", "Running a"]).await;
    assert_eq!((shelf.served.load(Ordering::SeqCst), files_in(&cache)), (2, 2));
    let World { executor, garden, events, state: kept } = world;
    drop(events);
    leave(executor).await;
    std::fs::write(cache.join("download-xyz"), "half").unwrap();

    let executor = executor_on(garden.clone(), state, Default::default(), |_| {});
    assert_eq!(files_in(&cache), 2, "what is mounted stays, cached or not");
    let mut world = World { events: executor.subscribe(), executor, garden, state: kept };
    let running = world.executor.clone();
    tokio::spawn(async move { running.run(CancellationToken::new()).await });
    world.start("b", RunInfo { cached_dependencies: vec![dependency(&url, "k")], ..recipe("/app") });
    world.expect(&["Reserved b", "Running b"]).await;
    assert_eq!(shelf.served.load(Ordering::SeqCst), 2);
    world.executor.delete("a").await.unwrap();
    until(|| files_in(&cache) == 1).await;
}

#[tokio::test]
async fn the_least_recently_used_goes_first_and_what_is_used_never() {
    let mut world = world_with(|config| config.cache_bytes_max = 25_000);
    world.garden.script("/app", Script::runs());
    let url = format!("{}/app", serve(shelf(tar(&"x".repeat(10_000)))).await);
    for key in ["1", "2", "3"] {
        world.start(key, RunInfo { cached_dependencies: vec![dependency(&url, key)], ..recipe("/app") });
        world.expect(&[&format!("Reserved {key}"), &format!("Running {key}")]).await;
    }
    let cache = world.state.path().join("executor-cache");
    assert_eq!(files_in(&cache), 3, "all are used");
    for key in ["1", "2", "3"] {
        world.executor.delete(key).await.unwrap();
        world.event().await;
    }
    world.start("4", RunInfo { cached_dependencies: vec![dependency(&url, "4")], ..recipe("/app") });
    world.expect(&["Reserved 4", "Running 4"]).await;
    until(|| files_in(&cache) == 2).await;
}

#[tokio::test]
async fn a_file_is_uploaded_with_its_digests() {
    let mut world = world();
    let shelf = shelf(Vec::new());
    let url = serve(shelf.clone()).await;
    world.garden.script("/app", Script::exits_after(Duration::from_millis(300), 0));
    let upload = |path: &str| {
        Action::Upload(UploadAction {
            artifact: "droplet".into(),
            from: "/tmp/droplet".into(),
            to: format!("{url}{path}"),
            user: "vcap".into(),
            ..UploadAction::default()
        })
    };
    for (guid, path, end) in
        [("a", "/upload", "Completed a: "), ("b", "/full", "Failed b: Upload failed: Status code 507")]
    {
        let action = serial(vec![world::action("/app"), upload(path)]);
        world.start(guid, RunInfo { action, ..recipe("") });
        world.expect(&[&format!("Reserved {guid}")]).await;
        until(|| world.garden.seen(guid).is_some()).await;
        world.garden.put_file(guid, "/tmp/droplet", &b"hello".repeat(300));
        world.expect(&[&format!("Running {guid}"), end]).await;
    }
    let uploads = shelf.uploads.lock().unwrap();
    let (headers, body) = &uploads[0];
    assert_eq!(body.len(), 1500);
    assert_eq!(headers["content-length"], "1500");
    assert_eq!(headers["content-type"], "application/octet-stream");
    assert!(headers["content-digest"].to_str().unwrap().starts_with("sha-256=:"));
    assert_eq!(headers["content-md5"].len(), 24);
    let said = world.said();
    assert!(said.contains(&"APP: Uploading droplet...".to_string()), "{said:?}");
    assert!(said.contains(&"APP: Uploaded droplet (1.5K)".to_string()), "{said:?}");
    assert!(said.contains(&"APP: Failed to upload payload for droplet".to_string()), "{said:?}");
}

/// Everything but the index.
fn files_in(dir: &std::path::Path) -> usize {
    let entries = std::fs::read_dir(dir).unwrap().filter_map(Result::ok);
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| !name.starts_with("index.json") && !name.starts_with('.')).count()
}

async fn until(condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.expect("it comes true");
}

/// A small disk for the cache; gone with the answer. `None` where nobody lets us mount one.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new(bytes: usize) -> Option<SmallDisk> {
        let directory = tempfile::tempdir().unwrap();
        let mount = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "small-disk"])
            .arg(directory.path())
            .output();
        mount.is_ok_and(|output| output.status.success()).then_some(SmallDisk(directory))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = std::process::Command::new("umount").args(["-l"]).arg(self.0.path()).status();
        assert!(unmounted.unwrap().success());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_disk_keeps_the_newest_downloads_and_refuses_what_cannot_fit() {
    const MIB: usize = 1 << 20;
    let name = "a_small_disk_keeps_the_newest_downloads_and_refuses_what_cannot_fit";
    let Some(disk) = SmallDisk::new(10 * MIB) else { return println!("SKIPPED {name}: cannot mount a disk") };
    let mut world = world_with(|config| config.cache_dir = disk.0.path().join("cache"));
    world.garden.script("/app", Script::exits(0));
    let shelf = shelf(tar(&"x".repeat(3 * MIB)));
    let url = serve(shelf.clone()).await;
    let mut get = async |guid: &str, path: &str, key: &str, ends: &str| {
        world.start(guid, RunInfo { setup: Some(download(&format!("{url}{path}"), key)), ..recipe("/app") });
        let reserved = format!("Reserved {guid}");
        assert_eq!(world.event().await, reserved);
        let mut last = world.event().await;
        if last.starts_with("Running") {
            last = world.event().await;
        }
        assert!(last.starts_with(ends), "{last}");
        world.executor.delete(guid).await.unwrap();
    };
    // Three times as much as fits, but never in use for long.
    for n in 0..9 {
        get(&format!("a{n}"), "/app", &format!("key{n}"), "Completed").await;
    }
    assert_eq!(shelf.served.load(Ordering::SeqCst), 9);
    get("again", "/app", "key8", "Completed").await;
    assert_eq!(shelf.served.load(Ordering::SeqCst), 9, "the newest is there still");
    get("first", "/app", "key0", "Completed").await;
    assert_eq!(shelf.served.load(Ordering::SeqCst), 10, "the oldest is not");
    // Of a known size, and of an unknown one that expands.
    *shelf.content.lock().unwrap() = tar(&"x".repeat(12 * MIB));
    get("large", "/plain", "large", "Failed").await;
    let kept = std::fs::read_dir(disk.0.path().join("cache")).unwrap();
    let kept: Vec<_> = kept.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert!(kept.iter().all(|name| !name.starts_with("download-")), "{kept:?}");
    *shelf.content.lock().unwrap() = tar("small");
    get("small", "/plain", "small", "Completed").await;
}
