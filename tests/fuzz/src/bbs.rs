//! What clients send to the BBS: any bytes as each of its messages. What is read is written as the same, what is valid stays
//! valid, and nothing takes much more memory than it has bytes.
#![no_main]

use std::alloc::System;
use std::fmt::Debug;

use bbs_models::{
    ActualLrp, ActualLrpGroup, CellPresence, DesiredLrp, DesiredLrpUpdate, RoutingInfo, SchedulingInfo, Task,
    TaskDefinition, wire,
};
use cap::Cap;
use libfuzzer_sys::fuzz_target;
use prost::Message;
use serde::Serialize;
use serde::de::DeserializeOwned;
use wire::Invalid;

#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, usize::MAX);

/// Two bytes are an empty action, which is nine words; lists grow by doubling, and are there twice while they are parsed.
const MEMORY_FACTOR_MAX: usize = 400;
const MEMORY_BASE_BYTES: usize = 1024 * 1024;

fuzz_target!(|data: &[u8]| {
    let Some((&kind, body)) = data.split_first() else { return };
    let allowed = MEMORY_BASE_BYTES + MEMORY_FACTOR_MAX * body.len();
    assert!(ALLOCATOR.set_limit(ALLOCATOR.allocated() + allowed).is_ok());
    KINDS[usize::from(kind) % KINDS.len()](body);
    assert!(ALLOCATOR.set_limit(usize::MAX).is_ok());
});

const KINDS: [fn(&[u8]); 32] = [
    |body| request(body, wire::UpsertDomainRequest::parse),
    |body| request(body, wire::ActualLrpsRequest::parse),
    |body| request(body, wire::ActualLrpsByProcessGuidsRequest::parse),
    |body| request(body, wire::ActualLrpGroupByProcessGuidAndIndexRequest::parse),
    |body| request(body, wire::IndexedInstanceRequest::parse_claim),
    |body| request(body, wire::IndexedInstanceRequest::parse_remove),
    |body| request(body, wire::StartActualLrpRequest::parse),
    |body| request(body, wire::EvacuateRunningActualLrpRequest::parse),
    |body| request(body, wire::CrashActualLrpRequest::parse_crash),
    |body| request(body, wire::CrashActualLrpRequest::parse_evacuate),
    |body| request(body, wire::InstanceRequest::parse),
    |body| request(body, wire::FailActualLrpRequest::parse),
    |body| request(body, wire::RetireActualLrpRequest::parse),
    |body| request(body, wire::DesiredLrpsRequest::parse),
    |body| request(body, wire::ProcessGuidRequest::parse),
    |body| request(body, wire::DesireLrpRequest::parse),
    |body| request(body, wire::UpdateDesiredLrpRequest::parse),
    |body| request(body, wire::TasksRequest::parse),
    |body| request(body, wire::TaskGuidRequest::parse),
    |body| request(body, wire::DesireTaskRequest::parse),
    |body| request(body, wire::StartTaskRequest::parse),
    |body| request(body, wire::TaskReasonRequest::parse),
    |body| request(body, wire::CompleteTaskRequest::parse),
    |body| value::<wire::DesiredLrp, DesiredLrp>(body),
    |body| value::<wire::DesiredLrp, RoutingInfo>(body),
    |body| value::<wire::DesiredLrpSchedulingInfo, SchedulingInfo>(body),
    |body| value::<wire::ActualLrp, ActualLrp>(body),
    |body| value::<wire::ActualLrpGroup, ActualLrpGroup>(body),
    |body| value::<wire::Task, Task>(body),
    updates,
    events,
    others,
];

/// What was read is written as the same.
fn read<M: Message + Default + Clone + PartialEq>(body: &[u8]) -> Option<M> {
    let message: M = wire::decode(body).ok()?;
    assert!(
        wire::decode(&message.encode_to_vec()).as_ref() == Ok(&message),
        "what was written is read otherwise"
    );
    Some(message)
}

fn request<M, T>(body: &[u8], parse: fn(M) -> Result<T, Invalid>)
where
    M: Message + Default + Clone + PartialEq,
{
    if let Some(Err(invalid)) = read(body).map(parse) {
        assert!(!invalid.to_string().is_empty());
    }
}

/// What is valid is valid still when it has been written down and is read again.
fn kept<W, T>(model: &T)
where
    W: Message + Default + From<T>,
    T: TryFrom<W, Error = Invalid> + Clone + PartialEq + Debug,
{
    let record = W::from(model.clone()).encode_to_vec();
    let again = W::decode(&*record).expect("what was written can be read");
    assert_eq!(T::try_from(again).as_ref(), Ok(model));
}

fn value<W, T>(body: &[u8])
where
    W: Message + Default + Clone + PartialEq + From<T>,
    T: TryFrom<W, Error = Invalid> + Clone + PartialEq + Debug,
{
    if let Some(Ok(model)) = read::<W>(body).map(T::try_from) {
        kept::<W, T>(&model);
    }
}

/// An LRP and what may become of it.
fn updates(body: &[u8]) {
    let Some((&length, rest)) = body.split_first() else { return };
    let (update, lrp) = rest.split_at(rest.len().min(usize::from(length)));
    let Some(Ok(update)) = read::<wire::DesiredLrpUpdate>(update).map(DesiredLrpUpdate::try_from) else {
        return;
    };
    let Some(Ok(lrp)) = read::<wire::DesiredLrp>(lrp).map(DesiredLrp::try_from) else { return };
    kept::<wire::DesiredLrpUpdate, _>(&update);
    kept::<wire::DesiredLrp, _>(&lrp.updated(update));
}

const EVENTS: [&str; 13] = [
    "desired_lrp_created",
    "desired_lrp_changed",
    "desired_lrp_removed",
    "actual_lrp_instance_created",
    "actual_lrp_instance_changed",
    "actual_lrp_instance_removed",
    "actual_lrp_crashed",
    "actual_lrp_created",
    "actual_lrp_changed",
    "actual_lrp_removed",
    "task_created",
    "task_changed",
    "task_removed",
];

fn events(body: &[u8]) {
    let Some((&kind, payload)) = body.split_first() else { return };
    let kind = EVENTS[usize::from(kind) % EVENTS.len()];
    let Ok(event) = wire::decode_event(kind, payload) else { return };
    assert_eq!(event.event_type(), kind);
    let again = wire::decode_event(kind, &wire::encode_event(&event)).expect("what was written can be read");
    assert_eq!(again, event);
    assert!(serde_json::to_string(&event).is_ok());
}

/// Cells, Locket's messages, and the JSON that tools write.
fn others(body: &[u8]) {
    let Some((&kind, body)) = body.split_first() else { return };
    match kind % 6 {
        0 => {
            if let Some(cell) = read::<wire::CellPresence>(body) {
                let cell = CellPresence::from(cell);
                let again = wire::CellPresence::from(cell.clone());
                assert_eq!(CellPresence::from(again), cell);
            }
        }
        1 => drop(read::<wire::LockRequest>(body).and_then(|request| request.resource?.parse())),
        2 => drop(read::<wire::FetchAllResponse>(body)),
        3 => value::<wire::TaskDefinition, TaskDefinition>(body),
        4 => json::<wire::DesiredLrp, DesiredLrp>(body),
        _ => json::<wire::Task, Task>(body),
    }
}

fn json<W, T>(body: &[u8])
where
    W: Message + Default + DeserializeOwned + From<T>,
    T: TryFrom<W, Error = Invalid> + Clone + PartialEq + Debug + Serialize,
{
    let Ok(wire) = serde_json::from_slice::<W>(body) else { return };
    if let Ok(model) = T::try_from(wire) {
        kept::<W, T>(&model);
        let text = serde_json::to_vec(&model).expect("a valid value has JSON");
        let again: W = serde_json::from_slice(&text).expect("what was written can be read");
        assert_eq!(T::try_from(again).as_ref(), Ok(&model));
    }
}
