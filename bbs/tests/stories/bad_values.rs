//! Every field of every request with values that it cannot have, and what is said to each. Types and texts are those of the
//! published API; where its server would say one fault twice, or say of a faulty part only that it is faulty, this one
//! says what is wrong, once.

use bbs_models::wire;
use prost::Message;

use crate::calls::{ACCEPTED, Calls, NOT_A_MESSAGE};
use crate::world::{World, key, lrp, on, task_definition};

type Row<T> = (fn(&mut T), &'static str);

/// What `path` says to each spoiled request. `tidy` undoes what was accepted.
async fn check<T>(
    calls: &Calls,
    path: &str,
    rows: &[Row<T>],
    request: impl Fn(fn(&mut T)) -> Vec<u8>,
    tidy: impl AsyncFn(),
) {
    for (number, (spoil, expected)) in rows.iter().enumerate() {
        let said = calls.say(path, request(*spoil)).await;
        let expected = match *expected {
            ACCEPTED | NOT_A_MESSAGE => expected.to_string(),
            faults => format!("InvalidRequest: {faults}"),
        };
        assert_eq!(said, expected, "row {number} of {path}");
        if said == ACCEPTED {
            tidy().await;
        }
    }
}

fn run(path: &str, user: &str) -> wire::Action {
    let run = wire::RunAction { path: path.into(), user: user.into(), ..Default::default() };
    wire::Action { run_action: Some(Box::new(run)), ..Default::default() }
}

fn download(spoil: fn(&mut wire::DownloadAction)) -> Option<wire::Action> {
    let (from, to, user) = ("f".into(), "t".into(), "u".into());
    let mut download = wire::DownloadAction { from, to, user, ..Default::default() };
    spoil(&mut download);
    Some(wire::Action { download_action: Some(Box::new(download)), ..Default::default() })
}

fn upload(spoil: fn(&mut wire::UploadAction)) -> Option<wire::Action> {
    let (from, to, user) = ("f".into(), "t".into(), "u".into());
    let mut upload = wire::UploadAction { from, to, user, ..Default::default() };
    spoil(&mut upload);
    Some(wire::Action { upload_action: Some(Box::new(upload)), ..Default::default() })
}

fn timeout(action: Option<wire::Action>, timeout_ms: i64) -> Option<wire::Action> {
    let timeout = wire::TimeoutAction { action: action.map(Box::new), timeout_ms, ..Default::default() };
    Some(wire::Action { timeout_action: Some(Box::new(timeout)), ..Default::default() })
}

fn many(actions: Vec<wire::Action>) -> Option<Box<wire::ManyActions>> {
    Some(Box::new(wire::ManyActions { actions, ..Default::default() }))
}

fn file(bytes: usize) -> Vec<wire::File> {
    vec![wire::File { path: "p".into(), content: "x".repeat(bytes) }]
}

fn env(name: &str) -> Vec<wire::EnvironmentVariable> {
    vec![wire::EnvironmentVariable { name: name.into(), value: "v".into() }]
}

fn rule(spoil: fn(&mut wire::SecurityGroupRule)) -> Vec<wire::SecurityGroupRule> {
    let mut rule = wire::SecurityGroupRule {
        protocol: "tcp".into(),
        destinations: vec!["10.0.0.0/8".into()],
        ports: vec![80],
        ..Default::default()
    };
    spoil(&mut rule);
    vec![rule]
}

fn dependency(spoil: fn(&mut wire::CachedDependency)) -> Vec<wire::CachedDependency> {
    let mut dependency = wire::CachedDependency { from: "f".into(), to: "t".into(), ..Default::default() };
    spoil(&mut dependency);
    vec![dependency]
}

fn layer(spoil: fn(&mut wire::ImageLayer)) -> Vec<wire::ImageLayer> {
    let mut layer = wire::ImageLayer {
        url: "u".into(),
        destination_path: "/d".into(),
        layer_type: 1,
        media_type: 1,
        ..Default::default()
    };
    spoil(&mut layer);
    vec![layer]
}

fn mount(spoil: fn(&mut wire::VolumeMount)) -> Vec<wire::VolumeMount> {
    let mut mount = wire::VolumeMount { driver: "d".into(), mode: "rw".into(), ..Default::default() };
    spoil(&mut mount);
    vec![mount]
}

fn tcp(port: u32) -> wire::Check {
    wire::Check { tcp_check: Some(wire::TcpCheck { port, ..Default::default() }), http_check: None }
}

fn http(port: u32) -> wire::Check {
    wire::Check { tcp_check: None, http_check: Some(wire::HttpCheck { port, ..Default::default() }) }
}

fn checks(checks: Vec<wire::Check>, readiness_checks: Vec<wire::Check>) -> Option<wire::CheckDefinition> {
    Some(wire::CheckDefinition { checks, readiness_checks, ..Default::default() })
}

fn tag(name: &str, text: &str, dynamic: i32) -> std::collections::BTreeMap<String, wire::MetricTagValue> {
    [(name.to_string(), wire::MetricTagValue { static_value: text.into(), dynamic })].into()
}

fn routes(json: &[u8]) -> Option<wire::ProtoRoutes> {
    Some(wire::ProtoRoutes { routes: [("r".to_string(), json.to_vec())].into() })
}

fn sidecar(action: Option<wire::Action>, memory_mb: i32, disk_mb: i32) -> Vec<wire::Sidecar> {
    vec![wire::Sidecar { action, memory_mb, disk_mb }]
}

/// Of what LRPs and Tasks have in common, for a message that has it under these names.
macro_rules! common_rows {
    ($message:ty) => {{
        let rows: &[Row<$message>] = &[
            (|_| {}, ACCEPTED),
            (|m| m.root_fs.clear(), "Invalid field: rootfs"),
            (|m| m.root_fs = "no-scheme".into(), "Invalid field: rootfs"),
            (|m| m.root_fs = ":x".into(), "Invalid field: rootfs"),
            (|m| m.root_fs = "1a:x".into(), "Invalid field: rootfs"),
            (|m| m.root_fs = "docker:///a\nb".into(), "Invalid field: rootfs"),
            (|m| m.root_fs = "docker:///a#b".into(), ACCEPTED),
            (|m| m.memory_mb = -1, "Invalid field: memory_mb"),
            (|m| m.memory_mb = i32::MIN, "Invalid field: memory_mb"),
            (|m| m.disk_mb = -1, "Invalid field: disk_mb"),
            (|m| m.max_pids = -1, "Invalid field: max_pids"),
            (|m| m.cpu_weight = u32::MAX, ACCEPTED),
            (|m| m.environment_variables = env(""), "invalid field: name cannot be blank"),
            (|m| m.environment_variables = env("a=b"), ACCEPTED),
            (|m| m.annotation = "x".repeat(10 * 1024), ACCEPTED),
            (|m| m.annotation = "x".repeat(10 * 1024 + 1), "Invalid field: annotation"),
            (|m| m.image_username = "me".into(), "Invalid field: image_password"),
            (|m| m.image_password = "secret".into(), "Invalid field: image_username"),
            (|m| m.volume_mounted_files = file(1024 * 1024), ACCEPTED),
            (|m| m.volume_mounted_files = file(1024 * 1024 + 1), "Invalid field: volumeMountedFiles"),
            (|m| m.metric_tags = tag("a", "", 0), "Invalid field: metric_tags, Invalid field: static, Invalid field: dynamic"),
            (|m| m.metric_tags = tag("a", "b", 1), "Invalid field: metric_tags, Invalid field: static, Invalid field: dynamic"),
            (|m| m.metric_tags = tag("a", "", 3), "Invalid field: metric_tags, Invalid field: static, Invalid field: dynamic"),
            (|m| m.metric_tags = tag("a", "", 2), ACCEPTED),
            // Actions.
            (|m| m.action = None, "invalid action type"),
            (|m| m.action = Some(Default::default()), "Invalid field: action, Invalid field: inner-action"),
            (|m| m.action = Some(run("", "u")), "Invalid field: action, Invalid field: path"),
            (|m| m.action = Some(run("p", "")), "Invalid field: action, Invalid field: user"),
            (|m| m.action = download(|d| d.from.clear()), "Invalid field: action, Invalid field: from"),
            (|m| m.action = download(|d| d.to.clear()), "Invalid field: action, Invalid field: to"),
            (|m| m.action = download(|d| d.user.clear()), "Invalid field: action, Invalid field: user"),
            (|m| m.action = download(|d| d.checksum_value = "x".into()), "Invalid field: action, Invalid field: checksum algorithm"),
            (|m| m.action = download(|d| d.checksum_algorithm = "md5".into()), "Invalid field: action, Invalid field: checksum value"),
            (
                |m| m.action = download(|d| (d.checksum_algorithm, d.checksum_value) = ("crc".into(), "x".into())),
                "Invalid field: action, Invalid field: invalid algorithm",
            ),
            (|m| m.action = download(|d| (d.checksum_algorithm, d.checksum_value) = ("SHA1".into(), "x".into())), ACCEPTED),
            (|m| m.action = upload(|u| u.from.clear()), "Invalid field: action, Invalid field: from"),
            (|m| m.action = upload(|u| u.to.clear()), "Invalid field: action, Invalid field: to"),
            (|m| m.action = upload(|u| u.user.clear()), "Invalid field: action, Invalid field: user"),
            (|m| m.action = timeout(None, 1), "Invalid field: action, Invalid field: action"),
            (|m| m.action = timeout(Some(run("p", "u")), 0), "Invalid field: action, Invalid field: timeout_ms"),
            (|m| m.action = timeout(Some(run("p", "u")), -1), "Invalid field: action, Invalid field: timeout_ms"),
            (|m| m.action = timeout(Some(run("", "u")), 1), "Invalid field: action, Invalid field: path"),
            (
                |m| m.action = Some(wire::Action { try_action: Some(Default::default()), ..Default::default() }),
                "Invalid field: action, Invalid field: action",
            ),
            (
                |m| m.action = Some(wire::Action { emit_progress_action: Some(Default::default()), ..Default::default() }),
                "Invalid field: action, Invalid field: action",
            ),
            (
                |m| m.action = Some(wire::Action { serial_action: many(vec![]), ..Default::default() }),
                "Invalid field: action, Invalid field: actions",
            ),
            (
                |m| m.action = Some(wire::Action { parallel_action: many(vec![run("", "u")]), ..Default::default() }),
                "Invalid field: action, Invalid field: path",
            ),
            (
                |m| {
                    let all = vec![run("p", "u"), run("", ""), wire::Action::default()];
                    m.action = Some(wire::Action { codependent_action: many(all), ..Default::default() });
                },
                "Invalid field: action, Invalid field: path, Invalid field: user, Invalid field: inner-action",
            ),
            // Egress rules.
            (|m| m.egress_rules = rule(|r| r.protocol.clear()), "Invalid field: egress_rules, Invalid field: protocol"),
            (|m| m.egress_rules = rule(|r| r.protocol = "sctp".into()), "Invalid field: egress_rules, Invalid field: protocol"),
            (
                |m| m.egress_rules = rule(|r| r.ports.clear()),
                "Invalid field: egress_rules, Missing required field: ports or port_range",
            ),
            (
                |m| m.egress_rules = rule(|r| r.port_range = Some(wire::PortRange { start: 1, end: 2 })),
                "Invalid field: egress_rules, Invalid: ports and port_range provided",
            ),
            (|m| m.egress_rules = rule(|r| r.ports = vec![0]), "Invalid field: egress_rules, Invalid field: ports"),
            (|m| m.egress_rules = rule(|r| r.ports = vec![65536]), "Invalid field: egress_rules, Invalid field: ports"),
            (
                |m| {
                    m.egress_rules = rule(|r| {
                        (r.ports, r.port_range) = (vec![], Some(wire::PortRange { start: 9, end: 1 }));
                    });
                },
                "Invalid field: egress_rules, Invalid field: port_range",
            ),
            (
                |m| m.egress_rules = rule(|r| r.icmp_info = Some(Default::default())),
                "Invalid field: egress_rules, Invalid field: icmp_info",
            ),
            (
                |m| m.egress_rules = rule(|r| r.protocol = "icmp".into()),
                "Invalid field: egress_rules, Invalid field: ports, Invalid field: icmp_info",
            ),
            (
                |m| m.egress_rules = rule(|r| (r.protocol, r.ports) = ("icmpv6".into(), vec![])),
                "Invalid field: egress_rules, Invalid field: icmpv6_info",
            ),
            (
                |m| m.egress_rules = rule(|r| r.protocol = "all".into()),
                "Invalid field: egress_rules, Invalid field: ports",
            ),
            (
                |m| m.egress_rules = rule(|r| r.destinations.clear()),
                "Invalid field: egress_rules, Invalid field: destinations [ Must have at least 1 destination ]",
            ),
            (
                |m| m.egress_rules = rule(|r| r.destinations = vec!["x".into(), "9.9.9.9-1.1.1.1".into()]),
                "Invalid field: egress_rules, Invalid field: destinations [ Invalid IP, Invalid IP ]",
            ),
            (
                |m| m.egress_rules = rule(|r| r.destinations = vec!["1.1.1.1/33".into()]),
                "Invalid field: egress_rules, Invalid field: destinations [ invalid CIDR address: 1.1.1.1/33 ]",
            ),
            (|m| m.egress_rules = rule(|r| r.destinations = vec!["1.1.1.1,2.2.2.2-3.3.3.3,::/0".into()]), ACCEPTED),
            // Cached dependencies, layers and mounts.
            (|m| m.cached_dependencies = dependency(|d| d.from.clear()), "Invalid field: cached_dependency, Invalid field: from"),
            (|m| m.cached_dependencies = dependency(|d| d.to.clear()), "Invalid field: cached_dependency, Invalid field: to"),
            (
                |m| m.cached_dependencies = dependency(|d| d.checksum_value = "x".into()),
                "Invalid field: cached_dependency, Invalid field: checksum algorithm",
            ),
            (
                |m| m.cached_dependencies = dependency(|d| d.checksum_algorithm = "md5".into()),
                "Invalid field: cached_dependency, Invalid field: checksum value",
            ),
            (|m| m.image_layers = layer(|l| l.url.clear()), "Invalid field: image_layer, Invalid field: url"),
            (
                |m| m.image_layers = layer(|l| l.destination_path.clear()),
                "Invalid field: image_layer, Invalid field: destination_path",
            ),
            (|m| m.image_layers = layer(|l| l.layer_type = 0), "Invalid field: image_layer, Invalid field: layer_type"),
            (|m| m.image_layers = layer(|l| l.layer_type = 3), "Invalid field: image_layer, Invalid field: layer_type"),
            (|m| m.image_layers = layer(|l| l.media_type = 0), "Invalid field: image_layer, Invalid field: media_type"),
            (|m| m.image_layers = layer(|l| l.media_type = 4), "Invalid field: image_layer, Invalid field: media_type"),
            (
                |m| m.image_layers = layer(|l| l.digest_value = "x".into()),
                "Invalid field: image_layer, Invalid field: digest_algorithm",
            ),
            (
                |m| m.image_layers = layer(|l| l.digest_algorithm = 2),
                "Invalid field: image_layer, Invalid field: digest_value",
            ),
            (
                |m| m.image_layers = layer(|l| l.digest_algorithm = 3),
                "Invalid field: image_layer, Invalid field: digest_value",
            ),
            (
                |m| m.image_layers = layer(|l| l.layer_type = 2),
                "Invalid field: image_layer, Invalid field: digest_algorithm, Invalid field: digest_value, \
                 Invalid field: legacy_download_user",
            ),
            (
                |m| {
                    m.image_layers = layer(|l| {
                        (l.layer_type, l.digest_algorithm, l.digest_value) = (2, 1, "x".into());
                    });
                },
                "Invalid field: legacy_download_user",
            ),
            (|m| m.volume_mounts = mount(|v| v.driver.clear()), "invalid volume_mount driver"),
            (|m| m.volume_mounts = mount(|v| v.mode = "w".into()), "invalid volume_mount mode"),
            (|m| m.volume_mounts = mount(|v| v.shared = Some(Default::default())), "invalid volume_mount volume id"),
            (|m| m.volume_mounts = mount(|v| v.dedicated = Some(Default::default())), "invalid volume_mount mounter id"),
            // Whatever they say.
            (|m| m.privileged = true, ACCEPTED),
            (|m| m.network = Some(Default::default()), ACCEPTED),
            (|m| m.certificate_properties = Some(Default::default()), ACCEPTED),
            (|m| m.placement_tags = vec![String::new()], ACCEPTED),
            (|m| (m.log_guid, m.log_source) = ("\0".into(), "\u{fffd}".into()), ACCEPTED),
            (|m| m.trusted_system_certificates_path = "../..".into(), ACCEPTED),
        ];
        rows.to_vec()
    }};
}

fn lrp_rows() -> Vec<Row<wire::DesiredLrp>> {
    let rows: &[Row<wire::DesiredLrp>] = &[
        (|m| m.process_guid.clear(), "Invalid field: process_guid"),
        (|m| m.process_guid = "a/b".into(), "Invalid field: process_guid"),
        (|m| m.process_guid = "a b".into(), "Invalid field: process_guid"),
        (|m| m.process_guid = "é".into(), "Invalid field: process_guid"),
        (|m| m.process_guid = "p\n".into(), "Invalid field: process_guid"),
        (|m| m.process_guid = "p".repeat(256), NOT_A_MESSAGE),
        (|m| m.domain.clear(), "Invalid field: domain"),
        (|m| m.domain = "d".repeat(256), NOT_A_MESSAGE),
        (|m| m.domain = "d\0".into(), NOT_A_MESSAGE),
        (|m| m.instances = -1, "Invalid field: instances"),
        (|m| m.instances = 100_001, "Invalid field: instances (at most 100000)"),
        (|m| m.instances = i32::MAX, "Invalid field: instances (at most 100000)"),
        (|m| m.setup = Some(Default::default()), "Invalid field: setup, Invalid field: inner-action"),
        (|m| m.setup = Some(run("", "u")), "Invalid field: setup, Invalid field: path"),
        (|m| m.monitor = Some(Default::default()), "Invalid field: monitor, Invalid field: inner-action"),
        (|m| m.monitor = timeout(Some(run("p", "")), 1), "Invalid field: monitor, Invalid field: user"),
        (|m| m.ports = vec![80, 65536], "Invalid field: ports"),
        (|m| m.ports = vec![0, 65535], ACCEPTED),
        (|m| m.routes = routes(&[b'1'; 128 * 1024 + 1]), "Invalid field: routes"),
        (|m| m.routes = routes(b"{"), "Invalid field: routes"),
        (|m| m.routes = routes(&[0xff]), "Invalid field: routes"),
        (|m| m.routes = routes(b"{\"any\":[1]}"), ACCEPTED),
        (
            |m| (m.metrics_guid, m.metric_tags) = ("a".into(), tag("source_id", "b", 0)),
            "Invalid field: metric_tags, Invalid field: source_id should match metrics_guid",
        ),
        (
            |m| (m.metrics_guid, m.metric_tags) = ("a".into(), tag("other", "a", 0)),
            "Invalid field: metric_tags, Invalid field: source_id should match metrics_guid",
        ),
        (
            |m| m.check_definition = checks(vec![tcp(0)], vec![]),
            "Invalid field: check_definition, Invalid field: port",
        ),
        (
            |m| m.check_definition = checks(vec![], vec![http(65536)]),
            "Invalid field: check_definition, Invalid field: port",
        ),
        (
            |m| m.check_definition = checks(vec![Default::default()], vec![]),
            "Invalid field: check_definition, Invalid field: check",
        ),
        (
            |m| {
                let both = wire::Check { tcp_check: tcp(1).tcp_check, http_check: http(1).http_check };
                m.check_definition = checks(vec![both], vec![]);
            },
            "Invalid field: check_definition, Invalid field: check",
        ),
        (|m| m.check_definition = checks(vec![], vec![]), ACCEPTED),
        (|m| m.sidecars = sidecar(None, 1, 1), "Invalid field: sidecars, invalid action type"),
        (
            |m| m.sidecars = sidecar(Some(run("", "u")), 1, 1),
            "Invalid field: sidecars, Invalid field: action, Invalid field: path",
        ),
        (
            |m| m.sidecars = sidecar(Some(run("p", "u")), -1, -1),
            "Invalid field: sidecars, Invalid field: memory_mb, Invalid field: disk_mb",
        ),
        (
            |m| m.log_rate_limit = Some(wire::LogRateLimit { bytes_per_second: -2 }),
            "Invalid field: log_rate_limit_bytes_per_second",
        ),
        (|m| m.log_rate_limit = Some(wire::LogRateLimit { bytes_per_second: -1 }), ACCEPTED),
        (|m| m.start_timeout_ms = -1, ACCEPTED),
        (|m| m.deprecated_start_timeout_s = u32::MAX, ACCEPTED),
        (|m| m.update_strategy = 7, ACCEPTED),
        (
            |m| m.modification_tag = Some(wire::ModificationTag { epoch: "e".into(), index: u32::MAX }),
            ACCEPTED,
        ),
        (
            |m| (m.domain, m.instances, m.process_guid) = (String::new(), -1, String::new()),
            "Invalid field: domain, Invalid field: instances, Invalid field: process_guid",
        ),
    ];
    rows.to_vec()
}

#[tokio::test]
async fn lrps_that_cannot_be_desired() {
    let world = World::new().await;
    let calls = Calls::of(&world);
    let rows: Vec<_> = common_rows!(wire::DesiredLrp).into_iter().chain(lrp_rows()).collect();
    let request = |spoil: fn(&mut wire::DesiredLrp)| {
        let mut wire = lrp("app", 1).into();
        spoil(&mut wire);
        wire::DesireLrpRequest { desired_lrp: Some(wire) }.encode_to_vec()
    };
    let tidy = async || world.bbs().remove_desired_lrp("app").await.unwrap();
    check(&calls, "/v1/desired_lrp/desire.r2", &rows, request, tidy).await;
    assert_eq!(
        calls.say("/v1/desired_lrp/desire.r2", vec![]).await,
        "InvalidRequest: Invalid field: desired_lrp"
    );
}

#[tokio::test]
async fn tasks_that_cannot_be_desired() {
    let world = World::new().await;
    let calls = Calls::of(&world);
    let path = "/v1/tasks/desire.r2";
    let mut rows = common_rows!(wire::TaskDefinition);
    let limit: Row<wire::TaskDefinition> = (
        |m| m.log_rate_limit = Some(wire::LogRateLimit { bytes_per_second: -2 }),
        "Invalid field: log_rate_limit",
    );
    rows.push(limit);
    rows.push((|m| m.result_file = "\0".into(), ACCEPTED));
    rows.push((|m| m.completion_callback_url = "nowhere".into(), ACCEPTED));
    rows.push((|m| m.metrics_guid = "any".into(), ACCEPTED));
    let tidy = async || {
        world.bbs().cancel_task("task").await.unwrap();
        // A callback that cannot be made may have resolved it.
        drop(world.bbs().resolving_task("task").await);
        drop(world.bbs().delete_task("task").await);
        crate::world::eventually("the Task is gone", async || {
            world.bbs().task_by_guid("task").await.is_err()
        })
        .await;
    };
    let request = |spoil: fn(&mut wire::TaskDefinition)| {
        let mut wire = task_definition().into();
        spoil(&mut wire);
        let (task_guid, domain) = ("task".into(), "tests".into());
        wire::DesireTaskRequest { task_guid, domain, task_definition: Some(wire) }.encode_to_vec()
    };
    check(&calls, path, &rows, request, &tidy).await;
    let outside: [Row<wire::DesireTaskRequest>; 8] = [
        (|m| m.task_guid.clear(), "Invalid field: task_guid"),
        (|m| m.task_guid = "a.b".into(), "Invalid field: task_guid"),
        (|m| m.task_guid = "t".repeat(256), NOT_A_MESSAGE),
        (|m| m.domain.clear(), "Invalid field: domain"),
        (|m| m.domain = "é".repeat(256), NOT_A_MESSAGE),
        (|m| m.domain = "\0".into(), NOT_A_MESSAGE),
        (|m| m.task_definition = None, "Invalid field: task_definition"),
        (
            |m| *m = wire::DesireTaskRequest::default(),
            "Invalid field: task_guid, Invalid field: domain, Invalid field: task_definition",
        ),
    ];
    let request = |spoil: fn(&mut wire::DesireTaskRequest)| {
        let (task_guid, domain) = ("task".into(), "tests".into());
        let task_definition = Some(task_definition().into());
        let mut request = wire::DesireTaskRequest { task_guid, domain, task_definition };
        spoil(&mut request);
        request.encode_to_vec()
    };
    check(&calls, path, &outside, request, &tidy).await;
}

#[tokio::test]
async fn lrps_that_cannot_be_updated() {
    let world = World::new().await;
    let calls = Calls::of(&world);
    world.bbs().desire_lrp(&lrp("app", 1)).await.unwrap();
    let rows: [Row<wire::DesiredLrpUpdate>; 17] = [
        (|_| {}, ACCEPTED),
        (|m| m.instances = Some(-1), "Invalid field: instances"),
        (|m| m.instances = Some(100_001), "Invalid field: instances (at most 100000)"),
        (|m| m.instances = Some(0), ACCEPTED),
        (|m| m.annotation = Some("x".repeat(10 * 1024)), ACCEPTED),
        (|m| m.annotation = Some("x".repeat(10 * 1024 + 1)), "Invalid field: annotation"),
        (|m| m.routes = routes(&[b'1'; 128 * 1024 + 1]), "Invalid field: routes"),
        (|m| m.routes = routes(b"]"), "Invalid field: routes"),
        (|m| m.routes = Some(Default::default()), ACCEPTED),
        (
            |m| m.metric_tags = tag("a", "", 0),
            "Invalid field: metric_tags, Invalid field: static, Invalid field: dynamic",
        ),
        (|m| m.metric_tags = tag("a", "b", 0), ACCEPTED),
        (|m| m.image_username = Some("u".into()), "Invalid field: image_password"),
        (|m| m.image_password = Some("p".into()), "Invalid field: image_username"),
        // Of credentials no half is kept: they could not be used, and not be desired like that.
        (
            |m| (m.image_username, m.image_password) = (Some("u".into()), Some("".into())),
            "Invalid field: image_password",
        ),
        (
            |m| (m.image_username, m.image_password) = (Some("".into()), Some("p".into())),
            "Invalid field: image_username",
        ),
        (|m| (m.image_username, m.image_password) = (Some("".into()), Some("".into())), ACCEPTED),
        (
            |m| (m.instances, m.annotation) = (Some(-1), Some("x".repeat(20_000))),
            "Invalid field: instances, Invalid field: annotation",
        ),
    ];
    let request = |spoil: fn(&mut wire::DesiredLrpUpdate)| {
        let mut update = wire::DesiredLrpUpdate::default();
        spoil(&mut update);
        wire::UpdateDesiredLrpRequest { process_guid: "app".into(), update: Some(update) }.encode_to_vec()
    };
    check(&calls, "/v1/desired_lrp/update", &rows, request, async || {}).await;
    let nobody = wire::UpdateDesiredLrpRequest::default().encode_to_vec();
    let said = calls.say("/v1/desired_lrp/update", nobody).await;
    assert_eq!(said, "InvalidRequest: Invalid field: process_guid");
}

/// What cells report: all parts of a start.
#[tokio::test]
async fn instances_that_cannot_run() {
    let world = World::new().await;
    let calls = Calls::of(&world);
    let rows: [Row<wire::StartActualLrpRequest>; 15] = [
        (|m| m.actual_lrp_key = None, "Invalid field: actual_lrp_key"),
        (|m| m.actual_lrp_key = Some(wire_key("", 0, "d")), "Invalid field: process_guid"),
        (|m| m.actual_lrp_key = Some(wire_key("p", -1, "d")), "Invalid field: index"),
        (|m| m.actual_lrp_key = Some(wire_key("p", 0, "")), "Invalid field: domain"),
        (|m| m.actual_lrp_key = Some(wire_key("p", 0, "d\0")), NOT_A_MESSAGE),
        (|m| m.actual_lrp_key = Some(wire_key(&"p".repeat(256), 0, "d")), NOT_A_MESSAGE),
        (|m| m.actual_lrp_instance_key = None, "Invalid field: actual_lrp_instance_key"),
        (|m| m.actual_lrp_instance_key = Some(wire_instance("", "c")), "Invalid field: instance_guid"),
        (|m| m.actual_lrp_instance_key = Some(wire_instance("i", "")), "Invalid field: cell_id"),
        (|m| m.actual_lrp_instance_key = Some(wire_instance("i", &"c".repeat(256))), NOT_A_MESSAGE),
        (|m| m.actual_lrp_net_info = None, "Invalid field: actual_lrp_net_info"),
        (|m| m.actual_lrp_net_info = Some(Default::default()), "Invalid field: address"),
        (
            |m| {
                let ports = vec![wire::PortMapping { host_port: 65536, ..Default::default() }];
                m.actual_lrp_net_info.get_or_insert_default().ports = ports;
            },
            "Invalid field: ports",
        ),
        (
            |m| *m = wire::StartActualLrpRequest::default(),
            "Invalid field: actual_lrp_key, Invalid field: actual_lrp_instance_key, Invalid field: actual_lrp_net_info",
        ),
        (
            |m| {
                (m.actual_lrp_key, m.actual_lrp_instance_key) =
                    (Some(wire_key("", -1, "")), Some(Default::default()))
            },
            "Invalid field: process_guid, Invalid field: index, Invalid field: domain, Invalid field: cell_id, \
             Invalid field: instance_guid",
        ),
    ];
    let spoiled = |spoil: fn(&mut wire::StartActualLrpRequest)| {
        let mut start = wire::StartActualLrpRequest {
            actual_lrp_key: Some(wire_key("app", 0, "tests")),
            actual_lrp_instance_key: Some(wire_instance("i-0", "cell-1")),
            actual_lrp_net_info: Some(wire::ActualLrpNetInfo { address: "a".into(), ..Default::default() }),
            ..Default::default()
        };
        spoil(&mut start);
        start
    };
    for path in ["/v1/actual_lrps/start", "/v1/actual_lrps/start.r1"] {
        check(&calls, path, &rows, |spoil| spoiled(spoil).encode_to_vec(), async || {}).await;
    }
    // That an evacuating instance is not written down, for want of a DesiredLRP, is no refusal.
    let rows: Vec<_> = rows.into_iter().filter(|(_, expected)| *expected != NOT_A_MESSAGE).collect();
    for path in ["/v1/actual_lrps/evacuate_running", "/v1/actual_lrps/evacuate_running.r1"] {
        let request = |spoil| {
            let start = spoiled(spoil);
            let request = wire::EvacuateRunningActualLrpRequest {
                actual_lrp_key: start.actual_lrp_key,
                actual_lrp_instance_key: start.actual_lrp_instance_key,
                actual_lrp_net_info: start.actual_lrp_net_info,
                ..Default::default()
            };
            request.encode_to_vec()
        };
        check(&calls, path, &rows, request, async || {}).await;
    }
}

fn wire_key(process_guid: &str, index: i32, domain: &str) -> wire::ActualLrpKey {
    wire::ActualLrpKey { process_guid: process_guid.into(), index, domain: domain.into() }
}

fn wire_instance(instance_guid: &str, cell_id: &str) -> wire::ActualLrpInstanceKey {
    wire::ActualLrpInstanceKey { instance_guid: instance_guid.into(), cell_id: cell_id.into() }
}

#[tokio::test]
async fn calls_about_instances_that_cannot_be_made() {
    let world = World::new().await;
    let calls = Calls::of(&world);
    let both = "Invalid field: actual_lrp_key, Invalid field: actual_lrp_instance_key";
    let each = "Invalid field: process_guid, Invalid field: index, Invalid field: domain, Invalid field: cell_id, \
                Invalid field: instance_guid";
    let empty = || wire::InstanceRequest {
        actual_lrp_key: Some(wire_key("", -1, "")),
        actual_lrp_instance_key: Some(Default::default()),
    };
    for path in ["remove_evacuating", "evacuate_claimed", "evacuate_stopped", "crash"] {
        let path = format!("/v1/actual_lrps/{path}");
        assert_eq!(calls.say(&path, vec![]).await, format!("InvalidRequest: {both}"), "{path}");
        let said = calls.say(&path, empty().encode_to_vec()).await;
        assert_eq!(said, format!("InvalidRequest: {each}"), "{path}");
    }
    let instance = on("cell-1", "i-0");
    let indexed = |guid: &str, index, instance: Option<wire::ActualLrpInstanceKey>| {
        let (process_guid, actual_lrp_instance_key) = (guid.into(), instance);
        wire::IndexedInstanceRequest { process_guid, index, actual_lrp_instance_key }.encode_to_vec()
    };
    let crash = wire::CrashActualLrpRequest::new(&key("app", 0), &instance, "").encode_to_vec();
    let fail = |key: Option<wire::ActualLrpKey>, reason: &str| {
        wire::FailActualLrpRequest { actual_lrp_key: key, error_message: reason.into() }.encode_to_vec()
    };
    let retire = |key| wire::RetireActualLrpRequest { actual_lrp_key: Some(key) }.encode_to_vec();
    let group = wire::ActualLrpGroupByProcessGuidAndIndexRequest { process_guid: String::new(), index: -1 };
    let not_found = "ResourceNotFound: the requested resource could not be found";
    let refused = |faults: &str| format!("InvalidRequest: {faults}");
    for (path, body, expected) in [
        ("claim", indexed("", 0, Some(instance.clone().into())), refused("Invalid field: process_guid")),
        ("claim", indexed("p", 0, None), refused("Invalid field: actual_lrp_instance_key")),
        ("claim", indexed("p", 0, Some(wire_instance("i", ""))), refused("Invalid field: cell_id")),
        ("claim", indexed("p", 0, Some(wire_instance("", "c"))), refused("Invalid field: instance_guid")),
        // The published API does not look at a claim's index; nobody has this one.
        ("claim", indexed("p", -1, Some(instance.clone().into())), not_found.into()),
        ("remove", indexed("", 0, None), refused("Invalid field: process_guid")),
        ("remove", indexed("p", -1, None), refused("Invalid field: index")),
        ("evacuate_crashed", crash, refused("Invalid field: error_message")),
        ("evacuate_crashed", vec![], refused(&format!("{both}, Invalid field: error_message"))),
        ("fail", fail(None, "r"), refused("Invalid field: actual_lrp_key")),
        ("fail", fail(Some(wire_key("p", 0, "d")), ""), refused("Invalid field: error_message")),
        ("fail", fail(Some(wire_key("p", 0, "")), "r"), refused("Invalid field: domain")),
        ("retire", vec![], refused("Invalid field: actual_lrp_key")),
        (
            "retire",
            retire(wire_key("", -1, "d")),
            refused("Invalid field: process_guid, Invalid field: index"),
        ),
        ("list_by_process_guids", vec![], refused("process_guids must not be empty")),
    ] {
        let path = format!("/v1/actual_lrps/{path}");
        assert_eq!(calls.say(&path, body).await, expected, "{path}");
    }
    for (path, body, expected) in [
        ("list_by_process_guid", vec![], "Invalid field: process_guid"),
        (
            "get_by_process_guid_and_index",
            group.encode_to_vec(),
            "Invalid field: process_guid, Invalid field: index",
        ),
    ] {
        let path = format!("/v1/actual_lrp_groups/{path}");
        assert_eq!(calls.say(&path, body).await, refused(expected), "{path}");
    }
}

#[tokio::test]
async fn a_refused_evacuation_says_whether_to_keep_the_container() {
    let world = World::new().await;
    let calls = Calls::of(&world);
    for (path, keep_container) in [
        ("evacuate_claimed", true),
        ("evacuate_crashed", false),
        ("evacuate_stopped", false),
        ("evacuate_running", true),
        ("evacuate_running.r1", true),
    ] {
        for body in [vec![], vec![0xff]] {
            let path = format!("/v1/actual_lrps/{path}");
            let answer: wire::EvacuationResponse = calls.ask(&path, body).await;
            assert!(answer.error.is_some());
            assert_eq!(answer.keep_container, keep_container, "{path}");
        }
    }
}

#[tokio::test]
async fn calls_about_tasks_and_the_rest_that_cannot_be_made() {
    let world = World::new().await;
    // A Task of a cell that is not there fails at the next look.
    world.set_cells(&["c"]);
    let calls = Calls::of(&world);
    world.bbs().desire_task("task", "tests", &task_definition()).await.unwrap();
    let start = |task_guid: &str, cell_id: &str| {
        wire::StartTaskRequest { task_guid: task_guid.into(), cell_id: cell_id.into() }.encode_to_vec()
    };
    let reason = |task_guid: &str, reason: &str| {
        wire::TaskReasonRequest { task_guid: task_guid.into(), reason: reason.into() }.encode_to_vec()
    };
    let complete = |task_guid: &str, cell_id: &str| {
        let (task_guid, cell_id) = (task_guid.into(), cell_id.into());
        wire::CompleteTaskRequest { task_guid, cell_id, ..Default::default() }.encode_to_vec()
    };
    let domain =
        |domain: &str| wire::UpsertDomainRequest { domain: domain.into(), ttl: u32::MAX }.encode_to_vec();
    let refused = |faults: &str| format!("InvalidRequest: {faults}");
    for (path, body, expected) in [
        ("tasks/start", start("", "c"), refused("Invalid field: task_guid")),
        ("tasks/start", start("a b", ""), refused("Invalid field: task_guid, Invalid field: cell_id")),
        ("tasks/start", start("task", &"c".repeat(256)), NOT_A_MESSAGE.into()),
        ("tasks/cancel", vec![], refused("Invalid field: task_guid")),
        ("tasks/resolving", vec![], refused("Invalid field: task_guid")),
        ("tasks/delete", vec![], refused("Invalid field: task_guid")),
        ("tasks/get_by_task_guid.r2", vec![], refused("Invalid field: task_guid")),
        ("tasks/get_by_task_guid.r3", vec![], refused("Invalid field: task_guid")),
        ("tasks/fail", reason("a/b", "r"), refused("Invalid field: task_guid")),
        ("tasks/fail", reason("task", ""), refused("Invalid field: failure_reason")),
        ("tasks/reject", reason("", ""), refused("Invalid field: task_guid, Invalid field: failure_reason")),
        ("tasks/complete", complete("", "c"), refused("Invalid field: task_guid")),
        ("tasks/complete", complete("task", ""), refused("Invalid field: cell_id")),
        // What a Task cannot do in its state.
        (
            "tasks/complete",
            complete("task", "c"),
            "InvalidStateTransition: Cannot transition from Pending to Completed".into(),
        ),
        ("tasks/start", start("task", "c"), ACCEPTED.into()),
        (
            "tasks/start",
            start("task", "d"),
            "InvalidStateTransition: Cannot transition from Running to Running".into(),
        ),
        ("tasks/complete", complete("task", "d"), "RunningOnDifferentCell: Running on cell c not d".into()),
        ("tasks/complete", complete("task", "c"), ACCEPTED.into()),
        ("tasks/reject", reason("task", "r"), NOT_A_MESSAGE.into()),
        ("domains/upsert", domain(""), refused("Invalid field: domain")),
        ("domains/upsert", domain(&"d".repeat(256)), NOT_A_MESSAGE.into()),
        ("domains/upsert", domain("d\0"), NOT_A_MESSAGE.into()),
        ("domains/upsert", domain("d"), ACCEPTED.into()),
        ("desired_lrps/get_by_process_guid.r2", vec![], refused("Invalid field: process_guid")),
        ("desired_lrps/get_by_process_guid.r3", vec![], refused("Invalid field: process_guid")),
        ("desired_lrp_scheduling_infos/get_by_process_guid", vec![], refused("Invalid field: process_guid")),
        ("desired_lrp/remove", vec![], refused("Invalid field: process_guid")),
    ] {
        let path = format!("/v1/{path}");
        assert_eq!(calls.say(&path, body).await, expected, "{path}");
    }
}
