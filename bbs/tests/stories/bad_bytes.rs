//! Bodies that are not the message that was asked for, and bodies that say more than anybody knows.

use bbs_models::{DesiredLrpUpdate, wire};
use prost::Message;

use crate::calls::{ACCEPTED, Calls, NOT_A_MESSAGE};
use crate::world::{World, key, lrp, on, task_definition};

/// All routes that read a body. Field 1 of each of their messages is a text or a message.
const READING: [&str; 41] = [
    "/v1/domains/upsert",
    "/v1/actual_lrps/list",
    "/v1/actual_lrps/list_by_process_guids",
    "/v1/actual_lrp_groups/list",
    "/v1/actual_lrp_groups/list_by_process_guid",
    "/v1/actual_lrp_groups/get_by_process_guid_and_index",
    "/v1/actual_lrps/claim",
    "/v1/actual_lrps/start",
    "/v1/actual_lrps/start.r1",
    "/v1/actual_lrps/crash",
    "/v1/actual_lrps/fail",
    "/v1/actual_lrps/remove",
    "/v1/actual_lrps/retire",
    "/v1/actual_lrps/remove_evacuating",
    "/v1/actual_lrps/evacuate_claimed",
    "/v1/actual_lrps/evacuate_crashed",
    "/v1/actual_lrps/evacuate_stopped",
    "/v1/actual_lrps/evacuate_running",
    "/v1/actual_lrps/evacuate_running.r1",
    "/v1/desired_lrps/list.r2",
    "/v1/desired_lrps/list.r3",
    "/v1/desired_lrps/get_by_process_guid.r2",
    "/v1/desired_lrps/get_by_process_guid.r3",
    "/v1/desired_lrp_scheduling_infos/list",
    "/v1/desired_lrp_scheduling_infos/get_by_process_guid",
    "/v1/desired_lrp_routing_infos/list",
    "/v1/desired_lrp/desire.r2",
    "/v1/desired_lrp/update",
    "/v1/desired_lrp/remove",
    "/v1/tasks/list.r2",
    "/v1/tasks/list.r3",
    "/v1/tasks/get_by_task_guid.r2",
    "/v1/tasks/get_by_task_guid.r3",
    "/v1/tasks/desire.r2",
    "/v1/tasks/start",
    "/v1/tasks/cancel",
    "/v1/tasks/fail",
    "/v1/tasks/reject",
    "/v1/tasks/complete",
    "/v1/tasks/resolving",
    "/v1/tasks/delete",
];

/// Field `number` of wire type 2.
fn field(number: u32, content: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    prost::encoding::encode_key(number, prost::encoding::WireType::LengthDelimited, &mut bytes);
    prost::encoding::encode_varint(content.len() as u64, &mut bytes);
    bytes.extend_from_slice(content);
    bytes
}

#[tokio::test]
async fn what_is_no_message_is_an_invalid_request_on_every_route() {
    let world = World::new().await;
    let calls = Calls::of(&world);
    let groups = [vec![0x7b; 200], vec![0x7c; 200]].concat();
    let cases: [(&str, Vec<u8>); 13] = [
        ("noise", vec![0xff; 64]),
        ("a key alone", vec![0x0a]),
        ("cut within a length", vec![0x0a, 0x80]),
        ("longer than the body", vec![0x0a, 5, b'p']),
        ("4 GiB long", vec![0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f]),
        ("longer than anything", vec![0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]),
        ("a number that does not end", [vec![0x0a], vec![0x80; 20]].concat()),
        ("a number for a text", vec![0x08, 1]),
        ("eight bytes for a text", vec![0x09, 0, 0, 0, 0, 0, 0, 0, 0]),
        ("four bytes for a text", vec![0x0d, 0, 0, 0, 0]),
        ("field 0", vec![0x02, 0]),
        ("wire type 7", vec![0x0f]),
        ("two hundred groups in one another", groups),
    ];
    for path in READING {
        for (what, body) in &cases {
            assert_eq!(calls.say(path, body.clone()).await, NOT_A_MESSAGE, "{what} to {path}");
        }
    }
}

#[tokio::test]
async fn a_text_that_is_not_utf8_is_an_invalid_request() {
    let world = World::new().await;
    let calls = Calls::of(&world);
    for path in ["/v1/domains/upsert", "/v1/desired_lrp/remove", "/v1/tasks/cancel", "/v1/actual_lrps/claim"]
    {
        assert_eq!(calls.say(path, field(1, &[b'd', 0xff, 0xfe])).await, NOT_A_MESSAGE, "{path}");
    }
}

#[tokio::test]
async fn a_request_that_was_cut_changes_nothing() {
    let world = World::new().await;
    let calls = Calls::of(&world);
    let request = wire::DesireLrpRequest { desired_lrp: Some(lrp("app", 1).into()) }.encode_to_vec();
    for end in 1..request.len() {
        let cut = request[..end].to_vec();
        assert_eq!(calls.say("/v1/desired_lrp/desire.r2", cut).await, NOT_A_MESSAGE, "of {end} bytes");
    }
    assert!(world.bbs().desired_lrps(&Default::default()).await.unwrap().is_empty());
}

/// Newer clients may say more: a number, eight bytes, a text, a group, four bytes.
fn unknown() -> Vec<u8> {
    let mut bytes = vec![0xa0, 0x1f, 7, 0xa9, 0x1f, 1, 2, 3, 4, 5, 6, 7, 8];
    bytes.extend(field(502, b"new"));
    bytes.extend([0xbb, 0x1f, 0x08, 1, 0xbc, 0x1f, 0xc5, 0x1f, 1, 2, 3, 4]);
    bytes
}

#[tokio::test]
async fn fields_that_nobody_knows_are_ignored_wherever_they_are() {
    let world = World::new().await;
    let calls = Calls::of(&world);
    let wire = wire::DesiredLrp { action: None, ..lrp("app", 1).into() };
    let action: wire::Action = lrp("app", 1).action.into();
    let action = [unknown(), action.encode_to_vec(), unknown()].concat();
    let lrp = [unknown(), wire.encode_to_vec(), field(7, &action), unknown()].concat();
    let request = [unknown(), field(1, &lrp), unknown()].concat();
    assert_eq!(calls.say("/v1/desired_lrp/desire.r2", request).await, ACCEPTED);
    let seen = world.bbs().desired_lrp_by_process_guid("app").await.unwrap();
    assert_eq!(seen.action, crate::world::lrp("app", 1).action);
    for path in ["/v1/actual_lrps/list", "/v1/desired_lrps/list.r3", "/v1/tasks/list.r3"] {
        assert_eq!(calls.say(path, unknown()).await, ACCEPTED, "{path}");
    }
}

#[tokio::test]
async fn of_a_field_that_comes_twice_the_last_counts_and_messages_are_merged() {
    let world = World::new().await;
    let calls = Calls::of(&world);
    let twice = [field(1, b"early"), field(1, b"late"), vec![0x10, 60]].concat();
    assert_eq!(calls.say("/v1/domains/upsert", twice).await, ACCEPTED);
    assert_eq!(world.bbs().domains().await.unwrap(), ["late"]);
    let whole = wire::DesiredLrp::from(lrp("app", 1));
    let start = wire::DesiredLrp { action: whole.action.clone(), ..Default::default() };
    let rest = wire::DesiredLrp { action: None, ..whole };
    let parts = [field(1, &start.encode_to_vec()), field(1, &rest.encode_to_vec())].concat();
    assert_eq!(calls.say("/v1/desired_lrp/desire.r2", parts).await, ACCEPTED);
}

#[tokio::test]
async fn what_is_nested_too_deep_is_an_invalid_request() {
    let world = World::new().await;
    let calls = Calls::of(&world);
    let run = wire::Action::from(lrp("app", 1).action).encode_to_vec();
    let deep = |levels: usize| (0..levels).fold(run.clone(), |inner, _| field(6, &field(1, &inner)));
    let without = wire::DesiredLrp { action: None, ..lrp("app", 1).into() }.encode_to_vec();
    let request = |levels| field(1, &[without.clone(), field(7, &deep(levels))].concat());
    let path = "/v1/desired_lrp/desire.r2";
    assert_eq!(calls.say(path, request(5_000)).await, NOT_A_MESSAGE);
    let max = bbs_models::ACTIONS_NESTED_MAX;
    let refused = format!("InvalidRequest: Invalid field: action, actions are nested more than {max} deep");
    assert_eq!(calls.say(path, request(max)).await, refused);
    assert_eq!(calls.say(path, request(max - 1)).await, ACCEPTED);
}

#[tokio::test]
async fn a_body_of_millions_of_parts_is_an_invalid_request() {
    let world = World::new().await;
    let calls = Calls::of(&world);
    let layers = field(34, &[]).repeat(5_000_000);
    assert_eq!(calls.say("/v1/desired_lrp/desire.r2", field(1, &layers)).await, NOT_A_MESSAGE);
    let guids = field(1, &[]).repeat(8_000_000);
    assert_eq!(calls.say("/v1/actual_lrps/list_by_process_guids", guids).await, NOT_A_MESSAGE);
}

#[tokio::test]
async fn of_a_hundred_thousand_faults_the_first_are_told() {
    let world = World::new().await;
    let whole = wire::DesiredLrp::from(lrp("app", 1)).encode_to_vec();
    let faulty = [whole, field(22, &[]).repeat(100_000)].concat();
    let said = Calls::of(&world).say("/v1/desired_lrp/desire.r2", field(1, &faulty)).await;
    assert!(
        said.starts_with("InvalidRequest: Invalid field: cached_dependency, Invalid field: from, "),
        "{said}"
    );
    assert!(said.ends_with(", and 299936 more"), "{said}");
    assert!(said.len() < 4096, "{} bytes", said.len());
}

/// Numbers that follow from a seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        usize::try_from(self.0 >> 33).unwrap() % end
    }
}

fn spoiled(request: &[u8], dice: &mut Dice) -> Vec<u8> {
    let mut bytes = request.to_vec();
    for _ in 0..=dice.below(3) {
        let at = dice.below(bytes.len());
        match dice.below(4) {
            0 => bytes[at] ^= 1 << dice.below(8),
            1 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][dice.below(5)],
            2 => bytes.insert(at, u8::try_from(dice.below(256)).unwrap()),
            _ => drop(bytes.remove(at)),
        }
    }
    bytes
}

/// Some of them are accepted. What is then written down must be readable for whoever starts next.
#[tokio::test]
async fn whatever_comes_in_the_bbs_goes_on_and_can_start_again() {
    let mut world = World::new().await;
    let calls = Calls::of(&world);
    world.bbs().desire_lrp(&lrp("app", 3)).await.unwrap();
    let update = DesiredLrpUpdate { annotation: Some("a".into()), instances: Some(3), ..Default::default() };
    let start = wire::StartActualLrpRequest {
        actual_lrp_key: Some(key("app", 0).into()),
        actual_lrp_instance_key: Some(on("cell-1", "i-0").into()),
        actual_lrp_net_info: Some(wire::ActualLrpNetInfo { address: "a".into(), ..Default::default() }),
        ..Default::default()
    };
    let task = wire::DesireTaskRequest {
        task_guid: "task".into(),
        domain: "tests".into(),
        task_definition: Some(task_definition().into()),
    };
    let claim = wire::IndexedInstanceRequest::new("app", 1, Some(&on("cell-1", "i-1")));
    let requests: [(&str, Vec<u8>); 5] = [
        ("/v1/desired_lrp/desire.r2", {
            wire::DesireLrpRequest { desired_lrp: Some(lrp("other", 1).into()) }.encode_to_vec()
        }),
        ("/v1/desired_lrp/update", {
            wire::UpdateDesiredLrpRequest { process_guid: "app".into(), update: Some(update.into()) }
                .encode_to_vec()
        }),
        ("/v1/actual_lrps/start.r1", start.encode_to_vec()),
        ("/v1/actual_lrps/claim", claim.encode_to_vec()),
        ("/v1/tasks/desire.r2", task.encode_to_vec()),
    ];
    let (mut dice, mut accepted) = (Dice(1), 0);
    for round in 0..2000 {
        let (path, request) = &requests[round % requests.len()];
        accepted += usize::from(calls.say(path, spoiled(request, &mut dice)).await == ACCEPTED);
    }
    assert!(accepted > 20, "only {accepted} were accepted: the others say nothing about records");
    let lrps = world.bbs().desired_lrps(&Default::default()).await.unwrap();
    world.stop().await;
    world.start().await;
    assert_eq!(world.bbs().desired_lrps(&Default::default()).await.unwrap().len(), lrps.len());
}
