//! Reservations: what a cell has promised and nobody has run yet. Written down before they are told of, so that a later
//! life keeps the promise; one that cannot be written lives as long as this process.

use tokio::runtime::{Handle, RuntimeFlavor};

use super::store::Owner;
use crate::depot::Record;
use crate::steps::report;
use crate::{AllocationFailure, AllocationRequest, Container, Error, Shared};

/// A disk takes some tens of microseconds for each, or for ever: meanwhile others do what this thread had to do.
pub(crate) fn make_all(shared: &Shared, requests: Vec<AllocationRequest>) -> Vec<AllocationFailure> {
    let now_ns = shared.config.clock.now_ns();
    let make_all =
        || requests.into_iter().filter_map(|request| make(shared, request, now_ns).err()).collect();
    match Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(make_all),
        _ => make_all(),
    }
}

fn make(shared: &Shared, request: AllocationRequest, now_ns: i64) -> Result<(), AllocationFailure> {
    let guid = request.guid.clone();
    let is_new = !guid.is_empty() && !shared.store.contains(&guid);
    let is_noted = is_new && note(shared, &request, now_ns);
    shared.store.allocate(request, now_ns).inspect_err(|_| {
        if is_noted && !shared.store.contains(&guid) {
            forget(shared, &guid);
        }
    })
}

fn note(shared: &Shared, request: &AllocationRequest, now_ns: i64) -> bool {
    let promised = Container::reserved(&request.guid, request.resource, request.tags.clone(), now_ns);
    shared.depot.reserve(&Record::new(promised)).unwrap_or_else(|error| {
        tracing::error!(guid = request.guid, error = report(&error), "executor.depot.not-noted");
        false
    })
}

/// One that is not to be run any more; no later life is to know of it.
pub(crate) fn forget(shared: &Shared, guid: &str) {
    if let Err(error) = shared.depot.forget(guid) {
        tracing::error!(guid, error = report(&error), "executor.depot.not-forgotten");
    }
}

pub(crate) fn stop(shared: &Shared, guid: &str) {
    if shared.store.stop_unowned(guid) {
        forget(shared, guid);
    }
}

/// Whom to ask, where it has become more than a reservation.
pub(crate) fn delete(shared: &Shared, guid: &str) -> Result<Owner, Error> {
    let owner = shared.store.delete(guid)?;
    if let Owner::Removed = owner {
        forget(shared, guid);
    }
    Ok(owner)
}
