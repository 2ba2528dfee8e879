//! The shared vocabulary of Diego: LRPs, Tasks, actions, checks, events and their errors. No I/O, no clock.
//!
//! Inside are parsed values; `wire` holds their protobuf and JSON twins and the conversions between the two.

mod action;
mod actual_lrp;
mod cell;
mod check;
mod desired_lrp;
mod error;
mod event;
mod image_layer;
mod locket;
mod metric_tag;
mod modification_tag;
mod routes;
mod security_group;
mod task;
mod volume_mount;
pub mod wire;

pub use action::*;
pub use actual_lrp::*;
pub use cell::*;
pub use check::*;
pub use desired_lrp::*;
pub use error::*;
pub use event::*;
pub use image_layer::*;
pub use locket::*;
pub use metric_tag::*;
pub use modification_tag::*;
pub use routes::*;
pub use security_group::*;
pub use task::*;
pub use volume_mount::*;
