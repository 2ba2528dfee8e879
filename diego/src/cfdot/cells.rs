//! Commands about cells: their presences from the BBS, their states from their reps.

use bbs_client::BbsClient;
use bbs_models::CellPresence;
use clap::Subcommand;
use rep_client::{RepClient, STATE_TIMEOUT};
use serde_json::value::RawValue;

use super::connection::Connection;
use super::failure::chain;
use super::{Failure, line, lines};

#[derive(Subcommand)]
pub enum Command {
    /// List registered cell presences.
    Cells,
    /// Show the specified cell presence.
    Cell { cell_id: String },
    /// Show the specified cell state.
    CellState { cell_id: String },
    /// Show cell states for all cells.
    CellStates,
}

pub async fn run(connection: &Connection, command: Command) -> Result<(), Failure> {
    let bbs = connection.bbs()?;
    match command {
        Command::Cells => lines(&bbs.cells().await?),
        Command::Cell { cell_id } => line(&find(&bbs, &cell_id).await?),
        Command::CellState { cell_id } => {
            let cell = find(&bbs, &cell_id).await?;
            state(&connection.cells()?, &cell).await
        }
        Command::CellStates => {
            let http = connection.cells()?;
            let registered = bbs.cells().await.map_err(Failure::from);
            let unknown = |why| format!("BBS error: Failed to get cell registrations from BBS: {why}");
            states(&http, &registered.map_err(|why| Failure::Component(unknown(why)))?).await
        }
    }
}

async fn find(bbs: &BbsClient, cell_id: &str) -> Result<CellPresence, Failure> {
    let found = bbs.cells().await?.into_iter().find(|cell| cell.cell_id == cell_id);
    found.ok_or_else(|| Failure::Other("Cell not found".into()))
}

/// Of each cell that answers; then what is wrong with the others.
async fn states(http: &reqwest::Client, cells: &[CellPresence]) -> Result<(), Failure> {
    let mut silent = Vec::new();
    for cell in cells {
        match state(http, cell).await {
            Err(Failure::Component(reason)) => silent.push(reason),
            printed => printed?,
        }
    }
    if silent.is_empty() { Ok(()) } else { Err(Failure::Component(silent.join("\n"))) }
}

/// As its rep says it.
async fn state(http: &reqwest::Client, cell: &CellPresence) -> Result<(), Failure> {
    let url = if cell.rep_url.is_empty() { &cell.rep_address } else { &cell.rep_url };
    match RepClient::new(http.clone(), url).state_as::<Box<RawValue>>(STATE_TIMEOUT).await {
        Ok(state) => line(&state),
        Err(error) => Err(Failure::Component(format!(
            "Rep error: Failed to get cell state for cell {}: {}",
            cell.cell_id,
            chain(&error)
        ))),
    }
}
