//! Pinning an image: the registry cache resolves a reference to a digest and fetches all of it, and says how far it is.

use anyhow::{Context, anyhow};
use futures_util::StreamExt;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

use super::Failure;
use super::recipe::ImageConfig;
use super::target::Target;

/// Bytes of one line of the cache's answer.
const LINE_BYTES_MAX: usize = 1 << 20;

#[derive(Debug, Deserialize)]
pub struct Pinned {
    /// What cells are given: the image in the cache, by digest.
    pub image: String,
    pub config: ImageConfig,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Progress { layer: String, done: u64, total: u64 },
    Failed { error: String },
    Pinned(Box<Pinned>),
}

#[derive(Serialize)]
struct Resolve<'a> {
    image: &'a str,
    username: &'a str,
    password: &'a str,
}

/// `credentials` is `user:password`. What is on the cells already (`oci:`, `preloaded:`, a path) is taken as it is; then
/// nothing is known of it, and `command` says whether one was given.
pub async fn pin(
    target: &Target,
    image: &str,
    credentials: Option<&str>,
    command: bool,
    quiet: bool,
) -> Result<Pinned, Failure> {
    if is_local(image) {
        let pinned = Pinned { image: image.into(), config: ImageConfig::default() };
        let advice = format!("say which command to run in {image}: what is in it is not looked at");
        return command.then_some(pinned).ok_or(Failure::Unsuccessful(advice));
    }
    let (username, password) = credentials.and_then(|both| both.split_once(':')).unwrap_or_default();
    let url = format!("{}/v1/resolve", target.endpoints.registry_cache_url);
    let image = reference(image);
    let request = target.http.post(&url).json(&Resolve { image: &image, username, password });
    let answer = request.send().await.context("cannot reach the registry cache")?;
    let mut bars = Bars::new(quiet);
    let mut chunks = answer.bytes_stream();
    let mut pending = Vec::new();
    while let Some(chunk) = chunks.next().await {
        pending.extend_from_slice(&chunk.context("the registry cache broke off")?);
        while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = pending.drain(..=end).collect();
            match serde_json::from_slice(&line).context("cannot read the registry cache's answer")? {
                Line::Progress { layer, done, total } => bars.show(&layer, done, total),
                Line::Failed { error } => return Err(Failure::Unsuccessful(named(&image, error))),
                Line::Pinned(pinned) => return Ok(*pinned),
            }
        }
        if pending.len() > LINE_BYTES_MAX {
            return Err(anyhow!("the registry cache answers with a line that never ends").into());
        }
    }
    Err(anyhow!("the registry cache ended without an answer").into())
}

pub fn is_local(image: &str) -> bool {
    ["oci:", "preloaded:", "/"].iter().any(|scheme| image.starts_with(scheme))
}

/// The cache's reason, which may speak of a layer only.
fn named(image: &str, reason: String) -> String {
    let image = image.trim_start_matches("docker://").trim_start_matches('/');
    if reason.contains(image) { reason } else { format!("cannot fetch image {image}: {reason}") }
}

/// An image as people write it, with its scheme: `host:5000/team/web:1`, or `web:1` of the default registry.
pub fn reference(image: &str) -> String {
    let first = image.split('/').next().unwrap_or_default();
    let names_host = image.contains('/') && (first.contains(['.', ':']) || first == "localhost");
    match (image.contains("://"), names_host) {
        (true, _) => image.into(),
        (false, true) => format!("docker://{image}"),
        (false, false) => format!("docker:///{image}"),
    }
}

/// A progress bar a layer, on a terminal.
pub struct Bars {
    all: Option<MultiProgress>,
    by_layer: BTreeMap<String, ProgressBar>,
}

impl Drop for Bars {
    /// What is said next begins on a line of its own.
    fn drop(&mut self) {
        if let Some(all) = &self.all {
            let _ = all.clear();
        }
    }
}

impl Bars {
    pub fn new(quiet: bool) -> Bars {
        Bars { all: (!quiet).then(MultiProgress::new), by_layer: BTreeMap::new() }
    }

    pub fn show(&mut self, layer: &str, done: u64, total: u64) {
        let Some(all) = &self.all else { return };
        let bar = self.by_layer.entry(layer.to_owned()).or_insert_with(|| {
            let bar = all.add(ProgressBar::new(total));
            if let Ok(style) = ProgressStyle::with_template("{prefix:.dim} {wide_bar} {bytes}/{total_bytes}")
            {
                bar.set_style(style);
            }
            let short: String = layer.trim_start_matches("sha256:").chars().take(12).collect();
            bar.set_prefix(short);
            bar
        });
        bar.set_position(done);
        if done >= total {
            bar.finish();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_may_be_written_without_its_scheme() {
        for (written, meant) in [
            ("127.0.0.1:5000/web", "docker://127.0.0.1:5000/web"),
            ("localhost/web:1", "docker://localhost/web:1"),
            ("registry.example/team/web@sha256:00", "docker://registry.example/team/web@sha256:00"),
            ("web:1", "docker:///web:1"),
            ("team/web", "docker:///team/web"),
            ("docker:///web#1", "docker:///web#1"),
        ] {
            assert_eq!(reference(written), meant);
        }
    }
}
