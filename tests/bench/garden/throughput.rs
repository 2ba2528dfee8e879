//! Bytes through the API: a process's output, archives in and out.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Instant;

use anyhow::{Result, bail};
use garden_client::{Garden, ProcessIo, ProcessSpec};
use tokio::io::{AsyncReadExt, AsyncWrite};

use super::figures::Report;
use super::garden::Server;

const MB: f64 = 1e6;
const OUTPUT_BYTES: u64 = 2_000 << 20;
const ARCHIVE_FILES: usize = 100;
const FILE_BYTES: usize = 1 << 20;
const TRIES: usize = 5;

pub async fn measure(server: &Server, report: &mut Report) -> Result<()> {
    server.create("stream").await?;
    let mut stdout = 0_f64;
    let (mut into, mut out) = (0_f64, 0_f64);
    let archive = archive()?;
    for _ in 0..TRIES {
        stdout = stdout.max(output(server).await?);
        let began = Instant::now();
        let tar = Box::new(std::io::Cursor::new(archive.clone()));
        server.api.stream_in("stream", "root", "/tmp/in", tar).await?;
        into = into.max(archive.len() as f64 / MB / began.elapsed().as_secs_f64());
        out = out.max(archive_out(server).await?);
    }
    server.destroy("stream").await?;
    report.note(&format!(
        "best of {TRIES}: output {stdout:.0} MB/s, archive in {into:.0} MB/s, out {out:.0} MB/s"
    ));
    report.figure("garden_stdout_mb_s", stdout, "MB/s");
    report.figure("garden_streamin_mb_s", into, "MB/s");
    report.figure("garden_streamout_mb_s", out, "MB/s");
    Ok(())
}

/// Counts.
struct Sink(Arc<AtomicU64>);

impl AsyncWrite for Sink {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        self.0.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

async fn output(server: &Server) -> Result<f64> {
    let script = format!("dd if=/dev/zero bs=1048576 count={} 2>/dev/null", OUTPUT_BYTES >> 20);
    let spec =
        ProcessSpec { path: "/bin/sh".into(), args: vec!["-c".into(), script], ..ProcessSpec::default() };
    let counted = Arc::new(AtomicU64::new(0));
    let stdout = Some(Box::new(Sink(counted.clone())) as garden_client::Writer);
    let began = Instant::now();
    let process = server.api.run("stream", spec, ProcessIo { stdout, ..ProcessIo::default() }).await?;
    let status = process.wait().await?;
    let took = began.elapsed();
    let counted = counted.load(Ordering::Relaxed);
    if status != 0 || counted != OUTPUT_BYTES {
        bail!("a process wrote {OUTPUT_BYTES} bytes, {counted} came, and it ended with {status}");
    }
    Ok(OUTPUT_BYTES as f64 / MB / took.as_secs_f64())
}

async fn archive_out(server: &Server) -> Result<f64> {
    let began = Instant::now();
    let mut tar = server.api.stream_out("stream", "root", "/tmp/in/").await?;
    let (mut total, mut buffer) = (0, vec![0; 1 << 20]);
    loop {
        match tar.read(&mut buffer).await? {
            0 => break,
            length => total += length,
        }
    }
    if total < ARCHIVE_FILES * FILE_BYTES {
        bail!("an archive of {total} bytes came out");
    }
    Ok(total as f64 / MB / began.elapsed().as_secs_f64())
}

fn archive() -> Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    let content: Vec<u8> = (0..FILE_BYTES).map(|byte| ((byte * 7919) >> 5) as u8).collect();
    for number in 0..ARCHIVE_FILES {
        let mut header = tar::Header::new_gnu();
        header.set_size(FILE_BYTES as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, format!("file-{number}"), &content[..])?;
    }
    Ok(archive.into_inner()?)
}
