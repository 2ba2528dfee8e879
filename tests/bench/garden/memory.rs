//! What a process and all its descendants weigh.

use std::collections::HashMap;

use anyhow::{Context, Result};

/// Their proportional set size: what they share is counted once in all.
pub fn pss_kib(root: u32) -> Result<i64> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        if let Some(parent) = parent(pid) {
            children.entry(parent).or_default().push(pid);
        }
    }
    let (mut total, mut waiting) = (0, vec![root]);
    while let Some(pid) = waiting.pop() {
        total += pss_of(pid).with_context(|| format!("cannot weigh process {pid}"))?;
        waiting.extend(children.remove(&pid).unwrap_or_default());
    }
    Ok(total)
}

fn parent(pid: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// Of a process that has gone meanwhile: nothing.
pub fn pss_of(pid: u32) -> Result<i64> {
    let Ok(text) = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")) else { return Ok(0) };
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    Ok(line.and_then(|line| line.split_whitespace().next()).map_or(Ok(0), str::parse)?)
}
