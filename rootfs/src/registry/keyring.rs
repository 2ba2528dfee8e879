//! Who we are to which registry, from a file in the form of Docker's `config.json`: credentials in it, or a helper
//! program that is asked for them (`docker-credential-NAME get`). Nothing is kept: each login looks anew.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::Credentials;

const FILE_BYTES_MAX: u64 = 1024 * 1024;
const HELPER_TIME_MAX: Duration = Duration::from_secs(10);
const HELPER_BYTES_MAX: u64 = 64 * 1024;
/// Under this name Docker keeps what opens its own registry.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";
/// What helpers say when they know nothing.
const NOT_FOUND: &str = "credentials not found";

#[derive(Debug, Clone, Default)]
pub struct Keyring {
    file: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct File {
    auths: BTreeMap<String, Entry>,
    creds_store: String,
    cred_helpers: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Entry {
    /// Base64 of `username:password`.
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Helped {
    username: String,
    secret: String,
}

/// Where the credentials for a repository are.
#[derive(Debug, PartialEq, Eq)]
enum Kept {
    Nowhere,
    Here(Credentials),
    /// Ask this helper for this server.
    WithHelper {
        name: String,
        server: String,
    },
}

impl Keyring {
    pub fn new(file: Option<PathBuf>) -> Keyring {
        Keyring { file }
    }

    /// What opens `repository` of `host`, or why that cannot be told.
    pub async fn find(&self, host: &str, repository: &str) -> Result<Option<Credentials>, String> {
        let Some(path) = &self.file else { return Ok(None) };
        let failed = |reason: &dyn std::fmt::Display| format!("{}: {reason}", path.display());
        let file = read(path).await.map_err(|error| failed(&error))?;
        let file: File = serde_json::from_slice(&file).map_err(|error| failed(&error))?;
        match file.kept(host, repository).map_err(|reason| failed(&reason))? {
            Kept::Nowhere => Ok(None),
            Kept::Here(credentials) => Ok(Some(credentials)),
            Kept::WithHelper { name, server } => {
                let asked = tokio::time::timeout(HELPER_TIME_MAX, ask(&name, &server)).await;
                let slow = format!("no answer within {} s", HELPER_TIME_MAX.as_secs());
                let helped = asked.unwrap_or(Err(slow));
                helped.map_err(|reason| format!("helper docker-credential-{name}: {reason}"))
            }
        }
    }
}

async fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = tokio::fs::File::open(path).await?;
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).await?;
    match bytes.len() as u64 > FILE_BYTES_MAX {
        true => Err(std::io::Error::other(format!("more than {FILE_BYTES_MAX} bytes"))),
        false => Ok(bytes),
    }
}

impl File {
    /// A helper for the registry says most, then the helper for all, then what the file holds itself.
    fn kept(&self, host: &str, repository: &str) -> Result<Kept, String> {
        let helper = self.cred_helpers.iter().find(|(key, _)| key_matches(key, host, "").is_some());
        let helper = helper.map(|(_, name)| name).or(Some(&self.creds_store).filter(|name| !name.is_empty()));
        if let Some(name) = helper {
            // It becomes part of a program's name.
            if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_' || b == b'.') {
                return Err(format!("'{name}' is not the name of a helper"));
            }
            let server = if is_docker_hub(host) { DOCKER_HUB_KEY } else { host };
            return Ok(Kept::WithHelper { name: name.clone(), server: server.into() });
        }
        let suitable = self
            .auths
            .iter()
            .filter_map(|(key, entry)| Some((key_matches(key, host, repository)?, key, entry)))
            .max_by_key(|(length, ..)| *length);
        match suitable {
            Some((_, key, entry)) => entry.credentials().map_err(|reason| format!("{key}: {reason}")),
            None => Ok(Kept::Nowhere),
        }
    }
}

impl Entry {
    fn credentials(&self) -> Result<Kept, String> {
        if !self.identitytoken.is_empty() {
            return Ok(Kept::Here(Credentials::identity_token(&self.identitytoken)));
        }
        let given = match self.auth.is_empty() {
            true => Credentials::given(&self.username, &self.password),
            false => {
                let pair = base64::engine::general_purpose::STANDARD.decode(self.auth.trim());
                let pair = pair.ok().and_then(|pair| String::from_utf8(pair).ok());
                let pair = pair.ok_or("its auth is not base64 of a text")?;
                let (username, password) = pair.split_once(':').ok_or("its auth has no colon")?;
                Credentials::given(username, password.trim_end_matches('\0'))
            }
        };
        Ok(given.map_or(Kept::Nowhere, Kept::Here))
    }
}

fn is_docker_hub(host: &str) -> bool {
    matches!(host, "docker.io" | "index.docker.io" | super::DOCKER_HUB)
}

/// How much of the repository a key names, if it is one for it: `host`, `https://host/v1/`, `host/team/app`.
fn key_matches(key: &str, host: &str, repository: &str) -> Option<usize> {
    let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let (key_host, path) = key.split_once('/').unwrap_or((key, ""));
    if key_host != host && !(is_docker_hub(key_host) && is_docker_hub(host)) {
        return None;
    }
    match path.trim_end_matches('/') {
        "" | "v1" | "v2" => Some(0),
        path => match repository.strip_prefix(path) {
            Some("") => Some(path.len()),
            Some(rest) if rest.starts_with('/') => Some(path.len()),
            _ => None,
        },
    }
}

async fn ask(name: &str, server: &str) -> Result<Option<Credentials>, String> {
    let said = |error: std::io::Error| error.to_string();
    let mut child = tokio::process::Command::new(format!("docker-credential-{name}"))
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(said)?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that answers without being told what for is fine, too.
        let _ = stdin.write_all(server.as_bytes()).await;
    }
    let mut answer = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(HELPER_BYTES_MAX).read_to_end(&mut answer).await.map_err(said)?;
    }
    let status = child.wait().await.map_err(said)?;
    if !status.success() {
        let text = String::from_utf8_lossy(&answer);
        let line: String = text.lines().next().unwrap_or_default().chars().take(200).collect();
        return if line.contains(NOT_FOUND) { Ok(None) } else { Err(format!("{status}: {line}")) };
    }
    let helped: Helped = serde_json::from_slice(&answer).map_err(|error| error.to_string())?;
    Ok(Credentials::given(&helped.username, &helped.secret))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(file: &str, host: &str, repository: &str) -> String {
        let file: File = serde_json::from_str(file).unwrap();
        match file.kept(host, repository) {
            Ok(Kept::Nowhere) => "nowhere".into(),
            Ok(Kept::Here(credentials)) => format!("{}/{}", credentials.username, credentials.password),
            Ok(Kept::WithHelper { name, server }) => format!("{name} for {server}"),
            Err(reason) => reason,
        }
    }

    #[test]
    fn credentials_are_found_as_docker_writes_them() {
        let file = r#"{"auths": {
            "https://index.docker.io/v1/": {"auth": "bWU6c2VjcmV0"},
            "r.example": {"username": "a", "password": "b"},
            "r.example/team": {"auth": "dGVhbTp4Onk="},
            "r.example:5000": {},
            "t.example": {"identitytoken": "long"},
            "broken.example": {"auth": "!"}}, "HttpHeaders": {"X": "y"}}"#;
        for (host, repository, expected) in [
            ("registry-1.docker.io", "library/busybox", "me/secret"),
            ("r.example", "app", "a/b"),
            ("r.example", "team/app", "team/x:y"),
            ("r.example", "teams/app", "a/b"),
            ("r.example:5000", "app", "nowhere"),
            ("other.example", "app", "nowhere"),
            ("t.example", "app", "<token>/long"),
            ("broken.example", "app", "broken.example: its auth is not base64 of a text"),
        ] {
            assert_eq!(check(file, host, repository), expected, "{host}/{repository}");
        }
    }

    #[test]
    fn helpers_come_first() {
        let file = r#"{"auths": {"r.example": {"username": "a", "password": "b"}},
            "credHelpers": {"r.example": "pass", "bad.example": "../../bin/sh"}}"#;
        assert_eq!(check(file, "r.example", "app"), "pass for r.example");
        assert_eq!(check(file, "bad.example", "app"), "'../../bin/sh' is not the name of a helper");
        assert_eq!(check(file, "other.example", "app"), "nowhere");
        let file = r#"{"credsStore": "desktop"}"#;
        assert_eq!(check(file, "registry-1.docker.io", "a"), "desktop for https://index.docker.io/v1/");
    }
}
