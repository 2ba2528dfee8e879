//! The vocabulary as it travels: protobuf messages with the field numbers of the BBS API, their JSON, and the
//! conversions. What comes in is validated here, all faults gathered at once ([`Invalid`]); what goes out cannot
//! fail.
//!
//! The messages are written by hand rather than generated, so that a reader of this folder sees the whole
//! contract. In them: an enum is its number, a one-of with one member is an `Option`, and a message that peers
//! always write, even empty, is `required`.

mod action;
mod actual_lrp;
mod actual_lrp_request;
mod cell;
mod check;
mod desired_lrp;
mod desired_lrp_request;
mod error;
mod event;
mod image_layer;
mod invalid;
mod json;
mod locket;
mod part;
mod reading;
mod request;
mod routes;
mod security_group;
mod task;
mod task_request;
mod volume_mount;

pub use action::*;
pub use actual_lrp::*;
pub use actual_lrp_request::*;
pub use cell::*;
pub use check::*;
pub use desired_lrp::*;
pub use desired_lrp_request::*;
pub use error::*;
pub use event::*;
pub use image_layer::*;
pub use invalid::*;
pub use locket::*;
pub use part::*;
pub use reading::*;
pub use request::*;
pub use routes::*;
pub use security_group::*;
pub use task::*;
pub use task_request::*;
pub use volume_mount::*;
