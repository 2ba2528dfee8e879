//! Stories about Tasks, over HTTP.

use std::sync::{Arc, Mutex};

use crate::world::{World, eventually, task_definition};
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use bbs_models::{ErrorKind, TaskCallback, TaskDefinition, TaskOutcome, TaskState};
use diego_base::serve::{Listen, Listener, serve};
use futures_util::StreamExt;
use tokio_util::sync::CancellationToken;

/// A Task's client: it notes what it is told, and answers with one status after the other, the last one for ever.
async fn callback_server(statuses: &[u16]) -> (String, Arc<Mutex<Vec<TaskCallback>>>) {
    let (listen, address) = Listen::loopback().unwrap();
    let told: Arc<Mutex<Vec<TaskCallback>>> = Arc::default();
    let (noted, statuses) = (told.clone(), statuses.to_vec());
    let handler = move |Json(callback): Json<TaskCallback>| async move {
        let mut noted = noted.lock().unwrap();
        noted.push(callback);
        StatusCode::from_u16(statuses[(noted.len() - 1).min(statuses.len() - 1)]).unwrap()
    };
    let listener = Listener::bind(listen).await.unwrap();
    let router = Router::new().route("/done", post(handler));
    tokio::spawn(serve(listener, router, None, CancellationToken::new()));
    (format!("http://{address}/done"), told)
}

fn with_callback(url: &str) -> TaskDefinition {
    TaskDefinition { completion_callback_url: url.into(), annotation: "my note".into(), ..task_definition() }
}

async fn state(world: &World) -> Option<TaskState> {
    world.bbs().task_by_guid("t").await.ok().map(|task| task.state)
}

#[tokio::test]
async fn a_task_runs_once_and_its_client_is_told() {
    let (url, told) = callback_server(&[503, 504, 200]).await;
    let world = World::new().await;
    world.set_cells(&["cell-1"]);
    let mut events = world.bbs().subscribe_to_task_events().await.unwrap();
    let bbs = world.bbs();
    bbs.desire_task("t", "tests", &with_callback(&url)).await.unwrap();
    world.auctioned(&["task t"]).await;
    assert!(bbs.start_task("t", "cell-1").await.unwrap());
    assert!(!bbs.start_task("t", "cell-1").await.unwrap(), "it was told before");
    let other = bbs.start_task("t", "cell-2").await.unwrap_err();
    assert_eq!(other.to_string(), "Cannot transition from Running to Running");
    let other = bbs.complete_task("t", "cell-2", false, "", "x").await.unwrap_err();
    assert_eq!(other.kind(), Some(ErrorKind::RunningOnDifferentCell));
    assert_eq!(other.to_string(), "Running on cell cell-1 not cell-2");
    bbs.complete_task("t", "cell-1", false, "", "42").await.unwrap();
    eventually("the Task is forgotten", async || state(&world).await.is_none()).await;
    assert_eq!(world.counted(), ["started cell-1", "ended cell-1"]);
    let told = told.lock().unwrap().clone();
    assert_eq!(told.len(), 3, "two answers said: later");
    assert_eq!((told[2].result.as_str(), told[2].failed), ("42", false));
    assert_eq!((told[2].task_guid.as_str(), told[2].annotation.as_str()), ("t", "my note"));
    for expected in ["created", "changed", "changed", "changed", "removed"] {
        let event = events.next().await.unwrap().unwrap();
        assert_eq!(event.event_type(), format!("task_{expected}"));
    }
}

#[tokio::test]
async fn a_client_that_is_away_is_told_later() {
    let (url, told) = callback_server(&[503, 503, 503, 200]).await;
    let world = World::new().await;
    world.set_cells(&["cell-1"]);
    world.bbs().desire_task("t", "tests", &with_callback(&url)).await.unwrap();
    world.bbs().start_task("t", "cell-1").await.unwrap();
    world.bbs().complete_task("t", "cell-1", true, "out of luck", "").await.unwrap();
    assert_eq!(world.counted(), ["started cell-1", "failed cell-1"]);
    eventually("three attempts", async || told.lock().unwrap().len() == 3).await;
    assert!(matches!(state(&world).await, Some(TaskState::Resolving(_))));
    world.advance(31);
    eventually("the Task is forgotten", async || state(&world).await.is_none()).await;
    assert_eq!(told.lock().unwrap()[3].failure_reason, "out of luck");
}

#[tokio::test]
async fn a_cancelled_task_fails_and_its_cell_is_told() {
    let world = World::new().await;
    world.set_cells(&["cell-1"]);
    world.bbs().desire_task("t", "tests", &task_definition()).await.unwrap();
    world.bbs().start_task("t", "cell-1").await.unwrap();
    world.bbs().cancel_task("t").await.unwrap();
    world.told(&["cancel cell-1 t"]).await;
    let task = world.bbs().task_by_guid("t").await.unwrap();
    let reason = "task was cancelled".to_string();
    assert_eq!(task.outcome(), Some(&TaskOutcome::Failed { reason }));
    let again = world.bbs().cancel_task("t").await.unwrap_err();
    assert_eq!(again.to_string(), "Cannot transition from Completed to Completed");
}

#[tokio::test]
async fn a_rejected_task_waits_again_until_it_was_rejected_too_often() {
    let world = World::new().await;
    world.bbs().desire_task("t", "tests", &task_definition()).await.unwrap();
    for _ in 0..3 {
        world.bbs().reject_task("t", "insufficient resources: memory").await.unwrap();
        assert_eq!(state(&world).await, Some(TaskState::Pending));
    }
    world.bbs().reject_task("t", "insufficient resources: memory").await.unwrap();
    let task = world.bbs().task_by_guid("t").await.unwrap();
    let reason = "insufficient resources: memory".to_string();
    assert_eq!((task.outcome(), task.rejection_count), (Some(&TaskOutcome::Failed { reason }), 4));
}

#[tokio::test]
async fn a_task_whose_client_asks_is_resolved_and_deleted_by_it() {
    let world = World::new().await;
    world.set_cells(&["cell-1"]);
    let bbs = world.bbs();
    bbs.desire_task("t", "tests", &task_definition()).await.unwrap();
    assert!(bbs.desire_task("t", "tests", &task_definition()).await.is_err());
    let early = bbs.resolving_task("t").await.unwrap_err();
    assert_eq!(early.to_string(), "Cannot transition from Pending to Resolving");
    bbs.start_task("t", "cell-1").await.unwrap();
    bbs.complete_task("t", "cell-1", false, "", "42").await.unwrap();
    bbs.resolving_task("t").await.unwrap();
    assert!(bbs.resolving_task("t").await.is_err(), "only one resolves it");
    bbs.delete_task("t").await.unwrap();
    assert!(bbs.task_by_guid("t").await.unwrap_err().is_not_found());
}

#[tokio::test]
async fn a_task_of_a_lost_cell_fails() {
    let world = World::new().await;
    world.set_cells(&["cell-1"]);
    world.bbs().desire_task("t", "tests", &task_definition()).await.unwrap();
    world.bbs().start_task("t", "cell-1").await.unwrap();
    world.set_cells(&[]);
    eventually("it ends", async || matches!(state(&world).await, Some(TaskState::Completed(_)))).await;
    let task = world.bbs().task_by_guid("t").await.unwrap();
    let reason = "cell disappeared before completion".to_string();
    assert_eq!(task.outcome(), Some(&TaskOutcome::Failed { reason }));
    world.advance(121);
    eventually("it is forgotten", async || state(&world).await.is_none()).await;
}

#[tokio::test]
async fn a_task_that_nobody_takes_is_auctioned_again_and_fails_in_the_end() {
    let world = World::new().await;
    world.bbs().desire_task("t", "tests", &task_definition()).await.unwrap();
    world.auctioned(&["task t"]).await;
    world.advance(31);
    eventually("another auction", async || !world.take_auctions().is_empty()).await;
    world.advance(1800);
    eventually("it ends", async || matches!(state(&world).await, Some(TaskState::Completed(_)))).await;
    let task = world.bbs().task_by_guid("t").await.unwrap();
    let reason = "not started within time limit".to_string();
    assert_eq!(task.outcome(), Some(&TaskOutcome::Failed { reason }));
}
