//! What each container uses, as it is said to the platform: from two samples and what was true before.

use std::collections::{BTreeMap, HashMap};

use executor::{Container, ContainerMetrics, RunInfo};
use loggregator::{Message, Value};

/// How the end of a spike is written that has not come: the year 1, as the readers of it write it.
const NOT_YET_NS: i64 = -6_795_364_578_871_345_152;

/// Who an envelope is about.
pub struct Whom<'a> {
    pub source_id: &'a str,
    pub instance_id: &'a str,
    pub tags: &'a BTreeMap<String, String>,
}

pub struct Reporter {
    /// Metrics that are not to be said.
    exclusions: Vec<String>,
    before: HashMap<String, Before>,
}

/// A container at the last report.
#[derive(Clone, Default)]
struct Before {
    metrics: ContainerMetrics,
    spike: Spike,
}

/// A time in which a container had used more than it is entitled to, over its whole life. Nanoseconds since the epoch.
#[derive(Clone, Copy, Default)]
struct Spike {
    start_ns: Option<i64>,
    end_ns: Option<i64>,
}

impl Spike {
    fn after(self, metrics: &ContainerMetrics, now_ns: i64) -> Spike {
        let is = metrics.cpu_ns > metrics.cpu_entitlement_ns;
        let was = self.start_ns.is_some() && self.end_ns.is_none();
        match (was, is) {
            (false, true) => Spike { start_ns: Some(now_ns), end_ns: None },
            (true, false) => Spike { end_ns: Some(now_ns), ..self },
            _ => self,
        }
    }
}

impl Reporter {
    pub fn new(exclusions: Vec<String>) -> Reporter {
        Reporter { exclusions, before: HashMap::new() }
    }

    pub fn report(
        &mut self,
        now_ns: i64,
        containers: &[Container],
        metrics: &BTreeMap<String, ContainerMetrics>,
        emit: &mut dyn FnMut(&Whom<'_>, Message<'_>),
    ) {
        let mut before = std::mem::take(&mut self.before);
        for container in containers {
            let (Some(metrics), Some(info)) = (metrics.get(&container.guid), &container.run_info) else {
                continue;
            };
            let past = before.remove(&container.guid);
            let spike = past.as_ref().map(|past| past.spike).unwrap_or_default().after(metrics, now_ns);
            let tags = complete_tags(info);
            let whom = Whom { source_id: &tags["source_id"], instance_id: &tags["instance_id"], tags: &tags };
            if !whom.source_id.is_empty() {
                self.say(&whom, metrics, past.as_ref().map(|past| &past.metrics), emit);
                if let Some(start_ns) = spike.start_ns {
                    let stop_ns = spike.end_ns.unwrap_or(NOT_YET_NS);
                    emit(&whom, Message::Timer { name: "spike", start_ns, stop_ns });
                }
            }
            self.before.insert(container.guid.clone(), Before { metrics: metrics.clone(), spike });
        }
    }

    fn say(
        &self,
        whom: &Whom<'_>,
        metrics: &ContainerMetrics,
        past: Option<&ContainerMetrics>,
        emit: &mut dyn FnMut(&Whom<'_>, Message<'_>),
    ) {
        let shares = Shares::between(past, metrics);
        let bytes = |name, value: u64| Value { name, value: value as f64, unit: "bytes" };
        let nanoseconds = |name, value: u64| Value { name, value: value as f64, unit: "nanoseconds" };
        let percentage = |name, value| Value { name, value, unit: "percentage" };
        let rate = |name, value| Value { name, value, unit: "B/s" };
        // These five in one envelope are what is known as a container metric to readers of the API's first version.
        emit(
            whom,
            Message::Gauge(&[
                percentage("cpu", shares.cpu_percent),
                bytes("memory", metrics.memory_usage_bytes),
                bytes("disk", metrics.disk_usage_bytes),
                bytes("memory_quota", metrics.memory_limit_bytes),
                bytes("disk_quota", metrics.disk_limit_bytes),
            ]),
        );
        let mut more = vec![
            nanoseconds("container_age", metrics.age_ns),
            percentage("cpu_entitlement", shares.cpu_entitlement_percent),
            nanoseconds("absolute_usage", metrics.cpu_ns),
            nanoseconds("absolute_entitlement", metrics.cpu_entitlement_ns),
        ];
        more.retain(|value| !self.is_excluded(value.name));
        if !more.is_empty() {
            emit(whom, Message::Gauge(&more));
        }
        let limit = metrics.log_rate_limit_bytes_per_second as f64;
        let rates = [rate("log_rate", shares.log_bytes_per_second), rate("log_rate_limit", limit)];
        emit(whom, Message::Gauge(&rates));
        for (name, total) in [("rx_bytes", metrics.rx_bytes), ("tx_bytes", metrics.tx_bytes)] {
            if let Some(total) = total.filter(|_| !self.is_excluded(name)) {
                emit(whom, Message::Total { name, total });
            }
        }
    }

    fn is_excluded(&self, name: &str) -> bool {
        self.exclusions.iter().any(|excluded| excluded == name)
    }
}

/// The recipe's tags, and by which source and instance readers find them.
fn complete_tags(info: &RunInfo) -> BTreeMap<String, String> {
    let mut tags = info.metric_tags.clone();
    tags.entry("source_id".into()).or_insert_with(|| info.log_config.guid.clone());
    tags.entry("instance_id".into()).or_insert_with(|| info.log_config.index.to_string());
    tags
}

/// What was used between two samples; nothing as long as there is only one.
#[derive(Default)]
struct Shares {
    /// 100 is one CPU.
    cpu_percent: f64,
    cpu_entitlement_percent: f64,
    log_bytes_per_second: f64,
}

impl Shares {
    fn between(past: Option<&ContainerMetrics>, now: &ContainerMetrics) -> Shares {
        let Some(past) = past else { return Shares::default() };
        let grown = |of: fn(&ContainerMetrics) -> u64| of(now).saturating_sub(of(past)) as f64;
        let share = |part: f64, whole: f64| if whole > 0.0 { part / whole } else { 0.0 };
        let elapsed_ns = grown(|metrics| metrics.age_ns);
        let cpu_ns = grown(|metrics| metrics.cpu_ns);
        Shares {
            cpu_percent: share(cpu_ns, elapsed_ns) * 100.0,
            cpu_entitlement_percent: share(cpu_ns, grown(|metrics| metrics.cpu_entitlement_ns)) * 100.0,
            log_bytes_per_second: share(grown(|metrics| metrics.log_bytes), elapsed_ns) * 1e9,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use executor::{LogConfig, Resource};

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn container(guid: &str, tags: &[(&str, &str)]) -> Container {
        let run_info = RunInfo {
            metric_tags: tags.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect(),
            log_config: LogConfig { guid: "log-guid".into(), index: 7, ..LogConfig::default() },
            ..RunInfo::default()
        };
        Container {
            run_info: Some(Arc::new(run_info)),
            ..Container::reserved(guid, Resource::default(), BTreeMap::new(), 0)
        }
    }

    fn at(age_s: u64, cpu_ns: u64, entitlement_ns: u64) -> ContainerMetrics {
        ContainerMetrics {
            age_ns: age_s * SECOND,
            cpu_ns,
            cpu_entitlement_ns: entitlement_ns,
            log_bytes: age_s * 100,
            log_rate_limit_bytes_per_second: 1024,
            rx_bytes: Some(5),
            ..ContainerMetrics::default()
        }
    }

    /// All figures of one report about one container, by name; and its timers.
    fn report(
        reporter: &mut Reporter,
        now_ns: i64,
        container: &Container,
        metrics: ContainerMetrics,
    ) -> (BTreeMap<String, f64>, Vec<(i64, i64)>) {
        let metrics = BTreeMap::from([(container.guid.clone(), metrics)]);
        let (mut figures, mut timers) = (BTreeMap::new(), Vec::new());
        reporter.report(now_ns, std::slice::from_ref(container), &metrics, &mut |whom, message| {
            assert_eq!(whom.tags["source_id"], whom.source_id);
            assert_eq!(whom.tags["instance_id"], whom.instance_id);
            match message {
                Message::Gauge(values) => {
                    figures.extend(values.iter().map(|value| (value.name.to_string(), value.value)));
                }
                Message::Total { name, total } => {
                    figures.insert(name.to_string(), total as f64);
                }
                Message::Timer { name: "spike", start_ns, stop_ns } => timers.push((start_ns, stop_ns)),
                other => panic!("{other:?}"),
            }
        });
        (figures, timers)
    }

    #[test]
    fn shares_are_of_the_time_between_two_reports() {
        let mut reporter = Reporter::new(vec![]);
        let container = container("a", &[]);
        let (figures, _) = report(&mut reporter, 0, &container, at(10, SECOND, 2 * SECOND));
        assert_eq!((figures["cpu"], figures["cpu_entitlement"], figures["log_rate"]), (0.0, 0.0, 0.0));
        assert_eq!((figures["absolute_usage"], figures["rx_bytes"]), (SECOND as f64, 5.0));
        assert!(!figures.contains_key("tx_bytes"), "not measured");
        let (figures, _) = report(&mut reporter, 0, &container, at(20, 6 * SECOND, 12 * SECOND));
        assert_eq!((figures["cpu"], figures["cpu_entitlement"]), (50.0, 50.0));
        assert_eq!((figures["log_rate"], figures["log_rate_limit"]), (100.0, 1024.0));
        // Made anew under the same name.
        let (figures, _) = report(&mut reporter, 0, &container, at(1, 0, 0));
        assert_eq!((figures["cpu"], figures["cpu_entitlement"], figures["log_rate"]), (0.0, 0.0, 0.0));
    }

    #[test]
    fn a_spike_has_a_start_and_then_an_end() {
        let mut reporter = Reporter::new(vec![]);
        let container = container("a", &[]);
        let cases: [(i64, u64, &[(i64, i64)]); 6] = [
            (1, 1, &[]),
            (2, 3, &[(2, NOT_YET_NS)]),
            (3, 3, &[(2, NOT_YET_NS)]),
            (4, 2, &[(2, 4)]),
            (5, 2, &[(2, 4)]),
            (6, 9, &[(6, NOT_YET_NS)]),
        ];
        for (now, cpu, timers) in cases {
            assert_eq!(report(&mut reporter, now, &container, at(now as u64, cpu, 2)).1, timers, "at {now}");
        }
    }

    #[test]
    fn what_is_excluded_is_not_said_but_for_what_readers_need_together() {
        let excluded = ["container_age", "rx_bytes", "cpu"].map(String::from);
        let mut reporter = Reporter::new(excluded.into());
        let (figures, _) = report(&mut reporter, 0, &container("a", &[]), at(1, 1, 1));
        assert!(!figures.contains_key("container_age") && !figures.contains_key("rx_bytes"));
        assert!(figures.contains_key("cpu") && figures.contains_key("absolute_usage"));
    }

    #[test]
    fn tags_say_who_it_is_and_otherwise_its_logs() {
        let own = [("source_id", "app"), ("instance_id", "3"), ("space_name", "dev")];
        for (container, expected) in
            [(container("a", &own), ("app", "3", 3)), (container("a", &[]), ("log-guid", "7", 2))]
        {
            let metrics = BTreeMap::from([("a".to_string(), at(1, 1, 1))]);
            let mut count = 0;
            Reporter::new(vec![]).report(0, &[container], &metrics, &mut |whom, _| {
                assert_eq!((whom.source_id, whom.instance_id, whom.tags.len()), expected);
                count += 1;
            });
            assert_eq!(count, 4);
        }
    }

    #[test]
    fn who_is_gone_is_forgotten() {
        let mut reporter = Reporter::new(vec![]);
        report(&mut reporter, 0, &container("a", &[]), at(1, 1, 1));
        reporter.report(0, &[], &BTreeMap::new(), &mut |_, _| panic!("nobody is there"));
        assert!(reporter.before.is_empty());
    }
}
