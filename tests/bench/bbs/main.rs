//! How fast the BBS is, and how large it may become: the product's own, in a process of its own with mutual TLS, its
//! cells and its auctioneer played by nobody. Figures on the last lines.
//!
//!   make bench-bbs           ONLY=operations (or many, events, auctions) measures only that part; OPERATIONS, LRPS,
//!                            INSTANCES, CELLS, SUBSCRIBERS, ROUNDS set sizes; DATABASE=mysql://… measures operations
//!                            there, too; PEER_BBS=PROGRAM the existing BBS in the same run
//!
//! The existing BBS has no SQLite: on PostgreSQL both are measured in turns, and on SQLite only ours.

mod auctions;
mod events;
#[path = "../garden/figures.rs"]
#[allow(dead_code)]
mod figures;
mod many;
mod operations;
mod peer;
mod postgres;
mod served;

use anyhow::{Result, bail};
use figures::Report;

/// As in the product's program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["serve", address, database, cells, files, ref auctioneer @ ..] => {
            let (cells, files) = (cells.parse()?, files.as_ref());
            runtime.block_on(served::serve(address, database, cells, files, auctioneer.first().copied()))
        }
        [] => runtime.block_on(measure()),
        _ => bail!("usage: bench-bbs"),
    }
}

fn number(name: &str, otherwise: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

async fn measure() -> Result<()> {
    let only = std::env::var("ONLY").unwrap_or_default();
    let wanted = |part: &str| only.is_empty() || only.split(',').any(|name| name == part);
    let mut report = Report::default();
    if wanted("auctions") {
        auctions::measure(&mut report);
    }
    if wanted("operations") {
        operations::measure(&mut report).await?;
    }
    if wanted("events") {
        events::measure(&mut report).await?;
    }
    if wanted("many") {
        many::measure(&mut report).await?;
    }
    report.print();
    Ok(())
}
