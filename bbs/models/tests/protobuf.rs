//! The bytes on the wire: what other implementations of the BBS API write and read, held by hand-made messages.

use std::collections::BTreeMap;

use bbs_models::wire::{self, decode_event, encode_event, event_json};
use bbs_models::{
    Action, ActualLrp, ActualLrpCrash, ActualLrpFilter, ActualLrpInstanceKey, ActualLrpKey, ActualLrpNetInfo,
    DesiredLrp, DesiredLrpUpdate, Error, ErrorKind, Event, ModificationTag, PortMapping, Presence,
    ResourceLimits, RunAction, Task, TaskCompletion, TaskDefinition, TaskOutcome, TaskState,
};
use prost::Message;

fn hex(message: &impl Message) -> String {
    message.encode_to_vec().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Field `number` of wire type 2 with `payload`, in hex, for payloads and numbers of one byte.
fn field(number: u8, payload: &str) -> String {
    assert!(number < 16 && payload.len() / 2 < 128);
    format!("{:02x}{:02x}{payload}", number << 3 | 2, payload.len() / 2)
}

fn text(number: u8, text: &str) -> String {
    field(number, &text.bytes().map(|byte| format!("{byte:02x}")).collect::<String>())
}

fn number(field: u8, value: u8) -> String {
    assert!(field < 16 && value < 128);
    format!("{:02x}{value:02x}", field << 3)
}

fn key() -> ActualLrpKey {
    ActualLrpKey::new("p", 2, "d")
}

fn instance() -> ActualLrpInstanceKey {
    ActualLrpInstanceKey::new("i", "c")
}

#[test]
fn an_unclaimed_instance_carries_its_empty_parts() {
    let lrp = ActualLrp {
        modification_tag: ModificationTag::new("e", 3),
        routable: Some(false),
        ..ActualLrp::unclaimed(key(), 5)
    };
    let expected = [
        field(1, &[text(1, "p"), number(2, 2), text(3, "d")].concat()),
        field(2, ""),
        field(3, ""),
        text(6, "UNCLAIMED"),
        number(8, 5),
        field(9, &[text(1, "e"), number(2, 3)].concat()),
        // A one-of member is written even if it is the default: false is not the same as nothing.
        number(13, 0),
    ];
    assert_eq!(hex(&wire::ActualLrp::from(lrp)), expected.concat());
}

#[test]
fn a_running_instance_carries_where_it_is() {
    let ports = PortMapping {
        container_port: 80,
        host_port: 90,
        container_tls_proxy_port: None,
        host_tls_proxy_port: Some(91),
    };
    let net_info =
        ActualLrpNetInfo { address: "a".into(), ports: vec![ports], ..ActualLrpNetInfo::default() };
    let lrp = ActualLrp {
        presence: Presence::Suspect,
        internal_routes: vec!["h".into()],
        metric_tags: BTreeMap::from([("k".into(), "v".into())]),
        availability_zone: "z".into(),
        crash_count: 1,
        crash_reason: "r".into(),
        ..ActualLrp::running(key(), instance(), net_info, 5)
    };
    let expected = [
        field(1, &[text(1, "p"), number(2, 2), text(3, "d")].concat()),
        field(2, &[text(1, "i"), text(2, "c")].concat()),
        field(3, &[text(1, "a"), field(2, &[number(1, 80), number(2, 90), number(4, 91)].concat())].concat()),
        number(4, 1),
        text(5, "r"),
        text(6, "RUNNING"),
        number(8, 5),
        field(9, ""),
        number(10, 2),
        field(11, &text(1, "h")),
        field(12, &[text(1, "k"), text(2, "v")].concat()),
        text(14, "z"),
    ];
    assert_eq!(hex(&wire::ActualLrp::from(lrp)), expected.concat());
}

#[test]
fn ports_are_not_packed() {
    let mut lrp = DesiredLrp::new("p", "d", "r:s", run());
    lrp.ports = vec![80, 90];
    let bytes = hex(&wire::DesiredLrp::from(lrp));
    assert!(bytes.contains(&[number(14, 80), number(14, 90)].concat()), "{bytes}");
    // Packed ones are read all the same, as every protobuf reader does.
    let packed = [text(1, "p"), field(14, "505a")].concat();
    let read = wire::DesiredLrp::decode(&*unhex(&packed)).unwrap();
    assert_eq!(read.ports, [80, 90]);
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

fn run() -> Action {
    let resource_limits = Some(ResourceLimits { nofile: Some(0), nproc: None });
    Action::Run(RunAction { path: "x".into(), user: "u".into(), resource_limits, ..RunAction::default() })
}

#[test]
fn an_action_is_the_field_of_its_kind() {
    let limits = field(5, &number(1, 0));
    let run_hex = field(3, &[text(1, "x"), limits, text(6, "u")].concat());
    assert_eq!(hex(&wire::Action::from(run())), run_hex);
    let timeout =
        bbs_models::TimeoutAction { action: Box::new(run()), timeout_ms: 9, log_source: "l".into() };
    let timeout_hex = field(4, &[field(1, &run_hex), text(3, "l"), number(4, 9)].concat());
    assert_eq!(hex(&wire::Action::from(Action::Timeout(timeout))), timeout_hex);
    for (action, number) in
        [(Action::Parallel as fn(_) -> _, 7), (Action::Serial, 8), (Action::Codependent, 9)]
    {
        let many = bbs_models::ManyActions { actions: vec![run(), run()], log_source: String::new() };
        let expected = field(number, &[field(1, &run_hex), field(1, &run_hex)].concat());
        assert_eq!(hex(&wire::Action::from(action(many))), expected);
    }
}

#[test]
fn a_limit_that_was_said_is_read_again_even_if_it_limits_nothing() {
    for limits in [None, Some((None, None)), Some((Some(1), None)), Some((None, Some(2)))] {
        let resource_limits = limits.map(|(nofile, nproc)| wire::ResourceLimits { nofile, nproc });
        let said =
            wire::RunAction { path: "x".into(), user: "u".into(), resource_limits, ..Default::default() };
        assert_eq!(wire::RunAction::from(RunAction::try_from(said.clone()).unwrap()), said);
    }
}

#[test]
fn an_update_tells_zero_from_nothing() {
    let update =
        DesiredLrpUpdate { instances: Some(0), annotation: Some(String::new()), ..Default::default() };
    let bytes = [number(1, 0), field(3, "")].concat();
    assert_eq!(hex(&wire::DesiredLrpUpdate::from(update.clone())), bytes);
    let read = wire::DesiredLrpUpdate::decode(&*unhex(&bytes)).unwrap();
    assert_eq!(DesiredLrpUpdate::try_from(read).unwrap(), update);
    assert_eq!(hex(&wire::DesiredLrpUpdate::default()), "");
}

#[test]
fn a_filter_tells_index_zero_from_any_index() {
    let filter = ActualLrpFilter { index: Some(0), ..ActualLrpFilter::default() };
    assert_eq!(hex(&wire::ActualLrpsRequest::from(filter)), number(4, 0));
    assert_eq!(hex(&wire::ActualLrpsRequest::from(ActualLrpFilter::default())), "");
}

#[test]
fn errors_travel_by_number_and_text() {
    let error = Error::new(ErrorKind::LockCollision, "m");
    assert_eq!(hex(&wire::Error::from(error.clone())), [number(1, 30), text(2, "m")].concat());
    assert_eq!(Error::from(wire::Error::from(error.clone())), error);
    assert_eq!(Error::from(wire::Error { kind: 77, message: "m".into() }).kind, ErrorKind::UnknownError);
}

#[test]
fn a_completed_task_carries_its_outcome() {
    let task = |outcome| Task {
        state: TaskState::Completed(TaskCompletion { outcome, first_completed_at_ns: 7 }),
        ..Task::pending("t", "d", TaskDefinition::new("r:s", run()), 5)
    };
    let definition = hex(&wire::TaskDefinition::from(TaskDefinition::new("r:s", run())));
    let start = [field(1, &definition), text(2, "t"), text(3, "d"), number(4, 5), number(5, 5), number(6, 7)];
    let failed = task(TaskOutcome::Failed { reason: "f".into() });
    let expected = [start.concat(), number(7, 3), number(10, 1), text(11, "f")].concat();
    assert_eq!(hex(&wire::Task::from(failed)), expected);
    let succeeded = task(TaskOutcome::Succeeded { result: "y".into() });
    let expected = [start.concat(), number(7, 3), text(9, "y")].concat();
    assert_eq!(hex(&wire::Task::from(succeeded)), expected);
}

fn all_events() -> Vec<Event> {
    let desired = Box::new(DesiredLrp::new("p", "d", "r:s", run()));
    let unclaimed = Box::new(ActualLrp::unclaimed(key(), 5));
    let claimed = Box::new(ActualLrp::claimed(key(), instance(), 6));
    let group = Box::new(bbs_models::ActualLrpGroup { instance: Some(*claimed.clone()), evacuating: None });
    let task = Box::new(Task::pending("t", "d", TaskDefinition::new("r:s", run()), 5));
    let trace_id = String::from("trace");
    vec![
        Event::DesiredLrpCreated { lrp: desired.clone(), trace_id: trace_id.clone() },
        Event::DesiredLrpChanged {
            before: desired.clone(),
            after: desired.clone(),
            trace_id: trace_id.clone(),
        },
        Event::DesiredLrpRemoved { lrp: desired, trace_id: trace_id.clone() },
        Event::ActualLrpInstanceCreated { lrp: unclaimed.clone(), trace_id: trace_id.clone() },
        Event::ActualLrpInstanceChanged {
            before: unclaimed.clone(),
            after: claimed.clone(),
            trace_id: trace_id.clone(),
        },
        Event::ActualLrpInstanceChanged {
            before: claimed.clone(),
            after: unclaimed,
            trace_id: trace_id.clone(),
        },
        Event::ActualLrpInstanceRemoved { lrp: claimed, trace_id },
        Event::ActualLrpCrashed(ActualLrpCrash {
            key: key(),
            instance: instance(),
            crash_count: 1,
            crash_reason: "r".into(),
            since_ns: 9,
        }),
        Event::ActualLrpGroupCreated(group.clone()),
        Event::ActualLrpGroupChanged { before: group.clone(), after: group.clone() },
        Event::ActualLrpGroupRemoved(group),
        Event::TaskCreated(task.clone()),
        Event::TaskChanged { before: task.clone(), after: task.clone() },
        Event::TaskRemoved(task),
    ]
}

#[test]
fn every_event_comes_back_as_it_went() {
    for event in all_events() {
        let read = decode_event(event.event_type(), &encode_event(&event));
        assert_eq!(read.unwrap(), event);
    }
}

#[test]
fn every_event_has_the_same_json_read_or_not() {
    for event in all_events() {
        let json = event_json(event.event_type(), &encode_event(&event)).unwrap().unwrap();
        assert_eq!(json.get(), serde_json::to_string(&event).unwrap());
    }
    assert_eq!(event_json("task_removed", b"").unwrap().unwrap().get(), "{}");
    assert!(event_json("volcano", b"").unwrap().is_none());
    assert!(event_json("task_created", b"\xff").is_err());
}

#[test]
fn a_changed_event_names_the_instance_on_either_side() {
    let events = all_events();
    let keys: Vec<&str> = events.iter().map(Event::key).collect();
    assert_eq!(keys, ["p", "p", "p", "", "i", "i", "i", "i", "i", "i", "i", "t", "t", "t"]);
}

#[test]
fn an_event_that_cannot_be_read_says_why() {
    let refused = |name: &str, payload: &[u8]| decode_event(name, payload).unwrap_err().to_string();
    assert_eq!(refused("volcano", b""), "unrecognized event type \"volcano\"");
    assert_eq!(refused("task_created", b"\xff"), "invalid protobuf payload of type task_created");
    assert_eq!(refused("task_created", b""), "invalid event of type task_created");
}
