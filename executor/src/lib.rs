//! Runs recipes: turns an allocated container and its actions into processes inside a garden container.
//!
//! Knows containers and steps; knows no LRP and no Task. The rep drives it through [`Executor`] and learns what
//! happened from its [`Event`]s.

pub mod container;

pub use container::*;
