use std::collections::BTreeMap;
use std::sync::Arc;

use diego_base::clock::ManualClock;

use super::recent::{CELL_BYTES_MAX, RECENT_BYTES_MAX, RECENT_LINES_MAX};
use super::*;
use crate::LogConfig;

fn stream_of(logs: &Logs, guid: &str, bytes_per_second: i64) -> LogStream {
    let config = LogConfig { guid: guid.into(), index: 3, source_name: String::new(), tags: BTreeMap::new() };
    LogStream::new(
        logs,
        &config,
        "instance",
        (bytes_per_second, 0),
        Arc::new(ManualClock::at(7)),
        Arc::new(()),
    )
}

fn texts(logs: &Logs, guid: &str) -> Vec<String> {
    logs.recent(guid, usize::MAX).iter().map(|line| line.text().into_owned()).collect()
}

#[tokio::test]
async fn what_is_written_is_cut_into_lines() {
    let logs = Logs::default();
    let writer = stream_of(&logs, "app", -1).writer(Out::Out);
    let clone = writer.clone();
    writer.write_all(b"one\ntwo\r\n\nthr");
    clone.write_all(b"ee\nfour");
    assert_eq!(texts(&logs, "app"), ["one", "two", "three"]);
    drop(writer);
    assert_eq!(texts(&logs, "app").len(), 3, "a clone may write on");
    drop(clone);
    assert_eq!(texts(&logs, "app").last().unwrap(), "four");
}

#[tokio::test]
async fn a_line_knows_where_it_comes_from() {
    let logs = Logs::default();
    let stream = stream_of(&logs, "app", -1);
    stream.with_source("STG").writer(Out::Err).write_all(b"x\n");
    stream.with_source("").announce(Out::Out, "y");
    let lines = logs.recent("app", 2);
    let line = &lines[0];
    assert_eq!((&*line.source, line.stream, line.index, line.timestamp_ns), ("STG", Out::Err, 3, 7));
    assert_eq!((&*line.guid, &*line.instance_guid), ("app", "instance"));
    assert_eq!((line.tags["source_id"].as_str(), line.tags["instance_id"].as_str()), ("app", "3"));
    assert_eq!(&*lines[1].source, "LOG");
}

#[tokio::test]
async fn a_long_line_is_cut_between_characters() {
    let logs = Logs::default();
    let writer = stream_of(&logs, "app", -1).writer(Out::Out);
    let text = format!("{}{}", "x".repeat(LINE_BYTES_MAX - 2), "€".repeat(5));
    writer.write_all(text.as_bytes());
    writer.write_all(b"\n");
    assert_eq!(texts(&logs, "app"), ["x".repeat(LINE_BYTES_MAX - 2), "€".repeat(5)]);
    // What is no text at all is cut where it must be, and nothing of it is lost.
    writer.write_all(&vec![0xBF; 3 * LINE_BYTES_MAX]);
    let kept: usize = logs.recent("app", 3).iter().map(|line| line.message.len()).sum();
    assert_eq!(kept, 3 * LINE_BYTES_MAX);
}

#[tokio::test]
async fn who_has_no_log_guid_is_not_heard() {
    let logs = Logs::default();
    stream_of(&logs, "", -1).announce(Out::Out, "x");
    assert!(logs.recent("", 10).is_empty());
}

#[tokio::test(start_paused = true)]
async fn who_says_too_much_is_cut_off_with_one_notice() {
    let logs = Logs::default();
    let stream = stream_of(&logs, "app", 10);
    let writer = stream.writer(Out::Err);
    writer.write_all(b"12345\n123456\n1\n2\n");
    stream.announce(Out::Out, "the platform still speaks");
    let notice = "app instance exceeded log rate limit (10 bytes/sec)";
    assert_eq!(texts(&logs, "app"), ["12345", notice, "the platform still speaks"]);
    assert_eq!(stream.passed_bytes(), 5);
}

#[tokio::test]
async fn only_the_newest_are_kept() {
    let logs = Logs::default();
    let writer = stream_of(&logs, "app", -1).writer(Out::Out);
    for n in 0..RECENT_LINES_MAX + 5 {
        writer.write_all(format!("{n}\n").as_bytes());
    }
    let kept = texts(&logs, "app");
    assert_eq!((kept.len(), kept[0].as_str()), (RECENT_LINES_MAX, "5"));
    for _ in 0..100 {
        writer.write_all("y".repeat(60_000).as_bytes());
        writer.write_all(b"\n");
    }
    let bytes: usize = logs.recent("app", usize::MAX).iter().map(|line| line.message.len()).sum();
    assert!(bytes <= RECENT_BYTES_MAX);
}

#[tokio::test]
async fn a_cell_forgets_those_who_were_silent_longest() {
    let logs = Logs::default();
    let line = format!("{}\n", "z".repeat(60_000));
    let guids = CELL_BYTES_MAX / RECENT_BYTES_MAX + 20;
    for n in 0..guids {
        let writer = stream_of(&logs, &n.to_string(), -1).writer(Out::Out);
        for _ in 0..20 {
            writer.write_all(line.as_bytes());
        }
    }
    assert!(logs.recent("0", 1).is_empty());
    assert!(!logs.recent(&(guids - 1).to_string(), 1).is_empty());
    let kept: usize =
        (0..guids).map(|n| texts(&logs, &n.to_string()).iter().map(String::len).sum::<usize>()).sum();
    assert!(kept <= CELL_BYTES_MAX, "{kept}");
}

#[tokio::test]
async fn a_follower_misses_nothing_or_is_told() {
    let logs = Logs::default();
    let writer = stream_of(&logs, "app", -1).writer(Out::Out);
    writer.write_all(b"before\n");
    let (recent, mut follow) = logs.recent_and_follow("app", 10);
    assert_eq!(recent.len(), 1);
    writer.write_all(b"after\n");
    let Some(Followed::Line(line)) = follow.next().await else { panic!("a line") };
    assert_eq!(line.text(), "after");
    for n in 0..=recent::FOLLOWER_LINES_MAX {
        writer.write_all(format!("{n}\n").as_bytes());
    }
    assert!(matches!(follow.next().await, Some(Followed::Missed(1))));
    let Some(Followed::Line(line)) = follow.next().await else { panic!("a line") };
    assert_eq!(line.text(), "1");
}

/// Counts what passes.
#[derive(Default)]
struct Scale {
    bytes: std::sync::atomic::AtomicUsize,
    longest: std::sync::atomic::AtomicUsize,
}

impl LogSink for Scale {
    fn emit(&self, line: &Arc<LogLine>) {
        use std::sync::atomic::Ordering::Relaxed;
        self.bytes.fetch_add(line.message.len(), Relaxed);
        self.longest.fetch_max(line.message.len(), Relaxed);
    }
}

#[tokio::test]
async fn a_line_without_an_end_is_passed_on_in_pieces_and_never_kept_whole() {
    let scale = Arc::new(Scale::default());
    let logs = Logs::new(vec![scale.clone() as Arc<dyn LogSink>]);
    let writer = stream_of(&logs, "app", -1).writer(Out::Out);
    let piece = vec![b'x'; 32 << 10];
    let said = 1024 * piece.len();
    for _ in 0..1024 {
        writer.write_all(&piece);
        assert!(writer.buffered_bytes() <= 2 * LINE_BYTES_MAX);
    }
    drop(writer);
    assert_eq!(scale.bytes.load(std::sync::atomic::Ordering::Relaxed), said);
    assert!(scale.longest.load(std::sync::atomic::Ordering::Relaxed) <= LINE_BYTES_MAX);
    let kept: usize = logs.recent("app", usize::MAX).iter().map(|line| line.message.len()).sum();
    assert!(kept <= RECENT_BYTES_MAX, "{kept}");
}
