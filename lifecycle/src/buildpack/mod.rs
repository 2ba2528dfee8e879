//! Staging: source code and buildpacks in, a droplet and a description of how to start it out.
//!
//! `settings` (what is asked) → `fetch` (buildpacks that must be downloaded) → `stage` (detect, supply, finalize or
//! compile, release) → `launch_data` and `result` (how it starts) → `pack` (droplet and cache as archives).
//! Scripts of buildpacks run as this process's user; keeping them in is the container's work.

mod fetch;
mod hash;
mod launch_data;
mod pack;
mod result;
mod settings;
mod stage;

pub use result::{BuildpackMetadata, LifecycleMetadata, Process, Sidecar, StagingResult};
pub use settings::{Settings, flags};
pub use stage::{StagingError, stage};
