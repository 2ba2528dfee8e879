//! Checks: how a container is found healthy, unhealthy, ready.
//!
//! Declarative checks are made by the cell itself, in the container's network, without a process in it; a monitor action is run as
//! the steps it asks for. Startup checks become denser at first than the interval asks for, so that what starts
//! quickly is found quickly.

mod http;
mod monitor;
mod probe;
mod repeat;
mod rounds;
mod vantage;

pub(crate) use monitor::{Monitor, Readiness, monitor, readiness};
pub(crate) use probe::{Check, Phase, Probe, check};
pub(crate) use repeat::{Repeat, Until, repeat};
pub(crate) use rounds::Rounds;
pub(crate) use vantage::Vantage;
