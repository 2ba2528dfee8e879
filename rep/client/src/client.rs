//! A client of one rep, over HTTP.

use std::time::Duration;

use bytes::Bytes;
use diego_base::http::{Failed, Way};
use futures_util::{Stream, TryStreamExt};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::{CellState, ContainerMetricsCollection, LrpUpdate, Work};

/// How long a cell may take to tell its state before an auction goes on without it.
pub const STATE_TIMEOUT: Duration = Duration::from_secs(10);

/// Ties the log lines of several components to the request that caused them.
pub const TRACE_HEADER: &str = "X-Vcap-Request-Id";

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot {act} at the rep {url}")]
    Unreachable { act: &'static str, url: String, source: Failed },
    #[error("cannot {act} at the rep {url}: unexpected status code: {}", status.as_u16())]
    Status { act: &'static str, url: String, status: StatusCode },
}

impl Error {
    pub fn status(&self) -> Option<StatusCode> {
        match self {
            Error::Unreachable { .. } => None,
            Error::Status { status, .. } => Some(*status),
        }
    }
}

pub type Result<T> = std::result::Result<T, Error>;

/// One line of an instance's or Task's output (`GET /v1/logs/{log_guid}`, one JSON object a line).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LogLine {
    /// Nanoseconds since the epoch.
    pub timestamp: i64,
    pub log_guid: String,
    pub instance_guid: String,
    pub index: i32,
    /// `APP/PROC/WEB`, `CELL`, `HEALTH`, …
    pub source_name: String,
    /// `out` or `err`.
    pub stream: String,
    pub message: String,
}

#[derive(Debug, Clone)]
pub struct RepClient {
    http: Way,
    url: String,
    trace_id: Option<String>,
}

impl RepClient {
    /// `url` is what the cell's presence says, `http://10.0.0.3:1800` or `https://…`.
    pub fn new(http: impl Into<Way>, url: &str) -> Self {
        Self { http: http.into(), url: url.trim_end_matches('/').into(), trace_id: None }
    }

    /// The same client, its requests marked with a trace id.
    pub fn traced(&self, trace_id: &str) -> Self {
        let trace_id = (!trace_id.is_empty()).then(|| trace_id.to_owned());
        Self { trace_id, ..self.clone() }
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    pub async fn state(&self, timeout: Duration) -> Result<CellState> {
        self.state_as(timeout).await
    }

    /// What the rep says, read by whoever asks.
    pub async fn state_as<T: DeserializeOwned>(&self, timeout: Duration) -> Result<T> {
        let act = "fetch the state";
        let response = self.send(act, self.request(Method::GET, "/state").timeout(timeout)).await?;
        self.json(act, self.expect(act, response, StatusCode::OK)?).await
    }

    /// Gives work to the cell; the answer is what it refused.
    pub async fn perform(&self, work: &Work) -> Result<Work> {
        let act = "perform work";
        let response = self.send(act, self.request(Method::POST, "/work").json(work)).await?;
        self.json(act, self.expect(act, response, StatusCode::OK)?).await
    }

    pub async fn stop_lrp_instance(&self, process_guid: &str, instance_guid: &str) -> Result<()> {
        let act = "stop an LRP instance";
        let path = format!("/v1/lrps/{}/instances/{}/stop", escape(process_guid), escape(instance_guid));
        let response = self.send(act, self.request(Method::POST, &path)).await?;
        self.expect(act, response, StatusCode::ACCEPTED).map(drop)
    }

    /// A rep that does not know the route yet is asked in the older way, which knows internal routes only.
    pub async fn update_lrp_instance(&self, update: &LrpUpdate) -> Result<()> {
        let act = "update an LRP instance";
        let response = self.put_update("v2", act, update).await?;
        if response.status() != StatusCode::NOT_FOUND {
            return self.expect(act, response, StatusCode::ACCEPTED).map(drop);
        }
        if update.internal_routes.is_none() {
            return Ok(());
        }
        let response = self.put_update("v1", act, &LrpUpdate { metric_tags: None, ..update.clone() }).await?;
        match response.status() {
            StatusCode::NOT_FOUND => Ok(()),
            _ => self.expect(act, response, StatusCode::ACCEPTED).map(drop),
        }
    }

    async fn put_update(&self, version: &str, act: &'static str, update: &LrpUpdate) -> Result<Response> {
        let (process, instance) = (escape(&update.process_guid), escape(&update.instance_guid));
        let path = format!("/{version}/lrps/{process}/instances/{instance}");
        self.send(act, self.request(Method::PUT, &path).json(update)).await
    }

    pub async fn cancel_task(&self, task_guid: &str) -> Result<()> {
        let act = "cancel a Task";
        let path = format!("/v1/tasks/{}/cancel", escape(task_guid));
        let response = self.send(act, self.request(Method::POST, &path)).await?;
        self.expect(act, response, StatusCode::ACCEPTED).map(drop)
    }

    pub async fn container_metrics(&self) -> Result<ContainerMetricsCollection> {
        let act = "fetch container metrics";
        let response = self.send(act, self.request(Method::GET, "/container_metrics")).await?;
        self.json(act, self.expect(act, response, StatusCode::OK)?).await
    }

    /// Served on the cell's admin listener only.
    pub async fn evacuate(&self) -> Result<()> {
        let act = "evacuate";
        let response = self.send(act, self.request(Method::POST, "/evacuate")).await?;
        self.expect(act, response, StatusCode::ACCEPTED).map(drop)
    }

    /// Served on the cell's admin listener only.
    pub async fn ping(&self) -> Result<()> {
        let act = "ping";
        let response = self.send(act, self.request(Method::GET, "/ping")).await?;
        self.expect(act, response, StatusCode::OK).map(drop)
    }

    /// The newest `lines` lines, then, if `follow`, those to come: [`LogLine`]s as JSON, one a line, as raw bytes.
    pub async fn logs(
        &self,
        log_guid: &str,
        lines: usize,
        follow: bool,
    ) -> Result<impl Stream<Item = Result<Bytes>> + Send + use<>> {
        let act = "read logs";
        let path = format!("/v1/logs/{}", escape(log_guid));
        let query = [("lines", lines.to_string()), ("follow", follow.to_string())];
        let response = self.send(act, self.request(Method::GET, &path).query(&query)).await?;
        let response = self.expect(act, response, StatusCode::OK)?;
        let url = self.url.clone();
        Ok(response.bytes_stream().map_err(move |source| Error::Unreachable {
            act,
            url: url.clone(),
            source: source.into(),
        }))
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.url));
        match &self.trace_id {
            Some(trace_id) => request.header(TRACE_HEADER, trace_id),
            None => request,
        }
    }

    async fn send(&self, act: &'static str, request: RequestBuilder) -> Result<Response> {
        self.http.send(request).await.map_err(|source| self.unreachable(act, source))
    }

    fn expect(&self, act: &'static str, response: Response, wanted: StatusCode) -> Result<Response> {
        match response.status() {
            status if status == wanted => Ok(response),
            status => Err(Error::Status { act, url: self.url.clone(), status }),
        }
    }

    async fn json<T: DeserializeOwned>(&self, act: &'static str, response: Response) -> Result<T> {
        response.json().await.map_err(|source| self.unreachable(act, source.into()))
    }

    fn unreachable(&self, act: &'static str, source: Failed) -> Error {
        Error::Unreachable { act, url: self.url.clone(), source }
    }
}

/// One path segment: everything but unreserved characters percent-encoded.
fn escape(segment: &str) -> String {
    let mut escaped = String::with_capacity(segment.len());
    for byte in segment.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => escaped.push(byte as char),
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guid_is_one_segment_of_the_path() {
        assert_eq!(escape("a-b_c.1~"), "a-b_c.1~");
        assert_eq!(escape("a/../b c"), "a%2F..%2Fb%20c");
    }
}
