//! Requests that are answered and done: JSON in, JSON out, and tar streams.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt;
use garden_client::wire::{
    self, Created, Handles, InfoEntry, MetricsEntry, NetInPorts, PropertyValue, StopRequest,
};
use garden_client::{Error, NetOutRule, Reader};
use http::{Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, BodyStream, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio_util::io::{ReaderStream, StreamReader};

use super::Server;
use super::routes::{self, Limit, Route};

/// Of a request in JSON; egress rules are the longest.
pub const REQUEST_BYTES_MAX: usize = 16 << 20;
/// Unsigned in the public client's type, signed in its language; more is nonsense.
const GRACE_TIME_MAX: Duration = Duration::from_nanos(i64::MAX as u64);

pub type Body = UnsyncBoxBody<Bytes, io::Error>;

#[derive(Serialize)]
struct Nothing {}

pub async fn respond(server: Arc<Server>, request: Request<Incoming>) -> Response<Body> {
    let target = request.uri().path_and_query().map_or("/", |target| target.as_str());
    let Some(route) = routes::parse(request.method().as_str(), target) else {
        return answer(StatusCode::NOT_FOUND, "text/plain; charset=utf-8", "404 page not found\n".into());
    };
    let line = format!("{} {}", request.method(), request.uri().path());
    match server.act(route, request.into_body()).await {
        Ok(response) => response,
        Err(error) => {
            if !matches!(error, Error::ProcessNotFound { .. }) {
                tracing::error!(request = line, %error, "request failed");
            }
            refused(&error)
        }
    }
}

/// The status and the JSON of an error.
pub fn refused(error: &Error) -> Response<Body> {
    answer(super::status(error), "application/json", wire::line(error).unwrap_or_default())
}

fn answer(status: StatusCode, content_type: &'static str, body: Vec<u8>) -> Response<Body> {
    let body = Full::new(Bytes::from(body)).map_err(|never: Infallible| match never {}).boxed_unsync();
    with_body(status, content_type, body)
}

fn with_body(status: StatusCode, content_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    response
}

fn json(message: &impl Serialize) -> Result<Response<Body>, Error> {
    let line = wire::line(message).map_err(|error| Error::Other(error.to_string()))?;
    Ok(answer(StatusCode::OK, "application/json", line))
}

fn done(result: Result<(), Error>) -> Result<Response<Body>, Error> {
    result.and_then(|()| json(&Nothing {}))
}

async fn read<T: DeserializeOwned>(body: Incoming) -> Result<T, Error> {
    let body = Limited::new(body, REQUEST_BYTES_MAX)
        .collect()
        .await
        .map_err(|error| Error::Other(error.to_string()))?;
    serde_json::from_slice(&body.to_bytes()).map_err(|error| Error::Other(error.to_string()))
}

impl Server {
    async fn act(&self, route: Route, body: Incoming) -> Result<Response<Body>, Error> {
        let garden = &self.garden;
        match route {
            Route::Ping => done(garden.ping().await),
            Route::Capacity => json(&garden.capacity().await?),
            Route::List { properties } => {
                json(&Handles { handles: garden.containers(&properties.into_iter().collect()).await? })
            }
            Route::Create => json(&Created { handle: garden.create(read(body).await?).await? }),
            Route::BulkInfo { handles } => self.bulk_info(&handles).await,
            Route::BulkMetrics { handles } => self.bulk_metrics(&handles).await,
            Route::Info { handle } => json(&garden.info(&handle).await?),
            Route::Destroy { handle } => done(garden.destroy(&handle).await),
            Route::Stop { handle } => done(garden.stop(&handle, read::<StopRequest>(body).await?.kill).await),
            Route::StreamIn { handle, user, destination } => {
                done(garden.stream_in(&handle, &user, &destination, reader(body)).await)
            }
            Route::StreamOut { handle, user, source } => self.stream_out(&handle, &user, &source).await,
            Route::CurrentLimit { handle, limit } => self.current_limit(&handle, limit).await,
            Route::NetIn { handle } => self.net_in(&handle, read(body).await?).await,
            Route::NetOut { handle } => {
                let rule: NetOutRule = read(body).await?;
                done(garden.bulk_net_out(&handle, &[rule]).await)
            }
            Route::BulkNetOut { handle } => {
                let rules: Option<Vec<NetOutRule>> = read(body).await?;
                done(garden.bulk_net_out(&handle, &rules.unwrap_or_default()).await)
            }
            Route::SetGraceTime { handle } => {
                let grace_time = Duration::from_nanos(read::<i64>(body).await?.max(0).unsigned_abs());
                done(garden.set_grace_time(&handle, grace_time.min(GRACE_TIME_MAX)).await)
            }
            Route::Properties { handle } => json(&garden.properties(&handle).await?),
            Route::Property { handle, name } => {
                json(&PropertyValue { value: garden.property(&handle, &name).await? })
            }
            Route::SetProperty { handle, name } => {
                let value = read::<PropertyValue>(body).await?.value;
                done(garden.set_property(&handle, &name, &value).await)
            }
            Route::RemoveProperty { handle, name } => done(garden.remove_property(&handle, &name).await),
            Route::Metrics { handle } => json(&garden.metrics(&handle).await?),
            Route::Run { .. } | Route::Attach { .. } | Route::Output { .. } => {
                Err(Error::Other("this request must be the only one of its connection".into()))
            }
        }
    }

    async fn bulk_info(&self, handles: &[String]) -> Result<Response<Body>, Error> {
        let entries =
            self.garden.bulk_info(handles).await?.into_iter().map(|(handle, result)| match result {
                Ok(info) => (handle, InfoEntry { info, err: None }),
                Err(error) => (handle, InfoEntry { err: Some(error), ..InfoEntry::default() }),
            });
        json(&entries.collect::<std::collections::BTreeMap<_, _>>())
    }

    async fn bulk_metrics(&self, handles: &[String]) -> Result<Response<Body>, Error> {
        let entries =
            self.garden.bulk_metrics(handles).await?.into_iter().map(|(handle, result)| match result {
                Ok(metrics) => (handle, MetricsEntry { metrics, err: None }),
                Err(error) => (handle, MetricsEntry { err: Some(error), ..MetricsEntry::default() }),
            });
        json(&entries.collect::<std::collections::BTreeMap<_, _>>())
    }

    async fn current_limit(&self, handle: &str, limit: Limit) -> Result<Response<Body>, Error> {
        let limits = self.garden.current_limits(handle).await?;
        match limit {
            Limit::Bandwidth => json(&limits.bandwidth),
            Limit::Cpu => json(&limits.cpu),
            Limit::Disk => json(&limits.disk),
            Limit::Memory => json(&limits.memory),
        }
    }

    async fn net_in(&self, handle: &str, asked: NetInPorts) -> Result<Response<Body>, Error> {
        let (host_port, container_port) =
            self.garden.net_in(handle, asked.host_port, asked.container_port).await?;
        json(&NetInPorts { handle: String::new(), host_port, container_port })
    }

    async fn stream_out(&self, handle: &str, user: &str, source: &str) -> Result<Response<Body>, Error> {
        let reader = self.garden.stream_out(handle, user, source).await?;
        let body = StreamBody::new(ReaderStream::new(reader).map_ok(Frame::data)).boxed_unsync();
        Ok(with_body(StatusCode::OK, "application/x-tar", body))
    }
}

fn reader(body: Incoming) -> Reader {
    let frames = TryStreamExt::map_err(BodyStream::new(body), io::Error::other);
    let data = frames.try_filter_map(async |frame| Ok(frame.into_data().ok()));
    Box::new(Box::pin(StreamReader::new(data)))
}
