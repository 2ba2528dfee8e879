//! Taking over what an earlier garden left running: finding the init process of a record, and hearing from it what runs.
//!
//! All of that it tells is hostile input: who it is, is asked of the kernel; how much it may say is limited; descriptors
//! are looked at before they are used. One that lies loses its own container, or less.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use garden_init::{EVENT_BYTES_MAX, EVENT_FDS_MAX, Event, PROCESS_ID_BYTES_MAX, Request, StreamKind};
use garden_sys::packets;
use rustix::fs::{FileType, OFlags, fcntl_getfl, fstat};

use super::container::checked_terminal;
use super::control::Control;
use super::process::AdoptedEnds;
use super::record::InitRecord;

/// Told of by one init process. A container may have more; of its own making, not of garden's.
const PROCESSES_MAX: usize = 1024;
/// Two gardens may have died while it was too busy to listen.
const CONNECT_PAUSE: Duration = Duration::from_millis(20);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("its pid 1, process {0}, is gone")]
    Gone(i32),
    #[error("it was told of no socket to wait at")]
    NoSocket,
    #[error("process {found} listens at its socket instead of {expected}")]
    Impostor { found: i32, expected: i32 },
    #[error("cannot {act}: {source}")]
    Io { act: &'static str, source: io::Error },
    #[error("it ended while it was asked")]
    Ended,
    #[error("it talks nonsense: {0}")]
    Nonsense(&'static str),
}

fn failed(act: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Io { act, source }
}

/// A process that an earlier garden started.
pub struct Adopted {
    pub id: String,
    pub ends: AdoptedEnds,
    /// It has ended.
    pub status: Option<i32>,
}

/// Speaks with the init process of a record, and with no other. Its process must be held while this is used, so that the
/// pid stays its own. Waits as long as it is too busy to listen: deadlines are the caller's.
pub async fn reach(record: &InitRecord) -> Result<Control, Error> {
    let socket = record.socket.as_deref().ok_or(Error::NoSocket)?;
    let (Some(directory), Some(name)) = (socket.parent(), socket.file_name().and_then(|name| name.to_str()))
    else {
        return Err(Error::NoSocket);
    };
    let socket = loop {
        match packets::connect_below(directory, name) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                tokio::time::sleep(CONNECT_PAUSE).await;
            }
            other => break other.map_err(failed("connect to its socket"))?,
        }
    };
    let found = packets::peer(&socket).map_err(failed("ask who listens at its socket"))?;
    if found != record.pid {
        return Err(Error::Impostor { found, expected: record.pid });
    }
    Control::new(socket, EVENT_BYTES_MAX, EVENT_FDS_MAX).map_err(failed("speak with it"))
}

/// All processes it has, and how those that have ended did. What comes after is for the owner of the conversation.
pub async fn hear(control: &mut Control) -> Result<Vec<Adopted>, Error> {
    control.send(&Request::Adopt, &[]).await.map_err(failed("ask it what runs"))?;
    let mut told = HashMap::new();
    // Each process is told of once, and its end once.
    for _ in 0..2 * PROCESSES_MAX + 1 {
        let message = control.receive().await.map_err(failed("hear from it"))?.ok_or(Error::Ended)?;
        let event =
            serde_json::from_slice(&message.bytes).map_err(|_| Error::Nonsense("an unknown event"))?;
        match event {
            Event::Running { process, tty, streams, .. } => {
                if told.len() == PROCESSES_MAX {
                    return Err(Error::Nonsense("too many processes"));
                }
                if process.len() > PROCESS_ID_BYTES_MAX {
                    return Err(Error::Nonsense("the name of a process is too long"));
                }
                let ends = ends(tty, &streams, message.fds)?;
                match told.entry(process) {
                    Entry::Vacant(place) => {
                        let id = place.key().clone();
                        place.insert(Adopted { id, ends, status: None });
                    }
                    Entry::Occupied(_) => return Err(Error::Nonsense("a process twice")),
                }
            }
            Event::Exited { process, status } => {
                if let Some(process) = told.get_mut(&process) {
                    process.status.get_or_insert(status & 0xff);
                }
            }
            Event::Adopted => return Ok(told.into_values().collect()),
            // Answers to what an earlier garden asked.
            Event::Started { .. } | Event::NotStarted { .. } | Event::Streamed { .. } => {}
            Event::Ready | Event::Failed { .. } => return Err(Error::Nonsense("it is a container already")),
        }
    }
    Err(Error::Nonsense("it tells without end"))
}

fn ends(tty: bool, streams: &[StreamKind], fds: Vec<OwnedFd>) -> Result<AdoptedEnds, Error> {
    if streams.len() != fds.len() {
        return Err(Error::Nonsense("streams without descriptors"));
    }
    let (mut stdin, mut stdout, mut stderr, mut terminal) = (None, None, None, None);
    for (kind, fd) in streams.iter().zip(fds) {
        let (place, checked) = match kind {
            StreamKind::Stdin => (&mut stdin, checked_pipe(fd, OFlags::RDONLY)),
            StreamKind::Stdout => (&mut stdout, checked_pipe(fd, OFlags::WRONLY)),
            StreamKind::Stderr => (&mut stderr, checked_pipe(fd, OFlags::WRONLY)),
            StreamKind::Terminal => (&mut terminal, checked_terminal(Some(fd))),
        };
        if place.replace(checked.map_err(failed("use a stream it sent"))?).is_some() {
            return Err(Error::Nonsense("a stream twice"));
        }
    }
    match (tty, terminal) {
        (true, terminal) if stdin.is_none() && stdout.is_none() && stderr.is_none() => {
            Ok(AdoptedEnds::Terminal(terminal))
        }
        (false, None) => Ok(AdoptedEnds::Pipes { stdin, stdout, stderr }),
        _ => Err(Error::Nonsense("streams of two kinds")),
    }
}

/// What anybody could have sent: only a pipe neither blocks nor reaches anything, and only if it goes the right way.
fn checked_pipe(fd: OwnedFd, wrong_way: OFlags) -> io::Result<OwnedFd> {
    let invalid = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why);
    if FileType::from_raw_mode(fstat(&fd)?.st_mode) != FileType::Fifo {
        return Err(invalid("it is no pipe"));
    }
    let flags = fcntl_getfl(&fd)?;
    if flags.contains(OFlags::PATH) || flags & OFlags::RWMODE == wrong_way {
        return Err(invalid("it goes the wrong way"));
    }
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::containerizer::streams::pipe;

    /// What an init process that says `events` is taken for.
    async fn heard(events: Vec<(Event, Vec<OwnedFd>)>) -> Result<Vec<Adopted>, String> {
        let (ours, theirs) = packets::pair().unwrap();
        let mut control = Control::new(ours, EVENT_BYTES_MAX, EVENT_FDS_MAX).unwrap();
        let mut told = Control::new(theirs, 1 << 16, 4).unwrap();
        let telling = tokio::spawn(async move {
            assert_eq!(told.receive().await.unwrap().unwrap().bytes, b"\"adopt\"");
            for (event, fds) in events {
                if told.send(&event, &fds).await.is_err() {
                    break;
                }
            }
        });
        let result = hear(&mut control).await.map_err(|error| error.to_string());
        drop(control);
        telling.await.unwrap();
        result
    }

    fn running(id: &str, streams: &[StreamKind]) -> Event {
        Event::Running { process: id.into(), pid: 7, tty: false, streams: streams.into() }
    }

    #[tokio::test]
    async fn processes_are_heard_with_their_streams_and_ends() {
        let ((read, write), (stdin_read, stdin)) = (pipe().unwrap(), pipe().unwrap());
        let events = vec![
            (Event::Streamed { request: 3, error: None }, vec![]),
            (running("a", &[StreamKind::Stdout, StreamKind::Stdin]), vec![read, stdin]),
            (running("b", &[]), vec![]),
            (Event::Exited { process: "b".into(), status: 0x103 }, vec![]),
            (Event::Exited { process: "nobody".into(), status: 1 }, vec![]),
            (Event::Adopted, vec![]),
        ];
        let mut told = heard(events).await.unwrap();
        told.sort_by(|a, b| a.id.cmp(&b.id));
        assert_eq!((told[0].id.as_str(), told[0].status), ("a", None));
        assert!(matches!(told[0].ends, AdoptedEnds::Pipes { stdin: Some(_), stdout: Some(_), stderr: None }));
        assert_eq!((told[1].id.as_str(), told[1].status), ("b", Some(3)));
        drop((write, stdin_read));
    }

    #[tokio::test]
    async fn lies_are_refused() {
        let file = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let path = || {
            let directory = tempfile::tempdir().unwrap();
            let name = directory.path().join("fifo");
            rustix::fs::mknodat(rustix::fs::CWD, &name, FileType::Fifo, 0o600.into(), 0).unwrap();
            rustix::fs::open(&name, OFlags::PATH, rustix::fs::Mode::empty()).unwrap()
        };
        let refused = async |event: Event, fds: Vec<OwnedFd>, why: &str| {
            let error = heard(vec![(event, fds), (Event::Adopted, vec![])]).await.err().unwrap_or_default();
            assert!(error.contains(why), "{error}, not {why}");
        };
        let out = [StreamKind::Stdout];
        refused(running("a", &out), vec![file()], "it is no pipe").await;
        refused(running("a", &out), vec![pipe().unwrap().1], "wrong way").await;
        refused(running("a", &[StreamKind::Stdin]), vec![pipe().unwrap().0], "wrong way").await;
        refused(running("a", &out), vec![path()], "wrong way").await;
        refused(running("a", &out), vec![], "streams without descriptors").await;
        refused(running("a", &[StreamKind::Terminal]), vec![file()], "is no terminal").await;
        let twice = vec![pipe().unwrap().0, pipe().unwrap().0];
        refused(running("a", &[out[0], out[0]]), twice, "a stream twice").await;
        refused(running(&"x".repeat(256), &[]), vec![], "too long").await;
        refused(Event::Ready, vec![], "container already").await;
        let twice = vec![(running("a", &[]), vec![]), (running("a", &[]), vec![])];
        assert!(heard(twice).await.is_err());
        let endless = (0..10_000).map(|n| (running(&n.to_string(), &[]), vec![])).collect();
        assert!(heard(endless).await.err().unwrap().contains("too many processes"));
        let endless = (0..10_000).map(|_| (Event::Streamed { request: 0, error: None }, vec![])).collect();
        assert!(heard(endless).await.err().unwrap().contains("without end"));
        assert!(heard(vec![]).await.err().unwrap().contains("it ended"));
    }

    #[tokio::test]
    async fn only_the_recorded_process_is_spoken_with() {
        let directory = tempfile::tempdir().unwrap();
        let socket = packets::bind_below(directory.path(), "pid1").unwrap();
        rustix::net::listen(&socket, 1).unwrap();
        let me = std::process::id() as i32;
        let record =
            |pid| InitRecord { pid, started: 0, boot: None, socket: Some(directory.path().join("pid1")) };
        assert!(reach(&record(me)).await.is_ok());
        assert!(matches!(reach(&record(1)).await, Err(Error::Impostor { .. })));
        assert!(matches!(reach(&InitRecord { socket: None, ..record(me) }).await, Err(Error::NoSocket)));
        assert!(record(me).find().unwrap().is_none(), "another start time is another process");
    }
}
