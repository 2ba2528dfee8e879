//! The state machines as tables: what is there, what is asked, what is there then.

use bbs_models::{ActualLrp, Error, Task, TaskCompletion, TaskOutcome, TaskState, UpdateStrategy};

use super::evacuation::{Evacuated, Replacing};
use super::{actual_lrp, evacuation, suspect, task};
use crate::picture::{GUID, key, of_moves, of_slot, on, report, slot};
use crate::state::{Change, Move, Slot, SlotChange};

const NOW: i64 = 1_000;

/// The slot afterwards and the moves, or the refusal; nothing but the slot if nothing happened.
fn told(before: &str, outcome: Result<Option<SlotChange>, Error>) -> String {
    match outcome {
        Ok(None) => of_slot(&slot(before)),
        Ok(Some(change)) => {
            assert_eq!(change.before, slot(before), "what was there is told as it was");
            format!("{} | {}", of_slot(&change.after), of_moves(&change.moves))
        }
        Err(error) => error.kind.name().to_string(),
    }
}

fn check(cases: &[(&str, &str)], transition: impl Fn(Slot) -> Result<Option<SlotChange>, Error>) {
    for (before, expected) in cases {
        assert_eq!(told(before, transition(slot(before))), *expected, "from {before}");
    }
}

#[test]
fn create() {
    check(&[("-", "U | +U"), ("U", "ResourceExists"), ("E:R@b", "U E:R@b | +U")], |slot| {
        actual_lrp::create(slot, key(0), "e".into(), NOW)
    });
}

#[test]
fn claim() {
    check(
        &[
            ("-", "ResourceNotFound"),
            ("U", "C@a | U>C@a"),
            ("C@a", "C@a"),
            ("C@b", "ActualLRPCannotBeClaimed"),
            ("R@a", "C@a | R@a>C@a"),
            ("R@b", "ActualLRPCannotBeClaimed"),
            ("X", "ActualLRPCannotBeClaimed"),
            ("U S:R@a", "U S:R@a"),
            ("U S:R@b", "C@a S:R@b | U>C@a"),
            ("E:R@b", "ResourceNotFound"),
        ],
        |slot| actual_lrp::claim(slot, GUID, 0, on("a"), NOW),
    );
}

#[test]
fn start() {
    check(
        &[
            ("-", "R@a | +R@a"),
            ("U", "R@a | U>R@a"),
            ("C@a", "R@a | C@a>R@a"),
            ("C@b", "R@a | C@b>R@a"),
            ("R@a", "R@a"),
            ("R@b", "ActualLRPCannotBeStarted"),
            ("X", "ActualLRPCannotBeStarted"),
            ("C@a E:R@b", "R@a | C@a>R@a -E:R@b"),
            ("C@a S:R@b", "R@a | C@a>R@a -S:R@b"),
            ("R@a S:R@b", "R@a | -S:R@b"),
            ("U S:R@a", "U S:R@a"),
        ],
        |slot| actual_lrp::start(slot, report("a"), "e".into(), NOW),
    );
}

#[test]
fn a_heartbeat_with_news_changes_what_runs() {
    let mut news = report("a");
    news.routable = false;
    let change = actual_lrp::start(slot("R@a"), news, "e".into(), NOW).unwrap().unwrap();
    let after = change.after.ordinary.unwrap();
    assert_eq!((after.routable, after.modification_tag.index), (Some(false), 1));
}

#[test]
fn a_start_in_another_domain_is_refused() {
    let mut other = report("a");
    other.key.domain = "other".into();
    let error = actual_lrp::start(slot("C@a"), other, "e".into(), NOW).unwrap_err();
    assert_eq!(error, Error::cannot_be_started());
}

#[test]
fn crash() {
    check(
        &[
            ("-", "ResourceNotFound"),
            ("U", "ActualLRPCannotBeCrashed"),
            ("C@a", "U | C@a>U"),
            ("C@b", "ActualLRPCannotBeCrashed"),
            ("R@a", "U | R@a>U"),
            ("R@b", "ActualLRPCannotBeCrashed"),
            ("X", "ActualLRPCannotBeCrashed"),
            ("U S:R@a", "U | -S:R@a"),
        ],
        |slot| actual_lrp::crash(slot, GUID, 0, &on("a"), "why".into(), NOW).map(|(change, _)| change),
    );
}

/// What the `count + 1`-th crash of an instance makes of it.
fn crash_after(count: u32, now_ns: i64) -> (ActualLrp, bool) {
    let mut slot = slot("R@a");
    slot.ordinary = slot.ordinary.map(|lrp| ActualLrp { crash_count: count, ..(*lrp).clone() }.into());
    let (change, restarts) = actual_lrp::crash(slot, GUID, 0, &on("a"), "why".into(), now_ns).unwrap();
    let after = change.unwrap().after.ordinary.unwrap();
    ((*after).clone(), restarts)
}

#[test]
fn the_third_crash_in_a_row_waits() {
    for (count, now_ns, state, crash_count, restarts) in [
        (0, NOW, "UNCLAIMED", 1, true),
        (1, NOW, "UNCLAIMED", 2, true),
        (2, NOW, "CRASHED", 3, false),
        (150, NOW, "CRASHED", 151, false),
        (150, 301_000_000_000, "UNCLAIMED", 1, true),
    ] {
        let (after, restarted) = crash_after(count, now_ns);
        assert_eq!((after.state.name(), after.crash_count, restarted), (state, crash_count, restarts));
        assert_eq!((after.crash_reason.as_str(), after.since_ns), ("why", now_ns));
    }
}

#[test]
fn fail() {
    check(
        &[
            ("-", "-"),
            ("U", "U | U>U"),
            ("C@a", "ActualLRPCannotBeFailed"),
            ("R@a", "ActualLRPCannotBeFailed"),
            ("X", "ActualLRPCannotBeFailed"),
        ],
        |slot| actual_lrp::fail(slot, GUID, 0, "no room".into(), NOW),
    );
}

#[test]
fn remove() {
    check(
        &[
            ("-", "ResourceNotFound"),
            ("U", "ResourceNotFound"),
            ("C@a", "- | -C@a"),
            ("R@a E:R@b", "E:R@b | -R@a"),
            ("R@b", "ResourceNotFound"),
        ],
        |slot| actual_lrp::remove(slot, GUID, 0, Some(&on("a"))),
    );
    check(&[("U", "- | -U"), ("R@b", "- | -R@b"), ("E:R@b", "ResourceNotFound")], |slot| {
        actual_lrp::remove(slot, GUID, 0, None)
    });
}

#[test]
fn retire() {
    check(
        &[
            ("-", "ResourceNotFound"),
            ("U", "- | -U"),
            ("X", "- | -X"),
            ("C@a", "C@a"),
            ("R@a E:R@b", "R@a E:R@b"),
            ("U S:R@a", "S:R@a | -U"),
            ("S:R@a", "ResourceNotFound"),
            ("E:R@a", "ResourceNotFound"),
        ],
        |slot| actual_lrp::retire(slot, GUID, 0),
    );
}

#[test]
fn unclaim() {
    check(
        &[
            ("-", "ResourceNotFound"),
            ("U", "ActualLRPCannotBeUnclaimed"),
            ("C@a", "U | C@a>U"),
            ("R@a", "U | R@a>U"),
            ("X", "U | X>U"),
        ],
        |slot| actual_lrp::unclaim(slot, GUID, 0, NOW),
    );
}

#[test]
fn a_lost_cell() {
    check(
        &[
            ("-", "ResourceNotFound"),
            ("U", "ResourceNotFound"),
            ("R@a", "U S:R@a | R@a>S:R@a +U"),
            ("C@a", "U S:C@a | C@a>S:C@a +U"),
            ("R@b", "ResourceNotFound"),
            ("C@a S:R@b", "U S:R@b | C@a>U"),
        ],
        |slot| suspect::cell_lost(slot, GUID, 0, &on("a"), "e".into(), NOW),
    );
}

#[test]
fn a_cell_that_is_back() {
    check(
        &[
            ("U", "ResourceNotFound"),
            ("S:R@a", "R@a | S:R@a>R@a"),
            ("U S:R@a", "R@a | -U S:R@a>R@a"),
            ("C@b S:R@a", "R@a | -C@b S:R@a>R@a"),
        ],
        |slot| suspect::promote(slot, GUID, 0),
    );
}

fn check_evacuation(cases: &[(&str, &str)], transition: impl Fn(Slot) -> Result<Evacuated, Error>) {
    for (before, expected) in cases {
        let outcome = transition(slot(before)).map(|evacuated| {
            let kept = if evacuated.keep_container { " kept" } else { "" };
            let auction = if evacuated.auction { " auction" } else { "" };
            format!("{}{kept}{auction}", told(before, Ok(evacuated.change)))
        });
        let outcome = outcome.unwrap_or_else(|error| error.kind.name().to_string());
        assert_eq!(outcome, *expected, "from {before}");
    }
}

#[test]
fn evacuate_claimed() {
    check_evacuation(
        &[
            ("-", "ResourceNotFound"),
            ("C@b", "ResourceNotFound"),
            ("C@a", "U | C@a>U auction"),
            ("U S:C@a", "U | -S:C@a"),
            ("U E:R@a", "U | -E:R@a"),
        ],
        |slot| evacuation::evacuate_claimed(slot, GUID, 0, &on("a"), NOW),
    );
}

#[test]
fn evacuate_crashed_and_stopped() {
    check_evacuation(
        &[("R@b", "ResourceNotFound"), ("R@a", "U | R@a>U auction"), ("U E:R@a", "U | -E:R@a")],
        |slot| evacuation::evacuate_crashed(slot, GUID, 0, &on("a"), "why".into(), NOW),
    );
    check_evacuation(
        &[("R@b", "ResourceNotFound"), ("R@a", "- | -R@a"), ("U E:R@a", "U | -E:R@a")],
        |slot| evacuation::evacuate_stopped(slot, GUID, 0, &on("a")),
    );
}

#[test]
fn evacuate_running_under_a_rolling_update() {
    let replacing = Some(Replacing { strategy: UpdateStrategy::Rolling, all_running: true });
    check_evacuation(
        &[
            ("-", "-"),
            ("R@a", "U E:R@a | R@a>E:R@a +U kept auction"),
            ("C@a", "U E:R@a | C@a>E:R@a +U kept auction"),
            ("U E:R@a", "U E:R@a kept"),
            ("C@b E:R@a", "C@b E:R@a kept"),
            ("R@b E:R@a", "R@b | -E:R@a"),
            ("X E:R@a", "X | -E:R@a"),
            ("E:R@a", "- | -E:R@a"),
            ("U E:R@b", "U E:R@b"),
            ("U", "U E:R@a | +E:R@a kept"),
            ("C@b", "C@b E:R@a | +E:R@a kept"),
            ("R@b", "R@b"),
            ("U S:R@a", "U E:R@a | S:R@a>E:R@a kept"),
            ("R@a E:R@b", "U E:R@a | -E:R@b R@a>E:R@a +U kept auction"),
        ],
        |slot| Ok(evacuation::evacuate_running(slot, report("a"), replacing, "e".into(), NOW)),
    );
}

#[test]
fn evacuate_running_of_what_is_recreated_or_no_longer_desired() {
    let recreate = |all_running| Some(Replacing { strategy: UpdateStrategy::Recreate, all_running });
    check_evacuation(&[("R@a", "R@a kept"), ("U", "U"), ("U E:R@a", "U | -E:R@a")], |slot| {
        Ok(evacuation::evacuate_running(slot, report("a"), recreate(false), "e".into(), NOW))
    });
    check_evacuation(&[("R@a", "U | R@a>U auction"), ("U S:R@a", "U | -S:R@a")], |slot| {
        Ok(evacuation::evacuate_running(slot, report("a"), recreate(true), "e".into(), NOW))
    });
    check_evacuation(
        &[
            ("R@a", "- | -R@a"),
            ("R@b", "R@b"),
            ("R@a E:R@b", "E:R@b | -R@a"),
            ("U E:R@a", "U | -E:R@a"),
            ("U S:R@a", "U | -S:R@a"),
            ("U", "U"),
        ],
        |slot| Ok(evacuation::evacuate_running(slot, report("a"), None, "e".into(), NOW)),
    );
}

#[test]
fn each_change_counts_the_tag_up_and_each_new_record_has_a_new_epoch() {
    let claimed = actual_lrp::claim(slot("U"), GUID, 0, on("a"), NOW).unwrap().unwrap();
    assert_eq!(claimed.after.ordinary.unwrap().modification_tag.index, 1);
    let evacuated = evacuation::evacuate_running(
        slot("R@a"),
        report("a"),
        Some(Replacing { strategy: UpdateStrategy::Rolling, all_running: true }),
        "new".into(),
        NOW,
    );
    let after = evacuated.change.unwrap().after;
    assert_eq!(after.evacuating.unwrap().modification_tag.epoch, "new");
    assert_eq!(after.ordinary.unwrap().modification_tag.index, 1);
}

#[test]
fn a_change_can_be_taken_back() {
    let mut state = crate::picture::board(Some(1), &["R@a"]);
    let change = suspect::cell_lost(slot("R@a"), GUID, 0, &on("a"), "e".into(), NOW).unwrap().unwrap();
    assert!(matches!(change.moves[..], [Move::Changed { .. }, Move::Created(_)]));
    let change = Change::ActualLrp(change);
    state.apply(&change);
    assert_eq!(of_slot(&state.slot(GUID, 0)), "U S:R@a");
    state.revert(&change);
    assert_eq!(of_slot(&state.slot(GUID, 0)), "R@a");
}

fn completed() -> TaskState {
    let outcome = TaskOutcome::Succeeded { result: "42".into() };
    TaskState::Completed(TaskCompletion { outcome, first_completed_at_ns: 5 })
}

fn resolving() -> TaskState {
    let TaskState::Completed(completion) = completed() else { panic!("completed") };
    TaskState::Resolving(completion)
}

type Old = Option<std::sync::Arc<Task>>;

/// For each of: no Task, Pending, Running on `a`, Completed, Resolving.
fn check_task(expected: [&str; 5], transition: impl Fn(Old) -> Result<Option<Change>, Error>) {
    let running = TaskState::Running { cell_id: "a".into() };
    let states = [None, Some(TaskState::Pending), Some(running), Some(completed()), Some(resolving())];
    for (state, expected) in states.into_iter().zip(expected) {
        let old = state.clone().map(|state| std::sync::Arc::new(crate::picture::task(state)));
        let outcome = match transition(old) {
            Ok(None) => "same".to_string(),
            Ok(Some(Change::Task { after: Some(task), .. })) => task.state.name().to_string(),
            Ok(Some(_)) => "gone".to_string(),
            Err(error) => error.message,
        };
        assert_eq!(outcome, expected, "from {state:?}");
    }
}

const NOT_FOUND: &str = "the requested resource could not be found";

#[test]
fn the_life_of_a_task() {
    check_task(
        [
            NOT_FOUND,
            "Running",
            "same",
            "Cannot transition from Completed to Running",
            "Cannot transition from Resolving to Running",
        ],
        |old| task::start(old, "a".into(), NOW),
    );
    check_task(
        [
            NOT_FOUND,
            "Cannot transition from Pending to Completed",
            "Completed",
            "Cannot transition from Completed to Completed",
            "Cannot transition from Resolving to Completed",
        ],
        |old| task::complete(old, "a", TaskOutcome::Succeeded { result: "".into() }, NOW).map(Some),
    );
    check_task(
        [
            NOT_FOUND,
            "Completed",
            "Completed",
            "Cannot transition from Completed to Completed",
            "Cannot transition from Resolving to Completed",
        ],
        |old| task::fail(old, task::CANCELLED.into(), NOW).map(Some),
    );
    let invalid = "the request received is invalid";
    check_task([NOT_FOUND, "Pending", "Pending", invalid, invalid], |old| {
        task::reject(old, "no room".into(), 3, NOW).map(Some)
    });
    check_task(
        [NOT_FOUND, "Pending", "Cannot transition from Running to Pending", invalid, invalid],
        |old| task::reject(old, "insufficient resources: memory".into(), 3, NOW).map(Some),
    );
    check_task(
        [
            NOT_FOUND,
            "Completed",
            "Completed",
            "Cannot transition from Completed to Completed",
            "Cannot transition from Resolving to Completed",
        ],
        |old| task::reject(old, "no room".into(), 0, NOW).map(Some),
    );
    check_task(
        [
            NOT_FOUND,
            "Cannot transition from Pending to Resolving",
            "Cannot transition from Running to Resolving",
            "Resolving",
            "Cannot transition from Resolving to Resolving",
        ],
        |old| task::resolving(old, NOW).map(Some),
    );
    check_task(
        [
            NOT_FOUND,
            "Cannot transition from Pending to Resolving",
            "Cannot transition from Running to Resolving",
            "Cannot transition from Completed to Resolving",
            "gone",
        ],
        |old| task::delete(old).map(Some),
    );
}

#[test]
fn another_cell_neither_starts_nor_completes_a_running_task() {
    let running = || {
        let state = TaskState::Running { cell_id: "a".into() };
        Some(std::sync::Arc::new(crate::picture::task(state)))
    };
    let error = task::start(running(), "b".into(), NOW).unwrap_err();
    assert_eq!(error.message, "Cannot transition from Running to Running");
    let outcome = TaskOutcome::Succeeded { result: String::new() };
    let error = task::complete(running(), "b", outcome, NOW).unwrap_err();
    assert_eq!(error.message, "Running on cell a not b");
}

#[test]
fn a_demoted_task_keeps_its_times() {
    let old = Some(std::sync::Arc::new(crate::picture::task(resolving())));
    let Change::Task { after: Some(task), .. } = task::demote(old).unwrap() else { panic!("a Task") };
    assert_eq!((task.updated_at_ns, &task.state), (0, &completed()));
}
