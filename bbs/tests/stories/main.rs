//! Stories about the BBS as its clients see it: over HTTP, with a database, and with peers that write down what they hear.
//! Here with a file; beside it the same ones with a server of PostgreSQL, and of MariaDB.

mod api;
mod bad_bytes;
mod bad_values;
mod calls;
mod durability;
mod files;
mod gone;
mod lrps;
mod servers;
mod tasks;
mod world;

const DATABASE: servers::Kind = servers::Kind::Sqlite;
