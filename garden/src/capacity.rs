//! What there is to give to containers, as the machine tells it.

use std::io;

/// Bytes.
pub fn total_memory() -> io::Result<u64> {
    parse_total_memory(&std::fs::read_to_string("/proc/meminfo")?)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "/proc/meminfo has no MemTotal"))
}

fn parse_total_memory(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_in_bytes() {
        assert_eq!(parse_total_memory("MemTotal:       24560048 kB\nMemFree: 1 kB\n"), Some(25_149_489_152));
        assert_eq!(parse_total_memory("MemFree: 1 kB"), None);
        assert!(total_memory().unwrap() > 1 << 20);
    }
}
