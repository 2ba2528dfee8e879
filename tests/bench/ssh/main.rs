//! What ssh into an instance costs, beside OpenSSH's own server: the same client, the same machine, one after the other in
//! turns. Ours is the whole way: proxy, BBS, the daemon.
//!
//!   make bench-ssh           on a quiet machine; ONLY=prompt, copies or memory measures only that part; ROUNDS and MEBIBYTES
//!                            make it longer or shorter
//!
//! A table for people, then `figure NAME VALUE UNIT`, one a line. Differences and ratios are of medians of the same rounds.

mod clients;
#[path = "../garden/figures.rs"]
#[allow(dead_code)]
mod figures;
#[path = "../garden/memory.rs"]
mod memory;
mod servers;

use std::path::Path;

use anyhow::{Context, Result, bail};
use clients::{Direction, Protocol, copy, prompt};
use figures::{Report, Times};
use servers::{Openssh, Ours, Server};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [bin] => measure(Path::new(bin)),
        _ => bail!("usage: bench-ssh BIN, where `make build` put the programs"),
    }
}

fn number(name: &str, otherwise: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

fn measure(bin: &Path) -> Result<()> {
    let only = std::env::var("ONLY").unwrap_or_default();
    let wanted = |part: &str| only.is_empty() || only.split(',').any(|name| name == part);
    // Where there is no disk to wait for.
    let work = tempfile::Builder::new().prefix("diego-bench-").tempdir_in("/dev/shm")?;
    let openssh = Openssh::start(work.path())?;
    let ours = Ours::start(bin, work.path())?;
    let mut report = Report::default();
    let fresh_mib = ours.daemon_mib()?;
    if wanted("prompt") {
        prompts(&openssh, &ours, &mut report)?;
    }
    if wanted("copies") {
        copies(&openssh, &ours, work.path(), &mut report)?;
    }
    if wanted("memory") {
        let mut client = prompt(&ours)?.client;
        let busy_mib = ours.daemons_and_shells_mib()?;
        client.end()?;
        report.figure("sshd_idle_mib", fresh_mib, "MiB");
        report.figure("sshd_one_shell_pss_mib", busy_mib, "MiB");
        report.figure("sshd_idle_after_use_mib", ours.daemon_mib()?, "MiB");
        report.figure("openssh_idle_mib", openssh.resident_mib()?, "MiB");
    }
    report.print();
    Ok(())
}

/// From the client's start to the prompt of a shell on a terminal.
fn prompts(openssh: &Openssh, ours: &Ours, report: &mut Report) -> Result<()> {
    let direct = ours.without_proxy();
    let mut times: [Times; 3] = Default::default();
    // The first of each, which warms files and caches, is not counted.
    for round in 0..=number("ROUNDS", 31) {
        let servers: [&dyn Server; 3] = [openssh, ours, &direct];
        for (server, times) in servers.into_iter().zip(&mut times) {
            let mut seen = prompt(server)?;
            seen.client.end()?;
            if round > 0 {
                times.add(seen.after);
            }
        }
    }
    let [theirs, through_proxy, without_proxy] = &times;
    report.times("to the prompt, OpenSSH's server", theirs);
    report.times("to the prompt, proxy and daemon", through_proxy);
    report.times("to the prompt, daemon alone", without_proxy);
    report.figure("ssh_handshake_extra_ms", through_proxy.median_ms() - theirs.median_ms(), "ms");
    report.figure("sshd_handshake_extra_ms", without_proxy.median_ms() - theirs.median_ms(), "ms");
    Ok(())
}

/// One large file each way, by the protocol of today's `scp` and by the old one.
fn copies(openssh: &Openssh, ours: &Ours, work: &Path, report: &mut Report) -> Result<()> {
    let mebibytes = number("MEBIBYTES", 256);
    let file = work.join("file");
    std::fs::write(&file, content(mebibytes << 20)).context("cannot write a file to copy")?;
    let mut worst = f64::INFINITY;
    for (protocol, direction, name) in [
        (Protocol::Sftp, Direction::Up, "up"),
        (Protocol::Sftp, Direction::Down, "down"),
        (Protocol::Old, Direction::Up, "old_up"),
        (Protocol::Old, Direction::Down, "old_down"),
    ] {
        let mut times: [Times; 2] = Default::default();
        for round in 0..=number("ROUNDS", 7).min(7) {
            let servers: [&dyn Server; 2] = [openssh, ours];
            for (server, times) in servers.into_iter().zip(&mut times) {
                let time = copy(server, protocol, direction, &file, &work.join("copy"))?;
                if round > 0 {
                    times.add(time);
                }
            }
        }
        let [theirs, through_proxy] = &times;
        let speed = |times: &Times| (mebibytes << 20) as f64 / 1e3 / times.median_ms();
        report.times(&format!("scp {name}, {mebibytes} MiB, OpenSSH's server"), theirs);
        report.times(&format!("scp {name}, {mebibytes} MiB, proxy and daemon"), through_proxy);
        report.figure(&format!("scp_{name}_mb_s"), speed(through_proxy), "MB/s");
        report.figure(&format!("scp_{name}_vs_openssh"), speed(through_proxy) / speed(theirs), "ratio");
        if matches!(protocol, Protocol::Sftp) {
            worst = worst.min(speed(through_proxy) / speed(theirs));
        }
    }
    // Of today's protocol, the slower way.
    report.figure("scp_vs_openssh", worst, "ratio");
    Ok(())
}

/// Bytes that do not repeat.
fn content(length: usize) -> Vec<u8> {
    let mut state = 1u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        bytes.extend_from_slice(&(state >> 16).to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}
