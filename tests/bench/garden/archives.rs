//! Archives in and out, through the API and by `tar` itself: into the same root, in turns. The ratios say how much of
//! tar's own speed is left, whatever else the machine does; `tar` reads its archive from memory.

use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use garden_client::{Garden, ProcessIo, ProcessSpec};
use tokio::io::AsyncReadExt;

use super::figures::{Report, Times};
use super::garden::{Room, Server};

const MB: f64 = 1e6;
const TRIES: usize = 7;
/// Tells the process by which a container is found on the host from all others; it sleeps so long.
const MARK: &str = "86400.4711";

struct Archive {
    what: &'static str,
    /// Between `garden_stream` and the rest of a figure's name.
    name: &'static str,
    files: usize,
    file_bytes: usize,
}

const ARCHIVES: [Archive; 3] = [
    Archive { what: "100 files of 1 MiB", name: "", files: 100, file_bytes: 1 << 20 },
    Archive { what: "one file of 100 MiB", name: "_big", files: 1, file_bytes: 100 << 20 },
    Archive { what: "5,000 files of 4 KiB", name: "_small", files: 5_000, file_bytes: 4 << 10 },
];

#[derive(Default)]
struct Taken {
    into: Times,
    out: Times,
    tar_into: Times,
    tar_out: Times,
}

pub async fn measure(server: &Server, report: &mut Report) -> Result<()> {
    server.create_with("archives", Room::Ample).await?;
    let sleeper =
        ProcessSpec { path: "/bin/sleep".into(), args: vec![MARK.into()], ..ProcessSpec::default() };
    server.api.run("archives", sleeper, ProcessIo::default()).await?;
    let root = root_of(MARK)?;
    for archive in &ARCHIVES {
        let bytes: Arc<[u8]> = archive.bytes()?.into();
        let taken = taken(server, "archives", &bytes, Some(&root)).await?;
        archive.report(bytes.len(), &taken, report);
    }
    server.destroy("archives").await?;
    // The pages of what is unpacked count as the container's memory, and there are more than it may have.
    server.create_with("narrow", Room::Narrow).await?;
    let bytes: Arc<[u8]> = ARCHIVES[0].bytes()?.into();
    let taken = taken(server, "narrow", &bytes, None).await?;
    server.destroy("narrow").await?;
    report.figure("garden_streamin_narrow_mb_s", speed(bytes.len(), &taken.into, 0), "MB/s");
    Ok(())
}

async fn taken(server: &Server, handle: &str, archive: &Arc<[u8]>, root: Option<&Path>) -> Result<Taken> {
    let mut taken = Taken::default();
    let file = tempfile::NamedTempFile::new_in("/dev/shm")?;
    std::fs::write(file.path(), archive)?;
    for _ in 0..TRIES {
        let began = Instant::now();
        let tar = Box::new(Cursor::new(archive.clone()));
        server.api.stream_in(handle, "root", "/tmp/in", tar).await?;
        taken.into.add(began.elapsed());
        taken.out.add(out(server, handle, archive.len()).await?);
        if let Some(root) = root {
            let directory = root.join("tmp/tar");
            std::fs::create_dir_all(&directory)?;
            taken.tar_into.add(tar_in(&directory, file.path())?);
            taken.tar_out.add(tar_out(&directory)?);
        }
    }
    Ok(taken)
}

async fn out(server: &Server, handle: &str, expected: usize) -> Result<Duration> {
    let began = Instant::now();
    let mut tar = server.api.stream_out(handle, "root", "/tmp/in/").await?;
    let (mut total, mut buffer) = (0, vec![0; 1 << 20]);
    loop {
        match tar.read(&mut buffer).await? {
            0 => break,
            length => total += length,
        }
    }
    if total < expected / 2 {
        bail!("an archive of {total} bytes came out");
    }
    Ok(began.elapsed())
}

fn tar_in(directory: &Path, archive: &Path) -> Result<Duration> {
    let began = Instant::now();
    let status = Command::new("tar").arg("-C").arg(directory).arg("-xf").arg(archive).status()?;
    if !status.success() {
        bail!("tar ended with {status}");
    }
    Ok(began.elapsed())
}

fn tar_out(directory: &Path) -> Result<Duration> {
    let began = Instant::now();
    let mut tar = Command::new("tar")
        .arg("-C")
        .arg(directory)
        .args(["-cf", "-", "."])
        .stdout(Stdio::piped())
        .spawn()?;
    let (mut stdout, mut buffer) = (tar.stdout.take().context("no pipe from tar")?, vec![0; 1 << 20]);
    while stdout.read(&mut buffer)? > 0 {}
    let status = tar.wait()?;
    if !status.success() {
        bail!("tar ended with {status}");
    }
    Ok(began.elapsed())
}

/// The root of the container in which this process runs, as the host sees it.
fn root_of(argument: &str) -> Result<PathBuf> {
    for entry in std::fs::read_dir("/proc")? {
        let directory = entry?.path();
        // Most are no processes, or gone.
        let Ok(line) = std::fs::read(directory.join("cmdline")) else { continue };
        if line.split(|byte| *byte == 0).any(|part| part == argument.as_bytes()) {
            return Ok(directory.join("root"));
        }
    }
    bail!("cannot find the process that marks a container")
}

fn speed(bytes: usize, times: &Times, percent: usize) -> f64 {
    bytes as f64 / MB / (times.percentile_ms(percent) / 1e3)
}

impl Archive {
    fn bytes(&self) -> Result<Vec<u8>> {
        let mut archive = tar::Builder::new(Vec::new());
        let content: Vec<u8> = (0..self.file_bytes).map(|byte| ((byte * 7919) >> 5) as u8).collect();
        for number in 0..self.files {
            let mut header = tar::Header::new_gnu();
            header.set_size(self.file_bytes as u64);
            header.set_mode(0o644);
            archive.append_data(&mut header, format!("{}/{number}", number / 100), &content[..])?;
        }
        Ok(archive.into_inner()?)
    }

    fn report(&self, bytes: usize, taken: &Taken, report: &mut Report) {
        let Archive { what, name, .. } = self;
        report.times(&format!("{what} in"), &taken.into);
        report.times("  by tar itself", &taken.tar_into);
        report.times(&format!("{what} out"), &taken.out);
        report.times("  by tar itself", &taken.tar_out);
        for (direction, ours, tar) in
            [("in", &taken.into, &taken.tar_into), ("out", &taken.out, &taken.tar_out)]
        {
            let figure = format!("garden_stream{direction}{name}");
            // The best: other work only ever adds. The ratio is of medians, which it slows alike.
            report.figure(&format!("{figure}_mb_s"), speed(bytes, ours, 0), "MB/s");
            report.figure(&format!("{figure}_vs_tar"), tar.median_ms() / ours.median_ms(), "tar/ours");
        }
    }
}
