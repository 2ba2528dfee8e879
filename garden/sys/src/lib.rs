//! The kernel's door: one syscall (or one netlink message) a function, owned descriptors in and out, nothing decided.
//!
//! The only crate of the project with unsafe code. Each function says in its error what was asked of which object.

#![allow(unsafe_code)]

pub mod btrfs;
pub mod cgroup;
pub mod loop_device;
pub mod loopback;
pub mod mount;
pub mod netlink;
pub mod nftables;
pub mod packets;
pub mod process;
pub mod project;
pub mod seccomp;
pub mod secluded;
pub mod trim;
