//! The rep's API: its JSON types, named byte for byte as Go clients name them, and a client for it.
//!
//! It decides nothing: placement is `auction`'s, and what a cell does with its work is `rep`'s.

mod client;
mod metrics;
mod rootfs;
mod state;
mod work;

pub use client::*;
pub use metrics::*;
pub use rootfs::*;
pub use state::*;
pub use work::*;

/// Go encodes an empty slice or map as `null` where it was never made.
pub(crate) fn null_is_default<'de, D, T>(deserializer: D) -> std::result::Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + serde::Deserialize<'de>,
{
    Ok(<Option<T> as serde::Deserialize>::deserialize(deserializer)?.unwrap_or_default())
}
