//! `diego cells`: the machines that take work, and what each has and has left.

use anyhow::Context;
use futures_util::future::join_all;
use serde::Serialize;

use super::Failure;
use super::Global;
use super::output::{self, Row};
use super::target::Target;

#[derive(Serialize)]
struct Cell {
    cell_id: String,
    zone: String,
    rep_url: String,
    memory_mb: Amount,
    disk_mb: Amount,
    containers: Amount,
    /// `None`: the cell did not answer.
    evacuating: Option<bool>,
}

#[derive(Serialize)]
struct Amount {
    total: i64,
    free: Option<i64>,
}

impl Row for Cell {
    const HEADINGS: &'static [&'static str] =
        &["CELL", "ZONE", "MEMORY FREE/MiB", "DISK FREE/MiB", "CONTAINERS FREE", "STATE"];

    fn cells(&self) -> Vec<String> {
        let amount = |amount: &Amount| match amount.free {
            Some(free) => format!("{free} of {}", amount.total),
            None => format!("? of {}", amount.total),
        };
        let state = match self.evacuating {
            None => "does not answer",
            Some(true) => "evacuating",
            Some(false) => "takes work",
        };
        vec![
            self.cell_id.clone(),
            self.zone.clone(),
            amount(&self.memory_mb),
            amount(&self.disk_mb),
            amount(&self.containers),
            state.into(),
        ]
    }
}

pub async fn run(global: &Global) -> Result<(), Failure> {
    let target = Target::reach(global).await?;
    let presences = target.bbs.cells().await.context("cannot list the cells")?;
    let cells = join_all(presences.into_iter().map(|presence| cell(&target, presence))).await;
    output::rows(global.json, &cells)?;
    Ok(())
}

async fn cell(target: &Target, presence: bbs_models::CellPresence) -> Cell {
    let rep = rep_client::RepClient::new(target.http.clone(), &presence.rep_url);
    let state = rep.state(rep_client::STATE_TIMEOUT).await.ok();
    let amount = |total: i32, free: Option<i64>| Amount { total: total.into(), free };
    let left = state.as_ref().map(|state| &state.available_resources);
    Cell {
        memory_mb: amount(presence.capacity.memory_mb, left.map(|left| left.memory_mb.into())),
        disk_mb: amount(presence.capacity.disk_mb, left.map(|left| left.disk_mb.into())),
        containers: amount(presence.capacity.containers, left.map(|left| left.containers.into())),
        evacuating: state.as_ref().map(|state| state.evacuating),
        cell_id: presence.cell_id,
        zone: presence.zone,
        rep_url: presence.rep_url,
    }
}
