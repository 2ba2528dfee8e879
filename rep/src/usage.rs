//! What the containers use, sampled now and then so that asking costs garden nothing (`GET /container_metrics`).

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use executor::{ContainerMetrics, Executor};
use rep_client::{ContainerMetricsCollection, ContainerUsage, LrpMetric, TaskMetric};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::Containers;
use crate::tags::{self, Lifecycle};

const SOURCE_ID_TAG: &str = "source_id";

#[derive(Default)]
pub struct Usage {
    samples: Mutex<BTreeMap<String, Sample>>,
}

/// The newest measurement of one container, and the share of a CPU it used since the one before.
struct Sample {
    metrics: ContainerMetrics,
    cpu_fraction: f64,
}

impl Usage {
    /// Samples until told to stop.
    pub async fn run(&self, executor: &Executor, interval: Duration, shutdown: &CancellationToken) {
        let mut ticks = tokio::time::interval(interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = shutdown.cancelled() => return,
            }
            match executor.metrics().await {
                Ok(metrics) => self.sample(metrics),
                Err(error) => tracing::warn!(%error, "cannot measure the containers"),
            }
        }
    }

    fn sample(&self, metrics: BTreeMap<String, ContainerMetrics>) {
        let mut samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        let sample = |(guid, metrics): (String, ContainerMetrics)| {
            let cpu_fraction = cpu_fraction(samples.get(&guid).map(|sample| &sample.metrics), &metrics);
            (guid, Sample { metrics, cpu_fraction })
        };
        let newest = metrics.into_iter().map(sample).collect();
        *samples = newest;
    }

    pub fn collection(&self, executor: &dyn Containers, cell_id: &str) -> ContainerMetricsCollection {
        let samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        let mut collection = ContainerMetricsCollection { cell_id: cell_id.into(), ..Default::default() };
        for container in executor.list() {
            let Some(sample) = samples.get(&container.guid) else { continue };
            let usage = usage(&container, sample);
            match tags::read(&container.tags, cell_id) {
                Ok(Lifecycle::Lrp(lrp)) => collection.lrps.push(LrpMetric {
                    instance_guid: lrp.instance.instance_guid,
                    process_guid: lrp.key.process_guid,
                    index: i32::try_from(lrp.key.index).unwrap_or(i32::MAX),
                    usage,
                }),
                Ok(Lifecycle::Task { .. }) => {
                    collection.tasks.push(TaskMetric { task_guid: container.guid, usage });
                }
                Err(error) => {
                    tracing::error!(guid = container.guid, %error, "cannot tell what a container is")
                }
            }
        }
        collection
    }
}

fn usage(container: &executor::Container, sample: &Sample) -> ContainerUsage {
    let metrics = &sample.metrics;
    let info = container.run_info.as_deref();
    let metric_guid = info.and_then(|info| info.metric_tags.get(SOURCE_ID_TAG)).cloned();
    ContainerUsage {
        metric_guid: metric_guid.unwrap_or_default(),
        cpu_usage_fraction: sample.cpu_fraction,
        disk_usage_bytes: metrics.disk_usage_bytes,
        disk_quota_bytes: metrics.disk_limit_bytes,
        memory_usage_bytes: metrics.memory_usage_bytes,
        memory_quota_bytes: metrics.memory_limit_bytes,
        rx_bytes: metrics.rx_bytes,
        tx_bytes: metrics.tx_bytes,
    }
}

/// CPU time over container age between two samples; 0 as long as there is only one.
fn cpu_fraction(before: Option<&ContainerMetrics>, now: &ContainerMetrics) -> f64 {
    let Some(before) = before else { return 0.0 };
    let elapsed = now.age_ns.saturating_sub(before.age_ns);
    if elapsed == 0 {
        return 0.0;
    }
    now.cpu_ns.saturating_sub(before.cpu_ns) as f64 / elapsed as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_is_a_share_of_the_time_between_two_samples() {
        let at = |age_ns, cpu_ns| ContainerMetrics { age_ns, cpu_ns, ..ContainerMetrics::default() };
        assert_eq!(cpu_fraction(None, &at(100, 50)), 0.0);
        assert_eq!(cpu_fraction(Some(&at(100, 50)), &at(300, 150)), 0.5);
        assert_eq!(cpu_fraction(Some(&at(100, 50)), &at(100, 60)), 0.0);
        assert_eq!(cpu_fraction(Some(&at(300, 150)), &at(400, 10)), 0.0, "a container made anew");
    }
}
