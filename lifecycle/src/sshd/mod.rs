//! The ssh daemon inside a container: shells with or without a terminal, commands, `scp` and `sftp` of its own (the
//! container may have neither), port forwarding both ways. It runs as the container's user and lets in whoever holds
//! the one authorized key; keeping others from reaching it is the platform's work.
//!
//! `settings` (flags) → `serve` (connections) → `connection` (one client) → `session` (one channel) → `program` (what
//! runs in it). Not here: passwords, users, X11, agent forwarding.

mod connection;
mod forward;
mod glob;
mod log;
mod program;
mod scp;
mod serve;
mod session;
mod settings;
mod sftp;
mod terminal;

pub use log::{Level, Log};
pub use serve::{ServeError, serve};
pub use settings::{Settings, SettingsError, ask_again_without_keys, flags};
pub use terminal::{SESSION_LEADER, become_session_leader};
