//! What containers use, asked of garden for all of them at once.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard};

use tokio::time::Instant;

use crate::logs::LogStream;
use crate::{Container, ContainerMetrics, Error, Shared, State};

/// The log streams of living containers, for what they have let through.
#[derive(Default)]
pub(crate) struct Streams(Mutex<HashMap<String, LogStream>>);

impl Streams {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, LogStream>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub fn insert(&self, guid: &str, stream: &LogStream) {
        self.lock().insert(guid.to_string(), stream.clone());
    }

    pub fn remove(&self, guid: &str) {
        self.lock().remove(guid);
    }

    fn passed_bytes(&self, guid: &str) -> u64 {
        self.lock().get(guid).map(LogStream::passed_bytes).unwrap_or_default()
    }
}

/// The newest measurement, for all who wait for it, and when it was done.
#[derive(Default)]
pub(crate) struct Measured(tokio::sync::Mutex<Option<(Instant, BTreeMap<String, ContainerMetrics>)>>);

/// Several who ask at the same time, as they do each quarter of a minute, share one measurement.
pub(crate) async fn measure(shared: &Shared) -> Result<BTreeMap<String, ContainerMetrics>, Error> {
    let asked = Instant::now();
    let mut newest = shared.measured.0.lock().await;
    match &*newest {
        Some((done, metrics)) if *done > asked => Ok(metrics.clone()),
        _ => {
            let metrics = collect(shared).await?;
            *newest = Some((Instant::now(), metrics.clone()));
            Ok(metrics)
        }
    }
}

async fn collect(shared: &Shared) -> Result<BTreeMap<String, ContainerMetrics>, Error> {
    let created = |container: &Container| matches!(container.state, State::Created | State::Running);
    let containers: Vec<_> = shared.store.list().into_iter().filter(created).collect();
    if containers.is_empty() {
        return Ok(BTreeMap::new());
    }
    let guids: Vec<_> = containers.iter().map(|container| container.guid.clone()).collect();
    let mut measured = shared.garden.bulk_metrics(&guids).await?;
    let measured = containers.iter().filter_map(|container| {
        let metrics = measured.remove(&container.guid)?.ok()?;
        let log_bytes = shared.streams.passed_bytes(&container.guid);
        Some((container.guid.clone(), of_container(container, &metrics, log_bytes)))
    });
    Ok(measured.collect())
}

fn of_container(container: &Container, metrics: &garden_client::Metrics, log_bytes: u64) -> ContainerMetrics {
    let run_info = container.run_info.as_deref();
    let preloaded = run_info.is_some_and(|run_info| run_info.rootfs.starts_with("preloaded"));
    let disk = &metrics.disk;
    ContainerMetrics {
        memory_usage_bytes: metrics.memory.total_usage_toward_limit,
        memory_limit_bytes: container.memory_limit_bytes,
        // Held against what the limit is held against.
        disk_usage_bytes: if preloaded { disk.exclusive_bytes_used } else { disk.total_bytes_used },
        disk_limit_bytes: container.disk_limit_bytes,
        cpu_ns: metrics.cpu.usage,
        cpu_entitlement_ns: metrics.cpu_entitlement,
        age_ns: metrics.age,
        rx_bytes: metrics.network.map(|network| network.rx_bytes),
        tx_bytes: metrics.network.map(|network| network.tx_bytes),
        log_bytes,
        log_rate_limit_bytes_per_second: run_info.map_or(-1, |info| info.log_rate_limit_bytes_per_second),
    }
}
