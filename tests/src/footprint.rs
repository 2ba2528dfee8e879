//! What the kernel holds for us: a test takes it before and after, and nothing may have come in between.

use std::collections::BTreeSet;
use std::path::Path;

/// Names of our mounts, cgroups, links and nftables tables, and our programs' processes.
#[derive(Debug, PartialEq, Eq)]
pub struct Footprint {
    pub mounts: BTreeSet<String>,
    pub cgroups: BTreeSet<String>,
    pub links: BTreeSet<String>,
    pub tables: BTreeSet<String>,
    pub processes: BTreeSet<String>,
}

impl Footprint {
    /// What is there now and was not there before.
    pub fn since(before: &Footprint) -> Vec<String> {
        let now = Footprint::take();
        let new = |now: &BTreeSet<String>, before: &BTreeSet<String>| {
            now.difference(before).cloned().collect::<Vec<_>>()
        };
        [
            new(&now.mounts, &before.mounts),
            new(&now.cgroups, &before.cgroups),
            new(&now.links, &before.links),
            new(&now.tables, &before.tables),
            new(&now.processes, &before.processes),
        ]
        .concat()
    }

    pub fn take() -> Footprint {
        Footprint {
            mounts: mounts(),
            cgroups: cgroups(Path::new("/sys/fs/cgroup"), 4),
            links: names_in("/sys/class/net"),
            tables: tables(),
            processes: processes(),
        }
    }
}

fn mounts() -> BTreeSet<String> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().filter_map(|line| line.split(' ').nth(4)).map(str::to_owned).collect()
}

fn cgroups(dir: &Path, depth: u32) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let path = entry.path();
        if path.to_string_lossy().contains("diego") {
            found.insert(path.display().to_string());
        }
        if depth > 0 {
            found.extend(cgroups(&path, depth - 1));
        }
    }
    found
}

fn names_in(dir: &str) -> BTreeSet<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn tables() -> BTreeSet<String> {
    let listed = std::process::Command::new("nft").args(["list", "tables"]).output();
    let text = listed.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// Processes whose program is `garden-init`, on disk or in memory, or that run below one.
fn processes() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for pid in names_in("/proc").into_iter().filter(|name| name.bytes().all(|byte| byte.is_ascii_digit())) {
        let program = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
        if program.to_string_lossy().contains("garden-init") {
            found.insert(pid);
        }
    }
    found
}
