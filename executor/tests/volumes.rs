//! Volumes of containers, on a garden in memory and a driver that is a server of its own.

#[path = "world/volume_driver.rs"]
mod volume_driver;
mod world;

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::http::StatusCode;
use diego_base::serve::Listen;
use diego_base::tls::{Files, ServerTls};
use executor::logs::Logs;
use executor::*;
use garden_client::memory::{Call, MemoryGarden, Script};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use serde_json::json;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use volume_driver::{Mood, VolumeDriver};
use world::*;

/// Between two looks for drivers.
const LOOK: Duration = Duration::from_millis(50);

/// What stays while executors come and go.
struct Cell {
    drivers: tempfile::TempDir,
    state: tempfile::TempDir,
    garden: MemoryGarden,
    told: Told,
}

/// What is counted of drivers, each in a word.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<String>>>);

impl Witness for Told {
    fn saw(&self, occurrence: Occurrence) {
        let (what, driver, attempt) = match occurrence {
            Occurrence::Mount { driver, attempt } => ("mount", driver, attempt),
            Occurrence::Unmount { driver, attempt } => ("unmount", driver, attempt),
            _ => return,
        };
        let how = if attempt.failed { "failed" } else { "worked" };
        self.0.lock().unwrap().push(format!("{driver}: {what} {how}"));
    }
}

struct Life {
    world: World,
    shutdown: CancellationToken,
    running: JoinHandle<()>,
}

impl Cell {
    fn new() -> Cell {
        let garden = MemoryGarden::new();
        garden.script("/app", Script::runs());
        garden.script("/task", Script::exits(0));
        let (drivers, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        Cell { drivers, state, garden, told: Told::default() }
    }

    async fn with_driver() -> (Cell, VolumeDriver) {
        let cell = Cell::new();
        let driver = VolumeDriver::at_socket(cell.drivers.path(), "local").await;
        (cell, driver)
    }

    fn begin(&self) -> Life {
        self.begin_looking(LOOK)
    }

    fn begin_looking(&self, interval: Duration) -> Life {
        let state = self.state.path().to_path_buf();
        let executor = executor_on(self.garden.clone(), state, Logs::default(), |config| {
            config.volume_driver_dirs = vec![self.drivers.path().to_path_buf()];
            config.volume_discovery_interval = interval;
            config.witness = Arc::new(self.told.clone());
        });
        let shutdown = CancellationToken::new();
        let (ran, stop) = (executor.clone(), shutdown.clone());
        let running = tokio::spawn(async move { ran.run(stop).await });
        let state = tempfile::tempdir().unwrap();
        let world = World { events: executor.subscribe(), executor, garden: self.garden.clone(), state };
        Life { world, shutdown, running }
    }

    /// Once it has found these drivers.
    async fn begin_with(&self, drivers: &[&str]) -> Life {
        self.begin().once_found(drivers).await
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.drivers.path().join(name), text).unwrap();
    }
}

impl Life {
    async fn once_found(self, drivers: &[&str]) -> Life {
        until("drivers are found", || self.world.executor.volume_drivers() == drivers).await;
        self
    }

    async fn end(self) {
        self.shutdown.cancel();
        self.running.await.unwrap();
    }
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), waiting).await.unwrap_or_else(|_| panic!("not so: {what}"));
}

fn volume(driver: &str, id: &str) -> VolumeMount {
    VolumeMount {
        driver: driver.into(),
        volume_id: id.into(),
        config: json!({ "source": "nfs://share" }).as_object().unwrap().clone(),
        container_path: "/data".into(),
        writable: true,
    }
}

fn with_volumes(path: &str, volumes: &[VolumeMount]) -> RunInfo {
    RunInfo { volume_mounts: volumes.to_vec(), ..recipe(path) }
}

fn mounted(life: &Life, guid: &str) -> Vec<(String, String, u8)> {
    let mounts = life.world.garden.seen(guid).unwrap().spec.bind_mounts;
    mounts.into_iter().map(|mount| (mount.src_path, mount.dst_path, mount.mode)).collect()
}

fn count(driver: &VolumeDriver, volume: &str) -> i64 {
    driver.mounts().get(volume).copied().unwrap_or(0)
}

#[tokio::test]
async fn a_volume_is_mounted_before_the_container_is_made_and_unmounted_after_it_is_gone() {
    let (cell, driver) = Cell::with_driver().await;
    let mut life = cell.begin_with(&["local"]).await;
    let read_only = VolumeMount { container_path: "/ro".into(), writable: false, ..volume("local", "w") };
    life.world.start("a", with_volumes("/app", &[volume("local", "v"), read_only]));
    life.world.expect(&["Reserved a", "Running a"]).await;
    let at = |volume: &str| driver.place(volume).display().to_string();
    assert_eq!(mounted(&life, "a"), [(at("v"), "/data".into(), 1), (at("w"), "/ro".into(), 0)]);
    assert_eq!(driver.acts(), ["Create v", "Mount v", "Create w", "Mount w"]);
    assert_eq!(driver.options("v"), json!({ "source": "nfs://share" }));
    life.world.garden.hold(Call::Destroy);
    let executor = life.world.executor.clone();
    let deleting = tokio::spawn(async move { executor.delete("a").await });
    let asked = || life.world.garden.calls().iter().any(|call| call.starts_with("destroy a"));
    until("garden is asked to destroy", asked).await;
    assert_eq!(driver.mounts().len(), 2, "while garden has the container");
    life.world.garden.release(Call::Destroy);
    deleting.await.unwrap().unwrap();
    assert_eq!(driver.acts()[4..], ["Unmount w", "Unmount v"]);
    assert!(driver.mounts().is_empty());
    life.end().await;
}

#[tokio::test]
async fn each_mount_is_told_of_with_its_driver() {
    let (cell, driver) = Cell::with_driver().await;
    let mut life = cell.begin_with(&["local"]).await;
    life.world.start("a", with_volumes("/app", &[volume("local", "v")]));
    life.world.expect(&["Reserved a", "Running a"]).await;
    driver.mood("Unmount", Some(Mood::Refuses("busy".into())));
    life.world.executor.delete("a").await.unwrap();
    life.world.start("b", with_volumes("/app", &[volume("nfs", "v")]));
    until("three attempts are told", || cell.told.0.lock().unwrap().len() == 3).await;
    let told = ["local: mount worked", "local: unmount failed", "nfs: mount failed"];
    assert_eq!(*cell.told.0.lock().unwrap(), told);
    life.end().await;
}

#[tokio::test]
async fn drivers_are_reached_in_every_way_that_they_are_found() {
    let cell = Cell::new();
    let dir = cell.drivers.path();
    let elsewhere = tempfile::tempdir().unwrap();
    let over_socket = VolumeDriver::at_socket(dir, "a-socket").await;
    let (over_http, address) = VolumeDriver::at_port(elsewhere.path()).await;
    cell.write("b-spec.spec", &format!("tcp://{address}\n"));
    let (over_tls, json) = over_tls(elsewhere.path()).await;
    cell.write("c-tls.json", &json);
    let mut life = cell.begin_with(&["a-socket", "b-spec", "c-tls"]).await;
    for (guid, name, driver) in
        [("a", "a-socket", over_socket), ("b", "b-spec", over_http), ("c", "c-tls", over_tls)]
    {
        life.world.start(guid, with_volumes("/task", &[volume(name, "v")]));
        let events = ["Reserved", "Running", "Completed"].map(|event| format!("{event} {guid}"));
        life.world.expect(&[&events[0], &events[1], &format!("{}: ", events[2])]).await;
        assert_eq!(driver.acts(), ["Create v", "Mount v"], "{name}");
        life.world.executor.delete(guid).await.unwrap();
        assert!(driver.mounts().is_empty(), "{name}");
    }
    life.end().await;
}

/// Both show certificates; the driver's own file says where.
async fn over_tls(dir: &Path) -> (VolumeDriver, String) {
    let authority_key = KeyPair::generate().unwrap();
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = authority.self_signed(&authority_key).unwrap().pem();
    let (issuer, key) = (Issuer::new(authority, authority_key), KeyPair::generate().unwrap());
    let mut both = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
    both.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let certificate = both.signed_by(&key, &issuer).unwrap().pem();
    let path = |name: &str| dir.join(name);
    for (name, pem) in [("ca", ca), ("cert", certificate), ("key", key.serialize_pem())] {
        std::fs::write(path(name), pem).unwrap();
    }
    let tls = Files { cert: path("cert"), key: path("key"), ca: Some(path("ca")) };
    let (listen, address) = Listen::loopback().unwrap();
    let driver =
        VolumeDriver::start(&path("tls-volumes"), listen, Some(ServerTls::load(&tls).unwrap())).await;
    let json = json!({
        "Name": "anything", "Addr": format!("https://{address}"),
        "TLSConfig": { "CAFile": path("ca"), "CertFile": path("cert"), "KeyFile": path("key") },
    });
    (driver, json.to_string())
}

#[tokio::test]
async fn a_volume_of_two_containers_stays_until_the_last_of_them_is_gone() {
    let (cell, driver) = Cell::with_driver().await;
    let mut life = cell.begin_with(&["local"]).await;
    for guid in ["a", "b"] {
        life.world.start(guid, with_volumes("/app", &[volume("local", "v")]));
        life.world.expect(&[&format!("Reserved {guid}"), &format!("Running {guid}")]).await;
    }
    assert_eq!(mounted(&life, "a"), mounted(&life, "b"));
    assert_eq!(count(&driver, "v"), 2);
    life.world.executor.delete("a").await.unwrap();
    assert_eq!(count(&driver, "v"), 1);
    life.world.executor.delete("b").await.unwrap();
    assert_eq!(count(&driver, "v"), 0);
    life.end().await;
}

#[tokio::test]
async fn a_driver_that_shares_no_volumes_gets_one_for_each_container() {
    let cell = Cell::new();
    let (driver, address) = VolumeDriver::at_port(cell.drivers.path()).await;
    cell.write("local.json", &json!({ "Addr": address, "UniqueVolumeIds": true }).to_string());
    let mut life = cell.begin_with(&["local"]).await;
    life.world.start("guid-1", with_volumes("/app", &[volume("local", "my_volume")]));
    life.world.expect(&["Reserved guid-1", "Running guid-1"]).await;
    assert_eq!(driver.mounts().into_keys().collect::<Vec<_>>(), ["my=volume_guid-1"]);
    life.world.executor.delete("guid-1").await.unwrap();
    assert!(driver.mounts().is_empty());
    life.end().await;
}

#[tokio::test]
async fn a_volume_that_cannot_be_mounted_says_why_and_may_be_tried_elsewhere() {
    let (cell, driver) = Cell::with_driver().await;
    let mut life = cell.begin_with(&["local"]).await;
    let status = StatusCode::OK;
    let rows = [
        ("a", "nfs", None, ", errors: Plugin 'nfs' not found in list of known plugins"),
        ("b", "local", Some(Mood::Refuses("password is secret".into())), ""),
        (
            "c",
            "local",
            Some(Mood::Refuses(r#"{"SafeDescription":"no such share"}"#.into())),
            ", errors: no such share",
        ),
        (
            "d",
            "local",
            Some(Mood::Says(status, "<html>".into())),
            ", errors: volume driver 'local' gave an answer that means nothing",
        ),
        (
            "e",
            "local",
            Some(Mood::Says(status, r#"{"Mountpoint":"data"}"#.into())),
            ", errors: volume driver 'local' gave an answer that means nothing",
        ),
        ("f", "local", Some(Mood::Says(StatusCode::NOT_FOUND, String::new())), ""),
    ];
    for (guid, name, mood, told) in rows {
        driver.mood("Mount", mood);
        life.world.start(guid, with_volumes("/app", &[volume("local", "first"), volume(name, "v")]));
        let failed = format!("Failed {guid}: failed to mount volume{told} (retryable)");
        life.world.expect(&[&format!("Reserved {guid}"), &failed]).await;
        assert!(life.world.garden.handles().is_empty(), "no container was made");
        life.world.executor.delete(guid).await.unwrap();
        assert!(driver.mounts().is_empty(), "{guid}: {:?}", driver.mounts());
    }
    life.end().await;
}

#[tokio::test]
async fn a_driver_that_hangs_fails_the_container_after_its_deadline() {
    let (cell, driver) = Cell::with_driver().await;
    // Once: later looks would run into their deadlines, too.
    let mut life = cell.begin_looking(Duration::from_secs(3600)).once_found(&["local"]).await;
    driver.mood("Mount", Some(Mood::Hangs));
    tokio::time::pause();
    life.world.start("a", with_volumes("/app", &[volume("local", "v")]));
    let failed = "Failed a: failed to mount volume, errors: volume driver 'local' did not answer within 60s (retryable)";
    life.world.expect(&["Reserved a", failed]).await;
    tokio::time::resume();
    life.world.executor.delete("a").await.unwrap();
    life.end().await;
}

#[tokio::test]
async fn what_a_hanging_driver_mounts_after_all_is_unmounted() {
    let (cell, driver) = Cell::with_driver().await;
    let mut life = cell.begin_with(&["local"]).await;
    driver.mood("Mount", Some(Mood::Hangs));
    life.world.start("a", with_volumes("/app", &[volume("local", "v")]));
    until("it is asked to mount", || driver.acts().contains(&"Mount v".into())).await;
    driver.has_mounted("v", 1);
    life.world.executor.stop("a").await.unwrap();
    life.world.expect(&["Reserved a", "Failed a: stopped-before-running (stopped)"]).await;
    life.world.executor.delete("a").await.unwrap();
    until("nothing is mounted", || driver.mounts().is_empty()).await;
    driver.mood("Mount", None);
    life.world.start("b", with_volumes("/app", &[volume("local", "v")]));
    life.world.expect(&["Reserved b", "Running b"]).await;
    assert_eq!(count(&driver, "v"), 1, "for the next one it works");
    life.end().await;
}

#[tokio::test]
async fn what_a_driver_did_not_unmount_is_unmounted_later_and_only_that() {
    let (cell, driver) = Cell::with_driver().await;
    let mut life = cell.begin_with(&["local"]).await;
    for guid in ["a", "b"] {
        life.world.start(guid, with_volumes("/app", &[volume("local", "v")]));
        life.world.expect(&[&format!("Reserved {guid}"), &format!("Running {guid}")]).await;
    }
    driver.mood("Unmount", Some(Mood::Refuses("busy".into())));
    life.world.executor.delete("a").await.unwrap();
    assert_eq!(count(&driver, "v"), 2, "the container is gone all the same");
    driver.mood("Unmount", None);
    until("it was unmounted once", || count(&driver, "v") == 1).await;
    let looked = driver.calls().len();
    until("it is looked again", || driver.calls().len() > looked + 2).await;
    assert_eq!(count(&driver, "v"), 1, "the other container has it");
    life.end().await;
}

#[tokio::test]
async fn volumes_of_running_containers_outlive_the_executor_and_others_do_not() {
    let (cell, driver) = Cell::with_driver().await;
    let mut first = cell.begin_with(&["local"]).await;
    first.world.start("runs", with_volumes("/app", &[volume("local", "shared"), volume("local", "own")]));
    first.world.expect(&["Reserved runs", "Running runs"]).await;
    first.world.start("ended", with_volumes("/task", &[volume("local", "shared")]));
    first.world.expect(&["Reserved ended", "Running ended", "Completed ended: "]).await;
    first.world.garden.hold(Call::Create);
    first.world.start("begun", with_volumes("/app", &[volume("local", "shared"), volume("local", "new")]));
    until("its volumes are mounted", || count(&driver, "new") == 1).await;
    assert_eq!(count(&driver, "shared"), 3);
    first.end().await;
    cell.garden.release(Call::Create);
    driver.has_mounted("a stranger's", 2);

    let second = cell.begin_with(&["local"]).await;
    assert_eq!(driver.mounts().into_iter().collect::<Vec<_>>(), [("own".into(), 1), ("shared".into(), 1)]);
    for guid in ["begun", "ended", "runs"] {
        assert_eq!(count(&driver, "shared"), 1, "before {guid} is deleted");
        second.world.executor.delete(guid).await.unwrap();
    }
    assert!(driver.mounts().is_empty());
    second.end().await;
}

#[tokio::test]
async fn a_driver_is_offered_while_it_answers() {
    let cell = Cell::new();
    let life = cell.begin();
    let offered = |drivers: &'static [&str]| {
        let executor = life.world.executor.clone();
        until("drivers are offered", move || executor.volume_drivers() == drivers)
    };
    let (one, address) = VolumeDriver::at_port(&cell.drivers.path().join("1")).await;
    cell.write("local.spec", &address.to_string());
    offered(&["local"]).await;
    one.mood("Activate", Some(Mood::Says(StatusCode::OK, r#"{"Implements":["NetworkDriver"]}"#.into())));
    offered(&[]).await;
    let (_two, address) = VolumeDriver::at_port(&cell.drivers.path().join("2")).await;
    cell.write("local.spec", &address.to_string());
    offered(&["local"]).await;
    std::fs::remove_file(cell.drivers.path().join("local.spec")).unwrap();
    offered(&[]).await;
    life.end().await;
}
