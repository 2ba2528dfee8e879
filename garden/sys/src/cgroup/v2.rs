//! Version 2: one directory with all controllers.
//!
//! A group that has controllers for the groups below it can hold no processes itself, the root of all excepted. Where the
//! root passed in is a delegated part of the tree, the agent itself sits in it: it and its company are moved into a leaf.
//!
//! `memory.oom.group` stays off: as on version 1, the process that asked for too much is killed, not the container.

use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{
    CpuLimits, DeviceRule, Error, IoRates, Limits, Result, Stats, devices, find, make_directory, parse_limit,
    parse_lines, read, write,
};

const CONTROLLERS: [&str; 4] = ["memory", "pids", "cpu", "io"];

/// Below a delegated root: the agent's own.
const LEAF: &str = "diego-agent";
/// A few writes; more only if somebody forks all the time.
const MOVE_DEADLINE: Duration = Duration::from_secs(5);

const CPU_PERIOD_US: u64 = 100_000;

#[derive(Debug, Clone)]
pub struct Hierarchy {
    root: PathBuf,
}

impl Hierarchy {
    pub fn new(root: &Path) -> Hierarchy {
        Hierarchy { root: root.into() }
    }

    pub fn directory(&self, parent: &str) -> PathBuf {
        self.root.join(parent)
    }

    pub fn prepare(&self, parent: &str, allowed: &[DeviceRule]) -> Result<()> {
        let directory = self.directory(parent);
        enable_controllers(&self.root)?;
        make_directory(&directory)?;
        enable_controllers(&directory)?;
        let refused =
            |source| Error::Refused { act: "restrict the devices of", path: directory.clone(), source };
        let group = fs::File::open(&directory).map_err(refused)?;
        devices::restrict(group.as_fd(), allowed).map_err(refused)
    }
}

/// For the groups below `directory`.
fn enable_controllers(directory: &Path) -> Result<()> {
    let names = |file: &str| -> Result<Vec<String>> {
        Ok(read(&directory.join(file))?.split_whitespace().map(String::from).collect())
    };
    let there = names("cgroup.controllers")?;
    if !there.iter().any(|name| name == "memory") {
        return Err(Error::Missing { root: directory.into() });
    }
    let enabled = names("cgroup.subtree_control")?;
    let wanted = CONTROLLERS.iter().filter(|name| {
        let is = |names: &[String]| names.iter().any(|other| other == *name);
        is(&there) && !is(&enabled)
    });
    let wanted: Vec<String> = wanted.map(|name| format!("+{name}")).collect();
    if wanted.is_empty() {
        return Ok(());
    }
    let control = directory.join("cgroup.subtree_control");
    match write(&control, &wanted.join(" ")) {
        Err(Error::Refused { source, .. }) if source.raw_os_error() == Some(libc::EBUSY) => {
            move_into_leaf(directory)?;
            write(&control, &wanted.join(" "))
        }
        outcome => outcome,
    }
}

/// Where we are in it ourselves, the group was given to us, and whoever else is in it came with us. A group of others is
/// left as it is.
fn move_into_leaf(directory: &Path) -> Result<()> {
    let leaf = directory.join(LEAF);
    let company = |act| move |source| Error::Refused { act, path: directory.into(), source };
    let us = std::process::id().to_string();
    if !read(&directory.join("cgroup.procs"))?.lines().any(|pid| pid == us) {
        return Err(company("give controllers to groups below, processes of others being in,")(
            std::io::Error::from_raw_os_error(libc::EBUSY),
        ));
    }
    make_directory(&leaf)?;
    let started = Instant::now();
    loop {
        let pids = read(&directory.join("cgroup.procs"))?;
        if pids.is_empty() {
            return Ok(());
        }
        if started.elapsed() > MOVE_DEADLINE {
            return Err(company("move all processes out of")(std::io::ErrorKind::TimedOut.into()));
        }
        for pid in pids.lines() {
            match write(&leaf.join("cgroup.procs"), pid) {
                // Gone meanwhile.
                Err(Error::Refused { source, .. }) if source.raw_os_error() == Some(libc::ESRCH) => {}
                outcome => outcome?,
            }
        }
    }
}

pub fn limit(directory: &Path, limits: &Limits, disks: &Path) -> Result<()> {
    if let Some(bytes) = limits.memory_bytes {
        write(&directory.join("memory.max"), &bytes.to_string())?;
        let swap = directory.join("memory.swap.max");
        // Here swap has a limit of its own: none at all is what holds both together to the one number.
        if limits.swap_limited && swap.exists() {
            write(&swap, "0")?;
        }
    }
    if let Some(max) = limits.pids {
        write(&directory.join("pids.max"), &max.to_string())?;
    }
    if let Some(weight) = limits.io_weight {
        // One scheduler counts as version 1 does, the kernel's own controller from 1 to 10000.
        let (bfq, own) = (directory.join("io.bfq.weight"), directory.join("io.weight"));
        if bfq.exists() {
            write(&bfq, &weight.to_string())?;
        } else if own.exists() {
            write(&own, &io_weight(weight).to_string())?;
        }
    }
    limit_io(directory, &limits.io_rates, disks)
}

/// 10 to 1000 onto 1 to 10000, as every OCI runtime does it.
fn io_weight(weight: u64) -> u64 {
    1 + (weight.clamp(10, 1000) - 10) * 9_999 / 990
}

fn limit_io(directory: &Path, rates: &IoRates, disks: &Path) -> Result<()> {
    let rates = [
        ("rbps", rates.read_bytes_per_s),
        ("wbps", rates.written_bytes_per_s),
        ("riops", rates.reads_per_s),
        ("wiops", rates.writes_per_s),
    ];
    let line: String = rates.iter().filter_map(|(key, rate)| Some(format!(" {key}={}", (*rate)?))).collect();
    let file = directory.join("io.max");
    if line.is_empty() || !file.exists() {
        return Ok(());
    }
    block_devices(disks)?.iter().try_for_each(|number| write(&file, &format!("{number}{line}")))
}

/// The numbers of real ones: what is stacked upon them is held with them.
fn block_devices(disks: &Path) -> Result<Vec<String>> {
    let entries = super::entries_and_links(disks)?;
    let stacked = |name: &String| ["loop", "ram", "dm-"].iter().any(|prefix| name.starts_with(prefix));
    let numbers =
        entries.iter().filter(|name| !stacked(name)).map(|name| read(&disks.join(name).join("dev")));
    Ok(numbers.filter_map(|number| Some(number.ok()?.trim().to_string())).collect())
}

pub fn limit_cpu(directory: &Path, limits: &CpuLimits) -> Result<()> {
    if let Some(shares) = limits.shares {
        write(&directory.join("cpu.weight"), &weight(shares).to_string())?;
    }
    if let Some(quota) = limits.quota_us {
        write(&directory.join("cpu.max"), &format!("{quota} {CPU_PERIOD_US}"))?;
        let burst = directory.join("cpu.max.burst");
        if let Some(us) = limits.burst_us.filter(|_| burst.exists()) {
            // The kernel takes no more than the quota.
            write(&burst, &us.min(quota).to_string())?;
        }
    }
    Ok(())
}

/// Shares of 2 to 262144 onto weights of 1 to 10000, as every OCI runtime does it.
fn weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9_999 / 262_142
}

pub fn stats(directory: &Path) -> Result<Stats> {
    let mut memory = parse_lines(&read(&directory.join("memory.stat"))?);
    let limit = read(&directory.join("memory.max"))?;
    memory.push(("hierarchical_memory_limit".into(), limit.trim().parse().unwrap_or(u64::MAX)));
    if let Ok(swap) = read(&directory.join("memory.swap.current")) {
        memory.push(("swap".into(), parse_limit(&swap)));
    }
    // Since Linux 5.19.
    if let Ok(peak) = read(&directory.join("memory.peak")) {
        memory.push(("peak".into(), parse_limit(&peak)));
    }
    let cpu = parse_lines(&read(&directory.join("cpu.stat"))?);
    Ok(Stats {
        memory,
        cpu_usage_ns: find(&cpu, "usage_usec") * 1000,
        cpu_user_ns: find(&cpu, "user_usec") * 1000,
        cpu_system_ns: find(&cpu, "system_usec") * 1000,
        pids: parse_limit(&read(&directory.join("pids.current"))?),
        pids_max: parse_limit(&read(&directory.join("pids.max"))?),
    })
}

pub fn oom_kills(directory: &Path) -> Result<u64> {
    Ok(find(&parse_lines(&read(&directory.join("memory.events"))?), "oom_kill"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_become_weights() {
        for (shares, expected) in [(0, 1), (2, 1), (1024, 39), (262_144, 10_000), (u64::MAX, 10_000)] {
            assert_eq!(weight(shares), expected, "{shares} shares");
        }
    }

    #[test]
    fn weights_of_disk_time_are_converted() {
        for (weight, expected) in [(0, 1), (10, 1), (500, 4950), (1000, 10_000), (u64::MAX, 10_000)] {
            assert_eq!(io_weight(weight), expected, "{weight}");
        }
    }

    #[test]
    fn limits_are_written_to_their_files() {
        let directory = std::env::temp_dir().join(format!("cgroup2-limits-{}", std::process::id()));
        let disks = directory.join("disks");
        for (disk, number) in [("vda", "254:0"), ("loop0", "7:0")] {
            fs::create_dir_all(disks.join(disk)).unwrap();
            fs::write(disks.join(disk).join("dev"), format!("{number}\n")).unwrap();
        }
        let files = ["memory.max", "memory.swap.max", "pids.max", "io.weight", "io.max"];
        for file in files.iter().chain(&["cpu.weight", "cpu.max", "cpu.max.burst"]) {
            fs::write(directory.join(file), "").unwrap();
        }
        let limits = Limits {
            memory_bytes: Some(4096),
            swap_limited: true,
            pids: Some(7),
            io_weight: Some(10),
            io_rates: IoRates { read_bytes_per_s: Some(5), writes_per_s: Some(6), ..IoRates::default() },
        };
        limit(&directory, &limits, &disks).unwrap();
        let cpu = CpuLimits { shares: Some(1024), quota_us: Some(5000), burst_us: Some(9000) };
        limit_cpu(&directory, &cpu).unwrap();
        let content = |file: &str| fs::read_to_string(directory.join(file)).unwrap();
        assert_eq!(files.map(content), ["4096", "0", "7", "1", "254:0 rbps=5 wiops=6"]);
        assert_eq!(["cpu.weight", "cpu.max", "cpu.max.burst"].map(content), ["39", "5000 100000", "5000"]);
        fs::remove_dir_all(directory).unwrap();
    }

    /// Runs where version 2 has the controllers, which takes a machine without version 1.
    #[test]
    fn in_a_delegated_group_the_agent_makes_room_for_its_containers() {
        let root = Path::new("/sys/fs/cgroup");
        let name = "in_a_delegated_group_the_agent_makes_room_for_its_containers";
        let delegated = root.join(format!("diego-test-delegated-{}", std::process::id()));
        if !root.join("cgroup.subtree_control").exists() || fs::create_dir(&delegated).is_err() {
            println!("SKIPPED {name}: needs root, and version 2 alone");
            return;
        }
        enable_controllers(root).unwrap();
        let hierarchy = Hierarchy::new(&delegated);
        let mut other = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        write(&delegated.join("cgroup.procs"), &other.id().to_string()).unwrap();
        let refused = hierarchy.prepare("diego", &[]).unwrap_err();
        assert!(refused.to_string().contains("processes of others"), "{refused}");
        let us = std::process::id().to_string();
        write(&delegated.join("cgroup.procs"), &us).unwrap();
        let prepared = hierarchy.prepare("diego", &[]).and_then(|()| hierarchy.prepare("diego", &[]));
        let in_leaf = read(&delegated.join(LEAF).join("cgroup.procs"));
        write(&root.join("cgroup.procs"), &us).unwrap();
        other.kill().unwrap();
        other.wait().unwrap();
        for group in [delegated.join("diego"), delegated.join(LEAF), delegated.clone()] {
            super::super::remove_directory(&group).unwrap();
        }
        prepared.unwrap();
        let in_leaf = in_leaf.unwrap();
        // And whatever other tests of this program have started meanwhile.
        let moved = |pid: &str| in_leaf.lines().any(|line| line == pid);
        assert!(moved(&us) && moved(&other.id().to_string()), "{in_leaf}");
    }
}
