//! `ssh-proxy`: leads ssh clients to instances that the BBS knows.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use brain::ssh_proxy::{self, BbsInstances, CfAuthentication};
use clap::Args;
use diego_base::http::ClientConfig;
use diego_base::serve::Listen;
use tokio_util::sync::CancellationToken;

use super::flags::{Bbs, Health, Log, Tls};
use super::health;
use crate::dev::Parts;

#[derive(Args)]
pub struct Flags {
    #[arg(long, default_value = "127.0.0.1:2222")]
    listen: SocketAddr,
    /// The proxy's private key, PEM or OpenSSH; otherwise one that lasts as long as the process.
    #[arg(long)]
    host_key: Option<PathBuf>,
    /// `USER:PASSWORD` for clients that name an instance as `diego:PROCESS_GUID/INDEX`; otherwise they are refused.
    #[arg(long, env = "DIEGO_CREDENTIALS", hide_env_values = true)]
    diego_credentials: Option<String>,
    /// Reach instances at their own addresses instead of their cell's.
    #[arg(long)]
    connect_to_instance_address: bool,
    #[command(flatten)]
    cf: Cf,
    #[command(flatten)]
    bbs: Bbs,
    #[command(flatten)]
    health: Health,
    #[command(flatten)]
    tls: Tls,
    #[command(flatten)]
    pub log: Log,
}

/// All of them, or clients that name an instance as `cf:APP_GUID/INDEX` are refused.
#[derive(Args)]
struct Cf {
    /// The Cloud Controller, which says who may enter.
    #[arg(long, requires_all = ["uaa_token_url", "uaa_username", "uaa_password"])]
    cc_api_url: Option<String>,
    #[arg(long, requires = "cc_api_url")]
    uaa_token_url: Option<String>,
    #[arg(long, requires = "cc_api_url")]
    uaa_username: Option<String>,
    #[arg(long, requires = "cc_api_url", env = "UAA_PASSWORD", hide_env_values = true)]
    uaa_password: Option<String>,
}

impl Cf {
    fn authentication(self, client: &ClientConfig) -> Result<Option<CfAuthentication>> {
        let (Some(cc_api_url), Some(uaa_token_url), Some(uaa_username), Some(uaa_password)) =
            (self.cc_api_url, self.uaa_token_url, self.uaa_username, self.uaa_password)
        else {
            return Ok(None);
        };
        let http =
            diego_base::http::client(client).context("cannot make a client for the Cloud Controller")?;
        Ok(Some(CfAuthentication { http, cc_api_url, uaa_token_url, uaa_username, uaa_password }))
    }
}

pub async fn run(flags: Flags, shutdown: CancellationToken) -> Result<()> {
    let client = flags.tls.client();
    let instances = BbsInstances {
        bbs: flags.bbs.client(&client)?,
        connect_to_instance_address: flags.connect_to_instance_address,
    };
    let mut config = ssh_proxy::Config::new(Listen::Tcp(flags.listen), Arc::new(instances));
    config.host_key = flags.host_key.map(read_key).transpose()?;
    config.diego_credentials = flags.diego_credentials;
    config.cf = flags.cf.authentication(&client)?;
    let mut parts = Parts::default();
    if let Some(address) = flags.health.health_address {
        parts.start("health answer", health::run(address, parts.shutdown()));
    }
    parts.start("ssh proxy", ssh_proxy::run(config, parts.shutdown()));
    super::together(parts, shutdown).await
}

fn read_key(path: PathBuf) -> Result<String> {
    std::fs::read_to_string(&path).with_context(|| format!("cannot read the host key {}", path.display()))
}
