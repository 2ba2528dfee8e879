//! `diego run IMAGE`: pins the image, desires it, and waits until its instances run.

use std::time::Duration;

use anyhow::Context;
use clap::Args;
use serde::Serialize;

use super::Global;
use super::recipe::{self, App, HealthCheck, SshKeys};
use super::target::Target;
use super::wait::Standing;
use super::{Failure, image, output, wait};

#[derive(Args)]
pub struct Flags {
    /// An image, as `[HOST[:PORT]/]REPOSITORY[:TAG|@DIGEST]`; or one that the cells have: `preloaded:NAME`, `oci:///PATH`.
    image: String,
    #[command(flatten)]
    app: AppFlags,
    /// `USER:PASSWORD` for the image's registry; needed now and never kept.
    #[arg(long, env = "DIEGO_REGISTRY_CREDENTIALS", hide_env_values = true)]
    credentials: Option<String>,
}

/// What `run` and `push` both take.
#[derive(Args, Clone)]
pub struct AppFlags {
    /// The app's name; otherwise made from the image's or the directory's.
    #[arg(long)]
    pub name: Option<String>,
    #[arg(long, short = 'i', default_value_t = 1)]
    pub instances: u32,
    /// Memory of one instance, in MiB.
    #[arg(long, short = 'm', default_value_t = 256)]
    pub memory: u32,
    /// Disk of one instance, in MiB.
    #[arg(long, short = 'k', default_value_t = 1024)]
    pub disk: u32,
    /// `NAME=VALUE`; may be given many times.
    #[arg(long, short = 'e', value_parser = environment)]
    pub env: Vec<bbs_models::EnvironmentVariable>,
    /// Start this instead of what the image or droplet says.
    #[arg(long, short = 'c')]
    pub command: Option<String>,
    /// The port the app listens on; otherwise what the image exposes, otherwise 8080.
    #[arg(long)]
    pub port: Option<u16>,
    /// `port`, `process`, or a path such as `/health`.
    #[arg(long, default_value = "port", value_parser = health_check)]
    pub health_check: HealthCheck,
    /// Seconds to wait until all instances run; 0 does not wait.
    #[arg(long, default_value_t = 120)]
    pub wait: u64,
}

impl AppFlags {
    pub fn app(&self, name: &str, target: &Target) -> App {
        App {
            name: name.into(),
            instances: self.instances,
            memory_mb: self.memory,
            disk_mb: self.disk,
            env: self.env.clone(),
            command: self.command.clone(),
            port: self.port,
            check: self.health_check.clone(),
            hostname: target.hostname(name),
        }
    }
}

fn environment(text: &str) -> Result<bbs_models::EnvironmentVariable, String> {
    let (name, value) = text.split_once('=').ok_or("it must be NAME=VALUE")?;
    Ok(bbs_models::EnvironmentVariable { name: name.into(), value: value.into() })
}

fn health_check(text: &str) -> Result<HealthCheck, String> {
    match text {
        "port" => Ok(HealthCheck::Port),
        "process" => Ok(HealthCheck::Process),
        path if path.starts_with('/') => Ok(HealthCheck::Http(path.into())),
        _ => Err("it must be port, process, or a path that begins with /".into()),
    }
}

/// What `--json` says of an app that was started.
#[derive(Serialize)]
struct Started<'a> {
    name: &'a str,
    url: &'a str,
    rootfs: &'a str,
    instances: u32,
}

pub async fn run(global: &Global, flags: Flags) -> Result<(), Failure> {
    let target = Target::reach(global).await?;
    let name = match &flags.app.name {
        Some(name) => name.clone(),
        None => name_of(&flags.image),
    };
    let credentials = flags.credentials.as_deref();
    let command = flags.app.command.is_some();
    let pinned = image::pin(&target, &flags.image, credentials, command, global.json).await?;
    let app = flags.app.app(&name, &target);
    let keys = ssh_keys()?;
    let lrp =
        recipe::image_lrp(&app, &pinned.image, &pinned.config, &keys, &target.endpoints.file_server_url);
    start(global, &target, &lrp, &app, flags.app.wait).await
}

/// Desires an app, waits for it, and says where it answers.
pub async fn start(
    global: &Global,
    target: &Target,
    lrp: &bbs_models::DesiredLrp,
    app: &App,
    wait_seconds: u64,
) -> Result<(), Failure> {
    target.desire(lrp).await?;
    if wait_seconds > 0 {
        let limit = Duration::from_secs(wait_seconds);
        let progress = |seen: &Standing| {
            if !global.json {
                eprintln!("{}", seen.line(app.instances));
            }
        };
        wait::until_running(target, &app.name, app.instances, limit, progress).await?;
    }
    let url = target.url(&app.hostname);
    if global.json {
        let started = Started { name: &app.name, url: &url, rootfs: &lrp.rootfs, instances: app.instances };
        output::line(&started)?;
    } else {
        output::print(&format!("{} answers at {url}", app.name))?;
    }
    Ok(())
}

pub fn ssh_keys() -> Result<SshKeys, Failure> {
    let make = || brain::ssh_proxy::keys::generate().context("cannot make keys for ssh");
    let (host, user) = (make()?, make()?);
    Ok(SshKeys {
        host_private_pem: host.private_pem,
        host_fingerprint: host.fingerprint,
        user_private_pem: user.private_pem,
        user_authorized_key: user.authorized_key,
    })
}

/// `host:5000/team/web:1` is `web`.
fn name_of(image: &str) -> String {
    let path = image.split('@').next().unwrap_or_default();
    let last = path.rsplit('/').next().unwrap_or_default();
    let name = last.split([':', '#']).next().unwrap_or_default();
    super::push::plain(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_app_is_named_after_its_image() {
        for (image, name) in [
            ("web", "web"),
            ("host:5000/team/web:1", "web"),
            ("docker://host/team/my_app@sha256:00", "my-app"),
            ("docker:///team/web#1", "web"),
        ] {
            assert_eq!(name_of(image), name, "{image}");
        }
    }
}
