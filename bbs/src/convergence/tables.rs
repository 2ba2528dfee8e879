//! Convergence as tables: who is there, what is there, what is to be done.

use std::collections::HashSet;
use std::sync::Arc;

use bbs_models::{Task, TaskCompletion, TaskOutcome, TaskState};

use super::{LiveCells, Patience, Repair, repairs};
use crate::picture::{DOMAIN, board, desired, task};
use crate::state::{Change, State};
use crate::transitions::domain::FOREVER_NS;

const SECOND: i64 = 1_000_000_000;

fn live(cells: &str) -> LiveCells {
    if cells == "?" {
        return LiveCells::NotYetKnown;
    }
    LiveCells::Known(cells.split_whitespace().map(String::from).collect::<HashSet<_>>())
}

fn text(repair: &Repair) -> String {
    match repair {
        Repair::PruneDomain { domain } => format!("prune {domain}"),
        Repair::CreateInstance { key } => format!("create {}", key.index),
        Repair::AuctionAgain { key } => format!("auction {}", key.index),
        Repair::RestartCrashed { key } => format!("restart {}", key.index),
        Repair::Retire { key } => format!("retire {}", key.index),
        Repair::CellLost { key, instance } => format!("lost {}@{}", key.index, instance.cell_id),
        Repair::PromoteSuspect { key } => format!("promote {}", key.index),
        Repair::RemoveSuspect { key } => format!("unsuspect {}", key.index),
        Repair::RemoveEvacuating { key, .. } => format!("left {}", key.index),
        Repair::UpdateInstance { key, internal_routes, metric_tags, .. } => {
            format!("update {} {:?} {:?}", key.index, internal_routes.is_some(), metric_tags.is_some())
        }
        Repair::FailTask { reason, .. } => format!("fail: {reason}"),
        Repair::AuctionTask { .. } => "auction".into(),
        Repair::DemoteTask { .. } => "demote".into(),
        Repair::DeleteTask { .. } => "delete".into(),
        Repair::CallBack { .. } => "call back".into(),
    }
}

fn found(state: &State, cells: &str, now_s: i64) -> String {
    let found = repairs(state, &live(cells), &Patience::default(), now_s * SECOND);
    let mut texts: Vec<String> = found.iter().map(text).collect();
    texts.sort();
    texts.join(", ")
}

fn with_domain(mut state: State, expires_at_ns: i64) -> State {
    state.apply(&Change::Domain { domain: DOMAIN.into(), before: None, after: Some(expires_at_ns) });
    state
}

#[test]
fn lrps_of_a_fresh_domain() {
    for (instances, slots, cells, now_s, expected) in [
        (Some(2), &["R@a", "R@b"][..], "a b", 0, ""),
        (Some(2), &["R@a"], "a", 0, "create 1"),
        (Some(2), &["-", "R@a"], "a", 0, "create 0"),
        (Some(2), &["E:R@a", "R@a"], "a", 0, "create 0"),
        (Some(1), &["R@a", "R@a"], "a", 0, "retire 1"),
        (Some(0), &["U"], "", 0, "retire 0"),
        (None, &["R@a", "X"], "a", 0, "retire 0, retire 1"),
        (None, &["S:R@a"], "", 0, "unsuspect 0"),
        (None, &["U S:R@a"], "", 0, "retire 0, unsuspect 0"),
        (Some(1), &["U"], "", 30, ""),
        (Some(1), &["U"], "", 31, "auction 0"),
        (Some(1), &["U"], "", -30, ""),
        (Some(1), &["U"], "", -31, "auction 0"),
        (Some(1), &["R@a"], "b", 0, "lost 0@a"),
        (Some(1), &["C@a"], "", 0, "lost 0@a"),
        (Some(1), &["R@a"], "?", 0, ""),
        (Some(1), &["C@b S:R@a"], "", 0, "lost 0@b"),
        (Some(1), &["C@b S:R@a"], "b", 0, ""),
        (Some(1), &["C@b S:R@a"], "a b", 0, "promote 0"),
        (Some(1), &["U S:R@a"], "a", 60, "promote 0"),
        (Some(1), &["R@b S:R@a"], "b", 0, "unsuspect 0"),
        (Some(1), &["R@b S:R@a"], "a b", 0, "unsuspect 0"),
        (Some(1), &["R@b E:R@a"], "b", 0, "left 0"),
        (Some(1), &["U E:R@a"], "a", 0, ""),
        (Some(1), &["U E:R@a"], "?", 0, ""),
    ] {
        let state = with_domain(board(instances, slots), FOREVER_NS);
        assert_eq!(found(&state, cells, now_s), expected, "{instances:?} {slots:?} on {cells:?} at {now_s}");
    }
}

#[test]
fn what_is_extra_in_a_stale_domain_is_left_alone() {
    assert_eq!(found(&board(Some(1), &["R@a", "R@a"]), "a", 0), "");
    assert_eq!(found(&board(None, &["R@a"]), "a", 0), "");
    assert_eq!(found(&board(None, &["S:R@a"]), "b", 0), "");
    assert_eq!(found(&board(None, &["S:R@a"]), "a", 0), "promote 0", "its cell is back");
    let stale = with_domain(board(None, &["R@a"]), 10 * SECOND);
    assert_eq!(found(&stale, "a", 10), "prune d");
    assert_eq!(found(&stale, "a", 9), "retire 0");
    assert_eq!(found(&board(Some(2), &["R@a"]), "a", 0), "create 1", "what is missing is made");
}

#[test]
fn a_crashed_instance_comes_back_when_it_is_due() {
    for (crash_count, now_s, expected) in [
        (1, 0, "restart 0"),
        (3, 29, ""),
        (3, 30, "restart 0"),
        (4, 59, ""),
        (3, -29, ""),
        (3, -31, "restart 0"),
        (200, 100_000, ""),
    ] {
        let mut state = board(Some(1), &["X"]);
        let before = state.slot("p", 0);
        let mut lrp = (**before.ordinary.as_ref().unwrap()).clone();
        lrp.crash_count = crash_count;
        let after = crate::state::Slot { ordinary: Some(Arc::new(lrp)), ..before.clone() };
        let change = crate::state::SlotChange {
            process_guid: "p".into(),
            index: 0,
            before,
            after,
            moves: Vec::new(),
            crashed: false,
        };
        state.apply(&Change::ActualLrp(change));
        assert_eq!(found(&state, "", now_s), expected, "{crash_count} crashes, {now_s} s");
    }
}

#[test]
fn an_instance_that_missed_an_update_is_told_again() {
    let mut state = board(Some(1), &["R@a"]);
    let mut changed = desired(1);
    changed.routes.insert_raw("internal-router", r#"[{"hostname":"a.internal"}]"#.into()).unwrap();
    changed.metric_tags.insert("index".into(), bbs_models::MetricTagValue::Index);
    state.apply(&Change::DesiredLrp { before: None, after: Some(Arc::new(changed)) });
    assert_eq!(found(&state, "a", 0), "update 0 true true");
}

fn completion(first_completed_at_s: i64) -> TaskCompletion {
    let outcome = TaskOutcome::Succeeded { result: String::new() };
    TaskCompletion { outcome, first_completed_at_ns: first_completed_at_s * SECOND }
}

#[test]
fn tasks() {
    let running = || TaskState::Running { cell_id: "a".into() };
    let done = || TaskState::Completed(completion(0));
    let resolving = || TaskState::Resolving(completion(0));
    for (state, callback, cells, now_s, expected) in [
        (TaskState::Pending, false, "", 15, ""),
        (TaskState::Pending, false, "", 16, "auction"),
        (TaskState::Pending, false, "", -15, ""),
        (TaskState::Pending, false, "", -16, "auction"),
        (TaskState::Pending, false, "", -9999, "auction"),
        (TaskState::Pending, false, "", 1801, "fail: not started within time limit"),
        (running(), false, "a", 9999, ""),
        (running(), false, "b", 0, "fail: cell disappeared before completion"),
        (running(), false, "?", 0, ""),
        (done(), true, "", 30, ""),
        (done(), true, "", 31, "call back"),
        (done(), false, "", 31, ""),
        (done(), true, "", 121, "delete"),
        (resolving(), true, "", 30, ""),
        (resolving(), true, "", 31, "call back, demote"),
        (resolving(), false, "", 31, "demote"),
        (resolving(), true, "", 121, "delete, demote"),
    ] {
        let mut one: Task = task(state.clone());
        if callback {
            one.definition.completion_callback_url = "http://x".into();
        }
        let mut board = State::default();
        board.apply(&Change::Task { before: None, after: Some(Arc::new(one)) });
        assert_eq!(found(&board, cells, now_s), expected, "{state:?} on {cells:?} at {now_s}");
    }
}
