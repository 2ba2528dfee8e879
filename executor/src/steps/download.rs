//! Fetches an archive and unpacks it in the container.

use std::pin::pin;

use bbs_models::DownloadAction;
use tokio_util::sync::CancellationToken;

use super::transfer::Cancellable;
use super::{Ready, Result, Stage, StepError, Voice, byte_size};
use crate::cache::{FetchError, Fetched, Wanted};
use crate::containers::store::truncate;
use crate::depot::Mark;

/// Of an error line written to the application's logs.
const ERROR_LINE_BYTES_MAX: usize = 1024;
const TRUNCATED: &str = " (error truncated)";

/// Cut short by the end of the executor, it is done anew: what came of it is the same.
pub(super) async fn perform(
    action: &DownloadAction,
    source: &str,
    stage: &Stage,
    cancel: &CancellationToken,
    ready: &Ready,
) -> Result {
    ready.set();
    if let Some(Mark::Ended(result)) = stage.place.earlier() {
        return result.clone();
    }
    let result = download(action, source, stage, cancel).await;
    stage.place.note_after(Mark::Ended(result.clone())).await;
    result
}

async fn download(
    action: &DownloadAction,
    source: &str,
    stage: &Stage,
    cancel: &CancellationToken,
) -> Result {
    let voice = stage.voice(source);
    let artifact = action.artifact.as_str();
    if !artifact.is_empty() {
        voice.say(&format!("Downloading {artifact}...\n"));
    }
    let fetched = match fetch(action, stage, cancel).await {
        Ok(fetched) => fetched,
        Err(FetchError::Cancelled) => return Err(StepError::Cancelled),
        Err(error) => {
            tracing::error!(guid = stage.guid, error = %report(&error), "executor.download-step.fetch-failed");
            let named = if artifact.is_empty() {
                "Downloading failed".into()
            } else {
                format!("Downloading {artifact} failed")
            };
            return Err(failed(&voice, named));
        }
    };
    if let Err(error) = stream_in(action, &fetched, stage, cancel).await {
        if cancel.is_cancelled() {
            return Err(StepError::Cancelled);
        }
        tracing::error!(guid = stage.guid, %error, to = action.to, "executor.download-step.stream-in-failed");
        let object = if artifact.is_empty() { String::new() } else { format!("{artifact} ") };
        return Err(failed(&voice, format!("Copying {object}into the container failed: {error}")));
    }
    if !artifact.is_empty() {
        voice.say(&match fetched.downloaded_bytes {
            0 => format!("Downloaded {artifact}\n"),
            bytes => format!("Downloaded {artifact} ({})\n", byte_size(bytes)),
        });
    }
    Ok(())
}

async fn fetch(
    action: &DownloadAction,
    stage: &Stage,
    cancel: &CancellationToken,
) -> std::result::Result<Fetched, FetchError> {
    let wanted = Wanted {
        url: &action.from,
        cache_key: &action.cache_key,
        checksum_algorithm: &action.checksum_algorithm,
        checksum_value: &action.checksum_value,
    };
    stage.shared.cache.archive(&wanted, cancel).await
}

async fn stream_in(
    action: &DownloadAction,
    fetched: &Fetched,
    stage: &Stage,
    cancel: &CancellationToken,
) -> std::result::Result<(), String> {
    let tar = crate::cache::archive::tar_stream(fetched.path()).await.map_err(|error| error.to_string())?;
    let tar = Box::new(Cancellable::new(tar, cancel));
    let mut streaming = pin!(stage.shared.garden.stream_in(&stage.guid, &action.user, &action.to, tar));
    let result = tokio::select! {
        biased;
        result = &mut streaming => result,
        () = cancel.cancelled() => {
            // The stream fails now, and with it the call; one that does not notice is left to the container's end.
            let interval = stage.shared.config.graceful_shutdown_interval;
            match tokio::time::timeout(interval, streaming).await {
                Ok(result) => result,
                Err(_) => return Err("cancelled".to_string()),
            }
        }
    };
    result.map_err(|error| error.to_string())
}

fn failed(voice: &Voice, message: String) -> StepError {
    let mut line = format!("{message}\n");
    if line.len() > ERROR_LINE_BYTES_MAX {
        truncate(&mut line, ERROR_LINE_BYTES_MAX - TRUNCATED.len());
        line.push_str(TRUNCATED);
    }
    voice.complain(&line);
    StepError::Emittable(message)
}

/// An error with its causes.
pub(crate) fn report(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
