//! What is refused at the door, in the words that platform clients know.

use bbs_models::wire::{self, Invalid};
use bbs_models::{ACTIONS_NESTED_MAX, Action, DesiredLrp, RunAction, TaskDefinition};
use prost::Message;

fn run() -> wire::Action {
    Action::Run(RunAction { path: "x".into(), user: "u".into(), ..RunAction::default() }).into()
}

fn desired() -> wire::DesiredLrp {
    let action = Action::try_from(run()).unwrap();
    DesiredLrp::new("p", "d", "preloaded:s", action).into()
}

fn refused<T>(result: Result<T, Invalid>) -> String {
    result.map(drop).map_or_else(|invalid| invalid.to_string(), |()| "nothing".to_string())
}

#[test]
fn desired_lrps_that_cannot_be() {
    type Spoil = fn(&mut wire::DesiredLrp);
    let cases: &[(Spoil, &str)] = &[
        (|_| {}, "nothing"),
        (|lrp| lrp.domain.clear(), "Invalid field: domain"),
        (|lrp| lrp.process_guid = "a/b".into(), "Invalid field: process_guid"),
        (|lrp| lrp.process_guid.clear(), "Invalid field: process_guid"),
        (|lrp| lrp.root_fs = "no-scheme".into(), "Invalid field: rootfs"),
        (|lrp| lrp.root_fs = ":x".into(), "Invalid field: rootfs"),
        (|lrp| lrp.instances = -1, "Invalid field: instances"),
        (|lrp| lrp.memory_mb = -1, "Invalid field: memory_mb"),
        (|lrp| lrp.disk_mb = -1, "Invalid field: disk_mb"),
        (|lrp| lrp.max_pids = -1, "Invalid field: max_pids"),
        (|lrp| lrp.action = None, "invalid action type"),
        (
            |lrp| lrp.action = Some(wire::Action::default()),
            "Invalid field: action, Invalid field: inner-action",
        ),
        (
            |lrp| lrp.setup = Some(wire::Action::default()),
            "Invalid field: setup, Invalid field: inner-action",
        ),
        (
            |lrp| lrp.monitor = Some(wire::Action::default()),
            "Invalid field: monitor, Invalid field: inner-action",
        ),
        (|lrp| lrp.annotation = "x".repeat(10 * 1024), "nothing"),
        (|lrp| lrp.annotation = "x".repeat(10 * 1024 + 1), "Invalid field: annotation"),
        (|lrp| lrp.image_username = "me".into(), "Invalid field: image_password"),
        (|lrp| lrp.image_password = "secret".into(), "Invalid field: image_username"),
        (|lrp| lrp.ports = vec![70000], "Invalid field: ports"),
        (
            |lrp| lrp.log_rate_limit = Some(wire::LogRateLimit { bytes_per_second: -2 }),
            "Invalid field: log_rate_limit_bytes_per_second",
        ),
        (
            |lrp| lrp.metric_tags = [("a".to_string(), wire::MetricTagValue::default())].into(),
            "Invalid field: metric_tags, Invalid field: static, Invalid field: dynamic",
        ),
        (
            |lrp| lrp.environment_variables = vec![wire::EnvironmentVariable::default()],
            "invalid field: name cannot be blank",
        ),
        (
            |lrp| lrp.sidecars = vec![wire::Sidecar { memory_mb: -1, action: Some(run()), disk_mb: 0 }],
            "Invalid field: sidecars, Invalid field: memory_mb",
        ),
        (
            |lrp| {
                let tcp_check = Some(wire::TcpCheck { port: 0, ..Default::default() });
                let checks = vec![wire::Check { tcp_check, http_check: None }, wire::Check::default()];
                lrp.check_definition = Some(wire::CheckDefinition { checks, ..Default::default() });
            },
            "Invalid field: check_definition, Invalid field: port, Invalid field: check",
        ),
        (
            |lrp| lrp.volume_mounts = vec![wire::VolumeMount::default()],
            "invalid volume_mount driver, invalid volume_mount mode",
        ),
        (
            |lrp| {
                let content = "x".repeat(1024 * 1024 + 1);
                lrp.volume_mounted_files = vec![wire::File { path: "p".into(), content }];
            },
            "Invalid field: volumeMountedFiles",
        ),
        (
            |lrp| {
                let routes = [("r".to_string(), vec![b'1'; 128 * 1024 + 1])].into();
                lrp.routes = Some(wire::ProtoRoutes { routes });
            },
            "Invalid field: routes",
        ),
        (
            |lrp| {
                lrp.domain.clear();
                lrp.instances = -1;
            },
            "Invalid field: domain, Invalid field: instances",
        ),
    ];
    for (spoil, expected) in cases {
        let mut lrp = desired();
        spoil(&mut lrp);
        assert_eq!(refused(DesiredLrp::try_from(lrp)), *expected);
    }
}

#[test]
fn actions_that_cannot_be() {
    let refused = |action: wire::Action| refused(Action::try_from(action));
    let download = |algorithm: &str, value: &str| wire::Action {
        download_action: Some(Box::new(wire::DownloadAction {
            from: "f".into(),
            to: "t".into(),
            user: "u".into(),
            checksum_algorithm: algorithm.into(),
            checksum_value: value.into(),
            ..Default::default()
        })),
        ..Default::default()
    };
    assert_eq!(refused(download("", "")), "nothing");
    assert_eq!(refused(download("SHA256", "x")), "nothing");
    assert_eq!(refused(download("sha256", "")), "Invalid field: checksum value");
    assert_eq!(refused(download("", "x")), "Invalid field: checksum algorithm");
    assert_eq!(refused(download("crc", "x")), "Invalid field: invalid algorithm");
    let upload = wire::Action { upload_action: Some(Box::default()), ..Default::default() };
    assert_eq!(refused(upload), "Invalid field: to, Invalid field: from, Invalid field: user");
    let timeout = wire::Action { timeout_action: Some(Default::default()), ..Default::default() };
    assert_eq!(refused(timeout), "Invalid field: action, Invalid field: timeout_ms");
    let none = wire::Action { serial_action: Some(Default::default()), ..Default::default() };
    assert_eq!(refused(none), "Invalid field: actions");
    let parallel = wire::ManyActions { actions: vec![run(), wire::Action::default()], ..Default::default() };
    let parallel = wire::Action { parallel_action: Some(Box::new(parallel)), ..Default::default() };
    assert_eq!(refused(parallel), "Invalid field: inner-action");
}

/// So many actions, each within the one before, of all kinds that hold others.
fn nested(levels: usize) -> wire::Action {
    (1..levels).fold(run(), |inner, level| {
        let (one, none) = (Some(Box::new(inner.clone())), wire::Action::default());
        let many = Some(Box::new(wire::ManyActions { actions: vec![run(), inner], ..Default::default() }));
        match level % 4 {
            0 => wire::Action { serial_action: many, ..none },
            1 => wire::Action { codependent_action: many, ..none },
            2 => wire::Action {
                timeout_action: Some(Box::new(wire::TimeoutAction {
                    action: one,
                    timeout_ms: 1,
                    ..Default::default()
                })),
                ..none
            },
            _ => wire::Action {
                try_action: Some(Box::new(wire::TryAction { action: one, ..Default::default() })),
                ..none
            },
        }
    })
}

#[test]
fn actions_nest_as_deep_as_every_way_they_go_can_hold_and_no_deeper() {
    let deepest = nested(ACTIONS_NESTED_MAX);
    assert_eq!(refused(Action::try_from(deepest.clone())), "nothing");
    let task = wire::TaskDefinition {
        action: Some(deepest.clone()),
        root_fs: "preloaded:s".into(),
        ..Default::default()
    };
    let task = wire::Task { task_guid: "t".into(), task_definition: Some(task), ..Default::default() };
    let answer = wire::TasksResponse { tasks: vec![task.clone()], ..Default::default() };
    assert!(wire::TasksResponse::decode(&answer.encode_to_vec()[..]).is_ok());
    let json = serde_json::to_string(&vec![vec![vec![task]]]).unwrap();
    assert!(serde_json::from_str::<Vec<Vec<Vec<wire::Task>>>>(&json).is_ok());

    let why = format!("actions are nested more than {ACTIONS_NESTED_MAX} deep");
    assert_eq!(refused(Action::try_from(nested(ACTIONS_NESTED_MAX + 1))), why);
    let lrp = wire::DesiredLrp { action: Some(nested(ACTIONS_NESTED_MAX + 1)), ..desired() };
    assert_eq!(refused(DesiredLrp::try_from(lrp)), format!("Invalid field: action, {why}"));
}

#[test]
fn actions_a_thousand_deep_are_not_even_read() {
    // By hand: whatever builds such a thing in memory, nothing of ours does.
    let run = run().encode_to_vec();
    let within = |tag: u8, inner: &[u8]| {
        let mut bytes = vec![tag << 3 | 2];
        prost::encoding::encode_varint(inner.len() as u64, &mut bytes);
        bytes.extend_from_slice(inner);
        bytes
    };
    // An action that tries an action, and so on.
    let bytes = (0..1000).fold(run, |inner, _| within(6, &within(1, &inner)));
    let error = wire::Action::decode(&bytes[..]).unwrap_err().to_string();
    assert!(error.contains("recursion limit reached"), "{error}");
    let json = "{\"try\":{\"action\":".repeat(1000) + "{}" + &"}}".repeat(1000);
    let error = serde_json::from_str::<wire::Action>(&json).unwrap_err().to_string();
    assert!(error.contains("recursion limit exceeded"), "{error}");
}

#[test]
fn egress_rules_that_cannot_be() {
    let rule = |protocol: &str, ports: &[u32], range: Option<(u32, u32)>, icmp: bool, to: &str| {
        refused(bbs_models::SecurityGroupRule::try_from(wire::SecurityGroupRule {
            protocol: protocol.into(),
            destinations: if to.is_empty() { vec![] } else { vec![to.into()] },
            ports: ports.to_vec(),
            port_range: range.map(|(start, end)| wire::PortRange { start, end }),
            icmp_info: icmp.then(wire::IcmpInfo::default),
            ..Default::default()
        }))
    };
    let to = "10.0.0.0/8";
    assert_eq!(rule("tcp", &[80], None, false, to), "nothing");
    assert_eq!(rule("udp", &[], Some((1, 9)), false, to), "nothing");
    assert_eq!(rule("icmp", &[], None, true, to), "nothing");
    assert_eq!(rule("all", &[], None, false, to), "nothing");
    assert_eq!(rule("tcp", &[], None, false, to), "Missing required field: ports or port_range");
    assert_eq!(rule("tcp", &[1], Some((1, 2)), false, to), "Invalid: ports and port_range provided");
    assert_eq!(rule("tcp", &[0], None, false, to), "Invalid field: ports");
    assert_eq!(rule("tcp", &[], Some((9, 1)), false, to), "Invalid field: port_range");
    assert_eq!(rule("tcp", &[1], None, true, to), "Invalid field: icmp_info");
    assert_eq!(rule("icmp", &[], None, false, to), "Invalid field: icmp_info");
    assert_eq!(rule("icmpv6", &[], None, false, to), "Invalid field: icmpv6_info");
    assert_eq!(rule("all", &[1], None, true, to), "Invalid field: ports, Invalid field: icmp_info");
    assert_eq!(rule("sctp", &[], None, false, to), "Invalid field: protocol");
    assert_eq!(
        rule("all", &[], None, false, ""),
        "Invalid field: destinations [ Must have at least 1 destination ]"
    );
    assert_eq!(rule("all", &[], None, false, "nowhere"), "Invalid field: destinations [ Invalid IP ]");
}

#[test]
fn layers_that_cannot_be() {
    let layer = |kind: i32, algorithm: i32, value: &str| {
        let layer = wire::ImageLayer {
            url: "u".into(),
            destination_path: "/d".into(),
            layer_type: kind,
            media_type: 1,
            digest_algorithm: algorithm,
            digest_value: value.into(),
            ..Default::default()
        };
        refused(bbs_models::ImageLayer::try_from(layer))
    };
    assert_eq!(layer(1, 0, ""), "nothing");
    assert_eq!(layer(2, 1, "x"), "nothing");
    assert_eq!(layer(0, 0, ""), "Invalid field: layer_type");
    assert_eq!(layer(2, 0, ""), "Invalid field: digest_algorithm, Invalid field: digest_value");
    assert_eq!(layer(1, 1, ""), "Invalid field: digest_value");
    assert_eq!(layer(1, 0, "x"), "Invalid field: digest_algorithm");
    let mut lrp = desired();
    lrp.image_layers = vec![wire::ImageLayer {
        url: "u".into(),
        destination_path: "/d".into(),
        layer_type: 2,
        media_type: 1,
        digest_algorithm: 1,
        digest_value: "x".into(),
        ..Default::default()
    }];
    assert_eq!(refused(DesiredLrp::try_from(lrp)), "Invalid field: legacy_download_user");
}

#[test]
fn requests_that_cannot_be() {
    let key = || Some(wire::ActualLrpKey { process_guid: "p".into(), index: 0, domain: "d".into() });
    let instance = || Some(wire::ActualLrpInstanceKey { instance_guid: "i".into(), cell_id: "c".into() });
    assert_eq!(
        refused(wire::StartActualLrpRequest::default().parse()),
        "Invalid field: actual_lrp_key, Invalid field: actual_lrp_instance_key, Invalid field: actual_lrp_net_info"
    );
    let nowhere = wire::StartActualLrpRequest {
        actual_lrp_key: key(),
        actual_lrp_instance_key: instance(),
        actual_lrp_net_info: Some(wire::ActualLrpNetInfo::default()),
        ..Default::default()
    };
    assert_eq!(refused(nowhere.parse()), "Invalid field: address");
    let claim = |index, actual_lrp_instance_key| wire::IndexedInstanceRequest {
        process_guid: "p".into(),
        index,
        actual_lrp_instance_key,
    };
    assert_eq!(refused(claim(0, None).parse_claim()), "Invalid field: actual_lrp_instance_key");
    assert_eq!(refused(claim(0, None).parse_remove()), "nothing");
    assert_eq!(refused(claim(-1, instance()).parse_remove()), "Invalid field: index");
    let nobody = Some(wire::ActualLrpInstanceKey::default());
    assert_eq!(
        refused(claim(0, nobody).parse_claim()),
        "Invalid field: cell_id, Invalid field: instance_guid"
    );
    let crash = || wire::CrashActualLrpRequest {
        actual_lrp_key: key(),
        actual_lrp_instance_key: instance(),
        error_message: String::new(),
    };
    assert_eq!(refused(crash().parse_crash()), "nothing");
    assert_eq!(refused(crash().parse_evacuate()), "Invalid field: error_message");
    let fail = wire::FailActualLrpRequest { actual_lrp_key: key(), error_message: String::new() };
    assert_eq!(refused(fail.parse()), "Invalid field: error_message");
    assert_eq!(refused(wire::UpsertDomainRequest::default().parse()), "Invalid field: domain");
    assert_eq!(
        refused(wire::ActualLrpsByProcessGuidsRequest::default().parse()),
        "process_guids must not be empty"
    );
    let update = wire::UpdateDesiredLrpRequest {
        process_guid: "p".into(),
        update: Some(wire::DesiredLrpUpdate { image_username: Some("u".into()), ..Default::default() }),
    };
    assert_eq!(refused(update.parse()), "Invalid field: image_password");
    assert_eq!(
        refused(wire::DesireTaskRequest { task_guid: "a b".into(), ..Default::default() }.parse()),
        "Invalid field: task_guid, Invalid field: domain, Invalid field: task_definition"
    );
    let reject = wire::TaskReasonRequest { task_guid: "t".into(), reason: String::new() };
    assert_eq!(refused(reject.parse()), "Invalid field: failure_reason");
    let complete = wire::CompleteTaskRequest { task_guid: "t".into(), ..Default::default() };
    assert_eq!(refused(complete.parse()), "Invalid field: cell_id");
}

#[test]
fn a_refused_request_is_an_invalid_request_to_its_client() {
    let invalid = TaskDefinition::try_from(wire::TaskDefinition::default()).unwrap_err();
    let error = bbs_models::Error::from(invalid);
    assert_eq!(error.kind, bbs_models::ErrorKind::InvalidRequest);
    assert_eq!(error.message, "Invalid field: rootfs, invalid action type");
}

#[test]
fn an_instance_in_a_state_that_none_has_is_refused() {
    let lrp = |state: &str, instance_guid: &str| {
        let instance =
            wire::ActualLrpInstanceKey { instance_guid: instance_guid.into(), cell_id: "c".into() };
        refused(bbs_models::ActualLrp::try_from(wire::ActualLrp {
            actual_lrp_key: wire::ActualLrpKey { process_guid: "p".into(), index: 0, domain: "d".into() },
            actual_lrp_instance_key: instance,
            state: state.into(),
            ..Default::default()
        }))
    };
    assert_eq!(lrp("CLAIMED", "i"), "nothing");
    assert_eq!(lrp("CLAIMED", ""), "Invalid field: instance_guid");
    assert_eq!(lrp("CRASHED", ""), "nothing");
    assert_eq!(lrp("DREAMING", ""), "Invalid field: state");
}
