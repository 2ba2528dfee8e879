//! `diego push DIR`: packs a directory, stages it with a buildpack into a droplet, and runs the droplet.

use std::io::Seek;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use bbs_models::TaskOutcome;
use clap::Args;
use futures_util::TryStreamExt;
use indicatif::ProgressBar;
use serde::Deserialize;
use tokio_util::io::ReaderStream;
use uuid::Uuid;

use super::Global;
use super::recipe::{self, Staging};
use super::run::{self, AppFlags};
use super::target::Target;
use super::{Failure, output, task};

#[derive(Args)]
pub struct Flags {
    /// The app's source.
    dir: PathBuf,
    /// A buildpack: a directory, a zip file or a URL. May be given many times: the last one starts the app.
    #[arg(long, short = 'b', required = true)]
    buildpack: Vec<String>,
    /// The root filesystem, one of the cell's own.
    #[arg(long)]
    stack: Option<String>,
    /// Seconds that staging may take.
    #[arg(long, default_value_t = 900)]
    staging_wait: u64,
    #[command(flatten)]
    app: AppFlags,
}

/// What staging says of the droplet, as far as we need it.
#[derive(Deserialize)]
struct StagingResult {
    #[serde(default)]
    process_types: std::collections::BTreeMap<String, String>,
}

pub async fn run(global: &Global, flags: Flags) -> Result<(), Failure> {
    let target = Target::reach(global).await?;
    let name = match &flags.app.name {
        Some(name) => name.clone(),
        None => name_of(&flags.dir)?,
    };
    let stack = match &flags.stack {
        Some(stack) => stack.clone(),
        None => target.endpoints.preloaded.first().cloned().ok_or_else(|| {
            Failure::Unsuccessful(
                "the cells have no root filesystem for droplets; start: diego dev --stack NAME=DIR".into(),
            )
        })?,
    };
    let push = Push { target: &target, id: Uuid::new_v4().simple().to_string(), quiet: global.json };
    let droplet_url = push.stage(&flags, &name, &stack).await?;
    let app = flags.app.app(&name, &target);
    let lrp =
        recipe::droplet_lrp(&app, &stack, &droplet_url, &run::ssh_keys()?, &target.endpoints.file_server_url);
    run::start(global, &target, &lrp, &app, flags.app.wait).await
}

struct Push<'a> {
    target: &'a Target,
    /// In the names of this push's blobs.
    id: String,
    quiet: bool,
}

impl Push<'_> {
    /// The URL of the droplet.
    async fn stage(&self, flags: &Flags, name: &str, stack: &str) -> Result<String, Failure> {
        let source_url = self.upload_dir("app", &flags.dir).await?;
        let mut buildpacks = Vec::new();
        for (order, buildpack) in flags.buildpack.iter().enumerate() {
            buildpacks.push(self.buildpack(order, buildpack).await?);
        }
        let droplet_url = self.blob_url("droplet.tgz");
        let staging = Staging {
            app: name,
            stack,
            source_url: &source_url,
            buildpacks: &buildpacks,
            skip_detect: true,
            droplet_url: &droplet_url,
            file_server: &self.target.endpoints.file_server_url,
            env: flags.app.env.clone(),
        };
        let definition = recipe::staging_task(&staging);
        let limit = Duration::from_secs(flags.staging_wait);
        let guid = format!("staging-{}", self.id);
        match task::run_to_end(self.target, &guid, &definition, limit, self.quiet).await? {
            TaskOutcome::Succeeded { result } => {
                self.say_result(&result)?;
                Ok(droplet_url)
            }
            TaskOutcome::Failed { reason } => {
                Err(Failure::Unsuccessful(format!("staging {name} failed: {reason}")))
            }
        }
    }

    fn say_result(&self, result: &str) -> Result<(), Failure> {
        let result: StagingResult = serde_json::from_str(result).context("cannot read the staging result")?;
        match result.process_types.get("web") {
            _ if self.quiet => {}
            Some(command) => output::print(&format!("staged; starts with: {command}"))?,
            None => output::print("staged; the buildpack names no web process")?,
        }
        Ok(())
    }

    /// The name and URL of a buildpack, uploaded first unless it has a URL already.
    async fn buildpack(&self, order: usize, buildpack: &str) -> Result<(String, String), Failure> {
        let path = Path::new(buildpack);
        let name = path.file_stem().map_or(String::new(), |stem| plain(&stem.to_string_lossy()));
        let is_url = buildpack.starts_with("http://") || buildpack.starts_with("https://");
        let url = if is_url {
            buildpack.to_owned()
        } else if path.is_dir() {
            self.upload_dir(&format!("buildpack-{order}"), path).await?
        } else {
            let file =
                std::fs::File::open(path).with_context(|| format!("cannot read buildpack {buildpack}"))?;
            self.upload(&format!("buildpack-{order}.zip"), file).await?
        };
        Ok((name, url))
    }

    async fn upload_dir(&self, what: &str, dir: &Path) -> Result<String, Failure> {
        let dir = dir.to_owned();
        let packed =
            tokio::task::spawn_blocking(move || pack(&dir)).await.map_err(|error| anyhow!(error))??;
        self.upload(&format!("{what}.tgz"), packed).await
    }

    async fn upload(&self, what: &str, file: std::fs::File) -> Result<String, Failure> {
        let url = self.blob_url(what);
        let bytes = file.metadata().context("cannot upload")?.len();
        let bar = if self.quiet { ProgressBar::hidden() } else { ProgressBar::new(bytes) };
        bar.set_message(what.to_owned());
        let shown = bar.clone();
        let chunks = ReaderStream::new(tokio::fs::File::from_std(file))
            .inspect_ok(move |chunk| shown.inc(chunk.len() as u64));
        let request = self.target.http.put(&url).body(reqwest::Body::wrap_stream(chunks));
        let answer = request.send().await.context("cannot upload")?;
        bar.finish_and_clear();
        if !answer.status().is_success() {
            let reason = answer.text().await.unwrap_or_default();
            return Err(anyhow!("cannot upload {what}: {}", reason.trim_end()).into());
        }
        Ok(url)
    }

    fn blob_url(&self, what: &str) -> String {
        format!("{}/v1/blobs/{}-{what}", self.target.endpoints.file_server_url, self.id)
    }
}

/// Packs into a file without a name, which is gone when it is closed.
fn pack(dir: &Path) -> anyhow::Result<std::fs::File> {
    if !dir.is_dir() {
        bail!("{} is not a directory", dir.display());
    }
    let file = tempfile::tempfile().context("cannot make a temporary file")?;
    let gzip = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
    let mut tar = tar::Builder::new(gzip);
    tar.follow_symlinks(false);
    tar.append_dir_all(".", dir).with_context(|| format!("cannot pack {}", dir.display()))?;
    let mut file = tar.into_inner().and_then(flate2::write::GzEncoder::finish).context("cannot pack")?;
    file.rewind().context("cannot pack")?;
    Ok(file)
}

fn name_of(dir: &Path) -> Result<String, Failure> {
    let dir = dir.canonicalize().with_context(|| format!("cannot find {}", dir.display()))?;
    Ok(plain(&dir.file_name().map(|name| name.to_string_lossy()).unwrap_or_default()))
}

/// Letters, digits and dashes: what may stand in a host name and in a path alike.
pub fn plain(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '-' }).collect()
}
