//! What must be on disk before a container exists, so that a garden started after a killed one can end what is left.

use std::path::{Path, PathBuf};
use std::time::Duration;

use garden_sys::cgroup::Hierarchies;
use garden_sys::process;
use serde::{Deserialize, Serialize};

use super::{Error, Result};

/// A pid 1 that is killed and all its processes with it.
pub const KILL_DEADLINE: Duration = Duration::from_secs(15);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub handle: String,
    pub pid: i32,
    /// Clock ticks since boot: with the pid it names one process for certain.
    pub started: u64,
    pub cgroup_root: PathBuf,
    pub cgroup_parent: String,
    pub cgroup_name: String,
    pub socket: Option<PathBuf>,
}

/// Ends the container of a record, if any of it is left: its processes, its control groups, its socket. Blocks; safe to
/// call twice. Its namespaces go with its last process, and with them mounts and links.
pub fn clean_up(record: &Record) -> Result<()> {
    // From a disk that may have seen anything.
    super::rules::check_handle(&record.cgroup_name)?;
    super::rules::check_handle(&record.cgroup_parent)?;
    let failed = |act| move |source| Error::Container { act, handle: record.handle.clone(), source };
    if let Some(known) =
        process::find(Path::new("/proc"), record.pid, record.started).map_err(failed("find"))?
    {
        process::kill(&known.pidfd).map_err(failed("kill"))?;
        wait_for_end(&known.pidfd).map_err(failed("wait for the end of"))?;
    }
    let hierarchies = Hierarchies::probe(&record.cgroup_root)?;
    super::pea::remove_groups(&hierarchies, &record.cgroup_parent, &record.cgroup_name)?;
    hierarchies.cgroup(&record.cgroup_parent, &record.cgroup_name).remove()?;
    remove_socket(record.socket.as_deref()).map_err(failed("remove the socket of"))
}

pub fn remove_socket(path: Option<&Path>) -> std::io::Result<()> {
    match path.map(std::fs::remove_file) {
        Some(Err(error)) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn wait_for_end(pidfd: &std::os::fd::OwnedFd) -> std::io::Result<()> {
    let mut fds = [rustix::event::PollFd::new(pidfd, rustix::event::PollFlags::IN)];
    let deadline = rustix::event::Timespec { tv_sec: KILL_DEADLINE.as_secs() as i64, tv_nsec: 0 };
    match rustix::event::poll(&mut fds, Some(&deadline))? {
        0 => Err(std::io::ErrorKind::TimedOut.into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_survives_the_disk() {
        let record = Record {
            handle: "h".into(),
            pid: 4,
            started: 5,
            cgroup_root: "/c".into(),
            cgroup_parent: "p".into(),
            cgroup_name: "h".into(),
            socket: None,
        };
        let text = serde_json::to_string(&record).unwrap();
        assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), record);
    }
}
