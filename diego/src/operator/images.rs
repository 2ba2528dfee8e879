//! `diego images`: what garden keeps of images and of the disk, asked on the socket in its store's directory.

use std::path::PathBuf;

use anyhow::{Context, anyhow};
use clap::{Args, Subcommand};
use futures_util::StreamExt;
use rootfs::admin::{self, CollectRequest, Disk, Freed, ImageRow, PullLine, PullRequest};
use serde::de::DeserializeOwned;

use super::image::{Bars, reference};
use super::output::{self, Row, print};
use super::{Failure, Global};

/// Nobody is at this host: the socket is.
const HOST: &str = "http://store";

#[derive(Args)]
pub struct Flags {
    /// The store's directory, where it is not this machine's Diego's own: `store` below a garden's depot.
    #[arg(long, global = true)]
    store: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// List images, the ones used last first.
    List,
    /// Bring an image here, ready to be mounted.
    Pull {
        image: String,
        /// USER:PASSWORD for its registry.
        #[arg(long, env = "DIEGO_IMAGE_CREDENTIALS", hide_env_values = true)]
        credentials: Option<String>,
    },
    /// Forget images by their digest, or the beginning of it. What is in use stays on the disk as long as it is.
    Rm {
        #[arg(required = true)]
        digests: Vec<String>,
    },
    /// Take away what is unused, the longest unused first: layers, downloads, the registry cache.
    Gc {
        /// Stop once so many MiB are free.
        #[arg(long)]
        mb: Option<u64>,
        /// Leave what was used in the last so many hours.
        #[arg(long, default_value_t = 0)]
        unused_hours: u64,
    },
    /// Show who takes what of the disk.
    Df,
}

struct Admin {
    http: reqwest::Client,
}

pub async fn run(global: &Global, flags: Flags) -> Result<(), Failure> {
    let store = flags.store.unwrap_or_else(|| global.state.join("garden/store"));
    let admin = Admin::new(store)?;
    match flags.command.unwrap_or(Command::List) {
        Command::List => output::rows(global.json, &admin.images().await?)?,
        Command::Pull { image, credentials } => admin.pull(global, &image, credentials).await?,
        Command::Rm { digests } => admin.remove(&digests).await?,
        Command::Gc { mb, unused_hours } => {
            let request = CollectRequest { bytes: mb.map(|mb| mb << 20), unused_for: unused_hours * 3600 };
            let request = admin.http.post(format!("{HOST}/v1/collect")).json(&request);
            let freed: Freed = read(request).await?;
            match global.json {
                true => output::line(&freed)?,
                false => print(&format!("{} freed, of {} things", size(freed.bytes), freed.things))?,
            }
        }
        Command::Df => {
            let disk: Disk = read(admin.http.get(format!("{HOST}/v1/disk"))).await?;
            if global.json { output::line(&disk)? } else { show(&disk)? }
        }
    }
    Ok(())
}

impl Admin {
    fn new(store: PathBuf) -> Result<Admin, Failure> {
        let socket = admin::socket(&store);
        if !socket.exists() {
            let store = store.display();
            return Err(anyhow!("no garden runs on the store {store}, or only root may ask it").into());
        }
        diego_base::tls::install_provider();
        let http = reqwest::Client::builder().unix_socket(socket).no_proxy().build();
        Ok(Admin { http: http.context("cannot make an HTTP client")? })
    }

    async fn images(&self) -> Result<Vec<ImageRow>, Failure> {
        read(self.http.get(format!("{HOST}/v1/images"))).await
    }

    async fn pull(&self, global: &Global, image: &str, credentials: Option<String>) -> Result<(), Failure> {
        let (username, password) = credentials
            .as_deref()
            .and_then(|both| both.split_once(':'))
            .map(|(username, password)| (username.to_owned(), password.to_owned()))
            .unwrap_or_default();
        let request = PullRequest { image: reference(image), username, password };
        let request = self.http.post(format!("{HOST}/v1/images")).json(&request);
        let answer = accepted(request.send().await.context("cannot reach the store")?).await?;
        let mut bars = Bars::new(global.json);
        let (mut pending, mut chunks) = (Vec::new(), answer.bytes_stream());
        while let Some(chunk) = chunks.next().await {
            pending.extend_from_slice(&chunk.context("the store broke off")?);
            while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = pending.drain(..=end).collect();
                match serde_json::from_slice(&line).context("cannot read the store's answer")? {
                    PullLine::Progress { layer, done, total } => bars.show(&layer, done, total),
                    PullLine::Failed { error } => return Err(Failure::Unsuccessful(error)),
                    pulled @ PullLine::Pulled { .. } if global.json => return Ok(output::line(&pulled)?),
                    PullLine::Pulled { digest, bytes } => {
                        drop(bars);
                        return Ok(print(&format!("{digest}  {}", size(bytes)))?);
                    }
                }
            }
        }
        Err(anyhow!("the store ended without an answer").into())
    }

    async fn remove(&self, digests: &[String]) -> Result<(), Failure> {
        let images = self.images().await?;
        for digest in digests {
            let wanted = digest.trim_start_matches("sha256:");
            let hex = |image: &&ImageRow| image.digest.trim_start_matches("sha256:").starts_with(wanted);
            let found: Vec<&ImageRow> = images.iter().filter(hex).collect();
            let [image] = found[..] else {
                return Err(Failure::Unsuccessful(format!("{} images begin with {digest}", found.len())));
            };
            let request = self.http.delete(format!("{HOST}/v1/images/{}", image.digest));
            accepted(request.send().await.context("cannot reach the store")?).await?;
        }
        Ok(())
    }
}

async fn read<T: DeserializeOwned>(request: reqwest::RequestBuilder) -> Result<T, Failure> {
    let answer = accepted(request.send().await.context("cannot reach the store")?).await?;
    Ok(answer.json().await.context("cannot read the store's answer")?)
}

async fn accepted(answer: reqwest::Response) -> Result<reqwest::Response, Failure> {
    if answer.status().is_success() {
        return Ok(answer);
    }
    let status = answer.status();
    let said: serde_json::Value = answer.json().await.unwrap_or_default();
    let reason = said["error"].as_str().map_or_else(|| format!("the store answers {status}"), str::to_owned);
    Err(Failure::Unsuccessful(reason))
}

impl Row for ImageRow {
    const HEADINGS: &'static [&'static str] = &["DIGEST", "IMAGE", "LAYERS", "SIZE", "USED", "IN USE"];

    fn cells(&self) -> Vec<String> {
        let short: String = self.digest.trim_start_matches("sha256:").chars().take(12).collect();
        let ago = output::age(0, i64::try_from(self.unused_for).unwrap_or(0).saturating_mul(1_000_000_000));
        let in_use = if self.in_use { "yes" } else { "" };
        vec![short, self.name.clone(), self.layers.to_string(), size(self.bytes), ago, in_use.into()]
    }
}

fn show(disk: &Disk) -> anyhow::Result<()> {
    for (what, bytes) in [
        ("disk", disk.total_bytes),
        ("free", disk.free_bytes),
        ("room for more", disk.room_bytes),
        ("collected above", disk.high_mark_bytes),
        ("collected down to", disk.low_mark_bytes),
        ("for containers", disk.roots_capacity_bytes),
    ] {
        print(&format!("{what:<18} {:>10}", size(bytes)))?;
    }
    print(&format!("\n{:<18} {:>10} {:>10} {:>10}", "", "TAKEN", "UNUSED", "PROMISED"))?;
    for (name, tenant) in &disk.tenants {
        let (taken, unused, promised) =
            (size(tenant.bytes), size(tenant.evictable_bytes), size(tenant.promised_bytes));
        print(&format!("{name:<18} {taken:>10} {unused:>10} {promised:>10}"))?;
    }
    print(&format!("{:<18} {:>10}", "being written", size(disk.claimed_bytes)))?;
    print(&format!("{:<18} {:>10} {:>10} {:>10}", "other components", "", "", size(disk.elsewhere_bytes)))?;
    print(&format!("{:<18} {:>10}", "others", size(disk.others_bytes)))
}

/// `1.5 GiB`.
fn size(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}
