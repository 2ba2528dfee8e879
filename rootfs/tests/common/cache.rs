//! A registry cache that is being served.

// Not every test needs all of it.
#![allow(dead_code)]

use std::path::Path;
use std::time::Duration;

use diego_base::serve::Listen;
use rootfs::digest::Digest;
use rootfs::ledger::Ledger;
use rootfs::registry::cache::{self, ResolveLine, ResolveRequest, Resolved, Writers};
use rootfs::registry::{Policy, Retry};
use tokio_util::sync::CancellationToken;

pub const NOBODY: (&str, &str) = ("", "");

pub struct Cache {
    pub address: std::net::SocketAddr,
    pub shutdown: CancellationToken,
    pub server: tokio::task::JoinHandle<Result<(), cache::Error>>,
}

impl Cache {
    pub fn start(directory: &Path, tag_age_max: Duration) -> Cache {
        Cache::start_with(directory, tag_age_max, Writers::default())
    }

    pub fn start_with(directory: &Path, tag_age_max: Duration, writers: Writers) -> Cache {
        let (listen, address) = Listen::loopback().unwrap();
        let retry = Retry { first_wait: Duration::from_millis(5), ..Retry::default() };
        let upstream = Policy { retry, stall_max: Duration::from_millis(500), ..Policy::default() };
        let usual = cache::Config::new(listen, directory.to_path_buf());
        let config = cache::Config { upstream, tag_age_max, writers, ..usual };
        let shutdown = CancellationToken::new();
        let server = tokio::spawn(cache::run(config, shutdown.clone()));
        Cache { address, shutdown, server }
    }

    /// In the account of a disk.
    pub fn start_on(ledger: &Ledger, directory: &Path) -> Cache {
        let (listen, address) = Listen::loopback().unwrap();
        let mut config = cache::Config::new(listen, directory.to_path_buf());
        config.ledger = Some(ledger.clone());
        let shutdown = CancellationToken::new();
        let server = tokio::spawn(cache::run(config, shutdown.clone()));
        Cache { address, shutdown, server }
    }

    /// A blob at once; the answer's status and what it says.
    pub async fn push(&self, http: &reqwest::Client, blob: Vec<u8>) -> (u16, String) {
        let url = format!("http://{}/v2/team/app/blobs/uploads/?digest={}", self.address, Digest::of(&blob));
        let answer = http.post(url).body(blob).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    }

    pub async fn stop(self) {
        self.shutdown.cancel();
        self.server.await.unwrap().unwrap();
    }

    pub async fn get(&self, path: &str) -> (u16, reqwest::header::HeaderMap, Vec<u8>) {
        let answer = client().get(format!("http://{}{path}", self.address)).send().await.unwrap();
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        (status, headers, answer.bytes().await.map_or_else(|_| b"broken off".to_vec(), |b| b.to_vec()))
    }

    pub async fn resolve(
        &self,
        image: &str,
        user: (&str, &str),
    ) -> (Vec<ResolveLine>, Result<Resolved, String>) {
        let request =
            ResolveRequest { image: image.into(), username: user.0.into(), password: user.1.into() };
        let url = format!("http://{}/v1/resolve", self.address);
        let text = client().post(url).json(&request).send().await.unwrap().text().await.unwrap();
        let mut lines: Vec<ResolveLine> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let last = match lines.pop() {
            Some(ResolveLine::Resolved(resolved)) => Ok(resolved),
            Some(ResolveLine::Error { error }) => Err(error),
            other => panic!("{other:?}"),
        };
        (lines, last)
    }
}

pub fn client() -> reqwest::Client {
    diego_base::http::client(&Default::default()).unwrap()
}
