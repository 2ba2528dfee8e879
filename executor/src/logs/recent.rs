//! The newest lines of each log guid, and followers of them.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::broadcast;

use super::{LogLine, LogSink};

/// Kept of one log guid.
pub const RECENT_LINES_MAX: usize = 1000;
pub const RECENT_BYTES_MAX: usize = 1 << 20;
/// Kept of all log guids of a cell.
pub const CELL_BYTES_MAX: usize = 64 << 20;
/// Lines a follower may be behind before it misses some.
pub const FOLLOWER_LINES_MAX: usize = 4096;
/// What a line costs besides its message.
const LINE_OVERHEAD_BYTES: usize = 128;

/// All logs of a cell; cheap to clone.
#[derive(Clone)]
pub struct Logs(Arc<Shared>);

struct Shared {
    topics: Mutex<HashMap<Arc<str>, Arc<Topic>>>,
    bytes: AtomicUsize,
    /// Counts writes, to know which topic was written to longest ago.
    turn: AtomicU64,
    sinks: Vec<Arc<dyn LogSink>>,
}

/// The lines of one log guid.
pub(crate) struct Topic {
    ring: Mutex<Ring>,
    last_turn: AtomicU64,
}

#[derive(Default)]
struct Ring {
    lines: VecDeque<Arc<LogLine>>,
    bytes: usize,
    followers: Option<broadcast::Sender<Arc<LogLine>>>,
}

impl Default for Logs {
    fn default() -> Self {
        Logs::new(Vec::new())
    }
}

impl Logs {
    pub fn new(sinks: Vec<Arc<dyn LogSink>>) -> Self {
        Logs(Arc::new(Shared {
            topics: Mutex::default(),
            bytes: AtomicUsize::new(0),
            turn: AtomicU64::new(0),
            sinks,
        }))
    }

    /// The newest `lines_max` lines of a log guid, oldest first.
    pub fn recent(&self, log_guid: &str, lines_max: usize) -> Vec<Arc<LogLine>> {
        let Some(topic) = self.topics().get(log_guid).cloned() else { return Vec::new() };
        let ring = topic.lock();
        ring.lines.iter().skip(ring.lines.len().saturating_sub(lines_max)).cloned().collect()
    }

    /// What is said from now on. A log guid need not have said anything yet.
    pub fn follow(&self, log_guid: &str) -> Follow {
        self.recent_and_follow(log_guid, 0).1
    }

    /// The newest lines and what follows them, with nothing missing or doubled between the two.
    pub fn recent_and_follow(&self, log_guid: &str, lines_max: usize) -> (Vec<Arc<LogLine>>, Follow) {
        let topic = self.topic(&Arc::from(log_guid));
        let mut ring = topic.lock();
        let recent = ring.lines.iter().skip(ring.lines.len().saturating_sub(lines_max)).cloned().collect();
        let sender = ring.followers.get_or_insert_with(|| broadcast::channel(FOLLOWER_LINES_MAX).0);
        let receiver = sender.subscribe();
        drop(ring);
        (recent, Follow { receiver, _topic: topic })
    }

    fn topics(&self) -> MutexGuard<'_, HashMap<Arc<str>, Arc<Topic>>> {
        self.0.topics.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub(crate) fn topic(&self, log_guid: &Arc<str>) -> Arc<Topic> {
        let topic =
            || Arc::new(Topic { ring: Mutex::default(), last_turn: AtomicU64::new(self.next_turn()) });
        self.topics().entry(log_guid.clone()).or_insert_with(topic).clone()
    }

    fn next_turn(&self) -> u64 {
        self.0.turn.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn write(&self, topic: &Topic, line: LogLine) {
        let line = Arc::new(line);
        for sink in &self.0.sinks {
            sink.emit(&line);
        }
        topic.last_turn.store(self.next_turn(), Ordering::Relaxed);
        let (added, freed) = topic.lock().push(line);
        let before = self.0.bytes.fetch_add(added, Ordering::Relaxed);
        self.0.bytes.fetch_sub(freed, Ordering::Relaxed);
        if before + added > CELL_BYTES_MAX + freed {
            self.make_room();
        }
    }

    /// Forgets the lines of the log guids that were silent longest, until a tenth is free.
    fn make_room(&self) {
        let mut topics: Vec<_> =
            self.topics().iter().map(|(guid, topic)| (guid.clone(), topic.clone())).collect();
        topics.sort_by_key(|(_, topic)| topic.last_turn.load(Ordering::Relaxed));
        for (guid, topic) in topics {
            if self.0.bytes.load(Ordering::Relaxed) <= CELL_BYTES_MAX / 10 * 9 {
                return;
            }
            let freed = topic.lock().clear();
            self.0.bytes.fetch_sub(freed, Ordering::Relaxed);
            self.forget_unused(&guid, topic);
        }
    }

    /// A topic that neither a container nor a follower holds need not be listed.
    fn forget_unused(&self, guid: &Arc<str>, topic: Arc<Topic>) {
        let mut topics = self.topics();
        if Arc::strong_count(&topic) <= 2 {
            topics.remove(guid);
        }
    }
}

impl Topic {
    fn lock(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Ring {
    /// Bytes added and bytes freed.
    fn push(&mut self, line: Arc<LogLine>) -> (usize, usize) {
        if let Some(followers) = &self.followers
            && followers.send(line.clone()).is_err()
        {
            self.followers = None;
        }
        let added = cost(&line);
        self.bytes += added;
        self.lines.push_back(line);
        let mut freed = 0;
        while self.lines.len() > RECENT_LINES_MAX || self.bytes > RECENT_BYTES_MAX {
            let Some(oldest) = self.lines.pop_front() else { break };
            self.bytes -= cost(&oldest);
            freed += cost(&oldest);
        }
        (added, freed)
    }

    fn clear(&mut self) -> usize {
        self.lines = VecDeque::new();
        std::mem::take(&mut self.bytes)
    }
}

fn cost(line: &LogLine) -> usize {
    line.message.len() + LINE_OVERHEAD_BYTES
}

/// A follower's stream.
pub struct Follow {
    receiver: broadcast::Receiver<Arc<LogLine>>,
    /// Held so that the topic is not forgotten while somebody waits for it.
    _topic: Arc<Topic>,
}

#[derive(Debug, Clone)]
pub enum Followed {
    Line(Arc<LogLine>),
    /// So many lines came faster than they were taken.
    Missed(u64),
}

impl Follow {
    /// `None` when nothing can come any more.
    pub async fn next(&mut self) -> Option<Followed> {
        match self.receiver.recv().await {
            Ok(line) => Some(Followed::Line(line)),
            Err(broadcast::error::RecvError::Lagged(missed)) => Some(Followed::Missed(missed)),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}
