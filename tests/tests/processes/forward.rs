//! What apps say and use, as the platform's forwarder hears it from a cell.

#[path = "../../../diego/loggregator/tests/stand_in/mod.rs"]
mod stand_in;

use std::collections::BTreeSet;

use diego_base::tls::{Files, ServerTls};
use serde_json::{Value, json};
use stand_in::{Envelope, Said, stand_in};

use super::{Processes, certify_for, in_six_processes};

fn with_a_forwarder() -> Processes {
    let mut processes = Processes::new();
    certify_for(processes.dir.path(), "metron");
    processes.rep_flags = vec![
        processes.address("loggregator", "forwarder"),
        processes.flag("loggregator-ca-cert-file", processes.path("ca-cert")),
        processes.flag("loggregator-cert-file", processes.path("cert")),
        processes.flag("loggregator-key-file", processes.path("key")),
        "--container-metrics-report-interval=1s".into(),
        "--app-metric-exclusion=container_age".into(),
        "--report-interval=1s".into(),
        processes.address("debug-listen", "rep-debug"),
    ];
    processes
}

fn talker() -> Value {
    json!({
        "process_guid": "talker", "domain": "stories", "log_guid": "talker-logs", "log_source": "APP",
        "rootfs": "preloaded:busybox", "instances": 1, "memory_mb": 64, "disk_mb": 64,
        "metrics_guid": "talker-app",
        "metric_tags": { "source_id": { "static": "talker-app" }, "space_name": { "static": "dev" }, "instance_id": { "dynamic": "INDEX" } },
        "action": { "run": {
            "path": "/bin/sh", "args": ["-c", "echo hello; echo oops >&2; exec sleep 1000"], "user": "root",
            "log_source": "APP/PROC/WEB",
        } },
    })
}

fn lines(envelopes: &[Envelope]) -> BTreeSet<(String, i32, String)> {
    let line = |envelope: &Envelope| match &envelope.said {
        Some(Said::Log(log)) if envelope.source_id == "talker-app" => {
            let text = String::from_utf8_lossy(&log.payload).into_owned();
            Some((text, log.stream, envelope.tags["source_type"].clone()))
        }
        _ => None,
    };
    envelopes.iter().filter_map(line).collect()
}

fn figures(envelopes: &[Envelope], source_id: &str) -> BTreeSet<String> {
    let of_source = envelopes.iter().filter(|envelope| envelope.source_id == source_id);
    let names = |envelope: &Envelope| match &envelope.said {
        Some(Said::Gauge(gauge)) => gauge.metrics.keys().cloned().collect(),
        Some(Said::Counter(counter)) => vec![counter.name.clone()],
        _ => vec![],
    };
    of_source.flat_map(names).collect()
}

async fn page(address: std::net::SocketAddr) -> String {
    let http = diego_base::http::client(&diego_base::http::ClientConfig::default()).unwrap();
    let answer = http.get(format!("http://{address}/metrics")).send().await.unwrap();
    assert_eq!(answer.headers()["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    answer.text().await.unwrap()
}

#[test]
fn a_cell_tells_the_platform_what_apps_say_and_use() {
    let name = "a_cell_tells_the_platform_what_apps_say_and_use";
    in_six_processes(name, with_a_forwarder, |processes, _| {
        processes.cfdot(&["create-desired-lrp", &talker().to_string()]).worked();
        processes.running_instance_of("talker", "");
        // The forwarder comes only now: what was said before waited for it.
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let path = |name| processes.path(name);
        let tls = Files { cert: path("cert"), key: path("key"), ca: Some(path("ca-cert")) };
        let tls = ServerTls::load(&tls).unwrap();
        let (_, received, _stop) = runtime.block_on(stand_in(processes.addresses["forwarder"], Some(tls)));
        processes.until("both lines are forwarded", |_| {
            let lines = lines(&received.all());
            let said = |text: &str, stream| lines.contains(&(text.into(), stream, "APP/PROC/WEB".into()));
            (said("hello", 0) && said("oops", 1)).then_some(())
        });
        processes.until("what containers use is forwarded", |_| {
            let figures = figures(&received.all(), "talker-app");
            let wanted =
                ["cpu", "memory", "disk", "memory_quota", "disk_quota", "absolute_usage", "cpu_entitlement"];
            let more = ["log_rate", "log_rate_limit", "rx_bytes", "tx_bytes"];
            assert!(!figures.contains("container_age"), "it is excluded");
            wanted.iter().chain(&more).all(|name| figures.contains(*name)).then_some(())
        });
        processes.until("what the cell has left is forwarded", |_| {
            let figures = figures(&received.all(), "rep");
            let now_and_then =
                ["CapacityRemainingMemory", "ContainerCount", "RequestLatencyMax", "numGoRoutines"];
            let as_it_happens =
                ["StalledGardenDuration", "GardenContainerCreationSucceededDuration", "RepBulkSyncDuration"];
            let more = ["ContainerSetupSucceededDuration", "GardenHealthCheckFailed"];
            let mut wanted = now_and_then.iter().chain(&as_it_happens).chain(&more);
            wanted.all(|name| figures.contains(*name)).then_some(())
        });
        let page = runtime.block_on(page(processes.addresses["rep-debug"]));
        let value = |name: &str| {
            let told = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            told.unwrap_or_else(|| panic!("{name} is not in\n{page}")).parse::<f64>().unwrap()
        };
        let containers = value("container_count");
        assert!(containers > 0.0, "{page}");
        assert_eq!(value("container_setup_succeeded_duration_seconds_count"), containers, "{page}");
        assert_eq!(value("garden_container_creation_succeeded_duration_seconds_count"), containers, "{page}");
        assert_eq!(value("garden_container_creation_failed_duration_seconds_count"), 0.0, "{page}");
        assert_eq!(value("garden_health_check_failed"), 0.0, "{page}");
        assert_eq!(value("requests_failed{request_type=\"Perform\"}"), 0.0, "{page}");
        assert!(value("requests_succeeded{request_type=\"Perform\"}") > 0.0, "{page}");
        for envelope in received.all().iter().filter(|envelope| envelope.source_id == "talker-app") {
            let tag = |name: &str| envelope.tags.get(name).map(String::as_str);
            assert_eq!((tag("origin"), tag("space_name")), (Some("rep"), Some("dev")), "{envelope:?}");
            assert_eq!((&*envelope.instance_id, tag("instance_id")), ("0", Some("0")), "{envelope:?}");
        }
    });
}
