//! Instance identity: each container gets a certificate that says which instance it is, signed by the cell's
//! authority, in `/etc/cf-instance-credentials`.
//!
//! Issued when the container is created, and anew well before it expires: an application that keeps it open reads
//! the files again.

mod der;
pub(crate) mod names;
mod x509;

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;
pub(crate) use x509::Issued;

use crate::{Attempt, Config, InstanceIdentity, Occurrence, RunInfo};

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

/// Certificates that are not good yet are refused: one that was issued more than this after now is replaced.
const CLOCK_SET_BACK_MAX: Duration = Duration::from_secs(60);

/// How long before its end a certificate is replaced.
fn reserve(validity: Duration) -> Duration {
    const HOUR: Duration = Duration::from_secs(3600);
    if validity > 4 * HOUR { HOUR / 2 } else { validity / 8 }
}

/// For how long one is good that was issued then.
pub(crate) fn left(issued_ns: i64, now_ns: i64, validity: Duration) -> Duration {
    let age_ns = now_ns.saturating_sub(issued_ns);
    match u64::try_from(age_ns) {
        Ok(age_ns) => validity.saturating_sub(Duration::from_nanos(age_ns)),
        Err(_) if age_ns.unsigned_abs() > CLOCK_SET_BACK_MAX.as_nanos() as u64 => Duration::ZERO,
        Err(_) => validity,
    }
}

/// When to replace it.
pub(crate) fn renewal_in(issued_ns: i64, now_ns: i64, validity: Duration) -> Duration {
    left(issued_ns, now_ns, validity).saturating_sub(reserve(validity))
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

/// What an instance shows: to whom it connects, and to the routers that connect to it.
pub(crate) fn identity(
    config: &Config,
    authority: &InstanceIdentity,
    guid: &str,
    run_info: &RunInfo,
    ip: Option<IpAddr>,
) -> Result<Issued, CredentialsError> {
    let begun = Instant::now();
    let issued = issue(config, authority, guid, run_info, (&[], ip));
    config.witness.saw(Occurrence::InstanceIdentity(Attempt::of(begun, &issued)));
    issued
}

/// What it shows to other containers, which know it by its internal routes.
pub(crate) fn container_to_container(
    config: &Config,
    authority: &InstanceIdentity,
    guid: &str,
    run_info: &RunInfo,
    internal_routes: &[String],
) -> Result<Issued, CredentialsError> {
    let begun = Instant::now();
    let issued = issue(config, authority, guid, run_info, (internal_routes, None));
    config.witness.saw(Occurrence::ContainerToContainer(Attempt::of(begun, &issued)));
    issued
}

fn issue(
    config: &Config,
    authority: &InstanceIdentity,
    guid: &str,
    run_info: &RunInfo,
    (dns_names, ip): (&[String], Option<IpAddr>),
) -> Result<Issued, CredentialsError> {
    let subject = x509::Subject {
        common_name: guid,
        organizational_units: &run_info.certificate_organizational_units,
        dns_names,
        ip,
        not_before_ns: config.clock.now_ns(),
        validity: authority.validity,
    };
    x509::issue(&authority.ca_certificate_pem, &authority.ca_private_key_pem, &subject)
        .map_err(|source| CredentialsError::Issue { guid: guid.to_string(), source })
}

/// Where the container reads them.
pub(crate) fn write(config: &Config, guid: &str, issued: &Issued) -> Result<(), CredentialsError> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_was_set_replaces_a_certificate_at_once() {
        const MINUTE_NS: i64 = 60_000_000_000;
        let validity = Duration::from_secs(24 * 3600);
        let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
        let table = [
            (0, minutes(24 * 60), minutes(24 * 60 - 30)),
            (60, minutes(23 * 60), minutes(22 * 60 + 30)),
            (24 * 60 - 30, minutes(30), minutes(0)),
            (24 * 60, minutes(0), minutes(0)),
            (1_000_000, minutes(0), minutes(0)),
            // Set back a little, and so far that nobody would take it.
            (-1, minutes(24 * 60), minutes(24 * 60 - 30)),
            (-2, minutes(0), minutes(0)),
        ];
        for (age, is_left, is_due_in) in table {
            let (issued, now) = (MINUTE_NS, MINUTE_NS + age * MINUTE_NS);
            assert_eq!(left(issued, now, validity), is_left, "{age} minutes old");
            assert_eq!(renewal_in(issued, now, validity), is_due_in, "{age} minutes old");
        }
    }

    #[test]
    fn a_certificate_is_replaced_well_before_its_end() {
        let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
        for (validity, wanted) in [(24 * 60, 30), (241, 30), (240, 30), (120, 15), (8, 1)] {
            assert_eq!(reserve(minutes(validity)), minutes(wanted), "{validity}");
        }
    }
}
