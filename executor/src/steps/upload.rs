//! Sends one file of the container to a URL.

use std::path::Path;
use std::time::Duration;

use bbs_models::UploadAction;
use rootfs_ledger::Ledger;
use sha2::{Digest, Sha256};
use tokio_util::io::SyncIoBridge;
use tokio_util::sync::CancellationToken;

use super::download::report;
use super::transfer::Cancellable;
use super::{Ready, Result, Stage, StepError, Voice, byte_size};
use crate::depot::Mark;

const ATTEMPTS: u32 = 3;
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(600);

/// A file fetched from the container, and what is sent along with it.
struct Payload {
    file: tempfile::NamedTempFile,
    bytes: u64,
    md5: String,
    sha256: String,
}

#[derive(Debug, thiserror::Error)]
enum PayloadError {
    #[error("Failed to create temp file")]
    Create(#[source] std::io::Error),
    #[error("Failed to establish stream from container")]
    StreamOut(#[source] garden_client::Error),
    #[error("Failed to find first item in tar stream")]
    Tar(#[source] std::io::Error),
    #[error("Failed to copy stream contents into temp file")]
    Copy(#[source] std::io::Error),
    #[error("Failed to find room for the temp file")]
    Room(#[source] rootfs_ledger::Error),
}

#[derive(Debug, thiserror::Error)]
enum UploadError {
    #[error("cannot open the payload")]
    Open(#[source] std::io::Error),
    /// Without its URL, which may hold a secret.
    #[error("{0}")]
    Send(reqwest::Error),
    #[error("Upload failed: Status code {0}")]
    Status(u16),
}

/// Cut short by the end of the executor, it is done anew: what came of it is the same.
pub(super) async fn perform(
    action: &UploadAction,
    source: &str,
    stage: &Stage,
    cancel: &CancellationToken,
    ready: &Ready,
) -> Result {
    ready.set();
    if let Some(Mark::Ended(result)) = stage.place.earlier() {
        return result.clone();
    }
    let result = upload(action, source, stage, cancel).await;
    stage.place.note_after(Mark::Ended(result.clone())).await;
    result
}

async fn upload(action: &UploadAction, source: &str, stage: &Stage, cancel: &CancellationToken) -> Result {
    let voice = stage.voice(source);
    let artifact = action.artifact.as_str();
    let Some(permit) = cancel.run_until_cancelled(stage.shared.uploads.acquire()).await else {
        return Err(StepError::Cancelled);
    };
    let _permit = permit.map_err(|_| StepError::Cancelled)?;
    if !artifact.is_empty() {
        voice.say(&format!("Uploading {artifact}...\n"));
    }
    let url = reqwest::Url::parse(&action.to).map_err(|error| {
        complain(&voice, artifact, "Failed to parse URL");
        StepError::Plain(format!("parse upload URL: {error}"))
    })?;
    let payload = payload(action, stage, cancel).await.map_err(|error| {
        if cancel.is_cancelled() {
            return StepError::Cancelled;
        }
        tracing::error!(guid = stage.guid, error = %report(&error), "executor.upload-step.failed");
        StepError::Emittable(complain(&voice, artifact, &error.to_string()))
    })?;
    match send_with_retries(&payload, url, stage, cancel).await {
        None => return Err(StepError::Cancelled),
        Some(Err(error)) => {
            complain(&voice, artifact, "Failed to upload payload");
            return Err(StepError::Plain(error.to_string()));
        }
        Some(Ok(())) => {}
    }
    if !artifact.is_empty() {
        voice.say(&format!("Uploaded {artifact} ({})\n", byte_size(payload.bytes)));
    }
    Ok(())
}

fn complain(voice: &Voice, artifact: &str, message: &str) -> String {
    if artifact.is_empty() {
        return message.to_string();
    }
    let message = format!("{message} for {artifact}");
    voice.complain(&format!("{message}\n"));
    message
}

async fn payload(
    action: &UploadAction,
    stage: &Stage,
    cancel: &CancellationToken,
) -> std::result::Result<Payload, PayloadError> {
    let shared = &stage.shared;
    let streaming = shared.garden.stream_out(&stage.guid, &action.user, &action.from);
    let reader = match cancel.run_until_cancelled(streaming).await {
        Some(reader) => reader.map_err(PayloadError::StreamOut)?,
        None => return Err(PayloadError::Copy(std::io::Error::other("cancelled"))),
    };
    let tar = SyncIoBridge::new(Cancellable::new(reader, cancel));
    let dir = shared.config.work_dir.clone();
    let ledger = shared.ledger.clone();
    let copied = tokio::task::spawn_blocking(move || first_file(tar, &dir, &ledger)).await;
    copied.map_err(|error| PayloadError::Copy(std::io::Error::other(error)))?
}

fn first_file(
    tar: impl std::io::Read,
    dir: &Path,
    ledger: &Ledger,
) -> std::result::Result<Payload, PayloadError> {
    let mut archive = tar::Archive::new(tar);
    let first = archive.entries().map_err(PayloadError::Tar)?.next();
    let none = || std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
    let mut entry = first.ok_or_else(none).and_then(|entry| entry).map_err(PayloadError::Tar)?;
    let mut room = ledger.claim("an upload", entry.size()).map_err(PayloadError::Room)?;
    let mut file = tempfile::NamedTempFile::new_in(dir).map_err(PayloadError::Create)?;
    let (mut md5, mut sha256) = (md5::Context::new(), Sha256::new());
    let mut bytes = 0;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = std::io::Read::read(&mut entry, &mut buffer).map_err(PayloadError::Copy)?;
        if read == 0 {
            break;
        }
        room.take(read as u64).map_err(PayloadError::Room)?;
        md5.consume(&buffer[..read]);
        sha256.update(&buffer[..read]);
        std::io::Write::write_all(&mut file, &buffer[..read]).map_err(PayloadError::Copy)?;
        bytes += read as u64;
    }
    let base64 = |digest: &[u8]| crate::base64(digest);
    Ok(Payload { file, bytes, md5: base64(&md5.finalize().0), sha256: base64(&sha256.finalize()) })
}

/// `None`: cancelled.
async fn send_with_retries(
    payload: &Payload,
    url: reqwest::Url,
    stage: &Stage,
    cancel: &CancellationToken,
) -> Option<std::result::Result<(), UploadError>> {
    let mut attempt = 1;
    loop {
        let result =
            cancel.run_until_cancelled(send(payload, url.clone(), &stage.shared.config.http)).await?;
        match result {
            Err(error) if attempt < ATTEMPTS => {
                tracing::error!(guid = stage.guid, attempt, error = %report(&error), "executor.upload-step.failed-uploading");
                attempt += 1;
            }
            result => return Some(result),
        }
    }
}

async fn send(
    payload: &Payload,
    url: reqwest::Url,
    http: &reqwest::Client,
) -> std::result::Result<(), UploadError> {
    let file = tokio::fs::File::open(payload.file.path()).await.map_err(UploadError::Open)?;
    let body = reqwest::Body::wrap_stream(tokio_util::io::ReaderStream::new(file));
    let response = http
        .post(url)
        .timeout(ATTEMPT_TIMEOUT)
        .header("Content-Type", "application/octet-stream")
        .header("Content-Length", payload.bytes)
        .header("Content-MD5", &payload.md5)
        .header("Content-Digest", format!("sha-256=:{}:", payload.sha256))
        .body(body)
        .send()
        .await
        .map_err(|error| UploadError::Send(error.without_url()))?;
    match response.status().as_u16() {
        400.. => Err(UploadError::Status(response.status().as_u16())),
        _ => Ok(()),
    }
}
