//! Event streams: server-sent events, each with a number, a type, and a protobuf message in base64.

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bbs_models::{Event, wire};
use futures_util::{StreamExt, stream};
use prost::Message;

use super::views::{self, Revision};
use super::{Call, Served};
use crate::hub::{Published, Subscription, Topic};

const GROUPS: &[Topic] = &[Topic::DesiredLrps, Topic::Groups];
const INSTANCES: &[Topic] = &[Topic::DesiredLrps, Topic::Instances];
const TASKS: &[Topic] = &[Topic::Tasks];

pub fn routes() -> Router<Served> {
    Router::new()
        .route("/v1/events", stream_of(GROUPS, Revision::Old))
        .route("/v1/events.r1", stream_of(GROUPS, Revision::Current))
        .route("/v1/events/lrp_instances", stream_of(INSTANCES, Revision::Old))
        .route("/v1/events/lrp_instances.r1", stream_of(INSTANCES, Revision::Current))
        .route("/v1/events/tasks", stream_of(TASKS, Revision::Old))
        .route("/v1/events/tasks.r1", stream_of(TASKS, Revision::Current))
}

fn stream_of(topics: &'static [Topic], revision: Revision) -> MethodRouter<Served> {
    let handler = move |State(served): State<Served>, call: Call| async move {
        subscribe(&served, &call, topics, revision)
    };
    get(handler).post(handler)
}

struct Stream {
    subscription: Subscription,
    /// Only what concerns this cell; empty: everything.
    cell_id: String,
    revision: Revision,
    number: u64,
}

fn subscribe(served: &Served, call: &Call, topics: &'static [Topic], revision: Revision) -> Response {
    let Ok(request) = wire::EventsByCellId::decode(call.body.clone()) else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    let stream = Stream {
        subscription: served.controllers.board.hub().subscribe(topics),
        cell_id: request.cell_id,
        revision,
        number: 0,
    };
    tracing::info!(route = %call.path, cell_id = %stream.cell_id, "subscribed");
    let body = stream::unfold(stream, |mut stream| async {
        let frame = stream.next().await?;
        Some((Ok::<_, std::convert::Infallible>(frame), stream))
    });
    let body = body.take_until(served.shutdown.clone().cancelled_owned());
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream; charset=utf-8"),
        (header::CACHE_CONTROL, "no-cache, no-store, must-revalidate"),
    ];
    (headers, Body::from_stream(body)).into_response()
}

impl Stream {
    async fn next(&mut self) -> Option<String> {
        loop {
            match self.subscription.next().await {
                Ok(published) if self.wants(&published) => return Some(self.frame(&published)),
                Ok(_) => {}
                Err(ended) => {
                    tracing::warn!(%ended, "an event stream ends");
                    return None;
                }
            }
        }
    }

    fn wants(&self, published: &Published) -> bool {
        self.cell_id.is_empty()
            || published.topic == Topic::Tasks
            || published.event.concerns_cell(&self.cell_id)
    }

    fn frame(&mut self, published: &Published) -> String {
        let revision = self.revision;
        let say = |event: &Event| STANDARD.encode(views::event(event, revision));
        let payload = published.said(revision as usize, say);
        let event_type = published.event.event_type();
        let frame = format!("id: {}\nevent: {event_type}\ndata: {payload}\n\n", self.number);
        self.number += 1;
        frame
    }
}
