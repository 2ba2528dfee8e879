//! The operator's CLI: one file a command. Each asks the BBS, the cells or the caches over their public APIs, as any
//! other client would, and says what it found to people or, with `--json`, to machines.

pub mod cells;
pub mod events;
mod failure;
mod image;
pub mod images;
pub mod logs;
pub mod net;
mod output;
pub mod ps;
pub mod push;
mod recipe;
pub mod run;
pub mod scale;
pub mod ssh;
mod target;
pub mod task;
mod wait;

use std::path::PathBuf;

use clap::Args;
pub use failure::Failure;
pub use output::print;
pub use target::{ENDPOINTS_FILE, Endpoints};

/// What every command may be told.
#[derive(Args, Clone)]
pub struct Global {
    /// Where the Diego of this machine keeps what it knows.
    #[arg(long, global = true, env = "DIEGO_STATE", default_value = "/var/lib/diego")]
    pub state: PathBuf,
    /// Print JSON for machines instead of text for people.
    #[arg(long, global = true)]
    pub json: bool,
}
