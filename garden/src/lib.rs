//! The container runtime: makes containers and runs processes in them, behind the Garden API.
//!
//! It knows no LRP, no Task and no action; images come from `rootfs`, everything of the kernel from `garden-sys`.

pub mod http;
pub mod networker;
