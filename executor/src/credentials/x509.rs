//! Issues a certificate. Written out by hand because a platform's instances carry several organizational units
//! (organization, space, app), which certificate builders that keep one value a name cannot say.

use std::net::IpAddr;
use std::time::Duration;

use rcgen::{KeyPair, PublicKeyData, SigningKey};

use super::der::{self, element, object_id, sequence};

const COMMON_NAME: &[u8] = &[0x55, 4, 3];
const ORGANIZATIONAL_UNIT: &[u8] = &[0x55, 4, 11];
const KEY_USAGE: &[u8] = &[0x55, 29, 15];
const SUBJECT_ALT_NAME: &[u8] = &[0x55, 29, 17];
const EXTENDED_KEY_USAGE: &[u8] = &[0x55, 29, 37];
const SERVER_AUTH: &[u8] = &[0x2B, 6, 1, 5, 5, 7, 3, 1];
const CLIENT_AUTH: &[u8] = &[0x2B, 6, 1, 5, 5, 7, 3, 2];
const ECDSA_WITH_SHA256: &[u8] = &[0x2A, 0x86, 0x48, 0xCE, 0x3D, 4, 3, 2];
const ECDSA_WITH_SHA384: &[u8] = &[0x2A, 0x86, 0x48, 0xCE, 0x3D, 4, 3, 3];
const SHA256_WITH_RSA: &[u8] = &[0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 1, 1, 11];
const RSA_ENCRYPTION: &[u8] = &[0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 1, 1, 1];
const ED25519: &[u8] = &[0x2B, 0x65, 0x70];

/// Digital signature, key encipherment, key agreement.
const KEY_USAGE_BITS: [u8; 2] = [3, 0b1010_1000];

#[derive(Debug, thiserror::Error)]
pub(crate) enum IssueError {
    #[error("the authority's {0} is not readable")]
    Unreadable(&'static str),
    #[error("the authority's key is of a kind that cannot sign here")]
    Algorithm,
    #[error("a key that was just made is not readable")]
    NotSec1,
    #[error("cannot make or use a key")]
    Key(#[source] rcgen::Error),
}

/// Longer is no name of the DNS.
const DNS_NAME_BYTES_MAX: usize = 253;

pub(crate) struct Subject<'a> {
    /// Also the first of its alternative names.
    pub common_name: &'a str,
    pub organizational_units: &'a [String],
    /// More names; what could not be one is left out.
    pub dns_names: &'a [String],
    pub ip: Option<IpAddr>,
    pub not_before_ns: i64,
    pub validity: Duration,
}

pub(crate) struct Issued {
    /// The instance's certificate, then the authority's.
    pub certificate_chain_pem: String,
    pub private_key_pem: String,
}

pub(crate) fn issue(ca_pem: &str, ca_key_pem: &str, subject: &Subject) -> Result<Issued, IssueError> {
    let ca = pem_contents(ca_pem).ok_or(IssueError::Unreadable("certificate"))?;
    let issuer = subject_name(&ca).ok_or(IssueError::Unreadable("certificate"))?;
    let signer = signer(ca_key_pem)?;
    let algorithm = algorithm(&signer)?;
    let key = KeyPair::generate().map_err(IssueError::Key)?;
    let to_sign = sequence(&[
        element(0xA0, &element(der::INTEGER, &[2])),
        element(der::INTEGER, &serial()),
        algorithm.clone(),
        issuer,
        validity(subject),
        name(subject),
        key.subject_public_key_info(),
        element(0xA3, &extensions(subject)),
    ]);
    let signature = signer.sign(&to_sign).map_err(IssueError::Key)?;
    let certificate = sequence(&[to_sign, algorithm, der::bit_string(&signature)]);
    Ok(Issued {
        certificate_chain_pem: pem("CERTIFICATE", &certificate) + &pem("CERTIFICATE", &ca),
        private_key_pem: pem("EC PRIVATE KEY", &sec1(key.serialized_der()).ok_or(IssueError::NotSec1)?),
    })
}

/// The key of a PKCS#8 envelope in the form of its own kind of key, with its curve. Readers of instances' keys that
/// are at home with upstream's `RSA PRIVATE KEY` (a Java buildpack's security provider) take this form, not the envelope.
fn sec1(pkcs8: &[u8]) -> Option<Vec<u8>> {
    let version = der::split(der::split(pkcs8)?.content)?;
    let algorithm = der::split(version.after)?;
    let curve = der::split(der::split(algorithm.content)?.after)?;
    let key = der::split(der::split(algorithm.after)?.content)?;
    let version = der::split(key.content)?;
    let secret = der::split(version.after)?;
    let parts = [version.whole, secret.whole].map(<[u8]>::to_vec);
    // The public key, if it is there, stays where it is: behind the curve.
    Some(sequence(&[&parts[..], &[element(0xA0, curve.whole), secret.after.to_vec()]].concat()))
}

/// PKCS#8 as it is; PKCS#1, as deployments render it, in a PKCS#8 envelope.
fn signer(ca_key_pem: &str) -> Result<KeyPair, IssueError> {
    let contents = pem_contents(ca_key_pem).ok_or(IssueError::Unreadable("private key"))?;
    let pkcs8 = if ca_key_pem.contains("BEGIN RSA PRIVATE KEY") {
        let algorithm = sequence(&[object_id(RSA_ENCRYPTION), element(der::NULL, &[])]);
        sequence(&[element(der::INTEGER, &[0]), algorithm, element(der::OCTET_STRING, &contents)])
    } else {
        contents
    };
    KeyPair::try_from(pkcs8).map_err(IssueError::Key)
}

fn algorithm(signer: &KeyPair) -> Result<Vec<u8>, IssueError> {
    let algorithm = signer.algorithm();
    if algorithm == &rcgen::PKCS_ECDSA_P256_SHA256 {
        Ok(sequence(&[object_id(ECDSA_WITH_SHA256)]))
    } else if algorithm == &rcgen::PKCS_ECDSA_P384_SHA384 {
        Ok(sequence(&[object_id(ECDSA_WITH_SHA384)]))
    } else if algorithm == &rcgen::PKCS_RSA_SHA256 {
        Ok(sequence(&[object_id(SHA256_WITH_RSA), element(der::NULL, &[])]))
    } else if algorithm == &rcgen::PKCS_ED25519 {
        Ok(sequence(&[object_id(ED25519)]))
    } else {
        Err(IssueError::Algorithm)
    }
}

fn serial() -> [u8; 16] {
    let mut serial = *uuid::Uuid::new_v4().as_bytes();
    // Positive, and never with a leading zero.
    serial[0] = serial[0] & 0x7F | 0x40;
    serial
}

fn name(subject: &Subject) -> Vec<u8> {
    let attribute = |kind, value: &str| {
        element(der::SET, &sequence(&[object_id(kind), element(der::UTF8_STRING, value.as_bytes())]))
    };
    let mut parts: Vec<_> =
        subject.organizational_units.iter().map(|unit| attribute(ORGANIZATIONAL_UNIT, unit)).collect();
    parts.push(attribute(COMMON_NAME, subject.common_name));
    sequence(&parts)
}

fn extensions(subject: &Subject) -> Vec<u8> {
    let extension = |kind, critical: bool, value: Vec<u8>| {
        let critical = if critical { element(der::BOOLEAN, &[0xFF]) } else { Vec::new() };
        sequence(&[object_id(kind), critical, element(der::OCTET_STRING, &value)])
    };
    let more = subject.dns_names.iter().map(String::as_str).filter(|name| is_dns_name(name));
    let mut names: Vec<_> =
        [subject.common_name].into_iter().chain(more).map(|name| element(0x82, name.as_bytes())).collect();
    names.extend(subject.ip.map(|ip| match ip {
        IpAddr::V4(ip) => element(0x87, &ip.octets()),
        IpAddr::V6(ip) => element(0x87, &ip.octets()),
    }));
    let usages = sequence(&[object_id(CLIENT_AUTH), object_id(SERVER_AUTH)]);
    sequence(&[
        extension(KEY_USAGE, true, element(der::BIT_STRING, &KEY_USAGE_BITS)),
        extension(EXTENDED_KEY_USAGE, false, usages),
        extension(SUBJECT_ALT_NAME, false, sequence(&names)),
    ])
}

/// What a verifier does not choke on, which would cost the whole certificate.
fn is_dns_name(name: &str) -> bool {
    let is_label = |label: &str| {
        !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_*".contains(&byte))
    };
    name.len() <= DNS_NAME_BYTES_MAX && name.split('.').all(is_label)
}

fn validity(subject: &Subject) -> Vec<u8> {
    let not_before = subject.not_before_ns.div_euclid(1_000_000_000);
    let validity = i64::try_from(subject.validity.as_secs()).unwrap_or(i64::MAX);
    sequence(&[time(not_before), time(not_before.saturating_add(validity))])
}

/// Seconds since the epoch; two-digit years until 2049, as the standard has it.
fn time(seconds: i64) -> Vec<u8> {
    let (year, month, day) = date(seconds.div_euclid(86_400));
    let rest = seconds.rem_euclid(86_400);
    let tail = format!("{month:02}{day:02}{:02}{:02}{:02}Z", rest / 3600, rest / 60 % 60, rest % 60);
    if (1950..2050).contains(&year) {
        element(der::UTC_TIME, format!("{:02}{tail}", year % 100).as_bytes())
    } else {
        element(der::GENERALIZED_TIME, format!("{year:04}{tail}").as_bytes())
    }
}

/// The day of the Gregorian calendar so many days after 1970-01-01, counted in years that begin in March.
fn date(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

/// The subject of a certificate, as it is encoded there.
fn subject_name(certificate: &[u8]) -> Option<Vec<u8>> {
    let certificate = der::split(certificate)?;
    let mut rest = der::split(certificate.content)?.content;
    // Version (optional), serial, signature algorithm, issuer, validity; then the subject.
    if der::split(rest)?.tag == 0xA0 {
        rest = der::split(rest)?.after;
    }
    for _ in 0..4 {
        rest = der::split(rest)?.after;
    }
    Some(der::split(rest)?.whole.to_vec())
}

/// The first block's bytes.
fn pem_contents(pem: &str) -> Option<Vec<u8>> {
    let body = pem.split_once("-----BEGIN ")?.1.split_once("-----")?.1.split_once("-----END ")?.0;
    let text: String = body.split_whitespace().collect();
    crate::base64_decode(&text)
}

fn pem(label: &str, contents: &[u8]) -> String {
    let text = crate::base64(contents);
    let lines: Vec<_> = text.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn authority() -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, "instance identity CA");
        (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
    }

    #[test]
    fn a_certificate_names_its_instance_and_all_its_units() {
        let (ca, ca_key) = authority();
        let units = ["organization:o", "space:s", "app:a"].map(String::from);
        let subject = Subject {
            common_name: "instance-guid",
            organizational_units: &units,
            dns_names: &[],
            ip: Some("10.254.0.2".parse().unwrap()),
            not_before_ns: 1_795_305_600_000_000_000,
            validity: Duration::from_secs(86_400),
        };
        let issued = issue(&ca, &ca_key, &subject).unwrap();
        let certificate = pem_contents(&issued.certificate_chain_pem).unwrap();
        for part in ["instance-guid", "organization:o", "space:s", "app:a", "261122000000Z", "261123000000Z"]
        {
            let found = certificate.windows(part.len()).any(|window| window == part.as_bytes());
            assert!(found, "{part}");
        }
        assert!(issued.certificate_chain_pem.ends_with(&ca.replace("\r\n", "\n")));
        assert_eq!(subject_name(&certificate), Some(name(&subject)));
        assert!(issued.private_key_pem.starts_with("-----BEGIN EC PRIVATE KEY-----"));
    }

    /// What an independent reader says of a certificate or a key.
    fn told_by_openssl(arguments: &[&str], pem: &str) -> Option<String> {
        use std::io::Write;
        use std::process::{Command, Stdio};
        let mut openssl = Command::new("openssl")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .ok()?;
        openssl.stdin.take()?.write_all(pem.as_bytes()).ok()?;
        let output = openssl.wait_with_output().ok()?;
        assert!(output.status.success(), "{output:?}");
        Some(String::from_utf8(output.stdout).unwrap())
    }

    #[test]
    fn openssl_reads_names_uses_and_days_as_they_were_meant() {
        let (ca, ca_key) = authority();
        let units = ["organization:o", "space:s", "app:a"].map(String::from);
        let routes = ["a.apps.internal", "b.apps.internal", "not a name", "", "ü.internal"].map(String::from);
        let subject = Subject {
            common_name: "instance-guid",
            organizational_units: &units,
            dns_names: &routes,
            ip: Some("10.254.0.2".parse().unwrap()),
            not_before_ns: 1_795_305_600_000_000_000,
            validity: Duration::from_secs(86_400),
        };
        let issued = issue(&ca, &ca_key, &subject).unwrap();
        let arguments = ["x509", "-noout", "-text", "-nameopt", "RFC2253"];
        let Some(text) = told_by_openssl(&arguments, &issued.certificate_chain_pem) else {
            println!("SKIPPED openssl_reads_names_uses_and_days_as_they_were_meant: there is no openssl");
            return;
        };
        for line in [
            "Version: 3 (0x2)",
            "Issuer: CN=instance identity CA",
            "Subject: CN=instance-guid,OU=app:a,OU=space:s,OU=organization:o",
            "Not Before: Nov 22 00:00:00 2026 GMT",
            "Not After : Nov 23 00:00:00 2026 GMT",
            "Digital Signature, Key Encipherment, Key Agreement",
            "TLS Web Client Authentication, TLS Web Server Authentication",
            "DNS:instance-guid, DNS:a.apps.internal, DNS:b.apps.internal, IP Address:10.254.0.2",
        ] {
            assert!(text.lines().any(|told| told.trim() == line), "{line} in:\n{text}");
        }
        let public = |arguments: &[&str], pem: &str| told_by_openssl(arguments, pem).unwrap();
        let key = public(&["ec", "-pubout"], &issued.private_key_pem);
        assert_eq!(key, public(&["x509", "-noout", "-pubkey"], &issued.certificate_chain_pem));
    }

    #[test]
    fn dates_follow_the_calendar() {
        let table =
            [(0, (1970, 1, 1)), (59, (1970, 3, 1)), (11_016, (2000, 2, 29)), (20_779, (2026, 11, 22))];
        for (days, wanted) in table {
            assert_eq!(date(days), wanted, "{days}");
        }
    }

    #[test]
    fn an_unreadable_authority_is_named() {
        let subject = Subject {
            common_name: "x",
            organizational_units: &[],
            dns_names: &[],
            ip: None,
            not_before_ns: 0,
            validity: Duration::ZERO,
        };
        let error = issue("rubbish", "rubbish", &subject).err().unwrap();
        assert_eq!(error.to_string(), "the authority's certificate is not readable");
    }
}
