//! The stories of `stories`, on MariaDB, and those that only servers have.

#[path = "stories/api.rs"]
mod api;
#[path = "stories/durability.rs"]
mod durability;
#[path = "stories/fencing.rs"]
mod fencing;
#[path = "stories/lockets.rs"]
mod lockets;
#[path = "stories/lrps.rs"]
mod lrps;
#[path = "stories/secured.rs"]
mod secured;
#[path = "stories/servers.rs"]
mod servers;
#[path = "stories/tasks.rs"]
mod tasks;
#[path = "stories/world.rs"]
mod world;

const DATABASE: servers::Kind = servers::Kind::Mysql;
