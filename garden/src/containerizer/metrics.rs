//! The control groups' figures as the Garden API names them.

use garden_client::{CpuStat, MemoryStat, PidStat};
use garden_sys::cgroup::Stats;

/// What a container uses, as far as its control groups know.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    pub memory: MemoryStat,
    pub cpu: CpuStat,
    pub pid: PidStat,
}

pub fn usage(stats: &Stats) -> Usage {
    Usage {
        memory: memory(&stats.memory),
        cpu: CpuStat { usage: stats.cpu_usage_ns, user: stats.cpu_user_ns, system: stats.cpu_system_ns },
        pid: PidStat { current: stats.pids, max: stats.pids_max },
    }
}

fn memory(lines: &[(String, u64)]) -> MemoryStat {
    let mut memory = MemoryStat::default();
    for (name, value) in lines {
        let field = match name.as_str() {
            "active_anon" => &mut memory.active_anon,
            "active_file" => &mut memory.active_file,
            "cache" => &mut memory.cache,
            "hierarchical_memory_limit" => &mut memory.hierarchical_memory_limit,
            "peak" => &mut memory.peak,
            "inactive_anon" => &mut memory.inactive_anon,
            "inactive_file" => &mut memory.inactive_file,
            "mapped_file" => &mut memory.mapped_file,
            "pgfault" => &mut memory.pgfault,
            "pgmajfault" => &mut memory.pgmajfault,
            "pgpgin" => &mut memory.pgpgin,
            "pgpgout" => &mut memory.pgpgout,
            "rss" => &mut memory.rss,
            "total_active_anon" => &mut memory.total_active_anon,
            "total_active_file" => &mut memory.total_active_file,
            "total_cache" => &mut memory.total_cache,
            "total_inactive_anon" => &mut memory.total_inactive_anon,
            "total_inactive_file" => &mut memory.total_inactive_file,
            "total_mapped_file" => &mut memory.total_mapped_file,
            "total_pgfault" => &mut memory.total_pgfault,
            "total_pgmajfault" => &mut memory.total_pgmajfault,
            "total_pgpgin" => &mut memory.total_pgpgin,
            "total_pgpgout" => &mut memory.total_pgpgout,
            "total_rss" => &mut memory.total_rss,
            "total_unevictable" => &mut memory.total_unevictable,
            "unevictable" => &mut memory.unevictable,
            "swap" => &mut memory.swap,
            "hierarchical_memsw_limit" => &mut memory.hierarchical_memsw_limit,
            "total_swap" => &mut memory.total_swap,
            "anon" => &mut memory.anon,
            "file" => &mut memory.file,
            "swapcached" => &mut memory.swapcached,
            _ => continue,
        };
        *field = *value;
    }
    memory.total_usage_toward_limit = toward_limit(&memory);
    memory
}

/// Less the file cache that the kernel would give back. Only version 2 has `anon`, only version 1 `total_rss`.
fn toward_limit(memory: &MemoryStat) -> u64 {
    let v1 = (memory.total_rss + memory.total_cache + memory.total_swap)
        .saturating_sub(memory.total_inactive_file);
    let v2 = (memory.file + memory.anon + memory.swapcached).saturating_sub(memory.inactive_file);
    if memory.total_rss + memory.total_cache > 0 { v1 } else { v2 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(lines: &[(&str, u64)], expected: u64) {
        let lines: Vec<_> = lines.iter().map(|(name, value)| (name.to_string(), *value)).collect();
        assert_eq!(memory(&lines).total_usage_toward_limit, expected, "{lines:?}");
    }

    #[test]
    fn reclaimable_cache_does_not_count_toward_the_limit() {
        check(
            &[("total_rss", 100), ("total_cache", 50), ("total_inactive_file", 30), ("inactive_file", 30)],
            120,
        );
        check(&[("total_rss", 1), ("total_inactive_file", 30)], 0);
        check(&[("anon", 100), ("file", 50), ("inactive_file", 30), ("slab", 7)], 120);
        check(&[], 0);
    }
}
