//! Slots and Tasks as short texts, for tests that are tables.
//!
//! An instance: `U` unclaimed, `C@cell` claimed, `R@cell` running, `X` crashed; its guid is `i-cell`. Suspects have an `S:`
//! before that, evacuating ones an `E:`. A slot is some of them, as in `U S:R@b`; an empty one is `-`.

use std::sync::Arc;

use bbs_models::{
    Action, ActualLrp, ActualLrpInstanceKey, ActualLrpKey, ActualLrpNetInfo, ActualLrpState, DesiredLrp,
    Presence, RunAction, Task, TaskDefinition, TaskState,
};

use crate::state::{Change, Move, Slot, SlotChange, State};
use crate::transitions::actual_lrp::Report;

pub const DOMAIN: &str = "d";
pub const GUID: &str = "p";

pub fn on(cell: &str) -> ActualLrpInstanceKey {
    ActualLrpInstanceKey::new(format!("i-{cell}"), cell)
}

pub fn key(index: u32) -> ActualLrpKey {
    ActualLrpKey::new(GUID, index, DOMAIN)
}

pub fn net_info() -> ActualLrpNetInfo {
    ActualLrpNetInfo { address: "10.0.0.1".into(), ..ActualLrpNetInfo::default() }
}

pub fn report(cell: &str) -> Report {
    Report {
        key: key(0),
        instance: on(cell),
        net_info: net_info(),
        internal_routes: Vec::new(),
        metric_tags: Default::default(),
        routable: true,
        availability_zone: "z1".into(),
    }
}

fn state(text: &str) -> ActualLrpState {
    match text.split_once('@') {
        None if text == "U" => ActualLrpState::Unclaimed { placement_error: String::new() },
        None if text == "X" => ActualLrpState::Crashed,
        Some(("C", cell)) => ActualLrpState::Claimed { instance: on(cell) },
        Some(("R", cell)) => ActualLrpState::Running { instance: on(cell), net_info: net_info() },
        _ => panic!("no instance: {text}"),
    }
}

pub fn lrp(text: &str, index: u32) -> ActualLrp {
    let (presence, text) = match text.split_once(':') {
        Some(("S", rest)) => (Presence::Suspect, rest),
        Some(("E", rest)) => (Presence::Evacuating, rest),
        _ => (Presence::Ordinary, text),
    };
    let mut lrp = ActualLrp { state: state(text), presence, ..ActualLrp::unclaimed(key(index), 0) };
    if lrp.is_running() {
        lrp.routable = Some(true);
        lrp.availability_zone = "z1".into();
    }
    lrp
}

pub fn slot_of(text: &str, index: u32) -> Slot {
    let mut slot = Slot::default();
    for text in text.split_whitespace().filter(|text| *text != "-") {
        let lrp = Arc::new(lrp(text, index));
        *slot.slot_mut(lrp.presence) = Some(lrp.clone());
    }
    slot
}

pub fn slot(text: &str) -> Slot {
    slot_of(text, 0)
}

pub fn of_lrp(lrp: &ActualLrp) -> String {
    let presence = match lrp.presence {
        Presence::Ordinary => "",
        Presence::Evacuating => "E:",
        Presence::Suspect => "S:",
    };
    let cell = lrp.cell_id().map(|cell| format!("@{cell}")).unwrap_or_default();
    let letter = match &lrp.state {
        ActualLrpState::Unclaimed { .. } => "U",
        ActualLrpState::Claimed { .. } => "C",
        ActualLrpState::Running { .. } => "R",
        ActualLrpState::Crashed => "X",
    };
    format!("{presence}{letter}{cell}")
}

pub fn of_slot(slot: &Slot) -> String {
    let texts: Vec<String> = slot.iter().map(|lrp| of_lrp(lrp)).collect();
    if texts.is_empty() { "-".into() } else { texts.join(" ") }
}

/// `+U` created, `-U` removed, `U>C@a` changed.
pub fn of_moves(moves: &[Move]) -> String {
    let one = |one: &Move| match one {
        Move::Created(lrp) => format!("+{}", of_lrp(lrp)),
        Move::Removed(lrp) => format!("-{}", of_lrp(lrp)),
        Move::Changed { before, after } => format!("{}>{}", of_lrp(before), of_lrp(after)),
    };
    moves.iter().map(one).collect::<Vec<_>>().join(" ")
}

pub fn run() -> Action {
    Action::Run(RunAction { path: "x".into(), user: "u".into(), ..RunAction::default() })
}

pub fn desired(instances: u32) -> DesiredLrp {
    DesiredLrp { instances, ..DesiredLrp::new(GUID, DOMAIN, "preloaded:x", run()) }
}

pub fn task(state: TaskState) -> Task {
    Task { state, ..Task::pending("t", DOMAIN, TaskDefinition::new("preloaded:x", run()), 0) }
}

/// A state with these slots, from index 0 on, of an LRP with so many desired instances.
pub fn board(instances: Option<u32>, slots: &[&str]) -> State {
    let mut state = State::default();
    if let Some(instances) = instances {
        state.apply(&Change::DesiredLrp { before: None, after: Some(Arc::new(desired(instances))) });
    }
    for (index, text) in (0..).zip(slots) {
        state.apply(&Change::ActualLrp(SlotChange {
            process_guid: GUID.into(),
            index,
            before: Slot::default(),
            after: slot_of(text, index),
            moves: Vec::new(),
            crashed: false,
        }));
    }
    state
}
