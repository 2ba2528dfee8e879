//! The cell's own figures: what it has, what is left, what its containers hold.

use std::collections::BTreeMap;

use executor::{CellResources, Container, ContainerMetrics, State};
use loggregator::Value;

/// What is not known is said to be so.
const UNKNOWN: f64 = -1.0;

/// One gauge each. `resources`: in all, and left.
pub fn report(
    (total, left): (CellResources, CellResources),
    containers: &[Container],
    used: Option<&BTreeMap<String, ContainerMetrics>>,
) -> Vec<Value<'static>> {
    let mebibytes = |name, value: u64| Value { name, value: value as f64, unit: "MiB" };
    let count = |name, value: u64| Value { name, value: value as f64, unit: "Metric" };
    let used = |name, bytes: fn(&ContainerMetrics) -> u64| {
        let sum = |used: &BTreeMap<_, _>| used.values().map(|metrics| (bytes(metrics) >> 20) as f64).sum();
        Value { name, value: used.map_or(UNKNOWN, sum), unit: "MiB" }
    };
    let starting = containers.iter().filter(|container| is_starting(container)).count();
    vec![
        mebibytes("CapacityTotalMemory", total.memory_mb),
        mebibytes("CapacityTotalDisk", total.disk_mb),
        count("CapacityTotalContainers", total.containers),
        mebibytes("CapacityRemainingMemory", left.memory_mb),
        mebibytes("CapacityRemainingDisk", left.disk_mb),
        count("CapacityRemainingContainers", left.containers),
        mebibytes("CapacityAllocatedMemory", total.memory_mb.saturating_sub(left.memory_mb)),
        mebibytes("CapacityAllocatedDisk", total.disk_mb.saturating_sub(left.disk_mb)),
        used("ContainerUsageMemory", |metrics| metrics.memory_usage_bytes),
        used("ContainerUsageDisk", |metrics| metrics.disk_usage_bytes),
        count("ContainerCount", containers.len() as u64),
        count("StartingContainerCount", starting as u64),
    ]
}

fn is_starting(container: &Container) -> bool {
    matches!(container.state, State::Reserved | State::Initializing | State::Created)
}

#[cfg(test)]
mod tests {
    use executor::{Resource, RunResult};

    use super::*;

    #[test]
    fn the_cells_figures_add_up_and_what_is_not_known_is_said() {
        let container = |state| Container {
            state,
            ..Container::reserved("guid", Resource::default(), BTreeMap::new(), 0)
        };
        let states =
            [State::Reserved, State::Created, State::Running, State::Completed(RunResult::default())];
        let containers: Vec<_> = states.map(container).into();
        let total = CellResources { memory_mb: 100, disk_mb: 200, containers: 10 };
        let left = CellResources { memory_mb: 60, disk_mb: 150, containers: 6 };
        let metrics = ContainerMetrics { memory_usage_bytes: 3 << 20, ..ContainerMetrics::default() };
        let used = BTreeMap::from([("a".into(), metrics.clone()), ("b".into(), metrics)]);
        let find = |values: &[Value<'_>], name| values.iter().find(|value| value.name == name).unwrap().value;
        let known = report((total, left), &containers, Some(&used));
        let figures = [
            ("CapacityTotalMemory", 100.0),
            ("CapacityRemainingDisk", 150.0),
            ("CapacityAllocatedMemory", 40.0),
            ("CapacityAllocatedDisk", 50.0),
            ("ContainerUsageMemory", 6.0),
            ("ContainerUsageDisk", 0.0),
            ("ContainerCount", 4.0),
            ("StartingContainerCount", 2.0),
        ];
        for (name, value) in figures {
            assert_eq!(find(&known, name), value, "{name}");
        }
        assert_eq!(find(&report((total, left), &containers, None), "ContainerUsageMemory"), UNKNOWN);
    }
}
