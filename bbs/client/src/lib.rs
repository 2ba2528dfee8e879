//! Speaking to the BBS and to Locket: calls with retries, event streams, and keeping a lock or a presence alive.
//!
//! Nothing is cached, and a stream that breaks is its reader's to open again: only the reader knows what to read
//! anew after a gap.

mod actual_lrps;
mod client;
mod desired_lrps;
mod events;
mod locket;
pub mod paths;
mod raw;
mod sse;
mod tasks;

pub use actual_lrps::StartedLrp;
pub use client::{BbsClient, Error, TRACE_HEADER};
pub use diego_base::http::ClientConfig;
pub use events::{EVENT_BYTES_MAX, EventStream};
pub use locket::{Hold, Lock, LocketClient, LocketError, watch_cells};
pub use raw::{Raw, RawEvent};
