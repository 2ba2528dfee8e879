//! What operators look at and turn while garden runs, under the names the established server gave it: `/debug/vars`,
//! counts as one JSON value, and `/log-level`, which takes a level by POST. Beside them `/metrics`: the figures of the store
//! and the disk as Prometheus reads them.
//!
//! Who reaches the address may do both, so it is for the machine itself or a network of operators. Profiles of a Go
//! program, which the established server serves beside these, there are none.

use std::net::SocketAddr;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use diego_base::serve::{self, Listen, Listener};
use diego_base::telemetry::LevelSwitch;
use rootfs::admin::{Disk, Tenancy};
use rootfs::store::PullFigures;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::gardener::Gardener;

#[derive(Debug)]
pub struct Config {
    pub address: SocketAddr,
    pub levels: LevelSwitch,
}

#[derive(Clone)]
struct Debug {
    gardener: Gardener,
    levels: LevelSwitch,
}

/// Serves until `shutdown`. Garden goes on without it when the address cannot be had.
pub async fn serve(config: Config, gardener: Gardener, shutdown: CancellationToken) {
    let listener = match Listener::bind(Listen::Tcp(config.address)).await {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "cannot serve /debug/vars"),
    };
    tokio::spawn(serve::serve(listener, router(gardener, config.levels), None, shutdown));
}

fn router(gardener: Gardener, levels: LevelSwitch) -> Router {
    Router::new()
        .route("/debug/vars", get(vars))
        .route("/metrics", get(metrics))
        .route("/log-level", post(set_level).fallback(only_post))
        .with_state(Debug { gardener, levels })
}

async fn vars(State(debug): State<Debug>) -> impl IntoResponse {
    let counted = tokio::task::spawn_blocking(move || {
        let (depot_dirs, unkillable) = debug.gardener.counts();
        (depot_dirs, unkillable, memory(&std::fs::read_to_string("/proc/self/status").unwrap_or_default()))
    });
    let (depot_dirs, unkillable, memory) = counted.await.unwrap_or((-1, 0, Memory::default()));
    let text = variables(depot_dirs, unkillable, memory).to_string();
    ([("content-type", "application/json; charset=utf-8")], text)
}

async fn metrics(State(debug): State<Debug>) -> (StatusCode, String) {
    let store = debug.gardener.store().clone();
    let measured = tokio::task::spawn_blocking(move || Ok((store.disk()?, store.pull_figures())));
    let measured: Result<_, rootfs::Error> = match measured.await {
        Ok(measured) => measured,
        Err(error) => return (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    };
    match measured {
        Ok((disk, pulls)) => (StatusCode::OK, exposition(&disk, pulls)),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

/// In Prometheus' text format.
fn exposition(disk: &Disk, pulls: PullFigures) -> String {
    let mut text = String::new();
    let mut figure = |name: &str, kind: &str, lines: &[(String, f64)]| {
        text += &format!("# TYPE garden_{name} {kind}\n");
        for (labels, value) in lines {
            text += &format!("garden_{name}{labels} {value}\n");
        }
    };
    let one = |value: f64| vec![(String::new(), value)];
    for (name, bytes) in [
        ("disk_total_bytes", disk.total_bytes),
        ("disk_free_bytes", disk.free_bytes),
        ("disk_room_bytes", disk.room_bytes),
        ("disk_claimed_bytes", disk.claimed_bytes),
        ("disk_others_bytes", disk.others_bytes),
        ("disk_promised_elsewhere_bytes", disk.elsewhere_bytes),
        ("disk_high_mark_bytes", disk.high_mark_bytes),
        ("disk_low_mark_bytes", disk.low_mark_bytes),
        ("roots_capacity_bytes", disk.roots_capacity_bytes),
    ] {
        figure(name, "gauge", &one(bytes as f64));
    }
    type Part = fn(&Tenancy) -> u64;
    let parts: [(&str, Part); 3] = [
        ("disk_tenant_bytes", |tenant| tenant.bytes),
        ("disk_tenant_evictable_bytes", |tenant| tenant.evictable_bytes),
        ("disk_tenant_promised_bytes", |tenant| tenant.promised_bytes),
    ];
    for (name, part) in parts {
        let lines: Vec<_> = disk
            .tenants
            .iter()
            .map(|(tenant, figures)| (format!("{{tenant=\"{tenant}\"}}"), part(figures) as f64))
            .collect();
        figure(name, "gauge", &lines);
    }
    for (name, count) in [
        ("disk_collections_total", disk.collections),
        ("disk_collected_things_total", disk.collected_things),
        ("disk_collected_bytes_total", disk.collected_bytes),
        ("disk_refused_claims_total", disk.refused_claims),
        ("image_pull_hits_total", pulls.hits),
        ("image_pull_misses_total", pulls.misses),
        ("image_pull_failures_total", pulls.failures),
    ] {
        figure(name, "counter", &one(count as f64));
    }
    figure("image_pull_seconds_total", "counter", &one(pulls.seconds));
    text
}

/// There are no goroutines; what answers to them are the runtime's tasks. Containers have no loop devices and
/// backing stores of their own, whose number is still asked for.
fn variables(depot_dirs: i64, unkillable: usize, memory: Memory) -> Value {
    json!({
        "cmdline": std::env::args_os().map(|part| part.to_string_lossy().into_owned()).collect::<Vec<_>>(),
        "memstats": {
            "Alloc": memory.anonymous,
            "HeapAlloc": memory.anonymous,
            "HeapInuse": memory.anonymous,
            "Sys": memory.resident,
        },
        "numCPUS": std::thread::available_parallelism().map_or(1, |cpus| cpus.get()),
        "numGoRoutines": tokio::runtime::Handle::current().metrics().num_alive_tasks(),
        "loopDevices": 0,
        "backingStores": 0,
        "depotDirs": depot_dirs,
        "DepotDirs": depot_dirs,
        "UnkillableContainers": unkillable,
    })
}

/// Of this process, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Memory {
    resident: u64,
    /// Without the program's own pages.
    anonymous: u64,
}

fn memory(status: &str) -> Memory {
    let bytes = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
        kib.unwrap_or(0) * 1024
    };
    Memory { resident: bytes("VmRSS"), anonymous: bytes("RssAnon") }
}

async fn set_level(State(debug): State<Debug>, body: String) -> (StatusCode, String) {
    match debug.levels.set_told(&body) {
        Ok(name) => (StatusCode::OK, format!("/log-level was invoked with Level: {name}\n")),
        Err(why) => (StatusCode::BAD_REQUEST, format!("{why}\n")),
    }
}

async fn only_post() -> (StatusCode, &'static str) {
    (StatusCode::BAD_REQUEST, "method not allowed, use POST\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_in_bytes() {
        let status = "VmPeak:\t  99 kB\nVmRSS:\t    8 kB\nRssAnon:\t    4 kB\n";
        assert_eq!(memory(status), Memory { resident: 8192, anonymous: 4096 });
        assert_eq!(memory(""), Memory::default());
    }

    #[test]
    fn figures_are_written_as_prometheus_reads_them() {
        let tenancy = Tenancy { bytes: 5, evictable_bytes: 3, promised_bytes: 0 };
        let tenants = [("layers".to_string(), tenancy)].into();
        let disk = Disk { total_bytes: 100, collected_bytes: 7, tenants, ..Disk::default() };
        let text = exposition(&disk, PullFigures { hits: 2, seconds: 1.5, ..PullFigures::default() });
        for line in [
            "# TYPE garden_disk_total_bytes gauge",
            "garden_disk_total_bytes 100",
            "garden_disk_tenant_evictable_bytes{tenant=\"layers\"} 3",
            "# TYPE garden_disk_collected_bytes_total counter",
            "garden_disk_collected_bytes_total 7",
            "garden_image_pull_hits_total 2",
            "garden_image_pull_seconds_total 1.5",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
    }

    #[tokio::test]
    async fn the_variables_are_those_that_are_asked_for() {
        let variables = variables(3, 1, Memory { resident: 2, anonymous: 1 });
        for name in ["numCPUS", "numGoRoutines", "loopDevices", "backingStores", "depotDirs", "memstats"] {
            assert!(!variables[name].is_null(), "{name}");
        }
        assert_eq!((&variables["depotDirs"], &variables["UnkillableContainers"]), (&json!(3), &json!(1)));
    }
}
