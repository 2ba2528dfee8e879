//! Decides and connects: places work on cells, tells routers where instances are, leads ssh to them and serves the
//! files they download. Never runs a container. The modules are siblings that do not import one another; what the
//! route emitter and the router both need, the routing table, stands beside them.

pub mod auctioneer;
pub mod file_server;
pub mod route_emitter;
pub mod router;
pub mod routes;
pub mod ssh_proxy;
