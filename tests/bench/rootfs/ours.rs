//! Our side, in a process of its own for each measurement: it opens an empty store, as a cell has one from its start,
//! and says so; told to go on it pulls, mounts, and says so at that moment. What it costs to go away again is not
//! counted, as it is not for the others.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rootfs::{BaseIds, Config, DiskLimit, DiskScope, ImageRef, Store};

/// The argument by which this program knows that it is the process to be measured.
pub const MEASURED: &str = "--measured";

/// Of the clock that the kernel shows to programs.
const TICKS_PER_SECOND: f64 = 100.0;

/// A store to be filled.
pub struct Ours {
    directory: PathBuf,
}

/// What a measured process says of itself.
#[derive(Debug, Clone, Copy)]
pub struct Outcome {
    pub time: Duration,
    pub peak_mib: f64,
    /// Of the processors, for this process and in the kernel for it.
    pub seconds: f64,
}

impl Ours {
    pub fn new(work: &Path) -> Ours {
        Ours { directory: work.join("ours") }
    }

    /// Pulls and mounts into an empty store, `creates` times at once.
    pub fn pull(&self, image: &str, creates: usize) -> Result<Outcome> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg(MEASURED)
            .arg(&self.directory)
            .args([format!("docker://{image}"), creates.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines();
        let ready = lines.next().transpose()?;
        let began = Instant::now();
        writeln!(child.stdin.take().context("no input")?, "go on")?;
        let line = lines.next().transpose()?.unwrap_or_default();
        let time = began.elapsed();
        let status = child.wait()?;
        let numbers: Vec<f64> = line.split(' ').filter_map(|word| word.parse().ok()).collect();
        match numbers[..] {
            [peak_mib, seconds] if ready.is_some() && status.success() => {
                Ok(Outcome { time, peak_mib, seconds })
            }
            _ => bail!("our pull of {image} failed: {status}"),
        }
    }

    pub fn forget(&self) -> Result<()> {
        match std::fs::remove_dir_all(&self.directory) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }
}

/// The measured process.
pub async fn measured(mut arguments: impl Iterator<Item = String>) -> Result<()> {
    let mut next = || arguments.next().context("an argument is missing");
    let (directory, image, creates) = (next()?, next()?.parse::<ImageRef>()?, next()?.parse::<usize>()?);
    let store = store(Path::new(&directory))?;
    println!("ready");
    std::io::stdin().read_line(&mut String::new())?;
    let before = processor_seconds();
    let creating = (0..creates).map(|number| {
        let (store, image) = (store.clone(), image.clone());
        tokio::spawn(async move {
            let pulled = store.pull(&image, None, &|_| {}).await?;
            let mounting = move || mount(&store, &format!("h{number}"), &pulled, super::INODES);
            tokio::task::spawn_blocking(mounting).await?
        })
    });
    let creating: Vec<_> = creating.collect();
    let mut mounts = Vec::new();
    for created in creating {
        mounts.push(created.await??);
    }
    println!("mounted {:.1} {:.2}", peak_mib()?, processor_seconds() - before);
    std::io::stdout().flush()?;
    // What it made goes with it, and its directory with who started it: to wait until all of it is on the disk first, as a
    // store does that is closed, takes longer than what is measured.
    std::process::exit(0)
}

fn store(directory: &Path) -> Result<Store> {
    let mut config = Config::default();
    config.quota.image_bytes = Some(4 << 30);
    Ok(Store::open(directory, config)?)
}

fn mount(store: &Store, handle: &str, image: &rootfs::Image, inodes: u64) -> Result<rootfs::RootMount> {
    let limit = DiskLimit { bytes: 64 << 20, inodes, scope: DiskScope::Exclusive };
    Ok(store.mount(handle, image, None, BaseIds::default(), limit)?)
}

/// How long a root of an image that is here takes to make and to take away, each of `rounds` times.
pub async fn warm_mounts(
    work: &Path,
    image: &str,
    rounds: usize,
    inodes: u64,
    pause: Duration,
) -> Result<Vec<(Duration, Duration)>> {
    let directory = work.join("warm");
    let store = store(&directory)?;
    let image: ImageRef = format!("docker://{image}").parse()?;
    store.pull(&image, None, &|_| {}).await?;
    let mut times = Vec::new();
    for round in 0..rounds {
        let handle = format!("warm-{round}");
        // As a create does it: the image is looked up, too.
        let pulled = store.pull(&image, None, &|_| {}).await?;
        let began = Instant::now();
        let mounted = mount(&store, &handle, &pulled, inodes)?;
        let mounting = began.elapsed();
        drop(mounted);
        let began = Instant::now();
        store.unmount(&handle)?;
        times.push((mounting, began.elapsed()));
        tokio::time::sleep(pause).await;
    }
    store.settle();
    drop(store);
    std::fs::remove_dir_all(directory)?;
    Ok(times)
}

fn processor_seconds() -> f64 {
    let ticks = || -> Option<f64> {
        let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
        // The name may hold anything; what follows it does not.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        Some(fields.get(11)?.parse::<f64>().ok()? + fields.get(12)?.parse::<f64>().ok()?)
    };
    ticks().unwrap_or(f64::NAN) / TICKS_PER_SECOND
}

/// The most that was ever resident of this process.
fn peak_mib() -> Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib / 1024.0)
}
