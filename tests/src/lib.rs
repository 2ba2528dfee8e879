//! What the stories of the whole are told with: a world (a Diego of one machine, started as a user would start it), a
//! registry that can misbehave, and a count of what the kernel holds for us.

mod footprint;
mod images;
mod registry;
mod userland;
mod world;

pub use footprint::Footprint;
pub use images::{Entry, Image, busybox_image};
pub use registry::{Fault, Registry};
pub use userland::userland;
pub use world::{Answer, Machine, World, diego, require_root};
