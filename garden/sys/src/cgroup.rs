//! Control groups, both versions: one parent group of ours, one group a container below it, limits, figures, removal.
//!
//! The root (`/sys/fs/cgroup`) is passed in. What the limits should be is decided elsewhere. A child attaches itself
//! by writing `0` to descriptors from [`Cgroup::join_files`]: on version 1 attaching another process costs
//! milliseconds, and on version 2 some kernels kill children born (with CLONE_INTO_CGROUP) into a group whose
//! `cgroup.kill` was ever written. So nobody is born into a group, and that file is written only to one that is being
//! removed.

mod devices;
mod part;
mod v1;
mod v2;

use std::fs;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};

pub use part::Part;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot {act} {}: {source}", path.display())]
    Refused { act: &'static str, path: PathBuf, source: io::Error },
    #[error("no control groups with a memory controller below {}", root.display())]
    Missing { root: PathBuf },
    #[error("processes {pids:?} in {} outlived SIGKILL by {waited:?}", path.display())]
    Unkillable { path: PathBuf, pids: Vec<i32>, waited: Duration },
}

pub type Result<T> = std::result::Result<T, Error>;

/// Every block device of the machine has a directory here.
const DISKS: &str = "/sys/block";

/// More than most files of a group have, so that one look takes all.
const FILE_BYTES: usize = 4096;

/// How long killed processes may take to leave a group.
const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// What a group weighs that was given no shares.
pub const CPU_SHARES_DEFAULT: u64 = 1024;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    pub memory_bytes: Option<u64>,
    /// Memory and swap together are held to `memory_bytes`.
    pub swap_limited: bool,
    pub pids: Option<u64>,
    /// Of disk time beside other groups: 10 to 1000; converted for version 2. Nothing is set where no scheduler weighs.
    pub io_weight: Option<u64>,
    pub io_rates: IoRates,
}

/// For each disk of the machine, which only version 2 can hold writes to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IoRates {
    pub read_bytes_per_s: Option<u64>,
    pub written_bytes_per_s: Option<u64>,
    pub reads_per_s: Option<u64>,
    pub writes_per_s: Option<u64>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CpuLimits {
    /// Version 1's measure, 2 to 262144, 1024 by default; converted for version 2.
    pub shares: Option<u64>,
    /// Of CPU time in each period of 100 ms.
    pub quota_us: Option<u64>,
    /// Quota not used in earlier periods that may be used on top, as far as the kernel is new enough (Linux 5.14).
    pub burst_us: Option<u64>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats {
    /// The lines of `memory.stat`, plus `hierarchical_memory_limit` on version 2.
    pub memory: Vec<(String, u64)>,
    pub cpu_usage_ns: u64,
    pub cpu_user_ns: u64,
    pub cpu_system_ns: u64,
    pub pids: u64,
    /// 0: no limit.
    pub pids_max: u64,
}

/// A device that may be used inside: `kind` is `c` or `b`, `None` is any number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceRule {
    pub kind: char,
    pub major: Option<u32>,
    pub minor: Option<u32>,
    pub access: &'static str,
}

/// What a container is shown of its own groups below `/sys/fs/cgroup`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum View {
    /// One read-only mount for each: directory name and mount options (`cpu,cpuacct`).
    V1(Vec<(String, String)>),
    V2,
}

/// The control groups of this machine.
#[derive(Debug, Clone)]
pub enum Hierarchies {
    V1(v1::Hierarchies),
    V2(v2::Hierarchy),
}

impl Hierarchies {
    /// Looks at what is mounted at `root`.
    pub fn probe(root: &Path) -> Result<Hierarchies> {
        if root.join("cgroup.controllers").exists() {
            return Ok(Hierarchies::V2(v2::Hierarchy::new(root)));
        }
        Ok(Hierarchies::V1(v1::Hierarchies::probe(root)?))
    }

    /// For weights of disk time: version 1 has a hierarchy of its own for them, in which every container costs time, so it
    /// is left alone unless asked for. Groups in it are removed only by who asked.
    pub fn with_io_weights(self, root: &Path) -> Hierarchies {
        match self {
            Hierarchies::V1(v1) => Hierarchies::V1(v1.with_io_weights(root)),
            v2 => v2,
        }
    }

    /// Makes our parent group where it is missing; `devices` is what all containers may use.
    pub fn prepare(&self, parent: &str, devices: &[DeviceRule]) -> Result<()> {
        match self {
            Hierarchies::V1(v1) => v1.prepare(parent, devices),
            Hierarchies::V2(v2) => v2.prepare(parent, devices),
        }
    }

    pub fn view(&self) -> View {
        match self {
            Hierarchies::V1(v1) => View::V1(v1.view()),
            Hierarchies::V2(_) => View::V2,
        }
    }

    /// The group of this name below the parent; nothing is made yet.
    pub fn cgroup(&self, parent: &str, name: &str) -> Cgroup {
        let directories = match self {
            Hierarchies::V1(v1) => v1.directories(parent).map(|directory| directory.join(name)).collect(),
            Hierarchies::V2(v2) => vec![v2.directory(parent).join(name)],
        };
        Cgroup { hierarchies: self.clone(), directories }
    }

    /// The names of all groups below the parent, for finding what a killed agent left.
    pub fn names(&self, parent: &str) -> Result<Vec<String>> {
        let mut names = std::collections::BTreeSet::new();
        let directories: Vec<PathBuf> = match self {
            Hierarchies::V1(v1) => v1.directories(parent).collect(),
            Hierarchies::V2(v2) => vec![v2.directory(parent)],
        };
        for directory in directories {
            for entry in entries(&directory)? {
                names.insert(entry);
            }
        }
        Ok(names.into_iter().collect())
    }

    /// Drops our parent group; it must be empty. Safe to call twice.
    pub fn remove_parent(&self, parent: &str) -> Result<()> {
        let directories: Vec<PathBuf> = match self {
            Hierarchies::V1(v1) => v1.directories(parent).collect(),
            Hierarchies::V2(v2) => vec![v2.directory(parent)],
        };
        directories.iter().try_for_each(|directory| remove_directory(directory))
    }
}

/// The control group of one container.
#[derive(Debug, Clone)]
pub struct Cgroup {
    hierarchies: Hierarchies,
    directories: Vec<PathBuf>,
}

impl Cgroup {
    /// Makes it. Safe to call when it exists.
    pub fn create(&self) -> Result<()> {
        self.directories.iter().try_for_each(|directory| make_directory(directory))
    }

    /// Descriptors to which a process writes `0` to put itself into the group.
    pub fn join_files(&self) -> Result<Vec<OwnedFd>> {
        let file = match &self.hierarchies {
            Hierarchies::V1(_) => "tasks",
            Hierarchies::V2(_) => "cgroup.procs",
        };
        self.directories.iter().map(|directory| open_for_writing(&directory.join(file))).collect()
    }

    /// The part of it of this name; nothing is made yet.
    pub fn part(&self, name: &str) -> Part {
        Part::of(self, name)
    }

    pub fn directories(&self) -> &[PathBuf] {
        &self.directories
    }

    pub fn limit(&self, limits: &Limits) -> Result<()> {
        match &self.hierarchies {
            Hierarchies::V1(v1) => v1.limit(&self.directories, limits),
            Hierarchies::V2(_) => v2::limit(&self.directories[0], limits, Path::new(DISKS)),
        }
    }

    pub fn limit_cpu(&self, limits: &CpuLimits) -> Result<()> {
        match &self.hierarchies {
            Hierarchies::V1(v1) => v1.limit_cpu(&self.directories, limits),
            Hierarchies::V2(_) => v2::limit_cpu(&self.directories[0], limits),
        }
    }

    pub fn stats(&self) -> Result<Stats> {
        match &self.hierarchies {
            Hierarchies::V1(v1) => v1.stats(&self.directories),
            Hierarchies::V2(_) => v2::stats(&self.directories[0]),
        }
    }

    /// How many of its processes the kernel has killed for want of memory.
    pub fn oom_kills(&self) -> Result<u64> {
        match &self.hierarchies {
            Hierarchies::V1(v1) => v1.oom_kills(&self.directories),
            Hierarchies::V2(_) => v2::oom_kills(&self.directories[0]),
        }
    }

    /// How many processes are in it, and in groups below it.
    pub fn process_count(&self) -> Result<usize> {
        self.directories.first().map_or(Ok(0), |directory| Ok(processes(directory)?.len()))
    }

    /// Kills everything in it, waits until all are gone, removes it. Safe to call twice, or when it never was.
    pub fn remove(&self) -> Result<()> {
        for directory in &self.directories {
            kill_all(directory)?;
        }
        // Deepest first: processes inside may have made groups of their own where they were allowed to.
        self.directories.iter().try_for_each(|directory| remove_tree(directory))
    }
}

/// Of a group that is being removed.
fn kill_all(directory: &Path) -> Result<()> {
    let started = Instant::now();
    let mut at_one_stroke = false;
    loop {
        let pids = processes(directory)?;
        if pids.is_empty() {
            return Ok(());
        }
        if !at_one_stroke {
            // Faster than any fork; version 1 and kernels before 5.14 do not have it, and get the list.
            at_one_stroke = true;
            let _ = fs::OpenOptions::new()
                .write(true)
                .open(directory.join("cgroup.kill"))
                .and_then(|mut file| file.write_all(b"1"));
        }
        if started.elapsed() > KILL_DEADLINE {
            return Err(Error::Unkillable { path: directory.into(), pids, waited: KILL_DEADLINE });
        }
        for pid in pids.iter().filter_map(|&pid| rustix::process::Pid::from_raw(pid)) {
            // A process that has gone meanwhile is what is wanted.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The processes of a group and of the groups below it; a group that is gone has none.
fn processes(directory: &Path) -> Result<Vec<i32>> {
    let mut pids: Vec<i32> = match fs::read_to_string(directory.join("cgroup.procs")) {
        Ok(text) => text.lines().filter_map(|line| line.parse().ok()).filter(|&pid| pid > 0).collect(),
        Err(error) if is_gone(&error) => return Ok(Vec::new()),
        Err(source) => {
            return Err(Error::Refused { act: "list the processes of", path: directory.into(), source });
        }
    };
    for child in entries(directory)? {
        pids.extend(processes(&directory.join(child))?);
    }
    Ok(pids)
}

/// The groups below a group.
fn entries(directory: &Path) -> Result<Vec<String>> {
    list(directory, |kind| kind.is_dir())
}

fn entries_and_links(directory: &Path) -> Result<Vec<String>> {
    list(directory, |kind| kind.is_dir() || kind.is_symlink())
}

fn list(directory: &Path, wanted: impl Fn(fs::FileType) -> bool) -> Result<Vec<String>> {
    let refused = |source| Error::Refused { act: "list", path: directory.into(), source };
    let list = match fs::read_dir(directory) {
        Ok(list) => list,
        Err(error) if is_gone(&error) => return Ok(Vec::new()),
        Err(source) => return Err(refused(source)),
    };
    let mut names = Vec::new();
    for entry in list {
        let entry = entry.map_err(refused)?;
        if wanted(entry.file_type().map_err(refused)?) {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    Ok(names)
}

fn remove_tree(directory: &Path) -> Result<()> {
    for child in entries(directory)? {
        remove_tree(&directory.join(child))?;
    }
    remove_directory(directory)
}

/// A group stays busy for a moment after its last process has been waited for.
fn remove_directory(directory: &Path) -> Result<()> {
    let started = Instant::now();
    loop {
        match fs::remove_dir(directory) {
            Ok(()) => return Ok(()),
            Err(error) if is_gone(&error) => return Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && started.elapsed() < KILL_DEADLINE => {
                std::thread::sleep(Duration::from_micros(200));
            }
            Err(source) => return Err(Error::Refused { act: "remove", path: directory.into(), source }),
        }
    }
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}

fn make_directory(directory: &Path) -> Result<()> {
    match fs::create_dir(directory) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(source) => Err(Error::Refused { act: "make", path: directory.into(), source }),
    }
}

fn open_for_writing(path: &Path) -> Result<OwnedFd> {
    match fs::OpenOptions::new().write(true).open(path) {
        Ok(file) => Ok(file.into()),
        Err(source) => Err(Error::Refused { act: "open", path: path.into(), source }),
    }
}

fn write(path: &Path, value: &str) -> Result<()> {
    fs::OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|mut file| file.write_all(value.as_bytes()))
        .map_err(|source| Error::Refused { act: "write to", path: path.into(), source })
}

/// Without asking for the size first, which such files do not have: metrics read several thousand of them.
fn read(path: &Path) -> Result<String> {
    let refused = |source| Error::Refused { act: "read", path: path.into(), source };
    let text = || {
        let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let mut text = Vec::new();
        loop {
            text.reserve(FILE_BYTES);
            if rustix::io::read(&file, rustix::buffer::spare_capacity(&mut text))? == 0 {
                return Ok(text);
            }
        }
    };
    let text = text().map_err(|errno: rustix::io::Errno| refused(errno.into()))?;
    String::from_utf8(text).map_err(|error| refused(io::Error::new(io::ErrorKind::InvalidData, error)))
}

/// `name value` lines, as both versions write their statistics.
fn parse_lines(text: &str) -> Vec<(String, u64)> {
    text.lines()
        .filter_map(|line| {
            let (name, value) = line.split_once(' ')?;
            Some((name.to_string(), value.trim().parse().ok()?))
        })
        .collect()
}

fn find(lines: &[(String, u64)], name: &str) -> u64 {
    lines.iter().find(|(key, _)| key == name).map_or(0, |&(_, value)| value)
}

/// A number, or `max` and anything else for none (0).
fn parse_limit(text: &str) -> u64 {
    text.trim().parse().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("cgroup-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        path
    }

    #[test]
    fn both_versions_are_told_apart() {
        let root = folder("probe");
        assert!(matches!(Hierarchies::probe(&root), Err(Error::Missing { .. })));
        fs::create_dir_all(root.join("memory")).unwrap();
        fs::write(root.join("memory/tasks"), "").unwrap();
        assert!(matches!(Hierarchies::probe(&root), Ok(Hierarchies::V1(_))));
        fs::write(root.join("cgroup.controllers"), "cpu memory pids\n").unwrap();
        assert!(matches!(Hierarchies::probe(&root), Ok(Hierarchies::V2(_))));
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn statistics_are_read_by_name() {
        let lines = parse_lines("cache 4096\nrss 8192\nodd\ntotal_rss x\n");
        assert_eq!((find(&lines, "cache"), find(&lines, "rss"), find(&lines, "total_rss")), (4096, 8192, 0));
    }

    #[test]
    fn removing_what_never_was_is_no_error() {
        let root = folder("absent");
        fs::create_dir_all(root.join("memory")).unwrap();
        fs::write(root.join("memory/tasks"), "").unwrap();
        let group = Hierarchies::probe(&root).unwrap().cgroup("diego", "a");
        group.remove().unwrap();
        group.remove().unwrap();
        fs::remove_dir_all(root).unwrap();
    }
}
