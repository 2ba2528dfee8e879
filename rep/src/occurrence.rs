//! What happens to the cell as the platform sees it that somebody may want to count or to time; the executor tells of the rest.
//! What it is called, and to whom it is of interest, is the witness's affair.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use tokio::time::Instant;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Occurrence {
    /// All that runs here was compared with the BBS.
    BulkSync {
        took: Duration,
    },
    /// Evacuating instances that the BBS still listed when the cell was done with its evacuation.
    Stranded {
        instances: usize,
    },
    /// Garden was asked whether it is well. A cell that is not well is left out of auctions.
    GardenChecked {
        cell_is_well: bool,
    },
    RequestBegan(Call),
    RequestEnded {
        call: Call,
        took: Duration,
        failed: bool,
    },
}

/// What the platform asks of a cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Call {
    State,
    ContainerMetrics,
    Perform,
    UpdateLrpInstance,
    StopLrpInstance,
    CancelTask,
}

impl Call {
    pub const ALL: [Call; 6] = [
        Call::State,
        Call::ContainerMetrics,
        Call::Perform,
        Call::UpdateLrpInstance,
        Call::StopLrpInstance,
        Call::CancelTask,
    ];

    /// By its path. What is not there, logs for example, may last as long as whoever asked likes.
    fn of(path: &str) -> Option<Call> {
        let is_instance = path.contains("/instances/");
        Some(match path {
            "/state" => Call::State,
            "/container_metrics" => Call::ContainerMetrics,
            "/work" => Call::Perform,
            _ if is_instance && path.ends_with("/stop") => Call::StopLrpInstance,
            _ if is_instance => Call::UpdateLrpInstance,
            _ if path.starts_with("/v1/tasks/") => Call::CancelTask,
            _ => return None,
        })
    }
}

pub trait Witness: Send + Sync {
    /// Must not wait: whoever tells has other things to do.
    fn saw(&self, occurrence: Occurrence);
}

/// Nobody.
impl Witness for () {
    fn saw(&self, _: Occurrence) {}
}

/// Tells of each request, also of one whose client did not wait for the answer.
pub(crate) async fn requests(
    State(witness): State<Arc<dyn Witness>>,
    request: Request,
    next: Next,
) -> Response {
    let Some(call) = Call::of(request.uri().path()) else { return next.run(request).await };
    witness.saw(Occurrence::RequestBegan(call));
    let mut under_way = UnderWay { witness, call, begun: Instant::now(), failed: true };
    let response = next.run(request).await;
    under_way.failed = response.status().is_client_error() || response.status().is_server_error();
    response
}

struct UnderWay {
    witness: Arc<dyn Witness>,
    call: Call,
    begun: Instant,
    failed: bool,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let UnderWay { call, failed, .. } = *self;
        self.witness.saw(Occurrence::RequestEnded { call, took: self.begun.elapsed(), failed });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_known_by_its_path() {
        let table = [
            ("/state", Some(Call::State)),
            ("/container_metrics", Some(Call::ContainerMetrics)),
            ("/work", Some(Call::Perform)),
            ("/v1/lrps/p/instances/i", Some(Call::UpdateLrpInstance)),
            ("/v2/lrps/p/instances/i", Some(Call::UpdateLrpInstance)),
            ("/v1/lrps/p/instances/i/stop", Some(Call::StopLrpInstance)),
            ("/v1/tasks/t/cancel", Some(Call::CancelTask)),
            ("/v1/logs/app", None),
        ];
        for (path, call) in table {
            assert_eq!(Call::of(path), call, "{path}");
        }
    }
}
