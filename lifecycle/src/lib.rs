//! What runs inside containers: `builder` stages an app with buildpacks, `launcher` starts it, `healthcheck` checks it,
//! `diego-sshd` lets its developer in. Four small static programs, for roots in which there may be nothing else; this
//! library is what they share and what tests call.
//!
//! Nothing here knows cells, LRPs or the network of the platform.

pub mod buildpack;
pub mod check;
pub mod environment;
pub mod flags;
pub mod interfaces;
pub mod launch;
pub mod sshd;
pub mod words;
pub mod yaml;
