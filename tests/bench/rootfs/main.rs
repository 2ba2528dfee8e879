//! What images cost, beside what they cost others: one run, same machine, same registry, same images, taken in turns.
//!
//!   make bench-rootfs        as root, on a quiet machine; ROUNDS and MEBIBYTES make it longer or shorter, ONLY=cold,
//!                            warm, creates or large measures only that part
//!
//! A table for people, then `figure NAME VALUE UNIT`, one a line. Ratios are of medians taken in the same rounds. Ours
//! is counted until the root is mounted with its quota, theirs until the files are on the disk. The disk is given time
//! to write what the last one left before the next one begins. On a slow machine there are fewer rounds, so that all of it
//! takes ten minutes or so; how many they were is said.

#[path = "../garden/figures.rs"]
#[allow(dead_code)]
mod figures;
mod images;
mod ours;
mod peers;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use figures::{Report, Times};
use images::Layout;
use ours::Ours;
use peers::{Containerd, Docker, Peer, Registry, Umoci};

/// As in the product: musl's own costs a pull a third.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const LAYERS: usize = 8;
const LARGE_FILES: usize = 64;
const LARGE_FILE_BYTES: u64 = 64 << 20;
const CREATES: usize = 20;
/// Of pairs, for each round of the others.
const CREATE_ROUNDS: usize = 3;
/// What is measured in rounds ends with the round in which so much time is over, on a slow machine, but not before so many.
const PART_TIME_MAX: Duration = Duration::from_secs(100);
const ROUNDS_MIN: usize = 3;
const WARM_ROUNDS: usize = 300;
/// Between creates that do not follow one another at once.
const WARM_PAUSE: Duration = Duration::from_millis(20);
/// As a deployed rep asks for them.
const INODES: u64 = 200_000;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match arguments.next().as_deref() {
        Some(ours::MEASURED) => runtime.block_on(ours::measured(arguments)),
        _ => measure(&runtime),
    }
}

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

fn measure(runtime: &tokio::runtime::Runtime) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("roots are mounted by root");
    }
    let rounds = number("ROUNDS", 5) as usize;
    let work = tempfile::Builder::new().prefix("diego-bench-").tempdir()?;
    let work = work.path();
    let registry = Registry::start(work)?;
    let mut report = Report::default();
    let files = images::debian_files(number("MEBIBYTES", 300) << 20)?;
    let only = std::env::var("ONLY").unwrap_or_default();
    let wanted = |part: &str| only.is_empty() || only.split(',').any(|name| name == part);
    let eight = push(&registry, work, "eight", &images::parts(&files, LAYERS), &mut report)?;
    let ours = Ours::new(work);
    if wanted("cold") {
        let one = push(&registry, work, "one", &[&files], &mut report)?;
        let peers = peers(work, &registry);
        cold(&ours, &peers, &eight, "8 layers", rounds, "rootfs_cold_pull_speedup", &mut report)?;
        cold(&ours, &peers, &one, "1 layer", rounds, "rootfs_cold_pull_one_layer_speedup", &mut report)?;
    }
    if wanted("warm") {
        warm(runtime, work, &registry, &eight, &mut report)?;
    }
    if wanted("creates") {
        creates(&ours, &eight, rounds, &mut report)?;
    }
    if wanted("large") {
        large(&ours, work, &registry, &mut report)?;
    }
    report.print();
    Ok(())
}

/// Makes an image of the files, a layer each part, and pushes it; its name.
fn push(
    registry: &Registry,
    work: &Path,
    name: &str,
    parts: &[&[std::path::PathBuf]],
    report: &mut Report,
) -> Result<String> {
    let directory = work.join("layout");
    let mut layout = Layout::new(&directory)?;
    for part in parts {
        layout.add_layer(|out| images::tar_of(part, out), 6)?;
    }
    let files: usize = parts.iter().map(|part| part.len()).sum();
    let (layers, packed) = (parts.len(), layout.bytes() >> 20);
    report.note(&format!("image {name}: {layers} layers, {files} files, {packed} MiB compressed"));
    let image = registry.push(&layout.finish()?, name)?;
    std::fs::remove_dir_all(directory)?;
    Ok(image)
}

fn peers(work: &Path, registry: &Registry) -> Vec<Box<dyn Peer>> {
    let found: [(&str, Result<Box<dyn Peer>>); 3] = [
        ("skopeo and umoci", Umoci::new(work, registry).map(|peer| Box::new(peer) as _)),
        ("containerd", Containerd::start(work).map(|peer| Box::new(peer) as _)),
        ("docker", Docker::start(work).map(|peer| Box::new(peer) as _)),
    ];
    let present = found.into_iter().filter_map(|(name, peer)| match peer {
        Ok(peer) => Some(peer),
        Err(why) => {
            println!("SKIPPED {name}: {why:#}");
            None
        }
    });
    present.collect()
}

fn enough(rounds: usize, began: Instant) -> bool {
    rounds >= ROUNDS_MIN && began.elapsed() > PART_TIME_MAX
}

/// Everything before is on the disk; nothing of it is written while the next one is measured.
fn quiet() {
    rustix::fs::sync();
}

fn cold(
    ours: &Ours,
    peers: &[Box<dyn Peer>],
    image: &str,
    what: &str,
    rounds: usize,
    figure: &str,
    report: &mut Report,
) -> Result<()> {
    let (mut mine, mut seconds) = (Times::default(), Times::default());
    let mut theirs: Vec<Times> = peers.iter().map(|_| Times::default()).collect();
    let began = Instant::now();
    for round in 0..rounds {
        if enough(round, began) {
            break;
        }
        eprintln!("cold pull, {what}: round {} of up to {rounds}, {:?}", round + 1, began.elapsed());
        quiet();
        let outcome = ours.pull(image, 1)?;
        mine.add(outcome.time);
        seconds.add(Duration::from_secs_f64(outcome.seconds));
        ours.forget()?;
        for (peer, times) in peers.iter().zip(&mut theirs) {
            quiet();
            times.add(peer.pull(image)?);
            peer.forget(image)?;
        }
    }
    report.times(&format!("cold pull, {what}, to a mounted root: ours"), &mine);
    report.times("  of which on the processors", &seconds);
    let mut best = f64::NAN;
    for (peer, times) in peers.iter().zip(&theirs) {
        report.times(&format!("  {}", peer.name()), times);
        best = best.min(times.median_ms());
    }
    report.figure(figure, best / mine.median_ms(), "best peer/ours");
    Ok(())
}

fn warm(
    runtime: &tokio::runtime::Runtime,
    work: &Path,
    registry: &Registry,
    image: &str,
    report: &mut Report,
) -> Result<()> {
    let small = [Path::new("/usr/bin/true").to_path_buf()];
    let small = push(registry, work, "small", &[&small], report)?;
    let mut measure = |what: &str, image: &str, inodes, pause| -> Result<(f64, f64)> {
        let rounds = runtime.block_on(ours::warm_mounts(work, image, WARM_ROUNDS, inodes, pause))?;
        let (mut mounts, mut unmounts) = (Times::default(), Times::default());
        for (mount, unmount) in rounds {
            mounts.add(mount);
            unmounts.add(unmount);
        }
        report.times(&format!("warm mount, {what}"), &mounts);
        report.times("  and its unmount", &unmounts);
        Ok((mounts.median_ms(), unmounts.median_ms()))
    };
    let (at_once, now_and_then) = (Duration::ZERO, WARM_PAUSE);
    measure("image of one file, limits of bytes and inodes", &small, INODES, now_and_then)?;
    let (mount, unmount) = measure("8 layers, limits of bytes and inodes", image, INODES, now_and_then)?;
    let (in_a_row, _) = measure("the same, one after the other", image, INODES, at_once)?;
    let (bytes, _) = measure("8 layers, a limit of bytes", image, 0, now_and_then)?;
    let (bytes_in_a_row, _) = measure("the same, one after the other", image, 0, at_once)?;
    report.figure("rootfs_warm_mount_ms", mount, "ms");
    report.figure("rootfs_warm_unmount_ms", unmount, "ms");
    report.figure("rootfs_warm_mount_in_a_row_ms", in_a_row, "ms");
    report.figure("rootfs_warm_mount_bytes_ms", bytes, "ms");
    report.figure("rootfs_warm_mount_bytes_in_a_row_ms", bytes_in_a_row, "ms");
    Ok(())
}

/// In pairs, and the median of what each pair says: what else the machine does changes in minutes, not from one pull to
/// the next. Which of a pair is first alternates, for the first one's leavings are in the way of the second.
fn creates(ours: &Ours, image: &str, rounds: usize, report: &mut Report) -> Result<()> {
    let (mut one, mut many, mut ratios) = (Times::default(), Times::default(), Vec::new());
    let pull = |count| {
        quiet();
        let time = ours.pull(image, count)?.time;
        ours.forget()?;
        Ok::<_, anyhow::Error>(time)
    };
    // What is measured first finds a machine that has not been asked for anything yet.
    pull(1)?;
    let began = Instant::now();
    for round in 0..rounds * CREATE_ROUNDS {
        if enough(round, began) {
            break;
        }
        eprintln!("creates: pair {} of up to {}, {:?}", round + 1, rounds * CREATE_ROUNDS, began.elapsed());
        let (alone, together) = match round % 2 {
            0 => {
                let alone = pull(1)?;
                (alone, pull(CREATES)?)
            }
            _ => {
                let together = pull(CREATES)?;
                (pull(1)?, together)
            }
        };
        ratios.push(together.as_secs_f64() / alone.as_secs_f64());
        one.add(alone);
        many.add(together);
    }
    report.times("cold create, one", &one);
    report.times(&format!("cold creates, {CREATES} at once, until the last"), &many);
    ratios.sort_by(f64::total_cmp);
    let [low, median, high] = [1, 2, 3].map(|quarter| ratios[(ratios.len() - 1) * quarter / 4]);
    let pairs = ratios.len();
    report.note(&format!("  the second over the first, of {pairs} pairs: half lie in {low:.2}–{high:.2}"));
    report.figure("rootfs_20_creates_vs_1", median, "20/1");
    Ok(())
}

fn large(ours: &Ours, work: &Path, registry: &Registry, report: &mut Report) -> Result<()> {
    let directory = work.join("layout");
    let mut layout = Layout::new(&directory)?;
    layout.add_layer(|out| images::large(LARGE_FILES, LARGE_FILE_BYTES, out), 1)?;
    let image = registry.push(&layout.finish()?, "large")?;
    std::fs::remove_dir_all(directory)?;
    quiet();
    let outcome = ours.pull(&image, 1)?;
    ours.forget()?;
    let seconds = outcome.time.max(Duration::from_millis(1)).as_secs_f64();
    let gibibytes = (LARGE_FILES as u64 * LARGE_FILE_BYTES) >> 30;
    report.note(&format!("one layer of {gibibytes} GiB: {seconds:.1} s"));
    report.figure("rootfs_unpack_peak_mib", outcome.peak_mib, "MiB");
    Ok(())
}
