//! Following the BBS: a stream of events that ends when the connection does.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bbs_models::Event;
use bbs_models::wire::{EventError, EventsByCellId, decode_event};
use futures_util::Stream;
use reqwest::Method;

use crate::client::{Error, Result};
use crate::sse::{SseEvent, SseParser};
use crate::{BbsClient, paths};

/// Bytes of one event as it travels; an LRP's routes, annotation and mounted files fit many times.
pub const EVENT_BYTES_MAX: usize = 16 * 1024 * 1024;

impl BbsClient {
    /// DesiredLRP events, ActualLRP instance events and crashes.
    pub async fn subscribe_to_instance_events(&self) -> Result<EventStream> {
        self.subscribe(paths::INSTANCE_EVENTS, "").await
    }

    /// As [`subscribe_to_instance_events`](Self::subscribe_to_instance_events), instances of one cell only.
    pub async fn subscribe_to_instance_events_by_cell_id(&self, cell_id: &str) -> Result<EventStream> {
        self.subscribe(paths::INSTANCE_EVENTS, cell_id).await
    }

    pub async fn subscribe_to_task_events(&self) -> Result<EventStream> {
        self.subscribe(paths::TASK_EVENTS, "").await
    }

    /// DesiredLRP events, crashes, and the deprecated twins of the instance events.
    pub async fn subscribe_to_group_events_by_cell_id(&self, cell_id: &str) -> Result<EventStream> {
        self.subscribe_by(Method::GET, paths::EVENTS, cell_id).await
    }

    async fn subscribe(&self, path: &'static str, cell_id: &str) -> Result<EventStream> {
        self.subscribe_by(Method::POST, path, cell_id).await
    }

    async fn subscribe_by(&self, method: Method, path: &'static str, cell_id: &str) -> Result<EventStream> {
        self.subscribe_as(method, path, cell_id, parsed).await
    }

    pub(crate) async fn subscribe_as<T>(
        &self,
        method: Method,
        path: &'static str,
        cell_id: &str,
        read: Read<T>,
    ) -> Result<EventStream<T>> {
        let request = EventsByCellId { cell_id: cell_id.to_string() };
        let response = self.open_stream(method, path, &request).await?;
        Ok(EventStream {
            path,
            bytes: Box::pin(response.bytes_stream()),
            parser: SseParser::new(EVENT_BYTES_MAX),
            read,
            ready: VecDeque::new(),
            ended: false,
        })
    }
}

/// What an event is to its reader; `None` is of no interest.
pub(crate) type Read<T> = fn(&str, &[u8]) -> Option<Result<T>>;

type Bytes = Pin<Box<dyn Stream<Item = reqwest::Result<bytes::Bytes>> + Send>>;

/// Ends with the connection, after an error if it was cut. An event that cannot be read is an error too, but the
/// stream goes on; one of a type we do not know is passed over. Dropping it ends the subscription.
pub struct EventStream<T = Event> {
    path: &'static str,
    bytes: Bytes,
    parser: SseParser,
    read: Read<T>,
    ready: VecDeque<Result<T>>,
    ended: bool,
}

/// Nothing in it is pinned but what has a place of its own.
impl<T> Unpin for EventStream<T> {}

impl<T> Stream for EventStream<T> {
    type Item = Result<T>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Poll::Ready(Some(event));
            }
            if self.ended {
                return Poll::Ready(None);
            }
            match ready!(self.bytes.as_mut().poll_next(context)) {
                Some(Ok(bytes)) => self.take(&bytes),
                Some(Err(source)) => {
                    let path = self.path;
                    self.end_with(Error::Unreachable { path, source: source.into() });
                }
                None => self.ended = true,
            }
        }
    }
}

impl<T> EventStream<T> {
    fn take(&mut self, bytes: &[u8]) {
        match self.parser.feed(bytes) {
            Ok(events) => {
                let read = self.read;
                self.ready.extend(events.iter().filter_map(|event| decoded(event, read)));
            }
            Err(error) => self.end_with(Error::Stream { reason: error.to_string() }),
        }
    }

    fn end_with(&mut self, error: Error) {
        self.ready.push_back(Err(error));
        self.ended = true;
    }
}

fn decoded<T>(event: &SseEvent, read: Read<T>) -> Option<Result<T>> {
    match STANDARD.decode(&event.data) {
        Ok(payload) => read(&event.name, &payload),
        Err(error) => Some(Err(Error::Stream { reason: format!("{}: {error}", event.name) })),
    }
}

fn parsed(event_type: &str, payload: &[u8]) -> Option<Result<Event>> {
    match decode_event(event_type, payload) {
        Ok(event) => Some(Ok(event)),
        Err(EventError::UnrecognizedType(event_type)) => {
            tracing::debug!(event_type, "unrecognized event type");
            None
        }
        Err(error) => Some(Err(Error::Event(error))),
    }
}
