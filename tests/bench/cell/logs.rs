//! How much apps may say through a cell before something of it is lost: instances that say so many lines in each second, and a
//! forwarder that counts what comes.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::routing::post;
use bbs_models::RunAction;
use diego_base::serve::{Listen, Listener, serve};
use futures_util::StreamExt;
use tokio_util::sync::CancellationToken;

use crate::figures::Report;
use crate::instances::{give, of, remove, run, until_running};
use crate::machine::Machine;
use crate::number;

/// Instances that talk at the same time.
const TALKERS: u64 = 8;
/// For instances to run, before any of them talks.
const PREPARATION: Duration = Duration::from_secs(3);
const LINE: &[u8] =
    b"2026-01-01T00:00:00Z INFO one line of an application, as it is said many times in a second";
/// In which what is due is said at once.
const BEAT: Duration = Duration::from_millis(5);

/// In a container: so many lines in each second, then nothing more.
pub fn talk(lines_per_second: u64, seconds: u64) -> Result<()> {
    std::thread::sleep(PREPARATION);
    let (began, total, mut said) = (Instant::now(), lines_per_second * seconds, 0);
    let mut out = std::io::stdout().lock();
    while said < total {
        let due = (began.elapsed().as_secs_f64() * lines_per_second as f64) as u64;
        let lines = due.min(total) - said;
        out.write_all(&[LINE, b"\n"].concat().repeat(lines as usize))?;
        said += lines;
        std::thread::sleep(BEAT);
    }
    loop {
        std::thread::park();
    }
}

/// A forwarder that counts lines of apps.
pub struct Collector {
    pub address: SocketAddr,
    lines: Arc<AtomicU64>,
}

impl Collector {
    pub async fn start(stop: &CancellationToken) -> Result<Collector> {
        let (listen, address) = Listen::loopback()?;
        let lines = Arc::new(AtomicU64::new(0));
        let router = Router::new()
            .route("/loggregator.v2.Ingress/BatchSender", post(collect))
            .with_state(lines.clone());
        tokio::spawn(serve(Listener::bind(listen).await?, router, None, stop.clone()));
        Ok(Collector { address, lines })
    }

    fn lines(&self) -> u64 {
        self.lines.load(Ordering::Relaxed)
    }
}

/// Never answers: the stream has no end.
async fn collect(State(lines): State<Arc<AtomicU64>>, body: Body) {
    let mut body = body.into_data_stream();
    let mut waiting = Vec::new();
    while let Some(Ok(bytes)) = body.next().await {
        waiting.extend_from_slice(&bytes);
        let mut taken = 0;
        // A message of gRPC: whether it is compressed, its length, itself.
        while let Some([_, length @ ..]) = waiting[taken..].first_chunk::<5>() {
            let length = u32::from_be_bytes(*length) as usize;
            let Some(batch) = waiting.get(taken + 5..taken + 5 + length) else { break };
            lines.fetch_add(logs_in(batch), Ordering::Relaxed);
            taken += 5 + length;
        }
        waiting.drain(..taken);
    }
}

/// Envelopes of a batch in which an app says its line.
fn logs_in(mut batch: &[u8]) -> u64 {
    const BATCH: u64 = 1;
    const LOG: u64 = 4;
    const PAYLOAD: u64 = 1;
    let mut count = 0;
    while let Some((BATCH, mut envelope)) = field(&mut batch) {
        while let Some((number, mut content)) = field(&mut envelope) {
            count += u64::from(number == LOG && field(&mut content) == Some((PAYLOAD, LINE)));
        }
    }
    count
}

/// The next field of a message: its number, and its bytes if it has any.
fn field<'a>(message: &mut &'a [u8]) -> Option<(u64, &'a [u8])> {
    let key = varint(message)?;
    let content = match key & 7 {
        0 => {
            varint(message)?;
            &[]
        }
        2 => {
            let length = varint(message)? as usize;
            let (content, rest) = message.split_at_checked(length)?;
            *message = rest;
            content
        }
        _ => return None,
    };
    Some((key >> 3, content))
}

fn varint(message: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = message.split_first()?;
        *message = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

/// More and more, until something is lost.
pub async fn measure(machine: &Machine, report: &mut Report) -> Result<()> {
    let seconds = number("TALK_SECONDS", 5) as u64;
    let mut most = 0.0_f64;
    for rate in [50_000, 100_000, 150_000, 200_000, 250_000, 300_000, 400_000] {
        let said = rate * seconds;
        let (came, took) = at(machine, rate, seconds).await?;
        report.note(&format!(
            "{rate} lines a second for {seconds} s: {came} of {said} in {:.2} s",
            took.as_secs_f64()
        ));
        if came < said {
            break;
        }
        most = most.max(came as f64 / took.as_secs_f64());
    }
    report.figure("cell_log_lines_s", most, "lines/s");
    Ok(())
}

/// How many lines came, and from the first to the last in which time.
async fn at(machine: &Machine, rate: u64, seconds: u64) -> Result<(u64, Duration)> {
    let name = format!("talk-{rate}");
    let args = ["talk".into(), (rate / TALKERS).to_string(), seconds.to_string()].into();
    let lrp = of(&name, TALKERS as u32, RunAction { args, ..run("/bin/bench-cell") });
    let mut events = machine.bbs.subscribe_to_instance_events().await?;
    let before = machine.collector.lines();
    give(machine, &lrp).await?;
    until_running(&mut events, &name, TALKERS as usize).await?;
    let lines = || machine.collector.lines() - before;
    machine.until("the first line comes", async || anyhow::Ok(lines() > 0)).await?;
    let (first, mut last, mut came) = (Instant::now(), Instant::now(), lines());
    let quiet = Duration::from_secs(3);
    while came < rate * seconds && last.elapsed() < quiet {
        tokio::time::sleep(Duration::from_millis(10)).await;
        let now = lines();
        if now > came {
            (came, last) = (now, Instant::now());
        }
    }
    remove(machine, &name).await.context("talkers do not end")?;
    Ok((came, last - first))
}
