//! The ssh daemon inside a container: shells with or without a terminal, commands, `scp` and `sftp` of its own (the
//! container may have neither), port forwarding both ways. It runs as the container's user and lets in whoever holds
//! the one authorized key; keeping others from reaching it is the platform's work.
//!
//! `settings` (flags) → `serve` (connections) → `connection` (one client) → `session` (one channel) → `program` (what
//! runs in it); `inbox` holds what its reader is slow to take. Not here: passwords, users, X11, agent forwarding.

mod connection;
mod forward;
mod glob;
mod inbox;
mod log;
mod program;
mod scp;
mod serve;
mod session;
mod settings;
mod sftp;
mod terminal;

pub use log::{Level, Log};
pub use serve::{SERVE_ONE, ServeError, serve, serve_one};
pub use settings::{Settings, SettingsError, WAIT, flags, kept, start_waiting, waiting};
pub use terminal::{SESSION_LEADER, become_session_leader};
