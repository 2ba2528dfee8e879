//! What must be on disk before a container exists, so that a garden started after a killed one can end what is left, or
//! take it over (see `adoption`).

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use garden_client::Limits;
use garden_init::IdRange;
use garden_sys::cgroup::Hierarchies;
use garden_sys::process;
use serde::{Deserialize, Serialize};

use super::oci::Instance;
use super::{Error, Result};

/// A pid 1 that is killed and all its processes with it.
pub const KILL_DEADLINE: Duration = Duration::from_secs(15);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub handle: String,
    /// Pid 1.
    pub init: InitRecord,
    pub cgroup_root: PathBuf,
    pub cgroup_parent: String,
    pub cgroup_name: String,
    /// The host ids of its users; `None`: those of the host.
    pub ids: Option<IdRange>,
    /// Of every process, before its own.
    pub env: Vec<String>,
    /// What it was given; of a record that does not say, nothing.
    #[serde(default)]
    pub limits: Limits,
    /// Made by an OCI runtime, which must be told of its end.
    #[serde(default)]
    pub oci: Option<Instance>,
}

/// One `garden-init` that outlives garden, and where it is found again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InitRecord {
    pub pid: i32,
    /// Clock ticks since boot: with the pid and the boot it names one process for certain.
    pub started: u64,
    /// The boot of the machine; a record that does not say is of this one.
    #[serde(default)]
    pub boot: Option<String>,
    pub socket: Option<PathBuf>,
}

impl Record {
    /// Whether its control groups are where those of this configuration are.
    pub fn is_of(&self, config: &super::Config) -> bool {
        self.cgroup_root == config.cgroup_root && self.cgroup_parent == config.cgroup_parent
    }
}

impl InitRecord {
    /// Whether the machine was started since: nothing of it lives.
    pub fn is_of_another_boot(&self) -> bool {
        self.boot.is_some() && self.boot != this_boot()
    }

    /// The process, if it lives.
    pub fn find(&self) -> std::io::Result<Option<process::Known>> {
        if self.is_of_another_boot() {
            return Ok(None);
        }
        process::find(Path::new("/proc"), self.pid, self.started)
    }

    /// Ends it, if it lives, and removes its socket. Blocks; safe to call twice.
    pub fn end(&self) -> std::io::Result<()> {
        match self.find()? {
            Some(known) => self.end_held(&known.pidfd),
            None => remove_socket(self.socket.as_deref()),
        }
    }

    /// The same of a process that is held already, which its id need not be looked up for.
    pub fn end_held(&self, pidfd: &OwnedFd) -> std::io::Result<()> {
        process::kill(pidfd)?;
        wait_for_end(pidfd)?;
        remove_socket(self.socket.as_deref())
    }
}

/// As the kernel names it. `None`: it does not say.
pub(super) fn this_boot() -> Option<String> {
    static BOOT: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    let read = || Some(std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?.trim().to_owned());
    BOOT.get_or_init(read).clone()
}

/// Ends the container of a record, if any of it is left: its processes, its control groups, its socket. Blocks; safe to
/// call twice. Its namespaces go with its last process, and with them mounts and links.
pub fn clean_up(record: &Record) -> Result<()> {
    // From a disk that may have seen anything.
    super::rules::check_handle(&record.cgroup_name)?;
    super::rules::check_handle(&record.cgroup_parent)?;
    let failed = |source| Error::Container { act: "end", handle: record.handle.clone(), source };
    record.init.end().map_err(failed)?;
    record.oci.iter().try_for_each(Instance::delete)?;
    // Whether weights were set then is not recorded; where they were not there is nothing to remove.
    let hierarchies = Hierarchies::probe(&record.cgroup_root)?.with_io_weights(&record.cgroup_root);
    super::pea::remove_groups(&hierarchies, &record.cgroup_parent, &record.cgroup_name)?;
    Ok(hierarchies.cgroup(&record.cgroup_parent, &record.cgroup_name).remove()?)
}

pub fn remove_socket(path: Option<&Path>) -> std::io::Result<()> {
    match path.map(std::fs::remove_file) {
        Some(Err(error)) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn wait_for_end(pidfd: &OwnedFd) -> std::io::Result<()> {
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
            init: InitRecord { pid: 4, started: 5, boot: None, socket: None },
            cgroup_root: "/c".into(),
            cgroup_parent: "p".into(),
            cgroup_name: "h".into(),
            ids: Some(IdRange { base: 6, count: 7, root: None }),
            env: vec!["A=b".into()],
            limits: Limits {
                cpu: garden_client::CpuLimits { weight: 8, ..Default::default() },
                ..Limits::default()
            },
            oci: None,
        };
        let text = serde_json::to_string(&record).unwrap();
        assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), record);
    }

    #[test]
    fn a_process_of_another_boot_is_nobody() {
        let pid = std::process::id() as i32;
        let started = process::start_time(Path::new("/proc"), pid).unwrap().unwrap();
        let record = |boot| InitRecord { pid, started, boot, socket: None };
        assert!(record(None).find().unwrap().is_some());
        assert!(record(this_boot()).find().unwrap().is_some());
        assert!(record(Some("another".into())).find().unwrap().is_none());
        record(Some("another".into())).end().unwrap();
    }
}
