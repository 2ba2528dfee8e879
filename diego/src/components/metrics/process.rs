//! What this process takes of its machine.

/// In which the kernel tells a process's times, on every architecture that counts here.
const TICKS_PER_SECOND: u64 = 100;

/// Of what the kernel tells nothing is said.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Process {
    pub resident_bytes: Option<u64>,
    pub anonymous_bytes: Option<u64>,
    pub stack_bytes: Option<u64>,
    pub open_fds: Option<u64>,
    pub cpu_seconds: Option<f64>,
    /// Of the runtime.
    pub tasks: usize,
}

impl Process {
    /// Reads /proc, which waits for nothing.
    pub fn now() -> Process {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
        Process {
            open_fds: std::fs::read_dir("/proc/self/fd").ok().map(|fds| fds.count() as u64),
            cpu_seconds: cpu_seconds(&stat),
            tasks: tokio::runtime::Handle::current().metrics().num_alive_tasks(),
            ..memory(&status)
        }
    }
}

fn memory(status: &str) -> Process {
    let bytes = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
    };
    Process {
        resident_bytes: bytes("VmRSS"),
        anonymous_bytes: bytes("RssAnon"),
        stack_bytes: bytes("VmStk"),
        ..Process::default()
    }
}

/// Of user and system. A program's name, which may hold anything, ends with the last parenthesis.
fn cpu_seconds(stat: &str) -> Option<f64> {
    let after_name = stat.rsplit_once(')')?.1;
    let mut fields = after_name.split_whitespace().skip(11);
    let ticks: u64 = fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?;
    Some(ticks as f64 / TICKS_PER_SECOND as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_in_bytes_and_time_in_seconds() {
        let status = "VmRSS:\t    8 kB\nVmStk:\t     132 kB\nRssAnon:\t    4 kB\n";
        let found = memory(status);
        assert_eq!(
            (found.resident_bytes, found.anonymous_bytes, found.stack_bytes),
            (Some(8192), Some(4096), Some(135_168))
        );
        assert_eq!(memory(""), Process::default());
        let ticks = TICKS_PER_SECOND;
        let stat = format!("7 (a) b) S 1 1 1 0 -1 4194560 1 2 3 4 {ticks} {ticks} 0 0 20 0 1");
        assert_eq!(cpu_seconds(&stat), Some(2.0));
        assert_eq!(cpu_seconds(""), None);
    }
}
