//! The vocabulary as it travels: protobuf messages with the field numbers of the BBS API, their JSON, and the
//! conversions. What comes in is validated here, all faults gathered at once ([`Invalid`]); what goes out cannot
//! fail.
//!
//! The messages are written by hand rather than generated, so that a reader of this folder sees the whole
//! contract. In them: an enum is its number, a one-of with one member is an `Option`, and a message that peers
//! always write, even empty, is `required`.

mod action;
mod actual_lrp;
mod cell;
mod check;
mod desired_lrp;
mod error;
mod event;
mod invalid;
mod json;
mod locket;
mod part;
pub mod request;
mod routes;
mod task;

pub use action::*;
pub use actual_lrp::*;
pub use cell::*;
pub use check::*;
pub use desired_lrp::*;
pub use error::*;
pub use event::*;
pub use invalid::*;
pub use locket::*;
pub use part::*;
pub use request::*;
pub use routes::*;
pub use task::*;
