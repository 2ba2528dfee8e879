//! Root file systems made by a program: how other stores of images join in.
//!
//! ```text
//! PROGRAM EXTRA… create [--disk-limit-size-bytes N [--exclude-image-from-quota]] [--username U] [--password P] ROOTFS HANDLE
//! PROGRAM EXTRA… delete HANDLE      stats HANDLE      capacity
//! ```
//! `create` answers with the part of an OCI runtime spec that it decides: `root.path`, `mounts`, `process.env`. `delete`
//! is called for every container for which `create` was, whatever became of that, and again until it succeeds.

use std::path::{Path, PathBuf};
use std::time::Duration;

use garden_client::{DiskLimits, DiskStat, ImageRef};
use rootfs::digest::Digest;
use rootfs::image::{Preloaded, RemoteLayer};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{Failure, Output, Program};

/// A creation may download an image of many gigabytes.
pub const DEADLINE: Duration = Duration::from_secs(30 * 60);
/// Everything else is about what is there already.
const SHORT_DEADLINE: Duration = Duration::from_secs(60);
/// Lines a program says beside its answer that are told on.
const LINES_MAX: usize = 200;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("running image plugin {action}: {source}")]
    Failed { action: &'static str, source: Failure },
    #[error("parsing image plugin {action}: {source}")]
    Answer { action: &'static str, source: serde_json::Error },
    #[error("image plugin create: it names no root")]
    NoRoot,
    #[error("cannot write an image of two layers to {}: {source}", path.display())]
    Layout { path: PathBuf, source: std::io::Error },
}

type Result<T> = std::result::Result<T, Error>;

#[derive(Debug, Clone)]
pub struct ImagePlugin {
    pub program: Program,
}

/// A root that a plugin has made.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Made {
    pub root: PathBuf,
    pub mounts: Vec<Mount>,
    pub env: Vec<String>,
}

/// As in an OCI runtime spec; to be mounted in the root.
#[derive(Debug, Default, Clone, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Mount {
    pub destination: String,
    #[serde(rename = "type")]
    pub kind: String,
    pub source: String,
    pub options: Vec<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Spec {
    root: Option<Root>,
    mounts: Option<Vec<Mount>>,
    process: Option<Process>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Root {
    path: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Process {
    env: Option<Vec<String>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Stats {
    disk_usage: DiskUsage,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct DiskUsage {
    total_bytes_used: u64,
    exclusive_bytes_used: u64,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Capacity {
    capacity: u64,
}

impl ImagePlugin {
    /// Once `cancelled` is, nothing of the program runs any more when this returns.
    pub async fn create(
        &self,
        handle: &str,
        image: &ImageRef,
        disk: DiskLimits,
        cancelled: &CancellationToken,
    ) -> Result<Made> {
        let arguments = create_arguments(handle, image, disk);
        let spec: Spec = self.ask("create", &arguments, self.program.deadline, cancelled).await?;
        let root = spec.root.map(|root| root.path).filter(|path| !path.is_empty()).ok_or(Error::NoRoot)?;
        Ok(Made {
            root: root.into(),
            mounts: spec.mounts.unwrap_or_default(),
            env: spec.process.and_then(|process| process.env).unwrap_or_default(),
        })
    }

    /// Also where `create` failed.
    pub async fn delete(&self, handle: &str) -> Result<()> {
        self.run("delete", &[handle.into()], SHORT_DEADLINE, &CancellationToken::new()).await.map(drop)
    }

    pub async fn stats(&self, handle: &str) -> Result<DiskStat> {
        let Stats { disk_usage: DiskUsage { total_bytes_used, exclusive_bytes_used } } =
            self.ask("stats", &[handle.into()], SHORT_DEADLINE, &CancellationToken::new()).await?;
        Ok(DiskStat { total_bytes_used, exclusive_bytes_used, ..DiskStat::default() })
    }

    /// Bytes that there are for images and what containers write.
    pub async fn capacity(&self) -> Result<u64> {
        let Capacity { capacity } =
            self.ask("capacity", &[], SHORT_DEADLINE, &CancellationToken::new()).await?;
        Ok(capacity)
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        action: &'static str,
        arguments: &[String],
        deadline: Duration,
        cancelled: &CancellationToken,
    ) -> Result<T> {
        let output = self.run(action, arguments, deadline, cancelled).await?;
        serde_json::from_slice(&output.stdout).map_err(|source| Error::Answer { action, source })
    }

    async fn run(
        &self,
        action: &'static str,
        arguments: &[String],
        deadline: Duration,
        cancelled: &CancellationToken,
    ) -> Result<Output> {
        let program = Program { deadline: deadline.min(self.program.deadline), ..self.program.clone() };
        let arguments: Vec<&str> =
            std::iter::once(action).chain(arguments.iter().map(String::as_str)).collect();
        let output = program.run_unless(&arguments, b"", cancelled).await;
        let output = output.map_err(|source| Error::Failed { action, source })?;
        for line in output.stderr.lines().take(LINES_MAX) {
            tracing::debug!(action, line, "image-plugin-result");
        }
        Ok(output)
    }
}

fn create_arguments(handle: &str, image: &ImageRef, disk: DiskLimits) -> Vec<String> {
    let mut arguments = Vec::new();
    let mut flag = |name: &str, value: &str| arguments.extend([name.to_owned(), value.to_owned()]);
    if disk.byte_hard > 0 {
        flag("--disk-limit-size-bytes", &disk.byte_hard.to_string());
    }
    if !image.username.is_empty() {
        flag("--username", &image.username);
    }
    if !image.password.is_empty() {
        flag("--password", &image.password);
    }
    if disk.byte_hard > 0 && disk.scope != 0 {
        arguments.push("--exclude-image-from-quota".into());
    }
    // A tag stands behind `#` in garden's names of images.
    arguments.extend([image.uri.replacen('#', ":", 1), handle.to_owned()]);
    arguments
}

/// A base that is on this machine with one layer over it, as the OCI layout that plugins know to read. Returns its name.
pub fn write_layout(directory: &Path, base: &Preloaded, layer: &RemoteLayer) -> Result<String> {
    let failed = |source| Error::Layout { path: directory.into(), source };
    let write = || -> std::io::Result<()> {
        let Preloaded::Path(base) = base else { return Err(std::io::ErrorKind::InvalidInput.into()) };
        let blobs = directory.join("blobs/sha256");
        std::fs::create_dir_all(&blobs)?;
        let put = |value: serde_json::Value| -> std::io::Result<(Digest, usize)> {
            let text = value.to_string();
            let digest = Digest::of(text.as_bytes());
            std::fs::write(blobs.join(digest.hex()), &text)?;
            Ok((digest, text.len()))
        };
        let changed = std::fs::metadata(base)?.modified()?.duration_since(std::time::UNIX_EPOCH);
        let name = format!("{}-{}", base.display(), changed.unwrap_or_default().as_nanos());
        let base_digest = Digest::of(name.as_bytes());
        let link = blobs.join(base_digest.hex());
        if std::fs::symlink_metadata(&link).is_err() {
            std::os::unix::fs::symlink(base, link)?;
        }
        let hex = |digest: &Digest| format!("sha256:{}", digest.hex());
        let (config, _) = put(json!({
            "architecture": "amd64", "os": "linux", "config": {},
            "rootfs": { "type": "layers", "diff_ids": [hex(&base_digest), hex(&layer.digest)] },
        }))?;
        let (manifest, _) = put(json!({
            "schemaVersion": 2,
            "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": hex(&config), "size": 0 },
            "layers": [
                { "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": hex(&base_digest), "size": 0 },
                {
                    "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                    "digest": hex(&layer.digest), "size": 0, "urls": [layer.url],
                    "annotations": {
                        "org.cloudfoundry.experimental.image.base-directory": layer.path.to_string_lossy(),
                    },
                },
            ],
        }))?;
        let index = json!({
            "schemaVersion": 2,
            "manifests": [{
                "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": hex(&manifest), "size": 0,
            }],
        });
        std::fs::write(directory.join("index.json"), index.to_string())
    };
    write().map_err(failed)?;
    Ok(format!("oci://{}", directory.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_creation_is_told_what_it_has_always_been_told() {
        let check = |uri: &str, user: &str, bytes: u64, scope: u8, expected: &str| {
            let image = ImageRef { uri: uri.into(), username: user.into(), password: user.into() };
            let disk = DiskLimits { byte_hard: bytes, scope, ..DiskLimits::default() };
            assert_eq!(create_arguments("h", &image, disk).join(" "), expected, "{uri}");
        };
        check("/stack.tar", "", 0, 1, "/stack.tar h");
        check("docker:///busybox#1", "", 7, 0, "--disk-limit-size-bytes 7 docker:///busybox:1 h");
        check(
            "docker://r/i",
            "u",
            7,
            1,
            "--disk-limit-size-bytes 7 --username u --password u --exclude-image-from-quota docker://r/i h",
        );
    }

    #[test]
    fn a_layer_over_a_base_is_a_layout() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("base.tar");
        std::fs::write(&base, "tar").unwrap();
        let layer = RemoteLayer { url: "http://d".into(), path: "/app".into(), digest: Digest::of(b"x") };
        let image = dir.path().join("image");
        let name = write_layout(&image, &Preloaded::Path(base.clone()), &layer).unwrap();
        assert_eq!(write_layout(&image, &Preloaded::Path(base.clone()), &layer).unwrap(), name);
        assert_eq!(name, format!("oci://{}", image.display()));
        let read = |path: PathBuf| -> serde_json::Value {
            serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
        };
        let blob = |value: &serde_json::Value| {
            image.join("blobs/sha256").join(value["digest"].as_str().unwrap().trim_start_matches("sha256:"))
        };
        let manifest = read(blob(&read(image.join("index.json"))["manifests"][0]));
        assert_eq!(std::fs::read_link(blob(&manifest["layers"][0])).unwrap(), base);
        assert_eq!(manifest["layers"][1]["urls"][0], "http://d");
        assert_eq!(read(blob(&manifest["config"]))["rootfs"]["diff_ids"].as_array().unwrap().len(), 2);
    }
}
