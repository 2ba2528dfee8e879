//! Images turned into roots: pulled once, stored once, mounted for each container.
//!
//! ```text
//! ImageRef ──pull──▶ Image { layers, config } ──mount(handle)──▶ RootMount (a detached overlay)
//! ```
//! [`Store`](store::Store) is the door: it pulls from registries, layout directories and preloaded roots, keeps each
//! layer unpacked once, and stacks layers into roots. [`registry::cache`] is a registry of its own. This crate knows
//! no container: a handle is a name for a root, and who mounts it where is not its business.

pub mod admin;
mod blobs;
mod chores;
pub mod digest;
mod flight;
pub mod gc;
pub mod image;
mod layers;
mod layout;
pub mod manifest;
mod overlay;
mod pull;
pub mod quota;
pub mod registry;
mod room;
mod roots;
mod sizes;
mod stack;
pub mod store;
mod tree;
pub mod unpack;

pub use image::ImageRef;
pub use manifest::ImageConfig;
pub use pull::Progress;
pub use registry::Credentials;
pub use rootfs_ledger as ledger;
pub use store::{BaseIds, Config, DiskLimit, DiskScope, DiskUsage, Error, Image, RootMount, Store};
