//! What the API says to what is not a proper call.

use crate::world::{World, key, lrp, on, task_definition};
use bbs_models::{ActualLrpGroup, DesiredLrp, ErrorKind, wire};
use prost::Message;

async fn post(world: &World, path: &str, body: Vec<u8>) -> reqwest::Response {
    let client = diego_base::http::client(&Default::default()).unwrap();
    client.post(format!("{}{path}", world.url())).body(body).send().await.unwrap()
}

async fn error(response: reqwest::Response) -> (i32, String) {
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "application/x-protobuf");
    let body = response.bytes().await.unwrap();
    let error = wire::LifecycleResponse::decode(body).unwrap().error.expect("an error");
    (error.kind, error.message)
}

const INVALID_REQUEST: i32 = 4;

#[tokio::test]
async fn an_unknown_route_is_not_found_and_a_wrong_method_not_allowed() {
    let world = World::new().await;
    assert_eq!(post(&world, "/v1/nothing", vec![]).await.status(), 404);
    let client = diego_base::http::client(&Default::default()).unwrap();
    let get = client.get(format!("{}/v1/ping", world.url())).send().await.unwrap();
    assert_eq!(get.status(), 405);
}

#[tokio::test]
async fn garbage_is_an_invalid_request() {
    let world = World::new().await;
    for path in [
        "/v1/desired_lrp/desire.r2",
        "/v1/desired_lrps/list.r3",
        "/v1/actual_lrps/list",
        "/v1/actual_lrps/claim",
        "/v1/actual_lrps/start.r1",
        "/v1/actual_lrps/evacuate_running.r1",
        "/v1/tasks/desire.r2",
        "/v1/tasks/complete",
        "/v1/domains/upsert",
    ] {
        let refusal = error(post(&world, path, vec![0xff; 64]).await).await;
        assert_eq!(refusal, (INVALID_REQUEST, "the request received is invalid".into()), "{path}");
    }
}

#[tokio::test]
async fn an_invalid_request_names_its_faults() {
    let world = World::new().await;
    for (path, expected) in [
        ("/v1/desired_lrp/desire.r2", "Invalid field: desired_lrp"),
        ("/v1/desired_lrp/remove", "Invalid field: process_guid"),
        ("/v1/actual_lrps/claim", "Invalid field: process_guid, Invalid field: actual_lrp_instance_key"),
        ("/v1/tasks/start", "Invalid field: task_guid, Invalid field: cell_id"),
        ("/v1/domains/upsert", "Invalid field: domain"),
    ] {
        let refusal = error(post(&world, path, vec![]).await).await;
        assert_eq!(refusal, (INVALID_REQUEST, expected.into()), "{path}");
    }
}

#[tokio::test]
async fn a_body_that_is_too_large_is_refused_unread() {
    let world = World::new().await;
    let response = post(&world, "/v1/desired_lrp/desire.r2", vec![0; 17 * 1024 * 1024]).await;
    assert_eq!(response.status(), 413);
}

#[tokio::test]
async fn old_routes_of_groups_answer() {
    let world = World::new().await;
    world.bbs().desire_lrp(&lrp("app", 2)).await.unwrap();
    world.bbs().desire_lrp(&lrp("other", 1)).await.unwrap();
    world.bbs().claim_actual_lrp(&key("app", 1), &on("cell-1", "i")).await.unwrap();
    let keys = |groups: Vec<ActualLrpGroup>| -> Vec<String> {
        let instance = |group: ActualLrpGroup| group.instance.unwrap().key;
        groups.into_iter().map(instance).map(|key| format!("{}/{}", key.process_guid, key.index)).collect()
    };
    assert_eq!(keys(world.bbs().actual_lrp_groups("", "").await.unwrap()), ["app/0", "app/1", "other/0"]);
    assert_eq!(keys(world.bbs().actual_lrp_groups("tests", "cell-1").await.unwrap()), ["app/1"]);
    assert_eq!(keys(world.bbs().actual_lrp_groups("nobody's", "").await.unwrap()), [""; 0]);
    assert_eq!(keys(world.bbs().actual_lrp_groups_of("app").await.unwrap()), ["app/0", "app/1"]);
    assert_eq!(keys(vec![world.bbs().actual_lrp_group("app", 1).await.unwrap()]), ["app/1"]);
    let missing = world.bbs().actual_lrp_group("app", 9).await.unwrap_err();
    assert_eq!(missing.kind(), Some(ErrorKind::ResourceNotFound));
}

#[tokio::test]
async fn cells_and_domains_are_listed() {
    let world = World::new().await;
    world.set_cells(&["cell-1", "cell-2"]);
    let ids: Vec<String> = world.bbs().cells().await.unwrap().into_iter().map(|cell| cell.cell_id).collect();
    assert_eq!(ids, ["cell-1", "cell-2"]);
    world.bbs().upsert_domain("tests", Some(std::time::Duration::from_secs(60))).await.unwrap();
    assert_eq!(world.bbs().domains().await.unwrap(), ["tests"]);
    world.advance(61);
    assert!(world.bbs().domains().await.unwrap().is_empty(), "it is stale");
}

#[tokio::test]
async fn names_that_fit_no_column_are_refused_alone() {
    let world = World::new().await;
    let (long, zero) = ("d".repeat(256), "d\0".to_string());
    for name in [&long, &zero] {
        let [domain, lrp, task] = tokio::join!(
            async { world.bbs().upsert_domain(name, None).await.err() },
            async {
                world.bbs().desire_lrp(&DesiredLrp { domain: name.clone(), ..lrp("bad", 1) }).await.err()
            },
            async { world.bbs().desire_task("bad", name, &task_definition()).await.err() },
        )
        .into();
        for error in [domain, lrp, task] {
            let text = format!("{:?}", error.expect("a refusal"));
            assert!(text.contains("InvalidRequest"), "{text}");
        }
        assert!(world.bbs().desire_task("good", "tests", &task_definition()).await.is_ok());
        world.bbs().cancel_task("good").await.unwrap();
        world.bbs().resolving_task("good").await.unwrap();
        world.bbs().delete_task("good").await.unwrap();
    }
    world.bbs().upsert_domain(&"é".repeat(255), None).await.unwrap();
}
