//! What every process of the project shares, and nothing else: a clock that can be handed in, a way to serve HTTP,
//! an HTTP client, logs, and directories of one's own. A closed list, not a drawer: what two components want and these do not cover
//! belongs to one of the two.

pub mod clock;
pub mod directory;
pub mod http;
pub mod names;
pub mod serve;
pub mod telemetry;
pub mod tls;
