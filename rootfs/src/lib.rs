//! Images turned into roots: pulled once, stored once, mounted for each container.
//!
//! ```text
//! ImageRef ──pull──▶ Image { layers, config } ──mount(handle)──▶ RootMount (a detached overlay)
//! ```
//! [`Store`](store::Store) is the door: it pulls from registries, layout directories and preloaded roots, keeps each
//! layer unpacked once, and stacks layers into roots. [`registry::cache`] is a registry of its own. This crate knows
//! no container: a handle is a name for a root, and who mounts it where is not its business.

pub mod digest;
pub mod image;
pub mod manifest;
pub mod registry;
mod tree;
pub mod unpack;
