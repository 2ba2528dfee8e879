//! The cell's own metrics in Prometheus' text format. Pure.

use std::fmt::Write;

use loggregator::{Counts, Value};

use super::names::{self, Name};
use super::process::Process;
use super::tally::{BUCKETS, Kept, Requests, Timing};

pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// All that is told at one time.
pub struct Page<'a> {
    pub kept: &'a Kept,
    pub capacity: &'a [Value<'a>],
    pub process: Process,
    /// Where logs are forwarded.
    pub forwarded: Option<Counts>,
}

impl Page<'_> {
    pub fn text(&self) -> String {
        let mut text = String::with_capacity(16 << 10);
        for value in self.capacity {
            if let Some(name) = names::CAPACITY.iter().find(|name| name.published == value.name) {
                one(&mut text, name, "gauge", value.value);
            }
        }
        for name in &names::STATES {
            one(&mut text, name, "gauge", self.kept.states.get(name.published).copied().unwrap_or_default());
        }
        for name in &names::COUNTS {
            let count = self.kept.counts.get(name.published).copied().unwrap_or_default();
            one(&mut text, name, "counter", count as f64);
        }
        for name in &names::TIMINGS {
            let timing = self.kept.timings.get(name.published).copied().unwrap_or_default();
            histogram(&mut text, name, &timing);
        }
        self.requests(&mut text);
        self.process(&mut text);
        self.forwarded(&mut text);
        text
    }

    fn requests(&self, text: &mut String) {
        let [started, succeeded, failed, in_flight, cancelled, latency] = &names::REQUESTS;
        type Part = fn(&Requests) -> f64;
        let parts: [(&Name, &str, &str, Part); 6] = [
            (started, "", "counter", |requests| requests.started as f64),
            (succeeded, "", "counter", |requests| requests.succeeded as f64),
            (failed, "", "counter", |requests| requests.failed as f64),
            (in_flight, "", "gauge", |requests| requests.in_flight() as f64),
            (cancelled, "", "counter", |_| 0.0),
            (latency, "_seconds", "gauge", |requests| requests.latency_max.as_secs_f64()),
        ];
        for (name, unit, kind, part) in parts {
            let full = format!("{}{unit}", name.prometheus);
            head(text, &full, kind, name.says);
            for (request_type, requests) in &self.kept.requests {
                line(text, &full, &format!("{{request_type=\"{request_type}\"}}"), part(requests));
            }
        }
    }

    fn process(&self, text: &mut String) {
        let Process { resident_bytes, anonymous_bytes, stack_bytes, open_fds, cpu_seconds, tasks } =
            self.process;
        let [routines, heap, stack] = &names::PROCESS;
        one(text, routines, "gauge", tasks as f64);
        for (name, bytes) in [(heap, anonymous_bytes), (stack, stack_bytes)] {
            bytes.into_iter().for_each(|bytes| one(text, name, "gauge", bytes as f64));
        }
        let usual = [
            ("process_resident_memory_bytes", "gauge", resident_bytes.map(|bytes| bytes as f64)),
            ("process_open_fds", "gauge", open_fds.map(|fds| fds as f64)),
            ("process_cpu_seconds_total", "counter", cpu_seconds),
        ];
        for (name, kind, value) in usual {
            let Some(value) = value else { continue };
            head(text, name, kind, "As every process tells it.");
            line(text, name, "", value);
        }
    }

    fn forwarded(&self, text: &mut String) {
        let Some(Counts { emitted, sent, dropped }) = self.forwarded else { return };
        for (name, says, count) in [
            ("envelopes_emitted", "Log lines and metrics for the platform.", emitted),
            ("envelopes_sent", "Of these, handed to the forwarder's connection.", sent),
            ("envelopes_dropped", "Of these, dropped because the forwarder is away or slow.", dropped),
        ] {
            head(text, name, "counter", says);
            line(text, name, "", count as f64);
        }
    }
}

fn one(text: &mut String, name: &Name, kind: &str, value: f64) {
    head(text, name.prometheus, kind, name.says);
    line(text, name.prometheus, "", value);
}

fn histogram(text: &mut String, name: &Name, timing: &Timing) {
    let full = format!("{}_seconds", name.prometheus);
    head(text, &full, "histogram", name.says);
    let bucket = format!("{full}_bucket");
    let mut up_to = 0;
    for (end, count) in BUCKETS.iter().zip(timing.buckets) {
        up_to += count;
        line(text, &bucket, &format!("{{le=\"{end}\"}}"), up_to as f64);
    }
    line(text, &bucket, "{le=\"+Inf\"}", timing.count as f64);
    line(text, &format!("{full}_sum"), "", timing.sum.as_secs_f64());
    line(text, &format!("{full}_count"), "", timing.count as f64);
}

fn head(text: &mut String, name: &str, kind: &str, says: &str) {
    // Writing to a string does not fail.
    let _ = write!(text, "# HELP {name} {says}\n# TYPE {name} {kind}\n");
}

fn line(text: &mut String, name: &str, labels: &str, value: f64) {
    let _ = writeln!(text, "{name}{labels} {value}");
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::components::metrics::tally::{Said, Tally};

    #[test]
    fn a_page_says_what_happened_and_what_did_not() {
        let tally = Tally::new(None);
        tally.say(Said::Count(names::CONTAINER_COMPLETED));
        tally.say(Said::Took(names::BULK_SYNC, Duration::from_millis(20)));
        tally.say(Said::Took(names::BULK_SYNC, Duration::from_secs(2)));
        let kept = tally.kept();
        let capacity = [Value { name: "CapacityTotalMemory", value: 512.0, unit: "MiB" }];
        let process = Process { resident_bytes: Some(7), tasks: 3, ..Process::default() };
        let forwarded = Some(Counts { emitted: 9, sent: 8, dropped: 1 });
        let text = Page { kept: &kept, capacity: &capacity, process, forwarded }.text();
        for expected in [
            "# HELP capacity_total_memory MiB for containers.\n# TYPE capacity_total_memory gauge\ncapacity_total_memory 512",
            "container_completed_count 1",
            "tcp_liveness_checks_failed_count 0",
            "# TYPE rep_bulk_sync_duration_seconds histogram",
            "rep_bulk_sync_duration_seconds_bucket{le=\"0.01\"} 0",
            "rep_bulk_sync_duration_seconds_bucket{le=\"0.025\"} 1",
            "rep_bulk_sync_duration_seconds_bucket{le=\"2.5\"} 2",
            "rep_bulk_sync_duration_seconds_bucket{le=\"+Inf\"} 2",
            "rep_bulk_sync_duration_seconds_sum 2.02",
            "rep_bulk_sync_duration_seconds_count 2",
            "stranded_evacuating_actual_lrps 0",
            "requests_started{request_type=\"Perform\"} 0",
            "num_go_routines 3",
            "process_resident_memory_bytes 7",
            "envelopes_dropped 1",
        ] {
            assert!(text.contains(&format!("{expected}\n")), "{expected} is not in\n{text}");
        }
        assert!(!text.contains("process_open_fds"), "what is not known is not said");
    }

    #[test]
    fn no_metric_is_there_twice_and_each_is_documented() {
        let tables: [&[Name]; 6] = [
            &names::COUNTS,
            &names::TIMINGS,
            &names::STATES,
            &names::CAPACITY,
            &names::REQUESTS,
            &names::PROCESS,
        ];
        let all: Vec<_> = tables.into_iter().flatten().collect();
        for (of, name) in all.iter().enumerate() {
            assert!(all[..of].iter().all(|other| other.prometheus != name.prometheus));
            let row = format!("| `{}` | `{}", name.published, name.prometheus);
            assert!(include_str!("../../../../docs/METRICS.md").contains(&row), "{row}");
        }
    }
}
