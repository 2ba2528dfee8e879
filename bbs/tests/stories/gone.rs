//! What is there already, and what is there no more: the types of errors that clients decide on.

use bbs_models::{DesiredLrpUpdate, ImageCredentials, MetricTagValue, TaskOutcome, wire};
use prost::Message;

use crate::calls::{ACCEPTED, Calls};
use crate::world::{World, key, lrp, on, task_definition};

const NOT_FOUND: &str = "ResourceNotFound: the requested resource could not be found";
const EXISTS: &str = "ResourceExists: the requested resource already exists";

fn desire_task(task_guid: &str, domain: &str) -> Vec<u8> {
    let task_definition = Some(task_definition().into());
    let (task_guid, domain) = (task_guid.into(), domain.into());
    wire::DesireTaskRequest { task_guid, domain, task_definition }.encode_to_vec()
}

#[tokio::test]
async fn a_guid_is_given_once() {
    let world = World::new().await;
    let calls = Calls::of(&world);
    let desire = |domain: &str, instances| {
        let lrp = wire::DesiredLrp { domain: domain.into(), ..lrp("app", instances).into() };
        wire::DesireLrpRequest { desired_lrp: Some(lrp) }.encode_to_vec()
    };
    let path = "/v1/desired_lrp/desire.r2";
    assert_eq!(calls.say(path, desire("tests", 1)).await, ACCEPTED);
    assert_eq!(calls.say(path, desire("tests", 1)).await, EXISTS);
    assert_eq!(calls.say(path, desire("other", 5)).await, EXISTS, "a domain is no part of the name");
    assert_eq!(world.lrps("app").await.len(), 1);
    let path = "/v1/tasks/desire.r2";
    assert_eq!(calls.say(path, desire_task("task", "tests")).await, ACCEPTED);
    assert_eq!(calls.say(path, desire_task("task", "tests")).await, EXISTS);
    assert_eq!(calls.say(path, desire_task("task", "other")).await, EXISTS);
    assert_eq!(calls.say(path, desire_task("app", "tests")).await, ACCEPTED, "LRPs and Tasks share no names");
}

#[tokio::test]
async fn of_the_same_guid_at_the_same_time_one_is_accepted() {
    let world = World::new().await;
    let calls = Calls::of(&world);
    let all = futures_util::future::join_all(
        (0..32).map(|_| calls.say("/v1/tasks/desire.r2", desire_task("task", "tests"))),
    )
    .await;
    assert_eq!(all.iter().filter(|said| *said == ACCEPTED).count(), 1);
    assert_eq!(all.iter().filter(|said| *said == EXISTS).count(), 31);
}

#[tokio::test]
async fn what_is_gone_cannot_be_found() {
    let world = World::new().await;
    let calls = Calls::of(&world);
    let guid = || wire::ProcessGuidRequest { process_guid: "app".into() }.encode_to_vec();
    let task = || wire::TaskGuidRequest { task_guid: "task".into() }.encode_to_vec();
    let reason = || wire::TaskReasonRequest { task_guid: "task".into(), reason: "r".into() }.encode_to_vec();
    let (key, instance) = (key("app", 0), on("cell-1", "i-0"));
    let indexed = || wire::IndexedInstanceRequest::new("app", 0, Some(&instance)).encode_to_vec();
    let both = || wire::InstanceRequest::new(&key, &instance).encode_to_vec();
    let crash = || wire::CrashActualLrpRequest::new(&key, &instance, "r").encode_to_vec();
    let retire = wire::RetireActualLrpRequest { actual_lrp_key: Some(key.clone().into()) };
    let index = wire::ActualLrpGroupByProcessGuidAndIndexRequest { process_guid: "app".into(), index: 0 };
    let update =
        wire::UpdateDesiredLrpRequest { process_guid: "app".into(), update: Some(Default::default()) };
    let start = wire::StartTaskRequest { task_guid: "task".into(), cell_id: "c".into() };
    let outcome = TaskOutcome::Succeeded { result: String::new() };
    let complete = wire::CompleteTaskRequest::new("task", "c", outcome);
    let cases = [
        ("/v1/desired_lrps/get_by_process_guid.r2", guid()),
        ("/v1/desired_lrps/get_by_process_guid.r3", guid()),
        ("/v1/desired_lrp_scheduling_infos/get_by_process_guid", guid()),
        ("/v1/desired_lrp/update", update.encode_to_vec()),
        ("/v1/desired_lrp/remove", guid()),
        ("/v1/actual_lrp_groups/get_by_process_guid_and_index", index.encode_to_vec()),
        ("/v1/actual_lrps/claim", indexed()),
        ("/v1/actual_lrps/crash", crash()),
        ("/v1/actual_lrps/remove", indexed()),
        ("/v1/actual_lrps/retire", retire.encode_to_vec()),
        ("/v1/actual_lrps/remove_evacuating", both()),
        ("/v1/actual_lrps/evacuate_claimed", both()),
        ("/v1/actual_lrps/evacuate_crashed", crash()),
        ("/v1/actual_lrps/evacuate_stopped", both()),
        ("/v1/tasks/get_by_task_guid.r2", task()),
        ("/v1/tasks/get_by_task_guid.r3", task()),
        ("/v1/tasks/start", start.encode_to_vec()),
        ("/v1/tasks/cancel", task()),
        ("/v1/tasks/fail", reason()),
        ("/v1/tasks/reject", reason()),
        ("/v1/tasks/complete", complete.encode_to_vec()),
        ("/v1/tasks/resolving", task()),
        ("/v1/tasks/delete", task()),
    ];
    for there in [false, true] {
        if there {
            world.bbs().desire_lrp(&lrp("app", 1)).await.unwrap();
            world.bbs().remove_desired_lrp("app").await.unwrap();
            world.bbs().desire_task("task", "tests", &crate::world::task_definition()).await.unwrap();
            world.bbs().cancel_task("task").await.unwrap();
            world.bbs().resolving_task("task").await.unwrap();
            world.bbs().delete_task("task").await.unwrap();
        }
        for (path, body) in &cases {
            assert_eq!(calls.say(path, body.clone()).await, NOT_FOUND, "{path}, was there once: {there}");
        }
    }
}

#[tokio::test]
async fn what_needs_nothing_to_be_there_is_accepted_without() {
    let world = World::new().await;
    let calls = Calls::of(&world);
    let fail =
        wire::FailActualLrpRequest { actual_lrp_key: Some(key("app", 0).into()), error_message: "r".into() };
    assert_eq!(calls.say("/v1/actual_lrps/fail", fail.encode_to_vec()).await, ACCEPTED);
    let guids = wire::ActualLrpsByProcessGuidsRequest { process_guids: vec!["app".into()] };
    assert_eq!(calls.say("/v1/actual_lrps/list_by_process_guids", guids.encode_to_vec()).await, ACCEPTED);
    let filter = wire::ActualLrpsRequest { index: Some(-1), ..Default::default() };
    assert_eq!(calls.say("/v1/actual_lrps/list", filter.encode_to_vec()).await, ACCEPTED);
    // A cell knows best what it runs.
    let start = wire::StartActualLrpRequest {
        actual_lrp_key: Some(key("app", 0).into()),
        actual_lrp_instance_key: Some(on("cell-1", "i-0").into()),
        actual_lrp_net_info: Some(wire::ActualLrpNetInfo { address: "a".into(), ..Default::default() }),
        ..Default::default()
    };
    assert_eq!(calls.say("/v1/actual_lrps/start.r1", start.encode_to_vec()).await, ACCEPTED);
    assert_eq!(world.picture("app").await, "0:RUNNING@cell-1");
}

/// It kept an LRP from being valid, and the whole database from being read, that its tags were updated without the source
/// id that its metrics guid named.
#[tokio::test]
async fn an_updated_lrp_can_be_read_by_whoever_starts_next() {
    let mut world = World::new().await;
    let mut old = lrp("app", 1);
    old.metrics_guid = "metrics".into();
    world.bbs().desire_lrp(&old).await.unwrap();
    let tags = |name: &str, value: MetricTagValue| Some([(name.to_string(), value)].into());
    let updates = [
        (tags("a", MetricTagValue::Static("b".into())), "metrics"),
        (tags("source_id", MetricTagValue::Static("other".into())), "other"),
        (tags("a", MetricTagValue::Index), "other"),
        (tags("source_id", MetricTagValue::InstanceGuid), ""),
    ];
    for (metric_tags, metrics_guid) in updates {
        let image_credentials = Some(ImageCredentials { username: "u".into(), password: "p".into() });
        let update = DesiredLrpUpdate { metric_tags, image_credentials, ..Default::default() };
        world.bbs().update_desired_lrp("app", &update).await.unwrap();
        let before = world.bbs().desired_lrp_by_process_guid("app").await.unwrap();
        assert_eq!(before.metrics_guid, metrics_guid);
        world.stop().await;
        world.start().await;
        assert_eq!(world.bbs().desired_lrp_by_process_guid("app").await.unwrap(), before);
    }
}
