//! `garden-init`: bears blank containers for one garden, and is then pid 1 of each.
//!
//! Started once by garden with a socket as standard input, out of a sealed copy in memory. It has one thread and no
//! runtime, so that forking it is cheap and safe. What it does when is drawn in the library's `protocol`.
//!
//! ```text
//! nursery ──clone3──▶ blank ──Plan──▶ setup ──Ready──▶ pid 1 ──vfork, exec──▶ processes
//! ```

#![allow(unsafe_code)]

mod attributes;
mod confinement;
mod credentials;
mod failure;
mod join;
mod limits;
mod mounts;
mod nursery;
mod pid1;
mod setup;
mod siphon;
mod source;
mod sparse;
mod spawn;
mod tar_streams;
mod unpack;

use std::process::ExitCode;

/// How an OCI runtime is told to start this program: as pid 1 of a container that is there already.
const PID_1: &str = "pid1";

fn main() -> ExitCode {
    let done = match std::env::args().nth(1).as_deref() {
        Some(PID_1) => setup::live_in_a_made_container(),
        _ => nursery::run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("garden-init: {failure}");
            ExitCode::FAILURE
        }
    }
}
