//! What garden and `garden-init` say to each other: the [`Plan`] of a container, requests and events, and the pure rules
//! that pid 1 applies (who a user is, what a process's environment is, where its program may be).
//!
//! Nothing here touches the kernel. After the first process of a container has started, garden treats each [`Event`] as
//! hostile input; pid 1 in turn trusts garden, but bounds what it takes.

pub mod environment;
mod plan;
mod protocol;
pub mod users;

pub use plan::*;
pub use protocol::*;
