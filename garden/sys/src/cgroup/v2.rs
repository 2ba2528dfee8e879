//! Version 2: one directory with all controllers. Devices are not restricted here: that takes a BPF program, and a
//! container with a user namespace cannot make device nodes anyway.

use std::path::{Path, PathBuf};

use super::{CpuLimits, Limits, Result, Stats, find, make_directory, parse_limit, parse_lines, read, write};

const CONTROLLERS: [&str; 4] = ["memory", "pids", "cpu", "io"];

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

    pub fn prepare(&self, parent: &str) -> Result<()> {
        let directory = self.directory(parent);
        enable_controllers(&self.root)?;
        make_directory(&directory)?;
        enable_controllers(&directory)
    }
}

fn enable_controllers(directory: &Path) -> Result<()> {
    let there = read(&directory.join("cgroup.controllers"))?;
    let wanted: Vec<String> = CONTROLLERS
        .iter()
        .filter(|name| there.split_whitespace().any(|word| word == **name))
        .map(|name| format!("+{name}"))
        .collect();
    write(&directory.join("cgroup.subtree_control"), &wanted.join(" "))
}

pub fn limit(directory: &Path, limits: &Limits) -> Result<()> {
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
    Ok(())
}

pub fn limit_cpu(directory: &Path, limits: &CpuLimits) -> Result<()> {
    if let Some(shares) = limits.shares {
        write(&directory.join("cpu.weight"), &weight(shares).to_string())?;
    }
    if let Some(quota) = limits.quota_us {
        write(&directory.join("cpu.max"), &format!("{quota} {CPU_PERIOD_US}"))?;
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
    fn limits_are_written_to_their_files() {
        let directory = std::env::temp_dir().join(format!("cgroup2-limits-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        for file in ["memory.max", "memory.swap.max", "pids.max", "cpu.weight", "cpu.max"] {
            std::fs::write(directory.join(file), "").unwrap();
        }
        limit(&directory, &Limits { memory_bytes: Some(4096), swap_limited: true, pids: Some(7) }).unwrap();
        limit_cpu(&directory, &CpuLimits { shares: Some(1024), quota_us: Some(5000) }).unwrap();
        let content = |file: &str| std::fs::read_to_string(directory.join(file)).unwrap();
        assert_eq!(
            (content("memory.max"), content("memory.swap.max"), content("pids.max")),
            ("4096".into(), "0".into(), "7".into())
        );
        assert_eq!((content("cpu.weight"), content("cpu.max")), ("39".into(), "5000 100000".into()));
        std::fs::remove_dir_all(directory).unwrap();
    }
}
