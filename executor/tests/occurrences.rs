//! What happens on a cell is told to whoever counts it, once for each time that it happened.

mod world;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bbs_models::{Check, CheckDefinition};
use executor::*;
use garden_client::memory::{Call, Script};
use world::*;

#[derive(Clone, Default)]
struct Record(Arc<Mutex<Vec<Occurrence>>>);

impl Witness for Record {
    fn saw(&self, occurrence: Occurrence) {
        self.0.lock().unwrap().push(occurrence);
    }
}

impl Record {
    /// Each in a word, since it was last asked.
    fn told(&self) -> Vec<String> {
        let word = |occurrence: &Occurrence| match occurrence {
            Occurrence::Create(attempt) => how("create", attempt),
            Occurrence::Destroy(attempt) => how("destroy", attempt),
            Occurrence::SetUp(attempt) => how("set up", attempt),
            Occurrence::InstanceIdentity(attempt) => how("identity", attempt),
            Occurrence::ContainerToContainer(attempt) => how("container-to-container", attempt),
            other => format!("{other:?}"),
        };
        self.0.lock().unwrap().drain(..).map(|occurrence| word(&occurrence)).collect()
    }
}

fn how(what: &str, attempt: &Attempt) -> String {
    format!("{what} {} in {}s", if attempt.failed { "failed" } else { "worked" }, attempt.took.as_secs())
}

fn watched(change: impl FnOnce(&mut Config)) -> (World, Record) {
    let record = Record::default();
    let witness = Arc::new(record.clone());
    let world = world_with(|config| {
        config.witness = witness;
        change(config);
    });
    (world, record)
}

#[tokio::test(start_paused = true)]
async fn a_containers_life_is_told_once() {
    let (mut world, record) = watched(|_| {});
    world.garden.script("/setup", Script::exits_after(Duration::from_secs(3), 0));
    world.garden.script("/app", Script::exits(0));
    world.start("a", RunInfo { setup: Some(action("/setup")), ..recipe("/app") });
    world.expect(&["Reserved a", "Running a", "Completed a: "]).await;
    assert_eq!(record.told(), ["create worked in 0s", "set up worked in 3s", "Completed"]);
    world.executor.delete("a").await.unwrap();
    assert_eq!(record.told(), ["destroy worked in 0s"]);
    // Nothing to set up is set up at once.
    world.start("b", recipe("/app"));
    world.expect(&["Reserved b", "Running b", "Completed b: "]).await;
    assert_eq!(record.told(), ["create worked in 0s", "set up worked in 0s", "Completed"]);
}

#[tokio::test(start_paused = true)]
async fn what_fails_is_told_as_failed() {
    let (mut world, record) = watched(|_| {});
    let refused = || garden_client::Error::Other("no".into());
    world.garden.fail(Call::Create, refused(), 1);
    world.start("a", recipe("/app"));
    world.expect(&["Reserved a", "Failed a: failed to create container: no (retryable)"]).await;
    assert_eq!(record.told(), ["create failed in 0s", "set up failed in 0s"]);
    world.garden.script("/setup", Script::exits_after(Duration::from_secs(2), 1));
    world.start("b", RunInfo { setup: Some(action("/setup")), ..recipe("/app") });
    world.expect(&["Reserved b", "Failed b: APP: Exited with status 1"]).await;
    assert_eq!(record.told(), ["create worked in 0s", "set up failed in 2s", "Completed"]);
    world.garden.fail(Call::Destroy, refused(), 1);
    assert!(world.executor.delete("b").await.is_err());
    world.executor.delete("b").await.unwrap();
    assert_eq!(record.told(), ["destroy failed in 0s", "destroy worked in 0s"]);
}

#[tokio::test(start_paused = true)]
async fn a_process_that_had_to_be_killed_is_told_of() {
    let (mut world, record) = watched(|_| {});
    world.garden.script("/app", Script::runs().ignores_terminate());
    world.start("a", recipe("/app"));
    world.expect(&["Reserved a", "Running a"]).await;
    record.told();
    world.executor.stop("a").await.unwrap();
    world.event().await;
    assert_eq!(record.told(), ["ExceededGracefulShutdown", "Completed"]);
    world.garden.script("/other", Script::runs());
    world.start("b", recipe("/other"));
    world.expect(&["Reserved b", "Running b"]).await;
    record.told();
    world.executor.stop("b").await.unwrap();
    world.event().await;
    assert_eq!(record.told(), ["Completed"]);
}

#[tokio::test]
async fn an_instance_found_unhealthy_is_told_of_by_what_found_it() {
    let (mut world, record) = watched(|_| {});
    world.garden.script("/app", Script::runs());
    let app = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let check =
        Check::Tcp { port: app.local_addr().unwrap().port(), connect_timeout_ms: 10_000, interval_ms: 20 };
    let definition = CheckDefinition { checks: vec![check], ..CheckDefinition::default() };
    world.start("a", RunInfo { check_definition: Some(definition), ..recipe("/app") });
    world.expect(&["Reserved a", "Running a"]).await;
    record.told();
    drop(app);
    world.event().await;
    assert_eq!(record.told(), ["LivenessCheckFailed(Tcp)", "Completed"]);
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_says_too_much_is_told_of_once() {
    let (mut world, record) = watched(|_| {});
    world.garden.script("/app", Script::exits(0).out("12345678\n12345678\n12345678\n"));
    world.start("a", RunInfo { log_rate_limit_bytes_per_second: 10, ..recipe("/app") });
    world.expect(&["Reserved a", "Running a", "Completed a: "]).await;
    let exceeded = record.told().into_iter().filter(|told| told == "LogRateExceeded").count();
    assert_eq!(exceeded, 1);
}

#[tokio::test]
async fn certificates_are_counted_as_they_are_issued() {
    let (mut world, record) = watched(|config| {
        let authority = InstanceIdentity::new_authority().unwrap();
        config.instance_identity = InstanceIdentity::of(&authority);
    });
    world.garden.script("/app", Script::exits(0));
    world.start("a", recipe("/app"));
    world.expect(&["Reserved a", "Running a", "Completed a: "]).await;
    let told = record.told();
    assert_eq!(told.iter().filter(|told| told.starts_with("identity worked")).count(), 1, "{told:?}");
}
