//! Version 1: one directory a controller, some mounted together (`cpu,cpuacct`).

use std::path::{Path, PathBuf};

use super::{
    CpuLimits, DeviceRule, Error, Limits, Result, Stats, find, make_directory, parse_limit, parse_lines,
    read, write,
};

/// The controllers used; others are left alone, each group costs every container time. The memory controller must be there.
const CONTROLLERS: [&str; 5] = ["memory", "pids", "cpu", "cpuacct", "devices"];

/// Used only by who sets weights.
const IO_CONTROLLER: &str = "blkio";

const CPU_PERIOD_US: u64 = 100_000;

#[derive(Debug, Clone)]
pub struct Hierarchies {
    /// Directory and the mount options that name it inside a container; each directory once.
    mounted: Vec<Mounted>,
}

#[derive(Debug, Clone)]
struct Mounted {
    root: PathBuf,
    name: String,
    controllers: Vec<&'static str>,
}

impl Hierarchies {
    pub fn probe(root: &Path) -> Result<Hierarchies> {
        let mut found = Hierarchies { mounted: Vec::new() };
        for controller in CONTROLLERS {
            found.add(root, controller);
        }
        if found.position("memory").is_none() {
            return Err(Error::Missing { root: root.into() });
        }
        Ok(found)
    }

    pub fn with_io_weights(mut self, root: &Path) -> Hierarchies {
        self.add(root, IO_CONTROLLER);
        self
    }

    /// If it is mounted.
    fn add(&mut self, root: &Path, controller: &'static str) {
        // `cpu` is often a symbolic link to `cpu,cpuacct`.
        let Ok(directory) = root.join(controller).canonicalize() else { return };
        if !directory.join("tasks").exists() {
            return;
        }
        if let Some(together) = self.mounted.iter_mut().find(|other| other.root == directory) {
            return together.controllers.push(controller);
        }
        let name = directory.file_name().unwrap_or(controller.as_ref()).to_string_lossy().into_owned();
        self.mounted.push(Mounted { root: directory, name, controllers: vec![controller] });
    }

    pub fn view(&self) -> Vec<(String, String)> {
        // The options are the controllers of the hierarchy, all of them, which is what its directory is called.
        self.mounted.iter().map(|one| (one.name.clone(), one.name.clone())).collect()
    }

    pub fn directories<'a>(&'a self, parent: &'a str) -> impl Iterator<Item = PathBuf> + 'a {
        self.mounted.iter().map(move |one| one.root.join(parent))
    }

    pub fn prepare(&self, parent: &str, devices: &[DeviceRule]) -> Result<()> {
        for directory in self.directories(parent) {
            make_directory(&directory)?;
        }
        let directories: Vec<PathBuf> = self.directories(parent).collect();
        match self.of(&directories, "devices") {
            Some(directory) => restrict_devices(directory, devices),
            None => Ok(()),
        }
    }

    fn of<'a>(&self, directories: &'a [PathBuf], controller: &str) -> Option<&'a Path> {
        directories.get(self.position(controller)?).map(PathBuf::as_path)
    }

    /// Of the directory with this controller, among all.
    pub fn position(&self, controller: &str) -> Option<usize> {
        self.mounted.iter().position(|one| one.controllers.contains(&controller))
    }

    pub fn limit(&self, directories: &[PathBuf], limits: &Limits) -> Result<()> {
        if let (Some(memory), Some(bytes)) = (self.of(directories, "memory"), limits.memory_bytes) {
            limit_memory(memory, bytes, limits.swap_limited)?;
        }
        if let (Some(pids), Some(max)) = (self.of(directories, "pids"), limits.pids) {
            write(&pids.join("pids.max"), &max.to_string())?;
        }
        if let (Some(io), Some(weight)) = (self.of(directories, IO_CONTROLLER), limits.io_weight) {
            // Whichever scheduler is there; disks without one do not weigh.
            for file in ["blkio.weight", "blkio.bfq.weight"].map(|name| io.join(name)) {
                if file.exists() {
                    write(&file, &weight.to_string())?;
                }
            }
        }
        Ok(())
    }

    pub fn limit_cpu(&self, directories: &[PathBuf], limits: &CpuLimits) -> Result<()> {
        let Some(cpu) = self.of(directories, "cpu") else { return Ok(()) };
        if let Some(shares) = limits.shares {
            write(&cpu.join("cpu.shares"), &shares.to_string())?;
        }
        if let Some(quota) = limits.quota_us {
            write(&cpu.join("cpu.cfs_period_us"), &CPU_PERIOD_US.to_string())?;
            write(&cpu.join("cpu.cfs_quota_us"), &quota.to_string())?;
            let burst = cpu.join("cpu.cfs_burst_us");
            if let Some(us) = limits.burst_us.filter(|_| burst.exists()) {
                // The kernel takes no more than the quota.
                write(&burst, &us.min(quota).to_string())?;
            }
        }
        Ok(())
    }

    pub fn stats(&self, directories: &[PathBuf]) -> Result<Stats> {
        let mut stats = Stats::default();
        if let Some(memory) = self.of(directories, "memory") {
            stats.memory = parse_lines(&read(&memory.join("memory.stat"))?);
            let peak = parse_limit(&read(&memory.join("memory.max_usage_in_bytes"))?);
            stats.memory.push(("peak".into(), peak));
        }
        if let Some(cpuacct) = self.of(directories, "cpuacct") {
            stats.cpu_usage_ns = parse_limit(&read(&cpuacct.join("cpuacct.usage"))?);
            stats.cpu_user_ns = parse_limit(&read(&cpuacct.join("cpuacct.usage_user"))?);
            stats.cpu_system_ns = parse_limit(&read(&cpuacct.join("cpuacct.usage_sys"))?);
        }
        if let Some(pids) = self.of(directories, "pids") {
            stats.pids = parse_limit(&read(&pids.join("pids.current"))?);
            stats.pids_max = parse_limit(&read(&pids.join("pids.max"))?);
        }
        Ok(stats)
    }

    pub fn oom_kills(&self, directories: &[PathBuf]) -> Result<u64> {
        match self.of(directories, "memory") {
            Some(memory) => Ok(find(&parse_lines(&read(&memory.join("memory.oom_control"))?), "oom_kill")),
            None => Ok(0),
        }
    }
}

/// The limit with swap can never be below the one without: which is written first depends on where they stand.
fn limit_memory(memory: &Path, bytes: u64, swap_limited: bool) -> Result<()> {
    let plain = memory.join("memory.limit_in_bytes");
    let with_swap = memory.join("memory.memsw.limit_in_bytes");
    let value = bytes.to_string();
    if !swap_limited || !with_swap.exists() {
        return write(&plain, &value);
    }
    if parse_limit(&read(&with_swap)?) < bytes {
        write(&with_swap, &value)?;
        write(&plain, &value)
    } else {
        write(&plain, &value)?;
        write(&with_swap, &value)
    }
}

/// Groups made later inherit the list, so it is written once, to the parent, while that has no children.
fn restrict_devices(directory: &Path, rules: &[DeviceRule]) -> Result<()> {
    let list = read(&directory.join("devices.list"))?;
    if !list.starts_with("a ") {
        return Ok(()); // restricted by a run before this one
    }
    write(&directory.join("devices.deny"), "a")?;
    rules.iter().try_for_each(|rule| write(&directory.join("devices.allow"), &device_line(rule)))
}

fn device_line(rule: &DeviceRule) -> String {
    let number = |number: Option<u32>| number.map_or("*".to_string(), |number| number.to_string());
    format!("{} {}:{} {}", rule.kind, number(rule.major), number(rule.minor), rule.access)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_rule_is_written_as_the_kernel_reads_it() {
        let rule = DeviceRule { kind: 'c', major: Some(136), minor: None, access: "rwm" };
        assert_eq!(device_line(&rule), "c 136:* rwm");
    }

    #[test]
    fn controllers_mounted_together_are_one_directory() {
        let root = std::env::temp_dir().join(format!("cgroup-together-{}", std::process::id()));
        for name in ["memory", "cpu,cpuacct"] {
            std::fs::create_dir_all(root.join(name)).unwrap();
            std::fs::write(root.join(name).join("tasks"), "").unwrap();
        }
        for name in ["cpu", "cpuacct"] {
            let _ = std::os::unix::fs::symlink("cpu,cpuacct", root.join(name));
        }
        let found = Hierarchies::probe(&root).unwrap();
        assert_eq!(
            found.view(),
            [("memory".into(), "memory".into()), ("cpu,cpuacct".into(), "cpu,cpuacct".into())]
        );
        std::fs::remove_dir_all(root).unwrap();
    }
}
