//! The client against a server that answers what a test wants, so that what it does about answers can be told.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use bbs_client::{BbsClient, Error, StartedLrp, TRACE_HEADER, paths};
use bbs_models::wire::{self, encode_event};
use bbs_models::{ActualLrp, ActualLrpInstanceKey, ActualLrpKey, ActualLrpNetInfo, ErrorKind, Event};
use futures_util::StreamExt;
use prost::Message;

/// What the server was asked and how often.
type Answer = Arc<dyn Fn(usize, &str, &HeaderMap, Bytes) -> Response + Send + Sync>;

/// A server that answers every path by `answer`, which is told the number of the request, from 0.
async fn served(
    answer: impl Fn(usize, &str, &HeaderMap, Bytes) -> Response + Send + Sync + 'static,
) -> (BbsClient, Arc<AtomicUsize>) {
    let (answer, asked): (Answer, _) = (Arc::new(answer), Arc::new(AtomicUsize::new(0)));
    let count = asked.clone();
    let router = Router::new().fallback(move |uri: axum::http::Uri, headers: HeaderMap, body: Bytes| {
        let (answer, number) = (answer.clone(), count.fetch_add(1, Ordering::SeqCst));
        async move { answer(number, uri.path(), &headers, body) }
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    (BbsClient::new(&url, &Default::default()).unwrap(), asked)
}

fn protobuf(message: impl Message) -> Response {
    ([(header::CONTENT_TYPE, "application/x-protobuf")], message.encode_to_vec()).into_response()
}

fn key() -> ActualLrpKey {
    ActualLrpKey::new("p", 0, "d")
}

fn instance() -> ActualLrpInstanceKey {
    ActualLrpInstanceKey::new("i", "c")
}

#[tokio::test]
async fn a_refusal_keeps_its_kind_and_is_not_asked_for_again() {
    let (client, asked) = served(|_, path, headers, body| {
        assert_eq!(path, "/v1/actual_lrps/claim");
        assert_eq!(headers[header::CONTENT_TYPE], "application/x-protobuf");
        assert_eq!(headers[TRACE_HEADER], "trace");
        let request = wire::IndexedInstanceRequest::decode(body).unwrap();
        assert_eq!(request.parse_claim().unwrap(), ("p".to_string(), 0, instance()));
        let error = Some(bbs_models::Error::cannot_be_claimed().into());
        protobuf(wire::LifecycleResponse { error })
    })
    .await;
    let error = client.traced("trace").claim_actual_lrp(&key(), &instance()).await.unwrap_err();
    assert_eq!(error.kind(), Some(ErrorKind::ActualLrpCannotBeClaimed));
    assert_eq!(error.to_string(), "cannot claim actual LRP");
    assert_eq!(asked.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn what_no_bbs_may_answer_is_refused_but_not_by_whoever_shows_what_there_is() {
    let (client, _) = served(|_, _, _, _| {
        let task = wire::Task { task_guid: "t".into(), ..Default::default() };
        protobuf(wire::TaskResponse { error: None, task: Some(task) })
    })
    .await;
    let error = client.task_by_guid("t").await.unwrap_err();
    assert!(matches!(error, Error::Invalid { path: paths::TASK, .. }), "{error:?}");
    assert_eq!(client.raw().task("t".into()).await.unwrap().unwrap().task_guid, "t");
}

#[tokio::test]
async fn an_event_that_says_nothing_is_shown_to_whoever_shows_what_there_is() {
    let events = "id: 0\nevent: volcano\ndata: \n\nid: 1\nevent: task_removed\ndata: \n\n";
    let (client, _) =
        served(move |_, _, _, _| ([(header::CONTENT_TYPE, "text/event-stream")], events).into_response())
            .await;
    let shown: Vec<_> = client.raw().task_events().await.unwrap().collect().await;
    let shown: Vec<String> =
        shown.into_iter().map(|event| serde_json::to_string(&event.unwrap()).unwrap()).collect();
    assert_eq!(shown, [r#"{"type":"task_removed","data":{}}"#]);
    let mut parsed = client.subscribe_to_task_events().await.unwrap();
    assert!(matches!(parsed.next().await, Some(Err(Error::Event(_)))));
}

#[tokio::test]
async fn a_broken_answer_is_asked_for_three_times() {
    let (client, asked) = served(|_, _, _, _| StatusCode::BAD_GATEWAY.into_response()).await;
    let error = client.domains().await.unwrap_err();
    assert!(matches!(error, Error::Status { path: paths::DOMAINS, status: 502 }), "{error:?}");
    assert_eq!(error.kind(), None);
    assert_eq!(asked.load(Ordering::SeqCst), 3);

    let (client, _) = served(|number, _, _, _| match number {
        0 => StatusCode::SERVICE_UNAVAILABLE.into_response(),
        1 => ([("X-Cf-Routererror", "unknown_route")], StatusCode::NOT_FOUND).into_response(),
        _ => protobuf(wire::DomainsResponse { error: None, domains: vec!["d".into()] }),
    })
    .await;
    assert_eq!(client.domains().await.unwrap(), ["d"]);
}

#[tokio::test]
async fn nobody_there_is_an_error_without_a_kind() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let error = BbsClient::new(&url, &Default::default()).unwrap().ping().await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { path: paths::PING, .. }), "{error:?}");
}

#[tokio::test]
async fn an_older_bbs_is_told_what_it_knows() {
    let (client, asked) = served(|_, path, _, body| match path {
        paths::START_ACTUAL_LRP => StatusCode::NOT_FOUND.into_response(),
        path => {
            assert_eq!(path, paths::START_ACTUAL_LRP_R0);
            let request = wire::StartActualLrpRequest::decode(body).unwrap().parse().unwrap();
            assert_eq!((request.net_info.address.as_str(), request.routable), ("10.0.0.1", None));
            assert!(request.internal_routes.is_empty() && request.metric_tags.is_empty());
            protobuf(wire::LifecycleResponse::default())
        }
    })
    .await;
    let started = StartedLrp {
        net_info: ActualLrpNetInfo { address: "10.0.0.1".into(), ..Default::default() },
        internal_routes: vec!["h".into()],
        routable: true,
        ..StartedLrp::default()
    };
    client.start_actual_lrp(&key(), &instance(), &started).await.unwrap();
    assert_eq!(asked.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn an_answer_that_lacks_what_was_asked_for_is_an_error() {
    let (client, _) = served(|_, _, _, _| protobuf(wire::TaskResponse::default())).await;
    let error = client.task_by_guid("t").await.unwrap_err();
    assert_eq!(error.to_string(), "the BBS's answer to /v1/tasks/get_by_task_guid.r3 lacks its task");
    let (client, _) = served(|_, _, _, _| {
        protobuf(wire::ActualLrpsResponse { error: None, actual_lrps: vec![Default::default()] })
    })
    .await;
    let error = client.actual_lrps(&Default::default()).await.unwrap_err();
    assert!(matches!(error, Error::Invalid { path: paths::ACTUAL_LRPS, .. }), "{error:?}");
}

fn sse(id: usize, name: &str, data: &str) -> String {
    format!("id: {id}\nevent: {name}\ndata: {data}\n\n")
}

#[tokio::test]
async fn a_stream_gives_events_and_ends_with_its_connection() {
    let created = Event::ActualLrpInstanceCreated {
        lrp: Box::new(ActualLrp::unclaimed(key(), 5)),
        trace_id: "trace".into(),
    };
    let payload = base64::engine::general_purpose::STANDARD.encode(encode_event(&created));
    let body = [
        sse(0, "actual_lrp_instance_created", &payload),
        sse(1, "from_the_future", "YWJj"),
        sse(2, "task_created", "****"),
        sse(3, "actual_lrp_instance_created", &payload),
    ];
    let (client, _) = served(move |_, path, _, request| {
        assert_eq!(path, paths::INSTANCE_EVENTS);
        assert_eq!(wire::EventsByCellId::decode(request).unwrap().cell_id, "c");
        ([(header::CONTENT_TYPE, "text/event-stream; charset=utf-8")], body.concat()).into_response()
    })
    .await;
    let mut events = client.subscribe_to_instance_events_by_cell_id("c").await.unwrap();
    assert_eq!(events.next().await.unwrap().unwrap(), created);
    assert!(matches!(events.next().await.unwrap(), Err(Error::Stream { .. })));
    assert_eq!(events.next().await.unwrap().unwrap(), created);
    assert!(events.next().await.is_none());
    assert!(events.next().await.is_none());
}

#[tokio::test]
async fn a_stream_that_is_refused_is_an_error_at_once() {
    let (client, asked) = served(|_, _, _, _| StatusCode::UNAUTHORIZED.into_response()).await;
    let error = client.subscribe_to_task_events().await.err().unwrap();
    assert!(matches!(error, Error::Status { path: paths::TASK_EVENTS, status: 401 }), "{error:?}");
    assert_eq!(asked.load(Ordering::SeqCst), 1);
}
