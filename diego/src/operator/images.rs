//! `diego images`: what garden keeps of images and of the disk, asked on the socket in its store's directory.

use std::path::PathBuf;

use anyhow::{Context, anyhow};
use clap::{Args, Subcommand};
use futures_util::StreamExt;
use rootfs::admin::{self, CollectRequest, Disk, Freed, ImageRow, PullLine, PullRequest};
use serde::de::DeserializeOwned;

use super::image::{Bars, is_local, reference};
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
        /// `registry.example:5000/team/web:1`, `web` of the default registry, or with its scheme: docker://, oci:, preloaded:,
        /// or a directory's path.
        image: String,
        /// USER:PASSWORD for its registry.
        #[arg(long, env = "DIEGO_IMAGE_CREDENTIALS", hide_env_values = true, value_parser = user_and_password)]
        credentials: Option<(String, String)>,
    },
    /// Forget images. What is in use stays on the disk as long as it is.
    Rm {
        /// Digests, the beginnings of digests, or names, as `list` shows them.
        #[arg(required = true)]
        images: Vec<String>,
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
        Command::Rm { images } => admin.remove(global, &images).await?,
        Command::Gc { mb, unused_hours } => {
            let request = CollectRequest { bytes: mb.map(|mb| mb << 20), unused_for: unused_hours * 3600 };
            let request = admin.http.post(format!("{HOST}/v1/collect")).json(&request);
            let freed: Freed = read(request).await?;
            match global.json {
                true => output::line(&freed)?,
                false if freed.things == 0 => print("nothing to take away: all is in use, or was lately")?,
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
            let said = format!(
                "no garden runs on the store {store} (another is named by --store), or only root may ask it"
            );
            return Err(Failure::Unreachable(said));
        }
        diego_base::tls::install_provider();
        let http = reqwest::Client::builder().unix_socket(socket).no_proxy().build();
        Ok(Admin { http: http.context("cannot make an HTTP client")? })
    }

    async fn images(&self) -> Result<Vec<ImageRow>, Failure> {
        read(self.http.get(format!("{HOST}/v1/images"))).await
    }

    async fn pull(
        &self,
        global: &Global,
        image: &str,
        credentials: Option<(String, String)>,
    ) -> Result<(), Failure> {
        let (username, password) = credentials.unwrap_or_default();
        let image = if is_local(image) { image.to_owned() } else { reference(image) };
        let request = PullRequest { image, username, password };
        let request = self.http.post(format!("{HOST}/v1/images")).json(&request);
        let answer = answered(request).await?;
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

    async fn remove(&self, global: &Global, wanted: &[String]) -> Result<(), Failure> {
        let images = self.images().await?;
        // All are found before the first is removed.
        let found = wanted.iter().map(|wanted| find(&images, wanted)).collect::<Result<Vec<_>, _>>()?;
        for image in found {
            answered(self.http.delete(format!("{HOST}/v1/images/{}", image.digest))).await?;
            if !global.json {
                print(&format!("forgot {}  {}", image.digest, image.name))?;
            }
        }
        Ok(())
    }
}

/// By its name, or by its digest or the beginning of it, which must be that of one alone.
fn find<'a>(images: &'a [ImageRow], wanted: &str) -> Result<&'a ImageRow, Failure> {
    let name = if is_local(wanted) { wanted.to_owned() } else { reference(wanted) };
    if let Some(image) = images.iter().find(|image| image.name == name) {
        return Ok(image);
    }
    let hex = wanted.strip_prefix("sha256:").unwrap_or(wanted);
    let begins = |image: &&ImageRow| image.digest.trim_start_matches("sha256:").starts_with(hex);
    match images.iter().filter(|_| !hex.is_empty()).filter(begins).collect::<Vec<_>>()[..] {
        [image] => Ok(image),
        [] => Err(Failure::Unknown(format!("there is no image '{wanted}'"))),
        [_, _, ..] => {
            Err(Failure::Unsuccessful(format!("the digests of several images begin with {wanted}")))
        }
    }
}

fn user_and_password(text: &str) -> Result<(String, String), String> {
    let (user, password) = text.split_once(':').ok_or("it must be USER:PASSWORD")?;
    Ok((user.into(), password.into()))
}

async fn read<T: DeserializeOwned>(request: reqwest::RequestBuilder) -> Result<T, Failure> {
    let answer = answered(request).await?;
    Ok(answer.json().await.context("cannot read the store's answer")?)
}

async fn answered(request: reqwest::RequestBuilder) -> Result<reqwest::Response, Failure> {
    match request.send().await {
        Ok(answer) => accepted(answer).await,
        Err(error) if error.is_connect() => Err(Failure::Unreachable(
            "no garden runs on this store any more: nobody answers on its socket".into(),
        )),
        Err(error) => Err(anyhow::Error::new(error).context("cannot reach the store").into()),
    }
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
    const HEADINGS: &'static [&'static str] = &["DIGEST", "IMAGE", "LAYERS", "SIZE", "LAST USED", "IN USE"];

    fn cells(&self) -> Vec<String> {
        let short: String = self.digest.trim_start_matches("sha256:").chars().take(12).collect();
        let unused_ns = i64::try_from(self.unused_for).unwrap_or(0).saturating_mul(1_000_000_000);
        let ago = format!("{} ago", output::age(0, unused_ns));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_named_by_its_digest_the_beginning_of_it_or_its_name_and_never_by_nothing() {
        let row = |digest: &str, name: &str| ImageRow {
            digest: format!("sha256:{digest}"),
            name: name.into(),
            layers: 1,
            bytes: 1,
            in_use: false,
            unused_for: 0,
        };
        let images =
            [row("abc1", "docker://h:1/web:1"), row("abd2", "oci:///a/b:1"), row("ffff", "docker:///web")];
        let found = |wanted: &str| match find(&images, wanted) {
            Ok(image) => image.digest.clone(),
            Err(error) => error.to_string(),
        };
        for (wanted, expected) in [
            ("sha256:abc1", "sha256:abc1"),
            ("abd", "sha256:abd2"),
            ("h:1/web:1", "sha256:abc1"),
            ("oci:///a/b:1", "sha256:abd2"),
            ("web", "sha256:ffff"),
            ("ab", "the digests of several images begin with ab"),
            ("", "there is no image ''"),
            ("sha256:", "there is no image 'sha256:'"),
            ("0", "there is no image '0'"),
        ] {
            assert_eq!(found(wanted), expected, "{wanted}");
        }
        let one = &images[..1];
        assert!(find(one, "sha256:").is_err(), "also where there is only one");
    }

    #[test]
    fn credentials_without_a_password_are_refused() {
        assert_eq!(user_and_password("a:b:c"), Ok(("a".into(), "b:c".into())));
        assert!(user_and_password("token").is_err());
    }
}
