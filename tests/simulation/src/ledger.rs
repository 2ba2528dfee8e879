//! What happened, and what must never happen: the trace of messages and the invariants that are looked at after each.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Lines of the trace that are kept; the end is what tells why.
const TRACE_LINES_MAX: usize = 20_000;
/// For so long two cells may run one instance once nothing is disturbed: the presence of a lost cell runs out, what runs
/// is compared with the BBS every 30 s, and a process gets its time to stop.
pub const OVERLAP_MAX: Duration = Duration::from_secs(120);

#[derive(Clone)]
pub struct Ledger(Arc<Mutex<Book>>);

struct Book {
    began: Instant,
    trace: VecDeque<String>,
    fingerprint: u64,
    steps: u64,
    tasks: BTreeMap<String, String>,
    /// By process guid and index: who runs it, by cell and instance guid.
    running: BTreeMap<(String, u32), BTreeSet<(String, String)>>,
    overlaps: BTreeMap<(String, u32), Instant>,
    disturbed: Instant,
    violations: Vec<String>,
}

impl Ledger {
    /// Must be made within the simulation's runtime.
    pub fn new() -> Ledger {
        let now = Instant::now();
        Ledger(Arc::new(Mutex::new(Book {
            began: now,
            trace: VecDeque::new(),
            fingerprint: 0,
            steps: 0,
            tasks: BTreeMap::new(),
            running: BTreeMap::new(),
            overlaps: BTreeMap::new(),
            disturbed: now,
            violations: Vec::new(),
        })))
    }

    pub fn note(&self, text: impl AsRef<str>) {
        self.book().note(text.as_ref());
    }

    /// Something took place that the parts have to get over.
    pub fn disturb(&self, text: impl AsRef<str>) {
        let mut book = self.book();
        book.disturbed = Instant::now();
        book.note(&format!("!! {}", text.as_ref()));
    }

    /// One message has arrived: nothing must have become wrong.
    pub fn step(&self, text: impl AsRef<str>) {
        let mut book = self.book();
        book.steps += 1;
        book.note(text.as_ref());
        book.check_overlaps();
    }

    pub fn violate(&self, text: impl AsRef<str>) {
        let mut book = self.book();
        let text = text.as_ref();
        book.note(&format!("VIOLATION {text}"));
        book.violations.push(text.into());
    }

    /// The process of a Task begins.
    pub fn task_begins(&self, guid: &str, cell: &str) {
        self.note(format!("{cell}: Task {guid} runs"));
        let before = self.book().tasks.insert(guid.into(), cell.into());
        if let Some(before) = before {
            self.violate(format!("the Task {guid} runs on {cell}, and has run on {before}"));
        }
    }

    pub fn instance_begins(&self, key: &(String, u32), cell: &str, instance_guid: &str) {
        self.note(format!("{cell}: {}/{} runs as {instance_guid}", key.0, key.1));
        let mut book = self.book();
        book.running.entry(key.clone()).or_default().insert((cell.into(), instance_guid.into()));
    }

    pub fn instance_ends(&self, key: &(String, u32), cell: &str, instance_guid: &str) {
        self.note(format!("{cell}: {}/{} ends as {instance_guid}", key.0, key.1));
        let mut book = self.book();
        if let Some(running) = book.running.get_mut(key) {
            running.remove(&(cell.into(), instance_guid.into()));
        }
    }

    /// Who runs what, instances that nobody runs left out.
    pub fn running(&self) -> BTreeMap<(String, u32), BTreeSet<(String, String)>> {
        let book = self.book();
        book.running
            .iter()
            .filter(|(_, by)| !by.is_empty())
            .map(|(key, by)| (key.clone(), by.clone()))
            .collect()
    }

    pub fn tasks_run(&self) -> usize {
        self.book().tasks.len()
    }

    pub fn steps(&self) -> u64 {
        self.book().steps
    }

    pub fn violations(&self) -> Vec<String> {
        self.book().violations.clone()
    }

    pub fn trace(&self) -> Vec<String> {
        self.book().trace.iter().cloned().collect()
    }

    /// The same for two runs in which the same happened at the same times.
    pub fn fingerprint(&self) -> u64 {
        self.book().fingerprint
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Book {
    fn note(&mut self, text: &str) {
        let line = format!("{:10.3} {text}", self.began.elapsed().as_secs_f64());
        let mut hasher = DefaultHasher::new();
        (self.fingerprint, &line).hash(&mut hasher);
        self.fingerprint = hasher.finish();
        if self.trace.len() == TRACE_LINES_MAX {
            self.trace.pop_front();
        }
        self.trace.push_back(line);
    }

    fn check_overlaps(&mut self) {
        let now = Instant::now();
        let double: Vec<_> =
            self.running.iter().filter(|(_, by)| by.len() > 1).map(|(key, _)| key.clone()).collect();
        self.overlaps.retain(|key, _| double.contains(key));
        for key in double {
            let since = *self.overlaps.entry(key.clone()).or_insert(now);
            if now - since.max(self.disturbed) > OVERLAP_MAX && self.violations.is_empty() {
                let text = format!("{}/{} runs more than once: {:?}", key.0, key.1, self.running[&key]);
                self.note(&format!("VIOLATION {text}"));
                self.violations.push(text);
            }
        }
    }
}
