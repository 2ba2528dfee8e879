//! The trace ids under which a cell was asked for what its containers go through: what the BBS is told because of it
//! goes under the same id, so that one request can be followed through the logs of all who had a part in it.
//!
//! A container has the id of the last request that was about it, as long as this rep lives.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use rep_client::TRACE_HEADER;

/// A longer one is nobody's.
const TRACE_ID_BYTES_MAX: usize = 256;

/// By the guids of containers; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Traces(Arc<Mutex<HashMap<String, String>>>);

impl Traces {
    /// Without an id the last one stays: a retirement nobody traces is part of what made the instance.
    pub fn note(&self, guid: &str, trace: &TraceId) {
        if let Some(id) = &trace.0 {
            self.ids().insert(guid.to_owned(), id.clone());
        }
    }

    pub fn of(&self, guid: &str) -> Option<String> {
        self.ids().get(guid).cloned()
    }

    pub fn forget(&self, guid: &str) {
        self.ids().remove(guid);
    }

    pub fn keep(&self, there: impl Fn(&str) -> bool) {
        self.ids().retain(|guid, _| there(guid));
    }

    fn ids(&self) -> MutexGuard<'_, HashMap<String, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a request says of itself, if anything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TraceId(Option<String>);

impl TraceId {
    pub fn new(id: &str) -> Self {
        let usable = (1..=TRACE_ID_BYTES_MAX).contains(&id.len());
        TraceId(usable.then(|| id.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        self.0.as_deref().unwrap_or_default()
    }
}

impl<S: Send + Sync> FromRequestParts<S> for TraceId {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let id = parts.headers.get(TRACE_HEADER).and_then(|value| value.to_str().ok());
        Ok(TraceId::new(id.unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_has_the_id_of_the_last_request_that_had_one() {
        let traces = Traces::default();
        traces.note("a", &TraceId::new("first"));
        traces.note("a", &TraceId::new(""));
        assert_eq!(traces.of("a").as_deref(), Some("first"));
        traces.note("a", &TraceId::new(&"x".repeat(TRACE_ID_BYTES_MAX + 1)));
        traces.note("a", &TraceId::new("second"));
        traces.note("b", &TraceId::new("other"));
        assert_eq!(traces.of("a").as_deref(), Some("second"));
        traces.keep(|guid| guid == "b");
        assert_eq!((traces.of("a"), traces.of("b").as_deref()), (None, Some("other")));
        traces.forget("b");
        assert_eq!(traces.of("b"), None);
    }
}
