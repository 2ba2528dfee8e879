//! Tables for people, one JSON value a line for machines.

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

/// A row of a table, and the value that stands for it with `--json`.
pub trait Row: Serialize {
    const HEADINGS: &'static [&'static str];
    fn cells(&self) -> Vec<String>;
}

pub fn rows<R: Row>(json: bool, rows: &[R]) -> anyhow::Result<()> {
    if json {
        for row in rows {
            line(row)?;
        }
        return Ok(());
    }
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(R::HEADINGS);
    for row in rows {
        table.add_row(row.cells());
    }
    for line in table.to_string().lines() {
        print(line.trim())?;
    }
    Ok(())
}

pub fn line<T: Serialize>(value: &T) -> anyhow::Result<()> {
    print(&serde_json::to_string(value)?)
}

/// Like `println!`, but a reader that went away (`| head`) is an error, not a panic.
pub fn print(text: &str) -> anyhow::Result<()> {
    use std::io::Write;
    writeln!(std::io::stdout().lock(), "{text}").map_err(|error| {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            std::process::exit(0);
        }
        anyhow::Error::new(error).context("cannot print")
    })
}

/// `2m13s`, `4h`, from nanoseconds.
pub fn age(since_ns: i64, now_ns: i64) -> String {
    let seconds = (now_ns - since_ns).max(0) / 1_000_000_000;
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3600..86400 => format!("{}h{:02}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d", seconds / 86400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_is_read_at_a_glance() {
        for (seconds, expected) in
            [(0, "0s"), (59, "59s"), (133, "2m13s"), (4 * 3600, "4h00m"), (86400 * 3, "3d")]
        {
            assert_eq!(age(0, seconds * 1_000_000_000), expected);
        }
    }
}
