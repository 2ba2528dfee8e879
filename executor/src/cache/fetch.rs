//! One download over HTTP, with retries, into a temporary file.

use std::path::Path;
use std::time::Duration;

use futures_util::StreamExt;
use rand::Rng;
use rootfs_ledger::{Claim, Ledger};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;

use super::checksum::Checksum;
use super::{FetchError, Wanted, file_error};
use crate::steps::report;

const ATTEMPTS: u32 = 4;
/// Of one attempt, from the request to the last byte.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(600);
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
const RETRY_PAUSE_MIN: Duration = Duration::from_millis(500);
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(5);
const RETRY_JITTER_MAX: Duration = Duration::from_millis(200);

/// What a server tells a version of a thing by.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Validators {
    pub etag: String,
    pub last_modified: String,
}

impl Validators {
    pub fn any(&self) -> bool {
        !self.etag.is_empty() || !self.last_modified.is_empty()
    }
}

pub(crate) struct Download {
    pub file: tempfile::NamedTempFile,
    pub bytes: u64,
}

pub(crate) enum Answer {
    NotModified,
    New(Download, Validators),
}

/// May be dropped at any point: the temporary file goes with it.
pub(crate) async fn download(
    http: &reqwest::Client,
    wanted: &Wanted<'_>,
    validators: &Validators,
    dir: &Path,
    ledger: &Ledger,
) -> Result<Answer, FetchError> {
    let url = reqwest::Url::parse(wanted.url).map_err(FetchError::Url)?;
    let mut attempt = 0;
    loop {
        match attempt_once(http, url.clone(), wanted, validators, dir, ledger).await {
            Err(error) if attempt + 1 < ATTEMPTS && is_worth_another_try(&error) => {
                tracing::info!(attempt, host = url.host_str(), error = %report(&error), "executor.downloader.retrying");
                tokio::time::sleep(pause(attempt)).await;
                attempt += 1;
            }
            result => return result,
        }
    }
}

fn is_worth_another_try(error: &FetchError) -> bool {
    match error {
        FetchError::Request(_) | FetchError::Idle(_) => true,
        FetchError::Status(status) => *status >= 500 || matches!(status, 408 | 429),
        _ => false,
    }
}

fn pause(attempt: u32) -> Duration {
    let jitter = rand::rng().random_range(Duration::ZERO..RETRY_JITTER_MAX);
    (RETRY_PAUSE_MIN * 2_u32.pow(attempt)).min(RETRY_PAUSE_MAX) + jitter
}

async fn attempt_once(
    http: &reqwest::Client,
    url: reqwest::Url,
    wanted: &Wanted<'_>,
    validators: &Validators,
    dir: &Path,
    ledger: &Ledger,
) -> Result<Answer, FetchError> {
    let checksum = Checksum::new(wanted.checksum_algorithm, wanted.checksum_value)?;
    let mut request = http.get(url).timeout(ATTEMPT_TIMEOUT);
    if !validators.etag.is_empty() {
        request = request.header("If-None-Match", &validators.etag);
    }
    if !validators.last_modified.is_empty() {
        request = request.header("If-Modified-Since", &validators.last_modified);
    }
    let response = within_idle_time(request.send()).await?.map_err(without_url)?;
    match response.status().as_u16() {
        200 => {}
        304 => return Ok(Answer::NotModified),
        status => return Err(FetchError::Status(status)),
    }
    let header = |name| {
        let value = response.headers().get(name).and_then(|value| value.to_str().ok());
        value.unwrap_or_default().to_string()
    };
    let validators = Validators { etag: header("etag"), last_modified: header("last-modified") };
    let download = receive(response, checksum, dir, ledger).await?;
    Ok(Answer::New(download, validators))
}

async fn receive(
    response: reqwest::Response,
    mut checksum: Checksum,
    dir: &Path,
    ledger: &Ledger,
) -> Result<Download, FetchError> {
    let mut room = claim(ledger, response.content_length().unwrap_or(0)).await?;
    let temp = tempfile::Builder::new().prefix("download-").tempfile_in(dir);
    let temp = temp.map_err(|source| file_error("create a download in", dir, source))?;
    let clone = temp.reopen().map_err(|source| file_error("open", temp.path(), source))?;
    let mut file = tokio::fs::File::from_std(clone);
    let mut bytes = 0;
    let mut body = response.bytes_stream();
    while let Some(chunk) = within_idle_time(body.next()).await? {
        let chunk = chunk.map_err(without_url)?;
        checksum.update(&chunk);
        bytes += chunk.len() as u64;
        room = take(room, chunk.len() as u64).await?;
        file.write_all(&chunk).await.map_err(|source| file_error("write", temp.path(), source))?;
    }
    file.flush().await.map_err(|source| file_error("write", temp.path(), source))?;
    checksum.verify()?;
    Ok(Download { file: temp, bytes })
}

/// Room for all of it where its size is told; otherwise it is claimed as it comes.
async fn claim(ledger: &Ledger, bytes: u64) -> Result<Claim, FetchError> {
    let ledger = ledger.clone();
    let claiming = tokio::task::spawn_blocking(move || ledger.claim("a download", bytes));
    Ok(claiming.await.map_err(|_| FetchError::Cancelled)??)
}

/// Only what was not claimed yet may have to wait for others to go.
async fn take(mut room: Claim, bytes: u64) -> Result<Claim, FetchError> {
    if room.covers(bytes) {
        room.take(bytes)?;
        return Ok(room);
    }
    let taking = tokio::task::spawn_blocking(move || room.take(bytes).map(|()| room));
    Ok(taking.await.map_err(|_| FetchError::Cancelled)??)
}

async fn within_idle_time<T>(waiting: impl Future<Output = T>) -> Result<T, FetchError> {
    let timeout = tokio::time::timeout(IDLE_TIMEOUT, waiting).await;
    timeout.map_err(|_| FetchError::Idle(IDLE_TIMEOUT.as_secs()))
}

/// URLs of downloads may hold secrets.
fn without_url(error: reqwest::Error) -> FetchError {
    FetchError::Request(error.without_url())
}
