//! The bulletin board: what is desired, what is actual, and everything that may become of it.
//!
//! ```text
//! http ─▶ controllers ─▶ board: one writer, transitions (pure), store ─▶ hub ─▶ event streams
//!              │            ▲
//!   auctioneer, reps,       └── convergence (pure), every so often and when a cell comes or goes
//!   callbacks
//! ```
//!
//! It knows LRPs and Tasks. It knows no container, places nothing, and believes cells what they say.

mod board;
mod controllers;
mod convergence;
mod events;
mod http;
mod hub;
mod internal_routes;
pub mod locket;
#[cfg(test)]
mod picture;
mod records;
mod run;
mod state;
mod store;
mod transitions;
mod witness;

pub use board::{COMMANDS_PER_COMMIT_MAX, COMMANDS_QUEUED_MAX};
pub use controllers::{Auctioneer, Intervals, RepClients, Reps};
pub use convergence::Patience;
pub use hub::EVENTS_BEHIND_MAX;
pub use run::{Config, Error, Peers, TASK_RETRIES_MAX, run, run_behind};
pub use store::{
    BadKeys, BadLocation, Durability, Error as DatabaseError, Host as DatabaseHost, Keys as EncryptionKeys,
    Location, Server as DatabaseServer, Tls as DatabaseTls, Trust as DatabaseTrust, memory,
};
pub use witness::{Counts, Nobody, Witness};
