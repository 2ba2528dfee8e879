//! The shared vocabulary of Diego: LRPs, Tasks, actions, checks, events and their errors. No I/O, no clock.
//!
//! Inside are parsed values; `wire` holds their protobuf and JSON twins and the conversions between the two.

mod action;
mod check;

pub use action::*;
pub use check::*;
