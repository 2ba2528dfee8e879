//! Bytes through the API: a process's output.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Instant;

use anyhow::{Result, bail};
use garden_client::{Garden, ProcessIo, ProcessSpec};
use tokio::io::AsyncWrite;

use super::figures::Report;
use super::garden::Server;

const MB: f64 = 1e6;
const OUTPUT_BYTES: u64 = 2_000 << 20;
const TRIES: usize = 5;

pub async fn measure(server: &Server, report: &mut Report) -> Result<()> {
    server.create("stream").await?;
    let mut stdout = 0_f64;
    for _ in 0..TRIES {
        stdout = stdout.max(output(server).await?);
    }
    server.destroy("stream").await?;
    report.note(&format!("best of {TRIES}: output {stdout:.0} MB/s"));
    report.figure("garden_stdout_mb_s", stdout, "MB/s");
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
