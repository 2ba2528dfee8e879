//! Where instances can be reached: the routing table, and a task that keeps one true to the BBS.
//!
//! The route emitter tells routers of it over the network, the small router of `diego dev` looks into it.

pub mod message;
mod offers;
mod parse;
pub mod table;
pub mod watch;
