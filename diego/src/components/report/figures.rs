//! What a component knows of itself, by the names that platforms know; the same page for Prometheus.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::components::metrics::process::Process;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Stands at so much.
    Gauge,
    /// Grew by so much since the process began.
    Count,
    /// The most since it was last told.
    Most,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Figure {
    pub kind: Kind,
    pub unit: &'static str,
    pub value: f64,
    /// Of a count, how much the platform knows of.
    pub told: f64,
}

/// Of what among several a figure is, such as `cell-id` and its value.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tag {
    pub name: &'static str,
    pub value: Cow<'static, str>,
}

/// A name as platforms know it, and of what it is.
pub(super) type Key = (String, Option<Tag>);

/// What a component knows of itself by now. Cheap to clone; clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Figures(Arc<Mutex<BTreeMap<Key, Figure>>>);

impl Figures {
    pub fn stands(&self, name: &str, value: f64) {
        self.put(name, None, Kind::Gauge, "Metric", |_| value);
    }

    pub fn took(&self, name: &str, took: Duration) {
        self.put(name, None, Kind::Gauge, "nanos", |_| took.as_nanos() as f64);
    }

    pub fn took_at_most(&self, name: &str, tag: Option<Tag>, took: Duration) {
        let took = took.as_nanos() as f64;
        self.put(name, tag, Kind::Most, "nanos", |before| before.max(took));
    }

    /// Says until `shutdown` whether the lock is held.
    pub async fn follow_lock(self, mut held: watch::Receiver<bool>, shutdown: CancellationToken) {
        let follow = async {
            loop {
                self.stands("LockHeld", f64::from(u8::from(*held.borrow_and_update())));
                if held.changed().await.is_err() {
                    return std::future::pending().await;
                }
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = follow => {}
        }
    }

    /// All gauges whose names begin so; those that were there before are no more.
    pub fn stand_together(&self, prefix: &str, gauges: impl IntoIterator<Item = (String, f64)>) {
        self.lock().retain(|(name, _), _| !name.starts_with(prefix));
        gauges.into_iter().for_each(|(name, value)| self.stands(&name, value));
    }

    /// So many more of what a gauge counts from the start on.
    pub fn counts(&self, name: &str, tag: Option<Tag>, more: f64) {
        self.put(name, tag, Kind::Gauge, "Metric", |before| before + more);
    }

    /// One statement of a database. There is one connection, over which they go one after another.
    pub fn asked_database(&self, took: Duration, answered: bool) {
        self.stands("DBOpenConnections", if answered { 1.0 } else { 0.0 });
        self.put("DBQueriesInFlight", None, Kind::Most, "Metric", |before| before.max(1.0));
        self.took_at_most("DBQueryDurationMax", None, took);
        for (name, more) in [
            ("DBQueriesTotal", 1.0),
            ("DBQueriesSucceeded", f64::from(u8::from(answered))),
            ("DBQueriesFailed", f64::from(u8::from(!answered))),
        ] {
            self.counts(name, None, more);
        }
    }

    pub fn adds(&self, name: &str, more: u64) {
        self.put(name, None, Kind::Count, "Metric", |before| before + more as f64);
    }

    fn put(
        &self,
        name: &str,
        tag: Option<Tag>,
        kind: Kind,
        unit: &'static str,
        value: impl FnOnce(f64) -> f64,
    ) {
        let mut figures = self.lock();
        let nothing = Figure { kind, unit, value: 0.0, told: 0.0 };
        let figure = figures.entry((name.to_owned(), tag)).or_insert(nothing);
        figure.value = value(figure.value);
    }

    /// What every process knows of itself.
    fn measure(&self) {
        let process = Process::now();
        if let Some(fds) = process.open_fds {
            self.stands("OpenFileDescriptors", fds as f64);
        }
        self.stands("numGoRoutines", process.tasks as f64);
        for (name, bytes) in [(HEAP, process.anonymous_bytes), (STACK, process.stack_bytes)] {
            bytes.into_iter().for_each(|bytes| self.stands(name, bytes as f64));
        }
    }

    /// As the platform is told, which knows of it then.
    pub(super) fn take(&self) -> Vec<(Key, Figure)> {
        self.measure();
        let mut figures = self.lock();
        let taken = figures.iter().map(|(key, figure)| (key.clone(), *figure)).collect();
        for figure in figures.values_mut() {
            match figure.kind {
                Kind::Gauge => {}
                Kind::Count => figure.told = figure.value,
                Kind::Most => figure.value = 0.0,
            }
        }
        taken
    }

    pub fn page(&self) -> String {
        self.measure();
        let (mut page, mut last) = (String::new(), String::new());
        for ((name, tag), figure) in self.lock().iter() {
            let name = prometheus_name(name);
            // Writing to a string does not fail.
            if name != last {
                let kind = if figure.kind == Kind::Count { "counter" } else { "gauge" };
                let _ = writeln!(page, "# TYPE {name} {kind}");
            }
            let label = match tag {
                None => String::new(),
                Some(Tag { name, value }) => {
                    format!("{{{}=\"{}\"}}", prometheus_name(name), value.escape_default())
                }
            };
            let _ = writeln!(page, "{name}{label} {}", figure.value);
            last = name;
        }
        page
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Key, Figure>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const HEAP: &str = "memoryStats.numBytesAllocatedHeap";
const STACK: &str = "memoryStats.numBytesAllocatedStack";

/// `LRPsUnclaimed` is `lrps_unclaimed`.
fn prometheus_name(name: &str) -> String {
    let letters: Vec<char> = name.chars().collect();
    let mut written = String::new();
    for (at, letter) in letters.iter().enumerate() {
        let follows = |next: &char| next.is_lowercase() && *next != 's';
        let begins = letter.is_uppercase()
            && at > 0
            && (letters[at - 1].is_lowercase() || letters.get(at + 1).is_some_and(follows));
        if begins && !written.ends_with('_') {
            written.push('_');
        }
        written.push(if letter.is_alphanumeric() { letter.to_ascii_lowercase() } else { '_' });
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_count_is_told_by_what_it_grew_and_the_most_begins_anew() {
        let figures = Figures::default();
        figures.adds("RequestCount", 2);
        figures.took_at_most("RequestLatency", None, Duration::from_nanos(7));
        figures.took_at_most("RequestLatency", None, Duration::from_nanos(5));
        let of = |name: &str| figures.take().into_iter().find(|((found, _), _)| found == name).unwrap().1;
        let taken = figures.take();
        let value = |name: &str| taken.iter().find(|((found, _), _)| found == name).unwrap().1.value;
        assert_eq!((value("RequestCount"), value("RequestLatency")), (2.0, 7.0));
        figures.adds("RequestCount", 3);
        let count = of("RequestCount");
        assert_eq!(count.value - count.told, 3.0);
        assert_eq!(of("RequestLatency").value, 0.0);
    }

    #[tokio::test]
    async fn prometheus_reads_the_same() {
        let figures = Figures::default();
        figures.stands("LockHeld", 1.0);
        let of = |value: &'static str| Some(Tag { name: "request-type", value: value.into() });
        figures.took_at_most("RequestLatencyMax", of("Lock"), Duration::from_nanos(4));
        figures.took_at_most("RequestLatencyMax", of("Fetch"), Duration::from_nanos(5));
        figures.counts("TasksStarted", Some(Tag { name: "cell-id", value: "a\"b".into() }), 1.0);
        figures.adds("ConvergenceLRPRuns", 2);
        let page = figures.page();
        for expected in [
            "# TYPE lock_held gauge\nlock_held 1\n",
            "# TYPE request_latency_max gauge\nrequest_latency_max{request_type=\"Fetch\"} 5\nrequest_latency_max{request_type=\"Lock\"} 4\n",
            "# TYPE tasks_started gauge\ntasks_started{cell_id=\"a\\\"b\"} 1\n",
            "# TYPE convergence_lrp_runs counter\nconvergence_lrp_runs 2\n",
        ] {
            assert!(page.contains(expected), "{expected} is not in\n{page}");
        }
    }

    #[test]
    fn names_of_two_worlds() {
        for (name, expected) in [
            ("LRPsUnclaimed", "lrps_unclaimed"),
            ("OpenFileDescriptors", "open_file_descriptors"),
            ("CrashedActualLRPs", "crashed_actual_lrps"),
            ("DBQueriesTotal", "db_queries_total"),
            ("BBSMasterElected", "bbs_master_elected"),
            ("Domain.cf-apps", "domain_cf_apps"),
            ("numGoRoutines", "num_go_routines"),
        ] {
            assert_eq!(prometheus_name(name), expected);
        }
    }
}
