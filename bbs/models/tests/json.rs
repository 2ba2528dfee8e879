//! The JSON of the models: what tools that print the BBS's answers show, and what scripts read from them.

use std::collections::BTreeMap;

use bbs_models::wire;
use bbs_models::{
    Action, ActualLrp, ActualLrpInstanceKey, ActualLrpKey, ActualLrpNetInfo, CellCapacity, CellPresence,
    DesiredLrp, Event, LogRateLimit, MetricTagValue, PortMapping, Presence, ResourceLimits, RootfsProvider,
    RunAction, Task, TaskCompletion, TaskDefinition, TaskOutcome, TaskState,
};
use serde_json::{Value, json};

fn run() -> Action {
    let resource_limits = Some(ResourceLimits { nofile: Some(7), nproc: None });
    Action::Run(RunAction { path: "x".into(), user: "u".into(), resource_limits, ..RunAction::default() })
}

fn run_json() -> Value {
    json!({"run": {
        "path": "x", "user": "u", "resource_limits": {"nofile": 7}, "suppress_log_output": false,
        "volume_mounted_files": null
    }})
}

fn to_json(value: &impl serde::Serialize) -> Value {
    serde_json::to_value(value).unwrap()
}

fn unclaimed() -> ActualLrp {
    ActualLrp::unclaimed(ActualLrpKey::new("p", 2, "d"), 5)
}

#[test]
fn an_unclaimed_instance_in_json() {
    let expected = json!({
        "process_guid": "p", "index": 2, "domain": "d",
        "instance_guid": "", "cell_id": "",
        "address": "", "ports": null, "preferred_address": "UNKNOWN",
        "crash_count": 0, "state": "UNCLAIMED", "since": 5,
        "modification_tag": {"epoch": "", "index": 0},
        "presence": "ORDINARY", "OptionalRoutable": null, "availability_zone": ""
    });
    assert_eq!(to_json(&unclaimed()), expected);
    assert_eq!(serde_json::from_value::<ActualLrp>(expected).unwrap(), unclaimed());
}

#[test]
fn a_running_instance_in_json() {
    let net_info = ActualLrpNetInfo {
        address: "10.0.0.1".into(),
        ports: vec![PortMapping { container_port: 8080, host_port: 61000, ..PortMapping::default() }],
        instance_address: "10.255.0.2".into(),
        preferred_address: bbs_models::PreferredAddress::Host,
        ..ActualLrpNetInfo::default()
    };
    let lrp = ActualLrp {
        presence: Presence::Evacuating,
        routable: Some(true),
        internal_routes: vec!["a.internal".into()],
        ..ActualLrp::running(ActualLrpKey::new("p", 0, "d"), ActualLrpInstanceKey::new("i", "c"), net_info, 5)
    };
    let expected = json!({
        "process_guid": "p", "index": 0, "domain": "d",
        "instance_guid": "i", "cell_id": "c",
        "address": "10.0.0.1",
        "ports": [{
            "container_port": 8080, "host_port": 61000,
            "container_tls_proxy_port": 0, "host_tls_proxy_port": 0
        }],
        "instance_address": "10.255.0.2", "preferred_address": "HOST",
        "crash_count": 0, "state": "RUNNING", "since": 5,
        "modification_tag": {"epoch": "", "index": 0},
        "presence": "EVACUATING",
        "actual_lrp_internal_routes": [{"hostname": "a.internal"}],
        "OptionalRoutable": {"routable": true}, "availability_zone": ""
    });
    assert_eq!(to_json(&lrp), expected);
    assert_eq!(serde_json::from_value::<ActualLrp>(expected).unwrap(), lrp);
}

#[test]
fn a_desired_lrp_in_json() {
    let mut lrp = DesiredLrp::new("p", "d", "preloaded:s", run());
    lrp.routes.insert_raw("cf-router", r#"[{"port":8080}]"#.into()).unwrap();
    lrp.ports = vec![8080];
    lrp.log_rate_limit = Some(LogRateLimit::Unlimited);
    lrp.metric_tags = BTreeMap::from([
        ("source_id".into(), MetricTagValue::Static("p".into())),
        ("instance_id".into(), MetricTagValue::Index),
    ]);
    let expected = json!({
        "process_guid": "p", "domain": "d", "rootfs": "preloaded:s", "instances": 1, "env": null,
        "action": run_json(), "start_timeout_ms": 0, "disk_mb": 0, "memory_mb": 0, "cpu_weight": 0,
        "privileged": false, "ports": [8080], "routes": {"cf-router": [{"port": 8080}]},
        "log_source": "", "log_guid": "", "metrics_guid": "", "annotation": "",
        "modification_tag": {"epoch": "", "index": 0}, "max_pids": 0,
        "metric_tags": {"source_id": {"static": "p"}, "instance_id": {"dynamic": "INDEX"}},
        "log_rate_limit": {"bytes_per_second": -1},
        "volume_mounted_files": null, "update_strategy": 0
    });
    assert_eq!(to_json(&lrp), expected);
    assert_eq!(serde_json::from_str::<DesiredLrp>(&expected.to_string()).unwrap(), lrp);
}

#[test]
fn a_scheduling_info_lies_flat_in_json() {
    let lrp = DesiredLrp::new("p", "d", "preloaded:s", run());
    let expected = json!({
        "process_guid": "p", "domain": "d", "log_guid": "", "annotation": "", "instances": 1,
        "memory_mb": 0, "disk_mb": 0, "rootfs": "preloaded:s", "max_pids": 0,
        "routes": {}, "epoch": "", "index": 0, "volume_placement": {"driver_names": []}
    });
    assert_eq!(to_json(&lrp.scheduling_info()), expected);
}

#[test]
fn a_task_lies_flat_in_json() {
    let completion =
        TaskCompletion { outcome: TaskOutcome::Succeeded { result: "42".into() }, first_completed_at_ns: 7 };
    let task = Task {
        state: TaskState::Completed(completion),
        ..Task::pending("t", "d", TaskDefinition::new("preloaded:s", run()), 5)
    };
    let expected = json!({
        "rootfs": "preloaded:s", "action": run_json(), "disk_mb": 0, "memory_mb": 0, "cpu_weight": 0,
        "privileged": false, "log_source": "", "log_guid": "", "metrics_guid": "", "result_file": "",
        "max_pids": 0, "image_username": "", "image_password": "", "volume_mounted_files": null,
        "task_guid": "t", "domain": "d", "created_at": 5, "updated_at": 5, "first_completed_at": 7,
        "state": "Completed", "cell_id": "", "result": "42", "failed": false, "failure_reason": "",
        "rejection_count": 0, "rejection_reason": ""
    });
    assert_eq!(to_json(&task), expected);
    assert_eq!(serde_json::from_value::<Task>(expected).unwrap(), task);
}

#[test]
fn a_completion_callback_in_json() {
    let task =
        |state| Task { state, ..Task::pending("t", "d", TaskDefinition::new("preloaded:s", run()), 5) };
    assert_eq!(task(TaskState::Pending).callback(), None);
    let outcome = TaskOutcome::Failed { reason: "exit status 3".into() };
    let completed = task(TaskState::Resolving(TaskCompletion { outcome, first_completed_at_ns: 7 }));
    let expected = json!({
        "task_guid": "t", "failed": true, "failure_reason": "exit status 3", "result": "", "created_at": 5
    });
    assert_eq!(to_json(&completed.callback().unwrap()), expected);
}

#[test]
fn a_changed_event_in_json() {
    let instance = ActualLrpInstanceKey::new("i", "c");
    let event = Event::ActualLrpInstanceChanged {
        before: Box::new(unclaimed()),
        after: Box::new(ActualLrp {
            routable: Some(false),
            ..ActualLrp::claimed(ActualLrpKey::new("p", 2, "d"), instance, 6)
        }),
        trace_id: "trace".into(),
    };
    let side = |state: &str, since: i64, routable: Value| {
        json!({
            "address": "", "ports": null, "preferred_address": "UNKNOWN", "crash_count": 0, "state": state,
            "since": since, "modification_tag": {"epoch": "", "index": 0}, "presence": "ORDINARY",
            "OptionalRoutable": routable, "availability_zone": ""
        })
    };
    let expected = json!({
        "process_guid": "p", "index": 2, "domain": "d", "instance_guid": "i", "cell_id": "c",
        "before": side("UNCLAIMED", 5, Value::Null),
        "after": side("CLAIMED", 6, json!({})),
        "trace_id": "trace"
    });
    assert_eq!(to_json(&event), expected);
}

#[test]
fn a_cell_in_json_is_its_presence_in_locket() {
    let schemes = ["docker".to_string()];
    let cell = CellPresence {
        cell_id: "c".into(),
        rep_address: "http://a".into(),
        zone: "z".into(),
        capacity: CellCapacity { memory_mb: 1, disk_mb: 2, containers: 3 },
        rootfs_providers: RootfsProvider::list(&["s".to_string()], &[], &schemes),
        rep_url: "https://b".into(),
        ..CellPresence::default()
    };
    let expected = json!({
        "cell_id": "c", "rep_address": "http://a", "zone": "z",
        "capacity": {"memory_mb": 1, "disk_mb": 2, "containers": 3},
        "rootfs_provider_list": [
            {"name": "preloaded", "properties": ["s"]}, {"name": "preloaded+layer", "properties": ["s"]},
            {"name": "extra"}, {"name": "docker"}
        ],
        "rep_url": "https://b", "annotations": {}
    });
    assert_eq!(to_json(&cell), expected);
    let resource = cell.to_resource("owner").unwrap();
    assert_eq!(CellPresence::of_resource(&resource), Some(cell));
    let with_nulls = r#"{"cell_id":"c","placement_tags":null,"annotations":null}"#;
    assert_eq!(serde_json::from_str::<CellPresence>(with_nulls).unwrap().cell_id, "c");
}

#[test]
fn json_that_cannot_be_a_recipe_says_what_is_wrong() {
    let refused = |json: Value| serde_json::from_value::<TaskDefinition>(json).unwrap_err().to_string();
    assert_eq!(refused(json!({"rootfs": "s"})), "Invalid field: rootfs, invalid action type");
    let nowhere = json!({"rootfs": "preloaded:s", "action": {"run": {"path": "x"}}});
    assert_eq!(refused(nowhere), "Invalid field: action, Invalid field: user");
}

#[test]
fn clients_that_know_no_default_may_leave_it_out() {
    let json = r#"{"process_guid":"p","domain":"d","rootfs":"preloaded:s","instances":1,"env":null,"ports":null,
        "action":{"serial":{"actions":[{"run":{"path":"x","user":"u","args":null}}]}},"routes":null}"#;
    let lrp: DesiredLrp = serde_json::from_str(json).unwrap();
    assert!(matches!(lrp.action, Action::Serial(_)));
    assert_eq!(wire::DesiredLrp::from(lrp).update_strategy, 0);
}
