//! Instance identity: each container gets a certificate that says which instance it is, signed by the cell's
//! authority, in `/etc/cf-instance-credentials`.
//!
//! Issued when the container is created, and anew well before it expires: an application that keeps it open reads
//! the files again.

mod der;
mod x509;

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::{Config, InstanceIdentity, RunInfo};

pub(crate) const CONTAINER_PATH: &str = "/etc/cf-instance-credentials";
const CERTIFICATE: &str = "instance.crt";
const KEY: &str = "instance.key";

#[derive(Debug, thiserror::Error)]
pub(crate) enum CredentialsError {
    #[error("cannot write {path}")]
    Write { path: PathBuf, source: io::Error },
    #[error("cannot issue the instance identity of {guid}")]
    Issue { guid: String, source: x509::IssueError },
}

/// How long after its issue a certificate is replaced.
pub(crate) fn renewal(validity: Duration) -> Duration {
    const HOUR: Duration = Duration::from_secs(3600);
    if validity > 4 * HOUR { validity - HOUR / 2 } else { validity - validity / 8 }
}

pub(crate) fn dir(config: &Config, guid: &str) -> PathBuf {
    config.work_dir.join("credentials").join(guid)
}

/// The directory to mount, empty until the certificate is issued: its address is known only then.
pub(crate) fn prepare(config: &Config, guid: &str) -> Result<PathBuf, CredentialsError> {
    let dir = dir(config, guid);
    fs::create_dir_all(&dir).map_err(|source| CredentialsError::Write { path: dir.clone(), source })?;
    Ok(dir)
}

pub(crate) fn environment() -> [String; 2] {
    [
        format!("CF_INSTANCE_CERT={CONTAINER_PATH}/{CERTIFICATE}"),
        format!("CF_INSTANCE_KEY={CONTAINER_PATH}/{KEY}"),
    ]
}

pub(crate) fn issue(
    config: &Config,
    authority: &InstanceIdentity,
    guid: &str,
    run_info: &RunInfo,
    ip: Option<IpAddr>,
) -> Result<(), CredentialsError> {
    let subject = x509::Subject {
        common_name: guid,
        organizational_units: &run_info.certificate_organizational_units,
        ip,
        not_before_ns: config.clock.now_ns(),
        validity: authority.validity,
    };
    let issued = x509::issue(&authority.ca_certificate_pem, &authority.ca_private_key_pem, &subject)
        .map_err(|source| CredentialsError::Issue { guid: guid.to_string(), source })?;
    let dir = dir(config, guid);
    // The key first: who finds the certificate finds its key.
    replace(&dir.join(KEY), &issued.private_key_pem)?;
    replace(&dir.join(CERTIFICATE), &issued.certificate_chain_pem)
}

fn replace(path: &Path, content: &str) -> Result<(), CredentialsError> {
    let written = || -> io::Result<()> {
        let temp = path.with_extension("tmp");
        fs::write(&temp, content)?;
        // Readable for every user of the container: it is the container's identity, not one user's.
        fs::set_permissions(&temp, fs::Permissions::from_mode(0o644))?;
        fs::rename(&temp, path)
    };
    written().map_err(|source| CredentialsError::Write { path: path.to_path_buf(), source })
}
