//! One declarative check: a connection or a request to a port of the container, again and again.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rand::Rng;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::http;
use super::rounds::Doubt;
use super::vantage::Way;
use crate::steps::{Ready, Result, Stage, StepError, go_duration};
use crate::{Occurrence, Protocol};

/// The first pause between two startup checks; it doubles up to the interval.
const STARTUP_PAUSE_MIN: Duration = Duration::from_millis(10);

const LIVENESS: &str = "Liveness";

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Check {
    pub probe: Probe,
    pub phase: Phase,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Probe {
    Tcp { port: u16, timeout: Duration },
    Http { port: u16, path: String, timeout: Duration },
}

impl Probe {
    fn protocol(&self) -> Protocol {
        match self {
            Probe::Tcp { .. } => Protocol::Tcp,
            Probe::Http { .. } => Protocol::Http,
        }
    }
}

/// What a check waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Until it passes; fails when it has not in time.
    Startup { interval: Duration, timeout: Option<Duration> },
    /// Until it fails.
    Liveness { interval: Duration },
    /// Until it passes, however long that takes.
    UntilReady { interval: Duration },
    /// Until it fails.
    Ready { interval: Duration },
}

pub(crate) async fn check(check: &Check, stage: &Stage, cancel: &CancellationToken, ready: &Ready) -> Result {
    ready.set();
    let checking = async {
        match &check.phase {
            Phase::Startup { interval, timeout } => start_up(&check.probe, stage, *interval, *timeout).await,
            Phase::UntilReady { interval } => start_up(&check.probe, stage, *interval, None).await,
            Phase::Liveness { interval } => keep_up(&check.probe, stage, *interval, LIVENESS).await,
            Phase::Ready { interval } => keep_up(&check.probe, stage, *interval, "Readiness").await,
        }
    };
    // A probe leaves nothing behind: it may be dropped.
    cancel.run_until_cancelled(checking).await.unwrap_or(Err(StepError::Cancelled))
}

async fn start_up(probe: &Probe, stage: &Stage, interval: Duration, timeout: Option<Duration>) -> Result {
    let deadline = timeout.map(|timeout| Instant::now() + timeout);
    let mut pause = STARTUP_PAUSE_MIN.min(interval);
    let mut last_error = "no check was completed".to_string();
    let mut attempts = 0_u32;
    let expired = |attempts: u32, error: &str| {
        let timeout = go_duration(timeout.unwrap_or_default());
        Err(StepError::Emittable(format!(
            "Timed out after {timeout} ({attempts} attempts) waiting for startup check to succeed: {error}"
        )))
    };
    loop {
        attempts += 1;
        match until(deadline, once(probe, stage)).await {
            Some(Ok(())) => return Ok(()),
            Some(Err(error)) => last_error = error,
            None => return expired(attempts, &last_error),
        }
        if until(deadline, tokio::time::sleep(pause)).await.is_none() {
            return expired(attempts, &last_error);
        }
        pause = (pause * 2).min(interval);
    }
}

async fn until<T>(deadline: Option<Instant>, work: impl Future<Output = T>) -> Option<T> {
    match deadline {
        Some(deadline) => tokio::time::timeout_at(deadline, work).await.ok(),
        None => Some(work.await),
    }
}

async fn keep_up(probe: &Probe, stage: &Stage, interval: Duration, name: &str) -> Result {
    // The first pause is of any length up to the interval, so that many instances do not beat together.
    let mut pause = interval.mul_f64(rand::rng().random_range(0.0..=1.0));
    loop {
        if let Err(error) = until_in_doubt(probe, stage, pause, interval).await {
            if name == LIVENESS {
                stage.tell(Occurrence::LivenessCheckFailed(probe.protocol()));
            }
            return Err(StepError::Emittable(format!("{name} check unsuccessful: {error}")));
        }
        pause = interval;
    }
}

/// One check or many, all but the last of which have passed.
async fn until_in_doubt(
    probe: &Probe,
    stage: &Stage,
    first: Duration,
    interval: Duration,
) -> std::result::Result<(), String> {
    if let (Probe::Tcp { port, timeout }, Some(ip)) = (probe, stage.internal_ip)
        && let Some(network) = stage.vantage.network(&stage.shared, &stage.guid).await
    {
        let to = SocketAddr::new(ip, *port);
        match stage.shared.rounds.until_in_doubt(network, to, first, interval).await {
            Doubt::Failed(error) => return tcp(to, *timeout, async { Err(error) }).await,
            Doubt::UnderWay(socket) => return tcp(to, *timeout, connected(socket)).await,
            Doubt::NotMade => return once(probe, stage).await,
        }
    }
    tokio::time::sleep(first).await;
    once(probe, stage).await
}

async fn connected(socket: OwnedFd) -> io::Result<()> {
    let stream = TcpStream::from_std(socket.into())?;
    stream.writable().await?;
    stream.take_error()?.map_or(Ok(()), Err)
}

/// One check, when its turn has come. What this cell needs to begin it is not counted against the container.
async fn once(probe: &Probe, stage: &Stage) -> std::result::Result<(), String> {
    let Some(ip) = stage.internal_ip else { return Err("failure to find suitable interface".to_string()) };
    let _permit =
        stage.vantage.at_once.acquire().await.map_err(|_| "checks have been stopped".to_string())?;
    let mut way = Way::prepare(stage, ip).await;
    match probe {
        Probe::Tcp { port, timeout } => {
            let to = SocketAddr::new(ip, *port);
            tcp(to, *timeout, async { way.connect(to).await.map(drop) }).await
        }
        Probe::Http { port, path, timeout } => http(SocketAddr::new(ip, *port), path, *timeout, way).await,
    }
}

async fn http(
    to: SocketAddr,
    path: &str,
    timeout: Duration,
    way: Way<'_>,
) -> std::result::Result<(), String> {
    let at = format!("failed to make HTTP request to '{path}' on port {}", to.port());
    let started = Instant::now();
    match timeout_at(started + timeout, http::get(to, path, way)).await {
        Ok(Ok(answer)) => {
            let (status, took) = (answer.status(), started.elapsed().as_millis());
            // An application that never comes to the end of its answer has answered.
            let _ = timeout_at(started + timeout, answer.drain()).await;
            if status == 200 {
                Ok(())
            } else {
                Err(format!("{at}: received status code {status} in {took}ms"))
            }
        }
        Ok(Err(_)) => Err(format!("{at}: connection refused")),
        Err(_) => Err(format!("{at}: timed out after {:.2} seconds", timeout.as_secs_f64())),
    }
}

async fn tcp(
    to: SocketAddr,
    timeout: Duration,
    connecting: impl Future<Output = io::Result<()>>,
) -> std::result::Result<(), String> {
    match tokio::time::timeout(timeout, connecting).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => {
            let cause = cause(&error);
            Err(format!("failed to make TCP connection to {to}: dial tcp {to}: connect: {cause}"))
        }
        Err(_) => Err(format!(
            "failed to make TCP connection to {to}: timed out after {:.2} seconds",
            timeout.as_secs_f64()
        )),
    }
}

fn cause(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".to_string(),
        io::ErrorKind::HostUnreachable => "no route to host".to_string(),
        io::ErrorKind::NetworkUnreachable => "network is unreachable".to_string(),
        _ => error.to_string(),
    }
}
