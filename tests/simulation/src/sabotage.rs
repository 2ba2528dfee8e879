//! What a simulation may be made to do wrong, to prove that it would be seen.

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Sabotage {
    #[default]
    None,
    /// The executor starts the process of a Task a second time.
    TasksRunTwice,
    /// The executor says that it stops and deletes containers, and does not.
    NothingStops,
    /// The database acknowledges some commits and forgets them.
    CommitsForgotten,
    /// The auctioneer hears of nothing.
    NoAuctions,
}
