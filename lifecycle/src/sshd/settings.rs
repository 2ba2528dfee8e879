//! What the daemon is told: flags, and two environment variables that keep the keys out of the process list.

use std::{borrow::Cow, ffi::OsString, io, os::unix::process::CommandExt, process::Command};

use russh::{
    Preferred,
    keys::{PrivateKey, PublicKey, decode_secret_key, ssh_key},
};

use super::log::Log;
use crate::flags::{FlagSet, Parsed};

/// The first argument of a program that waits for connections.
pub const WAIT: &str = "--wait-for-connections";

const HOST_KEY_VARIABLE: &str = "SSHD_HOSTKEY";
const AUTHORIZED_KEY_VARIABLE: &str = "SSHD_AUTHKEY";
/// Flags that are handed on when the daemon starts itself again.
const KEPT_TEXTS: [&str; 6] =
    ["address", "allowedCiphers", "allowedKeyExchanges", "allowedMACs", "debugAddr", "logLevel"];
const KEPT_SWITCHES: [&str; 2] = ["allowUnauthenticatedClients", "inheritDaemonEnv"];

/// Everything the daemon needs to know.
pub struct Settings {
    pub host_key: PrivateKey,
    pub authorized_key: Option<PublicKey>,
    pub allow_unauthenticated_clients: bool,
    pub inherit_daemon_env: bool,
    pub preferred: Preferred,
    pub log: Log,
}

#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    #[error("cannot read the host key: {0}")]
    HostKey(#[source] russh::keys::Error),
    #[error("cannot make a host key: {0}")]
    Random(#[source] io::Error),
    #[error("cannot read the authorized key: {0}")]
    AuthorizedKey(#[source] ssh_key::Error),
    #[error("Public user key is required")]
    NoAuthorizedKey,
    #[error("-{flag}: {name:?} is none of {known}")]
    Algorithm { flag: &'static str, name: String, known: String },
    #[error("-logLevel: {0:?} is none of debug, info, error, fatal")]
    LogLevel(String),
    #[error("cannot start again without keys on the command line: {0}")]
    StartAgain(#[source] io::Error),
}

pub fn flags() -> FlagSet {
    FlagSet::new("diego-sshd")
        .text("address", "127.0.0.1:2222", "listen address for ssh daemon")
        .switch("allowUnauthenticatedClients", false, "Allow access to unauthenticated clients")
        .text("allowedCiphers", "", "Limit cipher algorithms to those provided (comma separated)")
        .text("allowedKeyExchanges", "", "Limit key exchanges algorithms to those provided (comma separated)")
        .text("allowedMACs", "", "Limit MAC algorithms to those provided (comma separated)")
        .text("authorizedKey", "", "Public key in the OpenSSH authorized_keys format")
        .text("debugAddr", "", "accepted and ignored")
        .text("hostKey", "", "PEM encoded host key; one is made when there is none")
        .switch("inheritDaemonEnv", false, "Inherit daemon's environment")
        .text("logLevel", "info", "log level: debug, info, error or fatal")
        .text("timeFormat", "", "accepted and ignored")
}

/// Becomes this program once more, to wait for connections: with the keys in its environment, for every process of the
/// container can read a command line; without huge pages, which make a small process a large one from its start on; and
/// without all that looking at keys has brought into memory. Returns only when that fails.
pub fn start_waiting(flags: &Parsed, settings: &Settings) -> SettingsError {
    let host_key = match settings.host_key.to_openssh(ssh_key::LineEnding::LF) {
        Ok(written) => written,
        Err(error) => return SettingsError::AuthorizedKey(error),
    };
    let authorized_key = settings.authorized_key.as_ref().map(|key| key.to_openssh()).transpose();
    let authorized_key = match authorized_key {
        Ok(written) => written.unwrap_or_default(),
        Err(error) => return SettingsError::AuthorizedKey(error),
    };
    // Where it cannot be had, the daemon is larger.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    let mut again = Command::new("/proc/self/exe");
    again.arg0(std::env::args_os().next().unwrap_or_else(|| OsString::from("diego-sshd")));
    again.arg(WAIT).args(kept(flags));
    again.env(HOST_KEY_VARIABLE, host_key.as_str()).env(AUTHORIZED_KEY_VARIABLE, authorized_key);
    SettingsError::StartAgain(again.exec())
}

/// The flags as this program gives them to itself.
pub fn kept(flags: &Parsed) -> Vec<String> {
    let texts = KEPT_TEXTS.iter().map(|name| format!("--{name}={}", flags.text(name)));
    let switches = KEPT_SWITCHES.iter().map(|name| format!("--{name}={}", flags.switch(name)));
    texts.chain(switches).collect()
}

impl Settings {
    pub fn new(flags: &Parsed) -> Result<Settings, SettingsError> {
        let variable = |name| std::env::var(name).unwrap_or_default();
        let (host_key, authorized_key) = match variable(HOST_KEY_VARIABLE) {
            key if key.is_empty() => {
                (flags.text("hostKey").to_owned(), flags.text("authorizedKey").to_owned())
            }
            key => (key, variable(AUTHORIZED_KEY_VARIABLE)),
        };
        let settings = Settings {
            host_key: host_key_of(&host_key)?,
            authorized_key: authorized_key_of(&authorized_key)?,
            allow_unauthenticated_clients: flags.switch("allowUnauthenticatedClients"),
            inherit_daemon_env: flags.switch("inheritDaemonEnv"),
            preferred: preferred(flags)?,
            log: log_of(flags)?,
        };
        if settings.authorized_key.is_none() && !settings.allow_unauthenticated_clients {
            return Err(SettingsError::NoAuthorizedKey);
        }
        Ok(settings)
    }

    /// The daemon's environment as sessions inherit it: without PATH, and never with the keys.
    pub fn inherited_environment(&self) -> Vec<(String, String)> {
        if !self.inherit_daemon_env {
            return Vec::new();
        }
        let hidden = ["PATH", HOST_KEY_VARIABLE, AUTHORIZED_KEY_VARIABLE];
        std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .filter(|(name, _)| !hidden.contains(&name.as_str()))
            .collect()
    }
}

/// What of the flags is needed to wait for connections: where, and what to log.
pub fn waiting(flags: &Parsed) -> Result<(String, Log), SettingsError> {
    Ok((flags.text("address").to_owned(), log_of(flags)?))
}

fn log_of(flags: &Parsed) -> Result<Log, SettingsError> {
    let level = flags.text("logLevel");
    Log::new(level).ok_or_else(|| SettingsError::LogLevel(level.to_owned()))
}

fn host_key_of(pem: &str) -> Result<PrivateKey, SettingsError> {
    match pem {
        "" => new_host_key(),
        pem => decode_secret_key(pem, None).map_err(SettingsError::HostKey),
    }
}

fn new_host_key() -> Result<PrivateKey, SettingsError> {
    use ssh_key::private::Ed25519Keypair;
    let mut seed = [0; 32];
    rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty())
        .map_err(|error| SettingsError::Random(error.into()))?;
    Ok(PrivateKey::from(Ed25519Keypair::from_seed(&seed)))
}

fn authorized_key_of(line: &str) -> Result<Option<PublicKey>, SettingsError> {
    match line.trim() {
        "" => Ok(None),
        line => PublicKey::from_openssh(line).map(Some).map_err(SettingsError::AuthorizedKey),
    }
}

/// The algorithms offered: the limits given, or what current clients take without being asked, quickest first.
fn preferred(flags: &Parsed) -> Result<Preferred, SettingsError> {
    use russh::{cipher, kex, mac};
    let mut preferred = Preferred {
        cipher: Cow::Borrowed(&[
            cipher::AES_256_GCM,
            cipher::AES_128_GCM,
            cipher::CHACHA20_POLY1305,
            cipher::AES_256_CTR,
            cipher::AES_192_CTR,
            cipher::AES_128_CTR,
        ]),
        compression: Cow::Borrowed(&[russh::compression::NONE]),
        ..Preferred::DEFAULT
    };
    let limits = |flag| (flag, flags.text(flag));
    if let Some(names) = limited(limits("allowedCiphers"), cipher::ALL_CIPHERS)? {
        preferred.cipher = names.into();
    }
    if let Some(names) = limited(limits("allowedMACs"), mac::ALL_MAC_ALGORITHMS)? {
        preferred.mac = names.into();
    }
    if let Some(mut names) = limited(limits("allowedKeyExchanges"), kex::ALL_KEX_ALGORITHMS)? {
        names.extend([kex::EXTENSION_SUPPORT_AS_SERVER, kex::EXTENSION_OPENSSH_STRICT_KEX_AS_SERVER]);
        preferred.kex = names.into();
    }
    Ok(preferred)
}

/// The algorithms of a comma-separated list, `None` when it is empty.
fn limited<Name: Copy + AsRef<str>>(
    (flag, list): (&'static str, &str),
    known: &[&Name],
) -> Result<Option<Vec<Name>>, SettingsError> {
    if list.is_empty() {
        return Ok(None);
    }
    let text = |known: &&Name| -> String { AsRef::<str>::as_ref(*known).to_owned() };
    let find = |name: &str| known.iter().find(|known| text(known) == name);
    list.split(',')
        .map(str::trim)
        .map(|name| {
            find(name).map(|known| **known).ok_or_else(|| SettingsError::Algorithm {
                flag,
                name: name.to_owned(),
                known: known.iter().map(text).collect::<Vec<_>>().join(", "),
            })
        })
        .collect::<Result<_, _>>()
        .map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(line: &str) -> Result<Settings, SettingsError> {
        let words = line.split_whitespace().map(str::to_owned);
        Settings::new(&flags().parse(words).unwrap())
    }

    #[test]
    fn somebody_must_be_let_in() {
        assert!(matches!(settings(""), Err(SettingsError::NoAuthorizedKey)));
        assert!(settings("-allowUnauthenticatedClients").is_ok());
        assert!(matches!(
            settings("-allowUnauthenticatedClients -hostKey=x"),
            Err(SettingsError::HostKey(_))
        ));
        assert!(matches!(settings("-authorizedKey=x"), Err(SettingsError::AuthorizedKey(_))));
    }

    #[test]
    fn algorithms_can_be_limited_to_known_ones() {
        let limited = settings("-allowUnauthenticatedClients -allowedCiphers=aes256-ctr,aes128-ctr").unwrap();
        let names: Vec<&str> = limited.preferred.cipher.iter().map(AsRef::as_ref).collect();
        assert_eq!(names, ["aes256-ctr", "aes128-ctr"]);
        let error = settings("-allowUnauthenticatedClients -allowedMACs=rot13").err().unwrap();
        assert!(error.to_string().starts_with("-allowedMACs: \"rot13\" is none of "), "{error}");
    }
}
