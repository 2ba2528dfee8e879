//! Stories about the BBS as its clients see it: over HTTP, with a file, and with peers that write down what they hear.

mod api;
mod durability;
mod lrps;
mod tasks;
mod world;
