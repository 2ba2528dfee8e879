//! Requests that are answered and done: JSON in, JSON out, and tar streams.

use std::collections::BTreeMap;
use std::time::Duration;

use garden_client::wire::{
    self, Created, Handles, InfoEntry, MetricsEntry, NetInPorts, PropertyValue, StopRequest,
};
use garden_client::{Error, NetOutRule, Reader};
use http::StatusCode;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::connection::{Connection, TooLong, Unread};
use super::routes::{Limit, Route};
use super::{Refusal, Server};
use crate::socket::Straight;

/// Of a request in JSON; egress rules are the longest.
pub const REQUEST_BYTES_MAX: usize = 16 << 20;
/// Of a request in JSON, of all depths together: the smallest take three bytes there and dozens here.
const REQUEST_VALUES_MAX: usize = 1 << 17;
/// Unsigned in the public client's type, signed in its language; more is nonsense.
const GRACE_TIME_MAX: Duration = Duration::from_nanos(i64::MAX as u64);

pub enum Answer {
    Json(Vec<u8>),
    Tar(Reader),
}

type Result<T> = std::result::Result<T, Refusal>;

#[derive(Serialize)]
struct Nothing {}

fn json(message: &impl Serialize) -> Result<Answer> {
    Ok(Answer::Json(wire::line(message).map_err(|error| Error::Other(error.to_string()))?))
}

fn done(result: garden_client::Result<()>) -> Result<Answer> {
    result?;
    json(&Nothing {})
}

impl Server {
    pub(super) async fn act(&self, route: Route, connection: &Connection) -> Result<Answer> {
        let garden = &self.garden;
        match route {
            Route::Ping => done(garden.ping().await),
            Route::Capacity => json(&garden.capacity().await?),
            Route::List { properties } => {
                json(&Handles { handles: garden.containers(&properties.into_iter().collect()).await? })
            }
            Route::Create => json(&Created { handle: garden.create(self.read(connection).await?).await? }),
            Route::BulkInfo { handles } => self.bulk_info(&handles).await,
            Route::BulkMetrics { handles } => self.bulk_metrics(&handles).await,
            Route::Info { handle } => json(&garden.info(&handle).await?),
            Route::Destroy { handle } => done(garden.destroy(&handle).await),
            Route::Stop { handle } => {
                let request: StopRequest = self.read(connection).await?;
                done(garden.stop(&handle, request.kill).await)
            }
            Route::StreamIn { handle, user, destination } => {
                let tar = Box::new(Straight(Box::new(connection.body())));
                done(garden.stream_in(&handle, &user, &destination, tar).await)
            }
            Route::StreamOut { handle, user, source } => {
                Ok(Answer::Tar(garden.stream_out(&handle, &user, &source).await?))
            }
            Route::CurrentLimit { handle, limit } => self.current_limit(&handle, limit).await,
            Route::NetIn { handle } => self.net_in(&handle, self.read(connection).await?).await,
            Route::NetOut { handle } => {
                let rule: NetOutRule = self.read(connection).await?;
                done(garden.bulk_net_out(&handle, &[rule]).await)
            }
            Route::BulkNetOut { handle } => {
                let rules: Option<Vec<NetOutRule>> = self.read(connection).await?;
                done(garden.bulk_net_out(&handle, &rules.unwrap_or_default()).await)
            }
            Route::SetGraceTime { handle } => {
                let nanoseconds: i64 = self.read(connection).await?;
                let grace_time = Duration::from_nanos(nanoseconds.max(0).unsigned_abs());
                done(garden.set_grace_time(&handle, grace_time.min(GRACE_TIME_MAX)).await)
            }
            Route::Properties { handle } => json(&garden.properties(&handle).await?),
            Route::Property { handle, name } => {
                json(&PropertyValue { value: garden.property(&handle, &name).await? })
            }
            Route::SetProperty { handle, name } => {
                let PropertyValue { value } = self.read(connection).await?;
                done(garden.set_property(&handle, &name, &value).await)
            }
            Route::RemoveProperty { handle, name } => done(garden.remove_property(&handle, &name).await),
            Route::Metrics { handle } => json(&garden.metrics(&handle).await?),
            Route::Run { .. } | Route::Attach { .. } | Route::Output { .. } => {
                Err(Error::Other("this request takes its connection over".into()).into())
            }
        }
    }

    /// What a request says in JSON.
    pub(super) async fn read<T: DeserializeOwned>(&self, connection: &Connection) -> Result<T> {
        let reading = connection.read_body(REQUEST_BYTES_MAX, &self.budget);
        let late = || Refusal::text(StatusCode::REQUEST_TIMEOUT, "the request took too long to arrive");
        let (body, _share) = match timeout(self.limits.body_time, reading).await.map_err(|_| late())? {
            Ok(Ok(body)) => body,
            Ok(Err(TooLong)) => {
                let message = format!("a request of at most {REQUEST_BYTES_MAX} bytes is expected");
                return Err(Refusal { status: StatusCode::PAYLOAD_TOO_LARGE, error: Error::Other(message) });
            }
            Err(unread) => return Err(unread.into()),
        };
        if has_more_values(&body, REQUEST_VALUES_MAX) {
            let message = format!("a request of at most {REQUEST_VALUES_MAX} values is expected");
            return Err(Refusal { status: StatusCode::PAYLOAD_TOO_LARGE, error: Error::Other(message) });
        }
        serde_json::from_slice(&body)
            .map_err(|error| Error::Other(format!("cannot understand the request: {error}")).into())
    }

    async fn bulk_info(&self, handles: &[String]) -> Result<Answer> {
        let entries =
            self.garden.bulk_info(handles).await?.into_iter().map(|(handle, result)| match result {
                Ok(info) => (handle, InfoEntry { info, err: None }),
                Err(error) => (handle, InfoEntry { err: Some(error), ..InfoEntry::default() }),
            });
        json(&entries.collect::<BTreeMap<_, _>>())
    }

    async fn bulk_metrics(&self, handles: &[String]) -> Result<Answer> {
        let entries =
            self.garden.bulk_metrics(handles).await?.into_iter().map(|(handle, result)| match result {
                Ok(metrics) => (handle, MetricsEntry { metrics, err: None }),
                Err(error) => (handle, MetricsEntry { err: Some(error), ..MetricsEntry::default() }),
            });
        json(&entries.collect::<BTreeMap<_, _>>())
    }

    async fn current_limit(&self, handle: &str, limit: Limit) -> Result<Answer> {
        let limits = self.garden.current_limits(handle).await?;
        match limit {
            Limit::Bandwidth => json(&limits.bandwidth),
            Limit::Cpu => json(&limits.cpu),
            Limit::Disk => json(&limits.disk),
            Limit::Memory => json(&limits.memory),
        }
    }

    async fn net_in(&self, handle: &str, asked: NetInPorts) -> Result<Answer> {
        let (host_port, container_port) =
            self.garden.net_in(handle, asked.host_port, asked.container_port).await?;
        json(&NetInPorts { handle: String::new(), host_port, container_port })
    }
}

/// Elements, members and what holds them, counted without an allocation.
fn has_more_values(json: &[u8], values_max: usize) -> bool {
    let (mut quoted, mut escaped, mut values) = (false, false, 0);
    for byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = quoted,
            b'"' => quoted = !quoted,
            b',' | b'[' | b'{' if !quoted => values += 1,
            _ => {}
        }
    }
    values > values_max
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Refusal {
        let status = match error {
            Error::ContainerNotFound { .. } | Error::ProcessNotFound { .. } => StatusCode::NOT_FOUND,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Refusal { status, error }
    }
}

impl From<Unread> for Refusal {
    fn from(unread: Unread) -> Refusal {
        use super::head::Malformed;
        let (status, error) = match &unread {
            Unread::Malformed(Malformed::Bad(_)) | Unread::Io(_) => {
                (StatusCode::BAD_REQUEST, Error::Other(unread.to_string()))
            }
            Unread::Malformed(Malformed::HeadTooLong) => {
                (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, Error::Other(unread.to_string()))
            }
            Unread::Malformed(Malformed::Encoding) => {
                (StatusCode::NOT_IMPLEMENTED, Error::Other(unread.to_string()))
            }
            Unread::Exhausted => {
                (StatusCode::SERVICE_UNAVAILABLE, Error::ServiceUnavailable(unread.to_string()))
            }
        };
        Refusal { status, error }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_counted_where_they_are_values() {
        for (json, values) in [
            ("", 0),
            ("17", 0),
            ("[{},{},{}]", 6),
            (r#"{"a":[1,2],"b":"x"}"#, 4),
            (r#"{"a,{[":"\",,,[[["}"#, 1),
            (r#"["\\",1]"#, 2),
        ] {
            assert!(!has_more_values(json.as_bytes(), values), "{json}");
            assert!(values == 0 || has_more_values(json.as_bytes(), values - 1), "{json}");
        }
    }
}
